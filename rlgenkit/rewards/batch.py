"""What a reward sees and what it returns: `Batch` in, `Scores` out.

A reward is any callable `reward(batch: Batch) -> Scores`. It sees the whole batch, because some
scores (diversity, standardized sums) compare samples. Group ids belong to samples, never to
prompt texts: two groups may carry the same prompt, and a truncated text must not merge groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlgenkit.records import Scores
from rlgenkit.worlds.prompts import Prompt, parse

# Decoders clamp to [0, 1]; half precision may overshoot by a rounding step.
RANGE_SLACK = 1e-3


@dataclass(frozen=True)
class Batch:
    """Samples to be scored.

    images: float [B,3,H,W] in [0,1]; prompts: B entries, `Prompt` or plain text;
    groups: Long[B], samples with equal ids compete with each other.
    Raises ValueError (one sentence) on wrong shapes, types, ranges or non-finite pixels.
    """

    images: Tensor
    prompts: Sequence[Prompt | str]
    groups: Tensor

    def __post_init__(self) -> None:
        images, groups = self.images, self.groups
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"images must be floats of shape [B,3,H,W], got {images.dtype} "
                f"{list(images.shape)}; decode the latents first."
            )
        if len(self.prompts) != len(images):
            raise ValueError(
                f"{len(images)} images came with {len(self.prompts)} prompts; give one per image."
            )
        if groups.shape != (len(images),) or groups.dtype != torch.long:
            raise ValueError(
                f"groups must be torch.long of shape [{len(images)}], got {groups.dtype} "
                f"{list(groups.shape)}."
            )
        _check_pixels(images.detach())


def _check_pixels(images: Tensor) -> None:
    finite = images.isfinite().flatten(1).all(1)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise ValueError(
            f"image {first} of the batch has non-finite pixels; stop and go back to the last "
            "good checkpoint."
        )
    if images.numel() and (images.min() < -RANGE_SLACK or images.max() > 1 + RANGE_SLACK):
        raise ValueError(
            f"pixels must lie in [0,1], got [{images.min():.3f}, {images.max():.3f}]; "
            "clamp or rescale the images."
        )


Reward = Callable[[Batch], Scores]


def scored(values: Tensor, valid: Tensor | None = None) -> Scores:
    """Scores from raw values [B] (any float type) and validity Bool[B] (default: all valid).

    Whatever an invalid sample holds (nan included) becomes 0. A non-finite *valid* value is an
    error of the reward, not a missing score, and raises ValueError. Gradients are kept.
    """
    if valid is None:
        valid = torch.ones(values.shape, dtype=torch.bool, device=values.device)
    zeros = torch.zeros_like(values, dtype=torch.float32)
    return Scores(torch.where(valid, values.float(), zeros), valid)


def where_defined(values: Tensor) -> Scores:
    """Scores from values [B] in which nan means "was not asked for": those become invalid."""
    return scored(values, ~values.isnan())


def texts(prompts: Sequence[Prompt | str]) -> list[str]:
    """The caption of every prompt."""
    return [p if isinstance(p, str) else p.text for p in prompts]


def parsed(prompts: Sequence[Prompt | str]) -> list[Prompt]:
    """Every prompt as a `Prompt`; texts are parsed once each (ValueError names the odd word)."""
    known = {text: parse(text) for text in {p for p in prompts if isinstance(p, str)}}
    return [known[p] if isinstance(p, str) else p for p in prompts]
