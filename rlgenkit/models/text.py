"""From prompts to text states, by the `encode_prompt` of each pipeline class of diffusers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import Tensor, nn

from .folders import quiet

Pair = tuple[nn.Module | None, Any]  # (text encoder, tokenizer); both None where absent

POOLED = {"StableDiffusionXLPipeline": 2, "StableDiffusion3Pipeline": 2, "FluxPipeline": 1}
MASK = {
    "PixArtAlphaPipeline": 1,
    "PixArtSigmaPipeline": 1,
}  # places in what encode_prompt returns; tokens come first


class TextStates(NamedTuple):
    """tokens [B, L, D]; mask [B, L] (1 = word, 0 = padding) or None; pooled [B, P] or None;
    truncated: how many of the B prompts lost words."""

    tokens: Tensor
    mask: Tensor | None
    pooled: Tensor | None
    truncated: int


def text_states(
    pipeline: str, pairs: Sequence[Pair], texts: Sequence[str], device, joint_dim: int = 0
) -> TextStates:
    """Text states of `texts` for a pipeline class; keeps gradients, caches nothing.

    pairs: the (encoder, tokenizer) pairs of the pipeline in their order. Prompts longer than a
    tokenizer's limit are cut there; a tokenizer saved with its own limit (16 for the embedded
    models) keeps it. joint_dim: width of the zeros that stand for an absent T5.
    """
    texts = list(texts)
    known = inspect.signature(
        getattr(import_module("diffusers"), pipeline).encode_prompt
    ).parameters
    most = known["max_sequence_length"].default if "max_sequence_length" in known else 77
    limit = min(most, getattr(pairs[-1][1], "model_max_length", most))
    if pipeline == "StableDiffusion3Pipeline" and pairs[0][0] is None and pairs[1][0] is None:
        return _t5_only(pairs[2], texts, limit, device)
    pipe = _encoders_only(pipeline, pairs, joint_dim)
    wanted = {
        "device": device,
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": False,
        "prompt_2": None,
        "prompt_3": None,
        "max_sequence_length": limit,
    }
    with quiet():
        out = pipe.encode_prompt(texts, **{k: v for k, v in wanted.items() if k in known})
    # Of FLUX only T5 carries the words; CLIP's shorter limit is by design and not worth a warning.
    counted = pairs[1:] if pipeline == "FluxPipeline" else pairs
    cut = max(_cut(tokenizer, texts, most) for _, tokenizer in counted if tokenizer is not None)
    mask, pooled = (out[place[pipeline]] if pipeline in place else None for place in (MASK, POOLED))
    return TextStates(out[0], mask, pooled, cut)


class _Network:
    """What SD3's `encode_prompt` asks its network: the width of the text states."""

    def __init__(self, joint_dim: int) -> None:
        self.config = SimpleNamespace(joint_attention_dim=joint_dim, sample_size=1, patch_size=1)


def _encoders_only(pipeline: str, pairs: Sequence[Pair], joint_dim: int) -> Any:
    """A pipeline of diffusers with its text encoders and tokenizers, and nothing else."""
    import diffusers

    cls = getattr(diffusers, pipeline)
    known = inspect.signature(cls.__init__).parameters
    parts = {
        name: None
        for name, p in known.items()
        if p.default is inspect.Parameter.empty and name != "self"
    }
    endings = [""] if len(pairs) == 1 else ["", "_2", "_3"]
    for ending, (encoder, tokenizer) in zip(endings, pairs):
        parts |= {f"text_encoder{ending}": encoder, f"tokenizer{ending}": tokenizer}
    if pipeline == "StableDiffusion3Pipeline":
        parts["transformer"] = _Network(joint_dim)
    if "requires_safety_checker" in known:
        parts["requires_safety_checker"] = False
    return cls(**parts)


def _cut(tokenizer: Any, texts: list[str], limit: int) -> int:
    """How many texts have more tokens than fit."""
    # verbose=False: the tokenizer would warn about the very length that is measured here.
    rows = tokenizer(texts, truncation=False, verbose=False).input_ids
    return sum(len(row) > min(limit, tokenizer.model_max_length) for row in rows)


def _t5_only(pair: Pair, texts: list[str], limit: int, device) -> TextStates:
    """SD3 without CLIP (embedded models), which diffusers does not know: masked T5 states
    [B, L, D]; pooled [B, D] = their mean over the words (zero words: zeros)."""
    encoder, tokenizer = pair
    out = tokenizer(
        texts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
    ).to(device)
    tokens = encoder(out.input_ids, attention_mask=out.attention_mask)[0]
    weight = out.attention_mask.unsqueeze(-1).to(tokens.dtype)
    pooled = (tokens * weight).sum(1) / weight.sum(1).clamp_min(1)
    return TextStates(tokens, out.attention_mask, pooled, _cut(tokenizer, texts, limit))
