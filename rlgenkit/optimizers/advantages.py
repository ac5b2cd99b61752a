"""From rewards to advantages. Statistics in float64 over explicit group ids; results in float32.

Group ids are a Long[B] key: rows of a prompt need not be neighbors. Standard deviations are
population ones (divide by n), as in the reference codes. Invalid rows enter no statistic and get
advantage 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


def _valid(values: Tensor, valid: Tensor | None) -> Tensor:
    """Bool[B]; raises when a row that counts as valid is not finite."""
    mask = torch.ones_like(values, dtype=torch.bool)
    if valid is not None:
        mask = valid.to(values.device).bool()
    bad = mask & ~torch.isfinite(values)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(f"reward of sample {row} is {float(values[row])}: mark it as invalid")
    return mask


def group_moments(
    values: Tensor, groups: Tensor, valid: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per row: mean, population std, number of valid rows and Bool "all equal" of its group, all
    [B].
    """
    if groups.shape != values.shape or values.ndim != 1:
        shapes = f"{tuple(values.shape)} and {tuple(groups.shape)}"
        raise ValueError(f"values and groups must both be [B], got {shapes}")
    mask = _valid(values, valid)
    ids, index = groups.to(values.device).unique(return_inverse=True)
    size, v = len(ids), torch.where(mask, values.double(), 0.0)
    count = v.new_zeros(size).index_add_(0, index, mask.double())
    mean = torch.zeros_like(count).index_add_(0, index, v) / count.clamp(min=1)
    deviation = torch.where(mask, v - mean[index], 0.0)
    variance = torch.zeros_like(count).index_add_(0, index, deviation**2) / count.clamp(min=1)
    high = torch.full_like(count, -torch.inf).scatter_reduce_(
        0, index, torch.where(mask, v, -torch.inf), "amax"
    )
    low = torch.full_like(count, torch.inf).scatter_reduce_(
        0, index, torch.where(mask, v, torch.inf), "amin"
    )
    # compare extremes: the rounded variance of equal rewards need not be exactly 0
    return mean[index], variance.sqrt()[index], count[index], (high <= low)[index]


def group_advantages(
    values: Tensor,
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
    mask = _valid(values, valid)
    mean, spread, _, equal = group_moments(values, groups, mask)
    centered = torch.where(mask & ~equal, values.double() - mean, 0.0)
    if std == "group":
        centered = centered / (spread + eps)
    elif std == "batch" and mask.any():
        centered = centered / (values.double()[mask].std(correction=0) + eps)
    return _clamped(centered, clamp)


def batch_advantages(
    values: Tensor, eps: float = 1e-8, clamp: float | None = 5.0, valid: Tensor | None = None
) -> Tensor:
    """(r - batch mean) / (batch std + eps) for values [B] -> float32 [B] (DDPO without tracking)."""
    one_group = torch.zeros_like(values, dtype=torch.long)
    return group_advantages(values, one_group, "group", eps, clamp, valid)


def standardize_then_sum(
    values: Tensor,
    groups: Tensor,
    weights: Sequence[float],
    std: str = "group",
    eps: float = 1e-4,
    clamp: float | None = 5.0,
    valid: Tensor | None = None,
) -> Tensor:
    """Multi-reward advantages: standardize each reward [R, B] on its own, then add (MixGRPO, GDPO).

    Adding raw rewards instead lets the one of largest spread decide alone. valid [B] or [R, B].
    """
    if values.ndim != 2 or len(weights) != len(values):
        shape = tuple(values.shape)
        raise ValueError(f"values must be [R, B] for {len(weights)} weights, got {shape}")
    masks = [None] * len(values) if valid is None else valid.expand(values.shape)
    parts = [
        w * group_advantages(v, groups, std, eps, None, m).double()
        for v, w, m in zip(values, weights, masks, strict=True)
    ]
    return _clamped(torch.stack(parts).sum(0), clamp)


def _clamped(advantages: Tensor, clamp: float | None) -> Tensor:
    if clamp is not None:
        advantages = advantages.clamp(-clamp, clamp)
    return advantages.float()


def nonzero_rows(advantages: Tensor) -> Tensor:
    """Long: rows worth a forward pass; groups without variance carry no policy gradient."""
    return advantages.nonzero().flatten()


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
        values: Tensor,
        eps: float = 1e-6,
        clamp: float | None = 5.0,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Insert values [B] under their keys (prompt texts or ids), return advantages float32 [B]."""
        if len(keys) != len(values):
            raise ValueError(f"{len(keys)} keys for {len(values)} values")
        mask = _valid(values, valid)
        rows = mask.nonzero().flatten().tolist()
        exact = values.double().cpu()
        for row in rows:
            buffer = self.buffers.setdefault(keys[row], deque(maxlen=self.buffer_size))
            buffer.append(float(exact[row]))
        out = torch.zeros(len(values), dtype=torch.float64)
        for row in rows:
            buffer = self.buffers[keys[row]]
            known = exact[rows]
            if len(buffer) >= self.min_count:
                known = torch.tensor(list(buffer), dtype=torch.float64)
            out[row] = (exact[row] - known.mean()) / (known.std(correction=0) + eps)
        return _clamped(out, clamp).to(values.device)

    def state_dict(self) -> dict:
        """JSON-able state (keys must be strings or integers for that)."""
        buffers = [[key, list(buffer)] for key, buffer in self.buffers.items()]
        return {"buffer_size": self.buffer_size, "min_count": self.min_count, "buffers": buffers}

    def load_state_dict(self, state: dict) -> None:
        self.buffer_size, self.min_count = state["buffer_size"], state["min_count"]
        self.buffers = {key: deque(v, maxlen=self.buffer_size) for key, v in state["buffers"]}
