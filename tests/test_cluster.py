"""Studies and sweeps as tasks of a local Ray: the numbers of processes, also when a worker dies."""

import csv
import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from ci import series as runner
from rlgenkit.__main__ import main
from rlgenkit.commands import cluster, run
from rlgenkit.commands.places import ROOT, TEMPLATE

pytestmark = [pytest.mark.executes, pytest.mark.xdist_group("ray")]
SMALL = ["-p", "n_seeds", "3"]


def started(out, *more):
    command = [sys.executable, "-m", "rlgenkit", "run", "_template", "--profile", "study"]
    environment = {**os.environ, **runner.offline()}
    return subprocess.Popen(
        [*command, *SMALL, "--out", str(out), *more],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def numbers(out):
    names = ["metrics.jsonl", "record/metrics.jsonl", "record/results.safetensors"]
    return [(out / name).read_bytes() for name in names]


def workers(out):
    """Ray's workers that execute the notebook into a folder below `out`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if "rlgenkit.commands.execute" in words and str(out) in words:
            found.append(process.parent())
    return [p for p in found if p is not None and "ray::" in " ".join(p.cmdline())]


def test_a_study_on_ray_survives_the_death_of_a_worker(tmp_path):
    pytest.importorskip("ray")
    plain = started(tmp_path / "plain", "--jobs", "2")
    assert plain.wait(300) == 0, plain.stderr.read()
    process = started(tmp_path / "ray", "--engine", "ray")
    end = time.monotonic() + 240
    while not list((tmp_path / "ray").rglob("phases/*/*.safetensors")) and time.monotonic() < end:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    killed = workers(tmp_path / "ray")[:1]
    for worker in killed:
        worker.kill()
    _, told = process.communicate(timeout=400)
    assert process.returncode == 0, told
    assert killed and numbers(tmp_path / "ray") == numbers(tmp_path / "plain")
    assert json.loads((tmp_path / "ray" / "computed.json").read_text()) == []  # the tasks did it
    assert told.count("done") == 3


def test_a_sweep_on_ray_gives_the_numbers_of_processes(monkeypatch, tmp_path):
    pytest.importorskip("ray")
    from rlgenkit.commands import experiment, sweep

    tables = []
    for engine in ("processes", "ray"):
        for module in (experiment, sweep):
            monkeypatch.setattr(module, "RUNS", tmp_path / engine)
        words = ["sweep", "_template", "seed=0,1", "--profile", "quick", "--engine", engine]
        assert main([*words, "--jobs", "2"]) == 0
        path = tmp_path / engine / TEMPLATE.stem / "sweep-seed.csv"
        rows = list(csv.DictReader(path.open(encoding="utf-8")))
        tables.append([{k: v for k, v in row.items() if k != "seconds"} for row in rows])
    assert len(tables[0]) == 2 and tables[0] == tables[1]


def test_another_disk_gets_its_files_by_the_answer(monkeypatch, tmp_path):
    """The task writes below its own root; the caller finds the same files below its own."""

    def execute(notebook, parameters, out_dir, limit_s, quiet, env):
        assert str(out_dir).startswith(str(tmp_path / "there"))
        for place in (out_dir / "results.json", out_dir.parent / "phases" / "result" / "x.bin"):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"new")
        return run.Outcome(0, 1.0, "", out_dir, out_dir / notebook.name, 2.0)

    monkeypatch.setattr(run, "execute", execute)
    monkeypatch.setattr(cluster, "ROOT", tmp_path / "there")
    old = tmp_path / "there" / "runs" / "old.bin"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    os.utime(old, (1, 1))
    env = {"RLGENKIT_PHASES": "<root>/runs"}
    answer = cluster._work("<root>/notebooks/x.ipynb", "<root>/runs/seed0", {}, 9.0, env, "token")
    assert answer[:4] == (0, 1.0, "", 2.0)
    assert answer[4] == {
        "<root>/runs/seed0/results.json": b"new",
        "<root>/runs/phases/result/x.bin": b"new",
    }
    (tmp_path / "there" / "runs" / "seed0" / "here.tmp").write_text("token")
    assert cluster._work("<root>/x", "<root>/runs/seed0", {}, 9.0, env, "token")[4] == {}


def test_paths_travel_without_the_place_of_the_checkout():
    for path in (ROOT / "runs" / "a", ROOT / "notebooks" / "x.ipynb"):
        assert cluster._portable(path).startswith("<root>/")
        assert cluster._local(cluster._portable(path)) == str(path)
    assert cluster._portable("/elsewhere/a") == "/elsewhere/a"
    assert cluster._portable(str(ROOT) + "x") == str(ROOT) + "x"  # a neighbor of the checkout


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--engine", "ray"], "--jobs, --engine ray and --redraw belong to --profile study."),
        (["--profile", "study", "--address", "auto"], "--address belongs to --engine ray."),
    ],
)
def test_options_that_do_not_fit_are_refused(capsys, words, sentence):
    assert main(["run", "_template", *words]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == sentence


def test_without_ray_one_sentence_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["run", "_template", "--profile", "study", "--engine", "ray"]) == 2
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("--engine ray needs Ray: pip install")
    )
