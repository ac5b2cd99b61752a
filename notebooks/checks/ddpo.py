"""Exercises and questions of notebook 01 (DDPO): references, known mistakes, hints, answers."""

import math

import torch

from rlgenkit import workbook as wb

# --- 01.1: the log-probability of a step


def step_log_prob(after, mean, std):
    """Mean over the latent numbers of log N(after; mean, std^2): [B, ...], [B, ...], float -> [B]."""
    square = ((after.detach() - mean) / std) ** 2
    return -(square / 2 + math.log(std) + math.log(2 * math.pi) / 2).flatten(1).mean(1)


def _attached(after, mean, std):
    square = ((after - mean) / std) ** 2
    return -(square / 2 + math.log(std) + math.log(2 * math.pi) / 2).flatten(1).mean(1)


def _summed(after, mean, std):
    return step_log_prob(after, mean, std) * mean[0].numel()


def _without_width(after, mean, std):
    square = ((after.detach() - mean) / std) ** 2
    return -(square / 2).flatten(1).mean(1)


def _step(generator):
    """An action that was drawn around its mean, with a graph of its own."""
    mean = torch.randn(3, 2, 4, 4, generator=generator, requires_grad=True)
    noise = torch.randn(3, 2, 4, 4, generator=generator)
    return [mean + 0.7 * noise, mean, 0.7]


# --- 01.2: advantages per prompt


def prompt_advantages(rewards, groups):
    """(reward - mean of its prompt) / (standard deviation of its prompt + 1e-6), all [B]."""
    advantages = torch.zeros_like(rewards)
    for group in groups.unique():
        rows = groups == group
        mean, spread = rewards[rows].mean(), rewards[rows].std(correction=0)
        advantages[rows] = (rewards[rows] - mean) / (spread + 1e-6)
    return advantages


def _whole_batch(rewards, groups):
    return prompt_advantages(rewards, torch.zeros_like(groups))


def _only_centered(rewards, groups):
    advantages = torch.zeros_like(rewards)
    for group in groups.unique():
        rows = groups == group
        advantages[rows] = rewards[rows] - rewards[rows].mean()
    return advantages


def _sample_spread(rewards, groups):
    advantages = torch.zeros_like(rewards)
    for group in groups.unique():
        rows = groups == group
        spread = rewards[rows].std()
        advantages[rows] = (rewards[rows] - rewards[rows].mean()) / (spread + 1e-6)
    return advantages


def _divided(rewards, groups, floor):
    advantages = torch.zeros_like(rewards)
    for group in groups.unique():
        rows = groups == group
        centered = rewards[rows] - rewards[rows].mean()
        advantages[rows] = centered / floor(rewards[rows].var(correction=0))
    return advantages


def _no_floor(rewards, groups):
    return _divided(rewards, groups, torch.sqrt)


def _floor_inside(rewards, groups):
    return _divided(rewards, groups, lambda variance: (variance + 1e-6).sqrt())


def _prompts(generator):
    """Three pictures each of four prompts; those of one score nearly alike, those of another alike."""
    rewards, groups = torch.randn(12, generator=generator), torch.arange(12) % 4
    rewards[groups == 2] *= 1e-5
    rewards[groups == 3] = 0.5
    return [rewards, groups]


# --- 01.3: the clipped terms


def clipped_terms(new, old, advantages, clip):
    """max(-A ratio, -A clipped ratio), a term per picture and step: [B, T], [B, T], [B], float."""
    ratio = (new - old).exp()
    pull = -advantages[:, None] * ratio
    return torch.maximum(pull, -advantages[:, None] * ratio.clamp(1 - clip, 1 + clip))


def _smaller(new, old, advantages, clip):
    ratio = (new - old).exp()
    pull = -advantages[:, None] * ratio
    return torch.minimum(pull, -advantages[:, None] * ratio.clamp(1 - clip, 1 + clip))


def _only_clipped(new, old, advantages, clip):
    return -advantages[:, None] * (new - old).exp().clamp(1 - clip, 1 + clip)


def _never_clipped(new, old, advantages, clip):
    return -advantages[:, None] * (new - old).exp()


def _chain(new, old, advantages, clip):
    whole = (new - old).sum(1, keepdim=True).expand_as(new)
    return clipped_terms(whole, torch.zeros_like(whole), advantages, clip)


def _ascent(new, old, advantages, clip):
    return clipped_terms(new, old, -advantages, clip)


def _update(generator):
    """As many pictures as steps, so that advantages along the wrong axis show."""
    old = torch.randn(6, 6, generator=generator)
    new = (old + 0.2 * torch.randn(6, 6, generator=generator)).requires_grad_(True)
    return [new, old, torch.randn(6, generator=generator), 0.1]


def _wrong_axis(new, old, advantages, clip):
    return clipped_terms(new.T, old.T, advantages, clip).T


# --- 01.4: the memory


def remembered_advantages(rewards, past):
    """Rewards [B] against all that their prompt ever got, past [H] and present: [B]."""
    known = torch.cat([past, rewards])
    return (rewards - known.mean()) / (known.std(correction=0) + 1e-6)


def _only_past(rewards, past):
    return (rewards - past.mean()) / (past.std(correction=0) + 1e-6)


def _only_present(rewards, past):
    return (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-6)


def _sample_deviation(rewards, past):
    known = torch.cat([past, rewards])
    return (rewards - known.mean()) / (known.std() + 1e-6)


def _no_floor_remembered(rewards, past):
    known = torch.cat([past, rewards])
    return (rewards - known.mean()) / known.std(correction=0)


def _rounds(generator):
    """A round above the past, with rewards so close that the 1e-6 shows."""
    now, past = 1 + torch.randn(4, generator=generator), torch.randn(8, generator=generator)
    return [1e-5 * now, 1e-5 * past]


# --- 01.5: which terms the clip silences


def silenced_share(ratio, advantages, clip):
    """Share of terms that the clip robs of their gradient: [B, T], [B], float -> scalar."""
    pull = advantages[:, None]
    cut = (pull > 0) & (ratio > 1 + clip) | (pull < 0) & (ratio < 1 - clip)
    return cut.float().mean()


def _outside(ratio, advantages, clip):
    return ((ratio - 1).abs() > clip).float().mean()


def _zero_counted(ratio, advantages, clip):
    return silenced_share(ratio, torch.where(advantages == 0, -1.0, advantages), clip)


def _pulling_back(ratio, advantages, clip):
    return silenced_share(ratio, -advantages, clip)


def _batch(generator):
    """Nine pictures, one of which is just as good as its prompt's others."""
    advantages = torch.randn(9, generator=generator)
    advantages[4] = 0
    ratio = 1 + 0.2 * torch.randn(9, 6, generator=generator)
    ratio[4, :2] = torch.tensor([0.8, 1.2])  # outside on both sides
    return [ratio, advantages, 0.1]


# --- 01.q3: the spread of a log-ratio


def _halves(seed):
    """Whether the spread of the log-ratio halves when the latent has four times as many numbers."""
    generator = torch.Generator().manual_seed(seed)
    spreads = []
    for size in (512, 2048):
        noise = torch.randn(2000, size, generator=generator)
        spreads.append((0.05 * noise - 0.05**2 / 2).mean(1).std())
    return abs(spreads[1] / spreads[0] - 0.5) < 0.05


EXERCISES = {
    "01.1": wb.Exercise(
        reference=step_log_prob, inputs=_step, minutes=5, difficulty=2,
        wrong={
            "the action is data, fixed when it was drawn: detach it, or its gradient cancels that "
            "of the mean": _attached,
            "DDPO takes the mean over the latent numbers, not the sum": _summed,
            "a narrow Gaussian is higher: the terms of the width are missing": _without_width,
        },
        hints=["Write down log N(x; m, s^2) of one number, then average over all but the first "
               "axis.",
               "Which of the two, the action or its mean, may carry a gradient?"]),
    "01.2": wb.Exercise(
        reference=prompt_advantages, minutes=5, difficulty=1,
        inputs=_prompts,
        wrong={
            "every picture competes with those of its own prompt, not with the whole batch":
                _whole_batch,
            "divide by the standard deviation of the prompt as well": _only_centered,
            "take the population standard deviation (divide by n): `correction=0`":
                _sample_spread,
            "add 1e-6 to the deviation, else equal rewards divide by zero": _no_floor,
            "add 1e-6 to the deviation, after the square root": _floor_inside,
        },
        hints=["Go through `groups.unique()` and fill in the rows of one prompt at a time.",
               "The rows of a prompt need not be neighbors: use a Boolean mask."]),
    "01.3": wb.Exercise(
        reference=clipped_terms, inputs=_update, minutes=10, difficulty=3,
        wrong={
            "the loss is the *larger* of the two terms, the more pessimistic one": _smaller,
            "the clipped term alone also silences terms that should pull back": _only_clipped,
            "the clipped term is missing": _never_clipped,
            "each step is a term of its own: no product of ratios over the chain": _chain,
            "the loss is minimized, so that a good action needs a minus sign": _ascent,
            "an advantage belongs to a picture, the first axis: `advantages[:, None]`":
                _wrong_axis,
        },
        hints=["What turns a difference of log-probabilities into a ratio?",
               "Of two losses the larger is the pessimistic one. An advantage is one number a "
               "picture, a ratio one a picture and step."]),
    "01.4": wb.Exercise(
        reference=remembered_advantages, minutes=5, difficulty=2, inputs=_rounds,
        wrong={
            "put the new rewards into the memory first: the statistics are of both": _only_past,
            "the past is missing: a round in which all pictures are better must get positive "
            "advantages": _only_present,
            "take the population deviation (divide by n): `correction=0`": _sample_deviation,
            "add 1e-6 to the deviation, else equal rewards divide by zero":
                _no_floor_remembered,
        },
        hints=["What does the prompt's average reward become when the new rewards have joined the "
               "memory?", "Mean and deviation are taken over a longer tensor than the one that you "
               "return."]),
    "01.5": wb.Exercise(
        reference=silenced_share, minutes=10, difficulty=3, inputs=_batch,
        wrong={
            "that counts all ratios outside the range; some of them still pull back": _outside,
            "the other way round: those are the terms that pull back": _pulling_back,
            "a term with advantage 0 has no gradient that the clip could take": _zero_counted,
        },
        hints=["Take A > 0 and a ratio far above 1. Which of the two terms is the larger, and does "
               "it depend on the ratio?"]),
}

QUIZZES = {
    "01.q1": wb.Quiz(
        "All weights were shaken a little, in random directions. What do the four ratios become?",
        ["below 1: the actions were drawn by the old weights",
         "above 1 for good pictures, below 1 for bad ones",
         "above 1 for some, below 1 for others, whatever their scores",
         "exactly 1: the pictures are already drawn"],
        2, "Nobody told the weights where to go. A drawn action lies beside its mean, so a small "
        "move of the mean may come nearer to it or go away. (A large move leaves nearly all "
        "actions behind: then all ratios fall.)"),
    "01.q2": wb.Quiz(
        "After equally many reward queries, which order of gains do you expect in the figures "
        "below?",
        ["IS and SF nearly level, both far above RWR; the sham wanders",
         "IS far above SF: four updates instead of one; then RWR, then the sham",
         "RWR first: it copies its best pictures; the sham falls",
         "all alike, the sham included: any training on one's own pictures colors them"],
        0, "The paper also reports IS slightly above SF and both far above RWR. Here SF's higher "
        "rate makes up for its fewer updates."),
    "01.q3": wb.Quiz(
        "The latents get 4 times as many numbers, and an update moves the mean of each by as many "
        "standard deviations as before. By which factor does the spread of the log-ratio change?",
        ["4", "1/2", "1/4", "it stays"],
        1, "It is d / sqrt(D): half of it at 4 D. So the clip range of a large model is too "
        "narrow for a small one: 1e-4 at 16,384 numbers becomes 6e-4 at 512.",
        holds=_halves),
}
