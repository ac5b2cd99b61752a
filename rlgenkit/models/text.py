"""From prompts to text states, for each pipeline class the way diffusers' `encode_prompt` does it.

Every function takes `pairs`, the (encoder, tokenizer) pairs of the pipeline in their order, and
returns TextStates. Prompts longer than a tokenizer's limit are cut at the limit, and say so.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[nn.Module | None, Any]  # (text encoder, tokenizer); both None where absent

CLIP_LENGTH = 77
T5_LENGTH = {  # the default `max_sequence_length` of each diffusers pipeline
    "StableDiffusion3Pipeline": 256,
    "FluxPipeline": 512,
    "PixArtAlphaPipeline": 120,
}


class TextStates(NamedTuple):
    """tokens [B, L, D]; mask [B, L] (1 = word, 0 = padding) or None; pooled [B, P] or None;
    truncated: how many of the B prompts lost words."""

    tokens: Tensor
    mask: Tensor | None
    pooled: Tensor | None
    truncated: int


def tokenize(
    tokenizer: Any, texts: Sequence[str], limit: int, device: torch.device
) -> tuple[Tensor, Tensor, int]:
    """Padded token ids [B, L], mask [B, L], and how many prompts were cut at L tokens.

    L = min(limit, tokenizer.model_max_length), so that a tokenizer saved with its own length
    (16 for the embedded models) keeps it.
    """
    length = min(limit, tokenizer.model_max_length)
    texts = list(texts)
    out = tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    # verbose=False: the tokenizer would warn about the very length that is measured here.
    full = tokenizer(texts, truncation=False, verbose=False).input_ids
    cut = sum(len(row) > length for row in full)
    return out.input_ids.to(device), out.attention_mask.to(device), cut


def stable_diffusion(pairs: Sequence[Pair], texts: Sequence[str], device) -> TextStates:
    """SD 1.x and LCM: last hidden states of one CLIP encoder, no pooled vector."""
    encoder, tokenizer = pairs[0]
    ids, mask, cut = tokenize(tokenizer, texts, CLIP_LENGTH, device)
    masked = getattr(encoder.config, "use_attention_mask", False)
    tokens = encoder(ids, attention_mask=mask if masked else None)[0]
    return TextStates(tokens, None, None, cut)


def _clip_penultimate(pair: Pair, texts: Sequence[str], device) -> tuple[Tensor, Tensor, int]:
    """Penultimate hidden states [B, 77, D], first output, and the number of cut prompts."""
    encoder, tokenizer = pair
    ids, _, cut = tokenize(tokenizer, texts, CLIP_LENGTH, device)
    out = encoder(ids, output_hidden_states=True)
    return out.hidden_states[-2], out[0], cut


def stable_diffusion_xl(pairs: Sequence[Pair], texts: Sequence[str], device) -> TextStates:
    """SDXL: penultimate states of two CLIP encoders side by side; pooled = text embedding of
    the second."""
    parts = [_clip_penultimate(pair, texts, device) for pair in pairs if pair[0] is not None]
    tokens = torch.cat([part[0] for part in parts], dim=-1)
    return TextStates(tokens, None, parts[-1][1], max(part[2] for part in parts))


def stable_diffusion_3(
    pairs: Sequence[Pair], texts: Sequence[str], device, joint_dim: int
) -> TextStates:
    """SD 3.x: two CLIP encoders side by side, padded to `joint_dim`, then the T5 states (zeros
    if T5 is absent) along the sequence; pooled = both CLIP text embeddings side by side.

    With both CLIP encoders absent (embedded models): tokens = masked T5 states [B, L, D],
    pooled = their mean over the words.
    """
    first, second, third = pairs
    if first[0] is None and second[0] is None:
        return _t5_only(third, texts, device)
    a, pooled_a, cut_a = _clip_penultimate(first, texts, device)
    b, pooled_b, cut_b = _clip_penultimate(second, texts, device)
    clip = torch.cat([a, b], dim=-1)
    limit, cut = T5_LENGTH["StableDiffusion3Pipeline"], max(cut_a, cut_b)
    if third[0] is None:
        t5 = clip.new_zeros(len(texts), limit, joint_dim)
    else:  # as diffusers: no attention mask here
        ids, _, cut_t5 = tokenize(third[1], texts, limit, device)
        t5, cut = third[0](ids)[0], max(cut, cut_t5)
    clip = F.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
    tokens = torch.cat([clip.to(t5.dtype), t5], dim=1)
    return TextStates(tokens, None, torch.cat([pooled_a, pooled_b], dim=-1), cut)


def _t5_only(pair: Pair, texts: Sequence[str], device) -> TextStates:
    """Masked T5 states [B, L, D]; pooled [B, D] = mean over the words (zero words: zeros)."""
    encoder, tokenizer = pair
    ids, mask, cut = tokenize(tokenizer, texts, T5_LENGTH["StableDiffusion3Pipeline"], device)
    tokens = encoder(ids, attention_mask=mask)[0]
    weight = mask.unsqueeze(-1).to(tokens.dtype)
    pooled = (tokens * weight).sum(1) / weight.sum(1).clamp_min(1)
    return TextStates(tokens, mask, pooled, cut)


def flux(pairs: Sequence[Pair], texts: Sequence[str], device) -> TextStates:
    """FLUX: T5 states as tokens, CLIP's pooled output as the pooled vector."""
    (clip, clip_tokenizer), (t5, t5_tokenizer) = pairs
    clip_ids, _, _ = tokenize(clip_tokenizer, texts, CLIP_LENGTH, device)
    t5_ids, _, cut = tokenize(t5_tokenizer, texts, T5_LENGTH["FluxPipeline"], device)
    # Only T5 carries the words; CLIP's shorter limit is by design and not worth a warning.
    return TextStates(t5(t5_ids)[0], None, clip(clip_ids).pooler_output, cut)


def pixart(pairs: Sequence[Pair], texts: Sequence[str], device) -> TextStates:
    """PixArt-alpha: masked T5 states and their mask. Prompts are lowercased and stripped as
    diffusers does; its optional HTML cleaning (`clean_caption`) is not applied."""
    encoder, tokenizer = pairs[0]
    texts = [text.lower().strip() for text in texts]
    ids, mask, cut = tokenize(tokenizer, texts, T5_LENGTH["PixArtAlphaPipeline"], device)
    return TextStates(encoder(ids, attention_mask=mask)[0], mask, None, cut)


def text_states(
    pipeline: str, pairs: Sequence[Pair], texts: Sequence[str], device, joint_dim: int = 0
) -> TextStates:
    """Text states of `texts` for a pipeline class; keeps gradients, caches nothing."""
    if pipeline == "StableDiffusion3Pipeline":
        return stable_diffusion_3(pairs, texts, device, joint_dim)
    encode = {
        "StableDiffusionPipeline": stable_diffusion,
        "LatentConsistencyModelPipeline": stable_diffusion,
        "StableDiffusionXLPipeline": stable_diffusion_xl,
        "FluxPipeline": flux,
        "PixArtAlphaPipeline": pixart,
    }[pipeline]
    return encode(pairs, texts, device)
