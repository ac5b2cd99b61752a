"""Learning from comparisons: pairwise cross-entropy and linear rewards fitted to it.

Differences are always r(chosen) - r(rejected), where "chosen" is what the label says, right or
wrong.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pairwise_ce(
    delta: Tensor,
    target: Tensor | float = 1.0,
    margin: Tensor | float = 0.0,
    smoothing: Tensor | float = 0.0,
) -> Tensor:
    """Cross-entropy per pair [..., B] of P(chosen wins) = sigmoid(delta - margin).

    delta [..., B] score differences; target in [0,1] is the label itself: 1 = sure, 0.5 = tie,
    between = share of raters (soft label); margin (score units, detached) asks for a lead before
    the loss is content; smoothing in [0,0.5] is the believed chance that the label is wrong, it
    turns a target t into (1 - a) t + a (1 - t). Arguments broadcast. Source: Bradley and Terry
    1952; margin and smoothing after Wang et al. 2024 (2401.06080), section 2.
    """
    target, margin, smoothing = (
        torch.as_tensor(v, dtype=delta.dtype, device=delta.device).detach()
        for v in (target, margin, smoothing)
    )
    if bool((target < 0).any() | (target > 1).any()):
        raise ValueError("targets must lie in [0,1]: 1 = chosen preferred, 0.5 = tie.")
    if bool((smoothing < 0).any() | (smoothing > 0.5).any()):
        raise ValueError("smoothing must lie in [0,0.5]; flip a label that is more likely wrong.")
    goal = (1 - smoothing) * target + smoothing * (1 - target)
    gap = delta - margin
    return -(goal * F.logsigmoid(gap) + (1 - goal) * F.logsigmoid(-gap))


def bradley_terry_loss(first: Tensor, second: Tensor, votes: Tensor) -> Tensor:
    """Mean `pairwise_ce` (scalar) of votes under P(first wins) = sigmoid(r1 - r2).

    first, second [B]: scores of the two samples; votes [B] in [0,1]: 1 = first preferred, 0.5 = tie
    (bool works). Source: Bradley and Terry 1952; Christiano et al. 2017, eq. 1.
    """
    if not first.shape == second.shape == votes.shape:
        raise ValueError(
            f"scores and votes must have one shape, got {list(first.shape)}, "
            f"{list(second.shape)} and {list(votes.shape)}."
        )
    return pairwise_ce(first - second, votes).mean()


def fit_linear_pairs(
    differences: Tensor,
    targets: Tensor,
    precision: float = 1.0,
    weights: Tensor | None = None,
    steps: int = 12,
) -> Tensor:
    """Weights float64 [..., D], on the CPU, of linear rewards fitted to pairs; many fits in one call.

    differences [...,N,D] = chosen - rejected features; targets [...,N] in [0,1]; precision > 0 of
    the Gaussian prior on each weight (in features of unit spread); weights [...,N] >= 0 of the
    pairs, 0 leaves a pair out. Newton steps on sum_i w_i CE_i + precision/2 |w|^2, halved where
    the loss would rise.
    """
    x, y = differences.cpu().double(), targets.cpu().double()  # Apple's GPUs have no float64
    if precision <= 0 or x.ndim < 2 or y.shape != x.shape[:-1] or not y.shape[-1]:
        raise ValueError(
            f"fit_linear_pairs needs differences [...,N,D], targets [...,N], N >= 1 "
            f"and precision > 0, got {list(x.shape)}, {list(y.shape)} and {precision}."
        )
    if not bool(x.isfinite().all() and y.isfinite().all()):
        raise ValueError("a difference or target of the pairs is not finite; leave such pairs out.")
    share = torch.ones_like(y) if weights is None else weights.cpu().double().expand(y.shape)
    w = x.new_zeros(*x.shape[:-2], x.shape[-1])
    eye = precision * torch.eye(x.shape[-1], dtype=x.dtype)

    def loss(w: Tensor) -> Tensor:
        terms = share * pairwise_ce((x @ w[..., None])[..., 0], y)
        return terms.sum(-1) + precision / 2 * w.square().sum(-1)

    for _ in range(steps):
        chance = torch.sigmoid((x @ w[..., None])[..., 0])
        slope = ((share * (chance - y))[..., None] * x).sum(-2) + precision * w
        curve = x.mT @ ((share * chance * (1 - chance))[..., None] * x) + eye
        step = torch.linalg.solve(curve, slope)
        now, size = loss(w), w.new_ones(w.shape[:-1])
        for _ in range(8):
            worse = loss(w - size[..., None] * step) > now + 1e-12 * now.abs()
            if not bool(worse.any()):
                break
            size = torch.where(worse, size / 2, size)
        w = w - size[..., None] * step
        if float(step.abs().max()) < 1e-7:
            break
    return w


def fit_bradley_terry(
    first: Tensor, second: Tensor, votes: Tensor, ridge: float = 1e-3, steps: int = 25
) -> Tensor:
    """Weights float64 [D] of the linear reward w . features that explains the votes best.

    first, second [B,D]: features of the two samples; votes [B] in [0,1]. `fit_linear_pairs` on the
    mean loss plus ridge/2 |w|^2, which keeps separable votes finite. A constant feature cancels in
    the difference, so there is no bias. Raises ValueError if there is no vote, a number is not
    finite, or the fit does not settle.
    """
    x, y = (first - second).cpu().double(), votes.cpu().double()
    if ridge <= 0 or x.ndim != 2 or not len(x) or y.shape != x.shape[:1]:
        raise ValueError(
            f"fit_bradley_terry needs features [B,D], votes [B] with B >= 1 and "
            f"ridge > 0, got {list(x.shape)}, {list(y.shape)} and {ridge}."
        )
    w = fit_linear_pairs(x, y, ridge * len(x), steps=steps)
    slope = x.T @ (torch.sigmoid(x @ w) - y) / len(x) + ridge * w
    if float(slope.norm()) > 1e-6:
        raise ValueError("the Bradley-Terry fit did not settle; standardize the features.")
    return w


def verdicts(delta: Tensor, targets: Tensor, tie: float = 1e-9) -> Tensor:
    """1.0 where the sign of delta [...] is that of the target (> 0.5), 0.0 where not; 0.5 where
    |delta| < tie or the target is 0.5."""
    said = torch.where(delta.abs() < tie, 0, delta.sign())
    return (0.5 + 0.5 * said * (2 * targets - 1).sign()).cpu().double()
