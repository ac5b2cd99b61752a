"""Notebook 24: duels, advantages, grammar, traces and statistics against loops and libraries."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from sklearn.metrics import f1_score

from rlgenkit import models, optimizers, rewards
from rlgenkit.workbook import exercises
from tests.notebook_code import definitions

of_24 = definitions("24")
EXERCISES = exercises.load_checks("24_unifiedreward_flex")["EXERCISES"]
SETTINGS = of_24.train_policy.__globals__


def gen(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    small = SimpleNamespace(
        labels=60, drafts=3, iterations=4, group=4, overall=0.3, copies=2, epochs=1, updates=3,
        captions=6, exam=200, duels=2, schooling=3,
    )  # fmt: skip
    monkeypatch.setitem(SETTINGS, "p", small)
    monkeypatch.setitem(SETTINGS, "CATEGORY_WEIGHTS", torch.tensor([1.0, 0.7, 0.7]))
    return small


def test_win_rates_against_a_loop():
    verdict = torch.randint(3, (3, 10, 2), generator=gen(0)) / 2
    found = of_24.win_rates(verdict, 5)
    for g, c in itertools.product(range(3), range(2)):
        wins = [0.0] * 5
        for k, (i, j) in enumerate(itertools.combinations(range(5), 2)):
            wins[i] += float(verdict[g, k, c]) / 4
            wins[j] += (1 - float(verdict[g, k, c])) / 4
        torch.testing.assert_close(found[g, :, c], torch.tensor(wins))
    torch.testing.assert_close(found.mean(1), torch.full((3, 2), 0.5))


def test_category_reward_against_numpy():
    shares, weights = torch.rand(3, 4, 3, generator=gen(1)), torch.tensor([1.0, 0.7, 0.7])
    wanted = np.average(shares.numpy(), axis=2, weights=weights.numpy())
    np.testing.assert_allclose(of_24.category_reward(shares, weights), wanted, rtol=1e-6)


def test_decoupled_advantages_against_the_loop_and_the_kit():
    pair = torch.rand(2, 7, 6, generator=gen(2))
    pair[0, 0, :], pair[1, 0, :] = 0.5, 0.5  # a group without spread
    found = of_24.decoupled_advantages(*pair, 0.3)
    torch.testing.assert_close(found, of_24.decoupled_by_loop(*pair, 0.3), atol=1e-4, rtol=1e-4)
    assert found[0].abs().max() < 0.1 and abs(float(found.mean())) < 1e-5
    groups = torch.arange(7).repeat_interleave(6)
    alone = optimizers.group_advantages(pair[0].flatten(), groups, eps=1e-8)
    alone = optimizers.batch_advantages(alone)
    one = of_24.decoupled_advantages(pair[0], pair[1], 1.0).flatten()
    torch.testing.assert_close(one, alone, atol=1e-4, rtol=1e-4)
    wide = torch.zeros(1, 100)
    wide[0, 0] = 1.0
    assert float(of_24.decoupled_advantages(wide, wide, 0.3).max()) == 5.0


def test_people_notice_weigh_and_slip():
    pairs = of_24.draw_pairs(20000, gen(3))
    n = 17
    total = 0.0
    for k in range(10):
        gap = float(pairs.first[n, k] - pairs.second[n, k])
        if abs(gap) >= 0.3:
            total += of_24.TASTES[int(pairs.context[n])][k] * gap
    lead = of_24.noticed(pairs.first, pairs.second, pairs.context)
    assert float(lead[n]) == pytest.approx(total, abs=1e-5)
    chance = 0.8 * torch.sigmoid(lead / 0.3) + 0.1
    assert abs(float((pairs.label.float() - chance).mean())) < 0.01
    sure = lead > 3
    assert abs(float(pairs.label[sure].float().mean()) - 0.9) < 0.02
    torch.testing.assert_close(of_24.noticed(pairs.second, pairs.first, pairs.context), -lead)


def test_captions_are_even_and_contexts_belong_to_cues():
    words, context = of_24.draw_captions(24000, gen(4))
    assert chisquare(words[:, 0].bincount(minlength=24).numpy()).pvalue > 1e-3
    assert torch.equal(words[:, 0] // 4, context)
    assert words[:, 1].min() == 24 and words[:, 1].max() == 29
    assert words[:, 2].min() == 30 and words[:, 2].max() == 37
    prompt = of_24.prompt_ids(words[:1], torch.arange(-4, 6).clamp(-4, 4)[None])[0]
    said = [of_24.VOCABULARY[k] for k in prompt]
    assert said[:3] == [of_24.WORDS[k] for k in words[0]]
    assert said[3] == "count-4" and said[7] == "sharp+0" and said[12] == "calm+4"


def test_levels_are_rounded_differences():
    first = torch.tensor([[0.0, 0.9, 0.5, 0.61] + [0.5] * 6])
    second = torch.tensor([[1.0, 0.0, 0.5, 0.3] + [0.5] * 6])
    levels = torch.stack([of_24.levels_of(first, second, gen(k))[0] for k in range(400)])
    assert levels.min() >= -4 and levels.max() <= 4
    assert levels.double().mean(0)[[0, 1, 2]].tolist() == pytest.approx([-4, 4, 0], abs=0.25)
    assert float(levels[:, 3].double().mean()) == pytest.approx(0.31 / 0.2, abs=0.15)


def test_written_traces_are_read_back():
    generator = gen(5)
    chosen = torch.rand(200, 10, generator=generator) < 0.5
    levels = torch.randint(-4, 5, (200, 10), generator=generator)
    weights = torch.randint(1, 4, (200, 10), generator=generator)
    texts = of_24.write_traces(chosen, levels, weights)
    for n, text in enumerate(texts):
        criteria, winners, winner = of_24.parse_trace(text).value
        assert set(criteria) == set(chosen[n].nonzero()[:, 0].tolist())
        assert all(one + two == 10 for one, two in criteria.values())
        total = int((chosen[n] * levels[n] * weights[n]).sum())
        assert winner == ("even" if total == 0 else "first" if total > 0 else "second")
        for name, own in zip("ABC", winners):
            part = list(of_24.CATEGORIES[name])
            lead = int((chosen[n] * levels[n] * weights[n])[part].sum())
            assert own == of_24.side(lead)
    batch = of_24.as_batch(torch.zeros(200, 13, dtype=torch.long), texts)
    again = of_24.read(batch.answers)
    assert [r.value for r in again] == [of_24.parse_trace(text).value for text in texts]


GOOD = "A B sharp 8 2 first C even W first"


@pytest.mark.parametrize("text", [
    "", "B sharp 8 2 first C even W first", GOOD.replace("8 2", "8"),
    GOOD.replace("sharp", "count"), GOOD.replace("W first", "W"), GOOD + " first",
    GOOD.replace("sharp 8 2", "sharp 8 2 sharp 8 2"), GOOD.replace("C even", "C"),
    GOOD.replace("W first", "W A"),
])  # fmt: skip
def test_a_broken_trace_has_no_verdict(text):
    good, bad = of_24.parse_trace(GOOD.replace("A B", "A even B").split()), None
    assert good.value == ({4: (8, 2)}, ("even", "first", "even"), "first")
    bad = of_24.parse_trace(text.replace("A B", "A even B").split())
    assert bad.value is None and bad.why
    overall, parts, valid = of_24.verdicts([good, bad])
    assert overall.tolist() == [1.0, 0.5] and valid.tolist() == [True, False]
    assert parts.tolist() == [[0.5, 1.0, 0.5], [0.5] * 3]


def test_an_answer_without_an_end_is_cut():
    batch = of_24.as_batch(
        torch.zeros(1, 13, dtype=torch.long), [GOOD.replace("A B", "A even B").split()]
    )
    assert of_24.read(batch.answers)[0].value is not None
    assert of_24.read(batch.answers[:, :-1])[0].value is None


def test_fidelity_is_f1_and_0_for_broken_rubrics():
    first, second = torch.full((1, 10), 0.5), torch.full((1, 10), 0.5)
    first[0, 7], second[0, 8] = 0.9, 1.0  # light and color, of which vivid is told
    vivid = torch.tensor([3])

    def of(text):
        return float(of_24.fidelity([of_24.parse_trace(text.split())], first, second, vivid))

    head = "A even B even"
    assert of(f"{head} C light 8 2 color 2 8 second W second") == 1.0
    assert of(f"{head} C light 8 2 first W first") == pytest.approx(2 / 3)
    assert of(f"{head} C light 8 2 calm 6 4 first W first") == pytest.approx(1 / 2)
    assert of(f"{head} C light 8 3 color 2 8 second W second") == 0.0
    assert of(f"{head} C light 8 2 color 2 8 second W first") == 0.0
    assert of("A even") == 0.0


def test_the_teacher_is_kept_where_it_agrees_with_the_label():
    pairs = of_24.draw_pairs(300, gen(6))
    prompts, texts = of_24.teach(pairs, 2, gen(7))
    assert 250 < len(texts) < 500 and len(prompts) == len(texts)
    by_words = {tuple(w): [] for w in pairs.words.tolist()}
    for words, label in zip(pairs.words.tolist(), pairs.label.tolist()):
        by_words[tuple(words)].append("first" if label else "second")
    for prompt, text in zip(prompts.tolist(), texts):
        assert text[-1] in by_words[tuple(k - 2 for k in prompt[:3])]


def test_pairs_of_traces_against_a_loop():
    generator = gen(8)
    right = torch.rand(40, 4, generator=generator) < 0.5
    rank = torch.rand(40, 4, generator=generator)
    wanted, mixed = [], []
    for n in range(40):
        good = [k for k in range(4) if right[n, k]]
        rest = [k for k in range(4) if not right[n, k]]
        mixed += [[4 * n + a, 4 * n + b] for a, b in zip(good, rest)]
        if len(good) > 1:
            best, worst = (pick(good, key=lambda k: rank[n, k]) for pick in (max, min))
            if rank[n, best] > rank[n, worst] + 0.05:
                wanted.append([4 * n + best, 4 * n + worst])
    assert of_24.both_right(right, rank).tolist() == wanted
    assert of_24.right_and_wrong(right).tolist() == mixed
    assert of_24.right_and_wrong(torch.ones(3, 2, dtype=torch.bool)).shape == (0, 2)


def test_preference_loss_is_that_of_the_kit_with_its_gradient():
    sums = torch.randn(4, 9, generator=gen(9), requires_grad=True)
    found = of_24.preference_loss(*sums, 0.4)
    own = torch.autograd.grad(found, sums)[0]
    kit = optimizers.dpo_loss(*sums, 0.4)
    torch.testing.assert_close(found, kit)
    torch.testing.assert_close(own, torch.autograd.grad(kit, sums)[0])


def test_imitation_and_preference_move_log_probs_as_they_should(settings):
    model = of_24.new_model()
    prompts, texts = of_24.schoolwork(16, gen(10))
    batch = of_24.as_batch(prompts, texts)
    before = models.token_logprobs(model, batch).sum(1).detach()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = [of_24.imitate(model, optimizer, batch) for _ in range(4)]
    assert losses[0] == pytest.approx(-float(before.sum() / batch.mask.sum()), rel=1e-5)
    assert losses[-1] < losses[0]
    pairs = torch.stack([torch.arange(8), torch.arange(8, 16)], 1)
    before = models.token_logprobs(model, batch).sum(1).detach()
    settings.updates = 15
    of_24.prefer_traces(model, batch, pairs, pairs[:0], gen(11))
    change = models.token_logprobs(model, batch).sum(1).detach() - before
    assert change[:8].mean() > change[8:].mean() + 0.1


def test_all_second_stages_draw_the_same_pairs_of_right_and_wrong(settings, monkeypatch):
    prompts, texts = of_24.schoolwork(24, gen(30))
    batch = of_24.as_batch(prompts, texts)
    mixed = torch.stack([torch.arange(8), torch.arange(8, 16)], 1)
    good = torch.stack([torch.arange(16, 20), torch.arange(20, 24)], 1)
    seen = []

    def keep(chosen, rejected, reference_chosen, reference_rejected, beta):
        seen.append(torch.stack([reference_chosen, reference_rejected], 1))
        return optimizers.dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta)

    monkeypatch.setitem(SETTINGS, "preference_loss", keep)
    settings.updates = 1
    for extra in (good[:0], good, good.flip(1)):
        of_24.prefer_traces(of_24.new_model(), batch, mixed, extra, gen(31))
    alone, added, turned = seen
    assert len(alone) == 32 and len(added) == len(turned) == 64
    assert torch.equal(alone, added[:32]) and torch.equal(alone, turned[:32])
    assert torch.equal(added[32:], turned[32:].flip(1))
    model = of_24.new_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    of_24.prefer_traces(model, batch, mixed[:0], good, gen(31))
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_streams_of_two_seeds_never_meet():
    first = [torch.rand(3, generator=of_24.stream(seed, part)).tolist()
             for seed in range(2400, 2408) for part in range(8)]  # fmt: skip
    assert len({tuple(x) for x in first}) == 64


def test_the_untrained_model_is_the_same_each_time_and_leaves_the_global_seed_alone():
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    one, two = of_24.new_model(), of_24.new_model()
    assert torch.equal(torch.rand(1), wanted)
    same = zip(one.state_dict().values(), two.state_dict().values())
    assert all(torch.equal(a, b) for a, b in same)


def test_rivals_by_cue_are_linear_in_gaps_times_cues():
    gaps = torch.randn(5, 10, generator=gen(12))
    words, _ = of_24.draw_captions(5, gen(13))
    found = of_24.by_cue(gaps, words)
    assert found.shape == (5, 250)
    for n in range(5):
        table = found[n, 10:].view(10, 24)
        said = words[n, :1].tolist()
        for k in range(24):
            wanted = gaps[n] if k in said else torch.zeros(10)
            torch.testing.assert_close(table[:, k], wanted)
    levels = torch.tensor([[-4, -2, -1, 0, 1, 2, 3, 0, 1, -1]])
    assert of_24.by_rubric(levels).tolist() == [[-4, -2, 0, 0, 0, 2, 3, 0, 0, 0]]


def test_rivals_learn_the_taste_that_they_can_say(settings):
    pairs = of_24.draw_pairs(4000, gen(14))
    pairs = pairs.at(of_24.noticed(pairs.first, pairs.second, pairs.context) != 0)
    settings.labels = 3000
    found = of_24.examine_rivals(of_24.fit_rivals(1, 3000), pairs, gen(15))
    assert found["with caption"][0] > 80
    assert 60 < found["pointwise"][0] < 75 and 60 < found["fixed rubric"][0] < 75
    exact = of_24.noticed(pairs.first, pairs.second, pairs.context)
    right = of_24.accuracies((1 + exact.sign()) / 2, pairs)
    assert right.tolist() == [100.0] * 7
    assert of_24.accuracies(torch.full((len(exact),), 0.5), pairs).tolist() == [50.0] * 7


def test_usage_counts_criteria_of_noticed_differences():
    first, second = torch.full((2, 10), 0.5), torch.full((2, 10), 0.5)
    first[:, 4], first[:, 7] = 0.9, 0.95
    pairs = of_24.Pairs(torch.zeros(2, 3).long(), torch.tensor([3, 3]), first, second,
                        torch.tensor([True, True]))  # fmt: skip
    texts = ["A even B even C light 8 2 color 6 4 first W first", "nonsense"]
    found = of_24.usage([of_24.parse_trace(text.split()) for text in texts], pairs)
    assert found[3, 7] == 0.5 and found[3, 4] == 0.0 and found[3, 8] == 0.0
    assert found[[0, 1, 2, 4, 5]].abs().max() == 0


def test_paint_takes_care_from_the_others_and_utility_is_the_taste():
    flat = of_24.paint(torch.zeros(1, 10))
    assert torch.allclose(flat, torch.full((1, 10), 0.5))
    one = torch.zeros(1, 10)
    one[0, 8] = 1.0
    painted = of_24.paint(one)
    assert painted[0, 8] > 0.8 and (painted[0, :8] < 0.5).all()
    pictures = torch.rand(4, 10, generator=gen(16))
    context = torch.tensor([0, 2, 3, 5])
    for n, c in enumerate(context.tolist()):
        wanted = sum(w * float(x) for w, x in zip(of_24.TASTES[c], pictures[n]))
        assert float(of_24.enjoyed(pictures, context)[n]) == pytest.approx(wanted, rel=1e-5)


def exact_judge(_, words, first, second, generator):
    """A judge that knows the taste."""
    gap = of_24.taste(words[:, 0] // 4) * (first - second)
    parts = [gap[:, list(own)].sum(1) for own in of_24.CATEGORIES.values()]
    return (1 + gap.sum(1).sign()) / 2, (1 + torch.stack(parts, 1).sign()) / 2


def test_advantages_of_duels_follow_the_truth():
    words, context = of_24.draw_captions(8, gen(17))
    pictures = torch.rand(8, 5, 10, generator=gen(18))
    by = of_24.duels_by(exact_judge, None, 1.0)
    advantages = by(words, pictures, gen(19))
    truth = of_24.enjoyed(pictures.flatten(0, 1), context.repeat_interleave(5)).view(8, 5)
    assert torch.equal(advantages.argsort(1), truth.argsort(1))
    points = of_24.points_by(torch.tensor([1.0] + [0.0] * 9))(words, pictures, gen(20))
    assert torch.corrcoef(torch.stack([points.flatten(), pictures[..., 0].flatten()]))[0, 1] > 0.7
    weights = torch.cat([torch.zeros(10), of_24.taste(torch.arange(24) // 4).T.flatten()])
    points = of_24.points_by(weights)(words, pictures, gen(20))
    assert torch.corrcoef(torch.stack([points.flatten(), truth.flatten()]))[0, 1] > 0.7


def test_a_policy_learns_from_an_exact_judge_and_not_from_one_without_a_verdict(settings):
    settings.iterations, settings.captions, settings.group = 15, 12, 6
    by = of_24.duels_by(exact_judge, None, 0.3)
    found = of_24.train_policy(by, 1, 0.1)
    again = of_24.train_policy(by, 1, 0.1)
    coins = of_24.duels_by(of_24.rubric_duels, torch.zeros(10), 0.3)
    sham = of_24.train_policy(coins, 1, 0.1)
    assert torch.equal(found["truth"], again["truth"])
    assert found["gain"].mean() > 1.0 and sham["gain"].abs().max() < 1e-5
    assert found["truth"].shape == (15,) and found["gain"].shape == (6,)


def test_turned_duels_are_turned_back():
    class Fake:
        pass

    def hold(model, words, first, second, generator):
        lead = of_24.noticed(first, second, words[:, 0] // 4)
        value = [of_24.side(x) for x in lead.tolist()]
        return [rewards.Reading(({}, (x, "even", "even"), x)) for x in value]

    before = SETTINGS["hold_duels"]
    SETTINGS["hold_duels"] = hold
    try:
        pairs = of_24.draw_pairs(300, gen(21))
        given = (Fake(), pairs.words, pairs.first, pairs.second, gen(22))
        said, parts = of_24.flexible_duels(*given)
    finally:
        SETTINGS["hold_duels"] = before
    lead = of_24.noticed(pairs.first, pairs.second, pairs.context)
    assert torch.equal(said, (1 + lead.sign()) / 2) and torch.equal(parts[:, 0], said)
    assert (parts[:, 1:] == 0.5).all()


def test_duels_of_an_exact_judge_do_not_depend_on_the_order():
    pictures, context = of_24.group_of_pictures()
    one, two = (of_24.exact_duels(pictures, context, 0.0, turned) for turned in (False, True))
    assert torch.equal(one, two)
    biased = of_24.exact_duels(pictures, context, 1.0, False).mean(0)
    assert (biased.diff() < 0).all()


def test_macro_f1_is_that_of_sklearn():
    said, tested = torch.rand(2, 80, 6, generator=gen(23)) < 0.4
    said[:, 0], tested[:, 0] = False, False
    wanted = f1_score(tested.numpy(), said.numpy(), average="macro", zero_division=0)
    assert of_24.macro_f1(said, tested) == pytest.approx(wanted, abs=1e-6)


def test_held_out_chances_come_from_other_folds():
    generator = gen(24)
    features = torch.randn(200, 12, generator=generator)
    tested = torch.zeros(200, 27, dtype=torch.bool)
    tested[:, 0] = features[:, 0] > 0
    tested[:, 1] = torch.rand(200, generator=generator) < 0.3
    folds = torch.arange(200) % 5
    found = of_24.chances(features, tested, folds)
    assert ((found[:, 0] > 0.5) == tested[:, 0]).float().mean() > 0.85
    flipped = tested.clone()
    flipped[folds == 2] = ~flipped[folds == 2]
    other = of_24.chances(features, flipped, folds)
    assert torch.equal(found[folds == 2], other[folds == 2])
    assert not torch.equal(found[folds == 1], other[folds == 1])


def test_scene_pairs_differ_in_a_color():
    texts, right, wrong = of_24.scene_pairs(3)
    assert len(texts) == 3 and right.shape == wrong.shape == (3, 3, 64, 64)
    assert not torch.equal(right, wrong) and "winner" in of_24.REQUEST


@pytest.mark.parametrize(("number", "student"), [
    ("24.7", "weights_for_b"), ("24.7", "reversed_places"), ("24.3", "above_only"),
    ("24.3", "no_floor"), ("24.1", "needs_categories"),
])  # fmt: skip
def test_wrong_answers_of_the_readers_are_refused(number, student):
    assert EXERCISES[number].outcome(STUDENTS[student]).status == "wrong"


def weights_for_b(by_overall, names, shares, weight):
    own = torch.tensor([{"A": 1.0, "B": 5.0, "C": 0.7}[name] for name in names])
    return (1 - weight) * by_overall + weight * (own[:, None] * shares).sum(0) / own.sum()


def reversed_places(by_overall, names, shares, weight):
    own = torch.tensor([1.0, 0.7, 0.7][: len(names)]).flip(0)
    return (1 - weight) * by_overall + weight * (own[:, None] * shares).sum(0) / own.sum()


def mixture(by_overall, by_category, overall, floor):
    parts = [
        (x - x.mean(1, keepdim=True)) / (x.std(1, correction=0, keepdim=True) + floor)
        for x in (by_overall, by_category)
    ]
    both = overall * parts[0] + (1 - overall) * parts[1]
    return (both - both.mean()) / (both.std(correction=0) + floor)


def above_only(by_overall, by_category, overall):
    return mixture(by_overall, by_category, overall, 1e-8).clamp(max=5)


def no_floor(by_overall, by_category, overall):
    return mixture(by_overall, by_category, overall, 0.0).clamp(-5, 5)


def needs_categories(verdict, size):
    one, other = torch.triu_indices(size, size, 1)
    wins = torch.zeros(len(verdict), size, verdict.shape[2])
    return wins.index_add(1, one, verdict).index_add(1, other, 1 - verdict) / (size - 1)


STUDENTS = {f.__name__: f for f in
            (weights_for_b, reversed_places, above_only, no_floor, needs_categories)}  # fmt: skip
