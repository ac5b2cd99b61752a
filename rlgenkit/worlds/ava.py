"""AVA photographs: how many people gave each a score of 1 to 10 (votes only, no pictures)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .human import DATA, number, table

AVA = DATA / "human" / "ava"
SCORES = tuple(range(1, 11))


@dataclass(frozen=True)
class PhotoVotes:
    """Votes on N photographs of a photography contest: image Long[N], the photograph's number in AVA;
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
