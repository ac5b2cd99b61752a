"""One optimizer step of a policy gradient over stored trajectories."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .losses import Clip, anchor_terms, ppo_clip_terms, ratio_stats, reinforce_terms

Replay = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""fn(steps Long[k], rows Long[b]) -> (log_probs [k, b], means [k, b, ...])."""


def make_optimizer(
    parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 1e-4
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; the fused kernel where they live on CUDA."""
    trainable = [p for p in parameters if p.requires_grad]
    if not trainable:
        raise ValueError("no parameter requires a gradient: unfreeze the network or add LoRA first")
    fused = trainable[0].is_cuda
    return torch.optim.AdamW(trainable, lr=lr, weight_decay=weight_decay, fused=fused)


def _chunks(steps: Tensor, rows: Tensor, k: int, b: int) -> Iterator[tuple[Tensor, Tensor]]:
    for some_rows in rows.split(b):
        for some_steps in steps.split(k):
            yield some_steps, some_rows


def _check_terms(
    terms: Tensor, log_probs: Tensor, old: Tensor, steps: Tensor, rows: Tensor
) -> None:
    """Raise FloatingPointError naming the first bad step and sample of terms [k, b]."""
    good = torch.isfinite(terms)
    if good.all():
        return
    k, b = (~good).nonzero()[0].tolist()
    raise FloatingPointError(
        f"non-finite loss at step {int(steps[k])}, sample {int(rows[b])}: log-prob "
        f"{float(log_probs.detach()[k, b]):.4g}, stored log-prob {float(old[k, b]):.4g}"
    )


@dataclass(frozen=True)
class _Objective:
    """What every chunk of an update shares; advantages [N, B], count = number of trained terms."""

    replay: Replay
    old_log_probs: Tensor
    advantages: Tensor
    clip: Clip | None
    reference: Replay | None
    beta: float
    anchor: Tensor | None
    count: int


def _backward(o: _Objective, steps: Tensor, rows: Tensor, sums: dict[str, Tensor]) -> None:
    """Add the gradient of one chunk (steps [k], rows [b]) and its statistics to `sums`."""
    log_probs, means = o.replay(steps, rows)
    old, advantages = o.old_log_probs[steps][:, rows], o.advantages[steps][:, rows]
    if o.clip is None:
        terms = reinforce_terms(log_probs, advantages)
    else:
        terms = ppo_clip_terms(log_probs, old, advantages, o.clip)
    stats = ratio_stats(log_probs, old, o.clip)
    if o.beta > 0:
        with torch.no_grad():
            _, reference_means = o.reference(steps, rows)
        penalty = anchor_terms(means, reference_means, o.anchor[steps.to(o.anchor.device)])
        terms = terms + o.beta * penalty
        stats["penalty"] = penalty.detach().sum()
    _check_terms(terms, log_probs, old, steps, rows)
    (terms.sum() / o.count).backward()
    stats["loss"] = terms.detach().sum()
    for name, value in stats.items():
        known = sums.get(name, torch.zeros_like(value))
        sums[name] = torch.maximum(known, value) if name == "deviation" else known + value


def policy_gradient_update(
    replay: Replay,
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[nn.Parameter],
    old_log_probs: Tensor,
    advantages: Tensor,
    steps: Tensor,
    clip: Clip | None = 1e-4,
    rows: Tensor | None = None,
    reference: Replay | None = None,
    beta: float = 0.0,
    anchor: Tensor | None = None,
    batch_size: int | None = None,
    steps_per_forward: int = 1,
    max_grad_norm: float = 1.0,
) -> dict[str, float]:
    """One optimizer step on all `steps` Long[K] of all `rows` Long[R] (None: the whole batch).

    old_log_probs [N, B] from the rollout; advantages [B], or [N, B] when they differ by step. clip
    None is REINFORCE (strictly on-policy). reference: a replay of the reference policy, whose means
    enter beta * anchor[step] * mean (mu - mu_ref)^2 (anchor [N] from anchor_weights). The gradient
    is accumulated in forwards of batch_size rows times steps_per_forward steps; every term counts
    1/(K R), so the result does not depend on the split. Returns loss, penalty, clip_fraction,
    approx_kl, ratio_mean, ratio_deviation (max |ratio - 1|: 0 before the first update) and
    grad_norm. Non-finite values raise FloatingPointError with step and sample named, and leave the
    parameters as they were.
    """
    parameters = [p for p in parameters if p.requires_grad]
    rows = torch.arange(old_log_probs.shape[1]) if rows is None else rows.cpu()
    steps = torch.as_tensor(steps, dtype=torch.long).cpu()
    _check_request(steps, rows, reference, beta, anchor)
    advantages = advantages.to(old_log_probs.device).expand(old_log_probs.shape)
    count, sums = len(rows) * len(steps), {}
    o = _Objective(replay, old_log_probs, advantages, clip, reference, beta, anchor, count)
    optimizer.zero_grad(set_to_none=True)
    batch_size = batch_size or len(rows)
    try:
        for some_steps, some_rows in _chunks(steps, rows, steps_per_forward, batch_size):
            _backward(o, some_steps, some_rows, sums)
        norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        if not torch.isfinite(norm):
            _name_bad_gradient(o, parameters, steps, rows)
        optimizer.step()
    finally:
        optimizer.zero_grad(set_to_none=True)
    return _summary(sums, count, norm)


def _check_request(
    steps: Tensor, rows: Tensor, reference: Replay | None, beta: float, anchor: Tensor | None
) -> None:
    if len(rows) == 0 or len(steps) == 0:
        raise ValueError("nothing to train on: no rows (are all advantages 0?) or no steps")
    if beta > 0 and (reference is None or anchor is None):
        raise ValueError("beta > 0 needs a reference replay and anchor weights")
    if beta > 0 and torch.isnan(anchor[steps.to(anchor.device)]).any():
        raise ValueError("the anchor is undefined at deterministic steps: train the others")


def _summary(sums: dict[str, Tensor], count: int, norm: Tensor) -> dict[str, float]:
    def mean(name: str) -> float:
        return float(sums[name]) / count if name in sums else 0.0

    return {
        "loss": mean("loss"),
        "penalty": mean("penalty"),
        "clip_fraction": mean("clipped"),
        "approx_kl": mean("square"),
        "ratio_mean": mean("ratio"),
        "ratio_deviation": float(sums["deviation"]),
        "grad_norm": float(norm),
    }


def _name_bad_gradient(
    o: _Objective, parameters: list[nn.Parameter], steps: Tensor, rows: Tensor
) -> None:
    """The summed gradient is not finite: repeat term by term to find the step and sample, and
    raise.
    """
    for some_steps, some_rows in _chunks(steps, rows, 1, 1):
        for p in parameters:
            p.grad = None
        try:
            _backward(o, some_steps, some_rows, {})
        except RuntimeError as error:  # log-probs kept from the rollout have one backward only
            message = "non-finite gradient: replay the trajectory to find its step and sample"
            raise FloatingPointError(message) from error
        if not all(torch.isfinite(p.grad).all() for p in parameters if p.grad is not None):
            raise FloatingPointError(
                f"non-finite gradient at step {int(some_steps[0])}, sample {int(some_rows[0])}: "
                "the loss is finite, so look for a square root or division at 0 in the network"
            )
    raise FloatingPointError("non-finite gradient norm although every term's gradient is finite")
