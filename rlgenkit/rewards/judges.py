"""Judges that answer in words: one typed parser, and scores from its readings.

A failed parse means "drop the sample": the score becomes invalid and never takes a default value.
A judge that crashes on bad samples must not thereby reward or punish them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .batch import Scores, scored

NUMBER = r"[-+]?\d+(?:\.\d+)?"


@dataclass(frozen=True)
class Scale:
    """A judge that answers "key: number" with a number in low..high."""

    low: float
    high: float
    key: str = "score"

    def __post_init__(self) -> None:
        if not self.low < self.high or not self.key.strip():
            raise ValueError(f"a scale needs low < high and a key, got {self}")


@dataclass(frozen=True)
class Choice:
    """A judge that answers "key: label" with one of the labels; their case does not matter."""

    labels: tuple[str, ...]
    key: str = "verdict"

    def __post_init__(self) -> None:
        _check_names(self.labels, "label")
        if len(self.labels) < 2 or not self.key.strip():
            raise ValueError(f"a choice needs at least two labels and a key, got {self}")


@dataclass(frozen=True)
class Checklist:
    """A judge that answers "item: yes" or "item: no" for every item."""

    items: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_names(self.items, "item")
        if not self.items:
            raise ValueError("a checklist needs at least one item")


Form = Scale | Choice | Checklist


@dataclass(frozen=True)
class Reading:
    """What a judge said: a number, an index into the labels, or one answer for every item.

    value is None if the text could not be read; `why` then says so in a few words.
    """

    value: float | int | tuple[bool, ...] | None
    why: str = ""


def _check_names(names: tuple[str, ...], what: str) -> None:
    folded = [name.strip().lower() for name in names]
    if not all(folded) or len(set(folded)) < len(folded):
        raise ValueError(f"{what}s must be words that differ, got {names}")


def parse_judgment(text: str, form: Form) -> Reading:
    """Read one answer of a judge. Text around the "key: value" parts is ignored.

    A key may be stated more than once only with the same value: who says both "Correct" and "Wrong"
    has said nothing. A number outside its scale or an unknown label fails, too.
    """
    if isinstance(form, Checklist):
        answers = [_stated(text, item, ("no", "yes")) for item in form.items]
        missing = [item for item, answer in zip(form.items, answers) if answer is None]
        if missing:
            return Reading(None, f"no single yes or no for {missing[0]!r}")
        return Reading(tuple(answer == 1 for answer in answers))
    if isinstance(form, Choice):
        answer = _stated(text, form.key, form.labels)
        return Reading(answer, "" if answer is not None else f"no single {form.key!r}")
    found = [word.rstrip(".,;") for word in _after(text, form.key, r"(\S*)")]
    if not found or not all(re.fullmatch(NUMBER, word) for word in found):
        return Reading(None, f"no number after {form.key!r}")
    numbers = {float(word) for word in found}
    if len(numbers) > 1:
        return Reading(None, f"several values of {form.key!r}")
    value = numbers.pop()
    if not form.low <= value <= form.high:
        return Reading(None, f"{value:g} is outside {form.low:g} to {form.high:g}")
    return Reading(value)


def _after(text: str, key: str, what: str) -> list[str]:
    """What the group in the pattern `what` matches behind each "key:" in the text."""
    spot = rf"(?<!\w){re.escape(key.strip())}\s*[:=][ \t]*{what}"
    return re.findall(spot, text, flags=re.IGNORECASE)


def _stated(text: str, key: str, labels: Sequence[str]) -> int | None:
    """Index of the one label that stands behind every "key:", else None. Longer labels win where
    one begins like another; a label must end where a word ends."""
    names = [label.strip().lower() for label in labels]
    either = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    found = {word.lower() for word in _after(text, key, rf"(?:({either})(?!\w))?")}
    return names.index(found.pop()) if len(found) == 1 and "" not in found else None


def scalar_scores(texts: Sequence[str], form: Scale) -> Scores:
    """Scores [B] of one answer a sample, mapped from the scale to 0..1."""
    readings = [parse_judgment(text, form).value for text in texts]
    span = form.high - form.low
    return _scores([None if v is None else (v - form.low) / span for v in readings])


def mean_scores(answers: Sequence[Sequence[str]], form: Scale, at_least: int = 1) -> Scores:
    """Scores [B] in 0..1: the mean over the readable ones of a sample's K answers (K may differ).

    A sample with fewer than `at_least` readable answers is dropped.
    """
    if at_least < 1:
        raise ValueError(f"at_least must be 1 or more, got {at_least}")
    means = []
    for texts in answers:
        part = scalar_scores(texts, form)
        count = int(part.valid.sum())
        means.append(float(part.values.sum()) / count if count >= at_least else None)
    return _scores(means)


def checklist_scores(
    texts: Sequence[str], form: Checklist, weights: Sequence[float] | None = None
) -> Scores:
    """Scores [B] in 0..1: weighted share of the items answered with yes (equal weights if None).

    One unreadable item drops the sample; counting it as "no" would be a default score.
    """
    weights = [1.0] * len(form.items) if weights is None else list(weights)
    if len(weights) != len(form.items) or min(weights) < 0 or not sum(weights) > 0:
        raise ValueError(f"{len(form.items)} items need as many weights >= 0, not all 0")
    readings = [parse_judgment(text, form).value for text in texts]
    return _scores(
        [
            None
            if v is None
            else math.fsum(w for w, yes in zip(weights, v) if yes) / math.fsum(weights)
            for v in readings
        ]
    )


def choice_indices(texts: Sequence[str], form: Choice) -> tuple[Tensor, Tensor]:
    """(label index Long[B], 0 where unreadable; readable Bool[B])."""
    readings = [parse_judgment(text, form).value for text in texts]
    readable = torch.tensor([v is not None for v in readings], dtype=torch.bool)
    return torch.tensor([v or 0 for v in readings], dtype=torch.long), readable


def pairwise_scores(
    shown_first: Sequence[str], shown_second: Sequence[str], form: Choice
) -> tuple[Scores, Tensor]:
    """(preference for A [B] in {0, 1/2, 1}; same Bool[B]) from a judge asked in both orders.

    shown_first: its answers when A stood first, shown_second: when A stood second. labels[0] names
    the first place, labels[1] the second, a third label a tie. A judge who prefers a place and not
    a sample ends at 1/2, with `same` False. One unreadable answer drops the pair.
    """
    if len(shown_first) != len(shown_second):
        raise ValueError(
            f"{len(shown_first)} answers in one order, {len(shown_second)} in the other"
        )
    if len(form.labels) > 3:
        raise ValueError("a pairwise judge has two labels, or three with a tie")
    share = torch.tensor([1.0, 0.0, 0.5])
    (one, fine), (two, good) = (choice_indices(t, form) for t in (shown_first, shown_second))
    first, second, valid = share[one], 1 - share[two], fine & good
    return scored((first + second) / 2, valid), valid & (first == second)


def voted(preferences: Tensor, valid: Tensor) -> Scores:
    """Preference [B] in {0, 1/2, 1} by majority of K readings of the same pairs.

    preferences [K, B] in 0..1, valid Bool[K, B]; above 1/2 is a vote for the first sample, below a
    vote for the second, 1/2 no vote. Unreadable answers abstain; a pair that no answer could be
    read for is invalid, equal votes are a tie.
    """
    if preferences.ndim != 2 or preferences.shape != valid.shape or valid.dtype != torch.bool:
        raise ValueError(
            f"votes need preferences and valid (Bool) of one shape [K, B], got "
            f"{list(preferences.shape)} and {list(valid.shape)}"
        )
    balance = ((preferences - 0.5).sign() * valid).nan_to_num().sum(0).sign()
    return scored((1 + balance) / 2, valid.any(0))


def _scores(values: list[float | None]) -> Scores:
    valid = torch.tensor([v is not None for v in values], dtype=torch.bool)
    return scored(
        torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float32), valid
    )
