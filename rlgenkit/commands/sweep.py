"""`sweep`: a notebook over every combination of values; `compare`: finished runs side by side."""

import csv
import itertools
import json
import math
import statistics
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import cluster, run
from .experiment import aligned, default_out_dir, limit_of, shown
from .inputs import MOST_RUNS, checked_parameters, split_values
from .places import RUNS, InputError, find


def command(args: Namespace) -> int:
    """The `sweep` command: every combination of values, joined to runs/NB/sweep-NAMES.csv and .txt."""
    notebook, axes = find(args.notebook), read_axes(args.axes)
    grid = combinations(notebook, axes, args.profile)

    def one(folder: Path) -> run.Outcome:
        from .pages import write_page

        parameters = grid[folder]
        limit = limit_of(args.limit, parameters)
        done = execute(notebook, parameters, folder, limit, quiet=True)
        if not done.code:
            write_page(done.notebook)
        label = " ".join(f"{n}={parameters[n]}" for n in axes)
        print(f"{label:40} {done.seconds:6.0f} s  {done.sentence or 'done'}", flush=True)
        return done

    with cluster.engine(args) as (execute, jobs), ThreadPoolExecutor(jobs) as pool:
        print(f"{len(grid)} runs of {notebook.stem}, {min(jobs, len(grid))} at a time", flush=True)
        outcomes = list(pool.map(one, grid))
    join(RUNS / notebook.stem / ("sweep-" + "-".join(axes)), list(axes), [*grid.values()], outcomes)
    return max(o.code for o in outcomes)


def read_axes(texts: list[str]) -> dict[str, list[str]]:
    """["clip=1,2", ...] -> {"clip": ["1", "2"], ...}."""
    axes: dict[str, list[str]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals:
            raise InputError(f"{text!r} is not name=value,value; for example seed=0..4.")
        if name in axes:
            raise InputError(f"{name} is given twice; join its values with commas.")
        if name == "out_dir":
            raise InputError("out_dir is no axis: each run of a sweep has a folder of its own.")
        axes[name] = split_values(values)
    count = math.prod(map(len, axes.values()))
    if count > MOST_RUNS:
        raise InputError(f"This sweep has {count} runs, more than {MOST_RUNS}; name fewer values.")
    return axes


def combinations(
    notebook: Path, axes: dict[str, list[str]], profile: str | None
) -> dict[Path, dict]:
    """Run folder -> checked parameters; each value is checked once, and what resolves to equal
    values, as None and the preset do, runs once."""
    fixed = [("profile", profile)] if profile else []
    values = [
        [checked_parameters(notebook, [*fixed, (name, text)]) for text in dict.fromkeys(texts)]
        for name, texts in axes.items()
    ]
    grid: dict[Path, dict] = {}
    for row in itertools.product(*values):
        parameters = {k: v for part in row for k, v in part.items()}
        grid.setdefault(default_out_dir(notebook, parameters), parameters)
    return grid


def join(base: Path, names: list[str], grid: list[dict], outcomes: list[run.Outcome]) -> None:
    """One row per run in base.csv and .txt: swept values, each claim's value and verdict, numbers."""
    rows = []
    for parameters, done in zip(grid, outcomes):
        row = {n: parameters[n] for n in names}
        rows.append(row | {"exit": done.code, "seconds": round(done.seconds)})
        rows[-1] |= finals(done.results() or {})
    columns = list(dict.fromkeys(k for row in rows for k in row))
    base.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{base}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    table = aligned([columns, *([_cell(r.get(c)) for c in columns] for r in rows)], 24)
    Path(f"{base}.txt").write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}\n\n{shown(Path(f'{base}.csv'))}\n{shown(Path(f'{base}.txt'))}")


def finals(results: dict) -> dict:
    """Claims and numbers of a results.json by name."""
    row = {}
    for claim in results.get("claims", []):
        row[claim["id"]], row[f"{claim['id']} verdict"] = claim.get("value"), claim["verdict"]
    numbers = results.get("numbers", {})
    return row | {k: v for k, v in numbers.items() if not isinstance(v, dict)}


def _cell(value) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def compare(args: Namespace) -> int:
    """The `compare` command: final numbers of runs side by side, and one figure of all curves."""
    folders = [Path(name).expanduser() for name in args.runs]
    columns, curves = [], []
    for folder in folders:
        try:
            columns.append(finals(json.loads((folder / "results.json").read_text("utf-8"))))
            lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
            curves.append([json.loads(line) for line in lines])
        except (OSError, ValueError):
            raise InputError(f"{folder} is no folder of a finished run.") from None
    names = list(dict.fromkeys(name for column in columns for name in column))
    labels = [folder.name for folder in folders]
    rows = [[name, *(_cell(column.get(name)) for column in columns)] for name in names]
    print(aligned([["", *labels], *rows]))
    print(f"\n{shown(plot(labels, curves, Path(args.out)))}")
    return 0


def plot(labels: list[str], curves: list[list[dict]], target: Path) -> Path:
    """PNG: a panel per metric; a color per run, a line per arm, which is the mean over its seeds."""
    from rlgenkit.workbook.show import LINES, PALETTE, new_figure, png

    metrics = dict.fromkeys(k for lines in curves for x in lines for k in x)
    metrics = [k for k in metrics if k not in ("phase", "step")][:6]
    arms = [*dict.fromkeys(x["phase"].split("/seed")[0] for lines in curves for x in lines)]
    if not metrics:
        raise InputError("None of these runs logged a curve.")
    figure, axes = new_figure(len(metrics), 1, height=2.4 * len(metrics))
    for axis, metric in zip(axes[:, 0], metrics):
        axis.set_ylabel(metric)
        for (k, lines), (a, arm) in itertools.product(enumerate(curves), enumerate(arms)):
            found: dict[int, list[float]] = {}
            for x in lines:
                if metric in x and x["phase"].split("/seed")[0] == arm:
                    found.setdefault(x["step"], []).append(x[metric])
            means, color = [*map(statistics.fmean, found.values())], PALETTE[k % len(PALETTE)]
            label = f"{labels[k]}: {arm}" if found else None
            axis.plot([*found], means, ls=LINES[a % len(LINES)], color=color, label=label)
    axes[0, 0].legend(loc="upper left", bbox_to_anchor=(1, 1))
    axes[-1, 0].set_xlabel("step")
    target.write_bytes(png(figure))
    return target
