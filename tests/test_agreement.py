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


def test_ordered_pairs_are_all_that_people_order():
    truth, groups = draw(20).mul(2).round(), torch.arange(20) % 3
    truth[4] = math.nan
    first, second, labels = R.ordered_pairs(truth, groups)
    expected = [
        (i, j, float(truth[i] > truth[j]))
        for i, j in itertools.combinations(range(20), 2)
        if groups[i] == groups[j] and (truth[i] > truth[j] or truth[i] < truth[j])
    ]
    assert sorted(zip(first.tolist(), second.tolist(), labels.tolist())) == expected
    few = R.ordered_pairs(truth, groups, margin=1.0)[0]
    assert len(few) == sum(abs(truth[i] - truth[j]) > 1 for i, j, _ in expected)


def test_a_row_counts_decided_pairs_only():
    labels = torch.tensor([1.0, 1, 0, 0, 1, 0])
    verdicts = torch.tensor([1.0, 0.25, 0.5, 0, math.nan, 0.5])
    clusters = torch.tensor([0, 0, 1, 1, 2, 2])
    row = R.agreement_row("judge", verdicts, labels, clusters, torch.Generator().manual_seed(0))
    assert row.accuracy == pytest.approx(2 / 3) and row.decided == 0.5 and row.pairs == 6
    assert row.low == 0.5 and row.high == 1.0  # cluster 0 holds 1 of 2, cluster 1 holds 1 of 1


def test_a_row_without_ties_is_the_pairwise_accuracy():
    scores, truth, groups = draw(60), draw(60) + draw(60, seed=1), torch.arange(60) % 6
    first, second, labels = R.ordered_pairs(truth, groups)
    verdicts = R.preferences(scores, first, second)
    generator = torch.Generator().manual_seed(0)
    row = R.agreement_row("judge", verdicts, labels, groups[first], generator)
    assert row.accuracy == pytest.approx(R.pairwise_accuracy(scores, truth, groups))
    assert row.low < row.accuracy < row.high and row.decided == 1


def test_the_interval_of_a_row_is_that_of_its_clusters():
    gen = torch.Generator().manual_seed(0)
    right = (draw(40) > 0).repeat_interleave(25).double()  # 40 clusters of one opinion each
    labels = (draw(1000, seed=1) > 0).double()
    verdicts = torch.where(right > 0, labels, 1 - labels)
    row = R.agreement_row("j", verdicts, labels, torch.arange(40).repeat_interleave(25), gen)
    rate = float(right.mean())
    width = 2 * 1.96 * math.sqrt(rate * (1 - rate) / 40)
    assert row.high - row.low == pytest.approx(width, rel=0.15)


def test_people_against_the_rest_by_hand():
    ratings = torch.tensor([[1.0, 2, 3], [2.0, 2, 3], [3.0, 3, math.nan], [4.0, 4, 4]])
    groups = torch.tensor([0, 0, 0, 1])
    row = R.human_row(ratings, groups, torch.Generator().manual_seed(0))
    verdicts = []
    for rater, (i, j) in itertools.product(range(3), itertools.combinations(range(3), 2)):
        own, rest = ratings[:, rater], ratings[:, [k for k in range(3) if k != rater]].nanmean(1)
        if not own[[i, j]].isnan().any() and rest[i] != rest[j]:
            verdicts.append(float((own[i] - own[j]).sign() * (rest[i] - rest[j]).sign()))
    decided = [v for v in verdicts if v]
    assert row.pairs == len(verdicts) and row.decided == len(decided) / len(verdicts)
    assert row.accuracy == pytest.approx(sum(v > 0 for v in decided) / len(decided))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda g: R.ordered_pairs(torch.ones(3)), "nothing to order"),
        (lambda g: R.ordered_pairs(torch.ones(3), torch.zeros(2)), "one length"),
        (lambda g: R.agreement_row("j", *[torch.ones(3)] * 2, torch.zeros(2), g), "one length"),
        (
            lambda g: R.agreement_row("j", torch.ones(2), torch.full((2,), 0.5), torch.zeros(2), g),
            "0 or 1",
        ),
        (
            lambda g: R.agreement_row("j", torch.full((2,), 0.5), *[torch.ones(2)] * 2, g),
            "decides none",
        ),
    ],
)
def test_tables_refuse_in_a_sentence(make, words):
    with pytest.raises(ValueError, match=words):
        make(torch.Generator())


def test_the_table_has_a_line_for_every_judge():
    row = R.Agreement("PaLI", 0.7403, 0.7, 0.78, 0.812, 1234)
    header, lines = R.agreement_table([row, row])
    assert len(lines) == 2 and all(len(line) == len(header) for line in lines)
    assert lines[0][1] == "0.740" and lines[0][-1] == "1,234"


def test_the_interval_of_people_draws_whole_prompts():
    """Every prompt is all right or all wrong: items drawn alone would give a narrow interval."""
    groups = torch.arange(12).repeat_interleave(6)
    one = torch.arange(6.0).repeat(12)
    two = torch.where(groups % 2 == 0, one, -one)
    row = R.human_row(torch.stack([one, two], 1), groups, torch.Generator().manual_seed(0))
    assert row.accuracy == 0.5
    assert row.high - row.low == pytest.approx(2 * 1.96 * 0.5 / 12**0.5, rel=0.2)
