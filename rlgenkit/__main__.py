"""Command line: `python -m rlgenkit --help`. Imports stay light until a command needs more."""

import argparse
import math
import os
import re
import subprocess
import sys
from pathlib import Path

from rlgenkit.commands.places import ROOT, InputError, ended, find, series


class Parser(argparse.ArgumentParser):
    """argparse, with one sentence instead of a usage block for bad input."""

    def error(self, message: str):
        self.exit(2, f"{message[:1].upper()}{message[1:]}; see {self.prog} --help.\n")


def seconds(text: str) -> float:
    """A time limit: a positive, finite number."""
    if not 0 < (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, not {text}")
    return value


def count(text: str) -> int:
    """A whole number from 1 on."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = Parser(
        prog="rlgenkit",
        allow_abbrev=False,
        description="RL for generative models, as notebooks that run.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    listing = add("list", "notebooks, with title and parameters of one: list [NB]")
    listing.add_argument("notebook", nargs="?")
    run = add("run", "execute a notebook through papermill; the same command resumes a killed run")
    run.add_argument("notebook", help="01, 01_ddpo or a path")
    pair = {"metavar": ("NAME", "VALUE"), "nargs": 2, "action": "append", "default": []}
    run.add_argument("-p", dest="pairs", help="set a parameter; None is the preset", **pair)
    # argparse knows -1 as a value; so are -1e-4, -inf and a text that starts with a minus.
    run._negative_number_matcher = re.compile(r"-(?!-|[ph]$)")
    run.add_argument("--out", help="run folder (default runs/NB/...)")
    official = "official run: write back notebooks/NB.ipynb and data/results/NN.json"
    run.add_argument("--commit", action="store_true", help=official)
    redraw = "of a study: draw its figures from data/studies/NN without training"
    run.add_argument("--redraw", action="store_true", help=redraw)
    sweep = add("sweep", "every combination of values: sweep NB clip=1e-4,1e-2 seed=0..4")
    sweep.add_argument("notebook")
    sweep.add_argument("axes", nargs="+", metavar="name=a,b")
    for each, jobs in (
        (run, "of a study: processes, each with its seeds"),
        (sweep, "runs at a time"),
    ):
        each.add_argument("--profile", help="quick, default, study or full")
        each.add_argument("--limit", type=seconds, help="seconds for the whole notebook")
        each.add_argument("--jobs", type=count, help=f"{jobs} (default 1)")
        words = "processes of this machine (default), or tasks of a Ray cluster"
        each.add_argument("--engine", choices=("processes", "ray"), default="processes", help=words)
        each.add_argument("--address", help="of the Ray cluster; without it one starts here")
    compare = add("compare", "final numbers of runs side by side, their curves in one figure")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs")
    compare.add_argument("--out", default="compare.png", help="file of the figure (compare.png)")
    for name, (text, _) in PASSED_ON.items():
        passed = add(name, f"{text}; further options are handed on")
        passed.add_argument("rest", nargs=argparse.REMAINDER)
    return top


PYTEST = "-m pytest -n logical --maxprocesses 4"
LAB = "-m jupyterlab --LabApp.app_settings_dir=ci/lab notebooks/00_start_here.ipynb"
# Commands that hand everything after their name to another program.
PASSED_ON = {
    "test": ("all tests (pytest), one worker a core", PYTEST),
    "test-fast": ("all tests that execute no notebook", f"{PYTEST} -m not+executes"),
    "series": ("every notebook at the quick profile, with times", "-m ci.series"),
    "bench": ("speed, and time to a reward -> data/results/bench.json", "-m ci.bench"),
    "check": ("lint of the notebooks, freshness of outputs and pages", "-m ci.check"),
    "report": ("README tables, REPRODUCIBILITY.md, data/README.md anew", "-m ci.report"),
    "manifest": ("data/manifest.json anew, after files under data/ changed", "-m ci.manifest"),
    "doctor": ("versions against the lock, device, models and data files", "-m ci.doctor"),
    "student": ("student copies without solutions -> build/student", "-m ci.export student"),
    "solutions": ("copies with solutions -> build/solutions", "-m ci.export solutions"),
    "slides": ("HTML slides -> build/slides", "-m ci.export slides"),
    "models": ("train the embedded models from nothing", "-m data.models"),
    "lab": ("JupyterLab on 00_start_here, which saves only when you do", LAB),
}


def pass_on(name: str, rest: list[str]) -> int:
    """Run another program of the project from the root of the checkout; its exit code."""
    if name == "models" and not rest:
        rest = ["all"]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "PYTHONIOENCODING": f"{sys.stdout.encoding or ''}:replace",
    }
    words = [word.replace("+", " ") for word in PASSED_ON[name][1].split()]
    return subprocess.call([sys.executable, *words, *rest], cwd=ROOT, env=env)


def list_notebooks(name: str | None) -> int:
    """Print the series, or one notebook's parameters: value per profile, range, help."""
    from rlgenkit.commands.committed import title
    from rlgenkit.commands.experiment import aligned

    if name is None:
        print(aligned([[path.stem, title(path)] for path in series()]))
        return 0
    try:
        print(aligned(parameter_rows(find(name)), 28))
    except ValueError as error:
        raise InputError(str(error)) from None
    return 0


def parameter_rows(path: Path) -> list[list[str]]:
    """Cells of the table that `list NB` prints."""
    from rlgenkit.workbook.parameters import COMMON_RANGES, declared, words_of_range

    found = declared(path)
    profiles = [p for p in ("quick", "default", "study", "full") if p in found.presets]
    rows = [["", "type", *profiles, "range", ""]]
    constants = list(found.presets[profiles[0]]) if profiles else []
    for key in dict.fromkeys([*found.types, *constants]):
        own = found.defaults.get(key)
        values = [found.presets[p].get(key) if own is None else own for p in profiles]
        allowed = words_of_range({**COMMON_RANGES, **found.ranges}.get(key))
        shown = ["" if value is None else str(value) for value in values]
        kind, words = found.types.get(key, "constant"), found.help.get(key, "")
        rows.append([key, kind, *shown, allowed, words])
    return rows


def dispatch(argv: list[str]) -> int:
    """Call the command; every import of weight happens in here."""
    name = argv[0] if argv else ""
    if name in PASSED_ON:  # argparse would take the other program's options for its own
        return pass_on(name, argv[1:])
    args = parser().parse_args(argv)
    if name == "list":
        return list_notebooks(args.notebook)
    from rlgenkit.commands import experiment, sweep

    if name == "run":
        return experiment.command(args)
    return sweep.command(args) if name == "sweep" else sweep.compare(args)


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed, 2 bad input (one sentence on stderr), 124 time, 138 dead kernel."""
    if hasattr(sys.stdout, "reconfigure"):  # a console may lack a letter; that ends no good run
        sys.stdout.reconfigure(errors="replace")
    return ended(dispatch, list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
