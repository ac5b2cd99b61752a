"""A study: the seeds of a notebook in several processes, one folder of phases, one record.

Each process runs the notebook for its share of the seeds and leaves its phases in the study's
folder; then the notebook runs once for all seeds and finds them there. What a process could not
share (a phase of all seeds together) the last run computes itself, so that one process or several
give the same bytes.
"""

import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .places import RESULTS, ROOT, InputError

STUDIES = ROOT / "data" / "studies"
SEED = re.compile(r"/seed\d+$")


def one_thread() -> dict[str, str]:
    """Environment of all processes of a study: sums do not depend on the number of threads."""
    return {"OMP_NUM_THREADS": "1"}


def redrawing(notebook: Path) -> dict[str, str]:
    """Environment in which phases come from data/studies/NN; InputError where there is no record."""
    from rlgenkit.workbook.store import environment

    folder = STUDIES / notebook.stem.split("_")[0]
    if not (folder / "study.json").is_file():
        raise InputError(f"There is no record {folder.relative_to(ROOT)} to redraw from.")
    return {**one_thread(), **environment(record=folder)}


def shares(seeds: list[int], jobs: int) -> list[list[int]]:
    """Runs of neighboring seeds, one a process, of nearly equal length."""
    jobs = min(jobs, len(seeds))
    ends = [round(k * len(seeds) / jobs) for k in range(jobs + 1)]
    return [seeds[a:b] for a, b in zip(ends, ends[1:])]


def compute_seeds(
    execute: Callable,
    notebook: Path,
    parameters: dict[str, Any],
    out_dir: Path,
    jobs: int,
    limit_s: float,
) -> None:
    """Run the notebook once for each share of the seeds, side by side, through `execute` (that of
    `run` or of a cluster); their phases stay in `out_dir`.  A share that fails is told and left to
    the run for all seeds."""
    from rlgenkit.workbook.parameters import check_overrides, declared
    from rlgenkit.workbook.store import environment

    _write_clock(out_dir, [*_clock(out_dir), {"begin": time.time()}])
    if jobs == 1:
        return
    seeds = check_overrides(declared(notebook), parameters)["seeds"]
    env = {**one_thread(), **environment(phases=out_dir)}

    def one(share: list[int]) -> None:
        own = {**parameters, "seed": share[0], "n_seeds": len(share)}
        folder = out_dir / "workers" / f"seed{share[0]}"
        done = execute(notebook, own, folder, limit_s, quiet=True, env=env)
        word = done.sentence or "done"
        print(f"seeds {share[0]}..{share[-1]}: {done.seconds:.0f} s, {word}", file=sys.stderr)

    pool = ThreadPoolExecutor(jobs)
    try:
        list(pool.map(one, shares(seeds, jobs)))
    except BaseException:  # Ctrl-C, a limit: no process stays behind
        _kill_children()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def computed_twice(out_dir: Path) -> str:
    """One sentence on phases of a seed that its process computed and the run for all seeds again;
    empty where every one was found."""
    every = [out_dir / "computed.json", *out_dir.glob("workers/*/computed.json")]
    of_all, *of_shares = [json.loads(p.read_text("utf-8")) if p.is_file() else [] for p in every]
    twice = sorted(x for x in set(of_all).intersection(sum(of_shares, [])) if SEED.search(x))
    if not twice:
        return ""
    return (
        f"{len(twice)} phases were computed by the process of their seed and again for all seeds, "
        f"{twice[0]} for one: they read what another set of seeds changes, as a dict over all seeds."
    )


def _kill_children() -> None:
    import psutil

    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue


def _clock(out_dir: Path) -> list[dict[str, float]]:
    """clock.json: begin and end of each attempt at a study; none where it is missing or damaged."""
    try:
        return list(json.loads((out_dir / "clock.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return []


def _write_clock(out_dir: Path, clock: list[dict[str, float]]) -> None:
    from rlgenkit.workbook.checkpoint import write_atomic

    write_atomic(out_dir / "clock.json", json.dumps(clock).encode())


def timing(out_dir: Path) -> dict[str, Any]:
    """Wall seconds of the attempts at a study that came to an end, and how many were begun.

    An attempt that only found the phases of an earlier one does not count; a study drawn again
    from its record keeps the time that stands in data/results.
    """
    if not (clock := _clock(out_dir)):
        name = json.loads((out_dir / "results.json").read_text(encoding="utf-8"))["notebook"]
        old = RESULTS / f"{name[:2]}.json"
        return json.loads(old.read_text(encoding="utf-8"))["timing"] if old.is_file() else {}
    if "end" not in clock[-1]:
        clock[-1]["end"] = time.time()
        lists = [out_dir / "computed.json", *out_dir.glob("workers/*/computed.json")]
        idle = all(json.loads(p.read_text(encoding="utf-8")) == [] for p in lists if p.is_file())
        _write_clock(out_dir, clock[:-1] if idle and len(clock) > 1 else clock)
    took = sum(x["end"] - x["begin"] for x in _clock(out_dir) if "end" in x)
    return {"seconds": round(took), "attempts": len(_clock(out_dir))}


def publish(notebook: Path, out_dir: Path, results: dict[str, Any]) -> None:
    """Copy the record of a finished study to data/studies/NN; one that was drawn from the record
    there leaves it as it is."""
    target, record = STUDIES / notebook.stem.split("_")[0], out_dir / "record"
    if not record.is_dir():
        return
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(record, target)
    size = sum(p.stat().st_size for p in target.iterdir())
    left = json.loads((target / "study.json").read_text(encoding="utf-8"))["left_out"]
    print(
        f"record: {target.relative_to(ROOT)}, {size // 1000} KB"
        + (f", without {', '.join(left)} (too large)" if left else "")
    )
