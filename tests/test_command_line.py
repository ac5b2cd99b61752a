"""The command line on odd input: one sentence and exit code 2 before any work, never a traceback."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ci import check, export
from rlgenkit.__main__ import PASSED_ON, main
from rlgenkit.commands import run, sweep
from rlgenkit.commands.places import BUILD, ROOT, RUNS, TEMPLATE, ended, read


@pytest.fixture
def started(monkeypatch):
    """Runs that would have been executed: (parameters, folder, limit)."""
    calls = []

    def execute(notebook, parameters, out_dir, limit_s, quiet=False, env=None):
        calls.append((parameters, out_dir, limit_s))
        return run.Outcome(0, 1.0, "", out_dir, out_dir / notebook.name)

    monkeypatch.setattr(run, "execute", execute)
    monkeypatch.setattr("rlgenkit.commands.pages.write_page", lambda path: None)
    monkeypatch.setattr(sweep, "join", lambda *arguments: None)
    return calls


def refused(capsys, *argv: str) -> str:
    """The one sentence that a command ends with."""
    try:
        code = main(list(argv))
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err.strip()
    assert code == 2 and said and len(said.splitlines()) == 1 and len(said) < 400, said
    return said


def odd(**parts) -> str:
    """A notebook of one code cell with parts of a wrong kind."""
    cell = {"cell_type": "code", "id": "a", "source": "1", "metadata": {}, "outputs": []}
    cell["execution_count"] = None
    return json.dumps({"cells": [{**cell, **parts}], "metadata": {}})


BROKEN = {
    "no JSON": "not json",
    "an empty object": "{}",
    "a list": "[]",
    "no cells": '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}',
    "cells that are texts": '{"cells": ["a"], "metadata": {}}',
    "no ids": '{"cells": [{"cell_type": "markdown", "source": "a", "metadata": {}}], "metadata": {}}',
    "no outputs": '{"cells": [{"cell_type": "code", "source": "a", "metadata": {}, "id": "a"}],'
    ' "metadata": {}}',
    "bytes": b"\xff\xfe\x00",
    "a hundred thousand brackets": "[" * 100_000,
    "null as metadata": odd(metadata=None),
    "null as metadata of the whole": odd().replace('"metadata": {}}', '"metadata": null}'),
    "a number as its hash": odd().replace('"metadata": {}}', '"metadata": {"rlgenkit": 5}}'),
    "null as tags": odd(metadata={"tags": None}),
    "a number in tags": odd(metadata={"tags": [5]}),
    "null as slide": odd(metadata={"slideshow": None}),
    "a number as source": odd(source=5),
    "a number in source": odd(source=["a", 5]),
    "a dict as source": odd(source={}),
    "null as kind": odd(cell_type=None),
    "null as id": odd(id=None),
    "null as outputs": odd(outputs=None),
    "null as an output": odd(outputs=[None]),
    "a number as printed text": odd(outputs=[{"output_type": "stream", "text": 5}]),
    "null as traceback": odd(outputs=[{"output_type": "error", "traceback": None}]),
    "null as data": odd(outputs=[{"output_type": "display_data", "data": None}]),
    "null as HTML": odd(outputs=[{"output_type": "display_data", "data": {"text/html": None}}]),
}


def test_a_notebook_of_few_parts_is_whole(tmp_path):
    (tmp_path / "a.ipynb").write_text(odd(source=["a", "b"]), encoding="utf-8")
    assert read(tmp_path / "a.ipynb")["cells"][0]["source"] == ["a", "b"]


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_notebook_gets_one_sentence(kind, tmp_path, capsys, started):
    path, content = tmp_path / "98_broken.ipynb", BROKEN[kind]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    words = "98_broken.ipynb is no notebook of format 4.5"
    for command in (["run"], ["list"]):
        assert words in refused(capsys, *command, str(path))
    assert words in refused(capsys, "sweep", str(path), "seed=1,2")
    tools = [(check.main, [str(path)])]
    tools += [(export.main, [kind, str(path)]) for kind in ("student", "solutions", "slides")]
    for tool, argv in tools:
        assert ended(tool, argv) == 2 and words in capsys.readouterr().err
    assert started == []


def test_a_notebook_without_parameters_is_named(tmp_path, capsys):
    cell = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# A"}
    path = tmp_path / "98_bare.ipynb"
    path.write_text(json.dumps({"cells": [cell], "metadata": {}}), encoding="utf-8")
    assert "98_bare.ipynb has no cell tagged" in refused(capsys, "list", str(path))


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/x", "x" * 300])
def test_a_run_folder_that_cannot_be_written_is_named(out, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert main(["run", "_template", "--out", out]) == 2
    running, *said = capsys.readouterr().err.splitlines()
    assert running.startswith("Running") and len(said) == 1 and "--out" in said[0]


def test_a_checkout_that_cannot_be_written_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "build").write_text("")  # a file where the folder should be, as root reads all
    monkeypatch.setattr(export, "BUILD", tmp_path / "build")
    assert ended(export.main, ["student", "_template"]) == 2
    said = capsys.readouterr().err
    assert "build" in said and len(said.splitlines()) == 1


def test_a_name_that_is_too_long_is_told(capsys):
    assert "no notebook" in refused(capsys, "run", "x" * 300)
    assert "File name too long" in refused(capsys, "run", "x" * 300 + ".ipynb")


def test_the_home_folder_is_found(tmp_path, monkeypatch, started):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["run", "_template", "--out=~/r1"]) == 0
    assert main(["run", "_template", "-p", "out_dir", "~/r2"]) == 0
    assert [folder for _, folder, _ in started] == [tmp_path / "r1", tmp_path / "r2"]


@pytest.mark.parametrize("value", ["-1e-4", "-5", "-inf", "-x"])
def test_a_value_that_starts_with_a_minus_reaches_its_check(value, capsys, started):
    assert "`lr` must be" in refused(capsys, "run", "_template", "-p", "lr", value)
    assert started == []


@pytest.mark.parametrize("command", [["run", "_template"], ["sweep", "_template", "seed=1"]])
@pytest.mark.parametrize(
    "option", ["--limit=-5", "--limit=nan", "--limit=0", "--limit=inf", "--jobs=0"]
)
def test_limits_and_jobs_are_positive(command, option, capsys, started):
    assert option.split("=")[0] in refused(capsys, *command, option) and started == []


@pytest.mark.parametrize(
    "options, words",
    [
        (["--commit", "--out", "x"], "leave out --out"),
        (["--commit", "-p", "out_dir", "x"], "no -p"),
        (["--out", "x", "-p", "out_dir", "y"], "same folder"),
        (["--profile", "quick", "-p", "profile", "full"], "given twice"),
    ],
)
def test_options_that_contradict_each_other(options, words, capsys, started):
    assert words in refused(capsys, "run", "_template", *options) and started == []


# --- sweeps


def test_equal_values_run_once_in_folders_of_their_own(started, capsys):
    assert main(["sweep", "_template", "seed=1,1", "lr=0.05,5e-2", "--jobs", "2"]) == 0
    assert [values for values, _, _ in started] == [{"seed": 1, "lr": 0.05}]
    assert "1 runs of _template, 1 at a time" in capsys.readouterr().out.splitlines()[0]
    main(["sweep", "_template", "seed=1,2", "lr=0.05,0.1", "--limit", "7"])
    folders = [folder for _, folder, _ in started[1:]]
    assert len(set(folders)) == 4 and all(f.parent == RUNS / "_template" for f in folders)
    assert {limit for _, _, limit in started[1:]} == {7}


def test_what_resolves_to_equal_values_runs_once(started):
    main(["sweep", "_template", "n_seeds=None,2,3", "device=cpu", "--profile", "quick"])
    assert [values["n_seeds"] for values, _, _ in started] == [None, 3]  # the preset is 2
    assert len({folder for _, folder, _ in started}) == 2


@pytest.mark.parametrize("span", ["0..99999999999", "0..1000", "1,2,0..998", f"0..{'9' * 300}"])
def test_a_long_range_is_refused_before_it_is_made(span, capsys, started):
    said = refused(capsys, "sweep", "_template", f"seed={span}")
    assert "more than 1000 values" in said and started == []


def test_a_huge_grid_is_refused_before_the_notebook_is_inspected(monkeypatch, capsys):
    monkeypatch.setattr(sweep, "checked_parameters", lambda *a: pytest.fail("inspected"))
    said = refused(capsys, "sweep", "_template", "seed=0..999", "steps=1..100")
    assert "100000 runs, more than 1000" in said


def test_each_value_of_a_grid_is_checked_once(monkeypatch, started):
    asked, real = [], sweep.checked_parameters
    monkeypatch.setattr(sweep, "checked_parameters", lambda *a: asked.append(a) or real(*a))
    main(["sweep", "_template", "seed=0..9", "steps=1..9"])
    assert len(started) == 90 and len(asked) == 19


def test_the_folder_is_no_axis(capsys, started):
    assert "out_dir is no axis" in refused(capsys, "sweep", "_template", "out_dir=a,b")


def test_each_run_of_a_sweep_has_its_html(started, monkeypatch):
    made = []
    monkeypatch.setattr("rlgenkit.commands.pages.write_page", made.append)
    main(["sweep", "_template", "seed=1,2"])
    assert made == [folder / TEMPLATE.name for _, folder, _ in started]


# --- compare


def finished(folder: Path, value: float) -> str:
    folder.mkdir()
    claim = {"id": "C1", "value": value, "verdict": "not judged"}
    results = {"claims": [claim], "numbers": {"gain": value, "steps": 3}}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    rows = [
        {"phase": f"a/seed{s}", "step": k, "reward": k * value} for s in (0, 1) for k in range(3)
    ]
    lines = "\n".join(map(json.dumps, rows))
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    return str(folder)


def test_runs_are_compared_side_by_side(tmp_path, capsys):
    one, two = finished(tmp_path / "one", 0.5), finished(tmp_path / "two", 1.25)
    target = tmp_path / "both.png"
    assert main(["compare", one, two, "--out", str(target)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert (
        rows[0] == ["one", "two"]
        and ["gain", "0.5", "1.25"] in rows
        and ["C1", "0.5", "1.25"] in rows
    )
    assert target.read_bytes().startswith(b"\x89PNG")
    assert "no folder of a finished run" in refused(capsys, "compare", one, str(tmp_path))


# --- every command


@pytest.mark.parametrize("name", [*PASSED_ON, "list", "run", "sweep", "compare"])
def test_every_command_answers_help(name):
    if name in ("test", "test-fast", "lab"):
        pytest.skip("pytest and JupyterLab answer themselves")
    before = (ROOT / "data" / "manifest.json").stat().st_mtime_ns
    copies = sorted(BUILD.glob("*")) if BUILD.is_dir() else []
    done = subprocess.run(
        [sys.executable, "-m", "rlgenkit", name, "--help"], cwd=ROOT, text=True, capture_output=True
    )
    assert done.returncode == 0 and "options" in done.stdout and "Traceback" not in done.stderr
    assert (ROOT / "data" / "manifest.json").stat().st_mtime_ns == before
    assert copies == (sorted(BUILD.glob("*")) if BUILD.is_dir() else [])


def test_a_console_without_the_letters_ends_no_run(monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    monkeypatch.setattr("rlgenkit.commands.committed.title", lambda path: "π → 中")
    assert main(["list"]) == 0
    env = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    code = "from rlgenkit.__main__ import *; PASSED_ON['x'] = ('', '-c print(chr(960))'); exit(main(['x']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True)
    assert (done.returncode, done.stdout.strip()) == (0, b"?"), done.stderr


def test_an_error_of_the_system_is_a_sentence(capsys):
    def fails():
        raise OSError(28, "No space left on device", "runs/x")

    assert ended(fails) == 2 and capsys.readouterr().err == "runs/x: No space left on device.\n"


def test_lab_saves_only_when_asked():
    """JupyterLab takes the settings folder that the command names, in which autosave is off."""
    from jupyterlab.commands import get_app_dir
    from jupyterlab_server.settings_utils import get_settings

    plugin = "@jupyterlab/docmanager-extension:plugin"
    folder = next(word for word in PASSED_ON["lab"][1].split() if "settings_dir=" in word)
    schemas = str(Path(get_app_dir()) / "schemas")
    found, _ = get_settings(str(ROOT / folder.split("=")[1]), schemas, "", schema_name=plugin)
    assert found["schema"]["properties"]["autosave"]["default"] is False
