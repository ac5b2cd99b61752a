"""Sticker scenes: 64x64 pictures whose content and look are known exactly.

A scene holds one to four stickers (or a short word) on a gradient background. Captions name kinds,
colors, counts, relations, words and backgrounds; they never name the *look*: five continuous
controls in [0, 1] that leave a model room to be aligned.

    contrast    how far sticker colors stand from the background
    saturation  global chroma (0 = under half of the palette's, 1 = vivid)
    harmony     1 = every sticker wears its exact palette color, 0 = hues are off by 12 degrees on average
    balance     1 = the stickers' center of mass is the canvas center, 0 = 20 px or more away
    clutter     amount of small background speckles
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .prompts import BACKGROUNDS, COLORS, GLYPHS, KINDS, Prompt, numpy_rng

SIZE = 64
LOOKS = ("contrast", "saturation", "harmony", "balance", "clutter")
SHAPES = KINDS + GLYPHS
MAX_STICKERS = 4
MAX_SPECKLES = 24
BALANCE_RANGE = 20.0  # px of center-of-mass offset at which balance reaches 0
HUE_RANGE = 12.0  # degrees of mean absolute hue error at harmony 0
MARGIN = 2.0  # px between a sticker and the border
GRID = 8  # px; sticker centers are multiples of it: one latent cell, so a shape looks the same wherever it stands
SIZES = {1: 28.0, 2: 24.0, 3: 20.0, 4: 18.0}  # px, by the number of stickers
LETTER, DIGIT, PITCH = (
    19.0,
    26.0,
    20,
)  # px: size of a letter of a word and of a lone digit, distance of letters
SPRITES = Path(__file__).resolve().parents[2] / "data" / "sprites" / "stickers.png"

PALETTE = (
    torch.tensor(
        [(219, 48, 48), (252, 206, 33), (48, 158, 74), (46, 104, 222), (140, 70, 190), (38, 40, 50)]
    )
    / 255
)
SKIES = (
    torch.tensor(
        [
            [(255, 255, 255), (238, 238, 244)],
            [(148, 205, 250), (224, 242, 255)],
            [(186, 228, 164), (222, 245, 204)],
            [(255, 178, 120), (255, 218, 190)],
            [(232, 212, 168), (244, 230, 204)],
        ]
    )
    / 255
)


@dataclass(frozen=True)
class Sticker:
    """A shape (a kind or a glyph) of a palette color, at center (x, y) px with side `size` px."""

    kind: str
    color: str
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Scene:
    """Stickers on a background with a look (LOOKS order); `seed` fixes speckles and hue errors."""

    stickers: tuple[Sticker, ...]
    background: str
    look: tuple[float, ...]
    seed: int = 0


@lru_cache(maxsize=1)
def sprites() -> Tensor:
    """Masks of all shapes at two sharpnesses, [2, len(SHAPES), 32, 32] in [0, 1].

    Level 0 serves stickers of 24 px and more; level 1 is smoothed for smaller ones (no aliasing).
    """
    from PIL import Image

    strip = np.asarray(Image.open(SPRITES).convert("L"), dtype=np.float32) / 255
    tiles = torch.from_numpy(strip.reshape(64, len(SHAPES), 64).transpose(1, 0, 2).copy())[:, None]
    small = F.interpolate(F.interpolate(tiles, size=20, mode="area"), size=32, mode="bilinear")
    return torch.cat([F.avg_pool2d(tiles, 2), small], 1).transpose(0, 1).contiguous()


def balance_of(stickers: tuple[Sticker, ...]) -> float:
    """1 - (distance of the area-weighted center of mass from the canvas center) / 20 px, floored at 0."""
    if not stickers:
        return 0.0
    area = np.array([s.size**2 for s in stickers])
    center = (np.array([(s.x, s.y) for s in stickers]) * area[:, None]).sum(0) / area.sum()
    return float(max(0.0, 1 - np.linalg.norm(center - SIZE / 2) / BALANCE_RANGE))


def _holds(relation: str | None, first: np.ndarray, second: np.ndarray) -> bool:
    """Whether centers [2] stand in the relation, clearly: 14 px apart along its axis, less across."""
    if relation is None:
        return True
    dx, dy = second - first
    along, across = {
        "left of": (dx, dy),
        "right of": (-dx, dy),
        "above": (dy, dx),
        "below": (-dy, dx),
    }[relation]
    return along >= 14 and abs(across) <= 0.7 * along


def _layout(
    rng: np.random.Generator, count: int, relation: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Centers [count, 2] on the grid and sizes [count] of stickers that do not overlap, by rejection."""
    while True:
        sizes = np.full(count, SIZES[count])
        half = sizes[:, None] / 2 + MARGIN
        centers = GRID * rng.integers(
            np.ceil(half / GRID), np.floor((SIZE - half) / GRID) + 1, (count, 2)
        )
        gaps = np.linalg.norm(centers[:, None] - centers[None], axis=-1) + 1e3 * np.eye(count)
        if (gaps >= (sizes[:, None] + sizes[None]) / 2).all() and (
            count < 2 or _holds(relation, centers[0], centers[1])
        ):
            return centers, sizes


def _shift_to_balance(centers: np.ndarray, sizes: np.ndarray, balance: float) -> np.ndarray:
    """Move the whole layout by grid steps so that its balance approaches the asked value, within the canvas."""
    area = sizes**2
    offset = (centers * area[:, None]).sum(0) / area.sum() - SIZE / 2
    distance = np.linalg.norm(offset) + 1e-9
    move = GRID * np.round(offset / distance * (BALANCE_RANGE * (1 - balance) - distance) / GRID)
    half = sizes[:, None] / 2 + MARGIN
    low, high = (half - centers).max(0), (SIZE - half - centers).min(0)
    return centers + GRID * np.trunc(np.clip(move, low, high) / GRID)


def _word_layout(rng: np.random.Generator, letters: int) -> tuple[np.ndarray, np.ndarray]:
    """Centers and sizes of the letters of a word on one line; only three letters at most find room."""
    size = DIGIT if letters == 1 else LETTER
    half, step = (
        size / 2 + MARGIN,
        GRID // 2,
    )  # half a step off the grid across, where three letters fit
    lefts = np.arange(step, SIZE, GRID)
    lefts = lefts[(lefts >= half) & (lefts + (letters - 1) * PITCH <= SIZE - half)]
    y = GRID * rng.integers(np.ceil(half / GRID), np.floor((SIZE - half) / GRID) + 1)
    left = rng.choice(lefts)
    return np.stack([left + PITCH * np.arange(letters), np.full(letters, y)], 1), np.full(
        letters, size
    )


def sample_scene(prompt: Prompt, rng: np.random.Generator, look: np.ndarray | None = None) -> Scene:
    """A scene that fulfills the prompt exactly; `look` asks for the five controls (None = random).

    Balance is met as far as the canvas allows; the scene records the balance that it has.
    """
    asked = rng.beta(1.6, 1.6, len(LOOKS)) if look is None else np.asarray(look, dtype=float)
    if prompt.word is not None:
        kinds = [(letter, prompt.groups[0].color) for letter in prompt.word]
        centers, sizes = _word_layout(rng, len(kinds))
    else:
        kinds = [(g.kind, g.color) for g in prompt.groups for _ in range(g.count)]
        centers, sizes = _layout(rng, len(kinds), prompt.relation)
    centers = _shift_to_balance(centers, sizes, asked[3])
    stickers = tuple(
        Sticker(k, c, float(x), float(y), float(s))
        for (k, c), (x, y), s in zip(kinds, centers, sizes)
    )
    values = [float(v) for v in np.clip(asked, 0, 1)]
    values[3] = balance_of(stickers)
    background = prompt.background or str(rng.choice(BACKGROUNDS))
    return Scene(stickers, background, tuple(values), int(rng.integers(2**31)))


def sample_scenes(
    prompts: list[Prompt], generator: torch.Generator, looks: Tensor | None = None
) -> list[Scene]:
    """One scene per prompt, each fulfilling it exactly; looks [B, 5] in [0, 1] or None = random."""
    rng = numpy_rng(generator)
    rows = [None] * len(prompts) if looks is None else looks.cpu().numpy()
    return [sample_scene(p, rng, row) for p, row in zip(prompts, rows, strict=True)]


def with_look(scene: Scene, name: str, value: float) -> Scene:
    """The same scene with one control changed ("balance" follows the layout and cannot be set here)."""
    if name not in LOOKS or name == "balance":
        raise ValueError(
            f"look {name!r} cannot be set; choose one of contrast, saturation, harmony, clutter"
        )
    look = list(scene.look)
    look[LOOKS.index(name)] = float(value)
    return replace(scene, look=tuple(look))


def _turn_hue(color: Tensor, degrees: Tensor) -> Tensor:
    """Rotate RGB colors [..., 3] about the gray axis by angles [...]."""
    angle = torch.deg2rad(degrees)[..., None]
    axis = torch.full((3,), 3**-0.5)
    along = (color * axis).sum(-1, keepdim=True) * axis
    cross = torch.linalg.cross(axis.expand_as(color), color)
    return color * angle.cos() + cross * angle.sin() + along * (1 - angle.cos())


def _tables(scenes: list[Scene]) -> dict[str, Tensor]:
    """Scenes as padded tensors: shape and color ids, boxes, hue errors, speckles, look, background."""
    batch = len(scenes)
    kind = torch.zeros(batch, MAX_STICKERS, dtype=torch.long)
    color = torch.zeros(batch, MAX_STICKERS, dtype=torch.long)
    box = torch.full((batch, MAX_STICKERS, 3), -500.0)
    box[..., 2] = 1.0
    noise = np.zeros((batch, MAX_STICKERS + 4 * MAX_SPECKLES), dtype=np.float32)
    for row, scene in enumerate(scenes):
        noise[row] = np.random.default_rng(scene.seed).random(noise.shape[1], dtype=np.float32)
        for column, s in enumerate(scene.stickers):
            kind[row, column], color[row, column] = SHAPES.index(s.kind), COLORS.index(s.color)
            box[row, column] = torch.tensor((s.x, s.y, s.size))
    noise_tensor, present = torch.from_numpy(noise), box[..., 0] > 0
    hue = (noise_tensor[:, :MAX_STICKERS] * 2 - 1) * present
    hue = hue / (hue.abs().sum(1, keepdim=True) / present.sum(1, keepdim=True)).clamp_min(1e-6)
    look = torch.tensor([s.look for s in scenes]).reshape(batch, len(LOOKS))
    return {
        "kind": kind,
        "color": color,
        "box": box,
        "look": look,
        "hue": hue,  # sums to one sticker's worth of error each, whatever their number
        "speckles": noise_tensor[:, MAX_STICKERS:].reshape(batch, MAX_SPECKLES, 4),
        "background": torch.tensor([BACKGROUNDS.index(s.background) for s in scenes]),
    }


def hue_errors(scenes: list[Scene]) -> Tensor:
    """Absolute hue errors [B, 4] of the stickers in units of HUE_RANGE; 0 where there is no sticker."""
    table = _tables(scenes)
    return table["hue"].abs() * (1 - table["look"][:, 2:3])


def _speckle_tone(speckles: Tensor, clutter: Tensor) -> Tensor:
    """Brightness change [B, 1, 64, 64] of round(24 clutter) speckles (x, y, radius, tone in [0, 1])."""
    batch, reach = len(speckles), torch.arange(-2, 3)
    shown = torch.arange(MAX_SPECKLES)[None] < (clutter * MAX_SPECKLES).round()[:, None]
    x, y = speckles[..., 0] * (SIZE - 6) + 3, speckles[..., 1] * (SIZE - 6) + 3
    columns = (x.floor().long()[..., None] + reach)[:, :, None].expand(-1, -1, 5, -1)
    rows = (y.floor().long()[..., None] + reach)[:, :, :, None].expand(-1, -1, -1, 5)
    distance = torch.hypot(columns + 0.5 - x[..., None, None], rows + 0.5 - y[..., None, None])
    radius = (0.9 + 0.9 * speckles[..., 2])[..., None, None]
    dots = (radius - distance + 0.5).clamp(0, 1) * shown[..., None, None]
    dots = dots * torch.where(speckles[..., 3] < 0.5, -0.22, 0.12)[..., None, None]
    tone = torch.zeros(batch, SIZE * SIZE)
    tone.scatter_add_(1, (rows * SIZE + columns).reshape(batch, -1), dots.reshape(batch, -1))
    return tone.clamp(-0.3, 0.2).reshape(batch, 1, SIZE, SIZE)


def _masks(kind: Tensor, box: Tensor) -> Tensor:
    """Coverage [R, 1, 64, 64] of one sticker per row, from shape ids [R] and boxes (x, y, size) [R, 3]."""
    x, y, size = box.unbind(1)
    axis = torch.arange(SIZE) + 0.5
    across = ((axis[None] - x[:, None]) / size[:, None] * 2)[:, None].expand(-1, SIZE, -1)
    down = ((axis[None] - y[:, None]) / size[:, None] * 2)[:, :, None].expand(-1, -1, SIZE)
    tiles = sprites()[(size < 24).long(), kind][:, None]
    return F.grid_sample(tiles, torch.stack([across, down], -1), align_corners=False)


def render(scenes: list[Scene]) -> Tensor:
    """Pictures [B, 3, 64, 64] in [0, 1] of the scenes; the same scene always gives the same pixels."""
    if not scenes:
        return torch.zeros(0, 3, SIZE, SIZE)
    table = _tables(scenes)
    contrast, saturation, harmony, _, clutter = table["look"].unbind(1)
    ramp = torch.linspace(0, 1, SIZE)[None, None, :, None]
    top, bottom = SKIES[table["background"]].unbind(1)
    canvas = top[..., None, None] * (1 - ramp) + bottom[..., None, None] * ramp
    canvas = (canvas + _speckle_tone(table["speckles"], clutter)).clamp(0, 1)
    middle = ((top + bottom) / 2)[:, None]
    color = _turn_hue(PALETTE[table["color"]], table["hue"] * HUE_RANGE * (1 - harmony[:, None]))
    color = middle + (color - middle) * (0.55 + 0.45 * contrast[:, None, None])
    for m in range(MAX_STICKERS):
        rows = (table["box"][:, m, 0] > 0).nonzero()[:, 0]
        mask = _masks(table["kind"][rows, m], table["box"][rows, m])
        canvas[rows] += mask * (color[rows, m, :, None, None] - canvas[rows])
    gray = canvas.mean(1, keepdim=True)
    canvas = gray + (canvas - gray) * (0.45 + 0.75 * saturation[:, None, None, None])
    return canvas.clamp(0, 1)
