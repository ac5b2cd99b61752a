"""Do predicted scores rank reactions? For sparse yes/no feedback, counted per item.

Feedback comes as counts: of trials[i] people who saw item i, positives[i] reacted. A single vote
is trials = 1. Rates are weighted by trials, so that an item seen often counts often.
"""

import torch
from torch import Tensor


def vote_auroc(scores: Tensor, positives: Tensor, trials: Tensor) -> float:
    """Chance that a random positive vote fell on a higher score than a random negative one.

    scores [N]; votes on equal scores count one half. Counts are exact: no vote is unrolled.
    """
    s, k, n = _feedback(scores, positives, trials)
    level = s.unique(return_inverse=True)[1]
    yes = torch.zeros(int(level.max()) + 1, dtype=s.dtype).index_add(0, level, k)
    no = torch.zeros_like(yes).index_add(0, level, n - k)
    if yes.sum() == 0 or no.sum() == 0:
        raise ValueError("all votes are equal; an AUROC needs positive and negative ones")
    below = no.cumsum(0) - no
    return float((yes * (below + no / 2)).sum() / (yes.sum() * no.sum()))


def _feedback(values: Tensor, positives: Tensor, trials: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All three as float64 [N], or a ValueError."""
    v, k, n = (x.detach().cpu().double() for x in (values, positives, trials))
    if v.ndim != 1 or not v.shape == k.shape == n.shape or not len(v):
        raise ValueError(
            f"values, positives and trials must be [N] with N >= 1, got "
            f"{list(v.shape)}, {list(k.shape)} and {list(n.shape)}"
        )
    if not v.isfinite().all():
        raise ValueError("a predicted value is not finite")
    if (k < 0).any() or (k > n).any() or (n <= 0).any():
        raise ValueError("each item needs trials >= 1 and positives between 0 and trials")
    return v, k, n
