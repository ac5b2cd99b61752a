"""Artifacts: pictures that are broken in places, and the truth about them.

`damage` breaks a sticker of a clean scene in a known way, `broken_at` the same place of any picture,
so pairs exist whose truth is known. `unexplained` is the truth meter: a scene is what its reader
found in it, rendered again; what no sticker and no background explains is an artifact. The meter is
never optimized.
Source: Understanding Reward Hacking in Text-to-Image Reinforcement Learning (2601.03468).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rlgenkit.worlds.prompts import KINDS
from rlgenkit.worlds.reader import Reading
from rlgenkit.worlds.scenes import SHAPES, SIZE, Scene, render, sprites

ARTIFACTS = ("erased", "smeared", "deformed", "cut", "floating", "doubled", "fused")
STEP = 0.25  # how far a locally averaged color may stand from its explanation, in color ranges
FAINT = 0.2  # of the explained picture, each at least this wide (in 0..1)
OVERLAP = 1.4  # coverage above which two stickers claim the same pixel


# ------------------------------------------------------------------------------- known damage


def damage(scenes: Sequence[Scene], artifact: str, generator: torch.Generator) -> Tensor:
    """Pictures [B,3,64,64] of the scenes, each with one sticker broken.

    erased: half of it is background; smeared: half of it is dragged; deformed: its outline waves;
    cut: half of it is shifted along the cut; floating: a piece of it also hangs elsewhere;
    doubled: a second copy overlaps it; fused: another kind in its color overlaps it.
    ValueError for an unknown name or a scene without stickers.
    """
    if artifact not in ARTIFACTS:
        raise ValueError(f"unknown artifact {artifact!r}; choose one of {ARTIFACTS}.")
    if not all(scene.stickers for scene in scenes):
        raise ValueError("damage needs a sticker in every scene; sample scenes with stickers.")
    victims = [_pick(len(scene.stickers), generator) for scene in scenes]
    images, empty = render(list(scenes)), render([replace(s, stickers=()) for s in scenes])
    if artifact in ("doubled", "fused"):
        other = artifact == "fused"
        second = [_second(s, k, other, generator) for s, k in zip(scenes, victims, strict=True)]
        return _drawn_over(images, render(second), empty)
    stickers = [scene.stickers[k] for scene, k in zip(scenes, victims, strict=True)]
    place = torch.tensor([(s.x, s.y, s.size) for s in stickers])
    return broken_at(images, empty, place, artifact, generator)


def _pick(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=generator))


def _second(scene: Scene, victim: int, other: bool, generator: torch.Generator) -> Scene:
    """The scene with nothing but a second sticker at 0.3 to 0.45 of its size from the victim."""
    sticker, kind = scene.stickers[victim], scene.stickers[victim].kind
    angle = 2 * math.pi * float(torch.rand((), generator=generator))
    reach = sticker.size * (0.3 + 0.15 * float(torch.rand((), generator=generator)))
    if other:
        rest = [k for k in KINDS if k != kind]
        kind = rest[_pick(len(rest), generator)]
    x, y = sticker.x + reach * math.cos(angle), sticker.y + reach * math.sin(angle)
    return replace(scene, stickers=(replace(sticker, kind=kind, x=x, y=y),))


def _drawn_over(images: Tensor, new: Tensor, empty: Tensor) -> Tensor:
    """images with those pixels of `new` that differ from the empty scene, all [B,3,64,64]."""
    drawn = (new - empty).abs().amax(1, keepdim=True) > 0.05
    return torch.where(drawn, new, images)


def broken_at(
    images: Tensor, empty: Tensor, place: Tensor, artifact: str, generator: torch.Generator
) -> Tensor:
    """Pixel damage (the first five of ARTIFACTS) of images [B,3,64,64] at (x, y, size) = place [B,3]
    px; empty: the same pictures without stickers."""
    n = len(images)
    angle = 2 * math.pi * torch.rand(n, 1, 1, generator=generator)
    cos, sin = angle.cos(), angle.sin()
    axis = torch.arange(SIZE) + 0.5
    across = (axis[None, None] - place[:, 0, None, None]).expand(-1, SIZE, -1)
    down = (axis[None, :, None] - place[:, 1, None, None]).expand(-1, -1, SIZE)
    size = place[:, 2, None, None]
    along = cos * across + sin * down
    near = (across.abs() < 0.6 * size) & (down.abs() < 0.6 * size)
    half = (near & (along > 0))[:, None]
    if artifact == "erased":
        return torch.where(half, empty, images)
    if artifact == "smeared":
        reach = torch.linspace(-0.4, 0.4, 9)
        drag = [_warp(images, k * size * sin, -k * size * cos) for k in reach]
        return torch.where(half, torch.stack(drag).mean(0), images)
    if artifact == "cut":
        return torch.where(half, _warp(images, 0.3 * size * sin, -0.3 * size * cos), images)
    if artifact == "deformed":
        wave = 0.16 * size * torch.sin(4 * math.pi * along / size + angle) * near
        return _warp(images, -sin * wave, cos * wave)
    # A diagonal jump toward the middle, so that the piece stays on the canvas.
    inward = 1 - 2 * (place[:, :2, None, None] > SIZE / 2).float()  # [B, 2, 1, 1]
    right, low = 0.9 * size * inward[:, 0], 0.9 * size * inward[:, 1]
    moved, ground = (_warp(part, -right, -low) for part in (images, empty))
    piece = ((across - right).hypot(down - low) < 0.3 * size)[:, None]
    return torch.where(piece, _drawn_over(images, moved, ground), images)


def _warp(images: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """images [B,3,64,64] read at (x + dx, y + dy) px, dx and dy broadcast to [B,64,64]."""
    axis = torch.arange(SIZE) + 0.5
    x = (axis[None, None] + dx).expand(len(images), SIZE, SIZE)
    y = (axis[None, :, None] + dy).expand(len(images), SIZE, SIZE)
    grid = torch.stack([x, y], -1) / SIZE * 2 - 1
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


# ----------------------------------------------------------------------------- the truth meter


def explained(images: Tensor, reading: Reading) -> tuple[Tensor, Tensor]:
    """The best picture [B,3,64,64] that the reader's scene can make, and its coverage [B,64,64].

    Stickers keep the kinds, places and sizes that were read; their colors and a background that
    changes linearly from top to bottom are fitted to the image (least squares). Coverage is the
    sum of the sticker masks: above 1 where two stickers claim one pixel.
    """
    masks = _sticker_masks(reading)  # [B, M, 64, 64]
    coverage = masks.sum(1)
    free = (1 - coverage).clamp_min(0)[:, None]
    ramp = torch.linspace(-1, 1, SIZE, device=images.device)[:, None]
    basis = torch.cat([masks, free, free * ramp], 1).flatten(2).cpu().double()
    target = images.flatten(2).cpu().double()  # Apple's GPUs have no float64
    gram = basis @ basis.transpose(1, 2)
    gram = gram + 1e-3 * torch.eye(len(gram[0]), dtype=gram.dtype)
    colors = torch.linalg.solve(gram, basis @ target.transpose(1, 2))
    fitted = (colors.transpose(1, 2) @ basis).float().view(images.shape)
    return fitted.to(images.device).clamp(0, 1), coverage


def unexplained(images: Tensor, reading: Reading) -> Tensor:
    """Artifact score [B] in [0,1]: the share of pixels that the scene as read does not explain.

    A pixel counts if the 3x3 mean of the difference from `explained` exceeds, in a channel, a
    quarter of the widest channel range of `explained` (small speckles, which are a look of this
    world, mostly stay below), or if two stickers overlap there, which no scene allows. The unit
    is the picture's own: neither fading nor vivid colors change the score, as long as the reader
    sees the same scene. What was asked for plays no role.
    """
    picture, coverage = explained(images, reading)
    gap = F.avg_pool2d(images - picture, 3, 1, 1).abs().amax(1)
    reach = (picture.amax((2, 3)) - picture.amin((2, 3))).amax(1).clamp_min(FAINT)
    return ((gap > STEP * reach[:, None, None]) | (coverage > OVERLAP)).float().mean((1, 2))


def _sticker_masks(reading: Reading) -> Tensor:
    """Coverage masks [B,M,64,64] of all detections, 0 for those that are not valid."""
    rows, columns = reading.kind.shape
    x, y, size = (v.flatten()[:, None] for v in (*reading.xy.unbind(-1), reading.size))
    axis = torch.arange(SIZE, device=size.device) + 0.5
    across = ((axis - x) / size * 2)[:, None].expand(-1, SIZE, -1)
    down = ((axis - y) / size * 2)[:, :, None].expand(-1, -1, SIZE)
    level = (size[:, 0] < 24).long()
    tiles = sprites().to(size.device)[level, reading.kind.flatten().clamp_max(len(SHAPES) - 1)]
    masks = F.grid_sample(tiles[:, None], torch.stack([across, down], -1), align_corners=False)
    return masks.view(rows, columns, SIZE, SIZE) * reading.valid[..., None, None]
