"""Agreement against closed forms and brute force."""

import itertools
import math

import pytest
import torch
from scipy import stats

from rlgenkit import rewards as R


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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
        (lambda: R.bootstrap_over_items(float, 3, torch.Generator(), 0), "one draw"),
    ],
)
def test_undefined_agreement_is_refused_in_one_sentence(call, what):
    with pytest.raises(ValueError, match=what):
        call()
