"""Command line: `python -m rlgenkit --help`. Imports stay light until a command needs more."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from rlgenkit.commands.places import ROOT, InputError, find, series


class Parser(argparse.ArgumentParser):
    """argparse, with one sentence instead of a usage block for bad input."""

    def error(self, message: str):
        self.exit(2, f"{message[:1].upper()}{message[1:]}; see {self.prog} --help.\n")


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

    add("list", "notebooks, with title and parameters of one: list [NB]").add_argument(
        "notebook", nargs="?"
    )
    run = add("run", "execute a notebook through papermill; the same command resumes a killed run")
    run.add_argument("notebook", help="01, 01_ddpo or a path")
    run.add_argument(
        "-p",
        dest="pairs",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set a parameter",
    )
    run.add_argument("--profile", help="quick, default, study or full")
    run.add_argument("--out", help="run folder (default runs/NB/...)")
    run.add_argument("--limit", type=float, help="seconds for the whole notebook")
    run.add_argument(
        "--commit",
        action="store_true",
        help="official run: write back notebooks/NB.ipynb and data/results/NN.json",
    )
    run.add_argument(
        "--jobs", type=int, default=1, help="of a study: processes, each with its seeds"
    )
    run.add_argument(
        "--redraw",
        action="store_true",
        help="of a study: draw its figures from data/studies/NN without training",
    )
    sweep = add("sweep", "every combination of values: sweep NB clip=1e-4,1e-2 seed=0..4")
    sweep.add_argument("notebook")
    sweep.add_argument("axes", nargs="+", metavar="name=a,b")
    sweep.add_argument("--profile")
    sweep.add_argument("--jobs", type=int, default=1, help="runs at a time")
    sweep.add_argument("--limit", type=float)
    for name, (text, _) in PASSED_ON.items():
        passed = add(name, f"{text}; further options are handed on")
        passed.add_argument("rest", nargs=argparse.REMAINDER)
    return top


PYTEST = ["-m", "pytest", "-n", "logical", "--maxprocesses", "4"]

# Commands that hand everything after their name to another program.
PASSED_ON = {
    "test": ("all tests (pytest), one worker a core", PYTEST),
    "test-fast": ("all tests that execute no notebook", [*PYTEST, "-m", "not executes"]),
    "series": ("every notebook at the quick profile, with times", ["ci/series.py"]),
    "bench": ("speed of samplers and updates -> data/results/bench.json", ["ci/bench.py"]),
    "check": (
        "lint of the notebooks, freshness of outputs and of generated pages",
        ["-m", "ci.check"],
    ),
    "report": (
        "README tables, REPRODUCIBILITY.md, data/README.md from the results",
        ["-m", "ci.report"],
    ),
    "manifest": (
        "data/manifest.json anew, after files under data/ changed on purpose",
        ["-m", "ci.manifest"],
    ),
    "doctor": ("versions against the lock, device, models and data files", ["-m", "ci.doctor"]),
    "student": (
        "student copies without solutions -> build/student",
        ["-m", "ci.export", "student"],
    ),
    "solutions": ("copies with solutions -> build/solutions", ["-m", "ci.export", "solutions"]),
    "slides": ("HTML slides -> build/slides", ["-m", "ci.export", "slides"]),
    "models": ("train the embedded models from nothing", ["-m", "data.models"]),
    "lab": ("JupyterLab on 00_start_here", ["-m", "jupyterlab", "notebooks/00_start_here.ipynb"]),
}


def pass_on(name: str, rest: list[str]) -> int:
    """Run another program of the project from the root of the checkout; its exit code."""
    if name == "models" and not rest:
        rest = ["all"]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
    }
    return subprocess.call([sys.executable, *PASSED_ON[name][1], *rest], cwd=ROOT, env=env)


def list_notebooks(name: str | None) -> int:
    """Print the series, or one notebook's parameters: value per profile, range, help."""
    if name is not None:
        print("\n".join(parameter_rows(find(name))))
        return 0
    from rlgenkit.commands.committed import title

    for path in series():
        print(f"{path.stem:28} {title(path)}")
    return 0


def parameter_rows(path: Path) -> list[str]:
    """Lines of the table that `list NB` prints."""
    from rlgenkit.workbook.parameters import COMMON_RANGES, declared, words_of_range

    found = declared(path)
    profiles = [p for p in ("quick", "default", "study", "full") if p in found.presets]
    rows = [["", "type", *profiles, "range", ""]]
    constants = list(found.presets[profiles[0]]) if profiles else []
    for key in dict.fromkeys([*found.types, *constants]):
        own = found.defaults.get(key)
        presets = [found.presets[p].get(key) for p in profiles]
        values = [
            "" if v is None else str(v) for v in (presets if own is None else [own] * len(profiles))
        ]
        allowed = words_of_range({**COMMON_RANGES, **found.ranges}.get(key))
        rows.append(
            [key, found.types.get(key, "constant"), *values, allowed, found.help.get(key, "")]
        )
    widths = [min(max(len(row[k]) for row in rows), 28) for k in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]


def dispatch(args: argparse.Namespace) -> int:
    """Call the command; every import of weight happens in here."""
    name = args.command
    if name in PASSED_ON:
        return pass_on(name, args.rest)
    if name == "list":
        return list_notebooks(args.notebook)
    from rlgenkit.commands import run

    if name == "run":
        return run.run(
            args.notebook,
            args.pairs,
            args.profile,
            args.out,
            args.limit,
            args.commit,
            args.jobs,
            args.redraw,
        )
    if args.jobs < 1:
        raise InputError("--jobs must be at least 1.")
    return run.sweep(args.notebook, args.axes, args.profile, args.jobs, args.limit)


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed, 2 bad input (one sentence on stderr), 124 time, 138 dead kernel."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in PASSED_ON:  # argparse would take the other program's options for its own
        return pass_on(argv[0], argv[1:])
    args = parser().parse_args(argv)
    try:
        return dispatch(args)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
