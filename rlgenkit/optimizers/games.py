"""Symmetric zero-sum games: preferences as payoffs, their minimax winner, and self-play rewards.

P [K, K] holds P(i, j) = 2 Pr[i is preferred to j] - 1 in [-1, 1] with P = -P^T. Its minimax winner
(von Neumann winner) is the mixture that no option beats on average; its value is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def antisymmetric(payoff: Tensor, atol: float = 1e-6) -> Tensor:
    """The payoff [..., K, K] itself, or ValueError where P + P^T is not 0 or an entry not finite."""
    if payoff.ndim < 2 or payoff.shape[-1] != payoff.shape[-2] or payoff.shape[-1] == 0:
        raise ValueError(f"payoff must be [..., K, K] with K >= 1, got {list(payoff.shape)}")
    if not torch.isfinite(payoff).all():
        raise ValueError("payoff holds nan or infinite entries")
    gap = float((payoff + payoff.mT).abs().max())
    if gap > atol:
        raise ValueError(
            f"payoff is not antisymmetric, P + P^T reaches {gap:.3g}: ask the judge "
            "in both orders and take both_orders"
        )
    return payoff


def both_orders(shown_first: Tensor) -> Tensor:
    """Antisymmetric part (P - P^T) / 2 of judgments [..., K, K] of the row shown before the column.

    A judge with a position bias b says P(i, j) + b in either order; b cancels.
    """
    return (shown_first - shown_first.mT) / 2


def exploitability(payoff: Tensor, policy: Tensor) -> Tensor:
    """max over options i of sum_j P(i, j) policy(j) [...]: what the best opponent wins on average.

    payoff [..., K, K] antisymmetric, policy [..., K] probabilities. 0 exactly at a minimax winner.
    """
    _check_policy(policy, payoff.shape[-1])
    return torch.einsum("...ij,...j->...i", antisymmetric(payoff), policy.to(payoff)).amax(-1)


def solve_game(payoff: Tensor) -> tuple[Tensor, Tensor, float]:
    """(row float64 [K], column [L], value) of a zero-sum game [K, L] in which the row maximizes.

    Linear program (von Neumann 1928): max v with row P >= v; the column player's is its dual.
    """
    if payoff.ndim != 2 or 0 in payoff.shape or not torch.isfinite(payoff).all():
        raise ValueError(f"payoff must be a finite matrix [K, L], got {list(payoff.shape)}")
    game = payoff.detach().double().cpu()
    row, value = _maximin(game)
    column, _ = _maximin(-game.mT)
    return row, column, value


def minimax_winner(payoff: Tensor) -> Tensor:
    """A minimax winner float64 [K] of an antisymmetric payoff [K, K], by linear programming.

    Where there are several (a tie game has all), one of them.
    """
    if payoff.ndim != 2:
        raise ValueError(f"payoff must be [K, K], got {list(payoff.shape)}; solve one at a time")
    return solve_game(antisymmetric(payoff))[0]


def win_rates(duels: Tensor, counts: Tensor | None = None) -> Tensor:
    """Mean payoff [..., B] of each row of duels [..., B, M] over its opponents: SPO's reward.

    counts [..., B, M] weigh the opponents (0 leaves one out); None means every opponent once.
    """
    if counts is None:
        return duels.mean(-1)
    total = counts.to(duels).sum(-1)
    if (total <= 0).any():
        raise ValueError("a sample has no opponent: the queue is empty or the group has one member")
    return (duels * counts).sum(-1) / total


def group_win_rates(duels: Tensor) -> Tensor:
    """In-batch self-play: mean payoff [..., B] of each sample against the B - 1 others.

    duels [..., B, B]; the diagonal (a sample against itself) does not count.
    """
    size = duels.shape[-1]
    return win_rates(duels, 1 - torch.eye(size, dtype=duels.dtype, device=duels.device))


def _maximin(game: Tensor) -> tuple[Tensor, float]:
    import numpy as np
    from scipy.optimize import linprog

    k, m = game.shape
    goal = np.r_[np.zeros(k), -1.0]  # variables: the mixture and v
    found = linprog(
        goal,
        A_ub=np.c_[-game.numpy().T, np.ones(m)],
        b_ub=np.zeros(m),
        A_eq=np.r_[np.ones(k), 0.0][None],
        b_eq=[1.0],
        bounds=[(0, None)] * k + [(None, None)],
        method="highs",
    )
    if not found.success:
        raise ValueError(f"the linear program was not solved: {found.message}")
    mixture = torch.from_numpy(found.x[:k]).clamp(min=0)
    return mixture / mixture.sum(), float(found.x[k])


def _check_policy(policy: Tensor, size: int) -> None:
    if policy.shape[-1] != size:
        raise ValueError(f"policy must be [..., {size}], got {list(policy.shape)}")
    if (policy < 0).any() or not torch.allclose(
        policy.sum(-1).double(), torch.tensor(1.0).double(), atol=1e-4
    ):
        raise ValueError("policy must hold probabilities that add up to 1")
