"""AGIQA-3K: how people rate generated images on two scales, quality and fit to the prompt.

Source: lcysyzxdxc/AGIQA-3k-Database (MIT), Li et al. 2023 (2306.04717). Prompts are kept as
numbers, not as texts (some are crude); the mean and spread over raters, nothing about a rater.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .human import DATA, number, table, text

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
    """The committed ratings, or those of a person's own folder (ratings.csv)."""
    score = number(float, 0, 5)
    kinds = dict(zip(COLUMNS, (number(int, 0), text, *[score] * 4)))
    rows = table(Path(folder) / "ratings.csv", kinds)
    mean = torch.tensor([rows["quality"], rows["fit"]]).T.contiguous()
    spread = torch.tensor([rows["quality_std"], rows["fit_std"]]).T.contiguous()
    names = sorted(set(rows["generator"]))
    generator = torch.tensor([names.index(name) for name in rows["generator"]])
    return TwoRatings(mean, spread, torch.tensor(rows["prompt"]), generator, tuple(names))
