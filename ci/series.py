"""Run the series at the quick profile: `python ci/series.py [NB ...] [--profile P] [--online]`.

Each notebook gets its own time limit and its own log with full tracebacks; one that fails does not
stop the others. build/series/durations.json tells seconds, exit code and reason per notebook.
"""

import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rlgenkit.commands import run  # noqa: E402
from rlgenkit.commands.places import BUILD, InputError, find, series  # noqa: E402

GOAL_S = 60.0  # what a quick run may take on 2 cores
HARD_S = 120.0  # where a run is a failure, because machines differ


def busy() -> float:
    """Runnable processes per core, at least 1: on a busy machine limits are that much longer."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1.0, load / (os.cpu_count() or 1))


def offline() -> dict[str, str]:
    """Environment in which only loopback and unix sockets work (see ci/offline)."""
    return {"PYTHONPATH": os.pathsep.join([str(ROOT / "ci" / "offline"), str(ROOT)])}


def run_one(path: Path, out_dir: Path, profile: str = "quick", limit_s: float = HARD_S,
            online: bool = False) -> run.Outcome:
    """Execute one notebook at `profile` into `out_dir`, by default with the network blocked."""
    return run.execute(path, {"profile": profile}, out_dir, limit_s * busy(), quiet=True,
                       env={} if online else offline())


def main(argv: list[str] | None = None) -> int:
    """Run the named notebooks, or all; 0 when every one ended well and in time."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("notebooks", nargs="*")
    ask.add_argument("--profile", default="quick")
    ask.add_argument("--limit", type=float, help="seconds for each notebook")
    ask.add_argument("--online", action="store_true", help="do not block the network")
    args = ask.parse_args(argv)
    limit = args.limit or (HARD_S if args.profile == "quick" else run.LIMIT_S.get(args.profile, 1800))
    try:
        paths = [find(n) for n in args.notebooks] or series()
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    rows = []
    for path in paths:
        done = run_one(path, BUILD / "series" / path.stem, args.profile, limit, args.online)
        slow = args.profile == "quick" and done.seconds > GOAL_S
        rows.append({"notebook": path.stem, "profile": args.profile, "code": done.code,
                     "seconds": round(done.seconds, 1), "reason": done.sentence})
        print(f"{path.stem:28} {done.seconds:6.1f} s  {done.sentence or ('slow' if slow else 'ok')}",
              flush=True)
    target = BUILD / "series" / "durations.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    failed = sum(r["code"] != 0 for r in rows)
    print(f"{len(rows) - failed} passed, {failed} failed; {target.relative_to(ROOT)}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
