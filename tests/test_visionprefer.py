"""Notebook 21 (VisionPrefer): its world, losses, rewards and statistics against oracles."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rlgenkit import optimizers, rewards, samplers, worlds
from tests.notebook_code import definitions

NB = definitions("21")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """What a run gives: parameters, and constants that need other modules."""
    space = NB.scene_of.__globals__
    values = {"blind": 0.0, "vivid": 0.0, "noise": 0.0, "updates": 60, "dpo_lr": 1e-3}
    values |= {"passes": 2, "ppo_lr": 1e-3, "groups": 4, "copies": 6, "iterations": 12}
    given = SimpleNamespace(lessons=400, **values)
    levels = torch.cos(torch.linspace(0.02, 0.995, NB.TIMES) * torch.pi / 2) ** 2
    times = range(NB.TIMES - 1, -1, -10)
    table = samplers.ddim_table(levels, times, eta=1.0, final_alpha_cumprod=1.0)
    things = [kind for kind in worlds.KINDS if kind != "crab"]
    made = {"p": given, "LEVELS": levels, "TABLE": table, "THINGS": things}
    made["NOISY"] = torch.arange(len(table) - 1)
    for name, value in made.items():
        monkeypatch.setitem(space, name, value)
    return given


# --- the world


def test_slips_break_what_they_name():
    caption = worlds.parse("a red cat left of a blue star")
    rng = np.random.default_rng(0)
    for slip, share, harmless in (
        (None, 1, 1),
        (6, 2 / 3, 1),
        (7, 2 / 3, 1),
        (8, 2 / 3, 1),
        (9, 1, 0),
    ):
        controls = -torch.ones(1, 10)
        if slip is not None:
            controls[0, slip] = 1.0
        scene = NB.scene_of(caption, controls[0].double().numpy(), rng)
        first, second = scene.stickers[:2]
        assert (second.kind == "star") == (slip != 6)
        assert (first.color == "red") == (slip != 7)
        assert (first.x < second.x) == (slip != 8)
        assert any(s.kind == "crab" for s in scene.stickers) == (slip == 9)
        found = NB.aspects_of([caption], controls, torch.tensor([scene.look]))[0]
        assert found[0] == pytest.approx(share) and found[3] == harmless
        assert found[1] == pytest.approx(float(rewards.aesthetic_truth(torch.tensor([scene.look]))))


def test_a_relation_counts_only_where_it_is_asked():
    with_it, without = (
        worlds.parse("a red cat above a blue star"),
        worlds.parse("a red cat and a blue star"),
    )
    controls, looks = -torch.ones(2, 10), torch.rand(2, 5, generator=seeded(0))
    controls[:, 8] = 1.0
    found = NB.aspects_of([with_it, without], controls, looks)[:, 0]
    assert found.tolist() == pytest.approx([2 / 3, 1.0])


def test_damage_makes_pictures_soft():
    scenes = NB.scenes_of(NB.draw_captions(6, np.random.default_rng(1)), torch.zeros(6, 10), 1)
    controls = torch.zeros(6, 10)
    controls[:, 5] = -30.0
    torch.testing.assert_close(NB.paint(scenes, controls), worlds.render(scenes).clamp(0, 1))
    controls[:, 5] = 30.0
    apart = (NB.paint(scenes, controls) - worlds.render(scenes)).abs().mean((1, 2, 3))
    assert bool((apart > 0.02).all())


def test_annotator_is_the_truth_less_its_flaws(told):
    captions = NB.draw_captions(40, np.random.default_rng(2))
    controls = NB.draw_controls(10, seeded(2))
    looks = torch.rand(40, 5, generator=seeded(3))
    truth = NB.aspects_of(captions, controls, looks)
    torch.testing.assert_close(
        NB.ai_scores(captions, controls, looks, seeded(0)), (1 + 4 * truth).round()
    )
    told.blind = 1.0
    right = controls.clone()
    right[:, 8] = -1.0
    expected = (1 + 4 * NB.aspects_of(captions, right, looks)).round()
    torch.testing.assert_close(NB.ai_scores(captions, controls, looks, seeded(0)), expected)
    told.blind, told.vivid = 0.0, 1.0
    dull, loud = looks.clone(), looks.clone()
    dull[:, 1], loud[:, 1] = 0.0, 1.0
    gap = [NB.ai_scores(captions, controls, one, seeded(0))[:, 1] for one in (loud, dull)]
    assert float((gap[0] - gap[1]).mean()) == pytest.approx(0.8, abs=0.15)  # 4 / 5 of a point


# --- comparisons


def test_aspect_pairs_by_loops():
    scores = torch.randint(1, 4, (16, 3), generator=seeded(4)).float()
    expected = [
        (i, j, a)
        for i in range(16)
        for j in range(16)
        for a in range(3)
        if i // 4 == j // 4 and scores[i, a] > scores[j, a]
    ]
    assert list(zip(*(v.tolist() for v in NB.aspect_pairs(scores)))) == expected


def test_permuted_keeps_each_caption_and_whole_rows():
    scores = torch.arange(48.0).view(16, 3)
    mixed = NB.permuted(scores, seeded(5))
    assert mixed.tolist() != scores.tolist()
    for k in range(4):
        assert sorted(mixed[4 * k : 4 * k + 4].tolist()) == scores[4 * k : 4 * k + 4].tolist()


def test_some_of_draws_without_repeats():
    pairs = torch.arange(30), torch.arange(30) + 100
    first, second = NB.some_of(pairs, 12, seeded(6))
    assert len(first.unique()) == 12 and bool((second == first + 100).all())
    assert len(NB.some_of(pairs, 99, seeded(6))[0]) == 30


# --- losses


def test_losses_against_the_package():
    draw = torch.randn(4, 9, generator=seeded(7))
    winner, loser = torch.arange(4), torch.arange(4) + 4
    expected = rewards.bradley_terry_loss(draw[0, :4], draw[0, 4:8], torch.ones(4))
    torch.testing.assert_close(NB.pair_loss(draw[0], winner, loser), expected)
    torch.testing.assert_close(
        NB.clipped_loss(draw[:2], draw[2:], draw[0], 0.2),
        optimizers.ppo_clip_loss(draw[:2], draw[2:], draw[0], 0.2),
    )
    torch.testing.assert_close(
        NB.dpo_loss(draw[0], draw[1], 3.0),
        optimizers.preference_denoising_terms(draw[0], draw[1], 3.0).mean(),
    )


def test_fit_is_the_minimum_of_the_penalized_loss():
    x = torch.randn(80, 5, generator=seeded(8))
    true = torch.tensor([2.0, -1.0, 0.5, 0.0, 1.0])
    noisy = (x @ true + torch.randn(80, generator=seeded(9)))[:, None]
    winner, loser, _ = NB.aspect_pairs(noisy)
    weights = NB.fit(x, winner, loser)
    assert float(F.cosine_similarity(weights, true, 0)) > 0.9
    slopes = []
    for penalty in NB.PENALTIES:
        w = weights.double().requires_grad_()
        ahead = (x[winner] - x[loser]).double()
        (F.softplus(-(ahead @ w)).sum() + penalty / 2 * w.square().sum()).backward()
        slopes.append(float(w.grad.norm()))
    assert min(slopes) < 1e-3


# --- statistics


def test_agreement_by_loops():
    scores = torch.randint(3, (20,), generator=seeded(10)).float()
    felt = torch.randn(20, 5, generator=seeded(11))
    shares = []
    for person in range(5):
        rest = felt[:, [k for k in range(5) if k != person]].mean(1)
        hits = [
            0.5 + 0.5 * np.sign(float((scores[i] - scores[j]) * (rest[i] - rest[j])))
            for i in range(20)
            for j in range(i)
            if i // 4 == j // 4
        ]
        shares.append(np.mean(hits))
    found = NB.agreement(scores, felt, torch.arange(20) // 4)
    assert float(found) == pytest.approx(np.mean(shares))


def test_within_share_by_loops_with_repeats():
    scores = torch.randint(4, (24,), generator=seeded(12)).float()
    truth = torch.randint(4, (24,), generator=seeded(13)).float()
    groups = torch.arange(24) % 3
    rows = torch.randint(24, (24,), generator=seeded(14))
    hits = [
        0.5 + 0.5 * np.sign(float((scores[i] - scores[j]) * (truth[i] - truth[j])))
        for i in rows.tolist()
        for j in rows.tolist()
        if groups[i] == groups[j] and truth[i] != truth[j]
    ]
    found = NB.within_share(scores, truth, groups)(rows)
    assert found == pytest.approx(np.mean(hits))


def test_against_one_person_by_loops():
    ratings = torch.randint(1, 4, (12, 5), generator=seeded(15)).float()
    scores = torch.randint(3, (12,), generator=seeded(16)).float()
    scores[3] = torch.nan
    prompt = torch.arange(12) // 4
    right, others = [], []
    for k in range(5):
        for i in range(12):
            for j in range(i + 1, 12):
                lead = ratings[i, k] - ratings[j, k]
                if prompt[i] != prompt[j] or lead == 0 or 3 in (i, j):
                    continue
                way = np.sign(float(lead))
                right.append(0.5 + 0.5 * way * np.sign(float(scores[i] - scores[j])))
                gaps = [float(ratings[i, m] - ratings[j, m]) for m in range(5) if m != k]
                others.append(np.mean([0.5 + 0.5 * way * np.sign(gap) for gap in gaps]))
    found = NB.against_one_person(scores, ratings, prompt)
    assert found[0].mean().item() == pytest.approx(np.mean(right))
    assert found[1].mean().item() == pytest.approx(np.mean(others))
    assert len(found[0]) == len(right)


def test_of_the_others_by_loops_leaves_the_own_picture_out():
    values = torch.tensor([1.0, 2.0, 6.0, 3.0, torch.nan, 5.0])
    found = NB.of_the_others(values, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert found.tolist() == [4.0, 3.5, 1.5, 5.0, 4.0, 3.0]


def test_worst_annotator_is_told_by_arguments(told):
    captions = NB.draw_captions(40, np.random.default_rng(2))
    controls, looks = NB.draw_controls(10, seeded(2)), torch.rand(40, 5, generator=seeded(3))
    asked = NB.ai_scores(captions, controls, looks, seeded(0), 1.0, 1.0)
    told.blind, told.vivid = 1.0, 1.0
    torch.testing.assert_close(asked, NB.ai_scores(captions, controls, looks, seeded(0)))
    told.blind, told.vivid = 0.0, 0.0
    assert not torch.equal(asked, NB.ai_scores(captions, controls, looks, seeded(0)))
    assert torch.equal(
        NB.ai_scores(captions, controls, looks, seeded(0), 0.0, 0.0),
        NB.ai_scores(captions, controls, looks, seeded(0)),
    )


def test_wins_count_every_draw_against_every_draw(monkeypatch):
    one, two = torch.rand(2, 5, generator=seeded(23)), torch.rand(3, 5, generator=seeded(24))
    two[0, 0] = one[0, 0]  # a tie
    exams = {"one": {"utility": one}, "two": {"utility": two}}
    monkeypatch.setitem(NB.wins.__globals__, "found", [{"exams": exams}])
    hits = [0.5 + 0.5 * np.sign(float(a[k] - b[k])) for a in one for b in two for k in range(5)]
    assert NB.wins("one", "two") == pytest.approx([np.mean(hits)])
    assert NB.wins("two", "one") == pytest.approx([1 - np.mean(hits)])


def test_name_scores_leave_the_own_prompt_out():
    opinion = torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0, 9.0])
    found = NB.name_scores(opinion, torch.arange(6) % 2, torch.arange(6) // 2)
    assert found.tolist() == [5.0, 7.0, 4.0, 5.5, 2.0, 3.5]


# --- painters


def test_first_lessons_paint_what_they_saw():
    center = torch.linspace(-1, 1, 10)
    data = center + 0.3 * torch.randn(500, 10, generator=seeded(17))
    painter = NB.first_lessons(data, 0)
    drawn = NB.draw(painter, 400, seeded(18)).final
    assert float((drawn.mean(0) - center).abs().max()) < 0.25
    assert float(drawn.std(0).mean()) == pytest.approx(0.3, abs=0.15)


def test_dpo_moves_toward_winners_and_ppo_climbs():
    data = torch.randn(600, 10, generator=seeded(19))
    base = NB.first_lessons(data, 0)
    order = data[:, 0].argsort()
    pairs = order[300:], order[:300]
    after = NB.train_dpo(base, data, pairs, 20.0, 1)
    before, now = (NB.draw(one, 300, seeded(20)).final[:, 0].mean() for one in (base, after))
    assert float(now - before) > 0.3

    def score(captions, controls, seed):
        return controls[:, 1], {"reward": controls[:, 1].mean().item()}

    climbed, log = NB.train_ppo(base, ["x"], score, False, 2)
    lead = NB.draw(climbed, 300, seeded(21)).final[:, 1].mean()
    lead = lead - NB.draw(base, 300, seeded(21)).final[:, 1].mean()
    assert float(lead) > 0.3 and len(log["reward"]) == 12
    _, fooled = NB.train_ppo(base, ["x"], score, True, 2)
    assert fooled["reward"][-3:].mean() < log["reward"][-3:].mean()


def test_first_ratio_is_one():
    painter = NB.new_painter(3)
    path = NB.draw(painter, 7, seeded(22))
    noisy = NB.scene_of.__globals__["NOISY"]
    new, _ = samplers.replay(NB.guess_of(painter), path, noisy, together=True, reduction="sum")
    torch.testing.assert_close(new, path.log_probs[:-1], rtol=1e-5, atol=1e-4)
