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


def vote_moments(votes: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, unbiased variance) float32 [N] of the people's scores, 1..10 mapped to 0..1; the variance is
    nan where there is one vote."""
    places = (torch.arange(votes.shape[1], dtype=torch.float64)) / (votes.shape[1] - 1)
    count = votes.sum(1).double()
    mean = votes.double() @ places / count
    spread = (votes * (places[None] - mean[:, None]).square()).sum(1) / (count - 1)
    return mean.float(), spread.float()


def vote_duels(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """(share of duels won [B], the Gaussian formula's share [B]), float64: how often one person's score of
    the first photograph exceeds another person's of the second (ties count half), votes [B, 10] each,
    and Phi((mean_1 - mean_2) / sqrt(var_1 + var_2)).
    """
    one, two = (v.double() / v.sum(1, keepdim=True) for v in (first, second))
    won = (one * (two.cumsum(1) - 0.5 * two)).sum(1)
    (m1, v1), (m2, v2) = vote_moments(first), vote_moments(second)
    return won, torch.special.ndtr(((m1 - m2) / (v1 + v2).sqrt()).double())
