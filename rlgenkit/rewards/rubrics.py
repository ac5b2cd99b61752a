"""Rubrics: lists of criteria in words, and the scores and verdicts that follow from them.

One schema for every judge that says which criteria a sample meets. A criterion that could not be
read makes its sample invalid; it never counts as met or as missed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from .batch import Scores, scored
from .judges import Reading

KINDS = {"principle": "principle", "rule": "rule", "hard rule": "rule"}
ITEM = re.compile(r"^\s*(?:\d+[.)]|[-*])\s+(.*\S)\s*$")
MARK = re.compile(r"\s*\[([^\[\]]*)\]\s*")


@dataclass(frozen=True)
class Criterion:
    """One thing that a good sample does.

    kind: "rule" (demanded by the prompt, decides before anything else) or "principle" (a quality);
    weight > 0 counts within its kind, or among all of them in `rubric_scores`.
    """

    text: str
    kind: str = "principle"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.text.strip() or self.kind not in ("rule", "principle"):
            raise ValueError(f'a criterion needs words and the kind "rule" or "principle": {self}')
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"a criterion needs a finite weight above 0: {self}")


Rubric = tuple[Criterion, ...]


def parse_rubric(text: str) -> Reading:
    """Read a numbered or dashed list such as "1. The answer names a city. [Hard Rule]".

    The value is a tuple of `Criterion` in the order of the text. Lines that are no list items are
    ignored. None, with the reason, where there is no item, where an item has no words, no mark or
    several marks, or an unknown one, and where two items say the same: half a rubric is none.
    """
    items = [found.group(1) for found in map(ITEM.match, text.splitlines()) if found]
    criteria = []
    for item in items:
        marks = [mark.strip().lower() for mark in MARK.findall(item)]
        words = " ".join(MARK.sub(" ", item).split())
        if len(marks) != 1 or marks[0] not in KINDS or not words:
            return Reading(None, f"no single [Hard Rule] or [Principle] in {item[:40]!r}")
        criteria.append(Criterion(words, KINDS[marks[0]]))
    if not criteria:
        return Reading(None, "no list of criteria")
    if len({criterion.text.lower() for criterion in criteria}) < len(criteria):
        return Reading(None, "a criterion stands twice")
    return Reading(tuple(criteria))


def rubric_scores(met: Tensor, rubric: Rubric, applies: Tensor | None = None) -> Scores:
    """Scores [B] in 0..1: the weighted share of a rubric that each sample meets.

    met [B, K] in 0..1, how far sample b meets criterion k (nan = could not be read); applies
    Bool[B, K]: criteria that were asked of this sample (None = all). A sample with an unreadable
    criterion that applies, or to which nothing applies, is invalid.
    """
    weights = _weights(met, rubric, applies)
    total = weights.sum(1)
    valid = ~((weights > 0) & met.isnan()).any(1) & (total > 0)
    share = (weights * met.nan_to_num()).sum(1) / total.where(total > 0, torch.ones_like(total))
    return scored(share, valid)


def rubric_preferences(
    first: Tensor,
    second: Tensor,
    rubric: Rubric,
    applies: Tensor | None = None,
    tolerance: float = 1e-6,
) -> Scores:
    """Preference for the first of two samples [B] in {0, 1/2, 1}: rules decide, then principles.

    first, second [B, K] in 0..1 as in `rubric_scores`, applies Bool[B, K] for the pair's prompt.
    The weighted shares of the rules are compared first; where they differ by at most `tolerance`,
    those of the principles; where these do so as well, it is a tie. An unreadable criterion that
    applies makes the pair invalid. Source: OpenRubrics (2510.07743), its gatekeeper criterion.
    """
    if first.shape != second.shape or tolerance < 0:
        raise ValueError(
            f"two samples need one shape and a tolerance >= 0, got {list(first.shape)}, "
            f"{list(second.shape)} and {tolerance}"
        )
    weights = _weights(first, rubric, applies)
    gap = weights * (first - second)
    valid = ~((weights > 0) & gap.isnan()).any(1) & (weights.sum(1) > 0)
    side = torch.zeros(len(first), dtype=gap.dtype)
    for kind in ("rule", "principle"):
        columns = torch.tensor([criterion.kind == kind for criterion in rubric])
        total = weights[:, columns].sum(1).clamp(min=1e-12)
        lead = gap[:, columns].nan_to_num().sum(1) / total
        here = lead.sign() * (lead.abs() > tolerance)
        side = side.where(side != 0, here)
    return scored((1 + side) / 2, valid)


def _weights(met: Tensor, rubric: Rubric, applies: Tensor | None) -> Tensor:
    """Weights [B, K], 0 where a criterion does not apply; ValueError on shapes and ranges."""
    if met.ndim != 2 or met.shape[1] != len(rubric) or not rubric:
        raise ValueError(
            f"{len(rubric)} criteria need met [B, {len(rubric)}], got {list(met.shape)}"
        )
    if bool(((met < 0) | (met > 1)).any()):
        raise ValueError("how far a criterion is met must lie in 0..1 (nan = could not be read)")
    weights = torch.tensor([criterion.weight for criterion in rubric], dtype=met.dtype)
    applies = torch.ones_like(met, dtype=torch.bool) if applies is None else applies
    if applies.shape != met.shape or applies.dtype != torch.bool:
        raise ValueError(f"applies must be Bool{list(met.shape)}, got {list(applies.shape)}")
    return weights * applies
