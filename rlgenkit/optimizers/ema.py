"""Exponential moving average of parameters, for evaluation and for old policies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@torch.no_grad()
def follow(averages: Iterable[Tensor], values: Iterable[Tensor], rate: float) -> None:
    """Move every average in place by `rate` in 0..1 of its distance to its value."""
    for average, value in zip(averages, values, strict=True):
        average.lerp_(value.to(average), rate)


@torch.no_grad()
def _write(targets: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)


class Ema:
    """Averages of a fixed list of parameters: average <- decay * average + (1 - decay) * parameter.

    Float32 at least: near a half-precision weight a step of 1 - decay is less than its rounding.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float = 0.9) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.parameters, self.decay = list(parameters), decay
        wide = (torch.promote_types(p.dtype, torch.float32) for p in self.parameters)
        self.averages = [p.detach().to(w, copy=True) for p, w in zip(self.parameters, wide)]

    def update(self, decay: float | None = None) -> None:
        """Move the averages toward the parameters; decay overrides the default for this call."""
        follow(self.averages, self.parameters, 1 - (self.decay if decay is None else decay))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the parameters hold the averages; afterward their own values again."""
        own = [p.detach().clone() for p in self.parameters]
        _write(self.parameters, self.averages)
        try:
            yield
        finally:
            _write(self.parameters, own)

    def state_dict(self) -> dict[str, Tensor]:
        return {str(i): a.clone() for i, a in enumerate(self.averages)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if len(state) != len(self.averages):
            raise ValueError(f"state has {len(state)} tensors, the model has {len(self.averages)}")
        _write(self.averages, [state[str(i)] for i in range(len(state))])
