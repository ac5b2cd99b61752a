"""Policy-gradient losses as functions of tensors.

"Terms" are not yet averaged, so that a caller may split a batch and still divide by the full count.
A loss of `policy_update` is any function (new [b, T], old [b, T], rows Long[b]) -> terms [b, T].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Shared with the policies, which measure themselves against a reference.
from rlgenkit.divergences import MAX_LOG_RATIO, anchor_terms, anchor_weights, kl_k3  # noqa: F401

Clip = float | tuple[float, float]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def _bounds(clip: Clip) -> tuple[float, float]:
    low, high = clip if isinstance(clip, tuple) else (clip, clip)
    if not (0 < low < 1 and high > 0):
        raise ValueError(f"clip must be positive (and its lower side < 1), got {clip}")
    return low, high


def bounded_ratio(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """exp(log p - log p_old), the log-ratio held within +-20: outside, its gradient is 0."""
    return (log_probs - old_log_probs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


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
    ratio = bounded_ratio(log_probs, old_log_probs)
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high))


@dataclass(frozen=True, eq=False)
class AdvantageLoss:
    """A loss over the rows of one rollout: advantages [B] or [B, T]; clip None is REINFORCE."""

    advantages: Tensor
    clip: Clip | None = None

    def __call__(self, new: Tensor, old: Tensor, rows: Tensor) -> Tensor:
        """Terms [b, T] of the rows Long[b]."""
        some = self.advantages[rows.to(self.advantages.device)].to(new.device)
        some = some[:, None] if some.ndim == 1 else some
        if self.clip is None:
            return reinforce_terms(new, some)
        return ppo_clip_terms(new, old, some, self.clip)


def clipped_ratio(advantages: Tensor, clip: Clip) -> AdvantageLoss:
    """The clipped loss of PPO and GRPO, a term a choice; advantages [B], or [B, T] by choice.

    clip: half-width of the range, or (below, above).
    """
    _bounds(clip)
    return AdvantageLoss(advantages, clip)


def reinforce(advantages: Tensor) -> AdvantageLoss:
    """-A log p, a term a choice: right for one update on the policy's own samples only."""
    return AdvantageLoss(advantages)


def reinforce_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Mean of reinforce_terms: scalar."""
    return reinforce_terms(log_probs, advantages).mean()


def ppo_clip_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip: Clip
) -> Tensor:
    """Mean of ppo_clip_terms: scalar."""
    return ppo_clip_terms(log_probs, old_log_probs, advantages, clip).mean()


def ratio_stats(log_probs: Tensor, old_log_probs: Tensor, clip: Clip | None) -> dict[str, Tensor]:
    """Sums and maxima over the given terms (scalars, CPU): for the monitors of an update."""
    change = (log_probs - old_log_probs).detach().cpu().double()
    ratio = bounded_ratio(change, torch.zeros_like(change))
    low, high = (torch.inf, torch.inf) if clip is None else _bounds(clip)
    clipped = (ratio < 1 - low) | (ratio > 1 + high)
    return {
        "clip_fraction": clipped.sum(),
        "approx_kl": (0.5 * change**2).sum(),
        "ratio_mean": ratio.sum(),
        "ratio_deviation": (ratio - 1).abs().max(),
    }


def velocity_mse(prediction: Tensor, reference: Tensor) -> Tensor:
    """Mean square difference of two predictions [B, ...] -> [B]; the reference is detached."""
    return (prediction.float() - reference.detach().float()).flatten(1).square().mean(1)
