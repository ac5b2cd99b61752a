"""Rewards of stated scores against loops and known cases, and the votes of AVA."""

import math

import pytest
import torch
from scipy.stats import norm

from data.human.ava.make import make_ava
from rlgenkit.worlds.human import load_ava
from tests.notebook_code import definitions

book = definitions("22")


def draws(n=6, k=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores, truth = torch.rand(n, k, generator=generator), torch.rand(n, generator=generator)
    truth[1] = truth[0]  # a tie
    return scores, truth, torch.rand(n, k, generator=generator) < 0.8


def rank_by_loops(scores, truth, valid, gamma):
    n, k = scores.shape
    kept = [[float(scores[i, a]) for a in range(k) if valid[i, a]] for i in range(n)]
    means = [sum(row) / len(row) if row else None for row in kept]
    spread = [
        sum((x - m) ** 2 for x in row) / (len(row) - 1) if len(row) > 1 else 0.0
        for row, m in zip(kept, means)
    ]
    found = torch.zeros(n, k)
    for i in range(n):
        for a in range(k):
            terms = []
            for j in range(n):
                if j == i or means[j] is None:
                    continue
                p = norm.cdf(
                    (float(scores[i, a]) - means[j]) / math.sqrt(spread[i] + spread[j] + gamma)
                )
                g = 1.0 if truth[i] >= truth[j] else 0.0
                terms.append(math.sqrt(p * g + 1e-6) + math.sqrt((1 - p) * (1 - g) + 1e-6))
            found[i, a] = sum(terms) / len(terms) if terms and valid[i, a] else 0.0
    return found


@pytest.mark.parametrize("gamma", [1e-6, 1e-3])
def test_rank_reward_equals_loops(gamma):
    scores, truth, valid = draws()
    valid[2] = False  # a picture without a readable score
    valid[3, 1:] = False  # one with a single readable score
    torch.testing.assert_close(
        book.rank_reward(scores, truth, gamma, valid),
        rank_by_loops(scores, truth, valid, gamma),
        rtol=1e-4,
        atol=1e-5,
    )
    everything = torch.ones_like(valid)
    torch.testing.assert_close(
        book.rank_reward(scores, truth, gamma),
        rank_by_loops(scores, truth, everything, gamma),
        rtol=1e-4,
        atol=1e-5,
    )


def test_rank_reward_knows_order_and_not_level():
    truth = torch.tensor([0.2, 0.5, 0.8])
    scores = truth[:, None] + torch.tensor([[-0.01, 0.01]])
    right = book.rank_reward(scores, truth)
    assert (right > 0.99).all() and (book.rank_reward(scores.flip(0), truth) < 0.1).all()
    torch.testing.assert_close(book.rank_reward(scores + 0.15, truth), right, rtol=1e-3, atol=1e-4)
    assert (
        book.error_reward(scores + 0.15, truth).mean()
        < 0.5 * book.error_reward(scores, truth).mean()
    )


def test_error_and_step_rewards_are_the_formulas():
    scores, truth, valid = draws(seed=1)
    for i in range(6):
        for k in range(4):
            gap = float(scores[i, k] - truth[i])
            error = math.exp(-gap * gap / 0.02) + 1e-5 if valid[i, k] else 0.0
            step = (
                (1.0 if abs(gap) < 0.07 else 0.5 if abs(gap) < 0.1 else 0.0) if valid[i, k] else 0.0
            )
            assert math.isclose(
                book.error_reward(scores, truth, 0.1, valid)[i, k],
                error,
                rel_tol=1e-4,
                abs_tol=1e-6,
            )
            assert float(book.step_reward(scores, truth, valid=valid)[i, k]) == step


def test_moments_are_those_of_the_readable_scores():
    scores, _, valid = draws(seed=2)
    mean, variance, count = book.opinion_moments(scores, valid)
    for i in range(6):
        row = scores[i][valid[i]]
        assert count[i] == len(row)
        torch.testing.assert_close(mean[i], row.mean())
        torch.testing.assert_close(variance[i], row.var())


def test_no_gradient_passes():
    scores, truth, valid = draws(seed=3)
    scores.requires_grad_(True)
    for reward in (book.rank_reward, book.error_reward, book.step_reward):
        assert not reward(scores, truth, valid=valid).requires_grad


# ---- AVA


def test_votes_are_the_known_ones():
    data = load_ava()
    assert data.votes.shape == (12775, 10) and len(data.image.unique()) == 12775
    assert (
        78 <= int(data.votes.sum(1).min()) and 190 < float(data.votes.sum(1).float().median()) < 230
    )
    mean, spread = book.vote_moments(data.votes)
    assert (
        abs(float(mean.mean()) - 0.487) < 0.001 and abs(float(spread.sqrt().mean()) - 0.159) < 0.001
    )


def test_vote_moments_equal_the_votes_written_out():
    votes = torch.randint(0, 5, (20, 10), generator=torch.Generator().manual_seed(0))
    mean, spread = book.vote_moments(votes)
    for row, m, s in zip(votes, mean, spread):
        written = torch.repeat_interleave(torch.arange(10).double() / 9, row)
        torch.testing.assert_close(m.double(), written.mean(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(s.double(), written.var(), rtol=1e-5, atol=1e-6)


def test_duels_equal_all_pairs_of_votes():
    first, second = torch.randint(0, 4, (2, 9, 10), generator=torch.Generator().manual_seed(1))
    won, formula = book.vote_duels(first, second)
    for a, b, w, f in zip(first, second, won, formula):
        one, two = (torch.repeat_interleave(torch.arange(10), v) for v in (a, b))
        gap = (one[:, None] - two).double()
        torch.testing.assert_close(w, ((gap > 0).double() + 0.5 * (gap == 0)).mean())
        width = ((one.double() / 9).var() + (two.double() / 9).var()).sqrt()
        assert math.isclose(
            f,
            norm.cdf(((one.double().mean() - two.double().mean()) / 9 / width).item()),
            rel_tol=1e-4,
        )


def test_votes_are_made_from_the_origin(tmp_path):
    names = [f"score{k}" for k in range(2, 12)]
    (tmp_path / "val.csv").write_text(
        f"image_id,{','.join(names)},tag1\n7,0,1,2,3,4,5,6,7,8,9,1\n3,9,0,0,0,0,0,0,0,0,1,2\n"
    )
    (tmp_path / "LICENSE").write_text("Apache")
    make_ava(tmp_path, tmp_path / "made")
    data = load_ava(tmp_path / "made")
    assert data.image.tolist() == [3, 7] and data.votes[0].tolist() == [9] + [0] * 8 + [1]
