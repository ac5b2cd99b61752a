"""The world of facts, against answers judged by hand."""

import math

import torch

from tests.notebook_code import definitions

world = definitions("19")


def ids(text, width=12):
    row = [world.NAMES.index(word) for word in text.split()] + [world.END]
    return row + [world.PAD] * (width - len(row))


def test_answers_judged_by_hand():
    thing = torch.zeros(7, 6, dtype=torch.long)  # red, round, tiny, kitchen, calm, free
    answers = torch.tensor(
        [
            ids("color red shape round"),
            ids("color red color red"),  # counts once
            ids("color blue shape round"),  # one wrong
            ids("color round so well"),  # a value of another label states nothing
            ids("red round"),  # no label
            ids("price cheap color blue"),  # never below 0
            ids("mood calm so place kitchen color red"),
        ]
    )
    wanted = [[65, 4], [40, 4], [5, 4], [0, 4], [0, 2], [0, 4], [56, 7]]
    wanted = torch.tensor([[h, 100 * n / world.LONGEST] for h, n in wanted])
    torch.testing.assert_close(world.attributes(answers, thing), wanted)
    assert sum(world.WORTH) == 100


def test_statements_against_a_loop():
    gen = torch.Generator().manual_seed(0)
    facts = world.sample_things(50, gen)
    answers = torch.randint(world.LABEL, len(world.NAMES), (50, 20), generator=gen)
    answers[:, ::2] = world.LABEL + torch.randint(6, (50, 10), generator=gen)
    right, wrong = world.statements(answers, facts)
    for b in range(50):
        seen = {(i, ok): 0 for i in range(6) for ok in (True, False)}
        words = [world.NAMES[i] for i in answers[b].tolist()]
        for first, second in zip(words, words[1:]):
            if first in world.LABELS and second in world.VALUES[world.LABELS.index(first)]:
                i = world.LABELS.index(first)
                seen[i, world.VALUES[i][facts[b, i]] == second] += 1
        assert right[b].tolist() == [seen[i, True] for i in range(6)]
        assert wrong[b].tolist() == [seen[i, False] for i in range(6)]
    assert wrong.sum() > right.sum() > 0


def test_sloppy_answers_are_readable_and_sloppy():
    gen = torch.Generator().manual_seed(1)
    facts = world.sample_things(4000, gen)
    answers = world.sloppy_answers(facts, gen)
    assert answers.shape == (4000, world.LONGEST + 1)
    length = (answers > world.END).sum(1)
    assert (answers.gather(1, length[:, None]) == world.END).all()
    assert ((answers == world.PAD).sum(1) == world.LONGEST - length).all()
    right, wrong = world.statements(answers, facts)
    share = wrong.sum() / (right + wrong).sum()
    assert abs(share - 0.15) < 0.02
    truth = world.attributes(answers, facts)
    assert 35 < truth[:, 0].mean() < 60 and truth.std(0).min() > 10
    assert torch.corrcoef(truth.T)[0, 1] > 0.3  # longer answers are more helpful


def test_prompts_hold_the_direction_and_the_facts():
    weights = world.direction_weights(torch.tensor([0.0, math.pi / 4, -math.pi / 4]))
    assert weights.tolist() == [[100, 0], [71, 71], [71, -71]]
    rows = world.prompt_rows(weights, torch.tensor([[0] * 6, [5] * 6, [1, 2, 3, 4, 5, 0]]))
    words = [" ".join(world.NAMES[i] for i in row) for row in rows]
    assert words == [
        "100 0 red round tiny kitchen calm free",
        "71 71 black thick giant forest shy priceless",
        "71 -71 blue long large beach shy free",
    ]


def test_ratings_are_noisy_and_stay_on_the_scale():
    truth = torch.full((5000, 2), 50.0)
    rating = world.rate_once(truth, torch.Generator().manual_seed(0))
    assert abs(rating.mean() - 50) < 0.4 and abs(rating.std() - 8) < 0.3
    assert world.rate_once(truth * 2, torch.Generator().manual_seed(0)).max() == 100
