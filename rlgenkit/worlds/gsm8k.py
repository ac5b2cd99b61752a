"""GSM8K model solutions: 1,319 school problems, four solvers each, every solution labeled.

Source: openai/grade-school-math (MIT). Problems are written by people; solutions come from models of 6 and
175 billion parameters, fine-tuned, or the best of many by a verifier. Source: Cobbe et al. 2021.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .human import DATA, one_of, several, table, text

GSM8K = DATA / "human" / "gsm8k"
SOLVERS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


@dataclass(frozen=True)
class Solutions:
    """Q problems with a solution by each of the 4 SOLVERS.

    questions: Q texts; answers: Q final answers as text; texts: Q tuples of 4 solutions, each
    ending in its own "A: ..."; right Bool[Q, 4].
    """

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    right: Tensor


def load_gsm8k(folder: str | Path = GSM8K) -> Solutions:
    """The committed solutions, or those of a person's own folder (solutions.jsonl)."""
    kinds = {
        "question": text,
        "answer": text,
        "solutions": several(len(SOLVERS), text),
        "right": several(len(SOLVERS), one_of({True: True, False: False})),
    }
    rows = table(Path(folder) / "solutions.jsonl", kinds)
    texts = tuple(map(tuple, rows["solutions"]))
    right = torch.tensor(rows["right"])
    return Solutions(tuple(rows["question"]), tuple(rows["answer"]), texts, right)
