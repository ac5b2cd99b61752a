"""How well scores agree with people, and how well people agree with each other.

Ratings are [N, R]: N items, R raters, nan where a rater did not answer. Every statistic raises
ValueError where it is not defined (constant values, no comparable pair) instead of returning nan.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlgenkit.records import checked

Statistic = Callable[[Tensor], float]


def pairwise_accuracy(
    scores: Tensor, truth: Tensor, groups: Tensor | None = None, margin: float = 0.0
) -> float:
    """Share of item pairs that `scores` orders as `truth` does; equal scores count one half.

    scores, truth [N]; groups Long[N]: only pairs within a group count (the images of one prompt).
    Pairs whose truths differ by `margin` or less are ties of the truth and left out. 0.5 is chance;
    without ties this is (1 + Kendall's tau) / 2.
    """
    s, t = _columns(scores, truth)
    groups = torch.zeros(len(s)) if groups is None else groups.cpu()
    if groups.shape != s.shape:
        raise ValueError(f"groups must have the shape {list(s.shape)}, got {list(groups.shape)}")
    one, other = (groups[:, None] == groups).triu(1).nonzero().T
    gap, ahead = t[one] - t[other], s[one] - s[other]
    used = gap.abs() > margin
    if not used.any():
        raise ValueError("no pair of items has different truths (within a group): nothing to order")
    return float((0.5 + 0.5 * ahead.sign() * gap.sign())[used].mean())


def pearson(a: Tensor, b: Tensor) -> float:
    """Pearson's r of a and b, both [N]."""
    return float(torch.corrcoef(torch.stack(_varied(a, b)))[0, 1])


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of a and b, both [N] (scipy; ties get mean ranks)."""
    from scipy.stats import spearmanr

    return float(spearmanr(*(v.numpy() for v in _varied(a, b))).statistic)


def leave_one_out_ceiling(
    ratings: Tensor, agreement: Callable[[Tensor, Tensor], float] = spearman
) -> tuple[float, Tensor]:
    """(mean, per rater [R]): agreement(mean of the others, one rater) over the items both saw.

    ratings [N, R]. It is what a single person scores against the rest: a reward model that agrees
    with one person's ratings better than this has nothing left to gain from them. Order of the
    arguments as in pairwise_accuracy(scores, truth): the rater is the truth.
    """
    if ratings.ndim != 2 or ratings.shape[1] < 2:
        raise ValueError(f"ratings must be [items, raters >= 2], got {list(ratings.shape)}")
    x, known = checked(ratings, ~ratings.isnan())
    rest = known.sum(1, keepdim=True) - known.double()
    others = (x.sum(1, keepdim=True) - x) / rest
    made = []
    for rater in range(x.shape[1]):
        rows = known[:, rater] & (rest[:, rater] > 0)
        if rows.sum() < 2:
            raise ValueError(f"rater {rater} shares fewer than two items with the others")
        made.append(agreement(others[rows, rater], x[rows, rater]))
    each = torch.tensor(made, dtype=torch.float64)
    return float(each.mean()), each


def bootstrap_over_items(
    statistic: Statistic,
    items: int | Tensor,
    generator: torch.Generator,
    draws: int = 1000,
) -> tuple[float, float, float]:
    """(statistic of all items, low, high): 95 % percentile bootstrap.

    items: their number, or Long[N] clusters (the prompt, the rater) that are drawn whole, because
    answers inside one are alike. statistic takes a Long tensor of item numbers, with repeats.
    """
    clusters = torch.arange(items) if isinstance(items, int) else items
    if draws < 1 or not len(clusters):
        raise ValueError("a bootstrap needs at least one item and one draw")
    order = clusters.argsort(stable=True)
    own = order.split(clusters.unique(return_counts=True)[1].tolist())
    stats = []
    for _ in range(draws):
        pick = torch.randint(len(own), (len(own),), generator=generator)
        stats.append(statistic(torch.cat([own[i] for i in pick.tolist()])))
    ends = torch.tensor([(1 - 0.95) / 2, (1 + 0.95) / 2], dtype=torch.float64)
    low, high = torch.tensor(stats, dtype=torch.float64).quantile(ends).tolist()
    return float(statistic(torch.arange(len(clusters)))), low, high


def _columns(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.ndim != 1 or a.shape != b.shape or len(a) < 2:
        raise ValueError(
            f"two columns of equal length >= 2 are needed, got {list(a.shape)} and {list(b.shape)}"
        )
    return checked(a.detach())[0], checked(b.detach())[0]


def _varied(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = _columns(a, b)
    if (a == a[0]).all() or (b == b[0]).all():
        raise ValueError("a correlation with constant values is not defined")
    return a, b
