"""Self-play rewards: how often a sample wins against recent ones.

Duels hold P(i, j) = 2 Pr[i is preferred to j] - 1 in [-1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlgenkit.records import checked


def win_rates(duels: Tensor, counts: Tensor | None = None) -> Tensor:
    """Mean payoff [..., B] of each row of duels [..., B, M] over its opponents: SPO's reward.

    counts [..., B, M] weigh the opponents (0 leaves one out); None means every opponent once.
    ValueError names the first duel that counts and is not finite.
    """
    _, met = checked(duels, None if counts is None else counts.expand_as(duels) != 0)
    if counts is None:
        return duels.mean(-1)
    total = counts.to(duels).sum(-1)
    if not (total > 0).all():
        raise ValueError("a sample has no opponent: the queue is empty or the group has one member")
    return (duels.where(met.to(duels.device), 0) * counts).sum(-1) / total


def group_win_rates(duels: Tensor) -> Tensor:
    """In-batch self-play: mean payoff [..., B] of each sample against the B - 1 others.

    duels [..., B, B]; the diagonal (a sample against itself) does not count.
    """
    return win_rates(duels, 1 - torch.eye(duels.shape[-1]).to(duels))
