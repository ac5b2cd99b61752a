"""One affine kernel for sampling and replay, and the loops over it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .tables import FLOW_KINDS, StepTable, windowed

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""fn(x [B, ...], t [B]) -> prediction [B, ...]; conditioning and guidance live inside."""

SOLVERS = ("euler", "midpoint")


@dataclass(frozen=True)
class Step:
    """sample [B, ...] (x'), log_prob [B] of it, mean [B, ...] of its Gaussian."""

    sample: Tensor
    log_prob: Tensor
    mean: Tensor


@dataclass(frozen=True)
class Trajectory:
    """One batch of sampling runs, all float32.

    latents [N+1, B, ...] from noise to the last state; log_probs [N, B], 0 where the step is
    deterministic; final [B, ...] the latent to decode; table with the rows used.
    """

    latents: Tensor
    log_probs: Tensor
    final: Tensor
    table: StepTable

    @property
    def stochastic(self) -> Tensor:
        """Bool[N]: the steps that drew noise."""
        return self.table.stochastic


def draw_noise(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal float32, drawn on the generator's device: the same numbers on every device."""
    noise = torch.empty(tuple(shape), device=generator.device).normal_(generator=generator)
    return noise if noise.device == device else noise.to(device)


def initial_noise(
    batch: int, shape: Sequence[int], generator: torch.Generator, groups: Tensor | None = None
) -> Tensor:
    """Start noise [batch, *shape]; with groups Long[batch], equal ids share one draw (MixGRPO)."""
    if groups is None:
        return draw_noise((batch, *shape), generator, generator.device)
    if groups.shape != (batch,):
        raise ValueError(f"groups must have shape ({batch},), got {tuple(groups.shape)}")
    ids, index = groups.unique(return_inverse=True)
    noise = draw_noise((len(ids), *shape), generator, generator.device)
    return noise[index.to(noise.device)]


def _coefficients(table: StepTable, i: int | Tensor, x: Tensor) -> tuple:
    """a, b, std, precision, log_norm of step i: floats, or tensors [B, 1, ...] (the last two [B])."""
    if not isinstance(i, Tensor):
        return table.rows[i]
    if i.shape != x.shape[:1]:
        raise ValueError(f"i must be an int or have shape ({len(x)},), got {tuple(i.shape)}")
    index = i.to(table.a.device)
    wide = (-1,) + (1,) * (x.ndim - 1)
    shaped = (c[index].to(x.device).view(wide) for c in (table.a, table.b, table.std))
    flat = (c[index].to(x.device) for c in (table.precision, table.log_norm))
    return (*shaped, *flat)


def step(
    table: StepTable,
    i: int | Tensor,
    x: Tensor,
    prediction: Tensor,
    sample: Tensor | None = None,
    generator: torch.Generator | None = None,
    reduction: str = "mean",
) -> Step:
    """Sample x' ~ N(A_i x + B_i prediction, C_i^2), or replay a given one.

    i: step number, or Long[B] with one per row; x, prediction, sample [B, ...] of any float type,
    computed in float32. log_prob [B] is the mean or the sum over the latent elements. Gradients
    reach the log-prob through the mean only (x' is detached there), while the returned sample keeps
    its own graph. Both directions compute the log-prob from the stored x', so that a replay is
    bit-equal.
    """
    a, b, std, precision, log_norm = _coefficients(table, i, x)
    mean = (x.float() * a).add_(prediction.float() * b)
    if sample is not None:
        sample = sample.float()
    elif isinstance(std, Tensor):
        sample = mean + _noise(mean, generator) * std
    elif std == 0.0:
        sample = mean
    else:
        sample = torch.add(mean, _noise(mean, generator), alpha=std)
    if isinstance(precision, float) and precision == 0.0:
        return Step(sample, mean.new_zeros(len(mean)), mean)
    residual = (sample.detach() - mean).flatten(1)
    log_prob = (residual.square().mean(1) * -precision).add_(log_norm)
    if reduction == "sum":
        log_prob = log_prob * residual.shape[1]
    elif reduction != "mean":
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    return Step(sample, log_prob, mean)


def _noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        raise ValueError("a stochastic step needs a generator (or the sample to replay)")
    return draw_noise(like.shape, generator, like.device)


def denoised(table: StepTable, i: int, x: Tensor, prediction: Tensor) -> Tensor:
    """Estimate of the clean latent [B, ...] at step i (for f(x) of a consistency model: f itself)."""
    return x.float() * float(table.a_x0[i]) + prediction.float() * float(table.b_x0[i])


def _predict(denoise: Denoiser, table: StepTable, i: int, x: Tensor, solver: str) -> Tensor:
    """Prediction for step i; the midpoint's on a deterministic step takes the network twice."""
    t = table.t[i].to(x.device).expand(len(x))
    first = denoise(x, t)
    if solver == "euler" or table.rows[i][2] > 0:
        return first
    half = table.rows[i][1] / 2  # a deterministic flow row is x' = x + dt v
    return denoise(x + first.float() * half, (t + table.t_next[i].to(x.device)) / 2)


def _check_finite(latents: Tensor) -> None:
    """Raise with the first step and sample [N+1, B, ...] that is not finite."""
    good = torch.isfinite(latents.flatten(2)).all(2)
    if not good.all():
        state, sample = (~good).nonzero()[0].tolist()
        where = "the initial noise" if state == 0 else f"step {state - 1}"
        raise FloatingPointError(
            f"non-finite latents after {where}, sample {sample}: check the network and its inputs"
        )


def rollout(
    denoise: Denoiser,
    table: StepTable,
    x: Tensor,
    generator: torch.Generator | None = None,
    window: Iterable[int] | None = None,
    reduction: str = "mean",
    solver: str = "euler",
    grad_from: int | None = None,
    score_steps: Iterable[int] = (),
) -> Trajectory:
    """Run all N steps from the initial noise x [B, ...].

    window: steps that stay stochastic, the rest follows the ODE (None: the table as it is). solver:
    "midpoint" for the deterministic steps of a flow table, one more network call each.
    grad_from: first step whose graph is kept, so that a loss on `final` reaches the network (reward
    back-propagation); None keeps none. score_steps: steps whose log-prob keeps its graph, with the
    states cut in between: the first update on this rollout then needs no second forward (its ratio
    is 1), for the memory of these activations. Latents are stored detached, in float32.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    if solver != "euler" and table.kind not in FLOW_KINDS:
        raise ValueError(f"solver {solver!r} needs a flow table, this one is {table.kind!r}")
    if grad_from is not None and score_steps:
        raise ValueError("choose grad_from (reward gradients) or score_steps (policy gradient)")
    table, scored = windowed(table, window), set(score_steps)
    x = final = x.float()
    latents, log_probs = [x.detach()], []
    for i in range(len(table)):
        keep = grad_from is not None and i >= grad_from
        score = i in scored
        with torch.set_grad_enabled(keep or score):
            prediction = _predict(denoise, table, i, x, solver)
            taken = step(table, i, x, prediction, generator=generator, reduction=reduction)
            if i == len(table) - 1:
                clean = table.final == "denoised"
                final = denoised(table, i, x, prediction) if clean else taken.sample
        x = taken.sample if keep else taken.sample.detach()
        latents.append(x.detach())
        log_probs.append(taken.log_prob if score else taken.log_prob.detach())
    path = torch.stack(latents)
    _check_finite(path)
    final = final if grad_from is not None else final.detach()
    return Trajectory(path, torch.stack(log_probs), final, table)


def replay(
    denoise: Denoiser,
    trajectory: Trajectory,
    steps: Tensor | Sequence[int],
    samples: Tensor | slice | None = None,
    together: bool = False,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """Log-probs [K, b] and means [K, b, ...] of stored transitions under the current network.

    steps Long[K]; samples: rows of the batch (slice or Long[b], None = all). together: all K steps
    in one forward, `denoise` then receives K*b rows, step-major (its conditioning is the b rows
    tiled K times); False: K forwards of b rows. At equal batch and weights the result is bit-equal
    to the rollout.
    """
    steps = torch.as_tensor(steps, dtype=torch.long).cpu()
    rows = slice(None) if samples is None else samples
    table, latents = trajectory.table, trajectory.latents
    if len(steps) == 0 or steps.min() < 0 or steps.max() >= len(table):
        last = len(table) - 1
        raise ValueError(f"steps must be a non-empty list within 0..{last}, got {steps.tolist()}")

    def again(some: Tensor) -> Step:
        x, after = latents[some][:, rows], latents[some + 1][:, rows]
        flat, i = x.flatten(0, 1), some.repeat_interleave(x.shape[1])
        prediction = denoise(flat, table.t[i].to(x.device))
        return step(table, i, flat, prediction, after.flatten(0, 1), reduction=reduction)

    parts = [again(some) for some in steps.split(len(steps) if together else 1)]
    log_probs, means = torch.cat([p.log_prob for p in parts]), torch.cat([p.mean for p in parts])
    return log_probs.view(len(steps), -1), means.unflatten(0, (len(steps), -1))
