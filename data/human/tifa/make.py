"""Make this pack: `python -m data.human.tifa.make TIFA DSG`, the folders of the two origins.

Both rated the same 800 images of five generators: TIFA by two people, DSG by five others. No text, no
worker and no image is kept.
"""

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path

from ..packs import write_rows

NAMES = {
    "mini_dalle": "mini-dalle",
    "stable_diffusion_v1_1": "sd1dot1",
    "stable_diffusion_v1_5": "sd1dot5",
    "stable_diffusion_v2_1": "sd2dot1",
    "vq_diffusion": "vq-diffusion",
}
MATCHERS = ("clipscore_vitb32", "tifa_blip2-flant5xl", "tifa_mplug-large", "meteor")
ANSWERERS = ("mplug", "instructblip", "pali17b")
COLUMNS = (
    *("prompt model pair_1 pair_2 rater_1 rater_2 rater_3 rater_4 rater_5 clipscore").split(),
    *("tifa_blip2 tifa_mplug meteor dsg_mplug dsg_instructblip dsg_pali").split(),
)


def make_tifa(tifa: str | Path, dsg: str | Path, folder: str | Path = Path(__file__).parent):
    """Write ratings.csv, a row an image, and LICENSE.

    dsg_*: share of the questions of DSG answered with yes; empty for the five images of the one
    prompt that has no questions. A rater who did not answer is empty, too.
    """
    tifa, dsg, folder = Path(tifa), Path(dsg), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = (tifa / "human_annotations_with_scores.json").read_text(encoding="utf-8")
    people, item = _people(dsg / "tifa160-likert-anns.csv")
    shares = [_shares(dsg / f"{name}_dsg.csv") for name in ANSWERERS]
    made = []
    for row in json.loads(text).values():
        model = NAMES[row["image_path"].rsplit(".", 1)[0].removeprefix(row["text_id"] + "_")]
        image = model, item[row["text_id"]]
        ratings = (people[image] + [""] * 5)[:5]
        scores = [f"{row[name]:.4f}" for name in MATCHERS]
        answers = [f"{share[image]:.4f}" if image in share else "" for share in shares]
        number = int(item[row["text_id"]].removeprefix("tifa160_"))
        made.append((number, model, *row["human_scores"], *ratings, *scores, *answers))
    write_rows(folder / "ratings.csv", COLUMNS, sorted(made))
    (folder / "LICENSE").write_bytes((tifa / "LICENSE").read_bytes())


def _people(path: Path) -> tuple[dict, dict]:
    """Ratings of each (model, item), and the item of each text."""
    ratings, item = defaultdict(list), {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            ratings[row["t2i_model"], row["item_id"]].append(row["answer"])
            item[row["source_id"]] = row["item_id"]
    return ratings, item


def _shares(path: Path) -> dict:
    """Share of yes among the answers about each (model, item)."""
    said = defaultdict(list)
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["dsg_prompt_split"] == "tifa160":
                answer = row["answer"].strip().lower()
                said[row["t2i_model"], row["item_id"]].append(answer.split()[:1] == ["yes"])
    return {image: sum(yes) / len(yes) for image, yes in said.items()}


if __name__ == "__main__":
    make_tifa(*sys.argv[1:])
