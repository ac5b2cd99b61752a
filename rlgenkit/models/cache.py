"""A key-value cache with room for the tokens to come, so that none is copied at every token."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """Keys and values [B, heads, L, d] as views of buffers that hold `new` places more.

    The layer that it takes over joins all L tokens with the next one into new memory each time,
    which takes longer than a small network's own work. Beyond its room it does the same.
    """

    def __init__(self, layer: DynamicLayer, new: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values, self.buffers = layer.keys, layer.values, []
        for held in (layer.keys, layer.values):
            batch, heads, length, size = held.shape
            buffer = held.new_empty(batch, heads, length + new, size)
            buffer[:, :, :length] = held
            self.buffers.append(buffer)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append [B, heads, k, d] in place; returns all keys and values so far."""
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if end > self.buffers[0].shape[2]:
            return super().update(key_states, value_states, *args, **kwargs)
        for buffer, states in zip(self.buffers, (key_states, value_states)):
            buffer[:, :, start:end] = states
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values


def make_room(cache: Any, new: int) -> None:
    """Give every plainly growing layer of a cache room for `new` tokens; others (sliding windows,
    states of fixed size) stay as they are."""
    for i, layer in enumerate(getattr(cache, "layers", ())):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[i] = RoomyLayer(layer, new)
