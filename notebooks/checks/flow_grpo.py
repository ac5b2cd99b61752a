"""Exercises and questions of notebook 02 (Flow-GRPO): references, known mistakes, hints, answers."""

import math

import torch

from rlgenkit import workbook as wb

# --- 02.1: the step of the SDE


def sde_step(x, v, now, after, a, top):
    """Mean [B, ...] and width (a float) of the SDE's step from level `now` to level `after`."""
    s = a * math.sqrt(now / (1 - min(now, top)))
    drift = v + s**2 / (2 * now) * (x + (1 - now) * v)
    return x + drift * (after - now), s * math.sqrt(now - after)


def _uncorrected(x, v, now, after, a, top):
    return x + v * (after - now), sde_step(x, v, now, after, a, top)[1]


def _upward(x, v, now, after, a, top):
    mean, std = sde_step(x, v, now, after, a, top)
    return 2 * x - mean, std


def _added(x, v, now, after, a, top):
    mean, std = sde_step(x, v, now, after, a, top)
    return 2 * (x + v * (after - now)) - mean, std


def _of_noise(x, v, now, after, a, top):
    s = a * math.sqrt(now / (1 - min(now, top)))
    drift = v + s**2 / (2 * now) * (x - now * v)
    return x + drift * (after - now), s * math.sqrt(now - after)


def _rate_as_width(x, v, now, after, a, top):
    s = a * math.sqrt(now / (1 - min(now, top)))
    return sde_step(x, v, now, after, a, top)[0], s


def _linear_width(x, v, now, after, a, top):
    s = a * math.sqrt(now / (1 - min(now, top)))
    return sde_step(x, v, now, after, a, top)[0], s * (now - after)


def _always_top(x, v, now, after, a, top):
    s = a * math.sqrt(now / (1 - top))
    drift = v + s**2 / (2 * now) * (x + (1 - now) * v)
    return x + drift * (after - now), s * math.sqrt(now - after)


def _top_twice(x, v, now, after, a, top):
    level = min(now, top)
    s = a * math.sqrt(level / (1 - level))
    drift = v + s**2 / (2 * now) * (x + (1 - now) * v)
    return x + drift * (after - now), s * math.sqrt(now - after)


def _without_half(x, v, now, after, a, top):
    mean, std = sde_step(x, v, now, after, a, top)
    return 2 * mean - (x + v * (after - now)), std


def _step(generator):
    """A state with its velocity and a step; half of the steps begin at level 1."""
    x, v = (torch.randn(3, 2, 4, 4, generator=generator) for _ in range(2))
    first = (0, 2, 0, 3)[int(torch.randint(4, (1,), generator=generator))]
    levels = [1.0, 0.8, 0.5, 0.35, 0.1]
    return [x, v, levels[first], levels[first + 1], 0.7, levels[1]]


# --- 02.2: group advantages


def group_advantages(rewards, groups):
    """(reward - mean of its group) / (deviation of the batch + 1e-4): [B], Long[B] -> [B]."""
    centered = torch.zeros_like(rewards)
    for group in groups.unique():
        rows = groups == group
        centered[rows] = rewards[rows] - rewards[rows].mean()
    return centered / (rewards.std(correction=0) + 1e-4)


def _whole_batch(rewards, groups):
    return group_advantages(rewards, torch.zeros_like(groups))


def _group_deviation(rewards, groups):
    advantages = torch.zeros_like(rewards)
    for group in groups.unique():
        rows = groups == group
        mean, spread = rewards[rows].mean(), rewards[rows].std(correction=0)
        advantages[rows] = (rewards[rows] - mean) / (spread + 1e-4)
    return advantages


def _only_centered(rewards, groups):
    return group_advantages(rewards, groups) * (rewards.std(correction=0) + 1e-4)


def _of_centered(rewards, groups):
    centered = _only_centered(rewards, groups)
    return centered / (centered.std(correction=0) + 1e-4)


def _sample_deviation(rewards, groups):
    return _only_centered(rewards, groups) / (rewards.std() + 1e-4)


def _no_floor(rewards, groups):
    return _only_centered(rewards, groups) / rewards.std(correction=0)


def _captions(generator):
    """Three pictures each of four captions, not side by side; scores differ by little."""
    groups = torch.arange(12) % 4
    rewards = 0.01 * torch.randn(12, generator=generator) + 0.01 * groups
    rewards[groups == 3] = 0.5
    return [rewards, groups]


# --- 02.3: the clipped terms


def clipped_terms(new, old, advantages, clip):
    """max(-A ratio, -A clipped ratio), a term per picture and step: [B, T], [B, T], [B], float."""
    ratio = (new - old).exp()
    pull = -advantages[:, None]
    return torch.maximum(pull * ratio, pull * ratio.clamp(1 - clip, 1 + clip))


def _smaller(new, old, advantages, clip):
    ratio = (new - old).exp()
    pull = -advantages[:, None]
    return torch.minimum(pull * ratio, pull * ratio.clamp(1 - clip, 1 + clip))


def _only_clipped(new, old, advantages, clip):
    return -advantages[:, None] * (new - old).exp().clamp(1 - clip, 1 + clip)


def _never_clipped(new, old, advantages, clip):
    return -advantages[:, None] * (new - old).exp()


def _chain(new, old, advantages, clip):
    whole = (new - old).sum(1, keepdim=True).expand_as(new)
    return clipped_terms(whole, torch.zeros_like(whole), advantages, clip)


def _ascent(new, old, advantages, clip):
    return clipped_terms(new, old, -advantages, clip)


def _wrong_axis(new, old, advantages, clip):
    return clipped_terms(new.T, old.T, advantages, clip).T


def _quotient(new, old, advantages, clip):
    return clipped_terms((new / old).log(), torch.zeros_like(old), advantages, clip)


def _update(generator):
    """As many pictures as steps, so that advantages along the wrong axis show."""
    old = torch.randn(6, 6, generator=generator)
    new = (old + 0.2 * torch.randn(6, 6, generator=generator)).requires_grad_(True)
    return [new, old, torch.randn(6, generator=generator), 0.1]


# --- 02.4: the loss of NFT


def _branch_error(velocity, target, times):
    gap = (velocity - target).flatten(1) * times[:, None]
    size = gap.detach().abs().mean(1).clamp(min=1e-5)
    return gap.square().mean(1) / size


def nft_terms(new, old, target, optimality, times, b=1.0):
    """Velocities [B, ...], optimality [B] in 0..1, times [B], strength b -> loss [B]."""
    old = old.detach()
    toward, away = (1 - b) * old + b * new, (1 + b) * old - b * new
    good = optimality * _branch_error(toward, target, times)
    bad = (1 - optimality) * _branch_error(away, target, times)
    return (good + bad) / b


def _attached(new, old, target, optimality, times, b=1.0):
    toward, away = (1 - b) * old + b * new, (1 + b) * old - b * new
    good = optimality * _branch_error(toward, target, times)
    bad = (1 - optimality) * _branch_error(away, target, times)
    return (good + bad) / b


def _swapped(new, old, target, optimality, times, b=1.0):
    return nft_terms(new, old, target, 1 - optimality, times, b)


def _unscaled(new, old, target, optimality, times, b=1.0):
    return b * nft_terms(new, old, target, optimality, times, b)


def _positive_only(new, old, target, optimality, times, b=1.0):
    toward = (1 - b) * old.detach() + b * new
    return optimality * _branch_error(toward, target, times) / b


def _subtracted(new, old, target, optimality, times, b=1.0):
    toward = (1 - b) * old.detach() + b * new
    return (2 * optimality - 1) * _branch_error(toward, target, times) / b


def _no_mirror(new, old, target, optimality, times, b=1.0):
    old = old.detach()
    toward, away = (1 - b) * old + b * new, (1 - b) * old - b * new
    good = optimality * _branch_error(toward, target, times)
    bad = (1 - optimality) * _branch_error(away, target, times)
    return (good + bad) / b


def _plain(new, old, target, optimality, times, b=1.0):
    old = old.detach()
    toward, away = (1 - b) * old + b * new, (1 + b) * old - b * new
    good, bad = ((x - target).flatten(1).square().mean(1) for x in (toward, away))
    return (optimality * good + (1 - optimality) * bad) / b


def _velocities(generator):
    """Three velocities, two of which could carry gradients, and a strength below 1."""
    new, old, target = (torch.randn(4, 2, 3, 3, generator=generator) for _ in range(3))
    optimality, times = (torch.rand(4, generator=generator) for _ in range(2))
    return [new.requires_grad_(True), old.requires_grad_(True), target, optimality, times, 0.6]


# --- 02.5: the forgotten drift


def repaired_step(k, now, after, s):
    """Gain and width of the SDE's step where the exact velocity is v = k x."""
    drift = k + s**2 / (2 * now) * (1 + (1 - now) * k)
    return 1 + drift * (after - now), s * math.sqrt(now - after)


def _forgotten(k, now, after, s):
    return 1 + k * (after - now), s * math.sqrt(now - after)


def _twice(k, now, after, s):
    drift = k + s**2 / now * (1 + (1 - now) * k)
    return 1 + drift * (after - now), s * math.sqrt(now - after)


def _wrong_way(k, now, after, s):
    drift = k - s**2 / (2 * now) * (1 + (1 - now) * k)
    return 1 + drift * (after - now), s * math.sqrt(now - after)


def _line(generator):
    """A slope, two levels and a noise, as floats."""
    draw = torch.rand(3, generator=generator).tolist()
    return [draw[0] - 0.5, 0.5 + 0.4 * draw[1], 0.2 + 0.2 * draw[2], 0.3]


# --- 02.6: the lowest point of the plain loss


def best_velocity(old, target, optimality, b):
    """The velocity [B, D] of least o |v+ - v|^2 + (1 - o) |v- - v|^2; optimality [B]."""
    return old + (2 * optimality[:, None] - 1) * (target - old) / b


def _without_strength(old, target, optimality, b):
    return old + (2 * optimality[:, None] - 1) * (target - old)


def _never_away(old, target, optimality, b):
    return old + optimality[:, None] * (target - old) / b


def _from_zero(old, target, optimality, b):
    return (2 * optimality[:, None] - 1) * (target - old) / b


def _times_strength(old, target, optimality, b):
    return old + b * (2 * optimality[:, None] - 1) * (target - old)


def _parabola(generator):
    """Old velocity and target [4, 6], optimality [4] on both sides of 1/2, a strength."""
    old, target = (torch.randn(4, 6, generator=generator) for _ in range(2))
    strength = 0.3 + 0.6 * torch.rand(1, generator=generator).item()
    return [old, target, torch.rand(4, generator=generator), strength]


# --- questions


def _any_way(seed):
    """Whether small random moves of a mean make some drawn points likelier and others less."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(64, 512, generator=generator)
    moved = drawn - 0.02 * torch.randn(64, 512, generator=generator)
    change = (drawn**2 - moved**2).mean(1) / 2
    return bool((change > 0).any() and (change < 0).any())


def _vanishes(seed):
    """Whether the deviation of scores within a group from one start goes to 0 with the noise."""
    generator = torch.Generator().manual_seed(seed)
    spreads = []
    for a in (0.01, 0.7):
        path = torch.full((256,), 0.3)
        for _ in range(6):
            path = 0.9 * path + a * 0.4 * torch.randn(256, generator=generator)
        spreads.append((path > 0.5).float().std())
    return bool(spreads[0] < 0.05 * spreads[1])


EXERCISES = {
    "02.1": wb.Exercise(
        reference=sde_step, inputs=_step, trials=8, minutes=10, difficulty=2,
        wrong={
            "the noise comes on top: the drift must take it out again (second part of the bracket)":
                _uncorrected,
            "sampling goes down: the time step `after - now` is negative": _upward,
            "the second part of the bracket has the sign of the velocity": _added,
            "E[x1 | x] is x + (1 - t) v; x - t v is the clean latent": _of_noise,
            "the width of a step is s times the root of its length": _rate_as_width,
            "the width grows with the root of the length, not with the length": _linear_width,
            "`top` stands in for a level of 1 only: take the smaller of the two": _always_top,
            "`top` belongs to the denominator alone: the numerator of the root is the level itself":
                _top_twice,
            "the second part of the bracket is s^2 / (2 t), not s^2 / t": _without_half,
        },
        hints=["Compute s first, then the bracket, then the mean. `after - now` is -Delta.",
               "The root holds now / (1 - min(now, top)); min(now, top) is the level itself everywhere "
               "but at the first step."]),
    "02.2": wb.Exercise(
        reference=group_advantages, inputs=_captions, minutes=5, difficulty=1,
        wrong={
            "the baseline is the mean of the picture's own group": _whole_batch,
            "the divisor is one for the whole batch, not one a group": _group_deviation,
            "divide by the deviation of the batch": _only_centered,
            "the deviation of the rewards, before their group means are taken off": _of_centered,
            "take the population deviation (divide by n): `correction=0`": _sample_deviation,
            "add 1e-4 to the deviation": _no_floor,
        },
        hints=["Go through `groups.unique()` and fill in the rows of one group at a time.",
               "The division comes last, once for all."]),
    "02.3": wb.Exercise(
        reference=clipped_terms, inputs=_update, minutes=10, difficulty=2,
        wrong={
            "the loss is the *larger* of the two terms, the more pessimistic one": _smaller,
            "the clipped term alone also silences terms that should pull back": _only_clipped,
            "the clipped term is missing": _never_clipped,
            "each step is a term of its own: no product of ratios over the path": _chain,
            "the loss is minimized, so that a good step needs a minus sign": _ascent,
            "an advantage belongs to a picture, the first axis: `advantages[:, None]`":
                _wrong_axis,
            "a ratio of probabilities is the exponential of a difference of log-probabilities":
                _quotient,
        },
        hints=["What turns a difference of log-probabilities into a ratio?",
               "Of two losses the larger is the pessimistic one."]),
    "02.4": wb.Exercise(
        reference=nft_terms, inputs=_velocities, minutes=10, difficulty=3,
        wrong={
            "the old velocity is data: detach it": _attached,
            "good pictures (optimality near 1) belong to the branch toward the new velocity":
                _swapped,
            "divide by b": _unscaled,
            "the second branch is missing: it is what bad pictures teach": _positive_only,
            "the branch away from the new velocity has an error of its own; a negative error has "
            "no lowest point": _subtracted,
            "the mirror image of the new velocity is (1 + b) old - b new": _no_mirror,
            "the error of a branch is `branch_error`, not the plain mean square": _plain,
        },
        hints=["toward and away lie on both sides of the old velocity, b times the change apart.",
               "`branch_error` returns [B], the optimality is [B]."]),
    "02.5": wb.Exercise(
        reference=repaired_step, inputs=_line, minutes=8, difficulty=3,
        wrong={
            "that is the bug: noise without its drift": _forgotten,
            "half of s^2: noise of width s adds s^2/2 times the second derivative of the density":
                _twice,
            "the correction pulls the other way: time runs down": _wrong_way,
        },
        hints=["Noise adds s^2/2 times the second derivative of p to the Fokker-Planck equation. A "
               "drift of s^2/2 times the derivative of log p cancels it.",
               "The derivative of log p is -(x + (1 - t) v) / t, and v = k x."]),
    "02.6": wb.Exercise(
        reference=best_velocity, inputs=_parabola, minutes=10, difficulty=3,
        wrong={
            "the branches are b times the change apart: divide by b": _without_strength,
            "below optimality 1/2 the best velocity lies on the far side of the old one":
                _never_away,
            "start from the old velocity": _from_zero,
            "a large b makes a small step: divide by b": _times_strength,
        },
        hints=["Write v = old + d and set the derivative with respect to d to zero.",
               "The two squares are |b d - g|^2 and |-b d - g|^2 with g = target - old."]),
}

QUIZZES = {
    "02.q1": wb.Quiz(
        "All weights were shaken a little, in random directions. What do the four ratios become?",
        ["below 1, since the steps were drawn by the old weights",
         "above 1 for the good pictures and below 1 for the bad ones",
         "exactly 1, since the pictures are already drawn",
         "above 1 for some pictures and below 1 for others"],
        3, "Nobody told the weights where to go. A drawn latent lies beside the mean of its step, "
        "so a small move of the mean may come nearer to it or go away.", holds=_any_way),
    "02.q2": wb.Quiz(
        "How many pictures must the model draw and have scored until NFT's exact answers have "
        "risen clearly?",
        ["about a hundred: one round shows what is missing",
         "a few thousand",
         "about fifty thousand",
         "a few million, as in the pretraining of such models"],
        1, "A score says how good a whole picture is, not what is wrong with it, and most of the "
        "differences within a group are luck. The curves of section 9 have risen clearly after "
        "24 rounds of 96 pictures. The paper takes more than a million for a large model."),
    "02.q3": wb.Quiz(
        "5e-5 is the main rate. What happens within 40 rounds at 1e-3, twenty times as much?",
        ["it learns twenty times as fast",
         "it learns as fast, since gradients are clipped",
         "exact answers fall: the pictures no longer follow their captions",
         "nothing: the updates cancel each other"],
        2, "Each update then moves the weights further than the scores of 48 pictures can justify. "
        "What they say about luck is followed as far as what they say about the caption."),
    "02.q4": wb.Quiz(
        "The pictures of a group start from one noise, and the noise of the steps goes to 0. What "
        "becomes of the group's advantages, with the divisor of section 4?",
        ["they grow, since log-probabilities grow",
         "they stay: advantages are standardized",
         "they vanish: all paths coincide"],
        2, "Equal paths have equal scores, so every score is its group's mean. The divisor is the "
        "deviation of the batch, which other captions keep above 0. Divided by the group's own "
        "deviation they would stay until the very end.", holds=_vanishes),
}
