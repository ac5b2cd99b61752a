"""GSM8K model solutions: 1,319 school problems, four solvers each, every solution labeled.

Source: openai/grade-school-math (MIT). Problems are written by people; solutions come from models of 6 and
175 billion parameters, fine-tuned, or the best of many by a verifier. Source: Cobbe et al. 2021.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .human import DATA, checked_bytes

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
    """The committed solutions; ValueError if the file is missing, changed or malformed."""
    text = checked_bytes(Path(folder) / "solutions.jsonl").decode("utf-8")
    questions, answers, texts, right = [], [], [], []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            labels, four = row["right"], tuple(row["solutions"])
            good = len(four) == len(labels) == len(SOLVERS) and {type(x) for x in labels} == {bool}
            if not good or not all(
                isinstance(t, str) for t in (row["question"], row["answer"], *four)
            ):
                raise ValueError("a field has the wrong type or number")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"line {number} of solutions.jsonl needs question, answer, four solutions "
                f"and four labels; restore it with git checkout -- data/human"
            ) from error
        questions.append(row["question"])
        answers.append(row["answer"])
        texts.append(four)
        right.append(labels)
    if not questions:
        raise ValueError(
            "solutions.jsonl holds no problems; restore it with git checkout -- data/human"
        )
    return Solutions(tuple(questions), tuple(answers), tuple(texts), torch.tensor(right))
