"""Step-wise preference losses: every denoising step of a preferred chain beats the same step of the other.

D3PO (Yang et al. 2023) reads a chain of K steps as K decisions and gives each of them its own DPO
term. Log-probs and log-ratios are [K, B] (steps, pictures); pairs Long[P, 2] are rows of the batch;
labels [P] are 1 (the first is preferred), -1 (the second) or 0 (a tie).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlgenkit.records import checked
from .losses import Clip, _bounds

REFERENCES = ("pretrained", "round_start")


def pairs_within_groups(groups: Tensor) -> Tensor:
    """All pairs Long[P, 2] of rows with equal group id Long[B], the lower row first; P may be 0."""
    if groups.ndim != 1:
        raise ValueError(f"groups must be Long[B], got shape {list(groups.shape)}")
    same = groups[:, None] == groups[None]
    return same.triu(1).nonzero()


def dominance_labels(scores: Tensor, pairs: Tensor) -> Tensor:
    """Labels [P] from scores [B], or [R, B] where several count: 1 if the first is nowhere worse and
    somewhere better (Pareto dominance), -1 the other way round, else 0. ValueError for nan.
    """
    values, rows = checked(scores[None] if scores.ndim == 1 else scores)[0], pairs.cpu()
    first, second = values[:, rows[:, 0]], values[:, rows[:, 1]]
    wins = (first >= second).all(0) & (first > second).any(0)
    losses = (first <= second).all(0) & (first < second).any(0)
    return (wins.float() - losses.float()).to(scores.device)


def reference_log_probs(kind: str, rollout: Tensor, pretrained: Callable[[], Tensor]) -> Tensor:
    """Log-probs [K, B] of the reference policy, detached.

    "round_start": the policy that drew the pictures, whose log-probs the rollout has stored; it moves
    from round to round. "pretrained": the policy before all training, scored by `pretrained()`; it
    stays, so that a step can never drift further than the clip range.
    """
    if kind not in REFERENCES:
        raise ValueError(f"reference must be one of {', '.join(REFERENCES)}, got {kind!r}")
    if kind == "round_start":
        return rollout.detach()
    with torch.no_grad():
        return pretrained().detach()


def clipped_log_ratio(log_probs: Tensor, reference: Tensor, clip: Clip | None) -> Tensor:
    """log clip(pi / pi_ref, 1 - low, 1 + high) [K, B]; None does not clip.

    Outside the range the gradient is exactly 0 in both directions: nothing pulls a step back that
    left it. The range belongs to the log-prob's reduction, as in `ppo_clip_terms`.
    """
    change = log_probs - reference.detach()
    if clip is None:
        return change
    low, high = _bounds(clip)
    return change.clamp(math.log1p(-low), math.log1p(high))


def step_dpo_terms(
    log_probs: Tensor,
    reference: Tensor,
    pairs: Tensor,
    labels: Tensor,
    beta: float = 0.1,
    clip: Clip | None = 0.1,
) -> Tensor:
    """-log sigmoid(beta h (log rho_first - log rho_second)) per step and pair, [K, P]; h = labels.

    D3PO's loss; rho is the clipped ratio to the reference. A tie gives log 2 and no gradient. With a
    symmetric clip of 0.1 and beta 0.1 a term lies in [0.683, 0.703] whatever is learned, so watch
    `implicit_accuracy` instead.
    """
    if beta <= 0:
        raise ValueError(f"beta must be > 0, got {beta}")
    if pairs.ndim != 2 or pairs.shape[1] != 2 or labels.shape != pairs.shape[:1]:
        shapes = list(pairs.shape), list(labels.shape)
        raise ValueError("pairs must be [P, 2] with labels [P], got {} and {}".format(*shapes))
    if not (labels.abs() <= 1).all():
        raise ValueError("labels must lie in -1..1: 1 first preferred, -1 second, 0 tie")
    ratio = clipped_log_ratio(log_probs, reference, clip)
    margin = ratio[:, pairs[:, 0]] - ratio[:, pairs[:, 1]]
    return -F.logsigmoid(beta * labels.to(margin) * margin)


def implicit_accuracy(
    log_probs: Tensor, reference: Tensor, pairs: Tensor, labels: Tensor
) -> Tensor:
    """Share of steps and decided pairs with log rho of the preferred above the other's: scalar.

    Not clipped; equal ratios count half (0.5 before any update); nan if all pairs are ties.
    """
    ratio = (log_probs - reference).detach()
    margin = labels.to(ratio) * (ratio[:, pairs[:, 0]] - ratio[:, pairs[:, 1]])
    decided = margin[:, labels != 0]
    return (decided.sign() / 2 + 0.5).mean()


def silenced_share(log_probs: Tensor, reference: Tensor, clip: Clip) -> Tensor:
    """Share of steps and pictures whose ratio lies outside the clip range (no gradient): scalar."""
    low, high = _bounds(clip)
    change = (log_probs - reference).detach()
    return ((change < math.log1p(-low)) | (change > math.log1p(high))).float().mean()


def pair_chunks(pairs: Tensor, size: int | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(numbers of the pairs, their rows Long[b] without repeats, pairs within these rows) with about
    `size` rows at most (a single pair always goes through); None: everything at once.
    """
    numbers: list[int] = []
    rows: set[int] = set()
    for k, pair in enumerate(pairs.tolist()):
        if numbers and size is not None and len(rows | set(pair)) > size:
            yield _chunk(pairs, numbers)
            numbers, rows = [], set()
        numbers.append(k)
        rows |= set(pair)
    if numbers:
        yield _chunk(pairs, numbers)


def _chunk(pairs: Tensor, numbers: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    own = torch.tensor(numbers)
    rows, local = pairs[own].unique(return_inverse=True)
    return own, rows, local


def step_dpo_update(
    replay: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[nn.Parameter],
    reference: Tensor,
    pairs: Tensor,
    labels: Tensor,
    steps: Tensor,
    beta: float = 0.1,
    clip: Clip | None = 0.1,
    batch_size: int | None = None,
    max_grad_norm: float = 1.0,
) -> dict[str, float]:
    """One optimizer step on all `steps` Long[K] of all decided pairs; ties are left out.

    replay(steps, rows) -> (log_probs [k, b], means); reference [N, B] log-probs of all N steps.
    Forwards hold at most batch_size rows and all K steps; every term counts 1/(K P), whatever the
    split. Returns loss (with each tie's log 2), accuracy (implicit, before the step), silenced,
    drift (mean |log ratio|) and grad_norm. Raises ValueError without a decided pair, and
    FloatingPointError, with step and picture named, before anything non-finite reaches a weight.
    """
    parameters = [p for p in parameters if p.requires_grad]
    steps, decided = torch.as_tensor(steps, dtype=torch.long).cpu(), (labels != 0).nonzero()[:, 0]
    if len(decided) == 0 or len(steps) == 0:
        raise ValueError("nothing to learn from: every pair is a tie, or there are no steps")
    kept, chosen, seen = pairs[decided], labels[decided], []
    optimizer.zero_grad(set_to_none=True)
    try:
        for own, rows, local in pair_chunks(kept, batch_size):
            new, old = replay(steps, rows)[0], reference[steps][:, rows]
            _check_finite(new, steps, rows)
            terms = step_dpo_terms(new, old, local, chosen[own], beta, clip)
            (terms.sum() / (len(steps) * len(pairs))).backward()
            wide = clip if clip is not None else (0.999999, math.inf)
            seen.append(
                (
                    terms.detach().sum(),
                    len(own),
                    len(rows),
                    implicit_accuracy(new, old, local, chosen[own]),
                    silenced_share(new, old, wide),
                    (new - old).detach().abs().mean(),
                )
            )
        norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError("the gradient of the preference loss is not finite")
        optimizer.step()
    finally:
        optimizer.zero_grad(set_to_none=True)
    return _summary(seen, len(steps), len(pairs), norm)


def _check_finite(log_probs: Tensor, steps: Tensor, rows: Tensor) -> None:
    bad = (~torch.isfinite(log_probs.detach())).nonzero()
    if len(bad):
        k, b = bad[0].tolist()
        raise FloatingPointError(
            f"non-finite log-prob at step {int(steps[k])}, picture "
            f"{int(rows[b])}: check the stored path and the network"
        )


def _summary(seen: list[tuple], steps: int, pairs: int, norm: Tensor) -> dict[str, float]:
    """Means over terms: by pair for loss and accuracy, by picture for the rest."""
    loss, count, rows, accuracy, silenced, drift = (
        torch.tensor([float(x) for x in column], dtype=torch.float64) for column in zip(*seen)
    )
    ties = (pairs - count.sum()) * math.log(2)
    return {
        "loss": float(loss.sum() / steps + ties) / pairs,
        "accuracy": float((accuracy * count).sum() / count.sum()),
        "silenced": float((silenced * rows).sum() / rows.sum()),
        "drift": float((drift * rows).sum() / rows.sum()),
        "grad_norm": float(norm),
    }
