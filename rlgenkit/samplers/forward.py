"""Forward process: noised latents and the targets of the denoising losses."""

from __future__ import annotations

from torch import Tensor


def _wide(level: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, ...] to multiply x [B, ...]."""
    return level.to(x).view((-1,) + (1,) * (x.ndim - 1))


def noised_flow(x0: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Rectified flow: x_t = (1-sigma) x0 + sigma noise and its velocity noise - x0; sigma [B] in
    0..1.
    """
    s = _wide(sigma, x0)
    return (1 - s) * x0 + s * noise, noise - x0


def noised_diffusion(
    x0: Tensor, noise: Tensor, alpha_cumprod: Tensor, prediction: str = "epsilon"
) -> tuple[Tensor, Tensor]:
    """Diffusion: x_t = sqrt(abar) x0 + sqrt(1-abar) noise and its target; alpha_cumprod [B] in
    0..1.
    """
    signal, spread = _wide(alpha_cumprod.sqrt(), x0), _wide((1 - alpha_cumprod).sqrt(), x0)
    targets = {"epsilon": noise, "v": signal * noise - spread * x0, "sample": x0}
    if prediction not in targets:
        raise ValueError(f"prediction must be epsilon, v or sample, got {prediction!r}")
    return signal * x0 + spread * noise, targets[prediction]
