"""Do predicted probabilities mean what they say? For sparse yes/no feedback, counted per item.

Feedback comes as counts: of trials[i] people who saw item i, positives[i] reacted. A single vote
is trials = 1. Rates are weighted by trials, so that an item seen often counts often.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class CalibrationTable:
    """K bins in the order of prediction: mean prediction, observed rate and trials, all [K]."""

    predicted: Tensor
    observed: Tensor
    trials: Tensor

    def error(self) -> float:
        """Expected calibration error: mean |predicted - observed| over all trials (0 is best)."""
        share = self.trials / self.trials.sum()
        return float(((self.predicted - self.observed).abs() * share).sum())

    def correlation(self) -> float:
        """Pearson's r between predicted and observed rates of the bins, each bin counting once."""
        if len(self.predicted) < 3 or self.predicted.std() == 0 or self.observed.std() == 0:
            raise ValueError("a correlation over bins needs three bins and rates that differ")
        return float(torch.corrcoef(torch.stack([self.predicted, self.observed]))[0, 1])


def calibration_table(
    predicted: Tensor, positives: Tensor, trials: Tensor, bins: int = 10
) -> CalibrationTable:
    """Observed against predicted rates in bins of equal numbers of items (deciles at bins = 10).

    predicted [N] in [0, 1]. Bins of equal width would not do: at a rate of 3 % every prediction
    lies in the first of ten. Source of the measure: Naeini et al. 2015.
    """
    p, k, n = _feedback(predicted, positives, trials)
    if (p < 0).any() or (p > 1).any():
        raise ValueError("predictions must be probabilities in 0..1; apply a sigmoid to logits")
    if not 2 <= bins <= len(p):
        raise ValueError(f"bins must be in 2..{len(p)}, got {bins}")
    where = torch.empty_like(p, dtype=torch.long)
    where[p.argsort(stable=True)] = torch.arange(len(p)) * bins // len(p)
    total = torch.zeros(bins, dtype=p.dtype).index_add(0, where, n)
    hits = torch.zeros_like(total).index_add(0, where, k)
    promised = torch.zeros_like(total).index_add(0, where, n * p)
    return CalibrationTable(promised / total, hits / total, total)


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


def binomial_loss(logits: Tensor, positives: Tensor, trials: Tensor) -> Tensor:
    """Mean cross-entropy per vote (scalar) of rates sigmoid(logits); logits, counts [N] or [..., N].

    With trials = 1 it is binary cross-entropy; with counts the same gradient at a fraction of the
    rows, which is what sparse positives need.
    """
    votes = trials * F.softplus(logits) - positives * logits
    return votes.sum(-1).div(trials.sum(-1)).mean()


def fit_feedback(
    features: Any, positives: Tensor, trials: Tensor, ridge: float = 1.0, steps: int = 100
) -> tuple[np.ndarray, float]:
    """(weights [F], bias) of the logistic model of reaction rates, numpy float64.

    features [N, F]: array, tensor or scipy sparse matrix; the summed loss of all votes (N times
    their mean, as in binomial_loss) plus ridge/2 |weights|^2 is minimized by L-BFGS, the bias is
    free. Logits are features @ weights + bias. Raises ValueError if all votes are equal.
    """
    from scipy.optimize import minimize

    _, k, n = (
        v.numpy()
        for v in _feedback(
            torch.as_tensor(trials).double(), torch.as_tensor(positives), torch.as_tensor(trials)
        )
    )
    x = features.numpy() if isinstance(features, Tensor) else features
    if x.shape[0] != len(n) or ridge <= 0:
        raise ValueError(
            f"one row of features per item and ridge > 0 are needed, got {x.shape[0]} "
            f"rows for {len(n)} items and {ridge}"
        )
    if not 0 < k.sum() < n.sum():
        raise ValueError("all votes are equal; a model of reactions needs both kinds")

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ w[:-1] + w[-1]
        miss = n * np.exp(-np.logaddexp(0, -z)) - k
        value = (n * np.logaddexp(0, z) - k * z).sum() + ridge / 2 * (w[:-1] ** 2).sum()
        return value, np.append(x.T @ miss + ridge * w[:-1], miss.sum())

    start = np.append(np.zeros(x.shape[1]), math.log(k.sum() / (n - k).sum()))
    w = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": steps}).x
    return w[:-1], float(w[-1])


def undo_negative_sampling(logits: Tensor, kept: float) -> Tensor:
    """Logits for the full data from a model trained on a share `kept` (0..1] of the negatives.

    Dropping negatives multiplies the odds by 1 / kept, so log(kept) is added (Elkan 2001, thm. 2).
    """
    if not 0 < kept <= 1:
        raise ValueError(f"kept must be a share in (0, 1], got {kept}")
    return logits + math.log(kept)


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
