"""Run the series at the quick profile: `python -m rlgenkit series [NB ...] [--profile P]`.

Each notebook has a time limit and a log with full tracebacks in build/series; one that fails does
not stop the others. `quick` and `again` are what the tests ask: runs kept in build/outcomes and
made once per key.
"""

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

from ci import closure
from rlgenkit.commands import run
from rlgenkit.commands.places import BUILD, ROOT, ended, find, series

OUTCOMES = BUILD / "outcomes"
GOAL_CPU_S = 25.0  # CPU seconds that a quick run may take, imports included
# Where a quick run fails. Notebooks that are older than the goal have until their rewrite; then
# this becomes the goal. Two workers on the threads of one core count the same work as up to half
# as many seconds again, and more where the machine is shared.
HARD_CPU_S = 90.0
HANG_S = 600.0  # wall seconds after which a run hangs, however busy the machine is


def offline() -> dict[str, str]:
    """Environment in which only loopback and unix sockets work (see ci/offline)."""
    return {"PYTHONPATH": os.pathsep.join([str(ROOT / "ci" / "offline"), str(ROOT)])}


def run_one(
    path: Path, out_dir: Path, profile: str = "quick", limit_s: float = HANG_S
) -> run.Outcome:
    """Execute one notebook at `profile` into `out_dir` with the network blocked.

    Quick runs have one thread: their bytes and their CPU seconds do not depend on the caller.
    """
    env = offline() | ({"OMP_NUM_THREADS": "1"} if profile == "quick" else {})
    return run.execute(path, {"profile": profile}, out_dir, limit_s, quiet=True, env=env)


def quick(path: Path) -> run.Outcome:
    """Outcome of the notebook's quick run, shared by all processes and by later calls."""
    return shared(path, "quick", partial(run_one, path))


def again(path: Path, first: run.Outcome) -> run.Outcome:
    """Outcome of running the notebook a second time into a copy of the folder of its quick run
    `first`; that outcome itself where it failed."""

    def repeat(folder: Path) -> run.Outcome:
        own = shutil.ignore_patterns("outcome.json", "computed.json")
        shutil.copytree(first.out_dir, folder, ignore=own)
        done = run_one(path, folder)
        for heavy in ("phases", "cache"):  # the first run keeps them; up to 230 MB each
            shutil.rmtree(folder / heavy, ignore_errors=True)
        return done

    return first if first.code else shared(path, "again", repeat)


def shared(path: Path, kind: str, make: Callable[[Path], run.Outcome]) -> run.Outcome:
    """make(folder)'s outcome from build/outcomes, made under a lock where no process has made it.

    The folder's name holds `closure.key`, so an outcome serves until the notebook or something
    that it reaches changes. A failed one serves only the test session that made it.
    """
    import filelock

    folder = OUTCOMES / f"{path.stem}-{kind}-{closure.key(path, kind)}"
    OUTCOMES.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(OUTCOMES / f"{path.stem}-{kind}.lock"):
        if (known := recorded(folder)) is not None:
            return known
        for old in OUTCOMES.glob(f"{path.stem}-{kind}-*"):
            shutil.rmtree(old, ignore_errors=True)
        done = make(folder)
        row = {**asdict(done), "session": session()}
        text = json.dumps(row, default=str)
        (folder / "outcome.json").write_text(text + "\n", encoding="utf-8")
        return done


def recorded(folder: Path) -> run.Outcome | None:
    """The outcome that stands in `folder`, None where there is none that may be used."""
    path = folder / "outcome.json"
    if not path.is_file():
        return None
    row = json.loads(path.read_text(encoding="utf-8"))
    if row["code"] and row["session"] != session():
        return None
    row |= {"out_dir": folder, "notebook": folder / Path(row["notebook"]).name}
    return run.Outcome(**{f.name: row[f.name] for f in fields(run.Outcome)})


def comparable(folder: Path) -> bytes:
    """A run's results.json without the code's version, which may move between two runs."""
    return re.sub(rb'"commit": [^,\n]*', b'"commit": -', (folder / "results.json").read_bytes())


def session() -> str:
    """Name of the test session that this process belongs to."""
    return os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())


def cpu_seconds(done: run.Outcome) -> float:
    """CPU seconds of a run, executor, kernel and imports together; nan where nobody measured."""
    return float("nan") if done.cpu_seconds is None else done.cpu_seconds


def main(argv: list[str]) -> int:
    """Run the named notebooks, or all; 0 when every one ended well and in time."""
    ask = argparse.ArgumentParser(prog="rlgenkit series", description=__doc__.splitlines()[0])
    ask.add_argument("notebooks", nargs="*")
    ask.add_argument("--profile", default="quick")
    args = ask.parse_args(argv)
    failed = 0
    for path in [find(n) for n in args.notebooks] or series():
        limit = HANG_S if args.profile == "quick" else run.LIMIT_S.get(args.profile, HANG_S)
        done = run_one(path, BUILD / "series" / path.stem, args.profile, limit)
        slow = args.profile == "quick" and cpu_seconds(done) > GOAL_CPU_S
        word = done.sentence or ("slow" if slow else "ok")
        print(
            f"{path.stem:28} {done.seconds:6.1f} s {cpu_seconds(done):6.1f} CPU s  {word}",
            flush=True,
        )
        failed += done.code != 0
    print(f"{failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(ended(main, sys.argv[1:]))
