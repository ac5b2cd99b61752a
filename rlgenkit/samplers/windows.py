"""Which steps are stochastic, and exact marginals of the affine tables."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .tables import FLOW_KINDS, StepTable


def window_at(
    iteration: int,
    n_steps: int,
    size: int = 4,
    move: int = 1,
    every: float = 25.0,
    schedule: str = "linear",
    decay: float = 0.1,
    threshold: int = 0,
) -> range:
    """Sliding window of MixGRPO: `size` consecutive steps that walk from noise to image.

    It moves by `move` steps after `every` iterations at a position ("linear"), or after
    every * exp(-decay * max(position - threshold, 0)) ("exponential"), and rests at the end.
    n_steps: steps the window may cover; pass one less than the table to spare the last step.
    """
    if schedule not in ("linear", "exponential"):
        raise ValueError(f"schedule must be 'linear' or 'exponential', got {schedule!r}")
    if not 1 <= size <= n_steps or move < 1 or every <= 0 or iteration < 0:
        raise ValueError("need 1 <= size <= n_steps, move >= 1, every > 0 and iteration >= 0")
    rate = decay if schedule == "exponential" else 0.0
    start, last, spent = 0, n_steps - size, 0.0
    while start < last:
        spent += every * math.exp(-rate * max(start - threshold, 0))
        if iteration < spent:
            break
        start = min(start + move, last)
    return range(start, start + size)


def acting_steps(table: StepTable) -> Tensor:
    """Steps Long[K] whose draw reaches the result: the ones that a policy gradient may train.

    All stochastic steps, except the last one where the result is the last clean estimate (final
    "denoised", RLCM as published): nothing sees that draw, so its score has mean 0 and only adds
    variance.
    """
    acts = table.stochastic.clone()
    if table.final == "denoised":
        acts[-1] = False
    return acts.nonzero().flatten()


def random_window(low: int, high: int, size: int, generator: torch.Generator) -> range:
    """Window of `size` steps inside low..high-1, drawn once for the whole batch (Flow-GRPO-Fast)."""
    if size < 1 or high - low < size:
        raise ValueError(f"a window of {size} steps does not fit into {low}..{high - 1}")
    places = high - low - size + 1
    start = torch.randint(places, (1,), generator=generator, device=generator.device)
    return range(low + int(start), low + int(start) + size)


def coarse_tail(sigmas: Tensor, after: int, n_steps: int) -> Tensor:
    """Keep the first `after` steps of a schedule [N+1] and replace the rest by n_steps longer ones.

    MixGRPO-Flash: deterministic steps behind the window may be compressed (with a second-order
    solver), those before it may not. Levels are picked from the old ones: [after+n_steps+1].
    """
    rest = len(sigmas) - 1 - after
    if after < 0 or not 1 <= n_steps <= rest:
        raise ValueError(f"n_steps must be in 1..{rest} (the remaining steps), got {n_steps}")
    picked = torch.linspace(after, len(sigmas) - 1, n_steps + 1).round().long()
    return torch.cat([sigmas[:after], sigmas[picked]])


def gaussian_velocity_slope(sigma: Tensor, variance: float) -> Tensor:
    """k with v(x) = k x: the exact velocity at level sigma for data N(0, variance).

    v = E[x1 - x0 | x] = x (sigma - (1-sigma) variance) / ((1-sigma)^2 variance + sigma^2).
    variance 0 is a point mass: then v = x / sigma.
    """
    sigma = sigma.double()
    spread = (1 - sigma) ** 2 * variance + sigma**2
    return (sigma - (1 - sigma) * variance) / spread


def exact_variances(table: StepTable, variance: float) -> Tensor:
    """Variances float64 [N+1] of the states of a flow sampler on data N(0, variance), no sampling.

    With an exact velocity k x the step is linear: var' = (A + B k)^2 var + C^2, from var = 1.
    """
    if table.kind not in FLOW_KINDS:
        raise ValueError(f"exact_variances needs a flow table, this one is {table.kind!r}")
    slope = gaussian_velocity_slope(table.sigma[:-1], variance)
    gain = table.a.double() + table.b.double() * slope
    states = [1.0]
    for g, std in zip(gain.tolist(), table.std.tolist(), strict=True):
        states.append(g**2 * states[-1] + std**2)
    return torch.tensor(states, dtype=torch.float64)


def residual_noise(table: StepTable) -> Tensor:
    """Noise level float64 [N] after each step when the state was on schedule before it (FlowCPS).

    With x = (1-sigma) x0 + sigma x1 and v = x1 - x0 the step leaves (A sigma + B) x1 + C z, of
    standard deviation sqrt((A sigma + B)^2 + C^2), to compare with the schedule's table.sigma[1:].
    """
    if table.kind not in FLOW_KINDS:
        raise ValueError(f"residual_noise needs a flow table, this one is {table.kind!r}")
    kept = table.a.double() * table.sigma[:-1].double() + table.b.double()
    return (kept**2 + table.std.double() ** 2).sqrt()
