"""Best-of-n: optimization pressure without training.

From a pool of N samples per prompt the expected value of the best of n is estimated for every n at
once, without drawing subsets. Scores must be finite; results are float64, on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rlgenkit.records import checked


def best_of_kl(n: int) -> float:
    """KL(best-of-n policy || base policy) = log n - (n-1)/n in nats, exact without ties.

    Source: Stiennon et al. 2020, appendix G.3; the x axis of Gao et al. 2023, section 2.
    """
    if n < 1:
        raise ValueError(f"best-of-n needs n >= 1, got {n}.")
    return math.log(n) - (n - 1) / n


def best_of_weights(pool: int, n: int) -> Tensor:
    """P(the sample of rank k is the best of n drawn without replacement) float64 [pool].

    Rank 1 is the lowest score: C(k-1, n-1) / C(pool, n). Source: Nakano et al. 2021, eq. 2.
    """
    if not 1 <= n <= pool:
        raise ValueError(f"n must lie in 1..{pool}, the size of the pool, got {n}.")
    total = math.comb(pool, n)
    shares = [math.comb(k, n - 1) / total for k in range(pool)]
    return torch.tensor(shares, dtype=torch.float64)


def best_of(scores: Tensor, values: Tensor, ns: Sequence[int]) -> Tensor:
    """Expected value [P, len(ns)] of the sample that best-of-n by score would pick, float64.

    scores, values [P, N]: N samples for each of P prompts; the score picks, the value is what the
    pick is worth (the score itself, or the truth). Samples of equal score share their weight, so
    that a reward full of ties gets no luck from the order of the pool. Unbiased for every n.
    """
    if scores.shape != values.shape or scores.ndim != 2:
        raise ValueError(
            f"scores and values must both be [P,N], got {list(scores.shape)} and "
            f"{list(values.shape)}."
        )
    shares, worth = [pick_shares(scores, n) for n in ns], checked(values)[0]
    return torch.stack([(share * worth).sum(1) for share in shares], 1)


def pick_shares(scores: Tensor, n: int) -> Tensor:
    """P(sample is the pick of best-of-n) float64 [P, N] of scores [P, N]; rows sum to 1."""
    ordered, order = checked(scores)[0].sort(1)
    by_rank = best_of_weights(scores.shape[1], n).expand(scores.shape)
    # Ties: each sample of a run of equal scores gets the mean weight of the run.
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    run = starts.long().cumsum(1) - 1
    zeros = torch.zeros_like(by_rank, dtype=torch.float64)
    total = zeros.scatter_add(1, run, by_rank)
    size = zeros.scatter_add(1, run, torch.ones_like(zeros))
    shared = (total / size.clamp_min(1)).gather(1, run)
    return zeros.scatter(1, order, shared)


def in_units(values: Tensor) -> Tensor:
    """[P, N] values less the mean of their prompt, over the std within prompts (one for all P)."""
    centered = values - values.mean(1, keepdim=True)
    return centered / centered.square().mean().sqrt().clamp_min(1e-6)


def diversity_of_picks(scores: Tensor, features: Tensor, ns: Sequence[int]) -> Tensor:
    """Mean distance [P, len(ns)] of two distinct picks of best-of-n, float64.

    scores [P, N], features [P, N, F]; the pair is weighted by both chances to be picked. nan where
    only one sample can be the pick (n = N).
    """
    where = features.cpu().double()
    apart = torch.cdist(where, where)
    shares = torch.stack([pick_shares(scores, n) for n in ns], 1)  # [P, n, N]
    distance = torch.einsum("pki,pij,pkj->pk", shares, apart, shares)
    distinct = 1 - shares.square().sum(2)
    return torch.where(distinct > 1e-9, distance / distinct.clamp_min(1e-9), float("nan"))
