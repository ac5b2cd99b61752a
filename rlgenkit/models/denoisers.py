"""One function of (latents, time) for every supported network, with guidance inside."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .conditioning import Conditioning, concat, unconditional

if TYPE_CHECKING:
    from .policy import Policy

Denoise = Callable[[Tensor, Tensor], Tensor]


def is_distilled(policy: Policy) -> bool:
    """Whether the network takes the guidance scale as an input (LCM, FLUX dev)."""
    config = policy.network.config
    return bool(config.get("guidance_embeds") or config.get("time_cond_proj_dim"))


def denoiser(
    policy: Policy,
    cond: Conditioning,
    guidance: float = 1.0,
    uncond: Conditioning | None = None,
    detach_uncond: bool = False,
) -> Denoise:
    """fn(x [N, C, H, W], t [N] or scalar) -> float32 prediction [N, C, H, W].

    t is in the network's units: sigma * 1000 for flows, the integer timestep otherwise. N must
    be a multiple k B of the B prompts; the prompts then repeat as a whole (a, b, a, b), which is
    how several steps of one batch go through in one call. guidance w != 1: classifier-free
    guidance v_u + w (v_c - v_u) in ONE call of 2N rows (Ho & Salimans 2022, eq. 6, with this
    w = their w + 1); uncond None = the empty prompt; detach_uncond stops gradients through v_u
    (Flow-GRPO). Distilled networks take w as an input and always make one call of N rows.
    """
    if is_distilled(policy):
        if uncond is not None:
            raise ValueError(
                "This network is guidance-distilled: guidance is one of its inputs, so leave out "
                "uncond."
            )
        return _conditional(policy, cond, guidance)
    if guidance == 1.0:
        return _conditional(policy, cond, 1.0)
    uncond = unconditional(policy) if uncond is None else uncond
    if len(cond) % len(uncond):
        raise ValueError(f"uncond has {len(uncond)} rows, which do not divide {len(cond)} prompts.")
    uncond = uncond.repeat(len(cond) // len(uncond))
    # Groups of k repeats need (u, u, ..., c, c, ...): keep both halves apart, join per size.
    both = _conditional(policy, concat([uncond, cond]), 1.0, halves=2)

    def guided(x: Tensor, t: Tensor) -> Tensor:
        t = t.expand(x.shape[0]) if t.ndim == 0 else t
        v_u, v_c = both(torch.cat([x, x]), torch.cat([t, t])).chunk(2)
        if detach_uncond:
            v_u = v_u.detach()
        return v_u + guidance * (v_c - v_u)

    return guided


def _tile(cond: Conditioning, rows: int, halves: int) -> Conditioning:
    """cond repeated to `rows`, each of its `halves` (uncond, cond) kept together."""
    if rows == len(cond):
        return cond
    if rows % len(cond):
        raise ValueError(
            f"The denoiser was built for {len(cond) // halves} prompts and got "
            f"{rows // halves} latents; pass a multiple."
        )
    k, size = rows // len(cond), len(cond) // halves
    parts = [cond.index(slice(i * size, (i + 1) * size)).repeat(k) for i in range(halves)]
    return concat(parts)


def _conditional(policy: Policy, cond: Conditioning, guidance: float, halves: int = 1) -> Denoise:
    """fn(x [N, C, H, W], t [N]) -> float32 [N, C, H, W], one network call, no guidance algebra."""
    known: dict[int, dict[str, Any]] = {}  # by number of rows, so that nothing is repeated per step
    family = policy.pipeline.removesuffix("Pipeline")
    told = {"StableDiffusion3": _sd3, "Flux": _flux, "PixArtAlpha": _pixart, "PixArtSigma": _pixart}
    inputs = told.get(family, _unet)
    channels, height, width = policy.latent_shape
    device, dtype = policy.device, policy.dtype

    def call(x: Tensor, t: Tensor) -> Tensor:
        rows = x.shape[0]
        if rows not in known:
            known[rows] = inputs(policy, _tile(cond, rows, halves).to(device), guidance)
        x, t = x.to(device, dtype), t.to(device)
        t = t.expand(rows) if t.ndim == 0 else t
        if family == "Flux":
            if x.shape[-2:] != (height, width):
                raise ValueError(
                    f"Latents are {tuple(x.shape[-2:])}, the policy was loaded for "
                    f"{(height, width)}; pass size to load_policy."
                )
            x = _flux_pipeline()._pack_latents(x.contiguous(), rows, channels, height, width)
            t = t / 1000  # this class multiplies by 1000 inside
        cast = nullcontext()
        if policy.autocast is not None and device.type == "cuda":
            cast = torch.autocast("cuda", dtype=policy.autocast)
        with cast:
            out = policy.network(x, timestep=t, return_dict=False, **known[rows])[0].float()
        if family == "Flux":
            return _flux_pipeline()._unpack_latents(out, height, width, 1)
        return out[:, :channels]  # PixArt returns a learned variance behind

    return call


def _flux_pipeline() -> Any:
    """The class whose static methods pack latents into tokens of 2x2 cells."""
    from diffusers import FluxPipeline

    return FluxPipeline


def _sd3(policy: Policy, cond: Conditioning, guidance: float) -> dict[str, Any]:
    dtype = policy.dtype
    return {
        "encoder_hidden_states": cond.tokens.to(dtype),
        "pooled_projections": cond.pooled.to(dtype),
    }


def _pixart(policy: Policy, cond: Conditioning, guidance: float) -> dict[str, Any]:
    dtype, size = policy.dtype, {"resolution": None, "aspect_ratio": None}
    if cond.extra is not None:
        extra = cond.extra.to(dtype)
        size = {"resolution": extra[:, :2], "aspect_ratio": extra[:, 2:]}
    return {
        "encoder_hidden_states": cond.tokens.to(dtype),
        "added_cond_kwargs": size,
        # The additive form of the mask, [N, 1, L]; the network would rebuild it at every call.
        "encoder_attention_mask": ((1 - cond.mask.to(dtype)) * -10000.0).unsqueeze(1),
    }


def _unet(policy: Policy, cond: Conditioning, guidance: float) -> dict[str, Any]:
    dtype, told = policy.dtype, {"encoder_hidden_states": cond.tokens.to(policy.dtype)}
    if cond.extra is not None:
        sizes = {"text_embeds": cond.pooled.to(dtype), "time_ids": cond.extra.to(dtype)}
        told["added_cond_kwargs"] = sizes
    if is_distilled(policy):
        from diffusers import LatentConsistencyModelPipeline as LCM

        w, dim = torch.full((len(cond),), guidance - 1.0), policy.network.config.time_cond_proj_dim
        scale = LCM.get_guidance_scale_embedding(None, w, dim)
        told["timestep_cond"] = scale.to(policy.device, dtype)
    return told


def _flux(policy: Policy, cond: Conditioning, guidance: float) -> dict[str, Any]:
    dtype, (_, height, width) = policy.dtype, policy.latent_shape
    tokens, told = cond.tokens.to(dtype), {}
    if policy.network.config.guidance_embeds:
        told["guidance"] = torch.full((len(cond),), guidance, device=tokens.device)
    grid = (1, height // 2, width // 2, tokens.device, dtype)
    return told | {
        "encoder_hidden_states": tokens,
        "pooled_projections": cond.pooled.to(dtype),
        "img_ids": _flux_pipeline()._prepare_latent_image_ids(*grid),
        "txt_ids": tokens.new_zeros(tokens.shape[1], 3),
    }
