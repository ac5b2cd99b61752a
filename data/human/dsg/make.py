"""Make this pack: `python -m data.human.dsg.make DSG TIFA`, the folders of the two origins.

TIFA only lends the texts of the 160 prompts. No picture is kept, and of a worker only a number.
"""

import csv
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

from rlgenkit.worlds.dsg import ANSWERERS, DSG, GENERATORS
from rlgenkit.worlds.human import RATERS

from ..packs import write_rows

FILES = {
    "pali": "pali17b_dsg.csv",
    "mplug": "mplug_dsg.csv",
    "instructblip": "instructblip_dsg.csv",
}
QUESTION = ("prompt", "question", "parents", "text", *ANSWERERS)


def make_dsg(source: str | Path, tifa: str | Path, folder: str | Path = DSG) -> None:
    """Write prompts.csv, ratings.csv, questions.csv and LICENSE.

    A worker's number is the place of their identifier in order. A question is no parent of its own
    (seven are in the origin), and of "1, outside" the number is kept. A prompt is one line.
    """
    source, folder = Path(source), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = _rows(source / "tifa160-likert-anns.csv")
    workers = sorted({row["worker_id"] for row in rows})
    ratings, item = defaultdict(lambda: [""] * RATERS), {}
    for row in rows:
        item[row["source_id"]] = prompt = _prompt(row)
        image = prompt, row["t2i_model"]
        ratings[image][workers.index(row["worker_id"])] = row["answer"]
    content = (tifa / "human_annotations_with_scores.json").read_text(encoding="utf-8")
    texts = {
        item[row["text_id"]]: " ".join(row["text"].split()) for row in json.loads(content).values()
    }
    write_rows(folder / "prompts.csv", ("prompt", "text"), sorted(texts.items()))
    columns = ("prompt", "generator", *(f"rater_{k + 1}" for k in range(RATERS)))
    made = [(*image, *people) for image, people in sorted(ratings.items())]
    write_rows(folder / "ratings.csv", columns, made)
    write_rows(folder / "questions.csv", QUESTION, _questions(source))
    (folder / "LICENSE").write_bytes((source / "LICENSE").read_bytes())


def _questions(source: Path) -> list[tuple]:
    """Rows in the order of QUESTION; five answers in the order of GENERATORS in each cell."""
    asked, said = {}, defaultdict(dict)
    for answerer in ANSWERERS:
        for row in _rows(source / FILES[answerer]):
            key = _prompt(row), int(row["question_id"])
            above = sorted({int(k) for k in re.findall(r"\d+", row["dependency_id"])} - {0, key[1]})
            asked[key] = " ".join(map(str, above)), row["question"]
            word = row["answer"].lower().split()[:1]
            said[key][answerer, row["t2i_model"]] = word[0] if word in (["yes"], ["no"]) else "?"
    return [
        (*key, *words, *(" ".join(said[key][a, g] for g in GENERATORS) for a in ANSWERERS))
        for key, words in sorted(asked.items())
    ]


def _rows(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["dsg_prompt_split"] == "tifa160"]


def _prompt(row: dict) -> int:
    return int(row["item_id"].removeprefix("tifa160_"))


if __name__ == "__main__":
    make_dsg(*map(Path, sys.argv[1:]))
