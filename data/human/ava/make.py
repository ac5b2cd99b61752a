"""Make this pack from val.csv of the origin: `python -m data.human.ava.make FOLDER`."""

import csv
import sys
from pathlib import Path

from rlgenkit.worlds.human import AVA, SCORES

from ..packs import write_rows


def make_ava(source: str | Path, folder: str | Path = AVA) -> None:
    """Write votes.csv and LICENSE; the tags are left out. The origin names the scores 1..10 "score2" to
    "score11"."""
    source, folder = Path(source), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(source / "val.csv", newline="", encoding="utf-8") as file:
        rows = [
            (int(r["image_id"]), *(int(r[f"score{k + 1}"]) for k in SCORES))
            for r in csv.DictReader(file)
        ]
    write_rows(folder / "votes.csv", ("image", *map(str, SCORES)), sorted(rows))
    (folder / "LICENSE").write_bytes((source / "LICENSE").read_bytes())


if __name__ == "__main__":
    make_ava(sys.argv[1])
