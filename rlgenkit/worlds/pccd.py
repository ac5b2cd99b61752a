"""PCCD: scores of 1,271 photographs by the reviewers who criticized them, and how the words sound.

Source: mediatechnologycenter/aestheval (CC BY 4.0), Nieto et al. 2022; the critiques themselves (PCCD,
Chang et al. 2017) are not here, only numbers derived from them.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .human import DATA, embeddings_of, number, one_of, table, text

PCCD = DATA / "human" / "pccd"
ASPECTS = (
    "general_impression",
    "subject_of_photo",
    "composition",
    "use_of_camera",
    "depth_of_field",
    "color_lighting",
    "focus",
)
SHARES = ("negative", "neutral", "positive")


@dataclass(frozen=True)
class Critiques:
    """N critiques, each of one photograph by one reviewer in 7 aspects; 1,271 in the pack.

    scores [N, 7] the reviewer's, whole numbers 1..10, nan = none for that aspect; overall [N] 1..10,
    the mean of an image's aspects with few exceptions; vader [N, 7] compound sentiment of that
    aspect's text, -1..1, nan = no text; words Long[N, 7] its length; shares [N, 3] of the whole
    critique by the publication's RoBERTa, negative, neutral, positive, sum 1, nan outside the test
    part; reviewer Long[N] 0..187, one person each; category Long[N] index into categories; test
    Bool[N] of the publication's own split (848; the others are validation); embeddings [N, D] unit
    vectors of the whole critiques (all-MiniLM-L6-v2, 384), or None.
    """

    scores: Tensor
    overall: Tensor
    vader: Tensor
    words: Tensor
    shares: Tensor
    reviewer: Tensor
    category: Tensor
    test: Tensor
    embeddings: Tensor | None
    categories: tuple[str, ...]
    aspects: tuple[str, ...] = ASPECTS


def load_pccd(folder: str | Path = PCCD) -> Critiques:
    """The committed critiques, or those of a person's own folder (critiques.csv, and
    embeddings.safetensors if there is one)."""
    folder, none = Path(folder), float("nan")
    groups = {
        "score": number(float, 1, 10, none),
        "vader": number(float, -1, 1, none),
        "words": number(int, 0),
    }
    names = {group: [f"{group}_{aspect}" for aspect in ASPECTS] for group in groups}
    kinds = {
        "split": one_of({"test": True, "validation": False}),
        "category": text,
        "reviewer": number(int, 0),
        "overall": number(float, 1, 10),
        **{name: read for group, read in groups.items() for name in names[group]},
        **dict.fromkeys(SHARES, number(float, 0, 1, none)),
    }
    rows = table(folder / "critiques.csv", kinds)
    categories = sorted(set(rows["category"]))
    scores, vader, words, shares = (
        torch.tensor([rows[name] for name in group]).T.contiguous()
        for group in (*names.values(), SHARES)
    )
    return Critiques(
        scores,
        torch.tensor(rows["overall"]),
        vader,
        words,
        shares,
        torch.tensor(rows["reviewer"]),
        torch.tensor([categories.index(name) for name in rows["category"]]),
        torch.tensor(rows["split"]),
        embeddings_of(folder, "critiques", (len(words),)),
        tuple(categories),
    )
