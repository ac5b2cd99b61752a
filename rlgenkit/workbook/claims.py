"""Claims with verdicts, the statistics behind them, and the schema of results.json."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VERDICTS = ("supported", "not supported", "inconclusive", "not judged",
            "not testable at this scale")
EXACT_UP_TO = 8  # n values have comb(2n-1, n) distinct resamples: 6,435 at n = 8
RESAMPLES = 2_000


@dataclass(frozen=True)
class Claim:
    """One tested statement; `value` is the mean of `values`, `interval` its 95 % bootstrap."""

    id: str
    paper: str
    statement: str
    values: tuple[float, ...]
    threshold: float | None
    direction: str
    unit: str
    value: float | None
    interval: tuple[float, float] | None
    n: int
    verdict: str
    note: str

    def _repr_markdown_(self) -> str:
        return claims_table([self])


def interval(
    values: Sequence[float] | np.ndarray, level: float = 0.95, statistic: str = "mean"
) -> tuple[Any, Any, Any]:
    """(estimate, low, high): percentile bootstrap over the first axis (seeds, or items).

    values: [S] or [S, ...]; the results have the shape of one entry.  statistic: "mean" or "iqm".
    Up to 8 entries all resamples are enumerated, above that 2,000 are drawn with a fixed seed.
    An end of the interval is the most extreme value that a share (1-level)/2 of the resamples
    reaches or passes (Efron and Tibshirani 1993, ch. 13).
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim == 0 or len(x) == 0 or not np.isfinite(x).all():
        raise ValueError("interval needs at least one value, all finite")
    if statistic not in ("mean", "iqm"):
        raise ValueError(f"statistic must be mean or iqm, not {statistic}")
    estimate = {"mean": _mean, "iqm": iqm}[statistic]
    picks, weights = _resamples(len(x))
    stats = np.stack([estimate(x[pick]) for pick in picks])
    low = _tail(stats, weights, (1 - level) / 2)
    return _plain(estimate(x)), _plain(low), _plain(-_tail(-stats, weights, (1 - level) / 2))


def iqm(values: np.ndarray) -> np.ndarray:
    """Interquartile mean over the first axis: mean of the middle half, with fractional ends
    (Agarwal et al. 2021, sec. 4.3)."""
    x = np.sort(np.asarray(values, dtype=np.float64), axis=0)
    n = len(x)
    cover = np.clip(np.minimum(np.arange(1, n + 1), 0.75 * n)
                    - np.maximum(np.arange(n), 0.25 * n), 0, 1)
    return np.tensordot(cover, x, 1) / cover.sum()


def stratified_interval(scores: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """(IQM, low, high) of scores [S, K], seeds resampled within each of K tasks (same source)."""
    scores = np.asarray(scores, dtype=np.float64)
    n, tasks = scores.shape
    picks = np.random.default_rng(0).integers(n, size=(RESAMPLES, n, tasks))
    stats = np.array([iqm(np.take_along_axis(scores, p, 0).reshape(-1)) for p in picks])
    tail, ones = (1 - level) / 2, np.ones(len(stats))
    low, high = _tail(stats, ones, tail), -_tail(-stats, ones, tail)
    return float(iqm(scores.reshape(-1))), float(low), float(high)


def clustered_interval(
    statistic: Callable[[Any], float], clusters: Any, rows: Any = None, draws: int = 1_000,
) -> tuple[float, float, float]:
    """(statistic(rows), low, high): 95 % percentile bootstrap over whole clusters.

    clusters Long[N]: for example the prompt of each image, whose images are alike; rows Long[M]
    (None = all) are the items used.  statistic takes a Long tensor of item numbers.
    """
    import torch

    rows = torch.arange(len(clusters)) if rows is None else rows
    own = [rows[clusters[rows] == name] for name in clusters[rows].unique()]
    picks = np.random.default_rng(0).integers(len(own), size=(draws, len(own)))
    stats = np.array([statistic(torch.cat([own[i] for i in pick])) for pick in picks])
    low, high = np.quantile(stats, (0.025, 0.975))
    return float(statistic(rows)), float(low), float(high)


def probability_of_improvement(a: Sequence[float], b: Sequence[float]) -> tuple:
    """(P, low, high) that a beats b on the same seed or item, ties count half.  a, b: [S]."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"pairs need equal shapes, got {a.shape} and {b.shape}")
    return interval((a > b) + 0.5 * (a == b))


def verdict(values: Sequence[float], threshold: float, direction: str) -> str:
    """supported: the whole interval passes; not supported: it all fails; else inconclusive.

    A single value has no interval, so it is inconclusive.
    """
    _, low, high = interval(values)
    if len(values) < 2:
        return "inconclusive"
    sign = 1 if direction == ">=" else -1
    slack = 1e-12 * abs(threshold)  # a mean of equal numbers may be off by one rounding
    passes = [sign * (end - threshold) >= -slack for end in (low, high)]
    return "supported" if all(passes) else "inconclusive" if any(passes) else "not supported"


def make_claim(
    id: str, paper: str, statement: str, values: Sequence[float], threshold: float,
    direction: str, unit: str, note: str, judge: bool,
) -> Claim:
    """Check the parts and work out mean, interval and verdict ("not judged" unless `judge`)."""
    values = tuple(float(v) for v in values)
    if direction not in (">=", "<="):
        raise ValueError(f"claim {id}: direction must be '>=' or '<=', not {direction!r}")
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"claim {id}: values must be finite numbers, one per seed, not {values}")
    value, low, high = interval(values)
    word = verdict(values, threshold, direction) if judge else "not judged"
    return Claim(id, paper, statement, values, float(threshold), direction, unit, value,
                 (low, high), len(values), word, note)


def claims_table(claims: Sequence[Claim]) -> str:
    """Markdown table: claim, paper's number, ours with interval, verdict."""
    rows = ["| claim | the paper | tested here | measured (95 % interval) | verdict |",
            "|---|---|---|---|---|"]
    for c in claims:
        tested, measured = c.statement, "-"
        if c.value is not None:
            tested += f" ({c.direction} {c.threshold:.4g}{_unit(c.unit)})"
            low, high = c.interval
            measured = f"{c.value:.3g}{_unit(c.unit)} ({low:.3g} to {high:.3g}, n={c.n})"
        word = f"**{c.verdict}**" + (f": {c.note}" if c.note else "")
        cells = (c.id, c.paper, tested, measured, word)
        rows.append("| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |")
    return "\n".join(rows)


def schema() -> dict[str, Any]:
    """JSON schema of results.json and data/results/NN.json."""
    return json.loads(Path(__file__).with_name("results.schema.json").read_text())


def validate(results: dict[str, Any]) -> None:
    """Raise ValueError naming the first place where `results` leaves the schema."""
    import jsonschema

    errors = jsonschema.Draft202012Validator(schema()).iter_errors(results)
    for error in sorted(errors, key=lambda e: list(map(str, e.absolute_path))):
        place = "/".join(map(str, error.absolute_path)) or "the top level"
        raise ValueError(f"results do not fit the schema at {place}: {error.message}")


def _unit(unit: str) -> str:
    return f" {unit}" if unit else ""


def _mean(x: np.ndarray) -> np.ndarray:
    return x.mean(axis=0)


def _plain(value: np.ndarray) -> Any:
    return float(value) if np.ndim(value) == 0 else value


def _resamples(n: int) -> tuple[Iterable[np.ndarray], np.ndarray]:
    """(indices R x [n], weights [R]): every resample with its count, or a fixed random draw."""
    if n > EXACT_UP_TO:
        draw = np.random.default_rng(0)
        return (draw.integers(n, size=n) for _ in range(RESAMPLES)), np.ones(RESAMPLES)
    picks = np.array(list(itertools.combinations_with_replacement(range(n), n)))
    counts = (picks[:, :, None] == np.arange(n)).sum(1)
    factorials = np.array([math.factorial(k) for k in range(n + 1)])
    return picks, factorials[n] / factorials[counts].prod(axis=1)


def _tail(stats: np.ndarray, weights: np.ndarray, share: float) -> np.ndarray:
    """The smallest statistic such that it and all below carry at least `share` of the weight."""
    order = np.argsort(stats, axis=0, kind="stable")
    carried = np.cumsum(weights[order], axis=0)
    first = (carried < share * weights.sum() * (1 - 1e-12)).sum(axis=0)
    return np.take_along_axis(np.take_along_axis(stats, order, 0), first[None], 0)[0]
