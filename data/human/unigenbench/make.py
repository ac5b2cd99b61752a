"""Make this pack from test_prompts_en.csv: `python -m data.human.unigenbench.make FOLDER`."""

import csv
import json
import sys
from pathlib import Path

from rlgenkit.worlds.unigenbench import UNIGENBENCH


def make_unigenbench(source: str | Path, folder: str | Path = UNIGENBENCH) -> None:
    """Write prompts.jsonl and LICENSE; second themes and the form of the sentence are left out."""
    source, folder = Path(source), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(source / "test_prompts_en.csv", newline="", encoding="utf-8") as file:
        made = [json.dumps(_slim(row), ensure_ascii=False) for row in csv.DictReader(file)]
    (folder / "prompts.jsonl").write_text("\n".join(made) + "\n", encoding="utf-8")
    (folder / "LICENSE").write_bytes((source / "LICENSE.txt").read_bytes())


def _slim(row: dict) -> dict:
    about = json.loads(row["sub_dims_en"])
    points = zip(about["Testpoints"], about["Testpoint Description"], strict=True)
    return {
        "prompt": row["prompt_en"].strip(),
        "theme": about["Primary Categories"],
        "subject": about["Subjects"],
        "points": [[name, words.strip()] for name, words in points],
    }


if __name__ == "__main__":
    make_unigenbench(sys.argv[1])
