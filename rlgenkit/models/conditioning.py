"""What the network is told about a prompt: text states, computed once per prompt and kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .latents import vae_factor
from .text import TextStates, text_states

if TYPE_CHECKING:
    from .policy import Policy

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
        parts = vars(self).values()
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
    columns = list(zip(*(vars(part).values() for part in parts)))
    if any(len({value is None for value in column}) > 1 for column in columns):
        raise ValueError("concat needs conditionings of one policy: their fields differ.")
    return Conditioning(*(None if col[0] is None else torch.cat(col) for col in columns))


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
