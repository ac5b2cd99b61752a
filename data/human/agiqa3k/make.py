"""Make this pack from data.csv of the origin: `python -m data.human.agiqa3k.make FOLDER`."""

import csv
import sys
from pathlib import Path

from rlgenkit.worlds.human import AGIQA, AGIQA_COLUMNS as COLUMNS

from ..packs import write_rows


def make_agiqa(source: str | Path, folder: str | Path = AGIQA) -> None:
    """Write ratings.csv and LICENSE from data.csv and LICENSE of the origin.

    An image's name there is MODEL_SETTING_NUMBER.jpg; the number is the prompt's.
    """
    source, folder = Path(source), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with open(source / "data.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            generator, number = row["name"].removesuffix(".jpg").rsplit("_", 1)
            values = (
                row[f"{what}_{scale}"] for scale in ("quality", "align") for what in ("mos", "std")
            )
            made.append((int(number), generator, *(f"{float(v):.4f}" for v in values)))
    write_rows(folder / "ratings.csv", COLUMNS, sorted(made))
    (folder / "LICENSE").write_bytes((source / "LICENSE").read_bytes())


if __name__ == "__main__":
    make_agiqa(sys.argv[1])
