"""LLMBar: 419 pairs of answers of which one follows its instruction, with six judges' verdicts.

Source: princeton-nlp/LLMBar (MIT), Zeng et al. 2023 (2310.07641). Which answer is right was agreed on by
the authors; in the adversarial subsets the other one looks better than it is.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .human import DATA, maybe_text, one_of, several, table, text

LLMBAR = DATA / "human" / "llmbar"
SUBSETS = ("Natural", "Neighbor", "GPTInst", "GPTOut", "Manual")  # all but the first adversarial
JUDGES = ("GPT-4", "ChatGPT", "ChatGPT-0301", "PaLM2", "LLaMA2", "Falcon")
STRATEGIES = ("Vanilla_NoRules", "Vanilla", "Metrics", "Swap")


@dataclass(frozen=True)
class JudgedPairs:
    """N pairs of answers to an instruction, first and second; 419 in the pack.

    instructions: N texts; texts: N pairs of answers; subset Long[N] index into subsets; first_wins
    [N] 1.0 = the first answer is right, 0.0 = the second; verdicts [N, 6, 4, 2] by judge, strategy
    and order in the same meaning, nan = unreadable: order 0 shows the answers as they are here,
    order 1 swapped, and both verdicts name the same answer by the same number. criteria: N tuples
    of 6 texts, the questions that each judge wrote from the instruction alone and then used in
    "Metrics"; five are empty.
    """

    instructions: tuple[str, ...]
    texts: tuple[tuple[str, str], ...]
    subset: Tensor
    first_wins: Tensor
    verdicts: Tensor
    criteria: tuple[tuple[str, ...], ...]
    subsets: tuple[str, ...] = SUBSETS
    judges: tuple[str, ...] = JUDGES
    strategies: tuple[str, ...] = STRATEGIES


def load_llmbar(folder: str | Path = LLMBAR) -> JudgedPairs:
    """The committed pairs, or those of a person's own folder (pairs.jsonl)."""
    verdict = one_of({1: 1.0, 2: 0.0, 0: float("nan")})
    kinds = {
        "subset": one_of({name: k for k, name in enumerate(SUBSETS)}),
        "instruction": text,
        "first": text,
        "second": text,
        "right": one_of({1: 1.0, 2: 0.0}),
        "verdicts": several(len(JUDGES), several(len(STRATEGIES), several(2, verdict))),
        "criteria": several(len(JUDGES), maybe_text),
    }
    rows = table(Path(folder) / "pairs.jsonl", kinds)
    subset, right, verdicts = (torch.tensor(rows[k]) for k in ("subset", "right", "verdicts"))
    return JudgedPairs(
        tuple(rows["instruction"]),
        tuple(zip(rows["first"], rows["second"])),
        subset,
        right,
        verdicts,
        tuple(map(tuple, rows["criteria"])),
    )
