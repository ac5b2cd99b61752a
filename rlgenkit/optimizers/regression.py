"""Updates by denoising errors: RWR, best of a group, preferences (Diffusion-DPO and its kin), and
the forward-process loss of DiffusionNFT.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlgenkit.records import Scores, checked


def rwr_weights(
    values: Tensor | Scores,
    temperature: float,
    groups: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Reward-weighted regression: softmax(r / temperature) [B], summing to 1 (DDPO, section 4.2).

    With groups Long[B] the softmax is taken inside each group and every group gets the same total.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    numbers, mask = checked(values, valid)
    if not mask.any():
        raise ValueError("rwr_weights needs at least one valid reward")
    logits = torch.where(mask, numbers / temperature, -torch.inf)
    groups = torch.zeros(len(mask)) if groups is None else groups.cpu()
    weights, ids = torch.zeros_like(logits), groups[mask].unique()
    for g in ids:
        inside = groups == g
        weights[inside] = logits[inside].softmax(0) / len(ids)
    return weights.float().to(values.device)


def weighted_denoising_loss(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_i mean_j (prediction - target)^2: scalar from [B, ...], [B, ...] and weights [B]."""
    return (weights * (prediction.float() - target.float()).flatten(1).square().mean(1)).sum()


def preference_denoising_terms(
    winner: Tensor, loser: Tensor, beta: float, sign: Tensor | float = 1.0
) -> Tensor:
    """-log sigmoid(-beta (winner - sign * loser)), per pair [B]: minimize the mean.

    winner, loser [B]: denoising error (mean over elements) of the policy less that of the frozen
    reference, at the same time level and noise. sign 1 is Diffusion-DPO (arXiv 2311.12908, eq. 14,
    whose factor T w_t is part of beta > 0); -1 learns from the loser, too; 0 leaves it out (SePPO,
    arXiv 2410.05255). No gradient flows through sign.
    """
    if not beta > 0:
        raise ValueError(f"beta must be > 0, got {beta}")
    sign = torch.as_tensor(sign, dtype=torch.float32, device=winner.device).detach()
    return -torch.nn.functional.logsigmoid(-beta * (winner.float() - sign * loser.float()))


def nft_terms(
    velocity: Tensor,
    old_velocity: Tensor,
    target: Tensor,
    optimality: Tensor,
    strength: float = 1.0,
    sigma: Tensor | None = None,
) -> Tensor:
    """DiffusionNFT (arXiv 2509.16117), per sample [B], on forward-noised latents.

    r |v+ - v|^2 + (1-r) |v- - v|^2 (mean over elements) with v+ = (1-b) v_old + b v_theta and v- =
    (1+b) v_old - b v_theta; optimality r [B] in 0..1, strength b > 0. Its minimum over v_theta is
    v_old + (2 r - 1)(v - v_old)/b for a fixed target v. sigma [B]: the released form instead, in
    clean-latent space (error sigma |v+- - v|), every branch divided by its detached mean absolute
    error, and all by b.
    """
    if not strength > 0:
        raise ValueError(f"strength must be > 0, got {strength}")
    old = old_velocity.detach().float()
    positive = (1 - strength) * old + strength * velocity.float()
    negative = (1 + strength) * old - strength * velocity.float()
    errors = []
    for branch in (positive, negative):
        gap = (branch - target.float()).flatten(1)
        if sigma is None:
            errors.append(gap.square().mean(1))
            continue
        gap = gap * sigma.to(gap)[:, None]
        scale = gap.detach().abs().mean(1).clamp(min=1e-5)
        errors.append(gap.square().mean(1) / scale / strength)
    return optimality * errors[0] + (1 - optimality) * errors[1]
