"""Quick cells of every notebook, replayed by nbval against their committed outputs; the tagging."""

import os
import re
import resource
import shutil
import time

import pytest

from ci import kernels, replay
from ci.series import offline
from rlgenkit.commands.committed import is_draft, normalize, text_of
from rlgenkit.commands.places import ROOT, TEMPLATE, read, series

NOTEBOOKS = [p for p in [*series(), TEMPLATE] if not is_draft(read(p))]
LEAST = 3  # compared cells of a notebook
HALF_CPU_S = 120.0  # of half of the series, imports included; about 75 are needed


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.executes
@pytest.mark.parametrize("half", [0, 1])
def test_quick_cells_come_out_as_committed(half, record_property):
    begin = cpu_seconds()
    with kernels.started(**offline()) as env:
        done = replay.replay(NOTEBOOKS[half::2], env)
    again = "where a text has changed for good: python -m ci.replay NN"
    assert done.returncode == 0, f"{done.stdout[-6000:]}{done.stderr[-2000:]}\n{again}"
    record_property("seconds", used := cpu_seconds() - begin)
    print(f"{used:.0f} CPU seconds")
    assert used < HALF_CPU_S


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_notebook_has_compared_cells(path):
    found = [*replay.tagged(path).values()]
    assert found.count(replay.CHECK) >= LEAST and replay.SKIP in found, (
        f"{path.name} has {found.count(replay.CHECK)} cells that are compared with a replay: "
        f"python -m ci.replay {path.stem.split('_')[0] or path.stem} writes the tags"
    )


@pytest.mark.executes
def test_a_changed_digit_is_found_by_any_kernel(tmp_path):
    """Two copies of the template in ordinary kernels: as it is, and with one digit changed."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "data").symlink_to(ROOT / "data")
    whole, broken = (tmp_path / "notebooks" / name for name in ("whole.ipynb", "broken.ipynb"))
    shutil.copy(TEMPLATE, whole)
    nb, tags = read(TEMPLATE), replay.tagged(TEMPLATE)
    index, output = next(
        (i, output)
        for i, cell in enumerate(nb["cells"])
        for output in cell.get("outputs", ())
        if tags.get(i) == replay.CHECK and re.search(r"\d\.\d", "".join(output.get("text", "")))
    )
    text = "".join(output["text"])
    output["text"] = re.sub(r"(\d\.)(\d)", lambda m: m[1] + str((int(m[2]) + 1) % 10), text, 1)
    broken.write_text(text_of(nb), encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = replay.replay([whole, broken], env)
    number = sum(c["cell_type"] == "code" for c in nb["cells"][:index])
    assert re.findall(r"^_+ \S*?(\w+)\.ipynb::Cell (\d+) _+$", done.stdout, flags=re.M) == [
        ("broken", str(number))
    ], done.stdout[-3000:]
    for copy in (whole, broken):  # by its own report the tool takes the tag of that cell alone
        before = replay.tagged(copy)
        assert replay.drop_failed(copy, done.stdout) == (copy == broken)
        lost = {index: replay.CHECK} if copy == broken else {}
        assert before.items() - replay.tagged(copy).items() == lost.items()


@pytest.mark.executes
def test_a_warm_kernel_is_a_kernel():
    """It works in a scratch folder beside the data, can be interrupted, and ends when killed."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import KernelManager

    def run(code: str) -> dict:
        said = []
        reply = client.execute_interactive(code, output_hook=said.append, timeout=60)
        return {**reply["content"], "said": "".join(m["content"].get("text", "") for m in said)}

    with kernels.started() as env:
        specs = KernelSpecManager(kernel_dirs=[os.path.join(env["JUPYTER_PATH"], "kernels")])
        manager = KernelManager(kernel_name="python3", kernel_spec_manager=specs)
        manager.start_kernel()
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(60)
        told = run("import os, sys; print(os.getpid(), 'torch' in sys.modules, os.listdir('..'))")
        pid, torch, beside = told["said"].split(maxsplit=2)
        assert torch == "True" and "data" in beside
        client.execute("import time; print('now', flush=True); time.sleep(60)")
        while client.get_iopub_msg(timeout=60)["content"].get("text") != "now\n":
            pass
        manager.interrupt_kernel()
        assert client.get_shell_msg(timeout=60)["content"]["ename"] == "KeyboardInterrupt"
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        until = time.monotonic() + 10
        while is_alive(int(pid)) and time.monotonic() < until:
            time.sleep(0.1)
        assert not is_alive(int(pid))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_rounding_keeps_two_decimals():
    from nbval.plugin import get_sanitize_patterns

    rounded = replay.rounded
    assert rounded("0.12345") == rounded("0.12349") != rounded("0.13")
    assert rounded("loss -0.0003") == rounded("loss 0.0002") != rounded("loss -0.0102")
    assert rounded("equal to 2e-06") == rounded("equal to 3.1e-07")
    assert rounded("took 12.5 s") == rounded("took 3 s") != rounded("took 3 steps")
    assert rounded("[1, 2]") != rounded("[1, 3]")
    text = "1.2399 in 3 s, *Figure 12.3: -0.00* of runs/01/x, 1e-9"
    found = text
    for pattern, replacement in get_sanitize_patterns(replay.RULES.read_text(encoding="utf-8")):
        found = re.sub(pattern, replacement, found)
    assert found == rounded(text) == "1.23 in TIME, *Figure: 0.00* of RUN, small"


def test_numbers_at_the_edge_of_a_rounding_are_not_firm():
    assert replay.is_firm("0.5 of 12, 0.500 and 0.123, 1e-5")
    assert not replay.is_firm("0.119999") and not replay.is_firm("0.1200000")


def cell(index, made="", read="", seconds=0.0, same=False):
    return replay.Cell(index, {*made}, {*read}, seconds, same)


def test_names_of_a_cell():
    made, used = replay.names_of(
        "import a.b as c\nd = e\nf[0] = 1\ng.h = 2\n"
        "def i(j):\n    k = l + j\n    return [m for n in k]\n"
    )
    assert made == {*"cdfgi"} and {*"eflmg"} <= used and not {*"jkn"} & used


def test_what_is_not_needed_or_too_long_is_skipped():
    limit = replay.NOTEBOOK_S
    cells = [
        cell(0, made="a", seconds=limit / 2),
        cell(1, made="b", read="a", seconds=limit / 3, same=True),
        cell(2, made="c", seconds=limit / 3),  # nothing reads it
        cell(3, made="d"),  # costs nothing
        cell(4, made="e", read="d", seconds=limit / 3, same=True),
        cell(5, read="b", same=True),
    ]
    indices = [c.index for c in replay.needed(cells)]
    assert indices == [0, 1, 3, 4, 5]
    assert [c.index for c in replay.affordable(cells)] == [0, 1, 3, 5]
    assert [c.index for c in replay.without(cells, cells[0])] == [3, 4]


def test_tags_are_written_beside_others_and_stay_in_the_committed_form(tmp_path):
    path = tmp_path / "copy.ipynb"
    shutil.copy(TEMPLATE, path)
    before, found = path.read_text(encoding="utf-8"), replay.tagged(TEMPLATE)
    replay.write(path, found)
    assert path.read_text(encoding="utf-8") == before
    replay.write(path, {})
    assert replay.tagged(path) == {} and "stub" in path.read_text(encoding="utf-8")
    replay.write(path, found)
    assert replay.tagged(path) == found
    kept = [c["metadata"].get("tags") for c in normalize(read(TEMPLATE))["cells"]]
    assert kept == [c["metadata"].get("tags") for c in read(TEMPLATE)["cells"]]
