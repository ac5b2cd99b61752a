"""Real people's judgments as small arrays: loaders of the packs in data/human.

Each pack's make.py writes it from the files of its origin.
"""

import csv
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

DATA = Path(__file__).resolve().parents[2] / "data"
GENEVAL = DATA / "human" / "geneval"
MODELS = ("sdv2", "if-xl")  # Stable Diffusion 2.1 and DeepFloyd IF-XL
RATERS = 5


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


def _number(text: str) -> float:
    return float(text) if text else float("nan")


def _checked(path: Path) -> str:
    """The file's text, if its bytes are those that data/manifest.json names."""
    return checked_bytes(path).decode("utf-8")


def checked_bytes(path: Path) -> bytes:
    """The file's bytes, if they are those that data/manifest.json names (ValueError if not)."""
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
    return content


CAPTIONS = DATA / "human" / "captions"
CONTESTS = (514, 518, 519, 540)  # 540 has no adaptive votes
VOTES = ("unfunny", "somewhat_funny", "funny")


@dataclass(frozen=True)
class CaptionVotes:
    """One cartoon's N captions and the crowd's votes; texts can be crude, filter what you show.

    votes [N, 3] counts in the order of VOTES under unbiased exposure (every caption equally
    often); adaptive [N, 3] counts from a bandit that shows the funny ones more, or None.
    """

    contest: int
    texts: tuple[str, ...]
    votes: Tensor
    adaptive: Tensor | None


def load_captions(contest: int = 540, folder: str | Path = CAPTIONS) -> CaptionVotes:
    """The committed votes of one contest of CONTESTS (New Yorker caption contest, CC BY 4.0)."""
    folder = Path(folder)
    if folder == CAPTIONS and contest not in CONTESTS:
        raise ValueError(f"there is no contest {contest}; choose one of {CONTESTS}")
    rows = list(csv.DictReader(io.StringIO(_checked(folder / f"{contest}.csv"), newline="")))
    names = [*VOTES, *(f"adaptive_{name}" for name in VOTES)]
    counts = _whole_numbers(rows, names, f"{contest}.csv")
    if (counts[:, :3].sum(1) < 1).any():
        raise ValueError(f"{contest}.csv has a caption without votes; leave such rows out")
    adaptive = counts[:, 3:] if bool((counts[:, 3:] >= 0).all()) else None
    return CaptionVotes(contest, tuple(r["caption"] for r in rows), counts[:, :3], adaptive)


VADER = DATA / "human" / "vader"
BATCH = 30  # sentences that one person rated in one session


def load_vader(folder: str | Path = VADER) -> tuple[Tensor, Tensor]:
    """(ratings [N, 30] in -4..4, batch Long[N]): N sessions, each one person's sentiment ratings
    of 30 sentences from film reviews; the sessions of one batch rated the same sentences.

    Source: Hutto and Gilbert 2014 (MIT). That a column is one person within a batch of 30 is not
    in the origin's notes; it is seen in the data (residuals of neighbors correlate at 0.35 inside
    a batch and at -0.05 across its edge).
    """
    rows = list(csv.DictReader(io.StringIO(_checked(Path(folder) / "sessions.csv"))))
    try:
        ratings = torch.tensor([[int(v) for v in r["ratings"].split()] for r in rows])
        batch = torch.tensor([int(r["batch"]) for r in rows])
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError("sessions.csv needs the columns batch and ratings, the latter with "
                         f"{BATCH} whole numbers") from error
    if ratings.ndim != 2 or ratings.shape[1] != BATCH or ratings.abs().max() > 4:
        raise ValueError(f"sessions.csv needs {BATCH} ratings between -4 and 4 in every row")
    if (batch < 0).any() or (batch.bincount() == 1).any():
        raise ValueError("sessions.csv needs batch numbers from 0, and two sessions or more in every batch")
    return ratings.float(), batch


def _whole_numbers(rows: list[dict], names: list[str], file: str) -> Tensor:
    """Long [N, K] of the named columns, -1 where empty; ValueError names the file."""
    if not rows or not {*names, "caption"} <= set(rows[0]):
        raise ValueError(f"{file} needs rows and the columns {', '.join([*names, 'caption'])}")
    try:
        numbers = torch.tensor([[int(r[k]) if r[k] != "" else -1 for k in names] for r in rows])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} has a count that is no whole number: {error}") from error
    if (numbers < -1).any():
        raise ValueError(f"{file} has a negative count")
    return numbers
