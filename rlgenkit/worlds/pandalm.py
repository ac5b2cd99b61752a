"""PandaLM's test set: 999 pairs of answers by small language models, each labeled by three people.

Source: WeOpenML/PandaLM (Apache-2.0), Wang et al. 2023 (2306.05087). Instructions are those of Self-Instruct's
user tasks, each answered by several models.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .human import DATA, maybe_text, one_of, several, table

PANDALM = DATA / "human" / "pandalm"
GENERATORS = ("bloom-7b", "cerebras-gpt-6.7B", "llama-7b", "opt-7b", "pythia-6.9b")
ANNOTATORS = 3


@dataclass(frozen=True)
class LabeledPairs:
    """N pairs of answers, first and second along an axis of length 2; 999 in the pack.

    instructions, inputs: N texts each (an input may be empty, and one instruction is); texts: N
    pairs of answers, of which some are empty; labels [N, 3] by the origin's annotators 1 to 3,
    1.0 = the first is better, 0.0 = the second, 0.5 = a tie; generator Long[N, 2] index into
    generators (in the order of the alphabet), never alike in a pair; task Long[N] 0..169, the same
    for pairs of one instruction and input: clusters.
    """

    instructions: tuple[str, ...]
    inputs: tuple[str, ...]
    texts: tuple[tuple[str, str], ...]
    labels: Tensor
    generator: Tensor
    task: Tensor
    generators: tuple[str, ...] = GENERATORS


def load_pandalm(folder: str | Path = PANDALM) -> LabeledPairs:
    """The committed pairs, or those of a person's own folder (pairs.jsonl)."""
    kinds = {
        "instruction": maybe_text,
        "input": maybe_text,
        "first": maybe_text,
        "second": maybe_text,
        "labels": several(ANNOTATORS, one_of({1: 1.0, 2: 0.0, 0: 0.5})),
        "generators": several(2, one_of({name: k for k, name in enumerate(GENERATORS)})),
    }
    rows = table(Path(folder) / "pairs.jsonl", kinds)
    asked = list(zip(rows["instruction"], rows["input"]))
    place = {task: k for k, task in enumerate(dict.fromkeys(asked))}
    return LabeledPairs(
        tuple(rows["instruction"]),
        tuple(rows["input"]),
        tuple(zip(rows["first"], rows["second"])),
        torch.tensor(rows["labels"]),
        torch.tensor(rows["generators"]),
        torch.tensor([place[task] for task in asked]),
    )
