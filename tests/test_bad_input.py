"""Bad input of the command line: exit code 2, one sentence, before any work."""

import re

import pytest

from rlgenkit.__main__ import main
from rlgenkit.commands import run
from rlgenkit.commands.inputs import split_values, typed
from rlgenkit.commands.places import ROOT, InputError

CASES = {
    "unknown notebook": (["run", "98_nothing"], "98_nothing"),
    "nearest notebook": (["run", "_tmplate"], "_template"),
    "no notebook": (["run"], "notebook"),
    "missing file": (["run", "nowhere/x.ipynb"], "nowhere/x.ipynb"),
    "unknown command": (["rum"], "rum"),
    "unknown option": (["run", "_template", "--profil", "quick"], "--profil"),
    "unknown parameter": (["run", "_template", "-p", "stepz", "3"], "steps"),
    "mistyped parameter": (["run", "_template", "-p", "steps", "many"], "steps"),
    "float for int": (["run", "_template", "-p", "steps", "2.5"], "steps"),
    "out of range": (["run", "_template", "-p", "lr", "-1"], "lr"),
    "not finite": (["run", "_template", "-p", "lr", "nan"], "lr"),
    "unknown profile": (["run", "_template", "--profile", "quik"], "quick"),
    "given twice": (["run", "_template", "-p", "lr", "0.1", "-p", "lr", "0.2"], "lr"),
    "absent device": (["run", "_template", "-p", "device", "cuda:99"], "cuda:99"),
    "unknown device": (["run", "_template", "-p", "device", "gpu"], "gpu"),
    "commit with parameters": (["run", "_template", "--commit", "-p", "lr", "0.1"], "--commit"),
    "sweep without a grid": (["sweep", "_template"], "name=a,b"),
    "sweep of an unknown name": (["sweep", "_template", "stepz=1,2"], "steps"),
    "sweep without values": (["sweep", "_template", "steps="], "value"),
    "sweep backwards": (["sweep", "_template", "seed=4..0"], "0..4"),
    "sweep without =": (["sweep", "_template", "seed"], "name=value"),
    "sweep of a name twice": (["sweep", "_template", "seed=1", "seed=2"], "seed"),
    "sweep with no pool": (["sweep", "_template", "seed=1", "--jobs", "0"], "--jobs"),
}


@pytest.fixture
def no_work(monkeypatch):
    """Any execution counts as work and fails the test."""

    def refuse(*_args, **_named):
        raise AssertionError("work was started")

    monkeypatch.setattr(run, "execute", refuse)


def code_of(argv: list[str]) -> int:
    try:
        return main(argv)
    except SystemExit as stop:  # argparse leaves this way
        return stop.code


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_and_exit_code_2(case, no_work, capsys):
    argv, word = CASES[case]
    assert code_of(argv) == 2
    said = capsys.readouterr().err.strip()
    assert word in said and "Traceback" not in said
    assert len(said.splitlines()) == 1 and len(said) < 400


def test_error_of_the_parameters_cell_is_bad_input(tmp_path):
    """What only the notebook itself can find still ends with exit code 2 and its one sentence."""
    import json

    (tmp_path / "error.json").write_text(
        json.dumps({"ename": "ParameterError", "evalue": "`x` must be positive", "cell": 2}),
        encoding="utf-8",
    )
    assert run._explain(1, tmp_path, 60, b"") == (2, "`x` must be positive")


def test_values_of_a_sweep():
    assert split_values("0..3") == ["0", "1", "2", "3"]
    assert split_values("1e-4,0.1") == ["1e-4", "0.1"]
    assert split_values("0..2,9") == ["0", "1", "2", "9"]
    with pytest.raises(InputError):
        split_values(",")


def test_text_to_values():
    assert typed("1e-4", "float") == 1e-4 and typed("3", "int") == 3 and typed("3", "str") == "3"
    assert typed("None", "int") is None and typed("true", "bool") is True
    assert typed("[1, 2]", "list") == [1, 2] and typed("x y", "int") == "x y"


def test_help_needs_no_heavy_import():
    import subprocess
    import sys

    code = (
        "import sys; from rlgenkit.__main__ import parser; parser().format_help(); "
        "print([m for m in ('torch', 'papermill', 'nbformat') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert re.search(r"^\[\]$", done.stdout, flags=re.M), done.stdout + done.stderr
