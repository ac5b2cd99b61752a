"""The rubric schema: what is read, what decides, and that nothing unreadable counts."""

import itertools
import math

import pytest
import torch

from rlgenkit.rewards import (
    Criterion,
    parse_rubric,
    rubric_preferences,
    rubric_scores,
    voted,
)

NAN = math.nan
RUBRIC = (
    Criterion("two cats", "rule"),
    Criterion("calm", weight=1.0),
    Criterion("sharp", weight=3.0),
)


def test_a_list_is_read_in_its_order():
    text = """Here is the rubric:
    1. The response names a city. [Hard Rule]
    2) [Principle] The response  is brief.
    - The response is kind. [principle]
    """
    assert parse_rubric(text).value == (
        Criterion("The response names a city.", "rule"),
        Criterion("The response is brief."),
        Criterion("The response is kind."),
    )


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "no list"),
        ("The response names a city. [Hard Rule]", "no list"),
        ("1. The response names a city.", "no single"),
        ("1. A [Hard Rule] [Principle]", "no single"),
        ("1. A [Soft Rule]", "no single"),
        ("1. [Principle]", "no single"),
        ("1. A [Principle]\n2. a [Hard Rule]", "twice"),
        ("1. A [Principle]\n2. B", "no single"),
    ],
)
def test_half_a_rubric_is_none(text, why):
    reading = parse_rubric(text)
    assert reading.value is None and why in reading.why


def test_scores_are_the_weighted_share_of_what_applies():
    met = torch.tensor([[1, 0, 0.5], [1, 1, 1], [0, 0, 1], [1, 0, NAN]])
    scores = rubric_scores(met, RUBRIC)
    assert scores.values.tolist() == pytest.approx([2.5 / 5, 1, 3 / 5, 0])
    assert scores.valid.tolist() == [True, True, True, False]
    applies = torch.tensor([[True, True, False]] * 3 + [[True, False, False]])
    scores = rubric_scores(met, RUBRIC, applies)  # what does not apply may be unreadable
    assert scores.values.tolist() == pytest.approx([1 / 2, 1, 0, 1]) and scores.valid.all()
    assert not rubric_scores(met, RUBRIC, torch.zeros_like(applies)).valid.any()


def test_rules_decide_before_principles_by_brute_force():
    levels = list(itertools.product([0.0, 0.5, 1.0], repeat=3))
    pairs = list(itertools.product(levels, levels))
    first, second = (torch.tensor([pair[k] for pair in pairs]) for k in (0, 1))
    expected = []
    for a, b in pairs:
        one, other = ((x[0], x[1] + 3 * x[2]) for x in (a, b))
        expected.append(0.5 if one == other else float(one > other))
    found = rubric_preferences(first, second, RUBRIC)
    assert found.values.tolist() == expected and found.valid.all()
    swapped = rubric_preferences(second, first, RUBRIC)
    assert torch.equal(found.values + swapped.values, torch.ones(len(pairs)))


def test_an_unreadable_criterion_drops_the_pair_where_it_applies():
    first, second = torch.tensor([[1, 0, NAN]] * 2), torch.tensor([[0, 1.0, 1.0]] * 2)
    applies = torch.tensor([[True, True, True], [True, True, False]])
    found = rubric_preferences(first, second, RUBRIC, applies)
    assert found.valid.tolist() == [False, True] and found.values[1] == 1


def test_close_shares_are_a_tie_within_the_tolerance():
    first, second = torch.tensor([[1, 0.50, 0.5]]), torch.tensor([[1, 0.58, 0.5]])
    for tolerance, expected in ((0.0, 0.0), (0.015, 0.0), (0.025, 0.5)):  # shares differ by 0.02
        found = rubric_preferences(first, second, RUBRIC, tolerance=tolerance)
        assert float(found.values) == expected


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Criterion(" "), "needs words"),
        (lambda: Criterion("a", "hard"), "the kind"),
        (lambda: Criterion("a", weight=0), "weight"),
        (lambda: rubric_scores(torch.ones(2, 2), RUBRIC), "met"),
        (lambda: rubric_scores(torch.ones(2, 3) * 4, RUBRIC), "0..1"),
        (lambda: rubric_scores(torch.ones(2, 3), RUBRIC, torch.ones(2, 3)), "Bool"),
        (lambda: rubric_scores(torch.ones(2, 0), ()), "criteria"),
        (lambda: rubric_preferences(torch.ones(2, 3), torch.ones(1, 3), RUBRIC), "one shape"),
        (lambda: voted(torch.ones(3), torch.ones(3, dtype=torch.bool)), "one shape"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_votes_by_brute_force():
    kinds = [0.0, 0.25, 0.5, 1.0, None]  # None could not be read
    ballots = list(itertools.product(kinds, repeat=3))
    values = torch.tensor([[NAN if v is None else v for v in b] for b in ballots]).T
    found = voted(values, ~values.isnan())
    for ballot, value, valid in zip(ballots, found.values.tolist(), found.valid.tolist()):
        balance = sum((v > 0.5) - (v < 0.5) for v in ballot if v is not None)
        assert valid == any(v is not None for v in ballot)
        assert value == ((balance > 0) + 0.5 * (balance == 0) if valid else 0)


def test_an_unreadable_vote_abstains_whatever_it_holds():
    votes = torch.tensor([[1.0], [0.0], [0.0]])
    valid = torch.tensor([[True], [False], [False]])
    assert voted(votes, valid).values.tolist() == [1.0]
