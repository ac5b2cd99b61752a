"""Runs of a notebook as tasks of a Ray cluster: `execute` of `run.py`, on another machine.

Every machine of the cluster has this checkout at a place of its own, with the same versions.
Ray decides where and when a task runs, and starts it again elsewhere when its worker dies.
"""

import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlgenkit.workbook.checkpoint import write_atomic
from rlgenkit.workbook.store import SHARED

from . import run
from .places import ROOT, InputError

RETRIES = 3  # of one task whose worker died
AT_ONCE = 1000  # tasks that are handed to Ray, which runs as many as there are cores
Files = dict[str, bytes]


@contextmanager
def engine(args: Namespace) -> Iterator[tuple[Callable[..., run.Outcome], int]]:
    """What executes notebooks under --engine, and how many at a time."""
    if args.engine == "processes":
        if args.address:
            raise InputError("--address belongs to --engine ray.")
        yield run.execute, args.jobs or 1
    else:
        with ray_execute(args.address) as execute:
            yield execute, args.jobs or AT_ONCE


@contextmanager
def ray_execute(address: str | None) -> Iterator[Callable[..., run.Outcome]]:
    """`run.execute` for a Ray cluster, while it is connected: same arguments, same outcome.

    Args:
        address: of the cluster ("auto" or host:port); None starts one on this machine.
    Raises:
        InputError: where Ray is not installed or nothing answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no network that nobody asked for
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray needs Ray: pip install 'ray==2.60.0'.") from None
    _connect(ray, address)
    gpus = ray.cluster_resources().get("GPU", 0)
    task = ray.remote(max_calls=1)(_work)

    def execute(
        notebook: Path,
        parameters: dict,
        out_dir: Path,
        limit_s: float,
        quiet: bool = False,
        env: dict | None = None,
    ) -> run.Outcome:
        out_dir.mkdir(parents=True, exist_ok=True)
        (mark := out_dir / "here.tmp").write_text(token := os.urandom(8).hex(), encoding="utf-8")
        device = parameters.get("device") or "auto"
        wanted = task.options(
            num_cpus=1,
            num_gpus=int(gpus > 0 and device.split(":")[0] in ("auto", "cuda")),
            max_retries=RETRIES,
        )
        places = [_portable(path) for path in (notebook, out_dir)]
        there = {name: _portable(value) for name, value in (env or {}).items()}
        answer = wanted.remote(*places, parameters, limit_s, there, token)
        code, seconds, sentence, cpu, files = ray.get(answer)
        mark.unlink(missing_ok=True)
        for name, content in files.items():
            write_atomic(Path(_local(name)), content)
        return run.Outcome(code, seconds, sentence, out_dir, out_dir / notebook.name, cpu)

    try:
        yield execute
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    """ray.init; a start on this machine is tried again, since Ray gives its helpers 15 seconds to
    load and busy cores need longer the first time."""
    own = {} if address else {"include_dashboard": False, "num_cpus": os.cpu_count()}
    for left in range(1 if address else 4, 0, -1):
        try:
            ray.init(address, log_to_driver=False, logging_level="error", **own)
            return
        except Exception as error:  # Ray raises whatever its parts do
            ray.shutdown()
            reason = str(error).strip().splitlines()[0]
            if left == 1:
                raise InputError(f"Ray at {address or 'this machine'}: {reason}") from None


def _portable(path: Any) -> str:
    """A path below this checkout as <root>/..., so that another checkout can read it."""
    text = str(path)
    return f"<root>{text[len(str(ROOT)) :]}" if text.startswith(str(ROOT) + os.sep) else text


def _local(text: str) -> str:
    """What `_portable` wrote, in the checkout of this machine."""
    return text.replace("<root>", str(ROOT), 1)


def _work(
    notebook: str, out_dir: str, parameters: dict, limit_s: float, env: dict, token: str
) -> tuple[int, float, str, float | None, Files]:
    """The task, on a worker: one execution, and the files that it wrote where the caller's disk
    is not this machine's."""
    folder = Path(_local(out_dir))
    mark, begin = folder / "here.tmp", time.time()
    shared = mark.is_file() and mark.read_text(encoding="utf-8") == token
    env = {name: _local(value) for name, value in env.items()}
    done = run.execute(Path(_local(notebook)), parameters, folder, limit_s, quiet=True, env=env)
    files: Files = {}
    for root in () if shared else {folder, *map(Path, _folders(env))}:
        new = [p for p in root.rglob("*") if p.is_file() and p.stat().st_mtime >= begin]
        files |= {_portable(p): p.read_bytes() for p in new}
    return done.code, done.seconds, done.sentence, done.cpu_seconds, files


def _folders(env: dict[str, str]) -> list[str]:
    """Where a process of a study leaves its phases."""
    return [env[SHARED]] if SHARED in env else []
