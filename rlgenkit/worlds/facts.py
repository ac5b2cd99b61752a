"""Answers that state facts about a thing: how helpful and how long they are, exactly.

A thing has six facts, a label with one of six values each. In an answer a label followed by one of its
values states a fact; filler says nothing. Two users may disagree about an answer, because each fact
costs words and the last ones are worth little.
"""

from __future__ import annotations

import torch
from torch import Tensor

LABELS = ("color", "shape", "size", "place", "mood", "price")
VALUES = (
    ("red", "blue", "green", "yellow", "white", "black"),
    ("round", "square", "long", "flat", "thin", "thick"),
    ("tiny", "small", "medium", "large", "huge", "giant"),
    ("kitchen", "garden", "office", "street", "beach", "forest"),
    ("calm", "happy", "sad", "angry", "proud", "shy"),
    ("free", "cheap", "fair", "costly", "rare", "priceless"),
)
FILLER = ("well", "indeed", "rather", "so")
WORTH = (40, 25, 15, 10, 6, 4)  # helpfulness of each fact; all of them make 100
WRONG, LONGEST = 20, 24  # taken off for a wrong statement; words of the longest answer
NAMES = (
    "<pad>",
    "<end>",
    "_",
    *map(str, range(-100, 101)),
    *LABELS,
    *(word for row in VALUES for word in row),
    *FILLER,
)
PAD, END = 0, 1
ZERO = NAMES.index("0")
LABEL, VALUE, FILL = (NAMES.index(word) for word in ("color", "red", "well"))


def sample_things(count: int, generator: torch.Generator) -> Tensor:
    """Facts Long[count, 6]: the value, 0..5, of each label."""
    return torch.randint(6, (count, 6), generator=generator)


def direction_weights(angles: Tensor) -> Tensor:
    """Whole numbers Long[B, 2] = round(100 cos t, 100 sin t): the weights of helpfulness and verbosity
    that stand in the prompt, for angles t [B] in radians."""
    return torch.stack([100 * angles.cos(), 100 * angles.sin()], 1).round().long()


def prompt_rows(weights: Tensor, facts: Tensor) -> list[list[int]]:
    """Word ids of prompts: both weights Long[B, 2] as numbers, then the six values Long[B, 6]."""
    if weights.abs().max() > 100 or weights.shape != (len(facts), 2):
        raise ValueError("weights must be [B, 2] whole numbers in -100..100, a row per thing")
    numbers = weights + ZERO
    return torch.cat([numbers, VALUE + facts + 6 * torch.arange(6)], 1).tolist()


def sloppy_answers(facts: Tensor, generator: torch.Generator, slip: float = 0.15) -> Tensor:
    """Answers Long[B, LONGEST + 1] of careless people, END behind the last word: facts in the order of
    their worth, each left out at times and wrong with chance `slip`, with filler by temper."""
    b = len(facts)
    draw = torch.rand(5, b, 6, generator=generator)
    keep = draw[0] < 0.2 + 0.7 * torch.rand(b, 1, generator=generator)
    wrong = torch.randint(1, 6, facts.shape, generator=generator)
    said = torch.where(draw[1] < slip, (facts + wrong) % 6, facts)
    temper = 0.6 * torch.rand(b, 1, generator=generator)
    filler = FILL + torch.randint(4, (2, b, 6), generator=generator)
    kind = torch.arange(6).expand(b, 6)
    words = torch.stack(
        [
            torch.where(draw[2] < temper, filler[0], PAD),
            torch.where(draw[3] < temper, filler[1], PAD),
            torch.where(keep, LABEL + kind, PAD),
            torch.where(keep, VALUE + 6 * kind + said, PAD),
        ],
        2,
    ).flatten(1)
    words = torch.cat([words, torch.full((b, 1), END)], 1)
    return words.gather(1, (words == PAD).int().argsort(dim=1, stable=True))


def statements(answers: Tensor, facts: Tensor) -> tuple[Tensor, Tensor]:
    """(right, wrong), both Long[B, 6]: how often each fact is stated with its value, or another one of
    the label's values, in answers Long[B, T]."""
    label, value = answers[:, :-1, None] - LABEL, answers[:, 1:, None] - VALUE
    kind = torch.arange(6)
    stated = (label == kind) & (value >= 6 * kind) & (value < 6 * kind + 6)
    true = stated & (value - 6 * kind == facts[:, None])
    return true.sum(1), (stated & ~true).sum(1)


def attributes(answers: Tensor, facts: Tensor) -> Tensor:
    """True (helpfulness, verbosity) float32 [B, 2] in 0..100 of answers Long[B, T].

    Helpfulness: WORTH of the facts stated right, each once, less WRONG for every wrong statement, at
    least 0. Verbosity: words before the end, in percent of LONGEST, at most 100.
    """
    right, wrong = statements(answers, facts)
    helpful = ((right > 0) * torch.tensor(WORTH)).sum(1) - WRONG * wrong.sum(1)
    length = (answers > END).sum(1)
    return torch.stack([helpful.clamp(min=0), (100 * length / LONGEST).clamp(max=100)], 1).float()


def rated(truth: Tensor, generator: torch.Generator, noise: float = 8.0) -> Tensor:
    """Ratings [B, 2] by one rater each: the truth plus noise, cut to 0..100."""
    return (truth + noise * torch.randn(truth.shape, generator=generator)).clamp(0, 100)
