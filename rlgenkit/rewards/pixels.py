"""Image statistics: functions from images [B,3,H,W] in [0,1] to values [B].

Differentiable in the pixels (almost everywhere): brightness, warmth, saturation, contrast,
colorfulness, sharpness. Not differentiable: jpeg_kb (real encoder), edge_density (threshold),
color_entropy (histogram). `of_images` turns any of them into a reward.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import Batch, Reward, Scores, scored

# Rec. 601 luma, the weights of the JPEG encoder and of PIL's "L" mode.
LUMA = (0.299, 0.587, 0.114)


def luminance(images: Tensor) -> Tensor:
    """Rec. 601 luma [B,H,W] in [0,1] of images [B,3,H,W]."""
    return torch.einsum("bchw,c->bhw", images, images.new_tensor(LUMA))


def brightness(images: Tensor) -> Tensor:
    """Mean luma [B] in [0,1]; differentiable."""
    return luminance(images).mean((1, 2))


def warmth(images: Tensor) -> Tensor:
    """Mean red minus mean blue [B] in [-1,1]; differentiable."""
    return (images[:, 0] - images[:, 2]).mean((1, 2))


def saturation(images: Tensor) -> Tensor:
    """Mean HSV saturation (max - min) / max [B] in [0,1]; black counts 0; differentiable."""
    high, low = images.amax(1), images.amin(1)
    return ((high - low) / high.clamp_min(1e-6)).mean((1, 2))


def contrast(images: Tensor) -> Tensor:
    """RMS contrast: population standard deviation of luma [B] in [0,0.5]; differentiable."""
    return _sqrt(luminance(images).flatten(1).var(1, correction=0))


def colorfulness(images: Tensor) -> Tensor:
    """Hasler-Suesstrunk colorfulness M3 [B] in its own 0..255 units; differentiable.

    M = sqrt(var(rg) + var(yb)) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2), rg = R - G,
    yb = (R + G)/2 - B. Gray images score 0, vivid photographs about 80-110.
    Source: Hasler and Suesstrunk, Measuring colourfulness in natural images, 2003, section 7.
    """
    red, green, blue = (255 * images).flatten(2).unbind(1)
    rg, yb = red - green, (red + green) / 2 - blue
    spread = rg.var(1, correction=0) + yb.var(1, correction=0)
    return _sqrt(spread) + 0.3 * _sqrt(rg.mean(1) ** 2 + yb.mean(1) ** 2)


def sharpness(images: Tensor) -> Tensor:
    """Mean absolute 4-neighbor Laplacian of luma [B] in [0,4]; differentiable.

    Edges, fine texture and pixel noise all raise it.
    """
    kernel = images.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])
    return F.conv2d(luminance(images)[:, None], kernel[None, None]).abs().mean((1, 2, 3))


def edge_density(images: Tensor) -> Tensor:
    """Share of inner pixels [B] whose Sobel slope exceeds 0.1; not differentiable.

    The slope is in luma per pixel (Sobel response / 8).
    """
    across = images.new_tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    slopes = F.conv2d(luminance(images)[:, None], torch.stack([across, across.T])[:, None])
    return (slopes.norm(dim=1) > 0.1).to(images.dtype).mean((1, 2))


def color_entropy(images: Tensor) -> Tensor:
    """Shannon entropy in bits [B] of the color histogram with 8^3 cells; not differentiable.

    0 for a plain image, at most log2(min(512, H*W)).
    """
    bins = 8
    levels = (images.detach() * bins).long().clamp(0, bins - 1)
    cell = ((levels[:, 0] * bins + levels[:, 1]) * bins + levels[:, 2]).flatten(1)
    counts = torch.zeros(len(images), bins**3, device=images.device, dtype=images.dtype)
    counts.scatter_add_(1, cell, torch.ones_like(cell, dtype=images.dtype))
    return torch.special.entr(counts / cell.shape[1]).sum(1) / torch.log(counts.new_tensor(2.0))


def jpeg_kb(images: Tensor) -> Tensor:
    """JPEG file size [B] in kB (1000 bytes) at quality 95, less what a blank image takes.

    The encoder is Pillow's with its defaults, as in DDPO's code. Its header (about 0.6 kB) is a
    large constant at 64x64; the size of a mid-gray image is subtracted so that 0 means "nothing
    to code". Not differentiable.
    """
    pixels = (images.detach().float().clamp(0, 1) * 255).round().byte().cpu()
    blank = torch.full_like(pixels[:1], 128)
    sizes = [_jpeg_bytes(p) for p in torch.cat([pixels, blank]).movedim(1, 3)]
    kb = (torch.tensor(sizes[:-1], dtype=torch.float32) - sizes[-1]) / 1000
    return kb.to(images.device)


def picture_statistics(images: Tensor) -> Tensor:
    """Nine statistics [B,9] in their own units, columns in the order of STATISTICS."""
    return torch.stack([statistic(images.float()) for statistic in STATISTICS.values()], 1)


def compressibility(batch: Batch) -> Scores:
    """Reward: minus the JPEG size in kB at quality 95 (DDPO section 5.1)."""
    return scored(-jpeg_kb(batch.images))


STATISTICS = {
    "brightness": brightness,
    "warmth": warmth,
    "saturation": saturation,
    "contrast": contrast,
    "colorfulness": colorfulness,
    "sharpness": sharpness,
    "edge density": edge_density,
    "color entropy": color_entropy,
    "JPEG size": jpeg_kb,
}


def of_images(statistic: Callable[[Tensor], Tensor], scale: float = 1.0) -> Reward:
    """Reward `scale * statistic(images)` from a function images [B,3,H,W] -> values [B]."""

    def reward(batch: Batch) -> Scores:
        return scored(scale * statistic(batch.images.float()))

    return reward


def _jpeg_bytes(pixels: Tensor) -> int:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, format="JPEG", quality=95)
    return buffer.tell()


def _sqrt(values: Tensor) -> Tensor:
    # The slope of sqrt at 0 is infinite; the clamp gives plain images the gradient 0 instead.
    return torch.where(values > 1e-12, values.clamp_min(1e-12).sqrt(), torch.zeros_like(values))
