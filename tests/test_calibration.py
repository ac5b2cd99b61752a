"""Ranking and calibration of counted feedback against closed forms and brute force."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import sparse

from rlgenkit import rewards as R
from tests.notebook_code import definitions

book = definitions("16")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def counts(n=40, seed=0):
    gen = torch.Generator().manual_seed(seed)
    trials = torch.randint(1, 6, (n,), generator=gen)
    return (torch.rand(n, generator=gen) * (trials + 1)).long(), trials


def test_auroc_of_counts_equals_unrolled_votes():
    positives, trials = counts()
    scores = draw(40).mul(2).round()
    yes = scores.repeat_interleave(positives)
    no = scores.repeat_interleave(trials - positives)
    gap = yes[:, None] - no[None]
    brute = ((gap > 0).double() + 0.5 * (gap == 0)).mean()
    assert R.vote_auroc(scores, positives, trials) == pytest.approx(float(brute))
    flipped = R.vote_auroc(scores, trials - positives, trials)
    assert flipped == pytest.approx(1 - float(brute))


def test_the_table_counts_every_vote_once_and_equals_brute_force():
    positives, trials = counts(41)
    p = draw(41).sigmoid()
    table = book.calibration_table(p, positives, trials, bins=4)
    order = p.argsort()
    sizes = [math.ceil((b + 1) * 41 / 4) - math.ceil(b * 41 / 4) for b in range(4)]
    for b, rows in enumerate(order.split(sizes)):
        n = trials[rows].sum()
        assert table.trials[b] == n
        assert table.observed[b] == pytest.approx(float(positives[rows].sum() / n))
        assert table.predicted[b] == pytest.approx(float((p[rows] * trials[rows]).sum() / n))


def test_calibrated_predictions_have_no_gap_and_a_constant_bias_is_measured():
    p = torch.linspace(0.05, 0.85, 100, dtype=torch.float64)
    n = torch.full((100,), 1_000_000)
    k = (p * n).round()
    for bias in (0.0, 0.1):
        table = book.calibration_table(p + bias, k, n)
        gap = (table.predicted - table.observed) * table.trials / table.trials.sum()
        assert float(gap.abs().sum()) == pytest.approx(bias, abs=1e-6)
    assert book.calibration_table(p, k, n).correlation() == pytest.approx(1)


def test_binomial_loss_is_cross_entropy_of_the_unrolled_votes():
    positives, trials = counts()
    logits = draw(40).requires_grad_()
    votes = torch.cat(
        [
            torch.cat([torch.ones(k), torch.zeros(n - k)])
            for k, n in zip(positives.tolist(), trials.tolist())
        ]
    )
    unrolled = F.binary_cross_entropy_with_logits(logits.repeat_interleave(trials), votes)
    ours = book.binomial_loss(logits, positives, trials)
    torch.testing.assert_close(ours, unrolled)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (ours, unrolled)))


def test_the_fit_is_the_minimum_of_the_binomial_loss_dense_or_sparse():
    positives, trials = counts(200)
    x, ridge = draw(200, 4).double(), 0.5
    weights, bias = book.fit_feedback(x.numpy(), positives, trials, ridge, steps=500)
    w = torch.tensor([*weights, bias], dtype=torch.float64, requires_grad=True)
    loss = book.binomial_loss(x @ w[:-1] + w[-1], positives, trials) * trials.sum()
    slope = torch.autograd.grad(loss + ridge / 2 * (w[:-1] ** 2).sum(), w)[0]
    assert slope.abs().max() < 1e-2 and slope[-1].abs() < 1e-2  # the bias is free of ridge
    again, _ = book.fit_feedback(sparse.csr_matrix(x.numpy()), positives, trials, ridge, steps=500)
    torch.testing.assert_close(torch.tensor(again), torch.tensor(weights))


def test_the_fit_recovers_known_weights():
    x, true = draw(4000, 3).double(), torch.tensor([1.0, -0.5, 0.0]).double()
    trials = torch.full((4000,), 20)
    chance = (x @ true - 2).sigmoid()
    gen = torch.Generator().manual_seed(1)
    votes = torch.rand(4000, 20, generator=gen) < chance[:, None]
    weights, bias = book.fit_feedback(x.numpy(), votes.sum(1), trials, ridge=1e-3)
    torch.testing.assert_close(torch.tensor(weights), true, atol=0.05, rtol=0)
    assert bias == pytest.approx(-2, abs=0.05)


def test_undoing_negative_sampling_is_bayes_rule():
    # P(y=1|x) = p; keep all positives and a share kappa of the negatives
    p, kappa = torch.tensor([0.01, 0.1, 0.5, 0.9]), 0.1
    sampled = p / (p + kappa * (1 - p))
    back = book.undo_negative_sampling(torch.logit(sampled), kappa).sigmoid()
    torch.testing.assert_close(back, p)
    torch.testing.assert_close(book.undo_negative_sampling(draw(3), 1.0), draw(3))


@pytest.mark.parametrize(
    "call, what",
    [
        (lambda: R.vote_auroc(draw(4), torch.zeros(4), torch.ones(4)), "all votes are equal"),
        (lambda: R.vote_auroc(draw(4), 2 * torch.ones(4), torch.ones(4)), "between 0 and trials"),
        (lambda: R.vote_auroc(draw(4), torch.zeros(4), torch.zeros(4)), "trials >= 1"),
        (lambda: R.vote_auroc(draw(0), torch.zeros(0), torch.zeros(0)), "N >= 1"),
    ],
)
def test_undefined_calibration_is_refused_in_one_sentence(call, what):
    with pytest.raises(ValueError, match=what):
        call()
