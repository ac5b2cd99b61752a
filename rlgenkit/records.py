"""The two records that pass from room to room, `Rollout`, what a policy did, and `Scores`, and the
statistics of scores within groups that rewards and optimizers share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Rows = Tensor | Sequence[int] | slice


@dataclass(frozen=True, eq=False)
class Rollout:
    """What a policy did with B prompts, T choices each: image steps, tokens, or actions.

    prompts: B texts, `worlds.Prompt`, rows of ids or start states. groups Long[B]: samples with
    equal ids compete. output: images [B, 3, H, W] in 0..1, B answers, or visited states.
    log_probs float32 [B, T], as they were when sampled. mask Bool[B, T]: what the policy chose
    (tokens up to the end, stochastic steps). path: what the policy needs to replay itself; only the
    policy looks inside. Raises ValueError where the shapes do not agree.
    """

    prompts: Sequence[Any]
    groups: Tensor
    output: Any
    log_probs: Tensor
    mask: Tensor
    path: Any

    def __post_init__(self) -> None:
        sizes = {len(x) for x in (self.prompts, self.groups, self.output, self.log_probs)}
        if self.log_probs.ndim != 2 or self.mask.shape != self.log_probs.shape or len(sizes) > 1:
            raise ValueError(
                f"log_probs and mask must be [samples, choices] for {len(self.groups)} groups, "
                f"{len(self.prompts)} prompts and {len(self.output)} outputs, got "
                f"{list(self.log_probs.shape)} and {list(self.mask.shape)}."
            )

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def images(self) -> Any:
        """The output, by the name under which rewards look for pictures."""
        return self.output

    def rows(self, rows: Rows) -> Rollout:
        """The samples at `rows` (Long[b], a list or a slice)."""
        return Rollout(
            picked(self.prompts, rows),
            self.groups[rows],
            picked(self.output, rows),
            self.log_probs[rows],
            self.mask[rows],
            self.path.rows(rows),
        )

    def columns(self, steps: Sequence[int] | Tensor) -> Rollout:
        """The choices at `steps` (Long[K] or a list, each once): of images the trained steps."""
        steps = torch.as_tensor(steps, dtype=torch.long).cpu()
        return replace(
            self,
            log_probs=self.log_probs[:, steps],
            mask=self.mask[:, steps],
            path=self.path.columns(steps),
        )


def picked(things: Any, rows: Rows) -> Any:
    """The entries at `rows` of a tensor, a list, or what is indexed like a tensor."""
    if isinstance(things, (list, tuple)) and not isinstance(rows, slice):
        return [things[i] for i in torch.as_tensor(rows).tolist()]
    return things[rows]


@dataclass(frozen=True)
class Scores:
    """Scores of one batch: values float32 [B], valid Bool[B].

    An invalid sample has no score: its value is 0 and everything downstream leaves it out.
    Use `rewards.scored` to build one from raw numbers. Raises ValueError if it is inconsistent.
    """

    values: Tensor
    valid: Tensor

    def __post_init__(self) -> None:
        for x, kind in ((self.values, torch.float32), (self.valid, torch.bool)):
            if x.ndim != 1 or x.dtype != kind or x.shape != self.valid.shape:
                raise ValueError(
                    "scores are float32 values [B] with valid Bool [B], as scored() builds them; "
                    f"got {x.dtype} {list(x.shape)}"
                )
        checked(self.values.detach(), self.valid)
        if (self.values.detach()[~self.valid] != 0).any():
            raise ValueError("invalid samples must carry the value 0; build them with scored().")

    @property
    def device(self) -> torch.device:
        return self.values.device


def checked(scores: Tensor | Scores, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(float64 values, 0 where invalid; Bool) of a tensor [...] or `Scores`, both on the CPU.

    The one check of numbers that are compared or averaged (float64, which Apple's GPUs lack, costs
    nothing here). ValueError names the first valid entry that is not finite.
    """
    if isinstance(scores, Scores):
        valid = scores.valid if valid is None else scores.valid & valid.to(scores.device)
        scores = scores.values
    values = scores.cpu().double()
    mask = torch.ones_like(values, dtype=torch.bool) if valid is None else valid.cpu().bool()
    bad = mask & ~values.isfinite()
    if bad.any():
        where = bad.nonzero()[0].tolist()
        name = where[0] if len(where) == 1 else where
        raise ValueError(
            f"score of sample {name} is {values[*where]}: mark it as invalid or mend it"
        )
    return torch.where(mask, values, 0.0), mask


def group_moments(
    values: Tensor | Scores, groups: Tensor, valid: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each row's group: mean, population std and number of valid rows, float64, and Bool "all
    equal", all [B] on the CPU. groups Long[B]: rows of a group need not be neighbors.
    """
    v, mask = checked(values, valid)
    if groups.shape != v.shape or v.ndim != 1:
        shapes = f"{list(v.shape)} and {list(groups.shape)}"
        raise ValueError(f"values and groups must both have the shape [B], got {shapes}")
    ids, index = groups.cpu().unique(return_inverse=True)

    def total(x: Tensor) -> Tensor:
        return v.new_zeros(len(ids)).index_add_(0, index, x)

    count = total(mask.double())
    mean = total(v) / count.clamp(min=1)
    deviation = torch.where(mask, v - mean[index], 0.0)
    variance = total(deviation**2) / count.clamp(min=1)
    ends = [
        torch.full_like(count, -far).scatter_reduce_(0, index, torch.where(mask, v, -far), kind)
        for far, kind in ((torch.inf, "amax"), (-torch.inf, "amin"))
    ]
    # compare extremes: the rounded variance of equal rewards need not be exactly 0
    return mean[index], variance.sqrt()[index], count[index], (ends[0] <= ends[1])[index]


def standardized(
    scores: Tensor | Scores, groups: Tensor, eps: float, valid: Tensor | None = None
) -> Tensor:
    """(value - mean) / (std + eps) of its group, float64 [B] on the CPU; exactly 0 for an invalid
    row, a group of equal values, or a single valid row."""
    values, mask = checked(scores, valid)
    mean, std, _, equal = group_moments(values, groups, mask)
    return torch.where(mask & ~equal, (values - mean) / (std + eps), 0.0)
