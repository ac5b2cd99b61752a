"""A denoising network that is trained, with everything frozen around it.

One interface for Stable Diffusion 1.5, SDXL, SD 3.x, FLUX, PixArt-alpha and latent consistency
models, and for the small embedded models saved in the same classes. Latents are [B, C, H, W] in
the network's standardized units, images are [B, 3, H, W] in 0..1, and predictions are float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import folders
from .conditioning import Conditioning
from .latents import vae_factor
from .text import Pair


@dataclass(frozen=True, eq=False)
class Policy:
    """A denoising network with its frozen surroundings.

    network: what is trained; vae, text: frozen ((encoder, tokenizer) pairs); scheduler: its
    config and tables only. family "flow", "epsilon" or "consistency"; prediction "velocity",
    "epsilon", "v" or "sample". latent_shape (C, H, W). pipeline: the diffusers class it came
    from. autocast: dtype of the network's matrix products on CUDA, None for none. zero_uncond:
    the empty prompt is all zeros (SDXL). cache: text states by prompt; notes: warnings given.
    """

    network: nn.Module
    vae: nn.Module
    text: tuple[Pair, ...]
    scheduler: Any
    family: str
    prediction: str
    latent_shape: tuple[int, int, int]
    pipeline: str
    autocast: torch.dtype | None = None
    zero_uncond: bool = False
    cache: dict[str, Conditioning] = field(default_factory=dict, repr=False, compare=False)
    notes: set[str] = field(default_factory=set, repr=False, compare=False)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's base weights (adapters may be wider)."""
        return next(self.network.parameters()).dtype


def scheduler_kind(scheduler: Any) -> tuple[str, str]:
    """(family, prediction) from a scheduler's class and config.

    Raises ValueError for a prediction type that no sampler here understands.
    """
    name = type(scheduler).__name__
    kind = scheduler.config.get("prediction_type", "epsilon")
    if "FlowMatch" in name or kind == "flow_prediction":
        return "flow", "velocity"
    predictions = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
    if kind not in predictions:
        raise ValueError(
            f"{name} has prediction_type '{kind}'; use one of {', '.join(predictions)} or a "
            "flow-matching scheduler."
        )
    family = "consistency" if name in ("LCMScheduler", "TCDScheduler") else "epsilon"
    return family, predictions[kind]


def _latent_shape(pipeline: str, network: nn.Module, factor: int, size: int | None):
    """(C, H, W) of the latents, for square images of `size` pixels or the model's own size."""
    config = network.config
    channels = config.in_channels
    if pipeline == "FluxPipeline":  # the network sees 2x2 cells packed into one token
        channels //= 4
    unit = 2 if pipeline == "FluxPipeline" else config.get("patch_size") or 1
    side = config.get("sample_size") or 128  # FLUX has no sample_size; diffusers takes 128
    if size is not None:
        if size <= 0 or size % (factor * unit):
            raise ValueError(
                f"size={size} px does not fit this model; use a multiple of {factor * unit}."
            )
        side = size // factor
    return channels, side, side


def make_policy(
    pipeline: str,
    components: dict[str, Any],
    size: int | None = None,
    autocast: torch.dtype | None = None,
) -> Policy:
    """A Policy from components in memory, named as in a diffusers pipeline of class `pipeline`.

    Absent components are None or left out. size: pixels of one side (None: the model's own).
    Raises ValueError for an unknown class, a missing network, or text encoders that do not fit.
    """
    if pipeline not in folders.COMPONENTS:
        raise ValueError(
            f"'{pipeline}' is not supported; use one of {', '.join(sorted(folders.COMPONENTS))}."
        )
    names = folders.COMPONENTS[pipeline]
    parts = {name: components.get(name) for name in names}
    for name in (names[0], "vae", "scheduler"):
        if parts[name] is None:
            raise ValueError(f"A {pipeline} needs the component '{name}', which is absent.")
    encoders = [name for name in names if name.startswith("text_encoder")]
    text = tuple((parts[e], parts[e.replace("text_encoder", "tokenizer")]) for e in encoders)
    _check_text(pipeline, text)
    family, prediction = scheduler_kind(parts["scheduler"])
    return Policy(
        network=parts[names[0]],
        vae=parts["vae"],
        text=text,
        scheduler=parts["scheduler"],
        family=family,
        prediction=prediction,
        latent_shape=_latent_shape(pipeline, parts[names[0]], vae_factor(parts["vae"]), size),
        pipeline=pipeline,
        autocast=autocast,
        zero_uncond=bool(components.get("force_zeros_for_empty_prompt", False)),
    )


def _check_text(pipeline: str, text: tuple[Pair, ...]) -> None:
    """Raise ValueError unless the text encoders present are a combination that works."""
    present = [encoder is not None and tokenizer is not None for encoder, tokenizer in text]
    fits = all(present)
    if pipeline == "StableDiffusion3Pipeline":  # T5 alone (embedded), or CLIPs without T5
        fits = any(present) and present[0] == present[1]
    elif pipeline == "StableDiffusionXLPipeline":  # the refiner has only the second encoder
        fits = present[1]
    if not fits:
        raise ValueError(
            f"This {pipeline} lacks text encoders that its network needs; add the missing "
            "text_encoder and tokenizer components."
        )


def load_policy(
    path_or_hub_id: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    size: int | None = None,
) -> Policy:
    """Load a pipeline folder, or a hub id owner/name if no such folder exists, as a Policy.

    dtype: of network and text encoders (the VAE stays float32); files may hold another one.
    size: pixels of one image side, None for the model's own. On CUDA the network runs under bfloat16 autocast (float16 for float16 weights).
    All components are frozen and in eval mode; add LoRA, or set requires_grad on the network.
    Raises FileNotFoundError or ValueError, one sentence, for a folder that is missing, is no
    pipeline, or is truncated or without safetensors.
    """
    device = torch.device(device)
    name, parts = folders.read_components(folders.resolve_folder(path_or_hub_id), dtype)
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.to(device)
    half = torch.float16 if dtype == torch.float16 else torch.bfloat16
    return make_policy(name, parts, size, half if device.type == "cuda" else None)
