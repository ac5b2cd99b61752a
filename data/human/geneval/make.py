"""Make this pack: `python -m data.human.geneval.make FOLDER`, with the files of its origin.

Only ratings are kept, nothing that identifies a rater, task or time.
"""

import csv
import json
import sys
from pathlib import Path

from rlgenkit.worlds.human import GENEVAL, MODELS

from ..packs import write_rows

COLUMNS = ("model", "prompt", "sample", "rater", "fit", "realism_0", "realism_1")


def make_geneval(source: str | Path, folder: str | Path = GENEVAL) -> None:
    """Write ratings.csv, prompts.csv and LICENSE from annotations_*.csv and the prompt metadata.

    Rows without a caption-fit answer are left out (four of 4,004, torn in the origin).
    """
    source, folder = Path(source), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = (source / "evaluation_metadata.jsonl").read_text(encoding="utf-8")
    tags = [json.loads(line)["tag"] for line in text.splitlines()]
    ratings = [row for name in MODELS for row in _slim(source / f"annotations_{name}.csv", name)]
    prompts = sorted({row[1] for row in ratings})
    write_rows(folder / "ratings.csv", COLUMNS, ratings)
    write_rows(folder / "prompts.csv", ("prompt", "tag"), [(p, tags[p]) for p in prompts])
    (folder / "LICENSE").write_bytes((source / "LICENSE").read_bytes())


def _slim(path: Path, model: str) -> list[tuple]:
    """Rows in the order of COLUMNS; the rater is a number within its image, nothing more."""
    made, seen = [], {}
    with open(path, newline="", encoding="utf-8") as file:  # answers hold carriage returns
        for row in csv.DictReader(file):
            if not row["Answer.task-quality"]:
                continue
            image = int(row["Input.prompt_id"]), int(row["Input.image_id"])
            rater = seen[image] = seen.get(image, -1) + 1
            answers = (row[f"Answer.task-{name}"] for name in ("quality", "real-0", "real-1"))
            made.append((model, *image, rater, *(f"{float(a):g}" if a else "" for a in answers)))
    return made


if __name__ == "__main__":
    make_geneval(sys.argv[1])
