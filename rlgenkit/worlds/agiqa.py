"""AGIQA-3K: how people rate generated images on two scales, quality and fit to the prompt.

Source: lcysyzxdxc/AGIQA-3k-Database (MIT), Li et al. 2023 (2306.04717). Prompts are kept as
numbers, not as texts (some are crude); the mean and spread over raters, nothing about a rater.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .human import DATA, columns

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
    rows = columns(Path(folder) / "ratings.csv", dict(zip(COLUMNS, (int, str, *[float] * 4))))
    mean = torch.tensor([rows["quality"], rows["fit"]]).T.contiguous()
    spread = torch.tensor([rows["quality_std"], rows["fit_std"]]).T.contiguous()
    if mean.min() < 0 or mean.max() > 5:
        raise ValueError("ratings.csv needs mean ratings between 0 and 5")
    names = sorted(set(rows["generator"]))
    generator = torch.tensor([names.index(name) for name in rows["generator"]])
    return TwoRatings(mean, spread, torch.tensor(rows["prompt"]), generator, tuple(names))
