"""Make the sessions of this pack: `python -m data.human.vader.make FOLDER`, with the files of its
origin; no texts, nothing that identifies a rater.
"""

import json
import sys
from pathlib import Path

from rlgenkit.worlds.human import BATCH, VADER

from ..packs import write_rows


def make_vader(source: str | Path, folder: str | Path = VADER) -> None:
    """Write sessions.csv from movieReviewSnippets_anonDataRatings.txt; the last, incomplete batch
    of 15 sentences is left out."""
    source, folder = Path(source), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = (source / "movieReviewSnippets_anonDataRatings.txt").read_text(encoding="utf-8-sig")
    items = [json.loads(line.split("\t")[3]) for line in text.splitlines()]
    rows = []
    for batch in range(len(items) // BATCH):
        block = items[batch * BATCH : (batch + 1) * BATCH]
        rows += [(batch, " ".join(map(str, person))) for person in zip(*block, strict=True)]
    write_rows(folder / "sessions.csv", ("batch", "ratings"), rows)
    (folder / "LICENSE").write_bytes((source / "LICENSE").read_bytes())


if __name__ == "__main__":
    make_vader(sys.argv[1])
