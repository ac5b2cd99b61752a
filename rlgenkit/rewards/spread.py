"""Diversity: how far apart the samples of one group lie in a feature space."""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import Scores, scored


def diversity(features: Tensor, groups: Tensor) -> Scores:
    """Mean Euclidean distance [B] of each sample to the others of its group.

    features [B,F] (the reader's `features`), groups Long[B]. A sample alone in
    its group has no neighbor to differ from and is invalid. Usable as a reward term.
    """
    if features.ndim != 2 or groups.shape != features.shape[:1]:
        raise ValueError(
            f"features must be [B,F] with groups [B], got {list(features.shape)} and "
            f"{list(groups.shape)}."
        )
    others = (groups[:, None] == groups) & ~torch.eye(
        len(groups), dtype=torch.bool, device=groups.device
    )
    # The exact form: the matrix-product shortcut of cdist is off by 1e-3 for near twins.
    exact = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(features.float(), features.float(), compute_mode=exact)
    neighbors = others.sum(1)
    return scored((distances * others).sum(1) / neighbors.clamp_min(1), neighbors > 0)


def mean_pairwise_distance(features: Tensor, groups: Tensor) -> Tensor:
    """Mean distance over all pairs within a group, averaged over the groups: scalar, >= 0.

    features [B,F], groups Long[B]. The diversity curve of the training plots; 0 = every group
    has collapsed to one image. nan if no group has two samples.
    """
    scores = diversity(features, groups)
    if not scores.valid.any():
        return torch.tensor(float("nan"), device=features.device)
    ids, index = groups[scores.valid].unique(return_inverse=True)
    sums = torch.zeros(len(ids), device=features.device)
    counts = torch.zeros_like(sums)
    sums.index_add_(0, index, scores.values[scores.valid])
    counts.index_add_(0, index, torch.ones_like(scores.values[scores.valid]))
    return (sums / counts).mean()
