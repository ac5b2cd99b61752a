"""Rejection fine-tuning: which samples are kept.

Only the order of the scores counts, so the rows are the same for every strictly increasing map of
them. Invalid samples (discard rules, failed parses) are never kept; a group without a valid sample
drops out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlgenkit.records import Scores, checked


def best_of_k(
    scores: Tensor | Scores, groups: Tensor, valid: Tensor | None = None, keep: int = 1
) -> Tensor:
    """Rows Long[R] of the `keep` best valid samples of each group, in order of group id, best first
    (RAFT's local ranking: Dong et al. 2023, Algorithm 1).

    Ties go to the earlier row. ValueError for keep < 1 or a valid score that is not finite.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    rows = _falling(scores, groups, valid)
    inside = groups[rows]
    order = inside.argsort(stable=True)  # groups together, falling scores within each
    rows, inside = rows[order], inside[order]
    place = torch.arange(len(rows), device=rows.device)
    new = torch.ones_like(rows, dtype=torch.bool)
    new[1:] = inside[1:] != inside[:-1]
    begin = torch.where(new, place, 0).cummax(0).values
    return rows[place - begin < keep]


def _falling(scores: Tensor | Scores, groups: Tensor, valid: Tensor | None) -> Tensor:
    """The valid rows by falling score; equal scores in the order of rows."""
    values, mask = checked(scores, valid)
    if values.ndim != 1 or groups.shape != values.shape:
        shapes = f"{list(values.shape)} and {list(groups.shape)}"
        raise ValueError(f"scores and groups must both be [B], got {shapes}")
    rows = mask.nonzero()[:, 0]
    return rows[values[rows].argsort(descending=True, stable=True)].to(groups.device)
