"""One execution of a notebook: a child process that cannot take the caller with it, its outcome."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .places import NOTEBOOKS, ROOT, InputError

LIMIT_S = {"quick": 600.0, "default": 3600.0, "study": 6 * 3600.0, "full": 7 * 24 * 3600.0}
# Raised by a notebook's first cells for bad input; the message is the sentence to show.
INPUT_ERRORS = ("ParameterError", "InputError")
BAD_INPUT, TIMED_OUT, DEAD_KERNEL = 2, 124, 138


@dataclass(frozen=True)
class Outcome:
    """What one execution left behind. `code` is the exit code; `sentence` is empty on success."""

    code: int
    seconds: float
    sentence: str
    out_dir: Path
    notebook: Path
    cpu_seconds: float | None = None  # of the executor and its kernel, imports included

    def results(self) -> dict | None:
        """The run's results.json, or None when it failed or wrote none."""
        path = self.out_dir / "results.json"
        written = (
            self.code == 0
            and path.is_file()
            and (self.out_dir / "usage.json").is_file()
            and (path.stat().st_mtime_ns >= _usage(self.out_dir)["begin_ns"])
        )
        return json.loads(path.read_text(encoding="utf-8")) if written else None


def _usage(out_dir: Path) -> dict:
    """usage.json of the last execution into `out_dir`."""
    path = out_dir / "usage.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _kill_tree(pid: int) -> None:
    """Stop a process and all that it started: a kernel lives in a session of its own."""
    import psutil

    try:
        family = [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass


def execute(
    notebook: Path,
    parameters: dict,
    out_dir: Path,
    limit_s: float,
    quiet: bool = False,
    env: dict | None = None,
) -> Outcome:
    """Run `notebook` in a child process into `out_dir`; never raises for what the notebook does.

    The executed notebook, run.log (all output, full tracebacks) and what the workbook writes land
    in `out_dir`; running again into the same folder resumes, and replaces the results of before
    only when it succeeds.  InputError where the folder cannot be written.
    """
    spec = {
        "notebook": str(notebook),
        "name": notebook.name,
        "out_dir": str(out_dir),
        "parameters": {**parameters, "out_dir": str(out_dir)},
        "cwd": str(NOTEBOOKS),
        "html": False,
    }
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for stale in ("error.json", "usage.json"):
            (out_dir / stale).unlink(missing_ok=True)
        (out_dir / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"The run folder {_short(out_dir)} cannot be written ({error.strerror}); "
            "name another one with --out."
        ) from None
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "rlgenkit.commands.execute", str(out_dir / "spec.json")]
    start = time.monotonic()
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE if quiet else None,
        env={**os.environ, "PYTHONPATH": paths, **(env or {})},
    )
    try:
        _, noise = child.communicate(timeout=limit_s)
        code = child.returncode
    except subprocess.TimeoutExpired:
        code, noise = TIMED_OUT, b""
    except KeyboardInterrupt:
        code, noise = 130, b""
    finally:
        if child.poll() is None:
            _kill_tree(child.pid)
            child.wait()
    seconds = time.monotonic() - start
    code, sentence = _explain(code, out_dir, limit_s, noise)
    (out_dir / "spec.json").unlink(missing_ok=True)
    return Outcome(
        code,
        seconds,
        sentence,
        out_dir,
        out_dir / notebook.name,
        _usage(out_dir).get("cpu_seconds"),
    )


def _explain(code: int, out_dir: Path, limit_s: float, noise: bytes | None) -> tuple[int, str]:
    """Exit code and one sentence for how the child ended."""
    if code == 0:
        return 0, ""
    if code == TIMED_OUT:
        return code, f"Stopped after its time limit of {limit_s:.0f} s; --limit raises it."
    if code == DEAD_KERNEL:
        return code, "The kernel died, most often for lack of memory; try a smaller batch."
    if code == 130:
        return code, "Interrupted; run the same command again to resume."
    error_file = out_dir / "error.json"
    if error_file.is_file():
        error = json.loads(error_file.read_text(encoding="utf-8"))
        first = error["evalue"].strip() or "no message"
        if error["ename"] in INPUT_ERRORS:
            return BAD_INPUT, first
        # The index counts from 0 and with the injected cell: from 1 in the notebook itself.
        return 1, f"Cell {error['cell']} failed with {error['ename']}: {first.splitlines()[0]}"
    tail = (noise or b"").decode(errors="replace").strip().splitlines()[-1:]
    return 1, f"The run ended with code {code}. {' '.join(tail)}"


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) < 120 else f"{text[:60]}...{text[-40:]}"
