"""Exercises and questions of notebook 40 (AttriCtrl): references, known mistakes, hints, answers."""

import json
from pathlib import Path

import torch

from rlgenkit import workbook as wb

# --- 40.1: normalized ranks


def normalized_ranks(scores):
    """(rank - 1/2) / n, equal scores share their mean rank: [N] -> [N]."""
    below = (scores[None] < scores[:, None]).sum(1)
    equal = (scores[None] == scores[:, None]).sum(1)
    return (below + equal / 2) / len(scores)


def _from_zero(scores):
    return scores.argsort().argsort() / len(scores)


def _no_mean(scores):
    return (scores.argsort().argsort() + 0.5) / len(scores)


def _min_max(scores):
    return (scores - scores.min()) / (scores.max() - scores.min())


def _order_not_rank(scores):
    return (scores.argsort() + 0.5) / len(scores)


def _falling(scores):
    return 1 - normalized_ranks(scores)


def _one_more(scores):
    return normalized_ranks(scores) + 0.5 / len(scores)


def _lowest_of_equals(scores):
    return ((scores[None] < scores[:, None]).sum(1) + 0.5) / len(scores)


def _highest_of_equals(scores):
    return ((scores[None] <= scores[:, None]).sum(1) - 0.5) / len(scores)


def _without_gaps(scores):
    place = scores.unique(return_inverse=True)[1]
    return (place + 0.5) / (place.max() + 1)


def _both_ends(scores):
    return (normalized_ranks(scores) * len(scores) - 0.5) / (len(scores) - 1)


def _some_scores(generator):
    scores = torch.randn(9, generator=generator)
    scores[4] = scores[1]
    return [scores]


# --- 40.2: the sinusoid


def sinusoid(values, factor, wide=256):
    """Cosines, then sines, of factor x values at wide/2 speeds: [B] -> [B, wide]."""
    half = wide // 2
    speeds = 10_000 ** (-torch.arange(half) / half)
    angles = factor * values[:, None] * speeds
    return torch.cat([angles.cos(), angles.sin()], 1)


def _sines_first(values, factor, wide=256):
    half = wide // 2
    return sinusoid(values, factor, wide).roll(half, 1)


def _without_factor(values, factor, wide=256):
    return sinusoid(values, 1.0, wide)


def _half_speeds(values, factor, wide=256):
    half = wide // 2
    angles = factor * values[:, None] * 10_000 ** (-torch.arange(half) / wide)
    return torch.cat([angles.cos(), angles.sin()], 1)


def _to_the_end(values, factor, wide=256):
    half = wide // 2
    angles = factor * values[:, None] * 10_000 ** (-torch.arange(half) / (half - 1))
    return torch.cat([angles.cos(), angles.sin()], 1)


def _in_turns(values, factor, wide=256):
    both = sinusoid(values, factor, wide).chunk(2, 1)
    return torch.stack(both, 2).flatten(1)


def _factor_of_the_paper(values, factor, wide=256):
    return sinusoid(values, 1000.0, wide)


def _growing(values, factor, wide=256):
    half = wide // 2
    angles = factor * values[:, None] * 10_000 ** (torch.arange(half) / half)
    return torch.cat([angles.cos(), angles.sin()], 1)


def _from_one(values, factor, wide=256):
    half = wide // 2
    angles = factor * values[:, None] * 10_000 ** (-torch.arange(1, half + 1) / half)
    return torch.cat([angles.cos(), angles.sin()], 1)


def _some_values(generator):
    return [torch.rand(5, generator=generator), 30.0, 12]


# --- 40.3: tokens behind the caption's


def appended(states, mask, tokens):
    """[B, L, d], [B, L], [B, K, d] -> states [B, L + K, d], mask [B, L + K]."""
    seen = torch.ones(tokens.shape[:2], dtype=mask.dtype, device=mask.device)
    return torch.cat([states, tokens.to(states)], 1), torch.cat([mask, seen], 1)


def _masked(states, mask, tokens):
    unseen = torch.zeros(tokens.shape[:2], dtype=mask.dtype)
    return torch.cat([states, tokens], 1), torch.cat([mask, unseen], 1)


def _in_front(states, mask, tokens):
    seen = torch.ones(tokens.shape[:2], dtype=mask.dtype)
    return torch.cat([tokens, states], 1), torch.cat([seen, mask], 1)


def _detached(states, mask, tokens):
    return appended(states, mask, tokens.detach())


def _all_seen(states, mask, tokens):
    states, mask = appended(states, mask, tokens)
    return states, torch.ones_like(mask)


def _old_mask(states, mask, tokens):
    return appended(states, mask, tokens)[0], mask


def _mask_in_front(states, mask, tokens):
    seen = torch.ones(tokens.shape[:2], dtype=mask.dtype)
    return torch.cat([states, tokens], 1), torch.cat([seen, mask], 1)


def _prompts(generator):
    states = torch.randn(2, 4, 3, generator=generator)
    tokens = torch.randn(2, 2, 3, generator=generator).requires_grad_(True)
    return [states, torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]), tokens]


# --- 40.4: the leakage matrix


def slopes(asked, measured):
    """Least-squares slopes of measured [N, A] on asked [N, A]: [measured, asked]."""
    change, moved = asked - asked.mean(0), measured - measured.mean(0)
    return torch.linalg.lstsq(change, moved).solution.T


def _transposed(asked, measured):
    return slopes(asked, measured).T


def _through_zero(asked, measured):
    return torch.linalg.lstsq(asked, measured).solution.T


def _turned_round(asked, measured):
    return slopes(measured, asked)


def _one_by_one(asked, measured):
    change, moved = asked - asked.mean(0), measured - measured.mean(0)
    return moved.T @ change / change.square().sum(0)


def _settings(generator):
    asked = torch.rand(20, 2, generator=generator)
    asked[:, 1] += 0.5 * asked[:, 0]
    truth = torch.tensor([[0.8, 0.1], [-0.2, 0.6]])
    noise = 0.1 * torch.randn(20, 2, generator=generator)
    return [asked, 0.4 + asked @ truth.T + noise]


# --- 40.5: balance


def balanced_chances(scores, bins):
    """Chance of each picture [N], sum 1: all bins with pictures alike: [N], int."""
    place = (scores - scores.min()) / (scores.max() - scores.min()) * bins
    place = place.long().clamp(max=bins - 1)
    counts = torch.bincount(place, minlength=bins)
    return 1 / counts[place] / (counts > 0).sum()


def _by_all_bins(scores, bins):
    used = balanced_chances(scores, bins)
    place = (scores - scores.min()) / (scores.max() - scores.min()) * bins
    return used * len(place.long().clamp(max=bins - 1).unique()) / bins


def _last_alone(scores, bins):
    place = ((scores - scores.min()) / (scores.max() - scores.min()) * bins).long()
    counts = torch.bincount(place)
    return 1 / counts[place] / (counts > 0).sum()


def _not_shared(scores, bins):
    return (balanced_chances(scores, bins) > 0).float() / len(scores)


def _more_of_many(scores, bins):
    chances = 1 / balanced_chances(scores, bins)
    return chances / chances.sum()


def _skewed(generator):
    """Many low scores, empty bins, and a last bin that holds two."""
    scores = torch.randn(30, generator=generator).exp().sort().values
    scores[-2] = 0.97 * scores[-1]
    return [scores, 8]


# --- 40.6: the error that forgives


def slider_error(targets, measured):
    """Mean |target - measured| over all pictures: [T], [T, B] -> number."""
    return (measured - targets[:, None]).abs().mean()


def _mean_first(targets, measured):
    return (measured.mean(1) - targets).abs().mean()


def _squared(targets, measured):
    return (measured - targets[:, None]).square().mean().sqrt()


def _signed(targets, measured):
    return (measured - targets[:, None]).mean().abs()


def _median(targets, measured):
    return (measured - targets[:, None]).abs().median()


def _drawn(generator):
    targets = torch.tensor([0.1, 0.5, 0.9])
    return [targets, targets[:, None] + 0.2 * torch.randn(3, 7, generator=generator)]


def _moving(seed):
    """Whether 32 speeds turn by more than a tenth of a radian (the 33rd by just that)."""
    turns = 10_000.0 ** (-torch.arange(128).double() / 128)
    return int((turns > 0.1 + 1e-9).sum()) == 32


def _always_middle(seed):
    """Whether the mean distance of the five targets from the middle is 0.24."""
    return round(sum(abs(a - 0.5) for a in (0.1, 0.3, 0.5, 0.7, 0.9)) / 5, 3) == 0.24


def _spread_left(seed):
    """Whether a maximizer of the committed study kept more than four fifths of the spread."""
    path = Path(__file__).parents[2] / "data/results/40.json"
    numbers = json.loads(path.read_text(encoding="utf-8"))["numbers"]
    before, after = (numbers[f"spread of brightness, {name}"] for name in ("untrained", "DDPO"))
    return after[seed % len(after)] > 0.8 * before[seed % len(before)]


EXERCISES = {
    "40.1": wb.Exercise(
        reference=normalized_ranks,
        inputs=_some_scores,
        minutes=5,
        difficulty=2,
        wrong={
            "half a rank is missing: the lowest of n gets 1 / 2n, not 0": _from_zero,
            "equal scores must get equal values: the mean of their ranks": _no_mean,
            "only the order counts: scaling from lowest to highest keeps the distances": _min_max,
            "argsort says who comes where, not which rank a score has": _order_not_rank,
            "the highest score gets the highest value": _falling,
            "take half a rank off: the highest of n gets 1 - 1 / 2n": _one_more,
            "equal scores share the mean of their ranks, not the lowest of them": _lowest_of_equals,
            "equal scores share the mean of their ranks, not the highest of them": _highest_of_equals,
            "divide by the number of scores; equal ones take a rank each": _without_gaps,
            "0 and 1 are never reached: divide by n, not by n - 1": _both_ends,
        },
        hints=[
            "Compare all pairs at once: `scores[None] < scores[:, None]` is [N, N].",
            "A score's own equal, itself, counts half.",
        ],
    ),
    "40.2": wb.Exercise(
        reference=sinusoid,
        inputs=_some_values,
        minutes=5,
        difficulty=2,
        wrong={
            "cosines come first": _sines_first,
            "the value is multiplied by the factor": _without_factor,
            "the factor is an argument, not always 1000": _factor_of_the_paper,
            "speeds fall with k: the exponent is negative": _growing,
            "k starts at 0: the fastest speed is 1": _from_one,
            "the exponent is k over half of the width": _half_speeds,
            "the slowest speed is 10000 ** (-(h - 1) / h), not 1 / 10000": _to_the_end,
            "first all cosines, then all sines, not in turns": _in_turns,
        },
        hints=[
            "`torch.arange(half) / half` are the exponents, with a minus.",
            "`values[:, None] * speeds` is [B, wide / 2].",
        ],
    ),
    "40.3": wb.Exercise(
        reference=appended,
        inputs=_prompts,
        minutes=5,
        difficulty=1,
        wrong={
            "the new tokens must be seen: 1 in the mask": _masked,
            "the value's tokens stand behind the caption's": _in_front,
            "the gradient must reach the value's tokens": _detached,
            "the caption's padding stays unseen": _all_seen,
            "the mask must cover the new tokens, too": _old_mask,
            "the ones of the mask stand where the new tokens do: behind": _mask_in_front,
        },
        hints=["Two calls of `torch.cat` along axis 1."],
    ),
    "40.4": wb.Exercise(
        reference=slopes,
        inputs=_settings,
        minutes=10,
        difficulty=3,
        tolerance=1e-4,
        wrong={
            "rows are what was measured, columns what was asked": _transposed,
            "take the means off first: a slope needs a constant beside it": _through_zero,
            "measured depends on asked, not the other way round": _turned_round,
            "both asked values enter at once: one slope after the other mixes them": _one_by_one,
        },
        hints=[
            "`torch.linalg.lstsq(X, Y).solution` has a row for every column of X.",
            "Means: over the rows, `mean(0)`. (With the mean off `asked`, that of `measured` "
            "no longer matters.)",
        ],
    ),
    "40.5": wb.Exercise(
        reference=balanced_chances,
        inputs=_skewed,
        minutes=10,
        difficulty=3,
        wrong={
            "the chances sum to 1: empty bins get no share": _by_all_bins,
            "the highest score belongs to the last bin, not to one of its own": _last_alone,
            "pictures of a crowded bin share its chance": _not_shared,
            "crowded bins make their pictures rarer, not more frequent": _more_of_many,
        },
        hints=[
            "Which bin? Scale to 0..1, times the number of bins, `.long()`.",
            "`torch.bincount(place)` counts the pictures of each bin.",
        ],
    ),
    "40.6": wb.Exercise(
        reference=slider_error,
        inputs=_drawn,
        minutes=5,
        difficulty=2,
        wrong={
            "nothing has changed yet: scatter around the target is still forgiven": _mean_first,
            "the error is a mean of sizes, not of squares": _squared,
            "errors up and down must not cancel": _signed,
            "the mean counts every picture, the median the middle one": _median,
        },
        hints=["In which order do mean and size come?"],
    ),
}

QUIZZES = {
    "40.q1": wb.Quiz(
        "The value goes from 0 to 1, without the factor 1000. How many of the 128 speeds turn "
        "their angle by more than a tenth of a radian?",
        ["4", "32", "96", "128"],
        1,
        "10000 to the power -k/128 is above 0.1 for k below 32. With the factor 1000 all of "
        "them are.",
        holds=_moving,
    ),
    "40.q2": wb.Quiz(
        "An encoder that learned nothing draws pictures around the middle of the scale, whatever "
        "it is asked. What is its error over 0.1, 0.3, 0.5, 0.7 and 0.9 if it hits 0.5 exactly?",
        ["0.10", "0.24", "0.33", "0.50"],
        1,
        "The targets lie 0.4, 0.2, 0, 0.2 and 0.4 from the middle. Scatter around the middle "
        "makes it worse, up to 0.33 for values that are spread evenly.",
        holds=_always_middle,
    ),
    "40.q3": wb.Quiz(
        "Eight rounds of policy gradient reward brightness. How much of its spread over fresh "
        "pictures is left?",
        [
            "less than a fifth: nearly all pictures are white",
            "about a half",
            "more than four fifths",
        ],
        2,
        "In the study the mean value rises from 0.55 to 0.66, and the spread goes from 0.246 to "
        "0.238. A reward has one best answer, but eight rounds are the beginning of the way to it.",
        holds=_spread_left,
    ),
}
