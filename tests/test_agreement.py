"""Agreement and calibration against closed forms and brute force."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from scipy import sparse, stats

from rlgenkit import rewards as R


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def counts(n=40, seed=0):
    gen = torch.Generator().manual_seed(seed)
    trials = torch.randint(1, 6, (n,), generator=gen)
    return (torch.rand(n, generator=gen) * (trials + 1)).long(), trials


# --- agreement -------------------------------------------------------------------------------


def test_pairwise_accuracy_is_the_count_over_all_pairs():
    scores, truth = draw(30).mul(2).round(), draw(30, seed=1).mul(2).round()  # with ties
    groups = torch.arange(30) % 4
    won = []
    for i, j in itertools.combinations(range(30), 2):
        if groups[i] == groups[j] and truth[i] != truth[j]:
            side = float((scores[i] - scores[j]) * (truth[i] - truth[j]))
            won.append(0.5 if side == 0 else float(side > 0))
    assert R.pairwise_accuracy(scores, truth, groups) == pytest.approx(sum(won) / len(won))


def test_pairwise_accuracy_without_ties_is_kendalls_tau():
    scores, truth = draw(25), draw(25) + draw(25, seed=1)
    accuracy = R.pairwise_accuracy(scores, truth)
    assert accuracy == pytest.approx(
        (1 + stats.kendalltau(scores.numpy(), truth.numpy()).statistic) / 2
    )
    assert R.pairwise_accuracy(truth, truth) == 1 and R.pairwise_accuracy(-truth, truth) == 0


def test_the_margin_drops_close_pairs():
    truth, scores = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([1.0, 0.0, 3.0])
    assert R.pairwise_accuracy(scores, truth) == pytest.approx(2 / 3)
    assert R.pairwise_accuracy(scores, truth, margin=1.0) == 1


def test_correlations_of_monotone_and_bivariate_normal_values():
    x = draw(400)
    assert R.spearman(x, x.exp()) == pytest.approx(1)
    assert R.pearson(x, 3 * x + 1) == pytest.approx(1) and R.pearson(x, x.exp()) < 0.95
    r, both = 0.6, draw(20_000, 2)
    a, b = both[:, 0], r * both[:, 0] + math.sqrt(1 - r * r) * both[:, 1]
    assert R.pearson(a, b) == pytest.approx(r, abs=0.02)
    assert R.spearman(a, b) == pytest.approx(6 / math.pi * math.asin(r / 2), abs=0.02)


def test_the_human_ceiling_has_its_closed_form():
    # rating = quality + noise of equal variance: cov(one, mean of R-1 others) is 1
    raters, n = 5, 40_000
    ratings = draw(n, 1) + draw(n, raters, seed=1)
    mean, each = R.leave_one_out_ceiling(ratings, R.pearson)
    assert mean == pytest.approx(1 / math.sqrt(2 * (1 + 1 / (raters - 1))), abs=0.01)
    assert each.shape == (raters,) and each.mean() == pytest.approx(mean)


def test_the_human_ceiling_leaves_the_rater_out_and_skips_gaps():
    ratings = draw(50, 4)
    ratings[:10, 1] = float("nan")
    ratings[0] = torch.tensor([1.0, math.nan, math.nan, math.nan])  # nobody to compare with
    _, each = R.leave_one_out_ceiling(ratings, R.pearson)
    rows = torch.arange(10, 50)
    by_hand = R.pearson(ratings[rows][:, [0, 2, 3]].mean(1), ratings[rows, 1])
    assert each[1] == pytest.approx(by_hand)
    assert each[0] == pytest.approx(R.pearson(ratings[1:, 1:].nanmean(1), ratings[1:, 0]))


def test_the_bootstrap_of_a_mean_has_the_normal_width_and_respects_clusters():
    gen, x = torch.Generator().manual_seed(0), draw(400)
    value, low, high = R.bootstrap_over_items(lambda i: float(x[i].mean()), 400, gen)
    assert value == pytest.approx(float(x.mean()))
    assert (high - low) == pytest.approx(2 * 1.96 * float(x.std()) / 20, rel=0.1)
    alike, clusters = draw(20, seed=2).repeat_interleave(20), torch.arange(20).repeat_interleave(20)
    mixed = torch.randperm(400, generator=gen)
    alike, clusters = alike[mixed], clusters[mixed]
    _, low, high = R.bootstrap_over_items(lambda i: float(alike[i].mean()), clusters, gen)
    assert (high - low) == pytest.approx(2 * 1.96 * float(alike.std()) / math.sqrt(20), rel=0.2)


@pytest.mark.parametrize(
    "call, what",
    [
        (lambda: R.spearman(torch.ones(5), draw(5)), "constant"),
        (lambda: R.pearson(draw(5), draw(4)), "equal length"),
        (lambda: R.spearman(torch.tensor([1.0, math.nan]), draw(2)), "sample 1 is nan"),
        (lambda: R.pairwise_accuracy(draw(3), torch.ones(3)), "different truths"),
        (
            lambda: R.pairwise_accuracy(draw(3), draw(3, seed=1), torch.arange(3)),
            "different truths",
        ),
        (lambda: R.pairwise_accuracy(draw(3), draw(3, seed=1), torch.arange(4)), "groups"),
        (lambda: R.leave_one_out_ceiling(draw(5, 1)), "raters >= 2"),
        (lambda: R.leave_one_out_ceiling(torch.full((4, 2), math.nan)), "fewer than two"),
        (lambda: R.bootstrap_over_items(float, 0, torch.Generator()), "at least one"),
        (lambda: R.bootstrap_over_items(float, 3, torch.Generator(), level=1.0), "level"),
    ],
)
def test_undefined_agreement_is_refused_in_one_sentence(call, what):
    with pytest.raises(ValueError, match=what):
        call()


# --- calibration -----------------------------------------------------------------------------


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
    table = R.calibration_table(p, positives, trials, bins=4)
    order = p.argsort()
    sizes = [math.ceil((b + 1) * 41 / 4) - math.ceil(b * 41 / 4) for b in range(4)]
    for b, rows in enumerate(order.split(sizes)):
        n = trials[rows].sum()
        assert table.trials[b] == n
        assert table.observed[b] == pytest.approx(float(positives[rows].sum() / n))
        assert table.predicted[b] == pytest.approx(float((p[rows] * trials[rows]).sum() / n))


def test_calibrated_predictions_have_no_error_and_a_constant_bias_is_measured():
    p = torch.linspace(0.05, 0.85, 100, dtype=torch.float64)
    n = torch.full((100,), 1_000_000)
    k = (p * n).round()
    assert R.calibration_table(p, k, n).error() < 1e-6
    assert R.calibration_table(p + 0.1, k, n).error() == pytest.approx(0.1, abs=1e-6)
    assert R.calibration_table(p, k, n).correlation() == pytest.approx(1)


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
    ours = R.binomial_loss(logits, positives, trials)
    torch.testing.assert_close(ours, unrolled)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (ours, unrolled)))


def test_the_fit_is_the_minimum_of_the_binomial_loss_dense_or_sparse():
    positives, trials = counts(200)
    x, ridge = draw(200, 4).double(), 0.5
    weights, bias = R.fit_feedback(x, positives, trials, ridge, steps=500)
    w = torch.tensor([*weights, bias], dtype=torch.float64, requires_grad=True)
    loss = R.binomial_loss(x @ w[:-1] + w[-1], positives, trials) * trials.sum()
    slope = torch.autograd.grad(loss + ridge / 2 * (w[:-1] ** 2).sum(), w)[0]
    assert slope.abs().max() < 1e-2 and slope[-1].abs() < 1e-2  # the bias is free of ridge
    again, _ = R.fit_feedback(sparse.csr_matrix(x.numpy()), positives, trials, ridge, steps=500)
    torch.testing.assert_close(torch.tensor(again), torch.tensor(weights))


def test_the_fit_recovers_known_weights():
    x, true = draw(4000, 3).double(), torch.tensor([1.0, -0.5, 0.0]).double()
    trials = torch.full((4000,), 20)
    chance = (x @ true - 2).sigmoid()
    gen = torch.Generator().manual_seed(1)
    votes = torch.rand(4000, 20, generator=gen) < chance[:, None]
    weights, bias = R.fit_feedback(x, votes.sum(1), trials, ridge=1e-3)
    torch.testing.assert_close(torch.tensor(weights), true, atol=0.05, rtol=0)
    assert bias == pytest.approx(-2, abs=0.05)


def test_undoing_negative_sampling_is_bayes_rule():
    # P(y=1|x) = p; keep all positives and a share kappa of the negatives
    p, kappa = torch.tensor([0.01, 0.1, 0.5, 0.9]), 0.1
    sampled = p / (p + kappa * (1 - p))
    back = R.undo_negative_sampling(torch.logit(sampled), kappa).sigmoid()
    torch.testing.assert_close(back, p)
    torch.testing.assert_close(R.undo_negative_sampling(draw(3), 1.0), draw(3))


@pytest.mark.parametrize(
    "call, what",
    [
        (lambda: R.vote_auroc(draw(4), torch.zeros(4), torch.ones(4)), "all votes are equal"),
        (lambda: R.vote_auroc(draw(4), 2 * torch.ones(4), torch.ones(4)), "between 0 and trials"),
        (lambda: R.vote_auroc(draw(4), torch.zeros(4), torch.zeros(4)), "trials >= 1"),
        (lambda: R.vote_auroc(draw(0), torch.zeros(0), torch.zeros(0)), "N >= 1"),
        (lambda: R.calibration_table(draw(9) - 9, torch.zeros(9), torch.ones(9)), "sigmoid"),
        (lambda: R.calibration_table(torch.rand(9), torch.zeros(9), torch.ones(9), 1), "bins"),
        (
            lambda: R.calibration_table(
                torch.rand(9), torch.zeros(9), torch.ones(9), 3
            ).correlation(),
            "rates that differ",
        ),
        (lambda: R.fit_feedback(draw(4, 2), torch.zeros(4), torch.ones(4)), "all votes are equal"),
        (lambda: R.fit_feedback(draw(3, 2), torch.ones(4), 2 * torch.ones(4)), "one row"),
        (lambda: R.undo_negative_sampling(draw(2), 0.0), "kept"),
    ],
)
def test_undefined_calibration_is_refused_in_one_sentence(call, what):
    with pytest.raises(ValueError, match=what):
        call()
