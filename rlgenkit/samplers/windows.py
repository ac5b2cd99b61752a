"""Which steps are stochastic, and windows of them."""

from __future__ import annotations

import torch
from torch import Tensor

from .tables import StepTable


def acting_steps(table: StepTable) -> Tensor:
    """Steps Long[K] whose draw reaches the result: the ones that a policy gradient may train.

    All stochastic steps, except the last one where the result is the last clean estimate (final
    "denoised", RLCM as published): nothing sees that draw, so its score has mean 0 and only adds
    variance.
    """
    acts = table.stochastic.clone()
    if table.final == "denoised":
        acts[-1] = False
    return acts.nonzero().flatten()


def random_window(low: int, high: int, size: int, generator: torch.Generator) -> range:
    """Window of `size` steps inside low..high-1, drawn once for the whole batch (Flow-GRPO-Fast)."""
    if size < 1 or high - low < size:
        raise ValueError(f"a window of {size} steps does not fit into {low}..{high - 1}")
    places = high - low - size + 1
    start = torch.randint(places, (1,), generator=generator, device=generator.device)
    return range(low + int(start), low + int(start) + size)
