"""Logged values of the phases of a run: kept by phase, checked, stacked over seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlgenkit.records import Scores

from . import checkpoint

RESERVED = ("phase", "step")  # keys of a line that a metric cannot be called


class NonFiniteError(FloatingPointError):
    """A logged value is nan or infinite; the message names step, value, sample and checkpoint."""


class Metrics:
    """`lines`: phase -> its lines, {"phase", "step", metric: number or list of samples}.

    What is logged is appended to the file `path` for people to watch; nothing here reads it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, {}
        checkpoint.write_atomic(path, b"")

    def add(self, phase: str, step: int, values: Mapping, samples: Mapping[str, Tensor]) -> None:
        """Append a line: the mean of each value, all of each sample to 4 digits.

        Of Scores the valid rows count; what has none at all is left out.
        """
        if odd := [k for k in [*values, *samples] if k in RESERVED]:
            raise ValueError(f"a metric cannot be called `{odd[0]}`: choose another name")
        where = f"at step {step} of {phase or 'the run'}"
        line: dict[str, Any] = {"phase": phase, "step": int(step)}
        for name, value in values.items():
            if (kept := _finite(value, name, where)).numel():
                line[name] = kept.mean().item()
        for name, value in samples.items():
            kept = _finite(value, name, where).flatten().tolist()
            line[name] = [float(f"{v:.4g}") for v in kept]
        self.lines.setdefault(phase, []).append(line)
        self._write([line])

    def put(self, phase: str, lines: list[dict[str, Any]]) -> None:
        """The lines of a phase as they were when it was saved."""
        self.lines[phase] = list(lines)
        self._write(lines)

    def columns(self, *phases: str) -> dict[str, np.ndarray]:
        """`columns` of the phases; KeyError where one logged nothing."""
        if odd := [phase for phase in phases if phase not in self.lines]:
            raise KeyError(f"nothing was logged in phase {odd[0]}")
        return columns([self.lines[phase] for phase in phases])

    def latest(self, phase: str) -> str:
        """The newest line in words, at most four numbers of it."""
        line = (self.lines.get(phase) or [{}])[-1]
        return ", ".join([f"{k} {v:.3g}" for k, v in line.items() if isinstance(v, float)][:4])

    def change(self, phase: str) -> str:
        """First and last value of the metric logged first: "; reward 0.31 to 0.88"."""
        rows = self.lines.get(phase) or [{}]
        key = next((k for k, v in rows[0].items() if isinstance(v, float)), "")
        values = [row[key] for row in rows if key in row]
        return f"; {key} {values[0]:.3g} to {values[-1]:.3g}" if values else ""

    def _write(self, lines: list[dict[str, Any]]) -> None:
        with checkpoint.told(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))


def columns(runs: Sequence[list[dict[str, Any]]]) -> dict[str, np.ndarray]:
    """Lines of one phase per seed as columns: [S, T], samples [S, T, B]; nan where not logged.

    Lines of the same step are one row.
    """
    rows: list[dict[int, dict]] = [{} for _ in runs]
    for own, lines in zip(rows, runs):
        for line in lines:
            own.setdefault(line["step"], {}).update(line)
    steps = sorted({step for own in rows for step in own})
    cells = [own.get(step, {}) | {"step": step} for own in rows for step in steps]
    names = dict.fromkeys(k for cell in cells for k in cell if k != "phase")
    return {k: _column([cell.get(k, np.nan) for cell in cells], len(runs)) for k in names}


def _column(values: list, runs: int) -> np.ndarray:
    if any(isinstance(v, list) for v in values):  # samples; a step may have fewer of them
        wide = zip_longest(*[v if isinstance(v, list) else [] for v in values], fillvalue=np.nan)
        values = [*zip(*wide)]
    x = np.array(values)
    return x.reshape(runs, -1, *x.shape[1:])


def _finite(value: Any, name: str, where: str) -> Tensor:
    """The value on the CPU as float64; nan or inf stops the run."""
    value = value.values[value.valid] if isinstance(value, Scores) else value
    tensor = torch.as_tensor(value).detach().to("cpu", torch.float64)
    bad = (~torch.isfinite(tensor)).flatten().nonzero()
    if len(bad):
        odd = tensor.flatten()[bad[0]].item()
        raise NonFiniteError(f"{name} is {odd} {where}, sample {int(bad[0])}")
    return tensor
