"""Policy-gradient losses, divergence estimators and anchors, as functions of tensors.

Log-probs have shape [K, B] (steps, samples) and advantages [B] or [K, B]; "terms" are not yet
averaged, so that a caller may split a batch and still divide by the full count.
"""

from __future__ import annotations

import torch
from torch import Tensor

Clip = float | tuple[float, float]

ANCHORS = ("mean", "mean_dt", "exact", "velocity")


def _bounds(clip: Clip) -> tuple[float, float]:
    low, high = clip if isinstance(clip, tuple) else (clip, clip)
    if not (0 < low < 1 and high > 0):
        raise ValueError(f"clip must be positive (and its lower side < 1), got {clip}")
    return low, high


def reinforce_terms(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Score-function terms -A log p (DDPO-SF): minimize their mean."""
    return -advantages * log_probs


def ppo_clip_terms(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip: Clip
) -> Tensor:
    """max(-A rho, -A clip(rho, 1-low, 1+high)) per step and sample, rho = exp(log p - log p_old).

    DDPO-IS, section 4.3: each step is a term of its own, without a product over steps. The clip
    range belongs to the log-prob's reduction: with "mean" the ratio is the D-th root of the true
    one.
    """
    low, high = _bounds(clip)
    ratio = (log_probs - old_log_probs).exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high))


def reinforce_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Mean of reinforce_terms: scalar."""
    return reinforce_terms(log_probs, advantages).mean()


def ppo_clip_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip: Clip
) -> Tensor:
    """Mean of ppo_clip_terms: scalar."""
    return ppo_clip_terms(log_probs, old_log_probs, advantages, clip).mean()


def grpo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    clip: Clip,
    penalty: Tensor | None = None,
    beta: float = 0.0,
) -> Tensor:
    """Clipped loss plus beta times the mean anchor penalty [K, B] (Flow-GRPO): scalar."""
    loss = ppo_clip_loss(log_probs, old_log_probs, advantages, clip)
    return loss if penalty is None else loss + beta * penalty.mean()


def ratio_stats(log_probs: Tensor, old_log_probs: Tensor, clip: Clip | None) -> dict[str, Tensor]:
    """Sums and maxima over the given terms (scalars): for the monitors of an update."""
    change = (log_probs - old_log_probs).detach().double()
    ratio = change.exp()
    low, high = (torch.inf, torch.inf) if clip is None else _bounds(clip)
    clipped = (ratio < 1 - low) | (ratio > 1 + high)
    return {
        "clipped": clipped.sum(),
        "square": (0.5 * change**2).sum(),
        "ratio": ratio.sum(),
        "deviation": (ratio - 1).abs().max(),
    }


def kl_k1(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """log p - log q per sample of p: unbiased for KL(p || q), of either sign."""
    return log_probs - reference_log_probs


def kl_k2(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """(log p - log q)^2 / 2 per sample of p: biased, never negative."""
    return 0.5 * (log_probs - reference_log_probs) ** 2


def kl_k3(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """q/p - 1 - log(q/p) per sample of p: unbiased and never negative (Schulman's k3).

    By expm1: the naive form exp(r) - 1 - r has the wrong sign near r = 1e-6 in float32. Where the
    difference itself cancels (|r| < 1e-3), the series r^2/2 + r^3/6 is exact to rounding.
    """
    r = reference_log_probs - log_probs
    series = r * r * (0.5 + r / 6)
    return torch.where(r.abs() < 1e-3, series, torch.expm1(r) - r)


def anchor_weights(form: str, std: Tensor, dt: Tensor, b: Tensor, dimension: int) -> Tensor:
    """Factor [N] of mean_j (mu - mu_ref)^2 that makes it the named anchor for every step.

    "mean": 1/(2 s^2) with s = std/sqrt(dt), the released Flow-GRPO form without dt. "mean_dt": 1/(2
    std^2), the exact KL per element. "exact": dimension/(2 std^2), the KL of the step's Gaussians.
    "velocity": 1/b^2, the mean square of the difference of predictions. std, dt, b [N] are columns
    of the sampler's table. Deterministic steps (std 0) have no KL: their factor is nan, except
    "velocity".
    """
    if form not in ANCHORS:
        raise ValueError(f"anchor must be one of {', '.join(ANCHORS)}, got {form!r}")
    if form == "velocity":
        return 1 / b.double() ** 2
    variance = torch.where(std > 0, std.double() ** 2, torch.nan)
    per_element = 0.5 / variance
    if form == "mean":
        return per_element * dt.double()
    return per_element * (dimension if form == "exact" else 1)


def anchor_terms(means: Tensor, reference_means: Tensor, weights: Tensor) -> Tensor:
    """weights[k] * mean_j (mu - mu_ref)^2: [K, B] from means [K, B, ...] and weights [K]."""
    gap = (means - reference_means.detach()).flatten(2).square().mean(2)
    return gap * weights.to(gap).view(-1, 1)


def velocity_mse(prediction: Tensor, reference: Tensor) -> Tensor:
    """Mean square difference of two predictions [B, ...] -> [B]; the reference is detached."""
    return (prediction - reference.detach()).flatten(1).square().mean(1)
