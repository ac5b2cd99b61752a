"""Notebook 23: world, teacher, filter, critiques, NFT and the people's statistic against brute force."""

from types import SimpleNamespace

import pytest
import torch

from rlgenkit import optimizers, rewards
from tests.notebook_code import definitions

of_23 = definitions("23")
# what only a run gives: the frozen mixture of the tower, and a profile
of_23.tower.__globals__["MIX"] = torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
of_23.tower.__globals__["SHIFT"] = torch.zeros(64)
for name, value in (("HABIT", [0.0] * 3 + [0.5, 0.5, 0.6, 0.0]), ("LOOSE", [0.8] * 7)):
    of_23.tower.__globals__[name] = torch.tensor(value)
of_23.tower.__globals__["p"] = SimpleNamespace(hurried=0.35, learning=40, iterations=4, groups=4)


def gen(seed):
    return torch.Generator().manual_seed(seed)


def test_scores_count_faults_by_hand_and_leave_na_out():
    right = torch.tensor([[1, 1, 0, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1, 0]]).bool()
    scores = of_23.dimension_scores(right, torch.tensor([True, False]))
    assert scores[0].tolist() == [3, 2, 4] and scores[1, :2].tolist() == [4, 4]
    assert scores[1, 2].isnan()
    assert of_23.critique_reward(scores).tolist() == pytest.approx([2 / 3, 1.0])


def test_quality_reads_bounds():
    asked = torch.tensor([[1.0, -1, 0, 0, 0, 0, 1]]).repeat(3, 1)
    fine = torch.tensor([1.4, -1.4, 0.4, -0.4, 0.4, 1.1, 0.6])
    pictures = torch.stack([fine, fine + torch.tensor([0, 0, 0, 0, 0, 0.2, 0]), fine * 0 + 9])
    letter = torch.tensor([True, True, False])
    assert of_23.quality(pictures, asked, letter).tolist() == pytest.approx([1.0, 8 / 9, 0.0])


def test_four_items_are_heard_and_repeating_moves_attention():
    asked, letter, salience = of_23.draw_requests(200, gen(1))
    heard = of_23.hearing(letter, salience)
    assert (heard.sum(1) == of_23.HEARD).all() and not heard[~letter, 6].any()
    said = torch.zeros(200, 7, dtype=torch.bool)
    said[:, 3] = True
    again = of_23.hearing(letter, salience, said)
    assert again[:, 3].mean() > 0.9 and (again.sum(1) == of_23.HEARD).all()
    everything = of_23.hearing(letter, salience, torch.ones(200, 7, dtype=torch.bool))
    assert torch.equal(everything, heard)
    assert set(asked[:, 1].tolist()) == {-1.0, 1.0} and not asked[:, 3:6].any()


def test_the_flow_walks_a_straight_path():
    picture = torch.randn(5, 7, generator=gen(2))
    noise = torch.randn(5, 7, generator=gen(3))
    kept = of_23.velocity.__globals__["velocity"]
    of_23.velocity.__globals__["velocity"] = lambda weights, x, level, given: noise - picture
    try:
        torch.testing.assert_close(of_23.paint([], None, noise), picture)
    finally:
        of_23.velocity.__globals__["velocity"] = kept


def test_anchoring_raises_winners_and_never_lowers_them():
    first, second = torch.randn(2, 300, 7, generator=gen(4))
    label = torch.rand(300, generator=gen(5)) < 0.5
    plain = of_23.anchored_words(first, second, label, 0.0)
    bent = of_23.anchored_words(first, second, label, 0.4)
    assert torch.equal(plain[0], first > 0) and torch.equal(plain[1], second > 0)
    assert (bent[0][label] >= plain[0][label]).all() and (bent[1][label] <= plain[1][label]).all()
    assert (bent[0][~label] <= plain[0][~label]).all()


def test_filter_by_brute_force():
    first, second = (torch.rand(2, 60, generator=gen(6)) * 4).round() / 4
    label = torch.rand(60, generator=gen(7)) < 0.5
    expected = [(a > b) if y else (a < b) for a, b, y in zip(first, second, label)]
    assert of_23.consistent(first, second, label).tolist() == [bool(e) for e in expected]


def test_words_survive_writing_and_reading():
    sure = torch.rand(20, 7, generator=gen(8))
    letter = torch.rand(20, generator=gen(9)) < 0.5
    read = torch.stack(
        [of_23.read_critique(of_23.write_critique(s, y)) for s, y in zip(sure, letter)]
    )
    scores = of_23.critique_scores(sure, letter)
    torch.testing.assert_close(read, scores, atol=0.006, rtol=0, equal_nan=True)
    counted = of_23.counted_words(of_23.write_critique(sure[0], letter[0]))
    torch.testing.assert_close(counted, scores[0], equal_nan=True)
    worse = sure.clone()
    worse[:, 3] = 0.0
    assert (of_23.critique_scores(worse, letter)[:, 1] <= scores[:, 1]).all()
    assert of_23.read_critique("physical quality score: 3") is None
    assert (
        of_23.read_critique(of_23.write_critique(sure[0], True).replace("score: ", "score: 9"))
        is None
    )


def test_nft_loss_is_the_kits_and_steps_as_the_closed_form_says():
    new, old, reference, target = torch.randn(4, 9, 7, generator=gen(10))
    wanted, level = torch.rand(2, 9, generator=gen(11))
    terms = optimizers.nft_terms(new, old, target, wanted, 1.0, level)
    away = 1e-4 * (new - reference).square().mean()
    torch.testing.assert_close(
        of_23.nft_loss(new, old, reference, target, wanted, level), 5 * terms.mean() + away
    )
    start = old.clone().requires_grad_()
    of_23.nft_loss(start, old, old, target, torch.full((9,), 0.9), level).backward()
    assert ((start.grad * (target - old)).sum(1) < 0).all()  # descent moves toward good samples
    start = old.clone().requires_grad_()
    of_23.nft_loss(start, old, old, target, torch.full((9,), 0.5), level).backward()
    assert start.grad.abs().max() < 1e-5  # an average sample moves nothing


def test_optimality_is_a_half_for_equal_rewards_and_keeps_order():
    values = torch.tensor([0.3] * 8 + [0.1 * k for k in range(8)])
    wanted = of_23.optimality_of(values)
    assert wanted[:8].tolist() == [0.5] * 8
    assert (wanted[8:].diff() > 0).all() and wanted.min() >= 0 and wanted.max() <= 1


def test_pointwise_lessons_hold_both_pictures_of_kept_pairs():
    draw = torch.randn(4, 5, 7, generator=gen(12))
    pairs = {"first": draw[0], "second": draw[1], "asked": draw[2] * 0}
    pairs["letter"] = torch.tensor([True, False, True, False, True])
    kept = torch.tensor([True, True, False, False, True])
    words = draw[2] > 0, draw[3] > 0
    features, said, counted = of_23.pointwise(pairs, *words, kept)
    torch.testing.assert_close(features[4], of_23.tower(draw[1], draw[0] * 0)[1])
    assert torch.equal(said[3], words[1][0].float()) and said.shape == (6, 7)
    assert counted[:, 6].tolist() == [1, 0, 1, 1, 0, 1]


def test_a_student_learns_words_that_can_be_learned():
    pictures = torch.randn(400, 7, generator=gen(13))
    features = of_23.tower(pictures, pictures * 0)
    words = (pictures > 0).float()
    student = of_23.teach_student(features, words, torch.ones(400, 7), gen(14))
    assert ((of_23.sureness(student, features) > 0.5) == (words > 0)).float().mean() > 0.85


def test_permuted_words_keep_their_number_and_miss_what_does_not_count():
    advice = torch.rand(300, 7, generator=gen(15)) < 0.3
    letter = torch.rand(300, generator=gen(16)) < 0.5
    advice[:, 6] &= letter
    other = of_23.permuted_words(advice, letter, gen(17))
    assert torch.equal(other.sum(1), advice.sum(1)) and not other[~letter, 6].any()
    assert abs((other & advice).sum() / advice.sum() - advice.float().mean()) < 0.15


def test_faults_and_the_threshold():
    sure = torch.tensor([[0.9, 0.49, 0.6, 0.2, 0.9, 0.9, 0.1]])
    assert of_23.faults(sure, torch.tensor([False])).tolist() == [
        [False, True, False, True, False, False, False]
    ]
    scores = torch.tensor([[3.0, 3.0, 1.0], [2.99, 4, 4], [4, 2.99, 4]])
    assert of_23.passes(scores, 3.0).tolist() == [True, False, False]


def test_late_change_is_last_fifth_less_middle_fifth():
    values = torch.arange(50.0)[None]
    assert of_23.change_late(values).tolist() == [20.0]


def test_aspects_that_side_with_the_label():
    aspects = torch.tensor([[5.0, 6, 7, float("nan")], [4.0, 8, 7, 3]]).double()
    one, two = torch.tensor([0, 1, 0]), torch.tensor([1, 0, 0])
    share = of_23.sided(aspects, one, two, torch.tensor([1.0, 1.0, 1.0]))
    assert share[:2].tolist() == [0.5, 0.5] and share[2].isnan()


def test_kept_less_dropped_compares_within_reviewer_and_gap_only():
    inside = of_23.by_reviewer.__globals__
    inside["stratum"] = torch.tensor([101, 101, 101, 101, 102, 102, 203, 203, 301])
    inside["agree"] = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.5, 0.5, 0.2, 0.6, 1.0])
    kept = torch.tensor([True, False, True, False, True, False, True, False, True])
    # reviewer 1: 100 points by 4 pairs and 0 by 2; reviewer 2: -40; reviewer 3 dropped nothing
    assert of_23.by_reviewer(kept).tolist() == pytest.approx([400 / 6, -40])
    assert of_23.effective(torch.tensor([5.0, 5, 0])) == pytest.approx(2)


def test_the_chooser_never_lowers_the_critics_score():
    first, second = torch.randn(2, 90, 7, generator=gen(18))
    kept = of_23.keep_better(first, second, lambda pictures: pictures.sum(1))
    assert torch.equal(kept.sum(1), torch.maximum(first.sum(1), second.sum(1)))


def test_swapped_labels_negate_the_scalar_reward():
    pictures = torch.randn(2, 300, 7, generator=gen(19))
    pairs = {"first": pictures[0], "second": pictures[1], "asked": pictures[0] * 0}
    pairs["label"] = pictures[0, :, 5] > pictures[1, :, 5]
    of_23.tower.__globals__["p"].epochs = 8
    said = of_23.scalar_reward(of_23.teach_scalar(pairs, gen(20)), pictures[0], pairs["asked"])
    pairs["label"] = ~pairs["label"]
    turned = of_23.scalar_reward(of_23.teach_scalar(pairs, gen(20)), pictures[0], pairs["asked"])
    assert torch.corrcoef(torch.stack([said, pictures[0, :, 5]]))[0, 1] > 0.7
    assert torch.corrcoef(torch.stack([said, turned]))[0, 1] < -0.7


def test_the_sham_reward_keeps_each_groups_values():
    student = [torch.randn(*s, generator=gen(21)) for s in ((65, 64), (64,), (64, 7), (7,))]
    scalar = [w.detach() for w in rewards.new_voters(1, 65, 64, gen(22)).parameters()]
    found = {"student": student, "plain": student, "scalar": scalar}
    inside = of_23.reward_of.__globals__
    kept, inside["judges"] = inside["judges"], lambda seed: found
    try:
        asked, letter, _ = of_23.draw_requests(16, gen(23))
        given = torch.randn(16, 7, generator=gen(24)), asked, letter
        whole = of_23.reward_of("student's critique", 1)(*given).view(2, 8)
        sham = of_23.reward_of("sham", 1)(*given).view(2, 8)
    finally:
        inside["judges"] = kept
    assert torch.equal(whole.sort(1).values, sham.sort(1).values) and not torch.equal(whole, sham)


def test_refined_line_of_an_answer():
    answer = "text faithfulness score: 2\nRefined request: exactly two cats: red ones"
    assert of_23.refined_by(answer, "two cats") == "exactly two cats: red ones"
    assert of_23.refined_by("nothing to say", "two cats") == "two cats"
