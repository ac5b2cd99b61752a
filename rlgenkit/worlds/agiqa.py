"""AGIQA-3K: how people rate generated images on two scales, quality and fit to the prompt.

Source: lcysyzxdxc/AGIQA-3k-Database (MIT), Li et al. 2023 (2306.04717). Prompts are kept as
numbers, not as texts (some are crude); the mean and spread over raters, nothing about a rater.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .human import DATA, checked_bytes

AGIQA = DATA / "human" / "agiqa3k"
COLUMNS = ("prompt", "generator", "quality", "quality_std", "fit", "fit_std")


@dataclass(frozen=True)
class TwoRatings:
    """N generated images, each with the mean of many people's ratings on two scales.

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
    """The committed ratings; ValueError if the file is missing, changed or malformed."""
    text = checked_bytes(Path(folder) / "ratings.csv").decode("utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    try:
        mean = torch.tensor([[float(r["quality"]), float(r["fit"])] for r in rows])
        spread = torch.tensor([[float(r["quality_std"]), float(r["fit_std"])] for r in rows])
        prompt = torch.tensor([int(r["prompt"]) for r in rows])
        names = sorted({r["generator"] for r in rows})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"ratings.csv needs the columns {', '.join(COLUMNS)} with numbers "
                         f"({error!r})") from error
    if not rows or mean.min() < 0 or mean.max() > 5:
        raise ValueError("ratings.csv needs rows with mean ratings between 0 and 5")
    return TwoRatings(mean, spread, prompt, torch.tensor([names.index(r["generator"]) for r in rows]),
                      tuple(names))
