"""Harmony and clutter measured from pixels and detections, where a small network reads them badly."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .scenes import BALANCE_RANGE, HUE_RANGE, PALETTE, SIZE

GRAYEST = 0.1  # palette colors with less chroma than this (black) have no hue to be wrong
SPECKLE = 0.03  # brightness step against the 5x5 median that counts as a speckle
CLUTTER_FIT = (
    0.098,
    25.96,
    -230.4,
)  # clutter = a + b f + c f^2 of the speckled share f, least squares


def inside_boxes(xy: Tensor, size: Tensor, scale: float = 1.0, pad: float = 0.0) -> Tensor:
    """Bool [B, M, 64, 64]: pixels in the square of side scale * size + 2 pad around each center."""
    axis = torch.arange(SIZE, device=xy.device) + 0.5
    half = (size * scale / 2 + pad)[..., None]
    across, down = ((axis - xy[..., k : k + 1]).abs() < half for k in (0, 1))
    return across[:, :, None, :] & down[..., None]


def balance(xy: Tensor, size: Tensor, valid: Tensor) -> Tensor:
    """Balance [B] of detections: 1 - distance of the center of mass from the canvas center / 20 px."""
    area = size.square() * valid
    center = (xy * area[..., None]).sum(1) / area.sum(1, keepdim=True).clamp_min(1e-6)
    return (1 - (center - SIZE / 2).norm(dim=-1) / BALANCE_RANGE).clamp(0, 1) * valid.any(1)


def clutter(images: Tensor, free: Tensor) -> Tensor:
    """Clutter [B] in [0, 1]: share of the free pixels [B, 64, 64] that stand out from their 5x5 median."""
    gray = images.mean(1, keepdim=True)
    patches, own = F.unfold(F.pad(gray, (2, 2, 2, 2), mode="reflect"), 5), gray.flatten(2)
    # the median of 25 lies below a bound where at least 13 do: counting is ten times as fast as sorting
    low, high = (
        far.sum(1, dtype=torch.uint8) for far in (patches < own - SPECKLE, patches > own + SPECKLE)
    )
    bump = torch.maximum(low, high) > 12
    share = (bump & free.flatten(1)).sum(1) / free.flatten(1).sum(1).clamp_min(1)
    a, b, c = CLUTTER_FIT
    share = share.clamp_max(-b / (2 * c))  # the parabola rises up to here
    return (a + b * share + c * share**2).clamp(0, 1)


def _chroma(color: Tensor) -> Tensor:
    return color - color.mean(-1, keepdim=True)


def _sticker_color(images: Tensor, background: Tensor, inside: Tensor) -> Tensor:
    """Mean color [B, 3] of the pixels in a box [B, 64, 64] that differ most from the background [B, 3]."""
    red, green, blue = (images - background[:, :, None, None]).square().unbind(1)
    gap = (
        red + green + blue
    ).sqrt() * inside  # norm(dim=1) over three planes takes 50 times as long
    own = (gap > 0.75 * gap.amax((1, 2), keepdim=True)).float()
    return (images * own[:, None]).sum((2, 3)) / own.sum((1, 2)).clamp_min(1)[:, None]


def harmony(
    images: Tensor,
    free: Tensor,
    color: Tensor,
    xy: Tensor,
    size: Tensor,
    valid: Tensor,
    contrast: Tensor,
) -> Tensor:
    """Harmony [B]: 1 - mean |hue error| / 12 degrees over the colored stickers, 1 if there are none.

    color [B, M] palette indices, contrast [B] as read. The background's share of a sticker's color
    (1 - k, k = 0.55 + 0.45 contrast: see `render`) is taken off before hues are compared.
    """
    background = (images * free[:, None]).sum((2, 3)) / free.sum((1, 2)).clamp_min(1)[:, None]
    mixed = _chroma(background) * (1 - (0.55 + 0.45 * contrast))[:, None]
    inside, palette = inside_boxes(xy, size, scale=0.8), _chroma(PALETTE.to(images.device))
    colored = valid & (palette.norm(dim=1) > GRAYEST)[color]
    error = torch.zeros_like(size)
    for m in range(color.shape[1]):
        rows = colored[:, m].nonzero()[:, 0]  # most pictures hold fewer stickers than columns
        seen = (
            _chroma(_sticker_color(images[rows], background[rows], inside[rows, m])) - mixed[rows]
        )
        true = palette[color[rows, m]]
        sine = torch.linalg.cross(true, seen).sum(-1) * 3**-0.5
        error[rows, m] = torch.rad2deg(torch.atan2(sine, (true * seen).sum(-1))).abs()
    mean = (error * colored).sum(1) / colored.sum(1).clamp_min(1)
    return (1 - mean / HUE_RANGE).clamp(0, 1) * valid.any(1)
