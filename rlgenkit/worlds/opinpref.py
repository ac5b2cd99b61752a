"""OpinPref: 940 human choices between two summaries of the same product's reviews.

Source: swaroop-nath/reward-approx-social-choice-opp-summ (MIT), Nath et al. 2024 (2402.15473). The reviews and the annotators' names are left out.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .human import DATA, checked_bytes

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
    """The committed choices; ValueError if a file is missing, changed or malformed, or if one of
    the two answers never occurs."""
    folder = Path(folder)
    lines = checked_bytes(folder / "pairs.jsonl").decode("utf-8").splitlines()
    try:
        rows = [json.loads(line) for line in lines]
        made = OpinPref(
            tuple((r["first"], r["second"]) for r in rows),
            torch.tensor([r["aspects"] for r in rows], dtype=torch.float32),
            torch.tensor([{1: 1.0, 2: 0.0}[r["choice"]] for r in rows]),
            torch.tensor([r["annotator"] for r in rows]),
            torch.tensor([r["recipes"] for r in rows]),
            torch.tensor([r["split"] == "validation" for r in rows]),
            None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"pairs.jsonl has a row that cannot be read ({error!r}); restore it with "
            "git checkout -- data/human"
        ) from error
    if (
        made.aspects.shape != (len(rows), 2, len(ASPECTS))
        or not ((made.aspects >= 0) & (made.aspects <= 5)).all()
    ):
        raise ValueError("every row of pairs.jsonl needs 2 x 7 aspect scores in 0..5")
    if made.first_wins.unique().numel() < 2:
        raise ValueError("all choices are the same side; there is nothing to learn from them")
    return replace(made, embeddings=_embeddings(folder, len(rows)))


def _embeddings(folder: Path, rows: int) -> Tensor | None:
    path = folder / "embeddings.safetensors"
    if not path.is_file():
        return None
    from safetensors.torch import load

    found = load(checked_bytes(path))["summaries"].float()
    if found.shape[:2] != (rows, 2):
        raise ValueError(
            f"embeddings.safetensors holds {list(found.shape)}, not {rows} pairs; "
            "make it again or delete it"
        )
    return found


def load_preference_pairs(path: str | Path) -> list[tuple[str, str]]:
    """(chosen, rejected) texts of a JSON-lines file with these two fields, as HH-RLHF has them.

    Raises ValueError, naming the line, where a field is missing, empty, or both are the same.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file of preference pairs at '{path.name}'; fix the path")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            pair = row["chosen"], row["rejected"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"line {number} of {path.name} needs a JSON object with the texts "
                "chosen and rejected"
            ) from error
        if not all(isinstance(t, str) and t.strip() for t in pair) or pair[0] == pair[1]:
            raise ValueError(f"line {number} of {path.name} needs two different texts")
        found.append(pair)
    if not found:
        raise ValueError(f"{path.name} holds no pairs")
    return found
