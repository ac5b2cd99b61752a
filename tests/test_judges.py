"""The parser of judges' answers: what is read, what is dropped, and that nothing gets a default."""

import pytest
import torch

from rlgenkit.rewards import (
    Checklist,
    Choice,
    Scale,
    checklist_scores,
    choice_indices,
    mean_scores,
    pairwise_scores,
    parse_judgment,
    scalar_scores,
)

SCORE = Scale(1, 5)
VERDICT = Choice(("Correct", "Wrong"))
BETTER = Choice(("first", "second", "tie"), "better")
ITEMS = Checklist(("colors match", "count is right"))


@pytest.mark.parametrize(
    "text, value",
    [
        ("score: 4", 4),
        ("Well drawn.\nScore: 3.5.", 3.5),
        ("SCORE = 1, because", 1),
        ("score: 4 ... so, score: 4.0", 4),
        ("score:5\n", 5),
    ],
)
def test_numbers_are_read(text, value):
    assert parse_judgment(text, SCORE).value == value


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "no number"),
        ("I would say four", "no number"),
        ("4", "no number"),
        ("score: four", "no number"),
        ("score: 4/5", "no number"),
        ("score: nan", "no number"),
        ("score: 6", "outside"),
        ("score: 0", "outside"),
        ("score: -3", "outside"),
        ("score: 2 but then score: 4", "several"),
        ("score: 3 or score: maybe", "no number"),
        ("underscore: 3", "no number"),
        ("score: 4-5", "no number"),
        ("score:", "no number"),
        ("score: 1e1", "no number"),
    ],
)
def test_what_is_no_single_number_in_range_is_dropped(text, why):
    reading = parse_judgment(text, SCORE)
    assert reading.value is None and why in reading.why


@pytest.mark.parametrize(
    "text, value",
    [
        ("verdict: Correct", 0),
        ("Verdict: wrong.", 1),
        ("verdict: wrong ... verdict: WRONG", 1),
        ("verdict: correct and verdict: wrong", None),
        ("correct", None),
        ("verdict: correctness", None),
        ("verdict: neither", None),
        ("", None),
        ("verdict: wrong, verdict: ?", None),
    ],
)
def test_choices_need_one_clear_label(text, value):
    assert parse_judgment(text, VERDICT).value == value


def test_longer_labels_win_where_one_begins_like_another():
    form = Choice(("right", "right but short", "wrong"))
    assert parse_judgment("verdict: right but short", form).value == 1
    assert parse_judgment("verdict: right, but", form).value == 0


@pytest.mark.parametrize(
    "text, value",
    [
        ("colors match: yes\ncount is right: no", (True, False)),
        ("Count is right: YES. Colors match: yes.", (True, True)),
        ("colors match: yes", None),
        ("colors match: yes, count is right: maybe", None),
        ("colors match: yes, colors match: no, count is right: yes", None),
        ("colors match: nothing, count is right: yes", None),
    ],
)
def test_checklists_need_every_item(text, value):
    assert parse_judgment(text, ITEMS).value == value


def test_every_score_of_an_unreadable_answer_is_invalid():
    junk = ["", "???", "score: 9", "better: neither", "verdict: Correct verdict: Wrong"]
    for scores in (
        scalar_scores(junk, SCORE),
        mean_scores([junk, junk], SCORE),
        checklist_scores(junk, ITEMS),
        pairwise_scores(junk, junk, BETTER)[0],
    ):
        assert not scores.valid.any() and (scores.values == 0).all()
    assert not choice_indices(junk[:2], VERDICT)[1].any()


def test_scalar_scores_are_mapped_to_the_unit_interval():
    found = scalar_scores(["score: 1", "score: 2", "bad", "score: 5"], SCORE)
    assert found.values.tolist() == [0, 0.25, 0, 1] and found.valid.tolist() == [
        True,
        True,
        False,
        True,
    ]


def test_mean_of_samples_leaves_unreadable_ones_out():
    answers = [
        ["score: 1", "score: 5"],
        ["score: 5", "junk", "score: 4"],
        ["junk", "score: 3"],
        ["junk"],
        [],
    ]
    one, two = mean_scores(answers, SCORE), mean_scores(answers, SCORE, at_least=2)
    assert one.valid.tolist() == [True, True, True, False, False]
    assert two.valid.tolist() == [True, True, False, False, False]
    assert one.values.tolist() == [0.5, 0.875, 0.5, 0, 0]  # not (1 + 0 + 0.75) / 3
    with pytest.raises(ValueError, match="at_least"):
        mean_scores(answers, SCORE, 0)


def test_checklist_scores_are_weighted_shares():
    texts = [
        "colors match: yes, count is right: no",
        "colors match: yes",
        "colors match: no, count is right: no",
    ]
    found = checklist_scores(texts, ITEMS, (3, 1))
    assert found.values.tolist() == [0.75, 0, 0] and found.valid.tolist() == [True, False, True]
    assert checklist_scores(texts, ITEMS).values[0] == 0.5
    for weights in ((1,), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="weights"):
            checklist_scores(texts, ITEMS, weights)


def test_both_orders_cancel_a_love_of_places():
    says = {k: f"better: {k}" for k in ("first", "second", "tie")}
    cases = [
        ("first", "second", 1.0, True),
        ("second", "first", 0.0, True),
        ("first", "first", 0.5, False),
        ("second", "second", 0.5, False),
        ("tie", "tie", 0.5, True),
        ("tie", "second", 0.75, False),
    ]
    scores, same = pairwise_scores(
        [says[a] for a, *_ in cases], [says[b] for _, b, *_ in cases], BETTER
    )
    assert scores.values.tolist() == [c[2] for c in cases] and same.tolist() == [
        c[3] for c in cases
    ]
    dropped, agree = pairwise_scores(["better: first", "?"], ["?", "better: second"], BETTER)
    assert not dropped.valid.any() and not agree.any()


def test_a_biased_judge_is_unbiased_over_both_orders():
    g = torch.Generator().manual_seed(0)
    quality = torch.rand(400, generator=g) < 0.5  # A is better
    blind = torch.rand(2, 400, generator=g) < 0.7  # answers "first" whatever is shown
    first = ["better: first" if b or q else "better: second" for b, q in zip(blind[0], quality)]
    second = [
        "better: first" if b or not q else "better: second" for b, q in zip(blind[1], quality)
    ]
    scores, _ = pairwise_scores(first, second, BETTER)
    one_order = torch.tensor([t == "better: first" for t in first]).float()
    assert one_order.mean() > 0.8 and abs(scores.values.mean() - quality.float().mean()) < 0.05
    assert (scores.values[quality] >= 0.5).all() and (scores.values[~quality] <= 0.5).all()


def test_forms_that_make_no_sense_are_refused():
    for make in (
        lambda: Scale(3, 3),
        lambda: Scale(1, 2, " "),
        lambda: Choice(("a",)),
        lambda: Choice(("a", "A")),
        lambda: Checklist(()),
        lambda: Checklist(("a", " ")),
    ):
        with pytest.raises(ValueError):
            make()
    with pytest.raises(ValueError, match="order"):
        pairwise_scores(["better: first"], [], BETTER)
