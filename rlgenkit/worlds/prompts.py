"""The caption grammar of sticker scenes: what can be asked for, in words and as a record.

A caption is one of five kinds of request; `parse` turns it back into the record it came from:

    single    a red cat on a mint background
    counting  three green hearts | two red cats and a blue star
    binding   a red cat and a blue star
    relation  a red cat left of a blue star
    word      the word "TEA" in red | the number "3" in blue
"""

import re
import zlib
from dataclasses import dataclass

import numpy as np
import torch

KINDS = (
    "cat",
    "heart",
    "cloud",
    "tree",
    "droplet",
    "star",
    "umbrella",
    "teapot",
    "crab",
    "airplane",
    "note",
    "ball",
)
COLORS = ("red", "yellow", "green", "blue", "purple", "black")
BACKGROUNDS = ("white", "sky", "mint", "peach", "sand")
GLYPHS = tuple("AEGHINOSTY1234")
WORDS = (
    "GO",
    "NO",
    "ON",
    "HI",
    "SO",
    "IT",
    "YES",
    "TEA",
    "SAY",
    "TEN",
    "HAT",
    "SEA",
    "TOY",
    "NET",
    "EAT",
    "SIT",
)
DIGITS = ("1", "2", "3", "4")
NUMBERS = ("a", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")
CATEGORIES = ("single", "counting", "binding", "relation", "word")
SPLITS = ("train", "test", "heldout")


@dataclass(frozen=True)
class Group:
    """`count` stickers of one kind and one color."""

    kind: str
    color: str
    count: int = 1


@dataclass(frozen=True)
class Prompt:
    """A caption and what it asks for. `relation` holds between groups[0] and groups[1]."""

    text: str
    groups: tuple[Group, ...]
    relation: str | None = None
    background: str | None = None
    word: str | None = None
    category: str = "single"


def _noun(group: Group) -> str:
    plural = group.kind if group.count == 1 else group.kind + "s"
    return f"{NUMBERS[group.count - 1]} {group.color} {plural}"


def caption(
    groups: tuple[Group, ...],
    relation: str | None = None,
    background: str | None = None,
    word: str | None = None,
) -> Prompt:
    """The prompt with its caption written out. A word takes its color from groups[0]."""
    if word is not None:
        noun = "number" if word in DIGITS else "word"
        text, category = f'the {noun} "{word}" in {groups[0].color}', "word"
    elif relation is not None:
        text, category = f" {relation} ".join(_noun(g) for g in groups), "relation"
    else:
        text = " and ".join(_noun(g) for g in groups)
        category = (
            "counting"
            if any(g.count > 1 for g in groups)
            else "binding"
            if len(groups) > 1
            else "single"
        )
    if background is not None:
        text += f" on a {background} background"
    return Prompt(text, groups, relation, background, word, category)


_THING = rf"({'|'.join(NUMBERS)}) ({'|'.join(COLORS)}) ({'|'.join(KINDS)})s?"
_CAPTION = re.compile(
    rf"(?:{_THING}(?: ({'|'.join(RELATIONS)}|and) {_THING})?"
    rf"|the (?:word|number) \"([A-Z0-9]+)\" in ({'|'.join(COLORS)}))"
    rf"(?: on a ({'|'.join(BACKGROUNDS)}) background)?"
)
_VOCABULARY = frozenset(
    KINDS
    + tuple(k + "s" for k in KINDS)
    + COLORS
    + BACKGROUNDS
    + NUMBERS
    + (
        "left",
        "right",
        "of",
        "above",
        "below",
        "and",
        "on",
        "background",
        "the",
        "word",
        "number",
        "in",
    )
)


def parse(text: str) -> Prompt:
    """The record behind a caption of the grammar; ValueError names the first word that does not fit."""
    match = _CAPTION.fullmatch(text.strip())
    if match is None:
        unknown = [w for w in text.split() if w not in _VOCABULARY and not w.startswith('"')]
        what = (
            f"the word {unknown[0]!r} is not in the vocabulary" if unknown else "its order of words"
        )
        raise ValueError(
            f"caption {text!r} is outside the grammar of sticker scenes: {what}; "
            "write for example 'two red cats left of a blue star on a mint background'"
        )
    n1, c1, k1, link, n2, c2, k2, word, word_color, background = match.groups()
    if word is not None:
        return caption((Group(word, word_color),), background=background, word=word)
    groups = (Group(k1, c1, NUMBERS.index(n1) + 1),)
    if k2 is not None:
        groups += (Group(k2, c2, NUMBERS.index(n2) + 1),)
    return caption(groups, None if link in (None, "and") else link, background)


def is_heldout_pair(kind: str, color: str) -> bool:
    """Twelve of the 72 kind-color pairs (one per kind, two per color) never occur in training."""
    return kind in KINDS and COLORS.index(color) == KINDS.index(kind) % len(COLORS)


def split_of(prompt: Prompt) -> str:
    """ "heldout": has an unseen kind-color pair; "test": one caption in ten, by hash; else "train"."""
    if any(is_heldout_pair(g.kind, g.color) for g in prompt.groups):
        return "heldout"
    return "test" if zlib.crc32(prompt.text.encode()) % 10 == 0 else "train"


def _draw(rng: np.random.Generator, category: str, heldout: bool) -> Prompt:
    """One prompt of a category; with `heldout`, groups[0] is an unseen pair."""
    background = str(rng.choice(BACKGROUNDS)) if rng.random() < 0.5 else None
    if category == "word":
        word = str(rng.choice(WORDS if rng.random() < 0.8 else DIGITS))
        return caption((Group(word, str(rng.choice(COLORS))),), background=background, word=word)
    kinds = rng.choice(len(KINDS), 2, replace=False)
    colors = rng.choice(len(COLORS), 2, replace=False)
    if heldout:
        colors[0] = kinds[0] % len(COLORS)
        colors[1] = (colors[0] + rng.integers(1, len(COLORS))) % len(COLORS)
    pairs = [(KINDS[k], COLORS[c]) for k, c in zip(kinds, colors)]
    counts = [1, 1]
    if category == "counting":
        two_groups = rng.random() < 0.3
        counts = [int(rng.integers(2, 4 if two_groups else 5)), 1]
        pairs = pairs if two_groups else pairs[:1]
    elif category == "single":
        pairs = pairs[:1]
    groups = tuple(Group(k, c, n) for (k, c), n in zip(pairs, counts))
    relation = str(rng.choice(RELATIONS)) if category == "relation" else None
    return caption(groups, relation, background)


def sample_prompts(
    n: int, split: str = "train", category: str | None = None, *, generator: torch.Generator
) -> list[Prompt]:
    """n prompts of a split ("train" | "test" | "heldout") and category (None = all, evenly drawn).

    "heldout" prompts hold a kind-color pair that no training caption has; words have no such pair,
    so their held-out set is refused.
    """
    if split not in SPLITS or category not in CATEGORIES + (None,):
        raise ValueError(
            f"unknown split or category: {split!r}, {category!r}; splits are {SPLITS}, "
            f"categories are {CATEGORIES} or None"
        )
    if split == "heldout" and category == "word":
        raise ValueError("words have no kind-color pair to hold out; use split='test' for words")
    rng = numpy_rng(generator)
    choices = [c for c in CATEGORIES if not (split == "heldout" and c == "word")]
    prompts: list[Prompt] = []
    while len(prompts) < n:
        drawn = _draw(rng, category or str(rng.choice(choices)), split == "heldout")
        if split_of(drawn) == split:
            prompts.append(drawn)
    return prompts


def numpy_rng(generator: torch.Generator) -> np.random.Generator:
    """A NumPy generator seeded by one draw of a torch one, for layouts and grammar."""
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    return np.random.default_rng(int(seed))
