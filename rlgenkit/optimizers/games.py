"""Self-play rewards: how often a sample wins against recent ones.

Duels hold P(i, j) = 2 Pr[i is preferred to j] - 1 in [-1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor


def win_rates(duels: Tensor, counts: Tensor | None = None) -> Tensor:
    """Mean payoff [..., B] of each row of duels [..., B, M] over its opponents: SPO's reward.

    counts [..., B, M] weigh the opponents (0 leaves one out); None means every opponent once.
    """
    if counts is None:
        return duels.mean(-1)
    total = counts.to(duels).sum(-1)
    if (total <= 0).any():
        raise ValueError("a sample has no opponent: the queue is empty or the group has one member")
    return (duels * counts).sum(-1) / total


def group_win_rates(duels: Tensor) -> Tensor:
    """In-batch self-play: mean payoff [..., B] of each sample against the B - 1 others.

    duels [..., B, B]; the diagonal (a sample against itself) does not count.
    """
    size = duels.shape[-1]
    return win_rates(duels, 1 - torch.eye(size, dtype=duels.dtype, device=duels.device))
