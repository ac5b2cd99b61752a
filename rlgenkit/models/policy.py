"""A policy: the denoising network that is trained, with everything frozen around it.

One interface for Stable Diffusion 1.5, SDXL, SD 3.x, FLUX, PixArt-alpha and latent consistency
models, and for the small embedded models saved in the same classes. Latents are [B, C, H, W] in
the network's standardized units, images are [B, 3, H, W] in 0..1, and predictions are float32.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlgenkit.models import folders
from rlgenkit.models.text import Pair, TextStates, text_states

Denoise = Callable[[Tensor, Tensor], Tensor]

CACHE_BYTES = 2**30  # text states kept per policy; the oldest prompts leave first


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What the network is told about B prompts.

    tokens [B, L, D]; mask [B, L] (1 = word) or None; pooled [B, P] or None;
    extra [B, 6] SDXL time ids, [B, 3] PixArt height, width, aspect ratio at 1024 px, or None.
    """

    tokens: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None
    extra: Tensor | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        parts = (self.tokens, self.mask, self.pooled, self.extra)
        return Conditioning(*(None if part is None else change(part) for part in parts))

    def repeat_interleave(self, k: int) -> "Conditioning":
        """Every prompt k times in a row: a, a, b, b."""
        return self._map(lambda part: part.repeat_interleave(k, dim=0))

    def repeat(self, k: int) -> "Conditioning":
        """The whole batch k times: a, b, a, b."""
        return self._map(lambda part: part.repeat(k, *[1] * (part.ndim - 1)))

    def index(self, rows: Tensor | slice | Sequence[int]) -> "Conditioning":
        """The prompts at `rows` (Long [N], a slice or a list)."""
        return self._map(lambda part: part[rows])

    def to(self, device: torch.device | str) -> "Conditioning":
        """The same on another device."""
        return self._map(lambda part: part.to(device))


def concat(parts: Sequence[Conditioning]) -> Conditioning:
    """One Conditioning of all prompts, in order. All parts must have the same fields."""
    names = ("tokens", "mask", "pooled", "extra")
    columns = [[getattr(part, name) for part in parts] for name in names]
    if any(any(v is None for v in column) != all(v is None for v in column) for column in columns):
        raise ValueError("concat needs conditionings of one policy: their fields differ.")
    return Conditioning(*(None if col[0] is None else torch.cat(col) for col in columns))


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
    cache: dict[str, Conditioning] = field(default_factory=dict, repr=False)
    notes: set[str] = field(default_factory=set, repr=False)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's base weights (adapters may be wider)."""
        return next(self.network.parameters()).dtype

    def reached(self, name: str | None = None) -> Any:
        """What a phase that uses `policy.name`, or all of it, depends on: not on what was
        remembered on the way, which differs when an earlier phase is restored."""
        if name is not None:
            return None if name in ("cache", "notes") else getattr(self, name)
        return {k: v for k, v in vars(self).items() if k not in ("cache", "notes")}


# --- loading and saving -----------------------------------------------------------------------


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


def vae_factor(vae: nn.Module) -> int:
    """Pixels per latent cell along one side (8 for the full-size autoencoders)."""
    blocks = vae.config.get("block_out_channels") or vae.config.get("encoder_block_out_channels")
    return 2 ** (len(blocks) - 1)


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
    compile: bool = False,
) -> Policy:
    """Load a pipeline folder, or a hub id owner/name if no such folder exists, as a Policy.

    dtype: of network and text encoders (the VAE stays float32); files may hold another one.
    size: pixels of one image side, None for the model's own. compile: torch.compile the network
    in place. On CUDA the network runs under bfloat16 autocast (float16 for float16 weights).
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
    policy = make_policy(name, parts, size, half if device.type == "cuda" else None)
    if compile:
        policy.network.compile()  # in place: parameter names and adapters stay as they are
    return policy


def save_policy(policy: Policy, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a folder that load_policy and the diffusers pipeline class open.

    Weights are stored as safetensors in `dtype`; memory is untouched. Raises ValueError while a
    LoRA adapter is attached: save it with save_adapter.
    """
    if getattr(policy.network, "peft_config", None):
        raise ValueError(
            "The network carries a LoRA adapter; store it with save_adapter, or save the policy "
            "before add_lora."
        )
    names = folders.COMPONENTS[policy.pipeline]
    parts = {names[0]: policy.network, "vae": policy.vae, "scheduler": policy.scheduler}
    for suffix, (encoder, tokenizer) in zip(("", "_2", "_3"), policy.text):
        parts[f"text_encoder{suffix}"], parts[f"tokenizer{suffix}"] = encoder, tokenizer
    if policy.pipeline == "StableDiffusionXLPipeline":
        parts["force_zeros_for_empty_prompt"] = policy.zero_uncond
    folders.write_components(policy.pipeline, parts, Path(folder), dtype)


# --- prompts ----------------------------------------------------------------------------------


def embed(policy: Policy, texts: Sequence[str]) -> Conditioning:
    """Conditioning of B prompts; each distinct prompt is encoded once and kept in the policy.

    Prompts are encoded one at a time, so that the numbers do not depend on which prompts came
    together (a resumed run sees other batches). Longer prompts than the tokenizers' limit are
    cut there, with one warning per policy. Needs no gradient and returns none.
    """
    texts = list(texts)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("embed takes a non-empty list of strings, one prompt each.")
    found: dict[str, Conditioning] = {}
    for text in dict.fromkeys(texts):
        found[text] = policy.cache[text] if text in policy.cache else _remember(policy, text)
    return concat([found[text] for text in texts])


def _remember(policy: Policy, text: str) -> Conditioning:
    """Encode one prompt and keep it, dropping the oldest ones beyond CACHE_BYTES."""
    joint_dim = policy.network.config.get("joint_attention_dim") or 0
    with torch.no_grad():
        states = text_states(policy.pipeline, policy.text, [text], policy.device, joint_dim)
    if states.truncated and "truncated" not in policy.notes:
        policy.notes.add("truncated")
        warnings.warn(
            f"The prompt '{text[:60]}' is longer than the text encoder's limit; the words beyond "
            "it are ignored (said once for this policy).",
            stacklevel=3,
        )
    cond = _with_extra(policy, states)
    per_prompt = sum(part.nbytes for part in (cond.tokens, cond.pooled) if part is not None)
    while policy.cache and (len(policy.cache) + 1) * per_prompt > CACHE_BYTES:
        del policy.cache[next(iter(policy.cache))]
    policy.cache[text] = cond
    return cond


def _with_extra(policy: Policy, states: TextStates) -> Conditioning:
    """Add the size conditioning of SDXL and of PixArt at 1024 px to text states [B, ...]."""
    tokens, mask, pooled, _ = states
    height, width = (side * vae_factor(policy.vae) for side in policy.latent_shape[1:])
    extra = None
    if policy.pipeline == "StableDiffusionXLPipeline":  # original size, crop, target size
        extra = tokens.new_tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
    elif policy.pipeline == "PixArtAlphaPipeline" and policy.network.config.sample_size == 128:
        extra = tokens.new_tensor([[height, width, height / width]], dtype=torch.float32)
    if extra is not None:
        extra = extra.repeat(len(tokens), 1)
    return Conditioning(tokens, mask, pooled, extra)


def unconditional(policy: Policy, n: int = 1) -> Conditioning:
    """The empty prompt, n times: zeros where the pipeline says so (SDXL), else the text ""."""
    cond = embed(policy, [""] * n)
    if policy.zero_uncond:
        cond = replace(
            cond, tokens=torch.zeros_like(cond.tokens), pooled=torch.zeros_like(cond.pooled)
        )
    return cond


# --- denoising --------------------------------------------------------------------------------


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


# --- images -----------------------------------------------------------------------------------


def set_latent_statistics(vae: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Put per-channel latent mean and std (lists of C) into the config of `vae`.

    They travel through save_pretrained and from_pretrained (which only notes keys that the
    class does not know); decode and encode apply them. Raises ValueError for wrong lengths or a
    std that is not positive.
    """
    mean, std = [float(v) for v in mean], [float(v) for v in std]
    channels = vae.config.latent_channels
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ValueError(f"Latent statistics need {channels} means and {channels} positive stds.")
    vae.register_to_config(latents_mean=mean, latents_std=std)


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


def encode(
    policy: Policy, images: Tensor, generator: torch.Generator | None = None
) -> Tensor:
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
