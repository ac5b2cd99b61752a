"""One function of (latents, time) for every supported network, with guidance inside."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

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
    calls: dict[int, Denoise] = {}  # by number of rows, so that nothing is repeated per step
    prepare = {
        "StableDiffusion3Pipeline": _sd3_call,
        "FluxPipeline": _flux_call,
        "PixArtAlphaPipeline": _pixart_call,
    }.get(policy.pipeline, _unet_call)
    device, dtype = policy.device, policy.dtype

    def call(x: Tensor, t: Tensor) -> Tensor:
        rows = x.shape[0]
        if rows not in calls:
            calls[rows] = prepare(policy, _tile(cond, rows, halves).to(device), guidance)
        t = t.to(device)
        t = t.expand(rows) if t.ndim == 0 else t
        cast = nullcontext()
        if policy.autocast is not None and device.type == "cuda":
            cast = torch.autocast("cuda", dtype=policy.autocast)
        with cast:
            return calls[rows](x.to(device, dtype), t).float()

    return call


def _sd3_call(policy: Policy, cond: Conditioning, guidance: float) -> Denoise:
    dtype = policy.dtype
    tokens, pooled = cond.tokens.to(dtype), cond.pooled.to(dtype)

    def call(x: Tensor, t: Tensor) -> Tensor:
        return policy.network(x, tokens, pooled, t, return_dict=False)[0]

    return call


def _pixart_call(policy: Policy, cond: Conditioning, guidance: float) -> Denoise:
    dtype, channels = policy.dtype, policy.latent_shape[0]
    tokens = cond.tokens.to(dtype)
    # The additive form of the mask, [N, 1, L]; the network would rebuild it at every call.
    bias = ((1 - cond.mask.to(dtype)) * -10000.0).unsqueeze(1)
    size = {"resolution": None, "aspect_ratio": None}
    if cond.extra is not None:
        extra = cond.extra.to(dtype)
        size = {"resolution": extra[:, :2], "aspect_ratio": extra[:, 2:]}

    def call(x: Tensor, t: Tensor) -> Tensor:
        out = policy.network(
            x,
            encoder_hidden_states=tokens,
            timestep=t,
            added_cond_kwargs=size,
            encoder_attention_mask=bias,
            return_dict=False,
        )[0]
        return out[:, :channels]  # networks with a learned variance return it behind

    return call


def guidance_embedding(w: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding [N, dim] of 1000 w for w [N] (LCM: w = guidance - 1)."""
    half = dim // 2
    rate = torch.log(torch.tensor(10000.0)) / (half - 1)
    freq = torch.exp(torch.arange(half, dtype=torch.float32) * -rate)
    angle = (w.float() * 1000.0)[:, None] * freq[None, :]
    out = torch.cat([angle.sin(), angle.cos()], dim=1)
    return torch.nn.functional.pad(out, (0, dim % 2))


def _unet_call(policy: Policy, cond: Conditioning, guidance: float) -> Denoise:
    dtype, added = policy.dtype, None
    tokens, scale = cond.tokens.to(dtype), None
    if cond.extra is not None:
        added = {"text_embeds": cond.pooled.to(dtype), "time_ids": cond.extra.to(dtype)}
    if is_distilled(policy):
        w = torch.full((len(cond),), guidance - 1.0)
        scale = guidance_embedding(w, policy.network.config.time_cond_proj_dim)
        scale = scale.to(tokens.device, dtype)

    def call(x: Tensor, t: Tensor) -> Tensor:
        return policy.network(
            x,
            t,
            encoder_hidden_states=tokens,
            timestep_cond=scale,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]

    return call


def pack(x: Tensor) -> Tensor:
    """FLUX tokens [N, H/2 * W/2, 4 C] of latents [N, C, H, W]: every 2x2 cell is one token."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(n, (h // 2) * (w // 2), c * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Latents [N, C, height, width] of FLUX tokens [N, height/2 * width/2, 4 C]."""
    n, _, c = tokens.shape
    x = tokens.reshape(n, height // 2, width // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(n, c // 4, height, width)


def _flux_call(policy: Policy, cond: Conditioning, guidance: float) -> Denoise:
    dtype, (_, height, width) = policy.dtype, policy.latent_shape
    tokens, pooled = cond.tokens.to(dtype), cond.pooled.to(dtype)
    text_ids = tokens.new_zeros(tokens.shape[1], 3)
    rows = torch.arange(height // 2).repeat_interleave(width // 2)
    columns = torch.arange(width // 2).repeat(height // 2)
    image_ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=1).to(text_ids)
    scale = None
    if policy.network.config.guidance_embeds:
        scale = torch.full((len(cond),), guidance, device=tokens.device)

    def call(x: Tensor, t: Tensor) -> Tensor:
        if x.shape[-2:] != (height, width):
            raise ValueError(
                f"Latents are {tuple(x.shape[-2:])}, the policy was loaded for "
                f"{(height, width)}; pass size to load_policy."
            )
        out = policy.network(
            pack(x),
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
            timestep=t / 1000,  # this class multiplies by 1000 inside
            img_ids=image_ids,
            txt_ids=text_ids,
            guidance=scale,
            return_dict=False,
        )[0]
        return unpack(out, height, width)

    return call
