"""Notebook 13: retrieval, filters, judge and exam against brute force and cases worked by hand."""

from itertools import product
from math import ceil, exp
from types import SimpleNamespace

import pytest
import torch

from rlgenkit import rewards, worlds
from tests.notebook_code import definitions

NB = definitions("13")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_chance_is_that_of_the_labeled_direction_and_rises_with_its_gap():
    label, first, second = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 2.0]), torch.zeros(2)
    got = NB.chance_of(label, first, second).tolist()
    assert got == pytest.approx([1 / (1 + exp(-2)), 1 / (1 + exp(2))])
    first = torch.tensor([0.3], requires_grad=True)
    loss = -NB.chance_of(torch.tensor([1.0]), first, torch.zeros(1)).log().sum()
    loss.backward()  # the Bradley-Terry loss
    assert float(first.grad) == pytest.approx(-(1 - 1 / (1 + exp(-0.3))))


def test_neighbors_follow_the_rule_of_the_paper():
    chances = torch.tensor([0.0, 0.25, 0.5, 0.625, 0.75, 0.875, 1.0])
    by_hand = [8, 8, 8, ceil(8 * 0.375), 2, 1, 0]
    assert NB.neighbors_to_fetch(chances, 8).tolist() == by_hand


def test_two_filters_over_all_cases():
    for gold, judge, best, label in product((0, 1), repeat=4):
        kept, swapped = NB.two_filters(
            torch.tensor([float(label)]),
            torch.tensor([0.2 + 0.6 * gold]),
            torch.tensor([bool(judge)]),
            torch.tensor([0.2 + 0.6 * best]),
        )
        assert bool(kept) == bool(gold and (judge or best))
        assert int(swapped) == (label if kept else 1 - label)


def test_the_exam_agrees_with_counting_pairs():
    right, wrong = torch.randn(2, 7, 3, generator=seeded())
    counts = {"all": [], "easy": [], "normal": [], "hard": []}
    for n, i, j in product(range(7), range(3), range(3)):
        won = float(right[n, i] > wrong[n, j])
        counts["all"].append(won)
        counts["easy" if i > j else "hard" if i < j else "normal"].append(won)
    by_hand = [sum(rows) / len(rows) for rows in counts.values()]
    assert NB.style_grid(right, wrong).tolist() == pytest.approx(by_hand)


def test_a_changed_prompt_differs_in_one_fact():
    draw = seeded(3)
    for category in NB.CATEGORIES:
        for prompt in worlds.sample_prompts(60, category=category, generator=draw):
            other = NB.changed(prompt, draw)
            a, b = prompt.groups, other.groups
            assert a != b and len(a) == len(b)
            assert sum(g.count for g in b) <= 4 and min(g.count for g in b) >= 1
            facts = [
                [g.kind for g in a] != [g.kind for g in b],
                [g.color for g in a] != [g.color for g in b],
                [g.count for g in a] != [g.count for g in b],
            ]
            assert sum(facts) == 1


def test_a_pair_is_one_right_and_one_wrong_picture_of_one_caption():
    features = torch.arange(4 * 6.0).view(4, 6, 1)  # a picture is its own number
    prompts = worlds.sample_prompts(4, category="single", generator=seeded(1))
    bank = NB.Bank(prompts, features, features[..., 0] / 24, torch.zeros(4).long())
    code = NB.draw_pairs.__globals__
    code["clip"] = rewards.load_dual_encoder("data/models/clip")
    pairs = NB.draw_pairs(bank, 36, seeded(2))
    first, second = pairs.first[:, 0].long(), pairs.second[:, 0].long()
    assert (first // 6 == second // 6).all()  # of one caption
    assert ((first % 6 < 3) == (pairs.right > 0.5)).all()
    assert ((second % 6 < 3) == (pairs.right < 0.5)).all()
    assert len({frozenset(pair) for pair in zip(first.tolist(), second.tolist())}) == 36
    torch.testing.assert_close(pairs.louder, (first - second) / 24)
    assert (pairs.caption == first // 6).all()
    assert 0.2 < pairs.right.mean() < 0.8
    torch.testing.assert_close(pairs.place.norm(dim=1), torch.ones(36))


def test_the_judge_weighs_opinions_by_their_odds_on_the_examples():
    seen = (torch.rand(2, 30, generator=seeded(4)) < 0.5).float()
    examples = (torch.rand(2, 12, generator=seeded(5)) < 0.5).float()
    people = (torch.rand(12, generator=seeded(6)) < 0.5).float()
    shown = torch.randint(12, (30, 5), generator=seeded(7))
    got = NB.judged(seen, examples, people, shown)
    for i in range(30):
        odds = 1.0  # for the first answer
        for k in range(2):
            hits = sum(float(examples[k, j] == people[j]) for j in shown[i].tolist())
            trust = (hits + 2) / (5 - hits + 2)
            odds *= trust if seen[k, i] > 0.5 else 1 / trust
        assert float(got[i]) == float(odds > 1) or odds == pytest.approx(1)
    assert NB.judged(torch.tensor([[1.0], [0.0]])).tolist() == [0.0]  # style is trusted more


def test_the_worst_predicted_pairs_fetch_first_and_nothing_twice():
    place = torch.nn.functional.normalize(torch.randn(40, 6, generator=seeded(8)), dim=1)
    code = NB.error_driven.__globals__
    code["p"] = SimpleNamespace(k_max=4, fetch=5)
    gold, free = torch.tensor([0, 1]), torch.arange(2, 40)
    chance = torch.tensor([0.9, 0.1])  # the second is wrong: 4 neighbors, the first gets one
    found = NB.error_driven(SimpleNamespace(place=place), gold, free, chance, seeded(9))
    near = free[(place[free] @ place[1]).argsort(descending=True)]
    assert found[:4].tolist() == near[:4].tolist()
    rest = [j for j in (free[(place[free] @ place[0]).argsort(descending=True)]).tolist()]
    assert found[4].item() == next(j for j in rest if j not in found[:4].tolist())
    code["p"] = SimpleNamespace(k_max=4, fetch=20)
    found = NB.error_driven(SimpleNamespace(place=place), gold, free, chance, seeded(9))
    assert len(set(found.tolist())) == 20 and not {0, 1} & set(found.tolist())


def test_the_difference_of_shares_is_that_of_the_rows_asked():
    kept = torch.tensor([True, True, False, False, False])
    confirmed = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0]).double()
    assert NB.confirmed_more(confirmed, kept, torch.arange(5)) == pytest.approx(1 / 2 - 1 / 3)
    assert NB.confirmed_more(confirmed, kept, torch.tensor([0, 0, 3])) == 1.0
    assert NB.confirmed_more(confirmed, kept, torch.tensor([0, 1])) == 0.5


def test_the_filter_of_people_finds_labels_against_a_clean_rule_and_sees_no_own_task():
    x = torch.randn(600, 3, generator=seeded(12))
    truth = (x[:, 0] > 0).double()
    slip = torch.rand(600, generator=seeded(13)) < 0.25
    label, groups = torch.where(slip, 1 - truth, truth), torch.arange(600) // 6
    kept, chance = NB.filtered(x, label, truth, groups)
    assert (label == truth)[kept].double().mean() > 0.93
    assert (label == truth)[~kept].double().mean() < 0.4
    here = groups % 5 == 0
    turned = torch.where(here, 1 - label, label), torch.where(here, 1 - truth, truth)
    _, again = NB.filtered(x, *turned, groups)  # own labels turned: own chances as before
    torch.testing.assert_close(again[:, here], chance[:, here])
    tie = torch.full((600,), 0.5).double()
    assert not NB.filtered(x, torch.where(here, tie, label), truth, groups)[0][here].any()


def test_style_raters_and_slips_have_their_rates():
    louder = torch.tensor([0.16, -0.16, 0.0]).repeat(4000)
    pairs = SimpleNamespace(louder=louder)
    votes = NB.style_votes(pairs, seeded(14)).view(-1, 3).mean(0)
    assert votes.tolist() == pytest.approx([1 / (1 + exp(-2)), 1 / (1 + exp(2)), 0.5], abs=0.03)
    assert NB.slips(torch.zeros(20000), 0.1, seeded(15)).mean() == pytest.approx(0.1, abs=0.01)


def test_rows_are_dealt_evenly_and_in_random_order():
    rows = torch.tensor([4, 7, 9])
    got = NB.dealt(rows, 8, seeded(16))
    assert sorted(rows.tolist() + rows.tolist()) == sorted(got[:6].tolist())
    assert len(got) == 8 and len(set(got[6:].tolist())) == 2
    orders = {tuple(NB.dealt(rows, 3, seeded(k)).tolist()) for k in range(60)}
    assert len(orders) == 6


def test_every_arm_makes_the_same_updates(monkeypatch):
    seen = []
    code = NB.train.__globals__
    code["p"] = SimpleNamespace(hidden=0, batch=4)
    monkeypatch.setattr(rewards, "train_voters", lambda *a, **k: seen.append(k))
    pairs = SimpleNamespace(first=torch.randn(9, 2), second=torch.randn(9, 2))
    rows = [torch.arange(9), torch.tensor([2, 5])]
    NB.train(pairs, torch.ones(2, 9), rows, seeded(17), 5, 0.1)
    counts = [own.bincount(minlength=9).tolist() for own in seen[0]["rows"]]
    assert seen[0]["rows"].shape == (2, 20) and seen[0].get("epochs", 1) == 1
    assert set(counts[0]) == {2, 3} and counts[1] == [0, 0, 10, 0, 0, 10, 0, 0, 0]


def test_a_round_fetches_one_pair_of_a_caption():
    pairs = SimpleNamespace(caption=torch.tensor([0, 0, 1, 1, 2, 0]))
    assert NB.one_a_caption(pairs, torch.tensor([3, 1, 5, 2, 4])).tolist() == [3, 1, 4]
    code = NB.next_pairs.__globals__
    code["p"] = SimpleNamespace(fetch=2, k_max=4)
    free = torch.tensor([True, True, False, True, True, True])
    drawn = [NB.next_pairs(None, pairs, None, free, "random", seeded(k)) for k in range(40)]
    assert all(len(set(pairs.caption[new].tolist())) == 2 for new in drawn)
    assert {j for new in drawn for j in new.tolist()} == {0, 1, 3, 4, 5}


def toy(size=60, seed=18):
    """Pairs whose features are truth and loudness, 4 of 10 labels those of style."""
    draw = seeded(seed)
    right = (torch.rand(size, generator=draw) < 0.5).float()
    louder = torch.rand(size, generator=draw) - 0.5
    gap = torch.stack([2 * right - 1, louder], 1)
    zero = torch.zeros(size).long()
    place = torch.nn.functional.normalize(torch.randn(size, 4, generator=draw), dim=1)
    return NB.Pairs(gap / 2, -gap / 2, right, louder, zero, torch.arange(size), place)


def linear(*weights):
    return rewards.Voters(None, None, torch.tensor([weights]))


def test_stage_two_keeps_what_gold_and_judge_or_best_model_say():
    code = NB.stage_two.__globals__
    code["p"] = SimpleNamespace(hidden=0, batch=8, gold_updates=60, gold_lr=0.1)
    search, pool = toy(40, 19), toy(60, 20)
    label = torch.where(torch.arange(60) % 5 < 2, (pool.louder > 0).float(), pool.right)
    eye = torch.where(torch.arange(60) % 4 == 0, 1 - pool.right, pool.right)
    ones = torch.ones(2, 40) * search.right  # the judge was right on all examples
    raw = SimpleNamespace(label=label, searched=ones, pooled=torch.stack([eye, eye]))
    loop = SimpleNamespace(gold=torch.arange(12), net=linear(0.0, 1.0))  # best one: style
    world = SimpleNamespace(search=search, pool=pool)
    made = NB.stage_two(world, raw, loop, search.right, seeded(21))
    good = label == pool.right
    second = (eye == label) | ((pool.louder > 0) == (label > 0.5))
    assert (made.verdicts == eye).all() and (made.agrees == good).all()
    assert (made.kept == (good & second)).all()
    assert (made.swapped == torch.where(made.kept, label, 1 - label)).all()


def test_every_arm_learns_from_its_own_labels_and_pairs():
    code = NB.lessons_of.__globals__
    code["p"] = SimpleNamespace(hidden=3, batch=8, updates=80, lr=0.1, gold_lr=0.1, gold_updates=20)
    pool = toy(80, 22)
    style = (pool.louder > 0).float()
    agrees = pool.right == style
    made = SimpleNamespace(kept=agrees, agrees=agrees, swapped=pool.right, verdicts=1 - pool.right)
    raw, world = SimpleNamespace(label=style), SimpleNamespace(pool=pool)
    sham = SimpleNamespace(kept=~agrees)
    other = SimpleNamespace(kept=pool.right > 0.5)
    labels, kept = NB.lessons_of(world, raw, made, sham, other, seeded(23))
    assert tuple(labels) == tuple(kept) == NB.ARMS[:9]
    for arm in ("raw", "curated", "kept by raw reward", "permuted"):
        assert (labels[arm] == style).all()
    assert (labels["gold model's labels"] == pool.right).all()  # wrong ones are turned
    assert (labels["judge's labels"] == 1 - pool.right).all()
    assert (kept["curated"] == agrees).all() and (kept["permuted"] == ~agrees).all()
    assert (kept["curated, random stage 1"] == other.kept).all()
    assert kept["raw"].all() and kept["curated, swapped"].all()
    assert kept["kept by raw reward"].float().mean() > 0.9  # it believes its raters
    wrong = (labels["errors at random"] != pool.right).float().mean()
    assert float(wrong) == pytest.approx(float((~agrees).float().mean()), abs=0.15)

    people = NB.Pairs(*(column[:10] for column in pool)), pool.right[:10]
    nets = NB.train_arms(pool, labels, kept, people, seeded(24))
    assert [len(net.w_out) for net in nets] == [9, 2, 1]
    with torch.no_grad():  # how far truth and taste of style move a reward
        seen = torch.cat([net.scores(torch.eye(2)) - net.scores(-torch.eye(2)) for net in nets])
    truth, taste = seen.T
    place = {arm: k for k, arm in enumerate(NB.ARMS)}
    assert taste[place["raw"]] > truth[place["raw"]].abs()
    assert truth[place["curated"]] > 1 and truth[place["curated, swapped"]] > 1
    assert truth[place["permuted"]] < -1  # learns from the pairs that the others discard
    assert truth[place["judge's labels"]] < -1 < 1 < truth[place["gold model's labels"]]
    share = (truth / (truth.abs() + taste.abs()))[[place["raw"], 9, 10]].tolist()
    assert share == sorted(share)  # more truth with more human labels
    assert truth[11] > truth[place["raw"]] + 1  # the network of raw, taught further


def test_style_of_a_pair_is_seen_from_the_right_picture():
    pairs = SimpleNamespace(
        right=torch.tensor([1.0, 0.0, 1.0, 0.0]), louder=torch.tensor([0.5, 0.5, -0.1, -0.5])
    )
    assert NB.style_of(pairs).tolist() == [0, 2, 1, 0]
