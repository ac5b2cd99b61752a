"""Exercises and questions of notebook 39 (TDM-R1): references, known mistakes, hints, answers."""

import torch

from rlgenkit import workbook as wb


def _per_row(values, like):
    return values.view(-1, *[1] * (like.ndim - 1))


# --- 39.1: noise a state further


def renoise_from(state, level, later, noise):
    """States and noise [B, ...], levels [B], level < later -> noised states [B, ...]."""
    keep = (1 - later) / (1 - level)
    width = (later**2 - (keep * level) ** 2).sqrt()
    return _per_row(keep, state) * state + _per_row(width, state) * noise


def _from_clean(state, level, later, noise):
    return _per_row(1 - later, state) * state + _per_row(later, state) * noise


def _all_new(state, level, later, noise):
    keep = (1 - later) / (1 - level)
    return _per_row(keep, state) * state + _per_row(later, state) * noise


def _difference(state, level, later, noise):
    keep = (1 - later) / (1 - level)
    return _per_row(keep, state) * state + _per_row(later - keep * level, state) * noise


def _unscaled_old(state, level, later, noise):
    keep = (1 - later) / (1 - level)
    width = (later**2 - level**2).sqrt()
    return _per_row(keep, state) * state + _per_row(width, state) * noise


def _variance(state, level, later, noise):
    keep = (1 - later) / (1 - level)
    width = later**2 - (keep * level) ** 2
    return _per_row(keep, state) * state + _per_row(width, state) * noise


def _inverse(state, level, later, noise):
    keep = (1 - level) / (1 - later)
    width = ((later**2 - (keep * level) ** 2).abs()).sqrt()
    return _per_row(keep, state) * state + _per_row(width, state) * noise


def _first_level(state, level, later, noise):
    return renoise_from(state, level[:1].expand_as(level), later, noise)


def _levels(generator):
    """States and noise [4, 3, 2], own levels (0 among them) and later ones."""
    state, noise = (torch.randn(4, 3, 2, generator=generator) for _ in range(2))
    level = torch.tensor([0.0, 0.25, 0.5, 0.4])
    later = level + 0.05 + (0.9 - level) * torch.rand(4, generator=generator)
    return [state, level, later, noise]


# --- 39.2: the velocity target


def velocity_target(state, level, later, noise):
    """Derivative of the noised state by the later level: [B, ...]."""
    keep = (1 - later) / (1 - level)
    width = (later**2 - (keep * level) ** 2).sqrt()
    slope = (later + level**2 * keep / (1 - level)) / width
    return _per_row(slope, state) * noise - state / _per_row(1 - level, state)


def _noise_less_state(state, level, later, noise):
    return noise - state


def _minus_inside(state, level, later, noise):
    keep = (1 - later) / (1 - level)
    width = (later**2 - (keep * level) ** 2).sqrt()
    slope = (later - level**2 * keep / (1 - level)) / width
    return _per_row(slope, state) * noise - state / _per_row(1 - level, state)


def _only_later(state, level, later, noise):
    keep = (1 - later) / (1 - level)
    width = (later**2 - (keep * level) ** 2).sqrt()
    return _per_row(later / width, state) * noise - state / _per_row(1 - level, state)


def _times_width(state, level, later, noise):
    keep = (1 - later) / (1 - level)
    width = (later**2 - (keep * level) ** 2).sqrt()
    slope = (later + level**2 * keep / (1 - level)) * width
    return _per_row(slope, state) * noise - state / _per_row(1 - level, state)


def _plain_noise(state, level, later, noise):
    return noise - state / _per_row(1 - level, state)


def _whole_state(state, level, later, noise):
    return velocity_target(state, level, later, noise) + state / _per_row(1 - level, state) - state


def _added_state(state, level, later, noise):
    return velocity_target(state, level, later, noise) + 2 * state / _per_row(1 - level, state)


# --- 39.3: the weight of a group


def group_weights(advantages, errors, reference, groups, beta):
    """sigmoid(beta * group mean of A (e - e_ref)) of each sample's group, no gradient: [B]."""
    gap = (advantages * (errors - reference)).detach()
    count = torch.bincount(groups).to(gap)
    mean = torch.zeros_like(count).index_add(0, groups, gap) / count
    return torch.sigmoid(beta * mean)[groups]


def _agreement(advantages, errors, reference, groups, beta):
    return group_weights(advantages, reference, errors, groups, beta)


def _whole_batch(advantages, errors, reference, groups, beta):
    return group_weights(advantages, errors, reference, torch.zeros_like(groups), beta)


def _each_alone(advantages, errors, reference, groups, beta):
    return torch.sigmoid(beta * (advantages * (errors - reference)).detach())


def _sum_of_group(advantages, errors, reference, groups, beta):
    gap = (advantages * (errors - reference)).detach()
    total = torch.zeros(int(groups.max()) + 1).index_add(0, groups, gap)
    return torch.sigmoid(beta * total)[groups]


def _no_reference(advantages, errors, reference, groups, beta):
    return group_weights(advantages, errors, torch.zeros_like(reference), groups, beta)


def _no_advantage(advantages, errors, reference, groups, beta):
    return group_weights(torch.ones_like(advantages), errors, reference, groups, beta)


def _no_beta(advantages, errors, reference, groups, beta):
    return group_weights(advantages, errors, reference, groups, 1.0)


def _attached(advantages, errors, reference, groups, beta):
    gap = advantages * (errors - reference)
    count = torch.bincount(groups).to(gap)
    mean = torch.zeros_like(count).index_add(0, groups, gap) / count
    return torch.sigmoid(beta * mean)[groups]


def _uneven_groups(generator):
    """Advantages, errors (with gradient) and reference [8], groups of five and three."""
    errors = (1 + 0.3 * torch.randn(8, generator=generator)).requires_grad_(True)
    reference = 1 + 0.3 * torch.randn(8, generator=generator)
    groups = torch.tensor([0, 1, 0, 0, 1, 0, 1, 0])
    return [torch.randn(8, generator=generator), errors, reference, groups, 4.0]


# --- 39.4: the terms of the group loss


def surrogate_terms(errors, old, advantages, weights, clip):
    """Errors under new and old weights, advantages, group weights [B] -> terms [B]."""
    return _silenced(errors, advantages, weights, (old - errors).detach().exp(), clip)


def _silenced(errors, advantages, weights, ratio, clip):
    far = (advantages > 0) & (ratio > 1 + clip) | (advantages < 0) & (ratio < 1 - clip)
    return torch.where(far, 0.0, weights * advantages * errors)


def _minus(errors, old, advantages, weights, clip):
    return -surrogate_terms(errors, old, advantages, weights, clip)


def _never_silent(errors, old, advantages, weights, clip):
    return weights * advantages * errors


def _turned_ratio(errors, old, advantages, weights, clip):
    return _silenced(errors, advantages, weights, (errors - old).detach().exp(), clip)


def _both_sides(errors, old, advantages, weights, clip):
    ratio = (old - errors).detach().exp()
    return torch.where((ratio - 1).abs() > clip, 0.0, weights * advantages * errors)


def _swapped_sides(errors, old, advantages, weights, clip):
    ratio = (old - errors).detach().exp()
    far = (advantages > 0) & (ratio < 1 - clip) | (advantages < 0) & (ratio > 1 + clip)
    return torch.where(far, 0.0, weights * advantages * errors)


def _no_weight(errors, old, advantages, weights, clip):
    return surrogate_terms(errors, old, advantages, torch.ones_like(weights), clip)


def _size_of_advantage(errors, old, advantages, weights, clip):
    ratio = (old - errors).detach().exp()
    return _silenced(errors, advantages, weights, ratio, clip) * advantages.sign()


def _no_exp(errors, old, advantages, weights, clip):
    return _silenced(errors, advantages, weights, 1 + (old - errors).detach(), clip)


def _held(errors, old, advantages, weights, clip):
    near = errors.clamp(min=old - clip, max=old + clip)
    return weights * advantages * near


def _moved_errors(generator):
    """Errors with gradient, old ones nearby, advantages of both signs, weights in 0..1."""
    errors = (1 + 0.3 * torch.randn(60, generator=generator)).requires_grad_(True)
    old = errors.detach() + 0.5 * torch.randn(60, generator=generator)
    advantages = torch.randn(60, generator=generator)
    return [errors, old, advantages, torch.rand(60, generator=generator), 0.4]


# --- 39.5: the pull


def pulled_terms(guess, pull, size):
    """Mean square of guess less sg(guess + pull), over sg(size): [B, ...] -> [B]."""
    goal = (guess + pull).detach()
    return (guess - goal).square().flatten(1).mean(1) / size.detach()


def _no_detach(guess, pull, size):
    goal = guess + pull
    return (guess - goal).square().flatten(1).mean(1) / size.detach()


def _pull_learns(guess, pull, size):
    goal = guess.detach() + pull
    return (guess - goal).square().flatten(1).mean(1) / size.detach()


def _size_learns(guess, pull, size):
    goal = (guess + pull).detach()
    return (guess - goal).square().flatten(1).mean(1) / size


def _pushed(guess, pull, size):
    return pulled_terms(guess, -pull, size)


def _square_size(guess, pull, size):
    return pulled_terms(guess, pull, size**2)


def _unsized(guess, pull, size):
    return pulled_terms(guess, pull, torch.ones_like(size))


def _summed(guess, pull, size):
    return pulled_terms(guess, pull, size) * guess[0].numel()


def _of_rows(generator):
    """Guess, pull and size, all three of which could carry gradients."""
    guess, pull = (torch.randn(3, 2, 2, generator=generator) for _ in range(2))
    size = 0.5 + torch.rand(3, generator=generator)
    return [x.requires_grad_(True) for x in (guess, pull, size)]


# --- 39.6: where the direct loss leads


def resting_place(start, samples, advantages, hold):
    """Lowest point of sum A |z - x|^2 / 2N + hold |z - start|^2 where the advantages sum to 0."""
    return start + (advantages[:, None] * samples).sum(0) / (2 * hold * len(samples))


def _away(start, samples, advantages, hold):
    return start - (advantages[:, None] * samples).sum(0) / (2 * hold * len(samples))


def _without_two(start, samples, advantages, hold):
    return start + (advantages[:, None] * samples).sum(0) / (hold * len(samples))


def _without_count(start, samples, advantages, hold):
    return start + (advantages[:, None] * samples).sum(0) / (2 * hold)


def _mean_of_good(start, samples, advantages, hold):
    good = advantages.clamp(min=0)
    return (good[:, None] * samples).sum(0) / good.sum()


def _no_start(start, samples, advantages, hold):
    return (advantages[:, None] * samples).sum(0) / (2 * hold * len(samples))


def _times_hold(start, samples, advantages, hold):
    return start + hold * (advantages[:, None] * samples).sum(0) / (2 * len(samples))


def _group(generator):
    """A start [3], samples [6, 3], advantages of sum 0, an anchor."""
    start, samples = torch.randn(3, generator=generator), torch.randn(6, 3, generator=generator)
    advantages = torch.randn(6, generator=generator)
    hold = 0.2 + torch.rand(1, generator=generator).item()
    return [start, samples, advantages - advantages.mean(), hold]


# --- 39.7: guidance in all


def fitting_guidance(guidance, share, weight):
    """g_rl with 1 + weight (g - 1) + share (g_rl - 1) = g."""
    return 1 + (guidance - 1) * (1 - weight) / share


def _same(guidance, share, weight):
    return guidance


def _no_one(guidance, share, weight):
    return guidance * (1 - weight) / share


def _weights_swapped(guidance, share, weight):
    return 1 + (guidance - 1) * (1 - share) / weight


def _not_less(guidance, share, weight):
    return 1 + (guidance - 1) * weight / share


def _undivided(guidance, share, weight):
    return 1 + (guidance - 1) * (1 - weight)


def _weights(generator):
    """A guidance above 1, two weights in 0..1 that do not add up to one, as floats."""
    draw = torch.rand(3, generator=generator).tolist()
    return [1.5 + 4 * draw[0], 0.3 + 0.6 * draw[1], 0.1 + 0.3 * draw[2]]


# --- questions


def _only_guidance(seed):
    """Whether the pull of a surrogate that equals the teacher is guidance, on random numbers."""
    generator = torch.Generator().manual_seed(seed)
    known, free = torch.randn(2, 50, generator=generator)
    guided = free + 3 * (known - free)
    return bool(torch.allclose(guided - known, 2 * (known - free), atol=1e-5))


EXERCISES = {
    "39.1": wb.Exercise(
        reference=renoise_from, inputs=_levels, minutes=8, difficulty=2,
        wrong={
            "the state is no clean latent: it is scaled by (1 - later) / (1 - level)": _from_clean,
            "the state brings noise along: only what is missing is added": _all_new,
            "variances add, deviations do not: take the root of a difference of squares":
                _difference,
            "the noise that the state brings is scaled by `keep`, too": _unscaled_old,
            "b is a deviation: take the root": _variance,
            "`keep` is below 1: (1 - later) over (1 - level)": _inverse,
            "every row has a level of its own": _first_level,
        },
        hints=["First the factor of the clean part, then what noise is there already.",
               "later^2 = (keep level)^2 + width^2."]),
    "39.2": wb.Exercise(
        reference=velocity_target, inputs=_levels, minutes=6, difficulty=2,
        wrong={
            "noise less state holds for a finished picture only, at level 0": _noise_less_state,
            "the derivative of `keep` is negative, and it is squared and subtracted: the second "
            "part of the bracket has a plus": _minus_inside,
            "b depends on the later level through `keep` as well": _only_later,
            "the bracket is divided by b": _times_width,
            "the factor of the noise is db/dlater, not 1": _plain_noise,
            "the derivative of `keep` is -1 / (1 - level)": _whole_state,
            "`keep` falls with the later level: a minus before the state": _added_state,
        },
        hints=["keep and width depend on `later`; state and noise do not.",
               "d width = (later - keep level^2 d keep) / width, with d keep = -1 / (1 - level)."]),
    "39.3": wb.Exercise(
        reference=group_weights, inputs=_uneven_groups, minutes=8, difficulty=2,
        wrong={
            "disagreement gets *more* weight: errors less those of the reference": _agreement,
            "the mean is over the sample's group, not over the batch": _whole_batch,
            "a weight is one number for the whole group": _each_alone,
            "the mean over a group, not its sum": _sum_of_group,
            "an error counts against that of the reference": _no_reference,
            "the advantages are missing": _no_advantage,
            "beta is missing": _no_beta,
            "the weight is data: no gradient through it": _attached,
        },
        hints=["First A (e - e_ref), then its mean within each group.",
               "`index_add` sums by group, `bincount` counts; `[groups]` gives each its own."]),
    "39.4": wb.Exercise(
        reference=surrogate_terms, inputs=_moved_errors, minutes=10, difficulty=3,
        wrong={
            "a good sample is to be denoised better: its error counts positively in a loss":
                _minus,
            "terms that have moved far enough are silenced": _never_silent,
            "the ratio is exp(old - errors): above 1 where the error has fallen": _turned_ratio,
            "a term that moved the wrong way is not silenced: mind the sign of the advantage":
                _both_sides,
            "silence what has moved the *right* way: good and better, bad and worse":
                _swapped_sides,
            "the weight is missing": _no_weight,
            "a bad sample subtracts its error: the advantage keeps its sign": _size_of_advantage,
            "a silenced term is 0, not held at the edge": _held,
            "the ratio is an exponential: exp(old - errors), not 1 + old - errors": _no_exp,
        },
        hints=["The ratio has no gradient; it only decides who is silent.",
               "Two masks: good and better by more than the range; bad and worse by more."]),
    "39.5": wb.Exercise(
        reference=pulled_terms, inputs=_of_rows, minutes=6, difficulty=2,
        wrong={
            "the goal is data: detach it, or the gradient cancels": _no_detach,
            "no gradient may reach the pull": _pull_learns,
            "no gradient may reach the size": _size_learns,
            "the guess goes *to* guess + pull": _pushed,
            "divide by the size, not by its square": _square_size,
            "divide by the size": _unsized,
            "the mean over a latent's numbers, not the sum": _summed,
        },
        hints=["Write down the goal first, and detach it.", "`flatten(1)` leaves a row a sample."]),
    "39.6": wb.Exercise(
        reference=resting_place, inputs=_group, minutes=10, difficulty=3,
        wrong={
            "good samples pull: the sum of A x has a plus": _away,
            "the anchor's derivative is 2 h (z - start)": _without_two,
            "the loss is a mean over N samples": _without_count,
            "the bad half pushes: it has a say as well": _mean_of_good,
            "the anchor holds z at the start, not at 0": _no_start,
            "a stronger anchor moves z less": _times_hold,
        },
        hints=["Set the derivative by z to zero. What is left of z in the first part, if the "
               "advantages sum to zero?"]),
    "39.7": wb.Exercise(
        reference=fitting_guidance, inputs=_weights, minutes=6, difficulty=2,
        wrong={
            "only if the weights add up to one": _same,
            "guidance 1 is no guidance: count what is above 1": _no_one,
            "the share belongs to the surrogate": _weights_swapped,
            "the surrogate brings what the other pull leaves open": _not_less,
            "divide by the surrogate's weight": _undivided,
        },
        hints=["What does each pull bring along, in units of (caption less no caption)?"]),
}
QUIZZES = {
    "39.q1": wb.Quiz(
        "Nothing has been trained. Where would the pull of a surrogate with guidance, less the "
        "teacher without, take the student's guess?",
        ["nowhere: it is zero",
         "toward the caption, as guidance does",
         "toward pictures of high reward",
         "away from the teacher"],
        1, "Surrogate and teacher are one function, but the pull takes the surrogate with guidance "
        "and the teacher without. What is left is guidance: the student got it in distillation, "
        "and the pull keeps it.", holds=_only_guidance),
    "39.q2": wb.Quiz(
        "In a round the checker finds all pictures right. Which networks does the round still move?",
        ["none: without differences nothing is learned",
         "only the fake score, which needs no reward",
         "fake score and student, and the surrogate a little",
         "all three, the surrogate by its reward as ever"],
        2, "All advantages are 0, so of the group loss only the anchor to the teacher is left, and "
        "the momentum of Adam. The pulls on the student need no reward: teacher, fake score and "
        "what the surrogate has learned before go on."),
}
