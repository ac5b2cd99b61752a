"""Sentences of film reviews with human sentiment ratings, in a closed vocabulary.

Only short sentences are kept, and every word outside the most frequent ones is a blank "_",
so that a small language model can learn the rest. The ratings are those of `load_vader`.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .human import BATCH, VADER, load_vader, number, table, text

PAD, END, BLANK = 0, 1, 2
SPECIAL = ("<pad>", "<end>", "_")


@dataclass(frozen=True)
class Reviews:
    """N sentences. vocabulary: words by id, SPECIAL first; ids Long[N, L], END behind the last word
    and PAD after it; ratings float32 [N, 2]: mean sentiment in -4..4 of two halves of the raters
    that share no person."""

    vocabulary: tuple[str, ...]
    ids: Tensor
    ratings: Tensor


def load_reviews(folder: str | Path = VADER) -> Reviews:
    """The committed sentences, or those of a person's own folder (reviews.csv, sessions.csv)."""
    ratings, batch = load_vader(folder)
    last = BATCH * (int(batch.max()) + 1) - 1
    rows = table(Path(folder) / "reviews.csv", {"item": number(int, 0, last), "words": text})
    words = [row.split() for row in rows["words"]]
    counts = Counter(word for row in words for word in row)
    counts.pop("_", None)
    vocabulary = (*SPECIAL, *sorted(counts, key=lambda word: (-counts[word], word)))
    place = {word: i for i, word in enumerate(vocabulary)}
    ids = torch.zeros(len(words), max(map(len, words)) + 1, dtype=torch.long)
    for k, row in enumerate(words):
        ids[k, : len(row) + 1] = torch.tensor([place[word] for word in row] + [END])
    return Reviews(vocabulary, ids, _halves(ratings, batch, torch.tensor(rows["item"])))


def _halves(ratings: Tensor, batch: Tensor, items: Tensor) -> Tensor:
    """Means [N, 2] over the people of even and of odd place in the items' batches."""
    place = torch.zeros_like(batch)
    for b in batch.unique():
        place[batch == b] = torch.arange(int((batch == b).sum()))
    means = []
    for half in (0, 1):
        mine = place % 2 == half
        total = torch.zeros(int(batch.max()) + 1, BATCH).index_add_(0, batch[mine], ratings[mine])
        people = torch.bincount(batch[mine], minlength=len(total))
        means.append((total / people[:, None]).flatten()[items])
    return torch.stack(means, 1)
