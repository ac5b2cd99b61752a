"""UniGenBench: 600 prompts for image generators, each with what a picture of it is tested for.

Source: CodeGoat24/UniGenBench (CC BY 4.0), Wang et al. 2025 (2508.20751).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .human import DATA, maybe_text, several, table, text

UNIGENBENCH = DATA / "human" / "unigenbench"


@dataclass(frozen=True)
class PromptCriteria:
    """N prompts and their test points; 600 in the pack.

    texts: N prompts; theme Long[N] index into the 5 themes; subject Long[N] index into the 5
    subjects, what the prompt is about; tested Bool[N, 27] which criteria a prompt has, 1 to 5;
    points: N tuples of (index into criteria, words of the prompt it is about) in the origin's
    order; one point has no words.
    """

    texts: tuple[str, ...]
    theme: Tensor
    subject: Tensor
    tested: Tensor
    points: tuple[tuple[tuple[int, str], ...], ...]
    themes: tuple[str, ...]
    subjects: tuple[str, ...]
    criteria: tuple[str, ...]


def load_unigenbench(folder: str | Path = UNIGENBENCH) -> PromptCriteria:
    """The committed prompts, or those of a person's own folder (prompts.jsonl)."""
    kinds = {"prompt": text, "theme": text, "subject": text, "points": _points}
    rows = table(Path(folder) / "prompts.jsonl", kinds)
    themes, subjects = sorted(set(rows["theme"])), sorted(set(rows["subject"]))
    criteria = sorted({name for points in rows["points"] for name, _ in points})
    points = [[(criteria.index(name), words) for name, words in row] for row in rows["points"]]
    tested = torch.zeros(len(points), len(criteria), dtype=torch.bool)
    for row, own in zip(tested, points):
        row[[criterion for criterion, _ in own]] = True
    return PromptCriteria(
        tuple(rows["prompt"]),
        torch.tensor([themes.index(name) for name in rows["theme"]]),
        torch.tensor([subjects.index(name) for name in rows["subject"]]),
        tested,
        tuple(map(tuple, points)),
        tuple(themes),
        tuple(subjects),
        tuple(criteria),
    )


def _points(cell: Any) -> list:
    """Pairs of a criterion's name and words; each criterion once."""
    read = several(2, maybe_text)
    found = [read(one) for one in cell] if isinstance(cell, list) else []
    if not found or len({text(name) for name, _ in found}) < len(found):
        raise ValueError("needs pairs of texts, each criterion once")
    return found
