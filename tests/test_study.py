"""Studies: one process or several, killed or not, the same bytes; figures from the record alone."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from ci import series as runner
from rlgenkit.__main__ import main
from rlgenkit.commands import run, study
from rlgenkit.commands.committed import read
from rlgenkit.commands.places import RESULTS, ROOT, TEMPLATE, InputError, series
from rlgenkit.workbook import ParameterError, checkpoint, store
from tests.test_determinism import turn

pytestmark = [
    pytest.mark.executes,
    pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a POSIX signal"),
]


def command(out, jobs):
    return [
        sys.executable,
        "-m",
        "rlgenkit",
        "run",
        "_template",
        "--profile",
        "study",
        "--jobs",
        str(jobs),
        "--out",
        str(out),
    ]


def finished(out, jobs):
    done = subprocess.run(
        command(out, jobs),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **runner.offline()},
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("one") / "study", 1)


def numbers(out):
    """All that a study says: results without the version of the code, metrics, the record."""
    files = ["results.json", "metrics.jsonl", "record/metrics.jsonl", "record/results.safetensors"]
    return [re.sub(rb'"commit": [^,\n]*', b"", (out / f).read_bytes()) for f in files]


def pictures(out):
    cells = read(out / TEMPLATE.name)["cells"]
    return [
        o["data"]["image/png"]
        for c in cells
        if c["cell_type"] == "code"
        for o in c["outputs"]
        if "image/png" in o.get("data", {})
    ]


def test_shares_are_neighbors_of_nearly_equal_length():
    assert study.shares([3, 4, 5, 6, 7], 2) == [[3, 4], [5, 6, 7]]
    assert study.shares([0, 1], 8) == [[0], [1]] and study.shares([0], 1) == [[0]]


def test_two_processes_give_the_bytes_of_one(whole, tmp_path):
    two = finished(tmp_path / "two", 2)
    assert numbers(two) == numbers(whole) and pictures(two) == pictures(whole)
    assert json.loads((whole / "computed.json").read_text()) != []
    assert json.loads((two / "computed.json").read_text()) == []  # the processes did it all


def test_killed_anywhere_and_resumed_gives_the_same_bytes(whole, tmp_path):
    out = tmp_path / "killed"
    process = subprocess.Popen(
        command(out, 2),
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **runner.offline()},
    )
    end = time.monotonic() + 300
    while not list(out.rglob("phases/*/*.safetensors")) and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(random.Random(os.getpid()).random())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "results.json").exists()
    family = [
        p for p in psutil.process_iter(["cmdline"]) if str(out) in " ".join(p.info["cmdline"] or [])
    ]
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []  # what it had started ended by itself
    time.sleep(2)  # the kernels look for their parent once a second
    assert numbers(finished(out, 2)) == numbers(whole)


def test_figures_are_drawn_from_the_record_alone(whole, tmp_path):
    shutil.copytree(whole / "record", tmp_path / "record")
    env = {
        **runner.offline(),
        **study.one_thread(),
        **store.environment(record=tmp_path / "record"),
    }
    done = run.execute(TEMPLATE, {"profile": "study"}, tmp_path / "again", 300, quiet=True, env=env)
    assert done.code == 0, done.sentence
    assert pictures(tmp_path / "again") == pictures(whole)
    results = [
        json.loads((out / "results.json").read_text()) for out in (whole, tmp_path / "again")
    ]
    assert results[0] == results[1]  # provenance too: that of the run that computed the phases
    assert not list((tmp_path / "again").rglob("*.safetensors"))


TOO_LARGE = ("30", "33", "34", "35", "38")  # draw from pictures or weights that records lack


def test_a_committed_study_is_redrawn_from_its_record(tmp_path):
    """One study, another one with every commit: the same figures in words, the same claims."""
    stems = [p for p in series() if (study.STUDIES / p.stem[:2] / "study.json").is_file()]
    stems = [p for p in stems if p.stem[:2] not in TOO_LARGE]
    path = stems[turn() % len(stems)]
    done = run.execute(
        path,
        {"profile": "study"},
        tmp_path / "again",
        600,
        quiet=True,
        env={**runner.offline(), **study.redrawing(path)},
    )
    assert done.code == 0, f"{path.stem}: {done.sentence}"
    shown = [
        [
            o["data"]["text/plain"]
            for c in read(book)["cells"]
            if c["cell_type"] == "code"
            for o in c["outputs"]
            if "image/png" in o.get("data", {})
        ]
        for book in (path, tmp_path / "again" / path.name)
    ]
    assert list(map("".join, shown[0])) == list(map("".join, shown[1])), path.stem
    kept = json.loads((RESULTS / f"{path.stem[:2]}.json").read_text(encoding="utf-8"))
    assert kept["provenance"] == done.results()["provenance"], path.stem
    for old, new in zip(kept["claims"], done.results()["claims"], strict=True):
        assert (old["id"], old["verdict"]) == (new["id"], new["verdict"]), path.stem
        assert new["values"] == pytest.approx(old["values"], rel=1e-4, abs=1e-6), path.stem


def test_a_record_keeps_within_its_size(tmp_path):
    results = {"small": [1.0, 2.0], "large": {"x": "a" * 5000}}
    left = store.write_record(
        tmp_path, [{"phase": "a", "step": 0, "reward": 1.0}], results, {"seeds": [0]}, limit=24_000
    )
    assert left == ["large"]
    record = store.Record(tmp_path)
    assert record.result("small") == [1.0, 2.0] and record.lines("a")[0]["reward"] == 1.0
    with pytest.raises(KeyError, match="holds no result large: run the study itself"):
        record.result("large")
    assert checkpoint.load(tmp_path / "results.safetensors") == {"small": [1.0, 2.0]}
    for path in tmp_path.iterdir():
        whole = path.read_bytes()
        for damaged in (whole[:-9], b"\xff" + whole, whole.replace(b"1.0", b"7.0")):
            if damaged == whole:  # study.json holds no such number
                continue
            path.write_bytes(damaged)
            with pytest.raises(
                ParameterError, match=f"^{path.name} of the study's record .* damaged"
            ):
                record = store.Record(tmp_path)
                record.lines("a"), record.result("small")
        path.write_bytes(whole)


def test_the_time_of_a_study_counts_the_attempts_that_computed(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(study.time, "time", lambda: now[0])
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    seed = {"profile": "study"}

    def attempt(begin, end, computed):
        now[0] = begin
        study.compute_seeds(None, TEMPLATE, seed, tmp_path, 1, 9.0)
        if end is not None:
            (tmp_path / "computed.json").write_text(json.dumps(computed))
            now[0] = end
            study.timing(tmp_path)

    attempt(0, None, ["a"])  # killed
    attempt(100, 120, ["a"])
    attempt(200, 220, [])  # another caption: all phases are found
    assert study.timing(tmp_path) == {"seconds": 20, "attempts": 2}
    attempt(300, 310, ["b"])
    assert study.timing(tmp_path) == {"seconds": 30, "attempts": 3}
    (tmp_path / "clock.json").write_text('[{"begin')  # damaged: counted from here on
    attempt(400, 405, ["b"])
    assert study.timing(tmp_path) == {"seconds": 5, "attempts": 1}


def test_phases_that_depend_on_the_set_of_seeds_are_told(tmp_path):
    def computed(folder, *names):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "computed.json").write_text(json.dumps(names))

    assert study.computed_twice(tmp_path) == ""
    computed(tmp_path / "workers" / "seed1", "start", "arm/seed1", "exam/arm/seed1")
    computed(tmp_path / "workers" / "seed2", "start", "arm/seed2", "exam/arm/seed2")
    computed(tmp_path, "start", "table")  # of all seeds together
    assert study.computed_twice(tmp_path) == ""
    computed(tmp_path, "start", "arm/seed1", "arm/seed2")
    assert study.computed_twice(tmp_path).startswith("2 phases") and (
        "arm/seed1 for one" in study.computed_twice(tmp_path)
    )


def test_a_study_drawn_again_keeps_its_record_and_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "STUDIES", tmp_path / "studies")
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    kept = tmp_path / "studies" / "01" / "study.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    drawn = tmp_path / "redrawn"
    drawn.mkdir()
    (drawn / "results.json").write_text('{"notebook": "01_x"}')
    assert study.timing(drawn) == {}
    (tmp_path / "01.json").write_text('{"timing": {"seconds": 9, "attempts": 1}}')
    assert study.timing(drawn) == {"seconds": 9, "attempts": 1}
    study.publish(ROOT / "notebooks" / "01_x.ipynb", drawn, {})
    assert kept.read_text() == "{}"


def test_options_of_a_study_are_checked_first(capsys):
    for options in ("--profile default --jobs 2", "--redraw"):
        assert main(["run", "_template", *options.split()]) == 2
        assert "belong to --profile study" in capsys.readouterr().err
    with pytest.raises(InputError, match="no record data/studies/99"):
        study.redrawing(ROOT / "notebooks" / "99_nothing.ipynb")
