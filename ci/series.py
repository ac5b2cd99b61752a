"""Run the series at the quick profile: `python ci/series.py [NB ...] [--profile P] [--online]`.

Each notebook gets its own time limit and its own log with full tracebacks; one that fails does not
stop the others. build/series/durations.json tells seconds, exit code and reason per notebook.
`quick` and `again` are what the tests ask: runs kept in build/outcomes and made once per key.
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

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ci import closure  # noqa: E402
from rlgenkit.commands import run  # noqa: E402
from rlgenkit.commands.places import BUILD, InputError, find, series  # noqa: E402

OUTCOMES = BUILD / "outcomes"
GOAL_CPU_S = 25.0  # CPU seconds that a quick run may take, imports included
# Where a quick run fails. Notebooks that are older than the goal have until their rewrite; then
# this becomes the goal.
HARD_CPU_S = 60.0
HANG_S = 600.0  # wall seconds after which a run hangs, however busy the machine is


def offline() -> dict[str, str]:
    """Environment in which only loopback and unix sockets work (see ci/offline)."""
    return {"PYTHONPATH": os.pathsep.join([str(ROOT / "ci" / "offline"), str(ROOT)])}


def run_one(
    path: Path, out_dir: Path, profile: str = "quick", limit_s: float = HANG_S, online: bool = False
) -> run.Outcome:
    """Execute one notebook at `profile` into `out_dir`, by default with the network blocked.

    Quick runs have one thread: their bytes and their CPU seconds do not depend on the caller.
    """
    env = {"OMP_NUM_THREADS": "1"} if profile == "quick" else {}
    return run.execute(
        path,
        {"profile": profile},
        out_dir,
        limit_s,
        quiet=True,
        env=env if online else {**env, **offline()},
    )


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
    value = getattr(done, "cpu_seconds", None)
    return float("nan") if value is None else value


def main(argv: list[str] | None = None) -> int:
    """Run the named notebooks, or all; 0 when every one ended well and in time."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("notebooks", nargs="*")
    ask.add_argument("--profile", default="quick")
    ask.add_argument("--limit", type=float, help="seconds for each notebook")
    ask.add_argument("--online", action="store_true", help="do not block the network")
    args = ask.parse_args(argv)
    limit = args.limit or (
        HANG_S if args.profile == "quick" else run.LIMIT_S.get(args.profile, 1800)
    )
    try:
        paths = [find(n) for n in args.notebooks] or series()
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    rows = []
    for path in paths:
        done = run_one(path, BUILD / "series" / path.stem, args.profile, limit, args.online)
        slow = args.profile == "quick" and cpu_seconds(done) > GOAL_CPU_S
        rows.append(
            {
                "notebook": path.stem,
                "profile": args.profile,
                "code": done.code,
                "seconds": round(done.seconds, 1),
                "reason": done.sentence,
            }
        )
        print(
            f"{path.stem:28} {done.seconds:6.1f} s {cpu_seconds(done):6.1f} CPU s  "
            f"{done.sentence or ('slow' if slow else 'ok')}",
            flush=True,
        )
    target = BUILD / "series" / "durations.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    failed = sum(r["code"] != 0 for r in rows)
    print(f"{len(rows) - failed} passed, {failed} failed; {target.relative_to(ROOT)}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
