"""Image-text similarity by a dual encoder (transformers' CLIP class)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlgenkit.models.folders import check_model, read_network, read_part

from .batch import Batch, Reward, Scores, scored, texts

# Pixel statistics of OpenAI's CLIP, used where the folder has no preprocessor_config.json.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class DualEncoder:
    """A CLIPModel, its tokenizer, its pixel statistics and the text embeddings seen so far."""

    model: nn.Module
    tokenizer: Any
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    cache: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)


def load_dual_encoder(path: str | Path, device: str | torch.device = "cpu") -> DualEncoder:
    """The frozen dual encoder of a folder with CLIPModel weights (safetensors) and a tokenizer.

    Raises ValueError if the folder is missing, damaged or asks for code.
    """
    from transformers import AutoTokenizer, CLIPModel

    folder = Path(path)
    check_model(folder)
    model = read_network(CLIPModel, folder, what="a CLIP model").to(device).requires_grad_(False)
    settings = folder / "preprocessor_config.json"
    pixels = json.loads(settings.read_text()) if settings.is_file() else {}
    mean = tuple(pixels.get("image_mean", CLIP_MEAN))
    std = tuple(pixels.get("image_std", CLIP_STD))
    return DualEncoder(model, read_part(AutoTokenizer, folder), mean, std)


def embed_texts(encoder: DualEncoder, captions: Sequence[str]) -> Tensor:
    """Unit vectors [B,D] of the captions; each distinct caption is encoded once per encoder."""
    new = sorted(set(captions) - set(encoder.cache))
    if new:
        device = next(encoder.model.parameters()).device
        tokens = encoder.tokenizer(
            new,
            padding=True,
            truncation=True,
            max_length=encoder.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        with torch.no_grad():
            hidden = encoder.model.text_model(
                input_ids=tokens["input_ids"].to(device),
                attention_mask=tokens["attention_mask"].to(device),
            )
            vectors = F.normalize(encoder.model.text_projection(hidden.pooler_output), dim=-1)
        encoder.cache.update(zip(new, vectors, strict=True))
    return torch.stack([encoder.cache[caption] for caption in captions])


def embed_images(encoder: DualEncoder, images: Tensor) -> Tensor:
    """Unit vectors [B,D] of images [B,3,H,W] in [0,1], resized (bicubic) to the model's side.

    Differentiable in the pixels.
    """
    side = encoder.model.config.vision_config.image_size
    if images.shape[-2:] != (side, side):
        images = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True)
    mean, std = (images.new_tensor(v)[:, None, None] for v in (encoder.mean, encoder.std))
    hidden = encoder.model.vision_model(pixel_values=(images - mean) / std)
    return F.normalize(encoder.model.visual_projection(hidden.pooler_output), dim=-1)


def similarity_reward(encoder: DualEncoder) -> Reward:
    """Reward: cosine of image and caption embeddings in [-1,1]; differentiable in the pixels.

    Raw CLIP cosines differ little between images; standardize before adding other rewards.
    """

    def reward(batch: Batch) -> Scores:
        captions = embed_texts(encoder, texts(batch.prompts))
        return scored((embed_images(encoder, batch.images) * captions).sum(1))

    return reward
