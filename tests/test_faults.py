"""Faults on purpose: kill, cut, fill, flip, a second process, a parent that is gone.

After each of them a run ends with the results of an undisturbed one, or with one sentence that
names the file (exit code 2 on the command line), and no process is left. Two runs suffer: a small
script of two phases and a result, and the template's quick profile on the command line.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from ci import series as runner
from rlgenkit import workbook as wb
from rlgenkit.commands import execute
from rlgenkit.commands.places import ROOT, TEMPLATE
from tests.test_run import seed_all, started, train

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")
SEED = time.time_ns() % 10**6  # another one each time; a failure shows it


def script(folder) -> list[bytes]:
    """The small script; all that it leaves: final values, results, metrics."""
    seed_all(0)
    run = started(folder)
    values = [value.detach().numpy().tobytes() for value in train(run)]
    run.number("last", run.curves("a", [0, 1])["reward"][:, -1])
    run.finish()
    run.lock.lock.release(force=True)
    return [*values, runner.comparable(folder), (folder / "metrics.jsonl").read_bytes()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, what is left) of the undisturbed script."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, script(folder)


def copied(folder, target):
    """A copy of a run folder."""
    subprocess.run(["cp", "-r", folder, target], check=True)
    return target


def same_or_told(folder, expected, name: str) -> None:
    """The script in a damaged folder: the same results, or one sentence that names the file; then,
    with that file gone, the same results."""
    try:
        found = script(folder)
    except wb.ParameterError as error:
        assert name in str(error) and "\n" not in str(error), (name, str(error))
        (folder / name).unlink()
        found = script(folder)
    assert found == expected, (name, SEED)


def files(folder) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("fault", ["flip", "cut", "empty", "gone"])
def test_every_file_of_a_run_folder_may_be_damaged(whole, tmp_path, fault):
    folder, expected = whole
    rng = random.Random(SEED)
    names = files(folder)
    assert {"run.json", "results.json", "metrics.jsonl"} < set(names) and len(names) > 8
    for k, name in enumerate(names):
        path = copied(folder, tmp_path / str(k)) / name
        data = bytearray(path.read_bytes())
        if fault == "flip" and data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(
            {"cut": data[: rng.randrange(len(data) or 1)], "empty": b""}.get(fault, data)
        )
        if fault == "gone":
            path.unlink()
        same_or_told(tmp_path / str(k), expected, name)


def test_a_disk_that_is_full_at_any_write_is_told_and_resumed(whole, tmp_path, monkeypatch):
    rng, calls = random.Random(SEED), []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == full.at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    full.at = 0
    script(tmp_path / "count")
    assert len(calls) > 12
    for at in {1, 2, *rng.sample(range(3, len(calls)), 5), len(calls)}:
        calls.clear()
        full.at = at
        with pytest.raises(wb.ParameterError, match=r"\.\w+ in the folder .*No space left") as told:
            script(tmp_path / str(at))
        assert "\n" not in str(told.value)
        assert not list(tmp_path.rglob("*.partial"))
        assert script(tmp_path / str(at)) == whole[1], (at, SEED)


def test_a_file_that_may_not_grow_is_told_and_resumed(whole, tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max((whole[0] / name).stat().st_size for name in files(whole[0]))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, before[1]))
        with pytest.raises(wb.ParameterError, match=r"safetensors in the folder .*too large"):
            script(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert script(tmp_path / "run") == whole[1]


def kills(folder, seed: int) -> None:
    """Fork, kill at a random moment, fork and finish.

    Runs in a process of its own with one thread: a fork may wait for a thread that it has not.
    """
    rng = random.Random(seed)
    script(folder / "first")  # loads what the children need
    assert psutil.Process().num_threads() == 1
    begin = time.monotonic()
    script(folder / "timed")
    seconds = time.monotonic() - begin
    for trial in range(6):
        for moment in (rng.uniform(0, seconds), None):
            if not (child := os.fork()):
                out = folder / str(trial)
                content = b"".join(script(out))
                (out / "content").write_bytes(content)
                os._exit(0)
            if moment is not None:
                time.sleep(moment)
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert status == 0 or moment is not None and status == signal.SIGKILL, status


def test_killed_at_random_moments_and_resumed(whole, tmp_path):
    code = (
        "from pathlib import Path; from tests.test_faults import kills; "
        f"kills(Path({str(tmp_path)!r}), {SEED})"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for trial in range(6):
        found = (tmp_path / str(trial) / "content").read_bytes()
        assert found == b"".join(whole[1]), (trial, SEED)


# --- the template on the command line


def command(out) -> subprocess.Popen:
    words = [sys.executable, "-m", "rlgenkit", "run", "_template", "--profile", "quick"]
    return subprocess.Popen(
        [*words, "--out", str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **runner.offline(), "OMP_NUM_THREADS": "1"},
    )


def is_kernel(process: psutil.Process) -> bool:
    return process.is_running() and "ipykernel_launcher" in " ".join(process.cmdline())


def under_way(out) -> tuple[subprocess.Popen, list[psutil.Process], psutil.Process]:
    """(a run, all processes that it started, its kernel); the kernel holds the run folder."""
    process, end = command(out), time.monotonic() + 200
    while True:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        family = psutil.Process(process.pid).children(recursive=True)
        for member in filter(is_kernel, family):
            if str(out / "run.lock") in [file.path for file in member.open_files()]:
                return process, family, member
        time.sleep(0.02)


def all_gone(family) -> bool:
    return psutil.wait_procs(family, timeout=30)[1] == []


@pytest.mark.executes
def test_the_template_survives_neighbors_kills_and_flipped_bits(quick_run, tmp_path):
    undisturbed, out, rng = quick_run(TEMPLATE), tmp_path / "run", random.Random(SEED)
    assert undisturbed.code == 0, undisturbed.sentence
    process, family, kernel = under_way(out)
    time.sleep(rng.uniform(0, 1))
    kernel.kill()
    _, told = process.communicate(timeout=100)
    assert process.returncode == 138 and "kernel died" in told and all_gone(family)

    process, family, kernel = under_way(out)
    kernel.suspend()  # so that the second one finds it at work
    second = command(out)
    _, told = second.communicate(timeout=200)
    sentence = told.strip().splitlines()[-1]
    assert second.returncode == 2 and "another process works in the run folder" in sentence
    process.send_signal(rng.choice([signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]))
    process.wait(timeout=60)
    assert all_gone([member for member in family if member != kernel]), SEED
    kernel.resume()  # an orphan now, before it can have come to its end
    assert all_gone(family), SEED

    assert not (out / "results.json").exists()
    done = runner.run_one(TEMPLATE, out)
    assert done.code == 0 and runner.comparable(out) == runner.comparable(undisturbed.out_dir)
    for name in files(out):
        path = out / name
        if name != "run.json" and (data := bytearray(path.read_bytes())):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
    done = runner.run_one(TEMPLATE, out)
    assert done.code == 0, (done.sentence, SEED)
    assert runner.comparable(out) == runner.comparable(undisturbed.out_dir), SEED
    metrics = [(folder / "metrics.jsonl").read_bytes() for folder in (out, undisturbed.out_dir)]
    assert metrics[0] == metrics[1], SEED


@pytest.mark.executes
def test_a_cell_that_prints_faster_than_it_is_read_is_no_failure(tmp_path, monkeypatch):
    """Five seconds of reading after the cell has ended; the client's own patience is four."""
    busy = execute.Screen.on_message

    def slow(self, message):
        time.sleep(0.004)
        busy(self, message)

    monkeypatch.setattr(execute.Screen, "on_message", slow)
    monkeypatch.setenv("RLGENKIT_SOURCE", "")
    code = "import sys\nfor i in range(1600):\n    print(i, file=sys.stderr, flush=True)\n'end'"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbformat.write(notebook, tmp_path / "chatter.ipynb")
    spec = {"notebook": str(tmp_path / "chatter.ipynb"), "name": "out.ipynb", "parameters": {}}
    assert execute.main({**spec, "out_dir": str(tmp_path), "cwd": str(tmp_path)}) == 0
    cell = json.loads((tmp_path / "out.ipynb").read_text(encoding="utf-8"))["cells"][0]
    assert cell["outputs"][-1]["data"]["text/plain"] == ["'end'"]
    assert re.fullmatch("1599\n", "".join(cell["outputs"][-2]["text"])[-5:])
