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


# --- 01.4: which terms the clip silences


def silenced_share(ratio, advantages, clip):
    """Share of the terms without a gradient: [B, T], [B], float -> scalar."""
    good = advantages[:, None] > 0
    return torch.where(good, ratio > 1 + clip, ratio < 1 - clip).float().mean()


def _outside(ratio, advantages, clip):
    return ((ratio - 1).abs() > clip).float().mean()


def _pulling_back(ratio, advantages, clip):
    return silenced_share(ratio, -advantages, clip)


# --- 01.5: the memory


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


EXERCISES = {
    "01.1": wb.Exercise(
        reference=step_log_prob, inputs=_step, minutes=10, difficulty=2,
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
        reference=prompt_advantages, minutes=10, difficulty=1,
        inputs=lambda g: [torch.randn(12, generator=g), torch.arange(12) % 3],
        wrong={
            "every picture competes with those of its own prompt, not with the whole batch":
                _whole_batch,
            "divide by the standard deviation of the prompt as well": _only_centered,
            "take the population standard deviation (divide by n): `correction=0`":
                _sample_spread,
        },
        hints=["Go through `groups.unique()` and fill in the rows of one prompt at a time.",
               "The rows of a prompt need not be neighbors: use a Boolean mask."]),
    "01.3": wb.Exercise(
        reference=clipped_terms, inputs=_update, minutes=15, difficulty=3,
        wrong={
            "the loss is the *larger* of the two terms, the more pessimistic one": _smaller,
            "the clipped term alone also silences terms that should pull back": _only_clipped,
            "the clipped term is missing": _never_clipped,
            "each step is a term of its own: no product of ratios over the chain": _chain,
            "the loss is minimized, so that a good action needs a minus sign": _ascent,
            "an advantage belongs to a picture, the first axis: `advantages[:, None]`":
                _wrong_axis,
        },
        hints=["The ratio is exp(new - old).",
               "Compute both terms of the equation, then take `torch.maximum` of them."]),
    "01.4": wb.Exercise(
        reference=silenced_share, minutes=15, difficulty=3,
        inputs=lambda g: [1 + 0.2 * torch.randn(9, 6, generator=g),
                          torch.randn(9, generator=g), 0.1],
        wrong={
            "that counts all ratios outside the range; some of them still pull back": _outside,
            "the other way round: those are the terms that pull back": _pulling_back,
        },
        hints=["Take A > 0 and a ratio far above 1. Which of the two terms is the larger, and does "
               "it depend on the ratio?"]),
    "01.5": wb.Exercise(
        reference=remembered_advantages, minutes=10, difficulty=2,
        inputs=lambda g: [1 + torch.randn(4, generator=g), torch.randn(8, generator=g)],
        wrong={
            "put the new rewards into the memory first: the statistics are of both": _only_past,
            "the past is missing: a round in which all pictures are better must get positive "
            "advantages": _only_present,
            "take the population deviation (divide by n): `correction=0`": _sample_deviation,
        },
        hints=["Join past and present with `torch.cat`, then standardize the present ones."]),
}

QUIZZES = {
    "01.q1": wb.Quiz(
        "All weights were shaken a little, in random directions. Which of the four ratios moved?",
        ["only those of good pictures", "only those of bad pictures",
         "any of them, in any direction", "none: the pictures are already drawn"],
        2, "Nobody told the weights where to go. The loss now decides who may still pull."),
    "01.q2": wb.Quiz(
        "IS (four updates per batch), SF (one) and RWR (regression on the policy's own best "
        "pictures) get the same reward queries. Which order of gains does the paper report?",
        ["IS slightly above SF, both far above RWR", "RWR above IS above SF",
         "SF far above IS, IS above RWR", "all alike: the queries are the same"],
        0, "The tables below say which of it came out here, and what an arm does whose rewards "
        "are shuffled."),
    "01.q3": wb.Quiz(
        "The latents get 4 times as many numbers, and an update moves each of them by the same "
        "share of its standard deviation. By which factor does the spread of the mean-reduced "
        "log-ratio change?",
        ["4", "1/2", "1/4", "it stays"],
        1, "It is d / sqrt(D): half of it at 4 D. So the clip range of a large model is too "
        "narrow for a small one: 1e-4 at 16,384 numbers becomes 6e-4 at 512."),
}
