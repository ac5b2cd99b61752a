"""The truth meter: a detector that reads a picture back into stickers, colors, background and look.

It is trained on rendered scenes and on blurred, noised and autoencoder-decoded ones; its measured
accuracy stands in data/models/reader/README.md. What is optimized is never what judges: rewards that
need a detector take the smaller one in data/models/reward_reader, which never saw a degraded picture.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import looks
from .human import checked_bytes
from .prompts import BACKGROUNDS, COLORS, GLYPHS, KINDS, Prompt
from .scenes import SHAPES, SIZE

STRIDE = 4  # px per cell of the detection grid
MAX_READ = 8  # detections kept per picture
READER = Path(__file__).resolve().parents[2] / "data" / "models" / "reader"
REWARD_READER = READER.with_name("reward_reader")
LEARNED_LOOKS = (0, 1, 4)  # contrast and saturation are read; clutter only helps in training


@dataclass(frozen=True)
class Reading:
    """What the reader sees in B pictures: up to M detections each, the background and the look.

    kind [B, M] index into KINDS + GLYPHS; color [B, M] index into COLORS; xy [B, M, 2] and
    size [B, M] in px; score [B, M] in [0, 1]; valid [B, M] score >= 0.5; background [B] index into
    BACKGROUNDS; look [B, 5] in [0, 1], LOOKS order; features [B, F], unit length.
    """

    kind: Tensor
    color: Tensor
    xy: Tensor
    size: Tensor
    score: Tensor
    valid: Tensor
    background: Tensor
    look: Tensor
    features: Tensor


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Reader(nn.Module):
    """Center-point detector on a 16x16 grid with heads for shape, color, box, background and look."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(_block(3, w, 2), _block(w, w))
        self.middle = nn.Sequential(_block(w, 2 * w, 2), _block(2 * w, 2 * w), _block(2 * w, 2 * w))
        self.deep = nn.Sequential(
            _block(2 * w, 3 * w, 2), _block(3 * w, 3 * w), _block(3 * w, 3 * w)
        )
        self.merge = _block(5 * w, 3 * w)
        self.cells = nn.Conv2d(3 * w, 1 + len(SHAPES) + len(COLORS) + 4, 1)
        self.texture = nn.Sequential(
            _block(3, 8), _block(8, 8)
        )  # full resolution: speckles are 2 px
        self.whole = nn.Sequential(
            nn.Linear(9 * w + 8, 4 * w),
            nn.ReLU(),
            nn.Linear(4 * w, len(BACKGROUNDS) + len(LEARNED_LOOKS)),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images [B, 3, 64, 64] in [0, 1] -> cells [B, 37, 16, 16], whole [B, 8], features [B, F]."""
        stem = self.stem(images * 2 - 1)
        middle = self.middle(stem)
        deep = self.deep(middle)
        up = F.interpolate(deep, scale_factor=2, mode="bilinear", align_corners=False)
        cells = self.merge(torch.cat([middle, up], 1))
        features = torch.cat(
            [stem.mean((2, 3)), middle.mean((2, 3)), deep.mean((2, 3)), cells.amax((2, 3))], 1
        )
        texture = self.texture(images * 2 - 1).mean((2, 3))
        return self.cells(cells), self.whole(torch.cat([features, texture], 1)), features


def load_reader(path: str | Path | None = None) -> Reader:
    """The trained reader, frozen, in evaluation mode; `path` is a folder with model.safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    file = Path(path or READER) / "model.safetensors"
    if not file.is_file():
        raise FileNotFoundError(
            f"no reader at {file.parent}; train it with `python -m rlgenkit models reader`"
        )
    content = checked_bytes(file)
    try:
        weights = {k: v.float() if v.is_floating_point() else v for k, v in load(content).items()}
        reader = Reader(width=weights["stem.0.0.weight"].shape[0])
        reader.load_state_dict(weights)
    except (KeyError, RuntimeError, SafetensorError):
        raise ValueError(
            f"{file.name} in {file.parent.name} holds no weights of a reader"
        ) from None
    return reader.eval().requires_grad_(False)


def _peaks(heat: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and flat cell indices [B, MAX_READ] of the local maxima of a heat map [B, 1, G, G].

    A center on the border of cells splits its probability among up to four of them, so a peak's
    score is the largest sum over the 2x2 windows that hold it, at most 1.
    """
    best = F.max_pool2d(heat, 3, 1, 1)
    windows = 4 * F.avg_pool2d(F.pad(heat, (1, 1, 1, 1)), 2, 1)
    around = F.max_pool2d(windows, 2, 1).clamp_max(1)
    return (around * (heat == best)).flatten(1).topk(MAX_READ)


def read(reader: Reader, images: Tensor) -> Reading:
    """Read pictures [B, 3, 64, 64] in [0, 1]; other sizes are refused."""
    if images.ndim != 4 or images.shape[1:] != (3, SIZE, SIZE):
        raise ValueError(
            f"the reader takes pictures [B, 3, {SIZE}, {SIZE}], not {list(images.shape)}"
        )
    with torch.no_grad():
        cells, whole, features = reader(images)
    score, at = _peaks(cells[:, :1].sigmoid())
    picked = cells.flatten(2).gather(2, at[:, None].expand(-1, cells.shape[1], -1)).transpose(1, 2)
    shapes, colors, box, _ = picked[..., 1:].split([len(SHAPES), len(COLORS), 3, 1], -1)
    side = SIZE // STRIDE
    xy = (torch.stack([at % side, at // side], -1) + 0.5 + box[..., :2]) * STRIDE
    size, valid = box[..., 2].exp() * 20, score >= 0.5
    color = colors.argmax(-1)
    look = _look(images, whole[:, len(BACKGROUNDS) :].clamp(0, 1), color, xy, size, valid)
    return Reading(
        shapes.argmax(-1),
        color,
        xy,
        size,
        score,
        valid,
        whole[:, : len(BACKGROUNDS)].argmax(-1),
        look,
        F.normalize(features, dim=1),
    )


def _look(
    images: Tensor, learned: Tensor, color: Tensor, xy: Tensor, size: Tensor, valid: Tensor
) -> Tensor:
    """The five controls [B, 5]: contrast and saturation as the network reads them [B, 3], harmony,
    balance and clutter measured from the picture and its detections."""
    free = ~(looks.inside_boxes(xy, size, pad=2.5) & valid[..., None, None]).any(1)
    contrast, saturation = learned[:, 0], learned[:, 1]
    return torch.stack(
        [
            contrast,
            saturation,
            looks.harmony(images, free, color, xy, size, valid, contrast),
            looks.balance(xy, size, valid),
            looks.clutter(images, free),
        ],
        1,
    )


def words(reading: Reading) -> list[str]:
    """The glyphs of each picture from left to right, as a string."""
    order = reading.xy[..., 0].masked_fill(~reading.valid, 1e4).argsort(1)
    kinds, valid = reading.kind.gather(1, order).tolist(), reading.valid.gather(1, order).tolist()
    return [
        "".join(GLYPHS[k - len(KINDS)] for k, v in zip(row, ok) if v and k >= len(KINDS))
        for row, ok in zip(kinds, valid)
    ]


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance of two short strings."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def _stands(relation: str, first: Tensor, second: Tensor) -> bool:
    """Whether mean centers [2] stand in the relation, by at least 4 px along its axis."""
    dx, dy = (second - first).tolist()
    return {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation] >= 4


def _check_one(reading: Reading, row: int, prompt: Prompt, word: str) -> dict[str, float]:
    """The checks of one picture; nan where the prompt does not ask."""
    nan, valid = float("nan"), reading.valid[row]
    kinds, colors, xy = reading.kind[row][valid], reading.color[row][valid], reading.xy[row][valid]
    background = (
        nan
        if prompt.background is None
        else float(BACKGROUNDS[int(reading.background[row])] == prompt.background)
    )
    if prompt.word is not None:
        right = max(0.0, 1 - edit_distance(word, prompt.word) / len(prompt.word))
        color = float(
            colors.numel() > 0 and colors.mode()[0] == COLORS.index(prompt.groups[0].color)
        )
        return {
            "kind_color": right * color,
            "count": nan,
            "relation": nan,
            "background": background,
            "word": right,
            "correct": float(right == 1 and color == 1 and background != 0),
        }
    match = [
        (kinds == KINDS.index(g.kind)) & (colors == COLORS.index(g.color)) for g in prompt.groups
    ]
    found = [int(m.sum()) for m in match]
    count = sum(max(0.0, 1 - abs(n - g.count) / g.count) for n, g in zip(found, prompt.groups))
    relation = nan
    if prompt.relation is not None:
        relation = float(
            all(found[:2]) and _stands(prompt.relation, xy[match[0]].mean(0), xy[match[1]].mean(0))
        )
    exact = len(kinds) == sum(g.count for g in prompt.groups) and all(
        n == g.count for n, g in zip(found, prompt.groups)
    )
    return {
        "kind_color": sum(n > 0 for n in found) / len(found),
        "count": count / len(found),
        "relation": relation,
        "background": background,
        "word": nan,
        "correct": float(exact and relation != 0 and background != 0),
    }


def check(reading: Reading, prompts: list[Prompt]) -> dict[str, Tensor]:
    """How far each picture does what its prompt asks, as float tensors [B] in [0, 1] or nan.

    kind_color  share of the asked kind-color pairs that are there at all
    count       1 - |n - n*| / n* per group, floored at 0, averaged (Flow-GRPO's counting reward)
    relation    1 if the two groups' centers stand in the asked relation, else 0
    background  1 if right; word: 1 - edit distance / length, floored at 0
    correct     1 only if everything asked is right and nothing else is there
    partial     mean of those of kind_color, count, relation, background, word that apply
    """
    if len(prompts) != len(reading.kind):
        raise ValueError(f"{len(reading.kind)} pictures were read but {len(prompts)} prompts given")
    rows = [_check_one(reading, i, p, w) for i, (p, w) in enumerate(zip(prompts, words(reading)))]
    scores = {
        name: torch.tensor([row[name] for row in rows])
        for name in ("kind_color", "count", "relation", "background", "word", "correct")
    }
    parts = torch.stack(
        [scores[n] for n in ("kind_color", "count", "relation", "background", "word")]
    )
    return scores | {"partial": parts.nanmean(0)}
