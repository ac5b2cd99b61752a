"""Make the sentences of this pack: `python -m data.human.vader.make_reviews FOLDER`, with the files
of its origin.
"""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rlgenkit.worlds.human import BATCH, VADER

from ..packs import write_rows

WORDS, SHORTEST, LONGEST = 1500, 5, 24  # vocabulary size and sentence lengths that are kept
PATTERN = re.compile(r"[a-z]+(?:'[a-z]+)*|[,.!?;:]|_")


def split(sentence: str) -> list[str]:
    """Lower-case words and punctuation marks of a sentence; digits and other signs are dropped."""
    return PATTERN.findall(sentence.lower())


def blanked(sentences: Sequence[Sequence[str]], size: int = WORDS) -> list[list[str]]:
    """The sentences with "_" for each word that is not among the `size` most frequent ones."""
    counts = Counter(word for row in sentences for word in row)
    kept = set(sorted(counts, key=lambda word: (-counts[word], word))[:size])
    return [[word if word in kept else "_" for word in row] for row in sentences]


def make_reviews(source: str | Path, folder: str | Path = VADER) -> None:
    """Write reviews.csv from movieReviewSnippets_GroundTruth.txt; items are numbered as in
    sessions.csv (session batch times 30 plus place), whose last, incomplete batch is left out."""
    path = Path(source) / "movieReviewSnippets_GroundTruth.txt"
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    words = [split(line.split("\t")[2]) for line in lines[: len(lines) // BATCH * BATCH]]
    items = [k for k, row in enumerate(words) if SHORTEST <= len(row) <= LONGEST]
    kept = blanked([words[k] for k in items])
    write_rows(
        Path(folder) / "reviews.csv",
        ("item", "words"),
        [(k, " ".join(row)) for k, row in zip(items, kept, strict=True)],
    )


if __name__ == "__main__":
    make_reviews(sys.argv[1])
