"""One optimizer step of a policy gradient over a rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rlgenkit.records import Rollout

from .losses import AdvantageLoss, Clip, Loss, anchor_terms, ratio_stats
from .tokens import Average, average_of

Replay = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""fn(steps Long[k], rows Long[b]) -> (log_probs [k, b], means [k, b, ...])."""


def make_optimizer(
    parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 1e-4
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; the fused kernel where they live on CUDA."""
    trainable = [p for p in parameters if p.requires_grad]
    if not trainable:
        raise ValueError("no parameter requires a gradient: unfreeze the network or add LoRA first")
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in trainable):
        raise ValueError("half-precision weights lose small steps: train an adapter, or in float32")
    fused = trainable[0].is_cuda
    return torch.optim.AdamW(trainable, lr=lr, weight_decay=weight_decay, fused=fused)


@dataclass(frozen=True, eq=False)
class _Objective:
    """What every chunk of an update shares.

    evaluate(rows [b], columns [k]) -> (log_probs [b, k], penalties [b, k] or None), with graphs;
    old (0 off the mask), mask, weights [B, T] and pull [B, T]: the factors of terms and of penalties in the loss.
    """

    evaluate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
    loss: Loss
    old: Tensor
    mask: Tensor
    average: Average
    beta: float
    weights: Tensor
    pull: Tensor


def _chunks(rows: Tensor, columns: Tensor, b: int, k: int) -> Iterator[tuple[Tensor, Tensor]]:
    for some_rows in rows.split(b):
        for some_columns in columns.split(k):
            yield some_rows, some_columns


def _terms(
    o: _Objective, now: Tensor, chosen: Tensor, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Terms, their slope d loss / d now, and stored log-probs, each [b, k], of one chunk now [b, k].

    The loss sees all T choices of its rows, those outside the chunk as they were stored; it runs on
    detached numbers, and its slope is then sent back through the policy.
    """
    old = o.old[rows].to(now.device)
    frame = old.clone()
    frame[:, columns] = now
    frame.requires_grad_(True)
    terms = o.loss(frame, old, rows)
    if terms.shape != old.shape:
        raise ValueError(f"the loss must return terms {list(old.shape)}, got {list(terms.shape)}")
    terms, old = torch.where(chosen, terms[:, columns], 0.0), old[:, columns]
    _check_terms(terms, now, old, rows, columns)
    weights = o.weights[rows][:, columns].to(now.device)
    (slope,) = torch.autograd.grad(terms, frame, weights)
    if len(columns) < frame.shape[1] and slope.count_nonzero() > slope[:, columns].count_nonzero():
        raise ValueError(
            "the loss joins choices that were replayed apart: give the policy a `chunk` of at least "
            f"{frame.numel()} rows, or pass a smaller batch"
        )
    return terms, slope[:, columns], old


def _check_terms(
    terms: Tensor, log_probs: Tensor, old: Tensor, rows: Tensor, columns: Tensor
) -> None:
    """Raise FloatingPointError naming the first bad step and sample of terms [b, k]."""
    good = torch.isfinite(terms.T)
    if good.all():
        return
    k, b = (~good).nonzero()[0].tolist()
    raise FloatingPointError(
        f"non-finite loss at step {int(columns[k])}, sample {int(rows[b])}: log-prob "
        f"{float(log_probs[b, k]):.4g}, stored log-prob {float(old[b, k]):.4g}"
    )


def _backward(o: _Objective, rows: Tensor, columns: Tensor, sums: dict[str, Tensor]) -> None:
    """Add the gradient of one chunk (rows [b], columns [k]) and its statistics to `sums`."""
    chosen = o.mask[rows][:, columns]
    if not chosen.any():
        return
    new, penalty = o.evaluate(rows, columns)
    chosen = chosen.to(new.device)
    now = torch.where(chosen, new.detach(), 0.0)
    terms, slope, old = _terms(o, now, chosen, rows, columns)
    outputs, slopes = [new], [slope]
    # Step-major, whatever the layout of the policy: sums do not depend on it.
    stats = ratio_stats(now.T[chosen.T], old.T[chosen.T], getattr(o.loss, "clip", None))
    if penalty is not None:
        _check_terms(penalty.detach(), now, old, rows, columns)
        outputs, slopes = [new, penalty], [slope, o.pull[rows][:, columns].to(new.device)]
        stats["penalty"] = o.average.total(penalty.detach(), rows)
        terms = terms + o.beta * penalty.detach()
    torch.autograd.backward(outputs, slopes)
    stats["loss"] = o.average.total(terms.detach(), rows)
    for name, value in stats.items():
        known = sums.get(name, torch.zeros_like(value))
        sums[name] = torch.maximum(known, value) if name == "ratio_deviation" else known + value


def _descend(
    o: _Objective,
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    chunks: Iterable[tuple[Tensor, Tensor]],
    max_grad_norm: float,
    accelerator: Any = None,
) -> dict[str, float]:
    """The optimizer step over all chunks; parameters stay as they were if a number is not finite."""
    sums: dict[str, Tensor] = {}
    chunks = list(chunks)
    optimizer.zero_grad(set_to_none=True)
    try:
        for rows, columns in chunks:
            _backward(o, rows, columns, sums)
        if accelerator is not None:
            _add_gradients(parameters, accelerator)
        norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        if not torch.isfinite(norm):
            _name_bad_gradient(o, parameters, chunks)
        optimizer.step()
    finally:
        optimizer.zero_grad(set_to_none=True)
    return _summary(sums, o, chunks, norm, accelerator)


def _add_gradients(parameters: list[nn.Parameter], accelerator: Any) -> None:
    """Replace every gradient by its sum over the processes, in one message."""
    here = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    total = accelerator.reduce(torch.cat([g.flatten() for g in here]), reduction="sum")
    for p, part in zip(parameters, total.split([p.numel() for p in parameters])):
        p.grad = part.view_as(p).clone()


STATISTICS = ("clip_fraction", "approx_kl", "ratio_mean", "ratio_deviation", "penalty", "loss")


def _over_processes(sums: dict[str, Tensor], count: int, accelerator: Any) -> tuple[dict, int]:
    """Statistics and number of terms of all processes; one without a row adds zeros."""
    mine = [float(sums.get(name, 0.0)) for name in STATISTICS]
    mine = torch.tensor([[*mine, count]], dtype=torch.float64, device=accelerator.device)
    every = accelerator.gather(mine).cpu()
    total = dict(zip(STATISTICS, every.sum(0)))
    total["ratio_deviation"] = every[:, STATISTICS.index("ratio_deviation")].max()
    return total, int(every[:, -1].sum())


def _summary(
    sums: dict[str, Tensor], o: _Objective, chunks: list, norm: Tensor, accelerator: Any
) -> dict[str, float]:
    count = sum(int(o.mask[rows][:, columns].sum()) for rows, columns in chunks)
    if accelerator is not None:
        sums, count = _over_processes(sums, count, accelerator)
    per = {"loss": o.average.divisor, "penalty": o.average.divisor, "ratio_deviation": 1}
    found = {name: float(value) / float(per.get(name, count)) for name, value in sums.items()}
    return {"penalty": 0.0, **found, "grad_norm": float(norm)}


def _name_bad_gradient(o: _Objective, parameters: list[nn.Parameter], chunks: list) -> None:
    """The summed gradient is not finite: repeat term by term to find the step and sample, and
    raise.
    """
    single = ((r, c) for rows, columns in chunks for r, c in _chunks(rows, columns, 1, 1))
    for row, column in single:
        for p in parameters:
            p.grad = None
        try:
            _backward(o, row, column, {})
        except RuntimeError as error:  # log-probs kept from the rollout have one backward only
            message = "non-finite gradient: replay the trajectory to find its step and sample"
            raise FloatingPointError(message) from error
        if not all(torch.isfinite(p.grad).all() for p in parameters if p.grad is not None):
            raise FloatingPointError(
                f"non-finite gradient at step {int(column)}, sample {int(row)}: "
                "the loss is finite, so look for a square root or division at 0 in the network"
            )
    raise FloatingPointError("non-finite gradient norm although every term's gradient is finite")


def policy_update(
    policy: Any,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    loss: Loss,
    batch: int | None = None,
    beta: float = 0.0,
    average: str | int = "token",
    max_grad_norm: float = 1.0,
    accelerator: Any = None,
) -> dict[str, float]:
    """One optimizer step on all rows of `rollout`, whatever policy made it.

    loss(new [b, T], old [b, T], rows Long[b]) -> terms [b, T], as `clipped_ratio` and `reinforce`
    return: rows number the rows of this rollout. beta: weight of `policy.divergence`. Terms and
    penalties are averaged under the mask as in `masked_mean` (an int is the length of "constant").
    The gradient is accumulated in chunks of `batch` rows (None: those of the policy), and of as many
    choices as the policy keeps in one graph; the result does not depend on the split. Returns loss,
    penalty, clip_fraction, approx_kl, ratio_mean, ratio_deviation (max |ratio - 1|: 0 before the
    first update) and grad_norm. Non-finite values raise FloatingPointError with step and sample
    named, and leave the parameters as they were.

    accelerator: an `accelerate.Accelerator` whose processes each call this with their own rows,
    none where they have no group left, and with equal parameters; all then make the step that one
    process would make with all rows.
    """
    mask, over = rollout.mask, average_of(rollout.mask, average)
    if accelerator is not None:
        terms = over.divisor.reshape(1).to(accelerator.device)
        over = replace(over, divisor=accelerator.gather(terms).sum())
    if over.divisor == 0 or accelerator is None and not mask.any():
        raise ValueError("nothing to train on: no rows (are all advantages 0?) or no steps")
    given = getattr(loss, "advantages", rollout.groups)
    if len(given) != len(rollout) or given.ndim == 2 and given.shape != rollout.mask.shape:
        raise ValueError(
            f"advantages {list(given.shape)} do not fit a rollout of {list(rollout.mask.shape)}: "
            "index both by the same rows"
        )

    def evaluate(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor | None]:
        return policy.replay(rollout.rows(rows).columns(columns), beta > 0)

    weights, pull = over.weights(mask), over.weights(mask, beta)
    old = torch.where(mask, rollout.log_probs, 0.0)
    o = _Objective(evaluate, loss, old, mask, over, beta, weights, pull)
    b = max(1, min(batch or policy.chunk, len(rollout)))
    columns = mask.any(0).nonzero().flatten()
    chunks = _chunks(torch.arange(len(rollout)), columns, b, policy.choices_at_once(b))
    trained = [p for p in policy.parameters if p.requires_grad]
    return _descend(o, optimizer, trained, chunks, max_grad_norm, accelerator)


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
    """`policy_update` of a trajectory [N, B] for notebooks that replay it by a function of their own.

    One optimizer step on all `steps` Long[K] of all `rows` Long[R] (None: the whole batch).
    advantages [B], or [N, B] when they differ by step; clip None is REINFORCE. reference: a replay
    of the reference policy, whose means enter beta * anchor[step] * mean (mu - mu_ref)^2 (anchor [N]
    from anchor_weights). batch_size rows and steps_per_forward steps make one forward.
    """
    rows = torch.arange(old_log_probs.shape[1]) if rows is None else rows.cpu()
    steps = torch.as_tensor(steps, dtype=torch.long).cpu()
    _check_request(steps, rows, reference, beta, anchor)

    def evaluate(some_rows: Tensor, some_steps: Tensor) -> tuple[Tensor, Tensor | None]:
        log_probs, means = replay(some_steps, some_rows)
        if beta <= 0:
            return log_probs.T, None
        with torch.no_grad():
            _, reference_means = reference(some_steps, some_rows)
        weights = anchor[some_steps.to(anchor.device)]
        return log_probs.T, anchor_terms(means, reference_means, weights).T

    mask = torch.ones_like(old_log_probs.T, dtype=torch.bool)
    over = Average(torch.ones(len(mask), 1), torch.tensor(len(rows) * len(steps)))
    weights = over.weights(mask)
    loss = AdvantageLoss(advantages.to(old_log_probs.device).expand(old_log_probs.shape).T, clip)
    o = _Objective(evaluate, loss, old_log_probs.T, mask, over, beta, weights, beta * weights)
    chunks = _chunks(rows, steps, batch_size or len(rows), steps_per_forward)
    trained = [p for p in parameters if p.requires_grad]
    return _descend(o, optimizer, trained, chunks, max_grad_norm)


def _check_request(
    steps: Tensor, rows: Tensor, reference: Replay | None, beta: float, anchor: Tensor | None
) -> None:
    if len(rows) == 0 or len(steps) == 0:
        raise ValueError("nothing to train on: no rows (are all advantages 0?) or no steps")
    if beta > 0 and (reference is None or anchor is None):
        raise ValueError("beta > 0 needs a reference replay and anchor weights")
    if beta > 0 and torch.isnan(anchor[steps.to(anchor.device)]).any():
        raise ValueError("the anchor is undefined at deterministic steps: train the others")
