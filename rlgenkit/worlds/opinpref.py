"""OpinPref: 940 human choices between two summaries of the same product's reviews.

Source: swaroop-nath/reward-approx-social-choice-opp-summ (MIT), Nath et al. 2024 (2402.15473). The reviews and the annotators' names are left out.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .human import DATA, embeddings_of, number, one_of, several, table, text

OPINPREF = DATA / "human" / "opinpref"
ASPECTS = (
    "aspect-coverage",
    "opinion-faithfulness",
    "opinion-coverage",
    "conciseness",
    "relevance",
    "hallucination",
    "language-correctness",
)  # hallucination 5 = none


@dataclass(frozen=True)
class OpinPref:
    """N choices between two summaries, first and second along the axis of length 2.

    texts: N pairs of strings; aspects [N,2,7] in 0..5 by a language model, in the order of
    ASPECTS; first_wins [N] 1.0 or 0.0; annotator Long[N] 0..2 one person each, 3 = labeled by
    several; recipe Long[N,2] 0..8, the writing prompt (0-2 careful, 3-5 slightly bad, 6-8 very
    bad); validation Bool[N] of the paper's own split; embeddings [N,2,D] unit vectors of the
    texts, or None.
    """

    texts: tuple[tuple[str, str], ...]
    aspects: Tensor
    first_wins: Tensor
    annotator: Tensor
    recipe: Tensor
    validation: Tensor
    embeddings: Tensor | None


def load_opinpref(folder: str | Path = OPINPREF) -> OpinPref:
    """The committed choices, or those of a person's own folder (pairs.jsonl, and
    embeddings.safetensors if there is one); both answers must occur."""
    folder = Path(folder)
    kinds = {
        "first": text,
        "second": text,
        "aspects": several(2, several(len(ASPECTS), number(float, 0, 5))),
        "choice": one_of({1: 1.0, 2: 0.0}),
        "annotator": number(int, 0, 3),
        "recipes": several(2, number(int, 0, 8)),
        "split": one_of({"train": False, "validation": True}),
    }
    rows = table(folder / "pairs.jsonl", kinds)
    if len(set(rows["choice"])) < 2:
        raise ValueError("all choices are the same side; there is nothing to learn from them")
    names = ("choice", "annotator", "recipes", "split")
    return OpinPref(
        tuple(zip(rows["first"], rows["second"])),
        torch.tensor(rows["aspects"], dtype=torch.float32),
        *(torch.tensor(rows[name]) for name in names),
        embeddings_of(folder, "summaries", (len(rows["choice"]), 2)),
    )


def load_preference_pairs(path: str | Path) -> list[tuple[str, str]]:
    """(chosen, rejected), two different texts, of a JSON-lines file with these two fields, as
    HH-RLHF has them."""
    path = Path(path).expanduser()
    rows = table(path, {"chosen": text, "rejected": text})
    pairs = list(zip(rows["chosen"], rows["rejected"]))
    for place, (chosen, rejected) in enumerate(pairs, 1):
        if chosen == rejected:
            raise ValueError(f"pair {place} of {path.name} needs two different texts")
    return pairs
