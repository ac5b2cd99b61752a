"""Rewards of a policy that states a score for each picture of a batch: how far off, and in what order.

Shapes: scores [N, K], K answers to each of N pictures, in [0, 1]; truth [N], people's mean scores;
valid Bool[N, K], whether an answer could be read. All rewards are [N, K], without gradient, and 0 for
an unreadable answer: a policy's own slip is its fault, it is not dropped as a judge's would be.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 1e-6  # keeps square roots away from 0, and the error reward above it


def _checked(scores: Tensor, truth: Tensor, valid: Tensor | None) -> Tensor:
    valid = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid
    if scores.ndim != 2 or truth.shape != scores.shape[:1] or valid.shape != scores.shape:
        raise ValueError(
            f"scores [N, K] need truth [N] and valid [N, K], got {list(scores.shape)}, "
            f"{list(truth.shape)} and {list(valid.shape)}"
        )
    return valid


def error_reward(
    scores: Tensor, truth: Tensor, sigma: float = 0.1, valid: Tensor | None = None
) -> Tensor:
    """exp(-((score - truth) / sigma)^2 / 2) + 1e-5: near 1 for a calibrated score (RAPO, absolute part)."""
    valid = _checked(scores, truth, valid)
    gap = (scores.detach() - truth[:, None]) / sigma
    return torch.where(valid, torch.exp(-0.5 * gap.square()) + 1e-5, 0.0)


def step_reward(
    scores: Tensor, truth: Tensor, near: float = 0.07, far: float = 0.1, valid: Tensor | None = None
) -> Tensor:
    """1 if the score is closer than `near`, 1/2 if closer than `far`, else 0 (the binary baseline)."""
    gap = (scores.detach() - truth[:, None]).abs()
    return torch.where(_checked(scores, truth, valid), 0.5 * (gap < near) + 0.5 * (gap < far), 0.0)


def opinion_moments(scores: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(mean [N], unbiased variance [N], 0 where fewer than two can be read, count [N]) of the readable scores."""
    valid = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid
    count = valid.sum(1)
    mean = torch.where(valid, scores, 0.0).sum(1) / count.clamp(min=1)
    square = torch.where(valid, (scores - mean[:, None]).square(), 0.0).sum(1)
    return mean, square / (count - 1).clamp(min=1), count


def rank_reward(
    scores: Tensor, truth: Tensor, gamma: float = 1e-3, valid: Tensor | None = None
) -> Tensor:
    """How well each single score orders its picture against the others' mean scores, in [0, 1].

    p = Phi((score_ik - mean_j) / sqrt(var_i + var_j + gamma)) is the chance that i is better than j,
    g = 1 if truth_i >= truth_j; the reward is the mean over j != i of the fidelity
    sqrt(p g + e) + sqrt((1 - p)(1 - g) + e) (RAPO, relative part; VisualQuality-R1). Pictures without
    a readable score are compared with none.
    """
    valid = _checked(scores, truth, valid)
    mean, variance, count = opinion_moments(scores.detach(), valid)
    width = (variance[:, None] + variance[None] + gamma).sqrt()
    chance = torch.special.ndtr((scores.detach()[:, :, None] - mean) / width[:, None])  # [N, K, N]
    better = (truth[:, None] >= truth[None]).to(chance)[:, None]
    fidelity = (chance * better + FLOOR).sqrt() + ((1 - chance) * (1 - better) + FLOOR).sqrt()
    others = ((count > 0) & ~torch.eye(len(truth), dtype=torch.bool, device=truth.device))[:, None]
    mean_fidelity = torch.where(others, fidelity, 0.0).sum(2) / others.sum(2).clamp(min=1)
    return torch.where(valid, mean_fidelity, 0.0)
