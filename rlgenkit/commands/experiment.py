"""`run`: one notebook through papermill, with checks before any work; its official form."""

import json
import os
import platform
import re
import shutil
import sys
from argparse import Namespace
from pathlib import Path

from . import cluster, committed, run, study
from .inputs import checked_parameters
from .places import RESULTS, RUNS, TEMPLATE, InputError, find

Pairs = list[tuple[str, str]]


def command(args: Namespace) -> int:
    """The `run` command: check, execute, say where everything is. Returns the exit code."""
    notebook = find(args.notebook)
    pairs = [*args.pairs, *([("profile", args.profile)] if args.profile else [])]
    _check_options(args, pairs)
    parameters = checked_parameters(notebook, pairs)
    out_dir = _folder(args, notebook, parameters)
    print(f"Running {notebook.stem} into {shown(out_dir)}", file=sys.stderr)
    limit, env = limit_of(args.limit, parameters), {}
    if args.redraw:
        env = study.redrawing(notebook)
    elif args.profile == "study":
        env = study.one_thread()
        with cluster.engine(args) as (execute, jobs):
            study.compute_seeds(execute, notebook, parameters, out_dir, jobs, limit)
    done = run.execute(notebook, parameters, out_dir, limit, env=env)
    if done.code:
        print(done.sentence, file=sys.stderr)
        if done.code != run.BAD_INPUT:
            print(f"Everything it printed: {shown(out_dir / 'run.log')}", file=sys.stderr)
        return done.code
    if args.profile == "study" and not args.redraw:
        study.timing(out_dir)
        if twice := study.computed_twice(out_dir):
            print(twice, file=sys.stderr)
    tell(done)
    if args.commit:
        publish(notebook, done, args.profile or "default")
    return 0


def _check_options(args: Namespace, pairs: Pairs) -> None:
    """InputError where options contradict each other."""
    if args.commit and (args.pairs or args.profile not in (None, "study")):
        raise InputError(
            "--commit publishes a default run or a study; it takes no -p and no other "
            "--profile than study."
        )
    if args.commit and args.profile is None and args.out:
        raise InputError("--commit of a default run has a folder of its own; leave out --out.")
    if args.out and "out_dir" in dict(pairs):
        raise InputError("--out and -p out_dir name the same folder; give one of them.")
    if (args.redraw or args.jobs or args.engine == "ray") and args.profile != "study":
        raise InputError("--jobs, --engine ray and --redraw belong to --profile study.")


def _folder(args: Namespace, notebook: Path, parameters: dict) -> Path:
    """The run folder: --out, -p out_dir, or runs/NB/...; takes out_dir out of the parameters."""
    given = parameters.pop("out_dir", None)
    given = args.out or given
    if args.commit and args.profile is None:
        given = RUNS / notebook.stem / "official"
        shutil.rmtree(given, ignore_errors=True)  # a resumed run would not tell its whole time
    if given:
        return Path(given).expanduser().resolve()
    folder = default_out_dir(notebook, parameters)
    return folder.with_name(folder.name + "-redrawn") if args.redraw else folder


def default_out_dir(notebook: Path, overrides: dict) -> Path:
    """runs/NB/profile-fingerprint, the workbook's own choice: the same command resumes its run."""
    from rlgenkit.workbook.parameters import Parameters, check_overrides, declared

    values = check_overrides(declared(notebook), overrides)
    fingerprint = Parameters(notebook.stem, values).fingerprint()
    return RUNS / notebook.stem / f"{values['profile']}-{fingerprint}"


def limit_of(given: float | None, parameters: dict) -> float:
    """Seconds that a run may take: as given, else those of its profile."""
    profile = parameters.get("profile") or "default"
    return given or run.LIMIT_S.get(profile, run.LIMIT_S["default"])


def tell(done: run.Outcome) -> None:
    """Where everything of a run is, its claims and its time; makes its HTML copy."""
    from .pages import write_page

    write_page(done.notebook)
    for label, path in (
        ("notebook", done.notebook),
        ("HTML", done.notebook.with_suffix(".html")),
        ("results", done.out_dir / "results.json"),
        ("log", done.out_dir / "run.log"),
    ):
        print(f"{label:9} {shown(path) if path.exists() else 'none'}")
    if (results := done.results()) is not None:
        print(f"\n{claims_table(results)}")
    print(f"\n{done.seconds:.0f} s")


def shown(path: Path) -> str:
    """A path as short as it can be said from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def aligned(rows: list[list[str]], widest: int = 60) -> str:
    """Rows of cells as text in columns."""
    widths = [min(widest, max(map(len, column))) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def claims_table(results: dict) -> str:
    """The claims of a results.json as aligned text."""
    rows = [["claim", "measured", "threshold", "verdict"]]
    for c in results.get("claims", []):
        low_high = c.get("interval")
        measured = "-" if c.get("value") is None else f"{c['value']:.3g}"
        if low_high and None not in low_high:
            measured += f" [{low_high[0]:.3g}, {low_high[1]:.3g}]"
        bound = "-" if c.get("threshold") is None else f"{c['direction']} {c['threshold']:g}"
        rows.append([c["id"], f"{measured} {c.get('unit') or ''}".strip(), bound, c["verdict"]])
    return aligned(rows)


def hardware() -> str:
    """Processor, cores and memory in words, without the machine's name."""
    import psutil

    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    memory = psutil.virtual_memory().total / 2**30
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB"


def publish(notebook: Path, done: run.Outcome, profile: str) -> None:
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
        results["timing"] = {"hardware": hardware(), **took}
        RESULTS.mkdir(parents=True, exist_ok=True)
        target = RESULTS / f"{notebook.stem.split('_')[0]}.json"
        text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        target.write_text(text, encoding="utf-8")
        print(f"results: {shown(target)}")
        if profile == "study":
            study.publish(notebook, done.out_dir, results)
    print(f"committed form: {shown(notebook)}")
