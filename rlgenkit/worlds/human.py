"""Real people's judgments as small arrays: loaders of the packs in data/human.

Each pack's make.py writes it from the files of its origin.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    rows = columns(
        Path(folder) / "ratings.csv",
        {
            "model": MODELS.index,
            "prompt": int,
            "sample": int,
            "rater": int,
            "fit": _number,
            "realism_0": _number,
            "realism_1": _number,
        },
    )
    asked = columns(Path(folder) / "prompts.csv", {"prompt": int, "tag": str})
    tasks = dict(zip(asked["prompt"], asked["tag"]))
    keys = list(zip(rows["model"], rows["prompt"], rows["sample"]))
    images = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    place = torch.tensor([images[key] for key in keys]), torch.tensor(rows["rater"])
    fit = torch.full((len(images), RATERS), float("nan"))
    realism = torch.full((len(images), RATERS, 2), float("nan"))
    fit[place] = torch.tensor(rows["fit"])
    realism[place] = torch.tensor([rows["realism_0"], rows["realism_1"]]).T
    return HumanRatings(
        fit,
        realism,
        torch.tensor([m for m, _, _ in images]),
        torch.tensor([p for _, p, _ in images]),
        tuple(tasks[p] for _, p, _ in images),
    )


def _number(text: str) -> float:
    return float(text) if text else float("nan")


def columns(path: Path, kinds: dict[str, Callable[[str], Any]]) -> dict[str, list]:
    """Columns of a checked CSV file, name -> N values, each read by its kind (int, float, str ...).

    ValueError, in one sentence that names the file, for an absent column, a value that is not of
    its kind, or no row.
    """
    rows = list(csv.DictReader(io.StringIO(checked_bytes(path).decode("utf-8"), newline="")))
    try:
        found = {name: [kind(row[name]) for row in rows] for name, kind in kinds.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path.name} needs the columns {', '.join(kinds)}, with numbers or whole "
            f"numbers where the committed file has them ({error!r})"
        ) from error
    if not rows:
        raise ValueError(f"{path.name} needs rows below its header")
    return found


def checked_bytes(path: Path) -> bytes:
    """The file's bytes, if they are those that data/manifest.json names (ValueError if not)."""
    if not path.is_file():
        raise ValueError(
            f"{path.name} is missing in {path.parent.name}; restore it with "
            f"git checkout -- data/human"
        )
    content = path.read_bytes()
    if path.is_relative_to(DATA) and (DATA / "manifest.json").is_file():
        known = json.loads((DATA / "manifest.json").read_text(encoding="utf-8"))["files"]
        name = f"data/{path.relative_to(DATA).as_posix()}"
        hashes = [row["sha256"] for row in known if row["path"] == name]
        if hashes and hashes[0] != hashlib.sha256(content).hexdigest():
            raise ValueError(
                f"{name} is not the file that data/manifest.json names; restore it "
                f"with git checkout -- {name}"
            )
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
    names = [*VOTES, *(f"adaptive_{name}" for name in VOTES)]
    count = {name: lambda text: int(text) if text != "" else -1 for name in names}
    rows = columns(folder / f"{contest}.csv", count | {"caption": str})
    counts = torch.tensor([rows[name] for name in names]).T.contiguous()
    if (counts < -1).any():
        raise ValueError(f"{contest}.csv has a negative count")
    if (counts[:, :3].sum(1) < 1).any():
        raise ValueError(f"{contest}.csv has a caption without votes; leave such rows out")
    adaptive = counts[:, 3:] if bool((counts[:, 3:] >= 0).all()) else None
    return CaptionVotes(contest, tuple(rows["caption"]), counts[:, :3], adaptive)


VADER = DATA / "human" / "vader"
BATCH = 30  # sentences that one person rated in one session


def load_vader(folder: str | Path = VADER) -> tuple[Tensor, Tensor]:
    """(ratings [N, 30] in -4..4, batch Long[N]): N sessions, each one person's sentiment ratings
    of 30 sentences from film reviews; the sessions of one batch rated the same sentences.

    Source: Hutto and Gilbert 2014 (MIT). That a column is one person within a batch of 30 is not
    in the origin's notes; it is seen in the data (residuals of neighbors correlate at 0.35 inside
    a batch and at -0.05 across its edge).
    """
    whole = {"batch": int, "ratings": lambda text: [int(v) for v in text.split()]}
    rows = columns(Path(folder) / "sessions.csv", whole)
    if any(len(row) != BATCH or max(map(abs, row)) > 4 for row in rows["ratings"]):
        raise ValueError(f"sessions.csv needs {BATCH} ratings between -4 and 4 in every row")
    ratings, batch = torch.tensor(rows["ratings"]), torch.tensor(rows["batch"])
    if (batch < 0).any() or (batch.bincount() == 1).any():
        raise ValueError(
            "sessions.csv needs batch numbers from 0, and two sessions or more in every batch"
        )
    return ratings.float(), batch
