"""The true aesthetic value of a sticker scene, a documented function of its five look controls."""

from __future__ import annotations

import torch
from torch import Tensor

BEST_SATURATION = 0.6


def aesthetic_terms(look: Tensor) -> Tensor:
    """The five terms [B,5] in [0,1] whose mean is `aesthetic_truth`, in LOOKS order.

    contrast; 1 - |saturation - 0.6| / 0.6, floored at 0; harmony; balance; 1 - clutter.
    look [B,5] in [0,1]. Saturation alone has an optimum inside: vivid is not better than 0.6.
    """
    if look.ndim != 2 or look.shape[1] != 5:
        raise ValueError(
            "look must be [B,5] (contrast, saturation, harmony, balance, clutter), got "
            f"{list(look.shape)}."
        )
    contrast, saturation, harmony, balance, clutter = look.clamp(0, 1).unbind(1)
    chroma = (1 - (saturation - BEST_SATURATION).abs() / BEST_SATURATION).clamp_min(0)
    return torch.stack([contrast, chroma, harmony, balance, 1 - clutter], 1)


def aesthetic_truth(look: Tensor) -> Tensor:
    """True aesthetic value [B] in [0,1] of look controls [B,5]: the mean of five terms.

    Differentiable in the look. With the controls that made a scene it is exact; with the
    reader's estimate it is the truth meter of the aesthetic notebooks.
    """
    return aesthetic_terms(look).mean(1)
