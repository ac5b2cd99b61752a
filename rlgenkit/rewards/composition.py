"""Does the picture show what was asked for? Scores from a reader's `Reading`, with partial credit.

Each function maps (reading of B images, B prompts) to `Scores`; `from_reader` makes a reward of
it. A sample is invalid when its prompt does not ask for the thing that is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rlgenkit.worlds.prompts import COLORS, GLYPHS, KINDS, Group, Prompt
from rlgenkit.worlds.reader import Reading, check, read

from .batch import Batch, Reward, Scores, parsed, where_defined

Score = Callable[[Reading, Sequence[Prompt | str]], Scores]

# A thing of the right kind in a wrong color is worth half a binding.
WRONG_COLOR_CREDIT = 0.5
# Half of a relation is having its two things at all (a quarter each), half is their places.
PRESENCE_CREDIT = 0.25


def from_reader(reader: nn.Module, score: Score) -> Reward:
    """Reward that reads the images (no gradient) and scores the reading."""

    def reward(batch: Batch) -> Scores:
        with torch.no_grad():
            reading = read(reader, batch.images)
        return score(reading, batch.prompts)

    return reward


def count_score(reading: Reading, prompts: Sequence[Prompt | str]) -> Scores:
    """Mean over asked groups of max(0, 1 - |n - n*| / n*), things of that kind and color.

    Source: Flow-GRPO's GenEval counting reward. Invalid for words.
    """
    return where_defined(_checked(reading, prompts, "count"))


def binding_score(reading: Reading, prompts: Sequence[Prompt | str]) -> Scores:
    """Mean over asked groups of 1 (kind in its color), 0.5 (kind in a wrong color) or 0.

    Invalid for words.
    """
    return _over_groups(reading, prompts, _binding)


def relation_score(reading: Reading, prompts: Sequence[Prompt | str]) -> Scores:
    """A quarter for each of the two things present, half if they stand as asked.

    Invalid where no relation was asked.
    """
    asked = parsed(prompts)
    right = _checked(reading, asked, "relation")
    present = [
        sum(_binding(reading, row, g) == 1.0 for g in prompt.groups[:2] if prompt.relation)
        for row, prompt in enumerate(asked)
    ]
    credit = PRESENCE_CREDIT * right.new_tensor(present)
    return where_defined(credit + (1 - 2 * PRESENCE_CREDIT) * right)


def composition_score(reading: Reading, prompts: Sequence[Prompt | str]) -> Scores:
    """Mean in [0,1] of count, binding and relation, over what the prompt asks for.

    Invalid for words.
    """
    asked = parsed(prompts)
    total = norm = torch.zeros_like(reading.look[:, 0])
    for score in (count_score, binding_score, relation_score):
        part = score(reading, asked)
        total, norm = total + part.values, norm + part.valid
    return where_defined(total / norm)


def typographic_count_score(reading: Reading, prompts: Sequence[Prompt | str]) -> Scores:
    """A counting proxy that believes written digits: the planted flaw of DDPO's section 6.

    Its count of a group is the digit that it reads anywhere in the picture (the surest one if
    there are several), else the number of things of the group's kind and color; the score is
    max(0, 1 - |n - n*| / n*), averaged over groups. So a picture of a digit "3" answers "three red
    cats" in full, as LLaVA did when it was asked to count. The truth is `count_score`.
    Invalid for words.
    """

    def credit(reading: Reading, row: int, group: Group) -> float:
        digit = _written_digit(reading, row)
        believed = _count(reading, row, group) if digit is None else digit
        return max(0.0, 1 - abs(believed - group.count) / group.count)

    return _over_groups(reading, prompts, credit)


def _over_groups(
    reading: Reading,
    prompts: Sequence[Prompt | str],
    credit: Callable[[Reading, int, Group], float],
) -> Scores:
    """Mean credit(reading, row, group) over the groups that each prompt asks for; invalid for words."""
    rows = []
    for row, prompt in enumerate(parsed(prompts)):
        credits = [credit(reading, row, group) for group in prompt.groups if not prompt.word]
        rows.append(sum(credits) / len(credits) if credits else float("nan"))
    return where_defined(reading.look.new_tensor(rows))


def _written_digit(reading: Reading, row: int) -> int | None:
    shapes = KINDS + GLYPHS
    found = [
        (float(score), int(shapes[kind]))
        for kind, score, valid in zip(
            reading.kind[row].tolist(), reading.score[row], reading.valid[row], strict=True
        )
        if valid and shapes[kind].isdigit()
    ]
    return max(found)[1] if found else None


def _count(reading: Reading, row: int, group: Group) -> int:
    kind, color = KINDS.index(group.kind), COLORS.index(group.color)
    hits = reading.valid[row] & (reading.kind[row] == kind) & (reading.color[row] == color)
    return int(hits.sum())


def _binding(reading: Reading, row: int, group: Group) -> float:
    of_kind = reading.valid[row] & (reading.kind[row] == KINDS.index(group.kind))
    right = of_kind & (reading.color[row] == COLORS.index(group.color))
    return 1.0 if right.any() else WRONG_COLOR_CREDIT if of_kind.any() else 0.0


def _checked(reading: Reading, prompts: Sequence[Prompt | str], name: str) -> Tensor:
    return check(reading, parsed(prompts))[name].to(reading.look.device)
