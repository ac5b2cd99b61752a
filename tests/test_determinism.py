"""Same seed twice: the same bytes. Killed in the middle and resumed: the same numbers."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from ci import series as runner
from rlgenkit.commands.committed import read
from rlgenkit.commands.places import ROOT, TEMPLATE, InputError, find


def notebook(name: str):
    try:
        return TEMPLATE if name == "_template" else find(name)
    except InputError:
        pytest.skip(f"notebook {name} is not written yet")


def recorded(folder) -> bytes:
    """results.json without the code's own version, which may move between two runs of a test."""
    return re.sub(rb'"commit": [^,\n]*', b'"commit": -', (folder / "results.json").read_bytes())


def pictures(outcome) -> list[str]:
    """Base64 PNGs of the executed notebook, in order."""
    cells = read(outcome.notebook)["cells"]
    return [o["data"]["image/png"] for c in cells if c["cell_type"] == "code" for o in c["outputs"]
            if "image/png" in o.get("data", {})]


@pytest.mark.parametrize("name", ["_template", "00", "01"])
def test_same_seed_twice_gives_the_same_bytes(name, quick_run, tmp_path):
    path = notebook(name)
    first, second = quick_run(path), runner.run_one(path, tmp_path / "again")
    assert (first.code, second.code) == (0, 0), second.sentence
    assert recorded(first.out_dir) == recorded(second.out_dir)
    assert pictures(first) and pictures(first) == pictures(second)
    metrics = [o.out_dir / "metrics.jsonl" for o in (first, second)]
    assert metrics[0].is_file() == metrics[1].is_file()
    if metrics[0].is_file():
        assert metrics[0].read_bytes() == metrics[1].read_bytes()


def kill_when(process, condition, seconds: float) -> bool:
    """SIGKILL `process` and all it started as soon as condition(); False if it ended before."""
    import psutil

    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        if condition():
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for member in family:
                try:
                    os.kill(member.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            process.wait()
            return True
        time.sleep(0.02)
    process.kill()
    process.wait()
    return False


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a POSIX signal")
@pytest.mark.parametrize("name", ["_template", "01"])
def test_killed_and_resumed_ends_with_the_same_numbers(name, quick_run, tmp_path):
    path, out = notebook(name), tmp_path / "killed"
    whole = quick_run(path)
    assert whole.code == 0, whole.sentence
    log = out / "metrics.jsonl"
    wanted = len((whole.out_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) // 2
    process = subprocess.Popen(
        [sys.executable, "-m", "rlgenkit", "run", str(path), "--profile", "quick", "--out", str(out)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    halfway = kill_when(process, lambda: log.is_file() and log.read_text().count("\n") >= wanted,
                        runner.HARD_S * runner.busy())
    assert halfway, "the run ended before it could be killed"
    assert not (out / "results.json").exists()
    done = runner.run_one(path, out)
    assert done.code == 0, done.sentence
    assert recorded(out) == recorded(whole.out_dir)
