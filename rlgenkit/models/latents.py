"""Between images [B, 3, H, W] in 0..1 and a network's standardized latents [B, C, h, w]."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .policy import Policy


def vae_factor(vae: nn.Module) -> int:
    """Pixels per latent cell along one side (8 for the full-size autoencoders)."""
    blocks = vae.config.get("block_out_channels") or vae.config.get("encoder_block_out_channels")
    return 2 ** (len(blocks) - 1)


def _latent_affine(vae: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, shift), each [1, C, 1, 1] or [1, 1, 1, 1]: vae latent = latent * scale + shift."""
    config = vae.config
    factor = config.get("scaling_factor") or 1.0
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        mean, std = [config.get("shift_factor") or 0.0], [1.0]
    scale = like.new_tensor(std).view(1, -1, 1, 1) / factor
    return scale, like.new_tensor(mean).view(1, -1, 1, 1)


def decode(policy: Policy, latents: Tensor) -> Tensor:
    """Images [B, 3, H, W] float32 in 0..1 of latents [B, C, h, w]; keeps gradients."""
    weight = next(policy.vae.parameters())
    latents = latents.to(weight.device, torch.float32)
    scale, shift = _latent_affine(policy.vae, latents)
    image = policy.vae.decode((latents * scale + shift).to(weight.dtype), return_dict=False)[0]
    return (image.float() / 2 + 0.5).clamp(0, 1)


def encode(policy: Policy, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Latents [B, C, h, w] float32 of images [B, 3, H, W] in 0..1; keeps gradients.

    The mode of a variational encoder, or a draw from it if a generator is given.
    """
    weight = next(policy.vae.parameters())
    pixels = (images.to(weight.device, torch.float32) * 2 - 1).to(weight.dtype)
    out = policy.vae.encode(pixels)
    if hasattr(out, "latent_dist"):
        dist = out.latent_dist
        latents = dist.mode() if generator is None else dist.sample(generator)
    else:
        latents = out.latent
    latents = latents.float()
    scale, shift = _latent_affine(policy.vae, latents)
    return (latents - shift) / scale
