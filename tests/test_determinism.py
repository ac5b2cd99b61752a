"""Same seed twice: the same bytes. Killed in the middle and resumed: the same numbers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ci import series as runner
from rlgenkit.commands.committed import read
from rlgenkit.commands.places import ROOT, TEMPLATE, series


def turn() -> int:
    """A number that is another one with every commit."""
    ask = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True)
    return int(done.stdout, 16) if done.returncode == 0 else time.gmtime().tm_yday


def rotating() -> Path:
    """One numbered notebook, another one with every commit."""
    return series()[turn() % len(series())]


# Named by role and not by notebook, so that all workers collect the same tests.
pair = pytest.mark.parametrize(
    "notebook", [lambda: TEMPLATE, rotating], ids=["template", "rotating"]
)


def progress(folder: Path) -> int:
    """How much a run has left behind: logged lines and finished phases and results."""
    log = folder / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").count("\n") if log.is_file() else 0
    return lines + len(list(folder.rglob("*.safetensors")))


def pictures(outcome) -> list[str]:
    """Base64 PNGs of the executed notebook, in order."""
    cells = read(outcome.notebook)["cells"]
    return [
        o["data"]["image/png"]
        for c in cells
        if c["cell_type"] == "code"
        for o in c["outputs"]
        if "image/png" in o.get("data", {})
    ]


@pair
def test_same_seed_twice_gives_the_same_bytes(notebook, quick_run, tmp_path):
    path = notebook()
    first, second = quick_run(path), runner.run_one(path, tmp_path / "again")
    assert (first.code, second.code) == (0, 0), f"{path.stem}: {second.sentence}"
    assert runner.comparable(first.out_dir) == runner.comparable(second.out_dir), path.stem
    assert pictures(first) and pictures(first) == pictures(second), path.stem
    metrics = [o.out_dir / "metrics.jsonl" for o in (first, second)]
    assert metrics[0].is_file() == metrics[1].is_file()
    if metrics[0].is_file():
        assert metrics[0].read_bytes() == metrics[1].read_bytes(), path.stem


def kill_when(process, condition, seconds: float) -> bool:
    """SIGKILL `process` and all it started as soon as condition(); False if it ended before."""
    import psutil

    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        if condition():
            family = [
                psutil.Process(process.pid),
                *psutil.Process(process.pid).children(recursive=True),
            ]
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
@pair
def test_killed_and_resumed_ends_with_the_same_numbers(notebook, quick_run, tmp_path):
    path, out = notebook(), tmp_path / "killed"
    whole = quick_run(path)
    assert whole.code == 0, f"{path.stem}: {whole.sentence}"
    wanted = progress(whole.out_dir) // 2
    if not wanted:
        pytest.skip(f"{path.stem} leaves nothing behind that a killed run could resume from")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "rlgenkit",
            "run",
            str(path),
            "--profile",
            "quick",
            "--out",
            str(out),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    halfway = kill_when(process, lambda: progress(out) >= wanted, runner.HANG_S)
    assert halfway, f"{path.stem}: the run ended before it could be killed"
    assert not (out / "results.json").exists()
    done = runner.run_one(path, out)
    assert done.code == 0, f"{path.stem}: {done.sentence}"
    assert runner.comparable(out) == runner.comparable(whole.out_dir), path.stem
