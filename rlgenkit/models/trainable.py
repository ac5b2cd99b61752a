"""What of a network is trained, and how to go back to where it started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from .lora import add_lora, attention_inside, lora_parameters, reference


@dataclass(frozen=True, eq=False)
class Trainable:
    """The trained parameters of a network; `start`: their first values, None where an adapter is
    trained, which is switched off instead."""

    network: nn.Module
    parameters: list[nn.Parameter]
    start: list[Tensor] | None

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the network computes what it did before training. No weight is copied."""
        with reference(self.network) if self.start is None else nullcontext():
            self._swap()
            try:
                yield
            finally:
                self._swap()

    def _swap(self) -> None:
        for i, first in enumerate(self.start or ()):
            weight = self.parameters[i]
            # The graph of an earlier forward keeps its weights: they are back before its backward.
            weight.data, self.start[i] = first, weight.data


def make_trainable(
    network: nn.Module, rank: int, seed: int, part: nn.Module | None = None, top: int | None = None
) -> Trainable:
    """An adapter of `rank` drawn from `seed` (rank 0: the one that is there), else the whole network.

    part: the only part that is trained; top: as in `add_lora`.
    """
    if rank:
        add_lora(network, rank, None, part and attention_inside(network, part), seed, top)
    if parameters := lora_parameters(network):
        return Trainable(network, parameters, None)
    network.requires_grad_(False)
    parameters = list((part or network).requires_grad_(True).parameters())
    return Trainable(network, parameters, [p.detach().clone() for p in parameters])
