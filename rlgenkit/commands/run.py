"""`run`, `sweep` and `series`: notebooks through papermill, with checks before any work."""

import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import committed, study
from .inputs import checked_parameters, split_values
from .places import NOTEBOOKS, RESULTS, ROOT, RUNS, TEMPLATE, InputError, find

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


def default_out_dir(notebook: Path, overrides: dict) -> Path:
    """runs/NB/profile-fingerprint, the workbook's own choice: the same command resumes its run."""
    from rlgenkit.workbook.parameters import Parameters, check_overrides, declared

    values = check_overrides(declared(notebook), overrides)
    fingerprint = Parameters(notebook.stem, values).fingerprint()
    return RUNS / notebook.stem / f"{values['profile']}-{fingerprint}"


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

    The executed notebook, its HTML copy, run.log (all output, full tracebacks) and what the
    workbook writes land in `out_dir`; running again into the same folder resumes, and replaces the
    results of before only when it succeeds.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    for stale in ("error.json", "usage.json"):
        (out_dir / stale).unlink(missing_ok=True)
    spec = {
        "notebook": str(notebook),
        "name": notebook.name,
        "out_dir": str(out_dir),
        "parameters": {**parameters, "out_dir": str(out_dir)},
        "cwd": str(NOTEBOOKS),
        "html": not quiet,
    }
    (out_dir / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
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
        return 1, f"Cell {error['cell'] + 1} failed with {error['ename']}: {first.splitlines()[0]}"
    tail = (noise or b"").decode(errors="replace").strip().splitlines()[-1:]
    return 1, f"The run ended with code {code}. {' '.join(tail)}"


def claims_table(results: dict) -> str:
    """The claims of a results.json as aligned text."""
    rows = [("claim", "measured", "threshold", "verdict")]
    for c in results.get("claims", []):
        low_high = c.get("interval")
        measured = "-" if c.get("value") is None else f"{c['value']:.3g}"
        if low_high and None not in low_high:
            measured += f" [{low_high[0]:.3g}, {low_high[1]:.3g}]"
        bound = "-" if c.get("threshold") is None else f"{c['direction']} {c['threshold']:g}"
        rows.append((c["id"], f"{measured} {c.get('unit') or ''}".strip(), bound, c["verdict"]))
    widths = [max(len(r[i]) for r in rows) for i in range(4)]
    return "\n".join("  ".join(v.ljust(w) for v, w in zip(r, widths)).rstrip() for r in rows)


def run(
    name: str,
    pairs: list[tuple[str, str]],
    profile: str | None,
    out: str | None,
    limit_s: float | None,
    commit: bool,
    jobs: int = 1,
    redraw: bool = False,
) -> int:
    """The `run` command: check, execute, say where everything is. Returns the exit code."""
    notebook = find(name)
    if commit and (pairs or profile not in (None, "study")):
        raise InputError(
            "--commit publishes a default run or a study; it takes no -p and no other "
            "--profile than study."
        )
    if redraw or jobs != 1:
        _check_study(profile, jobs)
    if profile is not None:
        pairs = [*pairs, ("profile", profile)]
    parameters = checked_parameters(notebook, pairs)
    given = out or parameters.pop("out_dir", None)
    if commit and profile is None:
        given = RUNS / notebook.stem / "official"
        shutil.rmtree(given, ignore_errors=True)  # a resumed run would not tell its whole time
    out_dir = Path(given or default_out_dir(notebook, parameters)).resolve()
    out_dir = out_dir.with_name(out_dir.name + "-redrawn") if redraw and not given else out_dir
    limit = limit_s or LIMIT_S.get(parameters.get("profile") or "default", LIMIT_S["default"])
    print(f"Running {notebook.stem} into {_shown(out_dir)}", file=sys.stderr)
    env = {}
    if redraw:
        env = study.redrawing(notebook)
    elif profile == "study":
        env = study.one_thread()
        study.compute_seeds(execute, notebook, parameters, out_dir, jobs, limit)
    done = execute(notebook, parameters, out_dir, limit, env=env)
    if done.code:
        print(done.sentence, file=sys.stderr)
        if done.code != BAD_INPUT:
            print(f"Everything it printed: {_shown(out_dir / 'run.log')}", file=sys.stderr)
        return done.code
    if profile == "study" and not redraw:
        study.timing(out_dir)
    _tell(done)
    if commit:
        publish(notebook, done, "study" if profile == "study" else "default")
    return 0


def _check_study(profile: str | None, jobs: int) -> None:
    if profile != "study":
        raise InputError("--jobs and --redraw belong to --profile study.")
    if jobs < 1:
        raise InputError("--jobs must be at least 1.")


def _tell(done: Outcome) -> None:
    """Where everything of a run is, its claims and its time."""
    for label, path in (
        ("notebook", done.notebook),
        ("HTML", done.notebook.with_suffix(".html")),
        ("results", done.out_dir / "results.json"),
        ("log", done.out_dir / "run.log"),
    ):
        print(f"{label:9} {_shown(path)}" if path.exists() else f"{label:9} none")
    if (results := done.results()) is not None:
        print(f"\n{claims_table(results)}")
    print(f"\n{done.seconds:.0f} s")


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def hardware() -> str:
    """Processor, cores and memory in words, without the machine's name."""
    import psutil

    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    memory = psutil.virtual_memory().total / 2**30
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB"


def publish(notebook: Path, done: Outcome, profile: str) -> None:
    """Official run: write back the executed notebook, normalized, and data/results/NN.json; of a
    study its record in data/studies/NN/ too."""
    source, executed = committed.read(notebook), committed.read(done.notebook)
    digest = committed.source_hash(source)
    if digest != committed.source_hash(executed):
        raise InputError(f"{notebook.name} changed while it ran; run it again.")
    executed["metadata"]["rlgenkit"] = {"source_hash": digest, "profile": profile}
    notebook.write_text(committed.text_of(committed.normalize(executed)), encoding="utf-8")
    results = done.results()
    if results is not None and notebook != TEMPLATE:  # the template shows a run, it claims nothing
        took = {"seconds": round(done.seconds), "cpu_seconds": done.cpu_seconds}
        took = took if profile == "default" else study.timing(done.out_dir)
        results["timing"] = {**took, "hardware": hardware()}
        RESULTS.mkdir(parents=True, exist_ok=True)
        target = RESULTS / f"{notebook.stem.split('_')[0]}.json"
        target.write_text(
            json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        print(f"results: {_shown(target)}")
        if profile == "study":
            study.publish(notebook, done.out_dir, results)
    print(f"committed form: {_shown(notebook)}")


def sweep(name: str, axes: list[str], profile: str | None, jobs: int, limit_s: float | None) -> int:
    """The `sweep` command: every combination of values, joined to runs/NB/sweep.csv and .md."""
    notebook = find(name)
    names, values = [], []
    for axis in axes:
        if "=" not in axis:
            raise InputError(f"{axis!r} is not name=value,value; for example seed=0..4.")
        key, text = axis.split("=", 1)
        names.append(key)
        values.append(split_values(text))
    if not names:
        raise InputError("Name at least one parameter to sweep, for example seed=0..4.")
    if doubled := [n for n in names if names.count(n) > 1]:
        raise InputError(f"{doubled[0]} is given twice; join its values with commas.")
    fixed = [("profile", profile)] if profile else []
    grid = [
        checked_parameters(notebook, [*fixed, *zip(names, row)])
        for row in itertools.product(*values)
    ]

    def one(parameters: dict) -> Outcome:
        limit = limit_s or LIMIT_S.get(parameters.get("profile") or "default", LIMIT_S["default"])
        done = execute(
            notebook, parameters, default_out_dir(notebook, parameters), limit, quiet=True
        )
        label = " ".join(f"{n}={parameters[n]}" for n in names)
        print(f"{label:40} {done.seconds:6.0f} s  {done.sentence or 'done'}", flush=True)
        return done

    print(f"{len(grid)} runs of {notebook.stem}, {jobs} at a time")
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(one, grid))
    join(notebook, names, grid, outcomes)
    return max((o.code for o in outcomes), default=0)


def join(notebook: Path, names: list[str], grid: list[dict], outcomes: list[Outcome]) -> None:
    """One row per run: swept values, then every claim's value and verdict and every number."""
    import csv

    rows = []
    for parameters, done in zip(grid, outcomes):
        row = {
            **{n: parameters[n] for n in names},
            "exit": done.code,
            "seconds": round(done.seconds),
        }
        results = done.results() or {}
        for claim in results.get("claims", []):
            row[claim["id"]], row[f"{claim['id']} verdict"] = claim.get("value"), claim["verdict"]
        row.update({k: v for k, v in results.get("numbers", {}).items() if not isinstance(v, dict)})
        rows.append(row)
    columns = list(dict.fromkeys(k for row in rows for k in row))
    base = RUNS / notebook.stem / ("sweep-" + "-".join(names))
    base.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{base}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(r.get(c)) for c in columns) + " |" for r in rows]
    table = "\n".join(lines) + "\n"
    Path(f"{base}.md").write_text(table, encoding="utf-8")
    print(f"\n{table}\n{_shown(Path(f'{base}.csv'))}\n{_shown(Path(f'{base}.md'))}")


def _cell(value) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
