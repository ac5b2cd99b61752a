"""Make this pack from PartiPrompts.tsv of the origin: `python -m data.human.parti.make FOLDER`."""

import csv
import sys
from pathlib import Path

from ..packs import write_rows


def make_parti(source: str | Path, folder: str | Path = Path(__file__).parent) -> None:
    """Write prompts.csv (prompt, category, challenge) and LICENSE; the notes are left out."""
    source, folder = Path(source), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(source / "PartiPrompts.tsv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    made = [(row["Prompt"], row["Category"], row["Challenge"]) for row in rows]
    write_rows(folder / "prompts.csv", ("prompt", "category", "challenge"), made)
    (folder / "LICENSE").write_bytes((source / "LICENSE").read_bytes())


if __name__ == "__main__":
    make_parti(sys.argv[1])
