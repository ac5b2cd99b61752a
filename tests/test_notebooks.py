"""Every notebook: lint, declared parameters, a clean quick run without a network, valid results."""

import json
import math
import re
import shutil

import nbformat
import pytest
import zmq

from ci import series as runner
from ci import lint
from rlgenkit.commands import committed
from rlgenkit.commands.places import RESULTS, TEMPLATE, find, series
from rlgenkit.workbook import declared, validate

NOTEBOOKS = [*series(), TEMPLATE]
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def finite(value) -> bool:
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def failure(done) -> str:
    """Why a run failed, with the end of its log."""
    log = done.out_dir / "run.log"
    tail = log.read_text(encoding="utf-8")[-3000:] if log.is_file() else "no log"
    return f"{done.sentence}\n{tail}"


@every_notebook
def test_lint(path):
    assert lint.lint(path) == []


@every_notebook
def test_parameters_are_declared(path):
    found = declared(path)
    assert set(lint.COMMON) <= set(found.types)
    assert all(found.help.values())
    assert {"quick", "default", "full"} <= set(found.presets)


@every_notebook
def test_quick_run(path, quick_run, record_property):
    done, cpu = quick_run(path), runner.cpu_seconds(quick_run(path))
    assert done.code == 0, failure(done)
    record_property("notebook", path.stem)
    record_property("cpu_seconds", cpu)
    assert not cpu > runner.HARD_CPU_S, f"{cpu:.0f} CPU seconds, aim at {runner.GOAL_CPU_S:.0f}"
    results = done.results()
    assert results is not None, "the notebook ended without run.finish()"
    validate(results)
    assert finite(results) and results["profile"] == "quick"
    unjudged = ("not judged", "not testable at this scale", "not measured")
    assert all(c["verdict"] in unjudged for c in results["claims"])


@every_notebook
def test_executed_notebook_is_clean(path, quick_run):
    """After normalizing, the quick run keeps the rules that a committed run must keep."""
    executed = committed.normalize(committed.read(quick_run(path).notebook))
    nbformat.validate(nbformat.from_dict(executed))
    codes = [c for c in executed["cells"] if c["cell_type"] == "code" and c["source"].strip()]
    assert [c["execution_count"] for c in codes] == list(range(1, len(codes) + 1))
    assert lint.figures(executed["cells"], told=not lint.is_new(path)) == []
    assert committed.LOCAL_PATH.search(committed.text_of(executed)) is None
    assert committed.normalize(executed) == executed


@every_notebook
def test_exercises_check_themselves(path, quick_run):
    """Stubs and solutions are right as they stand, exercises are not yet."""
    cells = [
        c for c in committed.read(quick_run(path).notebook)["cells"] if c["cell_type"] == "code"
    ]
    stubs = [
        name
        for c in cells
        if "stub" in lint.tags(c)
        for name in re.findall(r"^def (\w+)", lint.source(c), flags=re.M)
    ]
    for cell in cells:
        text = "".join("".join(o.get("text", "")) for o in cell["outputs"])
        rows = [r for r in text.splitlines() if r.startswith("Exercise ")]
        of_stub = any(re.search(rf"\b{name}\)", lint.source(cell)) for name in stubs)
        if "solution" in lint.tags(cell) or "check" in lint.tags(cell) and of_stub:
            assert all("correct" in r for r in rows), rows
        elif "check" in lint.tags(cell):
            assert not any("correct" in r for r in rows), rows


@every_notebook
def test_runs_twice_in_one_folder(path, quick_run, second_run):
    """The same command again restores every phase, computes none and ends with the same results."""
    first, second = quick_run(path), second_run(path)
    assert (first.code, second.code) == (0, 0), failure(second)
    assert runner.comparable(first.out_dir) == runner.comparable(second.out_dir)
    computed = (second.out_dir / "computed.json").read_text(encoding="utf-8")
    assert json.loads(computed) == [], "not restored"


CONSTANTS = {  # notebook -> a value that its arms reach, and another one
    "16": ('"moderate": (0.1, 1.0, False)', '"moderate": (0.2, 1.0, False)'),
    "37": ('"ensemble": (1, 1, 1, 0)', '"ensemble": (1, 1, 2, 0)'),
}


@pytest.mark.parametrize("number", CONSTANTS)
def test_a_changed_constant_trains_again_and_a_changed_caption_does_not(
    number, quick_run, tmp_path
):
    path = find(number)
    old, new = CONSTANTS[number]
    for before, after, trains in ((old, new, True), ('caption="', 'caption="Now: ', False)):
        copy = tmp_path / str(trains) / path.name
        copy.parent.mkdir()
        nb = nbformat.read(path, as_version=4)
        assert any(before in cell.source for cell in nb.cells)
        for cell in nb.cells:
            cell.source = cell.source.replace(before, after)
        nbformat.write(nb, copy)
        out = copy.parent / "run"
        shutil.copytree(quick_run(path).out_dir, out)
        done = runner.run_one(copy, out)
        assert done.code == 0, failure(done)
        assert (json.loads((out / "computed.json").read_text(encoding="utf-8")) != []) == trains


@every_notebook
def test_committed_form_is_normal_and_fresh(path):
    assert committed.problems(path) == []
    if path == TEMPLATE:
        assert not committed.is_draft(committed.read(path))
        return
    if committed.is_draft(committed.read(path)):
        pytest.skip(f"{path.stem} is a draft: it has no official run yet")
    results = json.loads((RESULTS / f"{path.stem[:2]}.json").read_text(encoding="utf-8"))
    validate(results)
    assert (
        finite(results)
        and results["profile"] in ("default", "study")
        and results["notebook"] == path.stem
    )
    assert results["timing"]["seconds"] > 0


def test_generated_pages_are_fresh():
    from ci.report import report

    assert report(check=True) == []


def test_a_draft_is_a_notebook_without_any_trace_of_a_run():
    cell = {"cell_type": "code", "source": "1", "execution_count": None, "outputs": []}
    assert committed.is_draft({"cells": [cell]})
    assert not committed.is_draft({"cells": [cell, cell | {"execution_count": 1}]})
    assert committed.freshness({"cells": [cell], "metadata": {}}, "99") == []
    half = {"cells": [cell, cell | {"execution_count": 1}], "metadata": {}}
    assert "not a clean run" in committed.freshness(half, "99")[0]


def small_notebook(path, *codes: str):
    """A notebook whose parameters cell is followed by the given code cells."""
    head = nbformat.v4.new_code_cell('profile: str = "quick"  # p\nout_dir: str = None  # o\n')
    head.metadata["tags"] = ["parameters"]
    nb = nbformat.v4.new_notebook(cells=[head, *map(nbformat.v4.new_code_cell, codes)])
    nbformat.write(nb, path)
    return path


@pytest.mark.executes
def test_network_is_blocked_in_quick_runs(tmp_path):
    """The proof that the runs above had no network: connecting and resolving fail, loopback works."""
    path = small_notebook(
        tmp_path / "net.ipynb",
        """
import socket
refused = 0
for call in (lambda: socket.create_connection(("192.0.2.1", 80), timeout=2),
             lambda: socket.getaddrinfo("example.invalid", 80)):
    try:
        call()
    except ConnectionRefusedError as error:
        refused += "the network is blocked" in str(error)
assert refused == 2, refused
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
""",
    )
    done = runner.run_one(path, tmp_path / "run")
    assert done.code == 0, done.sentence


@pytest.mark.executes
@pytest.mark.skipif(not zmq.has("ipc"), reason="no socket files on this system")
def test_kernels_that_start_together_share_no_port(tmp_path):
    code = "import ipykernel, json\nassert json.loads(ipykernel.get_connection_info())"
    path = small_notebook(tmp_path / "wire.ipynb", code + "['transport'] == 'ipc'")
    done = runner.run_one(path, tmp_path / "run")
    assert done.code == 0, done.sentence


@pytest.mark.executes
def test_failing_cell_keeps_its_traceback(tmp_path):
    path = small_notebook(tmp_path / "bad.ipynb", "def deep():\n    return 1 / 0\n", "deep()")
    done = runner.run_one(path, tmp_path / "run")
    assert done.code == 1 and "ZeroDivisionError" in done.sentence
    log = (tmp_path / "run" / "run.log").read_text(encoding="utf-8")
    assert "return 1 / 0" in log and "deep()" in log


@pytest.mark.executes
def test_dead_kernel_and_time_limit_are_recognized(tmp_path):
    path = small_notebook(tmp_path / "dead.ipynb", "import os; os.kill(os.getpid(), 9)")
    done = runner.run_one(path, tmp_path / "a")
    assert done.code == 138 and "kernel died" in done.sentence
    path = small_notebook(tmp_path / "slow.ipynb", "import time; time.sleep(600)")
    done = runner.run_one(path, tmp_path / "b", limit_s=8)
    assert done.code == 124 and "time limit" in done.sentence and done.seconds < 300
