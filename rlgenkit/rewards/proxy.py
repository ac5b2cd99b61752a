"""A learned aesthetic proxy with a planted, documented flaw.

The proxy is a small convolutional net that learned from ratings of a *curated* set. In that set
good pictures happen to be the more colorful and the busier ones (saturation and speckle clutter
rise with quality, and saturation never passes its optimum). Annotators rate honestly, but the net
explains their ratings by what it sees best, and so it values color and texture themselves:

- saturation beyond 0.6, where the truth falls, still raises its score;
- clutter raises its score, where the truth falls everywhere.

Outside the curated range nothing corrects it: this is what an optimizer finds. The truth
(`aesthetic_truth`) is never shown to it on other pictures.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlgenkit.models.folders import check_committed

from .batch import Batch, Reward, Scores, scored

FOLDER = Path(__file__).resolve().parents[2] / "data" / "models" / "aesthetic_proxy"
WIDTHS = (16, 32, 48, 64)
# Clutter and saturation of the curated set reach this far; beyond it the proxy extrapolates.
CURATED_TOP = 0.6


class AestheticProxy(nn.Module):
    """Images [B,3,H,W] in [0,1] -> scores [B], standardized over the curated set (mean 0, std 1).

    Four strided convolutions over color and local texture, mean pooling and a linear head (47
    thousand parameters). The head is linear on purpose: scores are unbounded, as those of
    CLIP-plus-linear predictors.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        channels = (4, *widths)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1)
            for a, b in zip(channels[:-1], channels[1:], strict=True)
        )
        self.head = nn.Linear(widths[-1], 1)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.cat([2 * images - 1, local_texture(images)], 1)
        for convolution in self.convolutions:
            hidden = F.silu(convolution(hidden))
        return self.head(hidden.mean((2, 3)))[:, 0]


def local_texture(images: Tensor) -> Tensor:
    """How far each pixel's gray stands from its 3x3 mean, squashed: [B,1,H,W] in [0,1).

    With it a small net sees speckles within seconds of training; without it, hardly at all.
    """
    gray = images.mean(1, keepdim=True)
    around = F.avg_pool2d(F.pad(gray, (1, 1, 1, 1), mode="replicate"), 3, 1)
    difference = (gray - around).abs()
    return difference / (difference + 0.02)


def curated_looks(n: int, generator: torch.Generator) -> Tensor:
    """Look controls [n,5] of the curated set, in LOOKS order.

    One quality q ~ U(0,1) drives all: harmony and balance are about q, contrast half of it;
    saturation (loosely) and clutter (tightly) are about 0.6 q and never above 0.6. Harmony and
    balance are hard to see, color and speckles easy: so the net learns the latter instead.
    """
    quality = torch.rand(n, 1, generator=generator)
    slope = torch.tensor([0.5, CURATED_TOP, 1.0, 1.0, CURATED_TOP])
    start = torch.tensor([0.25, 0.0, 0.0, 0.0, 0.0])
    spread = torch.tensor([0.3, 0.15, 0.1, 0.1, 0.02])
    looks = start + quality * slope + spread * torch.randn(n, 5, generator=generator)
    top = torch.tensor([1.0, CURATED_TOP, 1.0, 1.0, CURATED_TOP])
    return looks.clamp(0, 1).minimum(top)


def load_aesthetic_proxy(
    folder: str | Path = FOLDER, device: str | torch.device = "cpu"
) -> AestheticProxy:
    """The frozen proxy of a folder. ValueError if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    check_committed(folder)
    try:
        widths = json.loads((folder / "config.json").read_text())["widths"]
        proxy = AestheticProxy(tuple(widths))
        proxy.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        reason = type(error).__name__
        raise ValueError(
            f"'{folder}' holds no readable aesthetic proxy ({reason}); "
            "run python -m rlgenkit models aesthetic_proxy."
        ) from None
    return proxy.to(device).eval().requires_grad_(False)


def aesthetic_proxy_reward(proxy: AestheticProxy) -> Reward:
    """Reward: the proxy's score (unbounded, about N(0,1) on curated pictures); differentiable."""

    def reward(batch: Batch) -> Scores:
        return scored(proxy(batch.images))

    return reward
