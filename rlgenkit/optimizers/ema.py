"""Exponential moving average of parameters, for evaluation and for old policies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Averages of a fixed list of parameters: average <- decay * average + (1 - decay) * parameter."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float = 0.9) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.parameters, self.decay = list(parameters), decay
        self.averages = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, decay: float | None = None) -> None:
        """Move the averages toward the parameters; decay overrides the default for this call."""
        rate = 1 - (self.decay if decay is None else decay)
        for average, p in zip(self.averages, self.parameters, strict=True):
            average.lerp_(p.detach(), rate)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the parameters hold the averages; afterward their own values again."""
        own = [p.detach().clone() for p in self.parameters]
        self._write(self.averages)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for p, value in zip(self.parameters, values, strict=True):
            p.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        return {str(i): a.clone() for i, a in enumerate(self.averages)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if len(state) != len(self.averages):
            raise ValueError(f"state has {len(state)} tensors, the model has {len(self.averages)}")
        for i, average in enumerate(self.averages):
            average.copy_(state[str(i)])
