"""Several scores of the same batch become one.

Each function takes K `Scores` of B samples. A sample is valid in the result if it is valid in
every part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlgenkit.records import group_moments, standardized

from .batch import Scores, scored


def weighted_sum(parts: Sequence[Scores], weights: Sequence[float]) -> Scores:
    """sum_k w_k r_k. With raw rewards the spread decides, see `effective_weights`."""
    values, valid = _stack(parts)
    total = torch.einsum("k,kb->b", _weights(parts, weights, values), values)
    return scored(total, valid.all(0))


def standardized_sum(parts: Sequence[Scores], weights: Sequence[float], groups: Tensor) -> Scores:
    """sum_k w_k z_k, z_k standardized over the valid samples of the group.

    groups Long[B]. Equal weights then mean equal say, whatever the units (MixGRPO adds
    advantages in this way).
    """
    return weighted_sum([standardize(scores, groups) for scores in parts], weights)


def product(parts: Sequence[Scores]) -> Scores:
    """prod_k r_k of nonnegative scores: one part at 0 vetoes. ValueError on negative values."""
    values, valid = _stack(parts)
    if (values < 0).any():
        raise ValueError("a product needs scores >= 0; shift them or use a sum or a minimum.")
    return scored(values.prod(0), valid.all(0))


def minimum(parts: Sequence[Scores]) -> Scores:
    """min_k r_k: the weakest part decides; only sensible for scores in one unit."""
    values, valid = _stack(parts)
    return scored(values.amin(0), valid.all(0))


def standardize(scores: Scores, groups: Tensor, eps: float = 1e-4) -> Scores:
    """(r - mean) / (std + eps) over the valid samples of each group.

    groups Long[B]; statistics in float64, population std. A group without spread (or with one
    valid sample) gets exactly 0. Invalid samples stay invalid and enter no statistic.
    """
    return scored(standardized(scores, groups, eps).to(scores.device, torch.float32), scores.valid)


def effective_weights(parts: Sequence[Scores], weights: Sequence[float], groups: Tensor) -> Tensor:
    """Share [K] of each part in the spread that the advantages see; sums to 1.

    |w_k| times the root mean square over groups of the within-group std. A raw sum of rewards
    with spreads 0.02 and 0.5 has shares 0.04 and 0.96 at equal weights. All 0 without spread.
    """
    values, _ = _stack(parts)
    spread = []
    for part in parts:
        mask, std = part.valid.cpu(), group_moments(part, groups)[1]
        spread.append(((std**2 * mask).sum() / mask.sum().clamp_min(1)).sqrt())
    say = torch.stack(spread) * _weights(parts, weights, values).abs().cpu().double()
    return (say / say.sum().clamp_min(1e-12)).float()


def _stack(parts: Sequence[Scores]) -> tuple[Tensor, Tensor]:
    if not parts:
        raise ValueError("a combination needs at least one score.")
    if len({len(scores.values) for scores in parts}) > 1:
        sizes = [len(scores.values) for scores in parts]
        raise ValueError(f"all parts must score the same batch, got sizes {sizes}.")
    return torch.stack([s.values for s in parts]), torch.stack([s.valid for s in parts])


def _weights(parts: Sequence[Scores], weights: Sequence[float], like: Tensor) -> Tensor:
    if len(weights) != len(parts):
        raise ValueError(f"{len(parts)} scores need {len(parts)} weights, got {len(weights)}.")
    result = torch.tensor(list(weights), dtype=like.dtype)
    if not result.isfinite().all() or not result.any():
        raise ValueError(f"weights must be finite and not all 0, got {list(weights)}.")
    return result.to(like.device)
