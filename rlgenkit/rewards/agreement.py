"""How well scores agree with people, and how well people agree with each other.

Ratings are [N, R]: N items, R raters, nan where a rater did not answer. Every statistic raises
ValueError where it is not defined (constant values, no comparable pair) instead of returning nan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Agreement:
    """One row of the agreement table.

    accuracy, low, high: share of the decided pairs that are ordered as people order them, and its
    95 % interval over clusters; decided: share of the pairs that the judge decides; pairs: all.
    """

    name: str
    accuracy: float
    low: float
    high: float
    decided: float
    pairs: int


def ordered_pairs(
    truth: Tensor, groups: Tensor | None = None, margin: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """(first Long[P], second Long[P], labels [P] in {0, 1}): the pairs that people order.

    truth [N], nan where nobody answered; groups Long[N]: only pairs within a group. Pairs whose
    truths differ by `margin` or less are left out; a label is 1 where the first is better.
    ValueError if no pair is left.
    """
    groups = torch.zeros(len(truth), dtype=torch.long) if groups is None else groups
    if truth.ndim != 1 or groups.shape != truth.shape or margin < 0:
        raise ValueError(
            f"truth and groups must be columns of one length and margin >= 0, got "
            f"{list(truth.shape)}, {list(groups.shape)} and {margin}"
        )
    first, second = (groups[:, None] == groups).triu(1).nonzero().T
    gap = truth[first] - truth[second]
    used = gap.abs() > margin  # nan is never above
    if not used.any():
        raise ValueError("no pair of items has different truths (within a group): nothing to order")
    return first[used], second[used], (gap[used] > 0).double()


def preferences(scores: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """What a judge who gives `scores` [N] prefers in the pairs (first, second) Long[P]: [P], 1 =
    the first, 0 = the second, 1/2 = a tie, nan where a score is nan."""
    return ((scores[first] - scores[second]).sign().double() + 1) / 2


def agreement_row(
    name: str,
    preferences: Tensor,
    labels: Tensor,
    clusters: Tensor,
    generator: torch.Generator,
    draws: int = 1000,
) -> Agreement:
    """How often a judge's verdicts on P pairs are the people's, by a bootstrap over clusters.

    preferences [P] in 0..1: above 1/2 for the first, below for the second; 1/2 and nan are pairs
    that the judge does not decide. labels [P] in {0, 1}; clusters Long[P] (the prompt, the rater)
    are drawn whole. ValueError if nothing is decided.
    """
    if not preferences.shape == labels.shape == clusters.shape or preferences.ndim != 1:
        raise ValueError(
            f"preferences, labels and clusters must be columns of one length, got "
            f"{list(preferences.shape)}, {list(labels.shape)} and {list(clusters.shape)}"
        )
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError("labels must be 0 or 1; leave out the pairs that people do not order")
    side = (preferences - 0.5).sign().nan_to_num()
    decided = side != 0
    if not decided.any():
        raise ValueError(f"{name} decides none of {len(side)} pairs")
    right = ((side > 0) == (labels > 0.5))[decided].double()
    _, own = clusters[decided].unique(return_inverse=True)
    accuracy, low, high = bootstrap_over_items(
        lambda rows: float(right[rows].mean()), own, generator, draws
    )
    return Agreement(name, accuracy, low, high, float(decided.double().mean()), len(side))


def human_row(
    ratings: Tensor,
    groups: Tensor,
    generator: torch.Generator,
    name: str = "one person",
    margin: float = 0.0,
) -> Agreement:
    """The ceiling: every person against the mean of the others, pooled over people.

    ratings [N, R], nan where not answered; groups Long[N], also the clusters. Pairs that the
    others do not order are left out, those in which the person has a tie are not decided. A
    person's pairs are those that both sides answered.
    """
    total, count = ratings.nansum(1), (~ratings.isnan()).sum(1)
    verdicts, labels, clusters = [], [], []
    for rater in range(ratings.shape[1]):
        own = ratings[:, rater]
        rest = (total - own.nan_to_num()) / (count - (~own.isnan()).long())
        first, second, label = ordered_pairs(rest.where(~own.isnan(), torch.nan), groups, margin)
        verdicts.append(preferences(own, first, second))
        labels.append(label)
        clusters.append(groups[first])
    return agreement_row(name, *(torch.cat(x) for x in (verdicts, labels, clusters)), generator)


def agreement_table(rows: Sequence[Agreement]) -> tuple[tuple[str, ...], list[list[str]]]:
    """(header, rows) for `workbook.table`: one line for every judge, people's ceiling among them."""
    header = ("judge", "agrees with people", "95 % interval", "pairs decided", "of")
    return header, [
        [
            row.name,
            f"{row.accuracy:.3f}",
            f"{row.low:.3f} to {row.high:.3f}",
            f"{row.decided:.2f}",
            f"{row.pairs:,}",
        ]
        for row in rows
    ]


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
