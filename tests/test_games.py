"""Games: minimax winners against closed forms and brute force; exploitability; win rates."""

import itertools
import math

import pytest
import torch

from rlgenkit import optimizers as o
from tests.notebook_code import definitions

book = definitions("11")


def cycle(a, b, c):
    """Option 0 beats 1 by a, 1 beats 2 by b, 2 beats 0 by c."""
    return torch.tensor([[0, a, -c], [-a, 0, b], [c, -b, 0]], dtype=torch.float64)


def random_game(k, seed):
    x = torch.rand(k, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    return (x - x.T) / 2


def simplex(k, n):
    """All mixtures of k options with weights that are multiples of 1/n."""
    rows = [r for r in itertools.product(range(n + 1), repeat=k - 1) if sum(r) <= n]
    return torch.tensor([[*r, n - sum(r)] for r in rows], dtype=torch.float64) / n


@pytest.mark.parametrize("stakes", [(1.0, 1.0, 1.0), (0.8, 0.8, 0.8), (0.2, 0.7, 0.5)])
def test_minimax_winner_of_three_options_in_closed_form(stakes):
    a, b, c = stakes  # the null vector of a 3 x 3 antisymmetric matrix
    expected = torch.tensor([b, c, a], dtype=torch.float64) / (a + b + c)
    found = book.minimax_winner(cycle(a, b, c))
    assert torch.allclose(found, expected, atol=1e-9)
    assert abs(float(book.exploitability(cycle(a, b, c), found))) < 1e-9


def test_exploitability_by_hand():
    payoff = cycle(0.8, 0.8, 0.8)
    corner, half = torch.tensor([1.0, 0, 0]), torch.tensor([0.5, 0.5, 0])
    assert float(book.exploitability(payoff, corner)) == pytest.approx(0.8)
    # against half rock, half scissors: 0 and 1 win 0.4 and -0.4, option 2 wins 0.8/2 - 0.8/2
    assert float(book.exploitability(payoff, half)) == pytest.approx(0.4)
    batch = book.exploitability(payoff, torch.stack([corner, half]))
    assert torch.allclose(batch, torch.tensor([0.8, 0.4], dtype=torch.float64))
    many = torch.stack([payoff, payoff / 2])
    assert torch.allclose(
        book.exploitability(many, corner.expand(2, 3)),
        torch.tensor([0.8, 0.4], dtype=torch.float64),
    )


@pytest.mark.parametrize("k, n", [(2, 40), (3, 40), (4, 20)])
def test_minimax_winner_against_brute_force(k, n):
    for seed in range(5):
        payoff = random_game(k, seed)
        grid = simplex(k, n)
        best = book.exploitability(payoff, grid).min()
        found = book.exploitability(payoff, book.minimax_winner(payoff))
        assert abs(float(found)) < 1e-8 <= float(best) + 1e-8
        near = grid[book.exploitability(payoff, grid).argmin()]
        assert float(best) < 2.0 / n * k  # the grid comes near, and near the same mixture
        assert float(book.exploitability(payoff, near)) >= float(found) - 1e-9


def test_dominated_options_get_nothing_and_a_condorcet_winner_gets_all():
    payoff = torch.zeros(4, 4, dtype=torch.float64)
    payoff[:3, :3] = cycle(0.6, 0.6, 0.6)
    payoff[:3, 3], payoff[3, :3] = 0.1, -0.1  # option 3 loses to all, if only just
    assert torch.allclose(
        book.minimax_winner(payoff), torch.tensor([1, 1, 1, 0]).double() / 3, atol=1e-9
    )
    payoff[:3, 3], payoff[3, :3] = -0.1, 0.1
    assert torch.allclose(
        book.minimax_winner(payoff), torch.tensor([0, 0, 0, 1.0]).double(), atol=1e-9
    )
    scores = torch.tensor([0.3, 1.2, -0.4, 0.9])  # Bradley-Terry: the best option wins all
    payoff = 2 * torch.sigmoid(scores[:, None] - scores) - 1
    assert torch.allclose(
        book.minimax_winner(payoff), torch.tensor([0, 1.0, 0, 0]).double(), atol=1e-9
    )


def test_win_rates():
    duels = torch.tensor([[0.0, 1, -1], [-1, 0, 1], [1, 1, 0]])
    assert torch.allclose(o.group_win_rates(duels), torch.tensor([0, 0, 1.0]))
    assert torch.allclose(o.win_rates(duels), torch.tensor([0, 0, 2 / 3]))
    counts = torch.tensor([3, 1, 0]).expand(3, 3)
    assert torch.allclose(o.win_rates(duels, counts), torch.tensor([0.25, -0.75, 1.0]))
    full = o.group_win_rates(duels + 9 * torch.eye(3))  # whatever stands on the diagonal
    assert torch.allclose(full, torch.tensor([0, 0, 1.0]))
    batch = torch.stack([duels, -duels])
    assert torch.allclose(o.group_win_rates(batch)[1], -o.group_win_rates(duels))
    with pytest.raises(ValueError, match="no opponent"):
        o.group_win_rates(torch.zeros(1, 1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_rate_is_made_of_duels_that_are_not_finite(bad):
    duels = torch.zeros(2, 3, 3)
    duels[1, 0, 0] = bad  # against itself: does not count
    assert o.group_win_rates(duels).tolist() == [[0.0] * 3] * 2
    duels[1, 0, 2] = bad
    with pytest.raises(ValueError, match=r"sample \[1, 0, 2\] is"):
        o.group_win_rates(duels)
    with pytest.raises(ValueError, match=r"sample \[0, 2\] is"):
        o.win_rates(duels[1].fill_diagonal_(0))
    with pytest.raises(ValueError, match="no opponent"):
        o.win_rates(torch.zeros(1, 2), torch.tensor([[math.nan, 1]]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_weight_is_made_of_numbers_that_are_not_finite(bad):
    with pytest.raises(ValueError, match="sample 1 is"):
        o.rwr_weights(torch.tensor([0.0, bad]), 0.5)
    zeros = torch.zeros(2, 1)
    for call in (
        lambda: o.rwr_weights(zeros[:, 0], math.nan),
        lambda: o.nft_terms(zeros, zeros, zeros, zeros[:, 0], strength=math.nan),
    ):
        with pytest.raises(ValueError, match="must be > 0, got nan"):
            call()


def test_a_position_bias_cancels_in_both_orders():
    payoff = random_game(5, 3)
    with pytest.raises(ValueError, match="not antisymmetric"):
        book.antisymmetric(payoff + 0.2)
    assert torch.allclose(book.both_orders(payoff + 0.2), payoff)


def test_self_play_average_reaches_the_minimax_winner():
    """Multiplicative weights against itself: the average of the iterates, not the last one."""
    payoff, logits, mean = (
        cycle(0.2, 0.7, 0.5),
        torch.tensor([1.0, 0, 0]).double(),
        torch.zeros(3).double(),
    )
    steps, rate, late = 4000, 0.05, []
    for step in range(steps):
        policy = logits.softmax(0)
        mean += policy / steps
        late += [float(book.exploitability(payoff, policy))] if step > steps / 2 else []
        logits = logits + rate * payoff @ policy
    assert float(book.exploitability(payoff, mean)) < 0.02
    assert torch.allclose(mean, book.minimax_winner(payoff), atol=0.05)
    assert max(late) > 0.15  # the iterates go around it for ever
