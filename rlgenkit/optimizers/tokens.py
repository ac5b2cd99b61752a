"""Policy gradients on tokens: leave-one-out baselines, returns per token, averages under a mask.

Shapes: terms, log-probs and masks [B, T] (samples, tokens); rewards and advantages [B]. The mask is
true on the tokens that the policy chose, its end token included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rlgenkit.records import Scores, checked, group_moments

from .losses import AdvantageLoss, Clip


def rloo_advantages(values: Tensor | Scores, groups: Tensor, valid: Tensor | None = None) -> Tensor:
    """RLOO: r minus the mean of the *other* valid rows of its group, float32 [B].

    Kool et al. 2019; Ahmadian et al. 2024, eq. 8. Equals n/(n-1) times (r - group mean). Invalid
    rows, and rows without others in their group, get 0.
    """
    numbers, mask = checked(values, valid)
    mean, _, count, equal = group_moments(numbers, groups, mask)
    scale = count / (count - 1).clamp(min=1)
    each = torch.where(mask & ~equal, (numbers - mean) * scale, 0.0)
    return each.float().to(values.device)


@dataclass(frozen=True, eq=False)
class Average:
    """A mean over masked terms [B, T] that may be taken in parts: sum of terms / per_row / divisor."""

    per_row: Tensor  # [B, 1]
    divisor: Tensor  # scalar

    def weights(self, mask: Tensor, scale: float = 1.0) -> Tensor:
        """The factor of every term in scale * mean: [B, T], 0 off the mask."""
        each = torch.tensor(float(scale)) / self.divisor.cpu() / self.per_row.cpu()
        return torch.where(mask.cpu(), each, 0.0)

    def total(self, terms: Tensor, rows: Tensor) -> Tensor:
        """Sum over the terms [b, k] of some rows, 0 off the mask, still to be divided by divisor."""
        return (terms / self.per_row[rows].to(terms.device)).T.contiguous().sum()


def average_of(mask: Tensor, average: str | int) -> Average:
    """The Average named as in `masked_mean` over a mask [B, T]; an int L is "constant" of length L."""
    one = torch.ones(len(mask), 1, device=mask.device)
    if average == "token":
        return Average(one, mask.sum())
    if average == "sequence":
        count = mask.sum(1, keepdim=True)
        return Average(count.clamp(min=1).float(), (count > 0).sum())
    if isinstance(average, int) and average >= 1:
        return Average(one, torch.tensor(len(mask) * average))
    raise ValueError(
        f"average must be 'token', 'sequence' or 'constant' with a length >= 1, got {average!r}"
    )


def masked_mean(
    terms: Tensor, mask: Tensor, average: str = "token", length: int | None = None
) -> Tensor:
    """One number from terms [B, T] under the mask.

    "token": every token of the batch counts the same (DAPO). "sequence": mean over each sample's
    tokens, then over samples (GRPO's paper: tokens of long answers count less). "constant": sum
    divided by B * length (Dr. GRPO: no length bias; length is a fixed number, say the longest
    answer allowed). Samples without a token count in no average but "constant".
    """
    if mask.shape != terms.shape or not mask.any():
        raise ValueError(f"the mask must be {list(terms.shape)} and hold at least one token")
    over = average_of(mask, length or 0 if average == "constant" else average)
    wide = torch.promote_types(terms.dtype, torch.float32)
    kept = torch.where(mask, terms, 0.0).to(wide)
    if average == "sequence":
        kept = kept.sum(1) / over.per_row[:, 0]
    return kept.sum() / over.divisor.to(kept.device)


def rewards_to_go(
    rewards: Tensor, mask: Tensor, penalties: Tensor | None = None, beta: float = 0.0
) -> Tensor:
    """Return of each token [B, T], without discount: the reward [B] counts at a sample's last
    token, -beta * penalties [B, T] (log p - log p_ref, detached here) at each one; 0 off the mask.
    """
    device, mask = mask.device, mask.cpu()
    each = torch.zeros(mask.shape, dtype=torch.float64)
    last = mask.shape[1] - 1 - mask.flip(1).long().argmax(1)
    each[torch.arange(len(mask)), last] = rewards.cpu().double()
    if penalties is not None:
        each = each - beta * penalties.detach().cpu().double()
    each = torch.where(mask, each, 0.0)
    return torch.where(mask, each.flip(1).cumsum(1).flip(1), 0.0).float().to(device)


def whiten(values: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """(values - mean) / (population std + eps) over the masked entries [B, T]; 0 elsewhere."""
    numbers, kept = checked(values, mask)
    known = numbers[kept]
    each = (numbers - known.mean()) / (known.std(correction=0) + eps)
    return torch.where(kept, each, 0.0).float().to(values.device)


def token_policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: Clip | None = 0.2,
    average: str = "token",
    length: int | None = None,
) -> Tensor:
    """Clipped policy loss (scalar); advantages [B], or [B, T] where tokens differ.

    clip None is REINFORCE and right on the policy's own samples only. Every token's ratio is a term
    of its own. Off the mask nothing enters, not even nan.
    """
    new, old = (torch.where(mask, x, 0.0) for x in (log_probs, old_log_probs.detach()))
    terms = AdvantageLoss(advantages, clip)(new, old, torch.arange(len(mask)))
    return masked_mean(terms, mask, average, length)


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 0.1,
) -> Tensor:
    """DPO (Rafailov et al. 2023, eq. 7): scalar, from sums of log-probs [B] of whole answers."""
    margin = (chosen - rejected) - (reference_chosen - reference_rejected)
    return -F.logsigmoid(beta * margin).mean()
