"""Real people's judgments as small arrays: loaders of the packs in data/human.

Each pack's make.py writes it from the files of its origin. Every pack is read by `table`, from the
committed file or from a person's own folder, with the same checks.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DATA = Path(__file__).resolve().parents[2] / "data"
GENEVAL = DATA / "human" / "geneval"
MODELS = ("sdv2", "if-xl")  # Stable Diffusion 2.1 and DeepFloyd IF-XL
RATERS = 5
MOST = 10**9  # no count or index is larger

# ---- one loader

Reader = Callable[[Any], Any]


def number(kind: type, low: float, high: float = MOST, empty: Any = None) -> Reader:
    """Reads a cell as int or float within low..high; an empty cell as `empty` if that is given."""

    def read(cell: Any) -> Any:
        if cell == "" and empty is not None:
            return empty
        with suppress(TypeError, ValueError):
            found = kind(cell) if isinstance(cell, str) else cell
            if type(found) in (int, kind) and low <= found <= high:
                return found
        what = "whole number" if kind is int else "number"
        raise ValueError(f"needs a {what} from {low} to {high}")

    return read


def one_of(meanings: dict) -> Reader:
    """Reads a cell as what its value means: {"sdv2": 0, "if-xl": 1}."""
    known = {repr(key): meaning for key, meaning in meanings.items()}

    def read(cell: Any) -> Any:
        if repr(cell) not in known:
            raise ValueError(f"needs one of {', '.join(list(known)[:9])}")
        return known[repr(cell)]

    return read


def text(cell: Any) -> str:
    """Reads a cell as a text that is not blank."""
    if not isinstance(cell, str) or not cell.strip():
        raise ValueError("needs a text")
    return cell


def maybe_text(cell: Any) -> str:
    """Reads a cell as a text that may be blank."""
    if not isinstance(cell, str):
        raise ValueError("needs a text")
    return cell


def several(count: int, read: Reader) -> Reader:
    """Reads a cell as `count` values, in a CSV file with spaces between them."""

    def read_all(cell: Any) -> list:
        cells = cell.split() if isinstance(cell, str) else cell
        if not isinstance(cells, list) or len(cells) != count:
            raise ValueError(f"needs {count} values")
        return [read(one) for one in cells]

    return read_all


def table(path: Path, columns: dict[str, Reader]) -> dict[str, list]:
    """Columns of a checked CSV or JSON-lines file: name -> N values as their readers give them.

    ValueError, one sentence that names file, line and column, for whatever is not as declared.
    """
    try:
        content = checked_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} is not UTF-8 at byte {error.start}; save it as UTF-8"
        ) from None
    found: dict[str, list] = {name: [] for name in columns}
    for line, row in (_csv_rows if path.suffix == ".csv" else _json_rows)(path.name, content):
        for name, read in columns.items():
            try:
                if row.get(name) is None:
                    raise ValueError("is missing")
                found[name].append(read(row[name]))
            except ValueError as error:
                raise ValueError(f"{path.name}, line {line}: column {name} {error}") from None
    if not all(found.values()):
        names = ", ".join([*columns][:9] + ["..."] * (len(columns) > 9))
        raise ValueError(f"{path.name} needs rows with the columns {names}")
    return found


def _csv_rows(name: str, content: str) -> Iterator[tuple[int, dict]]:
    rows = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        if len(set(rows.fieldnames or [])) < len(rows.fieldnames or []):
            raise csv.Error("a column stands twice in the header")
        for row in rows:
            if None in row:
                raise csv.Error("more values than columns")
            yield rows.line_num, row
    except csv.Error as error:
        raise ValueError(f"{name}, line {rows.line_num}: {error}") from None


def _json_rows(name: str, content: str) -> Iterator[tuple[int, dict]]:
    for line, written in enumerate(content.split("\n"), 1):
        row = None
        with suppress(ValueError, RecursionError):
            row = json.loads(written or "{}")
        if not isinstance(row, dict):
            raise ValueError(f"{name}, line {line}: needs a JSON object")
        if written.strip():
            yield line, row


def checked_bytes(path: Path) -> bytes:
    """The file's bytes, if they are those that data/manifest.json names (ValueError if not)."""
    path, listed = path.resolve(), DATA / "manifest.json"
    inside = path.is_relative_to(DATA)
    name = f"data/{path.relative_to(DATA).as_posix()}" if inside else path.name
    restore = "; restore it " + (f"with git checkout -- {name}" if inside else "or name another")
    if not path.is_file():
        raise ValueError(f"{name} is missing in {path.parent.name or 'the folder'}{restore}")
    content = path.read_bytes()
    if inside and listed.is_file():
        known = json.loads(listed.read_text(encoding="utf-8"))["files"]
        hashes = {row["path"]: row["sha256"] for row in known}
        if hashes.get(name, "") not in ("", hashlib.sha256(content).hexdigest()):
            raise ValueError(f"{name} is not the file that data/manifest.json names{restore}")
    return content


def embeddings_of(folder: Path, name: str, shape: tuple[int, ...]) -> Tensor | None:
    """The array `name` [*shape, D] of embeddings.safetensors in single precision, None without such
    a file; ValueError, one sentence, for any other shape and for numbers that are not finite."""
    path = folder / "embeddings.safetensors"
    if not path.is_file():
        return None
    from safetensors import SafetensorError
    from safetensors.torch import load

    found = torch.empty(0)
    with suppress(SafetensorError, KeyError):
        found = load(checked_bytes(path))[name].float()
    if found.shape[:-1] != shape or not found.isfinite().all():
        raise ValueError(
            f"embeddings.safetensors needs finite numbers [{', '.join(map(str, shape))}, D] named "
            f"{name}; make it again or delete it"
        )
    return found


# ---- the packs


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
    """The committed ratings, or those of a person's own folder (ratings.csv, prompts.csv)."""
    index, fit = number(int, 0), number(float, 1, 4, float("nan"))
    real = number(float, 1, 3, float("nan"))
    asked = table(Path(folder) / "prompts.csv", {"prompt": index, "tag": text})
    tasks = dict(zip(asked["prompt"], asked["tag"]))
    kinds = {
        "model": one_of({name: k for k, name in enumerate(MODELS)}),
        "prompt": one_of({str(prompt): prompt for prompt in tasks}),
        "sample": index,
        "rater": number(int, 0, RATERS - 1),
        "fit": fit,
        "realism_0": real,
        "realism_1": real,
    }
    rows = table(Path(folder) / "ratings.csv", kinds)
    keys = list(zip(rows["model"], rows["prompt"], rows["sample"]))
    images = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    place = torch.tensor([images[key] for key in keys]), torch.tensor(rows["rater"])
    if len(set(zip(keys, rows["rater"]))) < len(keys):
        raise ValueError("ratings.csv has two rows of one rater for one image")
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
    kinds = {name: number(int, 0, empty=-1 if name not in VOTES else None) for name in names}
    rows = table(folder / f"{contest}.csv", kinds | {"caption": text})
    counts = torch.tensor([rows[name] for name in names]).T.contiguous()
    if (counts[:, :3].sum(1) < 1).any():
        raise ValueError(f"{contest}.csv has a caption without votes; leave such rows out")
    voted = counts[:, 3:] >= 0
    if voted.any() and not voted.all():
        raise ValueError(f"{contest}.csv needs adaptive votes in every row or in none")
    adaptive = counts[:, 3:] if bool(voted.all()) else None
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
    kinds = {"batch": number(int, 0, 10**6), "ratings": several(BATCH, number(int, -4, 4))}
    rows = table(Path(folder) / "sessions.csv", kinds)
    ratings, batch = torch.tensor(rows["ratings"]), torch.tensor(rows["batch"])
    if (batch.bincount() < 2).any():
        raise ValueError(
            "sessions.csv needs batch numbers from 0, and two sessions or more in every batch"
        )
    return ratings.float(), batch


AGIQA = DATA / "human" / "agiqa3k"
AGIQA_COLUMNS = ("prompt", "generator", "quality", "quality_std", "fit", "fit_std")


@dataclass(frozen=True)
class TwoRatings:
    """N generated images of AGIQA-3K, each with the mean of many people's ratings on two scales.

    mean [N, 2] quality and fit to the prompt, 0..5; spread [N, 2] their standard deviations over
    raters; prompt Long[N] 0..299; generator Long[N] index into generators, N names such as
    "midjourney_normal" (model and setting).
    """

    mean: Tensor
    spread: Tensor
    prompt: Tensor
    generator: Tensor
    generators: tuple[str, ...]


def load_agiqa(folder: str | Path = AGIQA) -> TwoRatings:
    """The committed ratings, or those of a person's own folder (ratings.csv).

    Source: Li et al. 2023 (2306.04717, MIT). Prompts are kept as numbers, not as texts (some are
    crude); of the raters only mean and spread.
    """
    score = number(float, 0, 5)
    kinds = dict(zip(AGIQA_COLUMNS, (number(int, 0), text, *[score] * 4)))
    rows = table(Path(folder) / "ratings.csv", kinds)
    mean = torch.tensor([rows["quality"], rows["fit"]]).T.contiguous()
    spread = torch.tensor([rows["quality_std"], rows["fit_std"]]).T.contiguous()
    names = sorted(set(rows["generator"]))
    generator = torch.tensor([names.index(name) for name in rows["generator"]])
    return TwoRatings(mean, spread, torch.tensor(rows["prompt"]), generator, tuple(names))


AVA = DATA / "human" / "ava"
SCORES = tuple(range(1, 11))


@dataclass(frozen=True)
class PhotoVotes:
    """Votes on N photographs of AVA, photography contests (votes only, no pictures): image Long[N], the photograph's number in AVA;
    votes Long[N, 10], how many people gave each score from 1 to 10."""

    image: Tensor
    votes: Tensor


def load_ava(folder: str | Path = AVA) -> PhotoVotes:
    """The committed votes on 12,775 photographs (the validation part of AVA)."""
    names = ["image", *map(str, SCORES)]
    rows = table(Path(folder) / "votes.csv", dict.fromkeys(names, number(int, 0)))
    votes = torch.tensor([rows[name] for name in names[1:]]).T.contiguous()
    if (votes.sum(1) < 1).any():
        raise ValueError("votes.csv needs a vote in each row")
    return PhotoVotes(torch.tensor(rows["image"]), votes)
