"""Ensembles of reward models whose votes tell how much a label deserves belief.

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


@dataclass(frozen=True)
class Strength:
    """What voters think of each labeled pair: mean and std [N] of r(chosen) - r(rejected).

    mean < 0: the voters contradict the label; near 0: they do not know; > 0: they agree.
    """

    mean: Tensor
    std: Tensor


def vote(differences: Tensor, counted: Tensor | None = None) -> Strength:
    """Preference strength from voters' differences [M,N] (Wang et al. 2024, section 2.1).

    counted Bool[M,N]: which votes count, for out-of-fold voting those of voters that never saw
    the pair. The std is that of the population, as in the paper. Raises ValueError where a pair
    has no vote.
    """
    counted = torch.ones_like(differences, dtype=torch.bool) if counted is None else counted
    if counted.shape != differences.shape or differences.ndim != 2:
        raise ValueError(
            f"votes and counted must both be [M,N], got {list(differences.shape)} "
            f"and {list(counted.shape)}."
        )
    voices = counted.sum(0)
    if bool((voices == 0).any()):
        raise ValueError(
            f"{int((voices == 0).sum())} pairs have no vote; use fewer folds or more voters."
        )
    mean = torch.where(counted, differences, 0).sum(0) / voices
    spread = torch.where(counted, (differences - mean) ** 2, 0).sum(0) / voices
    return Strength(mean, spread.sqrt())


def fold_rows(
    pairs: int, models: int, folds: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rows Long[M,K] that each voter trains on, and Bool[M,N] of the pairs it never sees.

    Each block of `folds` voters shares one random division of the pairs and leaves out one part
    each, so that every pair is voted on by models / folds voters that do not know its label.
    models must be a multiple of folds; K = N - ceil(N / folds) (longer parts lose no more pairs).
    """
    if folds < 2 or models % folds or pairs < folds:
        raise ValueError(
            f"out-of-fold voting needs folds >= 2, models a multiple of folds and "
            f"pairs >= folds, got {folds}, {models} and {pairs}."
        )
    left_out = torch.zeros(models, pairs, dtype=torch.bool)
    for start in range(0, models, folds):
        part = torch.randperm(pairs, generator=generator).argsort() % folds
        left_out[start : start + folds] = part == torch.arange(folds)[:, None]
    keep = pairs - int(left_out.sum(1).max())
    shuffled = torch.rand(models, pairs, generator=generator).masked_fill(left_out, 2.0).argsort(1)
    return shuffled[:, :keep], left_out


@dataclass(frozen=True)
class Treatment:
    """How each pair enters the loss: flip Bool[N] (swap the two), margin [N], smoothing [N]."""

    flip: Tensor
    margin: Tensor
    smoothing: Tensor


def treat(
    strength: Tensor, flip_share: float = 0.0, smoothing: float = 0.0, margin: bool = False
) -> Treatment:
    """Turn strength [N] into a treatment of the labels (Wang et al. 2024, section 2.2).

    flip_share: the lowest share of the pairs is swapped where its strength is negative;
    smoothing in [0,0.5]: applied where strength is negative and the label was not swapped;
    margin: every pair's |strength| after flipping, 0 for a negative one that stays.
    """
    if not 0 <= flip_share <= 1:
        raise ValueError(f"flip_share must lie in [0,1], got {flip_share}.")
    rank = strength.argsort().argsort()
    flip = (rank < round(flip_share * len(strength))) & (strength < 0)
    own = torch.where(flip, -strength, strength)
    soft = torch.where(own < 0, smoothing, 0.0)
    return Treatment(flip, own.clamp_min(0) * float(margin), soft)


def swapped(chosen: Tensor, rejected: Tensor, flip: Tensor) -> tuple[Tensor, Tensor]:
    """(chosen, rejected) [N,D] with the two exchanged where flip Bool[N]."""
    return (
        torch.where(flip[:, None], rejected, chosen),
        torch.where(flip[:, None], chosen, rejected),
    )
