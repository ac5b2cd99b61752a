"""From rewards to advantages. Statistics in float64 over explicit group ids; results in float32.

Rewards are a tensor [B], with Bool[B] `valid` where some are missing, or `Scores` as they are.

Group ids are a Long[B] key: rows of a prompt need not be neighbors. Standard deviations are
population ones (divide by n), as in the reference codes. Invalid rows enter no statistic and get
advantage 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from rlgenkit.records import Scores, checked, group_moments, standardized


def group_advantages(
    values: Tensor | Scores,
    groups: Tensor,
    std: str = "group",
    eps: float = 1e-4,
    clamp: float | None = 5.0,
    valid: Tensor | None = None,
) -> Tensor:
    """GRPO: (r - group mean) / (std + eps) for values [B] -> float32 [B].

    std: "group", "batch" (Flow-GRPO's global std over all valid rows) or "none" (mean only, Dr.
    GRPO). A group whose rewards are all equal, or with one valid row, gets exactly 0.
    """
    if std not in ("group", "batch", "none"):
        raise ValueError(f"std must be 'group', 'batch' or 'none', got {std!r}")
    numbers, mask = checked(values, valid)
    if std == "group":
        return _finished(standardized(numbers, groups, eps, mask), clamp, values)
    mean, _, _, equal = group_moments(numbers, groups, mask)
    centered = torch.where(mask & ~equal, numbers - mean, 0.0)
    if std == "batch" and mask.any():
        centered = centered / (numbers[mask].std(correction=0) + eps)
    return _finished(centered, clamp, values)


def batch_advantages(
    values: Tensor | Scores,
    eps: float = 1e-8,
    clamp: float | None = 5.0,
    valid: Tensor | None = None,
) -> Tensor:
    """(r - batch mean) / (batch std + eps) for values [B] -> float32 [B] (DDPO without tracking)."""
    one_group = torch.zeros_like(getattr(values, "valid", values), dtype=torch.long)
    return group_advantages(values, one_group, "group", eps, clamp, valid)


def _finished(advantages: Tensor, clamp: float | None, like: Tensor | Scores) -> Tensor:
    if clamp is not None:
        advantages = advantages.clamp(-clamp, clamp)
    return advantages.float().to(like.device)


class PromptTracker:
    """Running per-prompt reward statistics (the tracker of DDPO's code).

    Keeps the last buffer_size rewards of every key. New rewards are inserted first; a prompt with
    fewer than min_count of them falls back to the statistics of the batch.
    """

    def __init__(self, buffer_size: int = 32, min_count: int = 16) -> None:
        if not 1 <= min_count <= buffer_size:
            raise ValueError(f"min_count {min_count} must be in 1..buffer_size ({buffer_size})")
        self.buffer_size, self.min_count = buffer_size, min_count
        self.buffers: dict[Hashable, deque[float]] = {}

    def update(
        self,
        keys: Sequence[Hashable],
        values: Tensor | Scores,
        eps: float = 1e-6,
        clamp: float | None = 5.0,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Insert values [B] under their keys (prompt texts or ids), return advantages float32 [B]."""
        exact, mask = checked(values, valid)
        if len(keys) != len(exact):
            raise ValueError(f"{len(keys)} keys for {len(exact)} values")
        rows = mask.nonzero().flatten().tolist()
        for row in rows:
            buffer = self.buffers.setdefault(keys[row], deque(maxlen=self.buffer_size))
            buffer.append(float(exact[row]))
        out = torch.zeros_like(exact)
        for row in rows:
            known = exact[rows]
            if len(buffer := self.buffers[keys[row]]) >= self.min_count:
                known = torch.tensor(buffer, dtype=torch.float64)
            out[row] = (exact[row] - known.mean()) / (known.std(correction=0) + eps)
        return _finished(out, clamp, values)

    def state_dict(self) -> dict:
        """JSON-able state (keys must be strings or integers for that)."""
        buffers = [[key, list(buffer)] for key, buffer in self.buffers.items()]
        return {"buffer_size": self.buffer_size, "min_count": self.min_count, "buffers": buffers}

    def load_state_dict(self, state: dict) -> None:
        self.buffer_size, self.min_count = state["buffer_size"], state["min_count"]
        self.buffers = {key: deque(v, maxlen=self.buffer_size) for key, v in state["buffers"]}
