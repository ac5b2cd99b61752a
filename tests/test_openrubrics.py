"""Notebook 14: world, writer, filter, generator, judge and rivals against brute force."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlgenkit import rewards, worlds
from tests.notebook_code import definitions

of_14 = definitions("14")
of_14.draw_pool.__globals__["VOCABULARY"] = of_14.vocabulary()


def gen(seed):
    return torch.Generator().manual_seed(seed)


def scene_of(first, second, background="sand", look=(0.5, 0.2, 0.5, 0.9, 0.1)):
    stickers = [worlds.Sticker(*what, *where, 18.0) for what, where in first + second]
    return worlds.Scene(tuple(stickers), background, look)


def request(text="two red cats and a blue star", extras=(), occasion="poster"):
    return of_14.Request(worlds.parse(text), extras, occasion, text)


CATS = [(("cat", "red"), (16, 16)), (("cat", "red"), (16, 40))]
STAR = [(("star", "blue"), (48, 40))]


def test_evaluators_count_place_and_read_looks():
    two, one = scene_of(CATS, STAR), scene_of(CATS[:1], STAR)
    assert of_14.kept_rules(request(), two)[0] and not of_14.kept_rules(request(), one)[0]
    left = request("a red cat left of a blue star")
    assert left.asked() == [False, True, False, False, False, False]
    assert of_14.kept_rules(left, one)[1]
    for side, holds in (("right of", False), ("above", True), ("below", False)):
        assert of_14.kept_rules(request(f"a red cat {side} a blue star"), one)[1] == holds
    sky = request("a red cat and a blue star on a sky background")
    assert not of_14.kept_rules(sky, one)[2]
    assert of_14.kept_rules(sky, scene_of(CATS[:1], STAR, "sky"))[2]
    assert of_14.kept_rules(left, one)[3:] == [True, True, True]
    loud = scene_of(CATS[:1], STAR, look=(0.5, 0.9, 0.5, 0.3, 0.8))
    assert of_14.kept_rules(left, loud)[3:] == [False, False, False]


def test_responses_break_asked_rules_about_as_often_as_they_should():
    pool = of_14.draw_pool(150, 2, 1)
    broken = (pool.asked[:, None] & ~pool.met).sum((0, 1)) / (2 * pool.asked.sum(0))
    assert broken.min() > 0.15 and broken.max() < 0.5
    assert torch.equal(of_14.draw_pool(150, 2, 1).looks, pool.looks)
    # what is not asked and means nothing is never counted as broken
    assert pool.met[:, :, :3][~pool.asked[:, None, :3].expand_as(pool.met[:, :, :3])].all()


def pool_of(asked, met, looks, taste):
    nothing = torch.zeros(len(asked), 1)
    return of_14.Pool(
        [None] * len(asked), [], nothing, *map(torch.tensor, (asked, taste, met, looks))
    )


def test_people_count_broken_rules_first_and_then_looks():
    yes, no = [True] * 6, [False] + [True] * 5
    taste = [[1.0, 0.0, 0.0, 0.0, 0.0]]
    bright, dull = [0.9] + [0.0] * 4, [0.1] + [0.0] * 4
    rows, first, second = torch.tensor([0]), torch.tensor([0]), torch.tensor([1])
    wrong = pool_of([yes], [[no, yes]], [[bright, dull]], taste)
    assert not of_14.people_prefer(wrong, rows, first, second)
    assert of_14.people_prefer(wrong, rows, second, first)
    unasked = pool_of([no], [[no, yes]], [[bright, dull]], taste)
    assert of_14.people_prefer(unasked, rows, first, second)
    found = of_14.pretty_but_wrong(wrong)
    assert [x.tolist() for x in found] == [[0], [1], [0]]
    assert len(of_14.pretty_but_wrong(unasked)[0]) == 0


def test_pretty_but_wrong_finds_the_widest_gap():
    pool = of_14.draw_pool(20, 8, 2)
    rows, right, pretty = of_14.pretty_but_wrong(pool)
    broken, liked = of_14.violations(pool), of_14.pleasure(pool)
    for row in range(20):
        gaps = [
            (float(liked[row, j] - liked[row, i]), i, j)
            for i in range(8)
            for j in range(8)
            if broken[row, i] < broken[row, j] and liked[row, j] - liked[row, i] > 0.2
        ]
        place = (rows == row).nonzero()
        assert len(place) == bool(gaps)
        if gaps:
            assert (right[place].item(), pretty[place].item()) == max(gaps)[1:]


def test_a_look_slips_blurs_and_guesses():
    count = 20_000
    asked = torch.tensor([[True, False] * 3]).expand(count, 6)
    met = torch.ones(count, 1, 6, dtype=torch.bool)
    pool = SimpleNamespace(asked=asked, met=met, looks=torch.full((count, 1, 5), 0.5))
    rows = torch.arange(count)
    seen = of_14.look_at(pool, rows, rows * 0, gen(1))
    share = seen[:, :6].mean(0)
    expected = [0.9, 0.5, 0.9, 0.9, 0.9, 0.9]  # place was not asked: a coin
    assert torch.allclose(share, torch.tensor(expected), atol=0.015)
    assert abs(seen[:, 6].std() - of_14.BLUR) < 0.003
    assert torch.allclose(seen[:, 6:11], 1 - seen[:, 11:])


def test_labels_are_wrong_as_often_as_asked():
    pool = of_14.draw_pool(60, 2, 3)
    truth, none = of_14.labeled(pool, 0.0, gen(1))
    flipped, wrong = of_14.labeled(pool, 0.4, gen(1))
    assert not none.any() and 0.2 < wrong.float().mean() < 0.6
    assert torch.equal(flipped != truth, wrong)
    rows = torch.arange(60)
    assert of_14.people_prefer(pool, rows, truth, 1 - truth).all()


def readings(count, seed):
    draw = gen(seed)
    rules = (torch.rand(count, 6, generator=draw) < 0.6).float()
    looks = torch.rand(count, 5, generator=draw)
    return torch.cat([rules, looks, 1 - looks], 1)


def test_the_writer_names_the_largest_leads_of_the_chosen():
    chosen, rejected = readings(40, 1), readings(40, 2)
    found = torch.rand(40, 6, generator=gen(3)) < 0.4
    rubrics = of_14.contrastive_rubric(found, chosen, rejected, 0.15, 3)
    for row in range(40):
        leads = {k: float(chosen[row, k] - rejected[row, k]) for k in range(6, 16)}
        best = sorted(leads, key=leads.get, reverse=True)[:3]
        named = {k for k in best if leads[k] >= 0.15}
        assert set(rubrics[row].nonzero()[:, 0].tolist()) == named | set(
            found[row].nonzero()[:, 0].tolist()
        )


def test_the_verdict_is_the_kits_and_turns_around():
    first, second = readings(300, 4), readings(300, 5)
    rubrics = torch.rand(300, 16, generator=gen(6)) < 0.3
    said = of_14.rubric_verdict(first, second, rubrics)
    kit = rewards.rubric_preferences(first, second, of_14.in_words(), rubrics)
    assert torch.equal(said[kit.valid], kit.values[kit.valid])
    assert torch.equal(of_14.rubric_verdict(second, first, rubrics), 1 - said)
    weights = torch.tensor([1000.0, 1.0])  # rules outweigh all principles
    assert torch.equal(of_14.judge(weights, first, second, rubrics), said)
    assert torch.allclose(of_14.gaps(first, second, rubrics), -of_14.gaps(second, first, rubrics))


def test_the_filter_needs_the_chosen_in_both_places():
    one, half, zero = torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([0.0])
    passed = [
        (a.item(), b.item())
        for a in (one, half, zero)
        for b in (one, half, zero)
        if of_14.consistent(a, b)
    ]
    assert passed == [(1.0, 0.0)]


def test_without_errors_the_filter_sees_every_wrong_label_that_a_rule_decides(monkeypatch):
    names = of_14.make_lesson.__globals__
    monkeypatch.setitem(names, "SLIP", 0.0)
    monkeypatch.setitem(names, "BLUR", 0.0)
    monkeypatch.setitem(names, "found_rules", lambda pool, generator: pool.asked)
    monkeypatch.setitem(names, "p", SimpleNamespace(least=0.15, most=3))
    lesson = of_14.make_lesson(of_14.draw_pool(120, 2, 5), 0.4, gen(1))
    assert lesson.differs.any() and lesson.wrong.any()
    assert torch.allclose(lesson.all_chosen[:, 6:], lesson.chosen[:, 6:])
    assert torch.allclose(lesson.all_rejected[:, 6:], lesson.rejected[:, 6:])
    assert lesson.kept[lesson.differs & ~lesson.wrong].all()
    assert not lesson.kept[lesson.differs & lesson.wrong].any()
    assert lesson.kept[~lesson.differs & lesson.wrong].float().mean() > 0.5


def test_the_loss_is_the_likelihood_and_the_generator_minimizes_it():
    draw = gen(7)
    words = (torch.rand(80, 5, generator=draw) < 0.5).float()
    rubrics = torch.rand(80, 16, generator=draw) < 0.4
    kept = torch.rand(80, generator=draw) < 0.7
    logits = torch.randn(80, 16, generator=draw)
    chances = torch.where(rubrics, logits.sigmoid(), 1 - logits.sigmoid())
    by_hand = -torch.stack([chances[row].log().sum() for row in kept.nonzero()[:, 0]]).mean()
    assert torch.allclose(of_14.rubric_loss(logits, rubrics, kept), by_hand)

    weights = of_14.teach_generator(words, rubrics, kept).double().requires_grad_()
    scores = of_14.with_one(words).double() @ weights.T
    loss = of_14.rubric_loss(scores, rubrics, kept) * kept.sum()
    (loss + of_14.PRIOR / 2 * weights.square().sum()).backward()
    assert weights.grad.abs().max() < 1e-3


def test_a_dropped_rubric_teaches_nothing():
    words, rubrics = readings(30, 8)[:, :5], readings(30, 9) > 0.5
    kept = torch.arange(30) < 20
    other = torch.where(kept[:, None], rubrics, ~rubrics)
    one, two = (of_14.teach_generator(words, r, kept) for r in (rubrics, other))
    assert torch.equal(one, two)


def test_written_rubrics_have_likely_rules_and_leading_principles():
    weights = torch.zeros(16, 2)
    weights[0, 1], weights[1, 1] = 1.0, -1.0  # number is likely, place is not
    weights[6:, 1] = torch.tensor([2.0, 0.5, 0.0, 0.0, -1.0, -2.0, 0.0, 0.0, 0.0, 1.0])
    rubric = of_14.write_rubrics(weights, torch.zeros(1, 1), 2)[0]
    assert rubric.nonzero()[:, 0].tolist() == [0, 6, 15]  # more contrast, less clutter


def test_the_judge_learns_from_kept_pairs_alone():
    chosen, rejected = readings(200, 10), readings(200, 11)
    rubrics = torch.ones(200, 16, dtype=torch.bool)
    rules = (chosen - rejected)[:, :6].sum(1)
    agrees = rules > 0
    weights = of_14.teach_judge(chosen, rejected, rubrics, agrees)
    against = of_14.teach_judge(chosen, rejected, rubrics, rules < 0)
    assert weights[0] > 1 and against[0] < -1


def test_rival_features_multiply_readings_and_words():
    reading, words = readings(3, 12), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    made = of_14.by_word(reading[:, :11], words).reshape(3, 11, 3)
    rubric = torch.rand(3, 16, generator=gen(1)) < 0.5
    assert torch.equal(of_14.features("Bradley-Terry", reading, words, rubric), made.flatten(1))
    for row in range(3):
        for k in range(11):
            for v, present in enumerate([*words[row].tolist(), 1.0]):
                assert made[row, k, v] == reading[row, k] * present
    told = of_14.features("BT with rules, kept pairs", reading, words, rubric)
    assert torch.equal(told[:, :6], reading[:, :6] * rubric[:, :6])
    assert torch.equal(told[:, 6:], made[:, 6:].flatten(1))
    counted = of_14.features("BT with rule count", reading, words, rubric)
    assert torch.equal(counted[:, 0], (reading[:, :6] * rubric[:, :6]).sum(1))
    assert torch.equal(counted[:, 1:], reading[:, 6:11])


def test_generic_rubrics_keep_the_found_rules():
    found = torch.rand(50, 6, generator=gen(1)) < 0.5
    rubrics = of_14.generic_rubrics(found, 3, gen(2))
    assert torch.equal(rubrics[:, :6], found)
    assert (rubrics[:, 6:].sum(1) == 3).all()
    good = {6 + k for k in of_14.GENERIC}
    assert set(rubrics[:, 6:].any(0).nonzero()[:, 0].add(6).tolist()) == good


def test_accuracy_counts_ties_as_one_half():
    exam = SimpleNamespace(
        truth=torch.tensor([True, False, True, False, True]),
        kind=torch.tensor([0, 0, 1, 2, 3]),
    )
    found = of_14.accuracy(exam, torch.tensor([1.0, 0.5, 0.0, 0.0, 1.0]))
    assert found.tolist() == [62.5, 75.0, 0.0, 100.0, 100.0]


@pytest.mark.parametrize("seed", [0, 1])
def test_over_subsets_weighs_subsets_not_pairs(seed):
    bar = worlds.load_llmbar()
    of_14.over_subsets.__globals__["bar"] = bar  # what the notebook loads
    values = torch.rand(419, 2, generator=gen(seed))
    rows = (bar.subset != 0).nonzero()[:, 0]
    found = of_14.over_subsets(values, rows)
    by_hand = [values[bar.subset == k].mean(0).numpy() for k in range(1, 5)]
    assert np.allclose(found.numpy(), np.mean(by_hand, axis=0), atol=1e-6)


# --- signs of the study

EVERY_RULE = torch.cat([torch.zeros(16, 3), torch.tensor([1.0] * 6 + [0.0] * 10)[:, None]], 1)


@pytest.fixture
def small(monkeypatch):
    """What a run gives to the functions of the study."""
    p = SimpleNamespace(most=3, least=0.15, votes=3, epochs=40)
    monkeypatch.setitem(of_14.make_lesson.__globals__, "p", p)
    return p


def apart(count, seed):
    """Readings that separate: good ones meet more rules and have more of the first look."""
    good, bad = readings(count, seed), readings(count, seed + 1)
    good[:, :6], bad[:, :6] = 1.0, 0.0
    good[:, 6], bad[:, 6] = 0.9, 0.1
    good[:, 11], bad[:, 11] = 0.1, 0.9
    return good, bad


def lesson_of(kept, seed=20):
    """Pairs that separate; labels of dropped ones are turned around, and so is the single look."""
    good, bad = apart(len(kept), seed)
    chosen, rejected = (torch.where(kept[:, None], *pair) for pair in ((good, bad), (bad, good)))
    words = (torch.rand(len(kept), 3, generator=gen(seed)) < 0.5).float()
    rubrics = torch.zeros(len(kept), 16, dtype=torch.bool)
    rubrics[:, [0, 1, 2, 6]] = True
    return of_14.Lesson(
        words, rejected, chosen, chosen, rejected, rubrics, kept, ~kept, torch.ones_like(kept)
    )


def exam_of(count=60, votes=3):
    good, bad = apart(count, 40)
    truth = torch.arange(count) % 2 == 0
    look = tuple(torch.where(truth[:, None], *pair) for pair in ((good, bad), (bad, good)))
    words = (torch.rand(count, 3, generator=gen(41)) < 0.5).float()
    return SimpleNamespace(truth=truth, words=words, looks=[look] * votes, rows=torch.arange(count))


def test_rivals_learn_from_the_mean_of_looks_and_name_the_better(small):
    exam, everything = exam_of(), torch.ones(200, dtype=torch.bool)
    said = of_14.rivals(lesson_of(everything), exam, EVERY_RULE, 0)
    assert set(said) == set(of_14.RIVALS) | {f"{name}, vote" for name in of_14.PRIORS}
    for name, verdicts in said.items():
        assert torch.equal(verdicts == 1, exam.truth), name
    assert of_14.teach_pairwise(lesson_of(everything), gen(1)).w_in.shape[2] == 32


def test_rivals_of_kept_pairs_see_kept_pairs_alone(small):
    exam, few = exam_of(), torch.arange(200) < 60
    said = of_14.rivals(lesson_of(few), exam, EVERY_RULE, 0)
    for name in of_14.PRIORS:
        wanted = exam.truth if name.endswith("kept pairs") else ~exam.truth
        assert torch.equal(said[name] == 1, wanted), name
    mixed = SimpleNamespace(**vars(exam))  # two looks of three turned around
    mixed.looks = [exam.looks[0], exam.looks[0][::-1], exam.looks[0][::-1]]
    said = of_14.rivals(lesson_of(torch.ones(200, dtype=torch.bool)), mixed, EVERY_RULE, 0)
    assert torch.equal(said["BT with rule count"] == 1, exam.truth)
    assert torch.equal(said["BT with rule count, vote"] == 0, exam.truth)


def test_an_exam_has_each_kind_of_pair_and_one_random_pair_a_request(small):
    pool = of_14.draw_pool(30, 8, 4)
    exam = of_14.make_exam(pool, gen(1))
    hard, right, pretty = of_14.pretty_but_wrong(pool)
    assert exam.kind[: len(hard)].eq(0).all() and not exam.kind[len(hard) :].eq(0).any()
    assert torch.equal(exam.rows[exam.kind == 0], hard) and len(exam.looks) == 3
    assert torch.equal(exam.rows[exam.kind == 3], torch.arange(30))
    first = [0] * len(hard) + [2] * len(hard) + [4] * len(hard) + [6] * 30
    broken, start = of_14.violations(pool), len(hard)
    for place, k in enumerate(first):
        row = int(exam.rows[start + place])
        differ = bool(broken[row, k] != broken[row, k + 1])
        if k < 6:
            assert exam.kind[start + place] == (1 if differ else 2)
        better = of_14.people_prefer(pool, *torch.tensor([[row], [k], [k + 1]]))
        assert exam.truth[start + place] == better[0]
    for place, (good, bad) in enumerate(zip(right.tolist(), pretty.tolist())):
        row, one = hard[place], exam.looks[0][0][place, 6:11]
        shown = good if exam.truth[place] else bad
        assert (one - pool.looks[row, shown]).abs().mean() < 0.3


def test_the_pick_of_eight_is_the_best_not_the_worst(small, monkeypatch):
    names = of_14.make_lesson.__globals__
    monkeypatch.setitem(names, "SLIP", 0.0)
    monkeypatch.setitem(names, "BLUR", 0.0)
    best = torch.randint(8, (40,), generator=gen(3))
    met = torch.nn.functional.one_hot(best, 8).bool()[:, :, None].expand(40, 8, 6)
    looks = torch.where(met[:, :, :5], 0.9, 0.1)
    pool = pool_of([[True] * 6] * 40, met.tolist(), looks.tolist(), [[1.0, 0, 0, 0, 0]] * 40)
    pool = of_14.replace(pool, words=torch.zeros(40, 3))
    taught = (EVERY_RULE, torch.tensor([1.0, 0.0]))
    found = of_14.best_of_eight(lesson_of(torch.ones(200, dtype=torch.bool)), pool, taught, 0)
    assert found.pop("any picture") == 100 * (best == 0).float().mean()
    assert set(found) == {"rubrics", *of_14.PRIORS}
    assert all(share == 100 for share in found.values())


def test_variants_use_the_half_and_the_pairs_that_they_name(small):
    exam, few = exam_of(), torch.arange(200) < 60
    lesson = lesson_of(few)
    lesson = of_14.replace(lesson, chosen=lesson.rejected, rejected=lesson.chosen)
    first, second = (look.clone() for look in exam.looks[0])
    first[:, 6:], second[:, 6:] = second[:, 6:].clone(), first[:, 6:].clone()
    exam.looks = [(first, second)] * 3  # the better in rules is the worse in principles
    generator = EVERY_RULE.clone()
    generator[6, 3] = 1.0  # writes "more contrast", too
    pool = SimpleNamespace(asked=torch.ones(60, 6, dtype=torch.bool))
    weights = torch.tensor([2.0, 1.0])
    said = of_14.variants(lesson, pool, exam, generator, weights, gen(1))
    assert torch.equal(said["rules only"] == 1, exam.truth)
    assert torch.equal(said["principles only"] == 0, exam.truth)
    for name in ("vote", "request alone", "generic", "all generic", "leaky judge"):
        assert torch.equal(said[name] == 1, exam.truth), name


def test_the_sham_permutes_kept_rubrics_alone(small, monkeypatch):
    lessons, real = [], of_14.taught

    def taught(lesson, kept):
        lessons.append((lesson, kept))
        return real(lesson, kept)

    monkeypatch.setitem(of_14.arms.__globals__, "taught", taught)
    lesson = of_14.make_lesson(of_14.draw_pool(40, 2, 6), 0.2, gen(1))
    pool = of_14.draw_pool(8, 8, 7)
    said, made = of_14.arms(lesson, pool, of_14.make_exam(pool, gen(2)), 0)
    kept, dropped = lesson.kept, ~lesson.kept
    assert [int(marks.sum()) for _, marks in lessons] == [
        int(kept.sum()),
        40,
        *[int(kept.sum())] * 2,
    ]
    sham = lessons[-1][0].rubrics
    assert torch.equal(lessons[-1][1], kept) and torch.equal(sham[dropped], lesson.rubrics[dropped])
    assert not torch.equal(sham, lesson.rubrics)
    assert sorted(sham[kept].tolist()) == sorted(lesson.rubrics[kept].tolist())
    assert set(made) == {"rubrics", "no filter", "random drop"} and "sham" in said


def test_gains_on_llmbar_are_after_less_before(monkeypatch):
    names, bar = of_14.change.__globals__, worlds.load_llmbar()
    monkeypatch.setitem(names, "bar", bar)
    monkeypatch.setitem(names, "hard", (bar.subset != 0).nonzero()[:, 0])
    worse, better = torch.zeros(419, 6), torch.ones(419, 6)
    gains = [next(iter(of_14.change(*pair))) for pair in ((worse, better), (better, worse))]
    assert gains == [100, -100]
    upper = torch.rand(419, 6, generator=gen(1)) < 0.5
    monkeypatch.setitem(names, "upper", upper)
    monkeypatch.setitem(names, "gained", upper.float())
    assert of_14.more_specific(np.arange(419)) == 100
    share = torch.rand(419, 6, generator=gen(2))
    half = of_14.upper_half(share)
    assert share[half].mean() > share[~half].mean()
