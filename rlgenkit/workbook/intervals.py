"""95 % intervals: Student's t over seeds, exact binomial, whole clusters, and of a further run.

None of them is a percentile bootstrap over few values, which covers far less than it says: 76 %
instead of 95 % at three seeds.  tests/test_claims.py measures the coverage of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import betaincinv, stdtrit  # scipy.stats takes a second to import

ENOUGH = 5  # seeds or clusters; fewer of them get no verdict and no band
FEW_CLUSTERS = 30  # below, a bootstrap over clusters is too narrow
DRAWS = 1_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; unpacks as value, low, high.

    value, low, high: floats, or arrays of equal shape for curves.  n: independent units (seeds or
    clusters).  kind: t, binomial, cluster or prediction.
    """

    value: Any
    low: Any
    high: Any
    n: int
    kind: str

    def __iter__(self) -> Iterator[Any]:
        return iter((self.value, self.low, self.high))


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Student's t interval of the mean over the first axis (seeds).

    values: [S] or [S, ...]; the results have the shape of one entry.  A single entry has no
    spread: low = high = value.  ValueError for no values or values that are not finite.
    """
    x = _finite(values)
    mean = x.mean(axis=0)
    half = _student(len(x) - 1) * _standard_error(x) if len(x) > 1 else np.zeros_like(mean)
    return Interval(_plain(mean), _plain(mean - half), _plain(mean + half), len(x), "t")


def prediction_interval(values: Sequence[float] | np.ndarray, m: int) -> Interval:
    """Where the mean of m further seeds should lie: mean +- t(n-1) s sqrt(1/n + 1/m).

    values: [S] or [S, ...] with S >= 2, one per seed of the study.
    """
    x = _finite(values)
    if len(x) < 2 or m < 1:
        raise ValueError(f"a prediction needs two values and one new seed, got {len(x)} and {m}")
    mean, spread = x.mean(axis=0), x.std(axis=0, ddof=1)
    half = _student(len(x) - 1) * spread * np.sqrt(1 / len(x) + 1 / m)
    return Interval(_plain(mean), _plain(mean - half), _plain(mean + half), len(x), "prediction")


def binomial_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Clopper-Pearson interval of a share.  values: [S] zeros and ones, one per seed."""
    x = _finite(values)
    if x.ndim != 1 or not np.isin(x, (0, 1)).all():
        raise ValueError("a binomial interval takes zeros and ones, one per seed")
    n, k, tail = len(x), int(x.sum()), 0.025
    low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return Interval(k / n, low, high, n, "binomial")


def cluster_interval(values: Sequence[float] | np.ndarray, clusters: Any) -> Interval:
    """Interval of the mean over items whose clusters (prompt, rater) are the independent units.

    values, clusters: [N].
    """
    import torch

    x = torch.as_tensor(_finite(values))
    if x.shape != np.shape(clusters):
        raise ValueError(f"each value needs its cluster, got {len(x)} and {len(clusters)}")
    return clustered_interval(lambda rows: x[rows].mean().item(), clusters)


def clustered_interval(
    statistic: Callable[[Any], float], clusters: Any, rows: Any = None
) -> Interval:
    """95 % interval of any statistic over items whose clusters are the independent units.

    clusters: [N], for example the prompt of each image.  rows: Long [M] (None = all) are the items
    used.  statistic takes a Long tensor of item numbers.  Under 30 clusters its standard error is
    the jackknife that leaves one cluster out, with t on G - 1 degrees of freedom (Efron and
    Tibshirani 1993, ch. 11); else a percentile bootstrap over whole clusters.
    """
    import torch

    rows = np.arange(len(clusters)) if rows is None else np.asarray(rows)
    names, own = np.unique(np.asarray(clusters)[rows], return_inverse=True)
    n, items = len(names), [torch.as_tensor(rows[own == k]) for k in range(len(names))]
    value = float(statistic(torch.as_tensor(rows)))
    if n == 1:  # no spread
        return Interval(value, value, value, n, "cluster")
    few = n < FEW_CLUSTERS
    picks = (
        [np.delete(np.arange(n), k) for k in range(n)]
        if few
        else np.random.default_rng(0).integers(n, size=(DRAWS, n))
    )
    drawn = _finite([statistic(torch.cat([items[i] for i in pick])) for pick in picks])
    if few:
        half = _student(n - 1) * (n - 1) * _standard_error(drawn)
        low, high = value - half, value + half
    else:
        low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(value, float(low), float(high), n, "cluster")


def _finite(values: Any) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim == 0 or len(x) == 0 or not np.isfinite(x).all():
        raise ValueError("an interval needs at least one value, all finite")
    return x


def _standard_error(x: np.ndarray) -> np.ndarray:
    return x.std(axis=0, ddof=1) / np.sqrt(len(x))


def _student(degrees: int) -> float:
    return float(stdtrit(degrees, 0.975))


def _plain(value: np.ndarray) -> Any:
    return float(value) if np.ndim(value) == 0 else value
