"""How far a policy has moved from another one, as functions of tensors: for policies and updates."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0  # e^20 is far beyond any clip range, and finite in every product
ANCHORS = ("mean", "mean_dt", "exact", "velocity")


def kl_k3(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """q/p - 1 - log(q/p) per sample of p: unbiased and never negative (Schulman's k3).

    By expm1: the naive form exp(r) - 1 - r has the wrong sign near r = 1e-6 in float32. Where the
    difference itself cancels (|r| < 1e-3), the series r^2/2 + r^3/6 is exact to rounding. r is
    bounded by 20 first: a token that the policy has all but lost has no gradient, not nan.
    """
    r = (reference_log_probs - log_probs).clamp(max=MAX_LOG_RATIO)
    series = r * r * (0.5 + r / 6)
    return torch.where(r.abs() < 1e-3, series, torch.expm1(r) - r)


def anchor_weights(form: str, std: Tensor, dt: Tensor, b: Tensor, dimension: int) -> Tensor:
    """Factor [N] of mean_j (mu - mu_ref)^2 that makes it the named anchor for every step.

    "mean": 1/(2 s^2) with s = std/sqrt(dt), the released Flow-GRPO form without dt. "mean_dt": 1/(2
    std^2), the exact KL per element. "exact": dimension/(2 std^2), the KL of the step's Gaussians.
    "velocity": 1/b^2, the mean square of the difference of predictions. std, dt, b [N] are columns
    of the sampler's table. Deterministic steps (std 0) have no KL: their factor is nan, except
    "velocity". Float64, on the CPU.
    """
    std, dt, b = (column.cpu().double() for column in (std, dt, b))
    if form not in ANCHORS:
        raise ValueError(f"anchor must be one of {', '.join(ANCHORS)}, got {form!r}")
    if form == "velocity":
        return 1 / b**2
    per_element = 0.5 / torch.where(std > 0, std**2, torch.nan)
    if form == "mean":
        return per_element * dt
    return per_element * (dimension if form == "exact" else 1)


def anchor_terms(means: Tensor, reference_means: Tensor, weights: Tensor) -> Tensor:
    """weights[k] * mean_j (mu - mu_ref)^2: [K, B] from means [K, B, ...] and weights [K]."""
    gap = (means - reference_means.detach()).flatten(2).square().mean(2)
    return gap * weights.to(gap.dtype).to(gap.device).view(-1, 1)
