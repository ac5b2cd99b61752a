"""Exercises and questions of the template: references, known mistakes, hints, answers."""

import math

import torch

from rlgenkit import workbook as wb


def batch(generator):
    """Six rewards."""
    return [torch.randn(6, generator=generator)]


def actions(generator):
    """Six actions, a mean that wants a gradient, a logarithm of the width."""
    draw = torch.randn(8, generator=generator)
    return [draw[:6], draw[6].clone().requires_grad_(True), 0.3 * draw[7]]


# --- 99.1: the log-probability of an action


def log_prob(x, mean, log_std):
    """Log of the Gaussian density at x: [B], scalar, scalar -> [B]."""
    z = (x - mean) / log_std.exp()
    return -0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi)


def without_width(x, mean, log_std):
    """Mistake: the normalization is missing."""
    return log_prob(x, mean, log_std) + log_std


def width_as_it_comes(x, mean, log_std):
    """Mistake: the logarithm of the width is taken for the width."""
    z = (x - mean) / log_std
    return -0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi)


# --- 99.2: advantages


def advantages_of(reward):
    """Rewards less their mean, in standard deviations: [B] -> [B]."""
    return (reward - reward.mean()) / reward.std(correction=0)


# --- 99.3: the leave-one-out baseline


def leave_one_out(reward):
    """Each reward less the mean of the others: [B] -> [B]."""
    others = (reward.sum() - reward) / (len(reward) - 1)
    return reward - others


# --- 99.4: a loss with a planted mistake


def terms_of(log_probs, advantages):
    """Terms whose mean gradient descent makes small: [B], [B] -> [B]."""
    return -advantages.detach() * log_probs


def pairs(generator):
    """Six log-probabilities and six advantages, both with a gradient."""
    return [torch.randn(6, generator=generator, requires_grad=True) for _ in range(2)]


EXERCISES = {
    "99.1": wb.Exercise(
        log_prob, actions,
        {"the density has a factor 1/width: its logarithm is missing": without_width,
         "log_std is the logarithm of the width: take its exponential": width_as_it_comes,
         "the exponent has a minus sign": lambda x, m, s: -log_prob(x, m, s)},
        hints=["First z: the distance from the mean in widths.",
               "The logarithm of a product is a sum: exponent, width, root of 2 pi."],
        minutes=5, difficulty=1),
    "99.2": wb.Exercise(
        advantages_of, batch,
        {"divide by the standard deviation too": lambda r: r - r.mean(),
         "subtract the mean first": lambda r: r / r.std(correction=0),
         "the standard deviation of these samples: correction=0":
             lambda r: (r - r.mean()) / r.std()},
        hints=["Two steps: subtract the mean, divide by the standard deviation."],
        minutes=5, difficulty=1),
    "99.3": wb.Exercise(
        leave_one_out, batch,
        {"the mean holds the sample itself too": lambda r: r - r.mean(),
         "that is the baseline: subtract it from the reward": lambda r: r - leave_one_out(r),
         "the others are one fewer than the batch": lambda r: r - (r.sum() - r) / len(r)},
        hints=["The sum of the others is the sum of all less the sample itself.",
               "How many others are there?"],
        minutes=10, difficulty=2),
    "99.4": wb.Exercise(
        terms_of, pairs,
        {"the sign: gradient descent makes the loss small": lambda p, a: a.detach() * p,
         "the advantage is a number, no gradient flows through it": lambda p, a: -a * p},
        hints=["In which direction does gradient descent go?",
               "Which of the two factors depends on the policy?"],
        minutes=10, difficulty=2),
}
QUIZZES = {
    "99.q1": wb.Quiz(
        "The proxy is best at 3, the truth at 2, and the policy starts at 0. What does the truth do?",
        ["It rises throughout", "It rises, then falls back", "It falls from the start"], 1,
        "On the way from 0 to 3 the policy passes 2, and nothing tells it to stay there."),
    "99.q2": wb.Quiz(
        "The batch is doubled. What becomes of the variance of the mean gradient?",
        ["It halves", "It stays", "It doubles"], 0, "It is a mean of independent terms."),
}
