"""DSG: five people's ratings of 800 generated images, and three models' yes or no to checklists.

Source: j-min/DSG (Apache-2.0), Cho et al. 2023 (2310.18235); the prompts' texts are from Yushi-Hu/tifa
(Apache-2.0). The people are numbers 0 to 4. No picture is kept.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .human import DATA, RATERS, number, one_of, several, table, text

DSG = DATA / "human" / "dsg"
GENERATORS = ("mini-dalle", "sd1dot1", "sd1dot5", "sd2dot1", "vq-diffusion")
ANSWERERS = ("pali", "mplug", "instructblip")
KINDS = ("thing", "property", "relation")  # by the number of parents: none, one, two or more
UNREAD = float("nan")
MOST_QUESTIONS = 99


@dataclass(frozen=True)
class CheckedImages:
    """N images of P prompts, with at most K questions a prompt; 800, 160 and 15 in the pack.

    ratings [N, 5] how well an image fits its prompt, 1..5, column r always the same person, nan =
    not rated; prompt Long[N] 0..P-1; generator Long[N] index into generators; texts: P prompts.
    questions: P tuples of texts such as "Is the bear brown?", yes = as the prompt asks (one prompt
    has none); parents Bool[P, K, K], [p, k, j] = question k makes sense only if j is a yes; kind
    Long[P, K] index into kinds by the number of parents, -1 = no such question; answers [N, 3, K]
    of the three answerers, 1 yes, 0 no, nan = no such question or neither yes nor no.
    """

    ratings: Tensor
    prompt: Tensor
    generator: Tensor
    texts: tuple[str, ...]
    questions: tuple[tuple[str, ...], ...]
    parents: Tensor
    kind: Tensor
    answers: Tensor
    generators: tuple[str, ...] = GENERATORS
    answerers: tuple[str, ...] = ANSWERERS
    kinds: tuple[str, ...] = KINDS


def load_dsg(folder: str | Path = DSG) -> CheckedImages:
    """The committed images, or those of a person's own folder (prompts.csv, ratings.csv,
    questions.csv)."""
    folder = Path(folder)
    prompts = table(folder / "prompts.csv", {"prompt": number(int, 0), "text": text})
    if len(set(prompts["prompt"])) < len(prompts["prompt"]):
        raise ValueError("prompts.csv has two rows for one prompt")
    known = one_of({str(prompt): i for i, prompt in enumerate(prompts["prompt"])})
    person = number(int, 1, 5, UNREAD)
    kinds = {
        "prompt": known,
        "generator": one_of({name: k for k, name in enumerate(GENERATORS)}),
        **{f"rater_{k + 1}": person for k in range(RATERS)},
    }
    rows = table(folder / "ratings.csv", kinds)
    prompt, generator, *ratings = (torch.tensor(rows[name]) for name in kinds)
    if len(set(zip(rows["prompt"], rows["generator"]))) < len(prompt):
        raise ValueError("ratings.csv has two rows for one image")
    questions, parents, said = _questions(folder / "questions.csv", known, len(prompts["text"]))
    asked = torch.tensor([[k < len(q) for k in range(parents.shape[1])] for q in questions])
    return CheckedImages(
        torch.stack(ratings, 1).float(),
        prompt,
        generator,
        tuple(prompts["text"]),
        questions,
        parents,
        parents.sum(-1).clamp(max=2).where(asked, torch.tensor(-1)),
        said[prompt, generator],
    )


def _questions(path: Path, known, prompts: int) -> tuple[tuple, Tensor, Tensor]:
    """(texts of each prompt, parents [P, K, K], answers [P, 5, 3, K]) of questions.csv."""
    answers = several(len(GENERATORS), one_of({"yes": 1.0, "no": 0.0, "?": UNREAD}))
    kinds = {"prompt": known, "question": number(int, 1, MOST_QUESTIONS), "parents": _numbers}
    rows = table(path, kinds | {"text": text} | dict.fromkeys(ANSWERERS, answers))
    texts: list[list[str]] = [[] for _ in range(prompts)]
    parents = torch.zeros(prompts, MOST_QUESTIONS, MOST_QUESTIONS, dtype=torch.bool)
    said = torch.full((prompts, len(GENERATORS), len(ANSWERERS), MOST_QUESTIONS), UNREAD)
    for p, question, above, words, *answered in zip(*rows.values()):
        texts[p].append(words)
        if question != len(texts[p]):
            raise ValueError(f"{path.name} needs the questions of each prompt in order from 1")
        parents[p, question - 1, [k - 1 for k in above]] = True
        said[p, ..., question - 1] = torch.tensor(answered).T
    most = max(map(len, texts))
    for p, own in enumerate(texts):
        if parents[p, :, len(own) :].any() or parents[p].diagonal().any():
            raise ValueError(f"{path.name} needs parents that are other questions of their prompt")
    return tuple(map(tuple, texts)), parents[:, :most, :most], said[..., :most]


def _numbers(cell: str) -> list[int]:
    read = number(int, 1, MOST_QUESTIONS)
    return [read(one) for one in cell.split()]


def dsg_scores(images: CheckedImages) -> Tensor:
    """[N, 3]: share of an image's questions that each answerer says yes to, 0..1; a question counts
    as yes only if its parents are answered with yes, too. nan = the prompt has no questions.

    As in the publication, a parent's own parents do not matter, and what is neither yes nor no
    counts as no.
    """
    yes = images.answers == 1
    parents = images.parents[images.prompt][:, None]
    met = yes & ~(parents & ~yes[:, :, None]).any(-1)
    return met.sum(-1) / (images.kind >= 0)[images.prompt].sum(-1, keepdim=True)
