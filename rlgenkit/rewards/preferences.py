"""Reward models from comparisons: the Bradley-Terry loss and its linear maximum-likelihood fit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(first: Tensor, second: Tensor, votes: Tensor) -> Tensor:
    """Mean negative log-likelihood (scalar) of votes under P(first wins) = sigmoid(r1 - r2).

    first, second [B]: scores of the two samples; votes [B] in [0,1]: 1 = first preferred, 0.5 = tie
    (bool works). Source: Bradley and Terry 1952; Christiano et al. 2017, eq. 1.
    """
    if not first.shape == second.shape == votes.shape:
        raise ValueError(
            f"scores and votes must have one shape, got {list(first.shape)}, "
            f"{list(second.shape)} and {list(votes.shape)}."
        )
    margin = first - second
    return F.binary_cross_entropy_with_logits(margin, votes.to(margin.dtype))


def fit_bradley_terry(
    first: Tensor, second: Tensor, votes: Tensor, ridge: float = 1e-3, steps: int = 25
) -> Tensor:
    """Weights float64 [D] of the linear reward w . features that explains the votes best.

    first, second [B,D]: features of the two samples; votes [B] in [0,1]. Newton steps on the mean
    loss plus ridge/2 |w|^2, which keeps separable votes finite. A constant feature cancels in the
    difference, so there is no bias. Raises ValueError if it does not settle.
    """
    x, y = (first - second).double(), votes.double()
    if ridge <= 0 or x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(
            f"fit_bradley_terry needs features [B,D], votes [B] and ridge > 0, got "
            f"{list(x.shape)}, {list(y.shape)} and {ridge}."
        )
    weights = x.new_zeros(x.shape[1])
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    for _ in range(steps):
        chance = torch.sigmoid(x @ weights)
        slope = x.T @ (chance - y) / len(x) + ridge * weights
        if slope.norm() < 1e-9:
            return weights
        curve = (x * (chance * (1 - chance))[:, None]).T @ x / len(x) + ridge * eye
        step = torch.linalg.solve(curve, slope)
        weights = weights - step * min(1.0, 5.0 / float(step.norm()))  # far steps overshoot
    slope = x.T @ (torch.sigmoid(x @ weights) - y) / len(x) + ridge * weights
    if slope.norm() > 1e-6:
        raise ValueError("the Bradley-Terry fit did not settle; standardize the features.")
    return weights
