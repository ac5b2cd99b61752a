"""Real people's ratings of generated images (GenEval), as small arrays.

`python -m rlgenkit.worlds.human FOLDER` makes data/human/geneval from the annotation files of
djghosh13/geneval (MIT); only ratings are kept, nothing that identifies a rater, task or time.
"""

import csv
import hashlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

DATA = Path(__file__).resolve().parents[2] / "data"
GENEVAL = DATA / "human" / "geneval"
MODELS = ("sdv2", "if-xl")  # Stable Diffusion 2.1 and DeepFloyd IF-XL
RATERS = 5
COLUMNS = ("model", "prompt", "sample", "rater", "fit", "realism_0", "realism_1")


@dataclass(frozen=True)
class HumanRatings:
    """Ratings of N generated images by five people each; nan = not answered.

    fit [N, 5] caption fit 1..4; realism [N, 5, 2] structural correctness 1..3 of each asked thing
    that the rater saw; model [N] index into MODELS; prompt [N] GenEval prompt index; tags [N] the
    prompt's task, for example "two_object". Raters are unrelated between images.
    """

    fit: Tensor
    realism: Tensor
    model: Tensor
    prompt: Tensor
    tags: tuple[str, ...]


def load_geneval(folder: str | Path = GENEVAL) -> HumanRatings:
    """The committed ratings; ValueError if the files are missing or not those of the manifest."""
    rows = list(csv.DictReader(io.StringIO(_checked(Path(folder) / "ratings.csv"))))
    tasks = {int(r["prompt"]): r["tag"]
             for r in csv.DictReader(io.StringIO(_checked(Path(folder) / "prompts.csv")))}
    keys = [(r["model"], int(r["prompt"]), int(r["sample"])) for r in rows]
    images = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    fit = torch.full((len(images), RATERS), float("nan"))
    realism = torch.full((len(images), RATERS, 2), float("nan"))
    for key, row in zip(keys, rows):
        place = images[key], int(row["rater"])
        fit[place] = _number(row["fit"])
        realism[place] = torch.tensor([_number(row["realism_0"]), _number(row["realism_1"])])
    return HumanRatings(fit, realism,
                        torch.tensor([MODELS.index(m) for m, _, _ in images]),
                        torch.tensor([p for _, p, _ in images]),
                        tuple(tasks[p] for _, p, _ in images))


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
    _write(folder / "ratings.csv", COLUMNS, ratings)
    _write(folder / "prompts.csv", ("prompt", "tag"), [(p, tags[p]) for p in prompts])
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


def _write(path: Path, header: tuple, rows: list[tuple]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _number(text: str) -> float:
    return float(text) if text else float("nan")


def _checked(path: Path) -> str:
    """The file's text, if its bytes are those that data/manifest.json names."""
    if not path.is_file():
        raise ValueError(f"{path.name} is missing in {path.parent.name}; restore it with "
                         f"git checkout -- data/human")
    content = path.read_bytes()
    if path.is_relative_to(DATA) and (DATA / "manifest.json").is_file():
        known = json.loads((DATA / "manifest.json").read_text(encoding="utf-8"))["files"]
        name = f"data/{path.relative_to(DATA).as_posix()}"
        hashes = [row["sha256"] for row in known if row["path"] == name]
        if hashes and hashes[0] != hashlib.sha256(content).hexdigest():
            raise ValueError(f"{name} is not the file that data/manifest.json names; restore it "
                             f"with git checkout -- {name}")
    return content.decode("utf-8")


if __name__ == "__main__":
    make_geneval(sys.argv[1])
