"""Which steps are stochastic, and exact marginals of the affine tables."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .tables import FLOW_KINDS, StepTable


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
    a, b, std, sigma = _flow_columns(table)
    gain = a + b * gaussian_velocity_slope(sigma, variance)
    states = [1.0]
    for g, c in zip(gain.tolist(), std.tolist(), strict=True):
        states.append(g**2 * states[-1] + c**2)
    return torch.tensor(states, dtype=torch.float64)


def residual_noise(table: StepTable) -> Tensor:
    """Noise level float64 [N] after each step when the state was on schedule before it (FlowCPS).

    With x = (1-sigma) x0 + sigma x1 and v = x1 - x0 the step leaves (A sigma + B) x1 + C z, of
    standard deviation sqrt((A sigma + B)^2 + C^2), to compare with the schedule's table.sigma[1:].
    """
    a, b, std, sigma = _flow_columns(table)
    return ((a * sigma + b) ** 2 + std**2).sqrt()


def _flow_columns(table: StepTable) -> Iterator[Tensor]:
    """a, b, std and the level before each step of a flow's table, float64."""
    if table.kind not in FLOW_KINDS:
        raise ValueError(f"this needs a flow table, not one of {table.kind!r}")
    return (x.double() for x in (table.a, table.b, table.std, table.sigma[:-1]))
