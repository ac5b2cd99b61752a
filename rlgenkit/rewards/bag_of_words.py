"""Rewards of short texts in a closed vocabulary: ridge regression on words and word pairs.

Texts are Long[B, L] word ids; ids 0, 1, 2 (padding, end, blank) never count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SPECIAL = 3


@dataclass(frozen=True)
class WordScore:
    """words Long[B, L] -> scores [B]: mean + weights of the words, plus those of the known pairs.

    weights [V + P]; pairs Long[P], sorted codes first * V + second; presence: a word that occurs twice
    counts once; limit: scores are cut to +-limit.
    """

    weights: Tensor
    mean: float
    size: int
    pairs: Tensor
    presence: bool = False
    limit: float = float("inf")

    def __call__(self, words: Tensor) -> Tensor:
        found = features(words, self.size, self.pairs, self.presence)
        return (found @ self.weights + self.mean).clamp(-self.limit, self.limit)


def features(words: Tensor, size: int, pairs: Tensor, presence: bool = False) -> Tensor:
    """Counts [B, size + P] of words and neighboring pairs; 0 or 1 with `presence`."""
    found = torch.zeros(len(words), size).scatter_add_(1, words, torch.ones(words.shape))
    found[:, :SPECIAL] = 0
    if len(pairs):
        codes = words[:, :-1] * size + words[:, 1:]
        place = torch.searchsorted(pairs, codes.contiguous()).clamp(max=len(pairs) - 1)
        known = (pairs[place] == codes).float()
        found = torch.cat(
            [found, torch.zeros(len(words), len(pairs)).scatter_add_(1, place, known)], 1
        )
    return found.clamp(max=1) if presence else found


def frequent_pairs(words: Tensor, size: int, count: int) -> Tensor:
    """Sorted codes Long[count] of the most frequent neighboring pairs of words."""
    inside = (words[:, :-1] >= SPECIAL) & (words[:, 1:] >= SPECIAL)
    codes, often = (words[:, :-1] * size + words[:, 1:])[inside].unique(return_counts=True)
    return codes[often.argsort(descending=True, stable=True)[:count]].sort().values


def fit_word_score(
    words: Tensor,
    ratings: Tensor,
    size: int,
    strength: float,
    pairs: Tensor | None = None,
    presence: bool = False,
    limit: float = float("inf"),
) -> WordScore:
    """Ridge regression of ratings [N] on words Long[N, L] over a vocabulary of `size` words.

    A word or pair that never occurs gets the weight 0. ValueError for strength <= 0.
    """
    if strength <= 0:
        raise ValueError(f"strength must be > 0, got {strength}")
    pairs = torch.empty(0, dtype=torch.long) if pairs is None else pairs
    found, mean = features(words, size, pairs, presence), ratings.mean()
    A = found.T @ found + strength * torch.eye(found.shape[1])
    weights = torch.linalg.solve(A, found.T @ (ratings - mean))
    weights = torch.where(found.any(0), weights, 0.0)
    return WordScore(weights, float(mean), size, pairs, presence, limit)
