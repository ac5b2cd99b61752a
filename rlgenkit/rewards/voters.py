"""Ensembles of reward models that learn from the same comparisons.

Ensembles are batched: M models are trained at once and never see each other. Differences are always
r(chosen) - r(rejected), where "chosen" is what the label says, right or wrong. Source: Wang et al.
2024 (2401.06080).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .pairwise import pairwise_ce


@dataclass(frozen=True)
class Voters:
    """M reward models of one shape: r(x) = w_out . tanh(x w_in + b_in), linear without w_in.

    w_in [M,D,H] or None; b_in [M,1,H] or None; w_out [M,H] (linear: [M,D]).
    """

    w_in: Tensor | None
    b_in: Tensor | None
    w_out: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """[M, N] scores of features [N,D] or [M,N,D] (differentiable)."""
        many = features.expand(len(self.w_out), *features.shape[-2:])
        hidden = many if self.w_in is None else torch.tanh(many @ self.w_in + self.b_in)
        return (hidden @ self.w_out[:, :, None])[..., 0]

    def parameters(self) -> list[Tensor]:
        """The tensors that are trained."""
        return [w for w in (self.w_in, self.b_in, self.w_out) if w is not None]


def new_voters(models: int, dims: int, hidden: int, generator: torch.Generator) -> Voters:
    """M untrained voters on D features; hidden 0 = linear. float32, gradients on."""
    if min(models, dims) < 1 or hidden < 0:
        raise ValueError(
            f"voters need models, dims >= 1 and hidden >= 0, got {models}, {dims}, {hidden}."
        )
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    if not hidden:
        return Voters(None, None, torch.zeros(models, dims).requires_grad_())
    return Voters(
        (draw(models, dims, hidden) / dims**0.5).requires_grad_(),
        torch.zeros(models, 1, hidden).requires_grad_(),
        (draw(models, hidden) / hidden**0.5).requires_grad_(),
    )


def train_voters(
    voters: Voters,
    chosen: Tensor,
    rejected: Tensor,
    generator: torch.Generator,
    *,
    epochs: int = 1,
    batch: int = 32,
    lr: float = 3e-3,
    weight_decay: float = 1e-4,
    rows: Tensor | None = None,
    target: Tensor | float = 1.0,
    margin: Tensor | float = 0.0,
    smoothing: Tensor | float = 0.0,
    after_epoch: Callable[[int], None] | None = None,
) -> list[float]:
    """Train all voters at once, in place, each in its own order; mean loss [epochs].

    chosen, rejected [N,D] or [M,N,D]; rows Long[M,K] names the pairs each voter may see (None =
    all); target, margin, smoothing as in `pairwise_ce`, numbers, [N] or [M,N]. Adam acts on each
    number alone, so an ensemble trained together equals models trained one by one.
    after_epoch(k) is called after each epoch, to measure. Raises ValueError on shapes
    that differ, no pairs, or numbers that are not finite.
    """
    models = len(voters.w_out)
    chosen, rejected = (_wide(x, models) for x in (chosen, rejected))
    if (
        chosen.shape != rejected.shape
        or not chosen.shape[1]
        or not bool((torch.isfinite(chosen) & torch.isfinite(rejected)).all())
    ):
        raise ValueError(
            f"chosen and rejected need one shape [N,D] with N >= 1 and finite "
            f"numbers, got {list(chosen.shape)} and {list(rejected.shape)}."
        )
    n = chosen.shape[1]
    rows = torch.arange(n).expand(models, n) if rows is None else rows
    if rows.ndim != 2 or len(rows) != models or not rows.shape[1]:
        raise ValueError(
            f"rows must name the pairs of each of {models} voters, [{models},K] with "
            f"K >= 1, got {list(rows.shape)}."
        )
    marks = [
        torch.as_tensor(v, dtype=chosen.dtype).expand(models, n)
        for v in (target, margin, smoothing)
    ]
    optimizer = torch.optim.AdamW(voters.parameters(), lr=lr, weight_decay=weight_decay)
    owner, losses = torch.arange(models)[:, None], []
    for _ in range(epochs):
        order = rows.gather(1, torch.rand(rows.shape, generator=generator).argsort(1))
        total = 0.0
        for pick in order.split(batch, 1):
            delta = voters.scores(chosen[owner, pick]) - voters.scores(rejected[owner, pick])
            loss = pairwise_ce(delta, *(m[owner, pick] for m in marks)).mean(1)
            optimizer.zero_grad()
            loss.sum().backward()  # the sum keeps the gradient of each voter its own
            optimizer.step()
            total += float(loss.detach().mean()) * pick.shape[1] / rows.shape[1]
        losses.append(total)
        if after_epoch is not None:
            after_epoch(len(losses))
    return losses


def _wide(features: Tensor, models: int) -> Tensor:
    if features.ndim not in (2, 3):
        raise ValueError(f"features must be [N,D] or [M,N,D], got {list(features.shape)}.")
    return features.expand(models, *features.shape[-2:])
