"""Pareto selection: who is beaten by nobody, front by front, and the volume that a set dominates.

Scores are [N, M]: N samples, M objectives, larger is better in each. i dominates j when it is at
least as good everywhere and better somewhere; equal rows do not dominate each other. Only the order
within each objective counts, so fronts do not change under increasing maps of single objectives.
Samples compete within their group (one prompt), never across groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def dominance(scores: Tensor, groups: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
    """Bool[N, N]: entry [i, j] says that i dominates j; N^2 M comparisons.

    groups Long[N] (None: one group); valid Bool[N]: an invalid row neither dominates nor is
    dominated, whatever it holds. ValueError for a valid row that is not finite.
    """
    mask = _usable(scores, valid)
    shape = (len(scores), len(scores))
    no_worse = torch.ones(shape, dtype=torch.bool, device=scores.device)
    better = torch.zeros_like(no_worse)
    for column in scores.detach().unbind(1):
        no_worse &= column[:, None] >= column[None]
        better |= column[:, None] > column[None]
    found = no_worse & better & mask[:, None] & mask[None]
    if groups is None:
        return found
    if groups.shape != mask.shape:
        raise ValueError(f"groups must be [{len(mask)}], got {list(groups.shape)}")
    return found & (groups[:, None] == groups[None]).to(found.device)


def pareto_mask(
    scores: Tensor, groups: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    """Bool[N]: rows of scores [N, M] that no row of their group dominates; invalid rows are False.

    Parrot (Lee et al. 2024, Algorithm 1): the non-dominated set of a batch. Ties all stay.
    """
    beaten = dominance(scores, groups, valid).any(0)
    return ~beaten & _usable(scores, valid)


def pareto_weights(
    scores: Tensor, groups: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    """float32 [N], sum 1: 1/n(P) on the n(P) rows of a group's front, averaged over the groups.

    The factor in front of Parrot's policy gradient; dominated and invalid rows get exactly 0. A
    group without a valid row counts for nothing.
    """
    front = pareto_mask(scores, groups, valid).cpu().double()  # Apple's GPUs have no float64
    ids = torch.zeros(len(front), dtype=torch.long) if groups is None else groups.cpu()
    index = ids.unique(return_inverse=True)[1]
    size = torch.zeros(int(index.max()) + 1, dtype=torch.float64).index_add_(0, index, front)
    share = front / (size[index].clamp(min=1) * (size > 0).sum().clamp(min=1))
    return share.float().to(scores.device)


def hypervolume(
    scores: Tensor, reference: Tensor | Sequence[float], valid: Tensor | None = None
) -> float:
    """Volume of the points that some row of scores [N, M] dominates above reference [M]; exact.

    M = 1, 2 or 3 objectives. Coordinates below the reference count as the reference, so such a row
    adds nothing. Unlike fronts it depends on units: standardize or rank the objectives first.
    O(N log N) for M = 2, O(N^2) for M = 3 (a sweep over slabs of the last objective).
    """
    mask = _usable(scores, valid)
    corner = torch.as_tensor(reference).cpu().double()
    if corner.shape != (scores.shape[1],) or not torch.isfinite(corner).all():
        raise ValueError(f"reference must be {scores.shape[1]} finite numbers, got {reference}")
    if len(corner) > 3:
        raise ValueError(f"hypervolume is exact for 1, 2 or 3 objectives, got {len(corner)}")
    x = (scores.detach()[mask].cpu().double() - corner).clamp(min=0)
    if len(x) == 0:
        return 0.0
    if len(corner) == 1:
        return float(x.max())
    if len(corner) == 2:
        return float(_area(*x.unbind(1)))
    height, order = x[:, 2].sort(descending=True)
    slabs = height - torch.cat([height[1:], height.new_zeros(1)])
    first, second = x[order, 0], x[order, 1]
    reached = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    return float((_area(first.expand(len(x), -1), second * reached) * slabs).sum())


def _area(x: Tensor, y: Tensor) -> Tensor:
    """Area [...] of the union of the boxes [0, x] x [0, y], for x, y [..., N] >= 0."""
    x, order = x.sort(-1, descending=True)
    tallest = y.gather(-1, order).cummax(-1).values
    widths = x - torch.cat([x[..., 1:], torch.zeros_like(x[..., :1])], -1)
    return (widths * tallest).sum(-1)


def _usable(scores: Tensor, valid: Tensor | None) -> Tensor:
    """Bool[N]: the rows that compete; ValueError names a row that should not."""
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores must be [N, M] with N, M >= 1, got {list(scores.shape)}")
    mask = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    if valid is not None:
        if valid.shape != mask.shape:
            raise ValueError(f"valid must be [{len(mask)}], got {list(valid.shape)}")
        mask = valid.to(scores.device).bool()
    bad = mask & ~torch.isfinite(scores.detach()).all(1)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(f"scores of sample {row} are {scores[row].tolist()}: mark it as invalid")
    return mask
