"""Best-of-n, Bradley-Terry fits and the human ratings, each against an oracle."""

import csv
import itertools
import math

import pytest
import torch

from rlgenkit.rewards import (
    STATISTICS,
    best_of,
    best_of_kl,
    best_of_weights,
    bradley_terry_loss,
    diversity_of_picks,
    fit_bradley_terry,
    in_units,
    pick_shares,
    picture_statistics,
)
from rlgenkit.worlds import load_geneval
from data.human.geneval.make import make_geneval
from rlgenkit.worlds.human import checked_bytes


def brute_best_of(scores, values, n):
    """Mean over all subsets of n; ties share the pick."""
    picks = []
    for subset in itertools.combinations(range(len(scores)), n):
        top = max(scores[i] for i in subset)
        tied = [values[i] for i in subset if scores[i] == top]
        picks.append(sum(tied) / len(tied))
    return sum(picks) / len(picks)


@pytest.mark.parametrize("ties", [False, True])
def test_best_of_is_the_mean_over_all_subsets(ties):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 7, generator=generator)
    scores = scores.sign() if ties else scores
    values = torch.randn(2, 7, generator=generator)
    found = best_of(scores, values, range(1, 8))
    wanted = [
        [brute_best_of(s.tolist(), v.tolist(), n) for n in range(1, 8)]
        for s, v in zip(scores, values)
    ]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), atol=1e-6, rtol=0)


def test_best_of_weights_sum_to_one_and_share_ties():
    for n in (1, 3, 64):
        assert float(best_of_weights(64, n).sum()) == pytest.approx(1.0)
    shares = pick_shares(torch.zeros(1, 5), 3)
    torch.testing.assert_close(shares, torch.full((1, 5), 0.2, dtype=torch.float64))
    with pytest.raises(ValueError, match="1..5"):
        best_of_weights(5, 6)


def test_a_score_that_is_not_finite_is_named_and_never_the_pick():
    good, bad = torch.rand(2, 4), torch.rand(2, 4)
    bad[1, 2] = float("nan")
    for call in (
        lambda: best_of(bad, good, [1]),
        lambda: best_of(good, bad, [1]),
        lambda: pick_shares(bad, 2),
        lambda: diversity_of_picks(bad, good[..., None], [1]),
    ):
        with pytest.raises(ValueError, match=r"sample \[1, 2\] is nan"):
            call()


def test_diversity_of_picks_is_the_chance_of_each_pair_times_its_distance():
    features = torch.tensor([[[0.0], [1.0], [3.0]]])
    scores = torch.tensor([[1.0, 2.0, 3.0]])
    found = diversity_of_picks(scores, features, [1, 2, 3])[0].tolist()
    # n = 1: the three pairs alike, (1 + 2 + 3) / 3; n = 2: only ranks 2 and 3 can be picked
    assert found[:2] == pytest.approx([2.0, 2.0]) and math.isnan(found[2])
    gain = best_of(scores, in_units(scores), [1, 3])
    assert gain[0].tolist() == pytest.approx([0.0, 1.5**0.5])


def test_picture_statistics_follow_their_names():
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    table = picture_statistics(images)
    for column, statistic in zip(table.T, STATISTICS.values(), strict=True):
        torch.testing.assert_close(column, statistic(images).float())


def test_best_of_kl_is_the_integral():
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000  # the quantile of the pick
    for n in (1, 2, 16):
        density = n * u ** (n - 1)
        integral = torch.xlogy(density, density).mean()
        assert best_of_kl(n) == pytest.approx(float(integral), abs=1e-4)


def test_bradley_terry_loss_by_hand_and_its_gradient():
    first = torch.tensor([1.0, 0.0], requires_grad=True)
    loss = bradley_terry_loss(first, torch.zeros(2), torch.tensor([True, False]))
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(2)) / 2)
    (gradient,) = torch.autograd.grad(loss, first)
    chance = 1 / (1 + math.exp(-1))
    torch.testing.assert_close(gradient, torch.tensor([(chance - 1) / 2, 0.25]))


def test_fit_has_the_closed_form_of_one_feature():
    votes = torch.tensor([1.0] * 8 + [0.0] * 2)  # 80 % for the one that has 2 more
    weights = fit_bradley_terry(torch.full((10, 1), 2.0), torch.zeros(10, 1), votes, ridge=1e-9)
    assert float(weights) == pytest.approx(math.log(4) / 2, abs=1e-6)


def test_fit_recovers_weights_from_probabilities():
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, 400, 3, generator=generator, dtype=torch.float64)
    true = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    votes = torch.sigmoid((first - second) @ true)
    found = fit_bradley_terry(first, second, votes, ridge=1e-9)
    torch.testing.assert_close(found, true, atol=1e-5, rtol=0)
    separable = fit_bradley_terry(first, second, votes.round())
    assert separable.isfinite().all()


def test_human_ratings_have_the_published_shape_and_correlation():
    ratings = load_geneval()
    assert ratings.fit.shape == (800, 5) and ratings.realism.shape == (800, 5, 2)
    assert ratings.model.bincount().tolist() == [400, 400]
    means = torch.stack([ratings.fit.nanmean(1), ratings.realism.flatten(1).nanmean(1)])
    assert float(torch.corrcoef(means)[0, 1]) == pytest.approx(0.376, abs=1e-3)


def test_make_geneval_keeps_ratings_and_drops_identifiers(tmp_path):
    names = [
        "HITId",
        "Input.prompt_id",
        "Input.image_id",
        "Answer.task-quality",
        "Answer.task-real-0",
        "Answer.task-real-1",
    ]
    for model in ("sdv2", "if-xl"):
        rows = [
            names,
            ["SECRET", 0, 1, 4, "3.0", ""],
            ["SECRET", 0, 1, 2, "", "1.0"],
            ["SECRET", 0, 1, "", "", ""],
        ]
        with open(tmp_path / f"annotations_{model}.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)
    (tmp_path / "evaluation_metadata.jsonl").write_text('{"tag": "colors"}\n')
    (tmp_path / "LICENSE").write_text("MIT")
    make_geneval(tmp_path, tmp_path / "out")
    text = (tmp_path / "out" / "ratings.csv").read_text()
    assert "SECRET" not in text and text.splitlines()[1:3] == ["sdv2,0,1,0,4,3,", "sdv2,0,1,1,2,,1"]
    found = load_geneval(tmp_path / "out")
    assert found.tags == ("colors", "colors") and found.fit[0, :2].tolist() == [4, 2]


def test_missing_ratings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="restore it"):
        checked_bytes(tmp_path / "ratings.csv")
