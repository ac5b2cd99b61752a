"""Rejection fine-tuning: which samples are kept, and the weights they get.

A selector is a callback fn(scores, groups, valid) -> rows: scores [B] (or [B, M]), groups Long[B],
valid Bool[B] or None; rows Long[R] are the samples to imitate. Only the order of the scores counts,
so a selector returns the same rows for every strictly increasing map of them. Invalid samples
(discard rules, failed parses) are never kept; a group without a valid sample drops out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlgenkit.records import Scores, checked

Selector = Callable[[Tensor, Tensor, Tensor | None], Tensor]


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


def top_fraction(
    scores: Tensor, groups: Tensor, valid: Tensor | None = None, share: float = 0.125
) -> Tensor:
    """Rows Long[R] of the best `share` of all valid samples, whatever their group, best first
    (RAFT's global ranking); at least one. Ties as in `best_of_k`."""
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    rows = _falling(scores, groups, valid)
    return rows[: max(1, round(share * len(rows)))]


def then(first: Selector, second: Selector) -> Selector:
    """The selector that asks `second` about the rows that `first` kept (for RAFT on diffusion models:
    the best of each prompt, then the best share of these winners)."""

    def both(scores: Tensor, groups: Tensor, valid: Tensor | None = None) -> Tensor:
        values = checked(scores, valid)[0]
        rows = first(scores, groups, valid)
        return rows[second(values[rows.cpu()], groups[rows], None)]

    return both


def penalized(
    scores: Tensor, log_probs: Tensor, reference_log_probs: Tensor, beta: float
) -> Tensor:
    """Scores [B] to rank by: r - beta (log p - log p_ref), log-probs [B] of whole samples, detached
    (RAFT's KL variant: Dong et al. 2023, section 3)."""
    if beta < 0:
        raise ValueError(f"beta must be at least 0, got {beta}")
    return scores - beta * (log_probs - reference_log_probs).detach().to(scores)


def selection_weights(rows: Tensor, count: int) -> Tensor:
    """Weights float32 [count], summing to 1, that give every kept row the same share; a row that
    was kept twice counts twice. sum(weights * loss) is then the fine-tuning loss."""
    if len(rows) == 0:
        raise ValueError("no sample was kept: every one was discarded")
    return torch.bincount(rows, minlength=count).float() / len(rows)


def _falling(scores: Tensor | Scores, groups: Tensor, valid: Tensor | None) -> Tensor:
    """The valid rows by falling score; equal scores in the order of rows."""
    values, mask = checked(scores, valid)
    if values.ndim != 1 or groups.shape != values.shape:
        shapes = f"{list(values.shape)} and {list(groups.shape)}"
        raise ValueError(f"scores and groups must both be [B], got {shapes}")
    rows = mask.nonzero()[:, 0]
    return rows[values[rows].argsort(descending=True, stable=True)].to(groups.device)
