"""Exercises and questions of notebook 00: references, known mistakes, hints, answers."""

import torch

from rlgenkit import workbook as wb

# --- 00.1: a reward


def red_over_green(images):
    """Mean red less mean green of every picture: [B, 3, H, W] -> [B]."""
    return (images[:, 0] - images[:, 1]).mean((1, 2))


def _red_over_blue(images):
    return (images[:, 0] - images[:, 2]).mean((1, 2))


def _of_the_batch(images):
    return red_over_green(images).mean().expand(len(images))


def _summed(images):
    return (images[:, 0] - images[:, 1]).sum((1, 2))


def _green_over_red(images):
    return -red_over_green(images)


def _pictures(generator):
    """Four pictures of noise, each of another tint."""
    tint = torch.rand(4, 3, 1, 1, generator=generator)
    return [tint * torch.rand(4, 3, 8, 8, generator=generator)]


# --- 00.2: advantages


def advantages(rewards):
    """Rewards less their mean, in standard deviations: [B] -> [B]."""
    return (rewards - rewards.mean()) / rewards.std(correction=0)


def _only_centered(rewards):
    return rewards - rewards.mean()


def _only_scaled(rewards):
    return rewards / rewards.std(correction=0)


def _sample_spread(rewards):
    return (rewards - rewards.mean()) / rewards.std()


def _padded(rewards):
    return (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-4)


def _rewards(generator):
    """Six rewards that are all positive."""
    return [2 + torch.randn(6, generator=generator).abs()]


# --- 00.3: one update of a policy with one number


def updated(mean, samples, advantage, rate):
    """The mean after one step along A times grad log pi: scalar, [B], [B], float -> scalar."""
    return mean + rate * (advantage * (samples - mean)).mean()


def _downhill(mean, samples, advantage, rate):
    return mean - rate * (advantage * (samples - mean)).mean()


def _without_mean(mean, samples, advantage, rate):
    return mean + rate * (advantage * samples).mean()


def _mean_added(mean, samples, advantage, rate):
    return mean + rate * (advantage * (samples + mean)).mean()


def _weighted_average(mean, samples, advantage, rate):
    return mean + rate * advantage.mean() * (samples - mean).mean()


def _summed_step(mean, samples, advantage, rate):
    return mean + rate * (advantage * (samples - mean)).sum()


def _step(generator):
    """A mean, samples around it, advantages that favor the large ones."""
    mean = torch.randn((), generator=generator)
    samples = mean + torch.randn(6, generator=generator)
    advantage = samples - mean + 0.5 * torch.randn(6, generator=generator)
    return [mean, samples, advantage, 0.1]


# --- 00.4: a bug


def centered_by_group(rewards, groups):
    """Rewards less the mean of their own group: [B], Long[B] -> [B]."""
    found = torch.zeros_like(rewards)
    for group in groups.unique():
        rows = groups == group
        found[rows] = rewards[rows] - rewards[rows].mean()
    return found


def _whole_batch(rewards, groups):
    return rewards - rewards.mean()


def _means_of_groups(rewards, groups):
    return rewards - centered_by_group(rewards, groups)


def _two_prompts(generator):
    """Three pictures each of an easy and a hard prompt, not side by side."""
    groups = torch.tensor([0, 1, 0, 1, 1, 0])
    return [torch.rand(6, generator=generator) + 2.0 * groups, groups]


# --- questions


def _comes_back(seed):
    """Whether the truth ends lower than its best in the toy."""
    generator, mean, truths = torch.Generator().manual_seed(seed), torch.ones(()), []
    for _ in range(120):
        samples = mean + torch.randn(512, generator=generator)
        mean = updated(mean, samples, advantages(-((samples - 3) ** 2)), 0.05)
        truths.append(float(-((mean - 2) ** 2)))
    return max(truths) > truths[-1] + 0.3


EXERCISES = {
    "00.1": wb.Exercise(
        reference=red_over_green, inputs=_pictures, minutes=3, difficulty=1,
        wrong={
            "green is channel 1, blue is channel 2": _red_over_blue,
            "one number per picture, not per batch": _of_the_batch,
            "the mean over the pixels, not the sum": _summed,
            "more red must score higher": _green_over_red,
        },
        hints=["`images[:, 0]` is the red channel of every picture, [B, H, W].",
               "`.mean((1, 2))` averages over rows and columns of each picture."]),
    "00.2": wb.Exercise(
        reference=advantages, inputs=_rewards, minutes=3, difficulty=1,
        tolerance=3e-5,  # an epsilon of 1e-5 in the divisor does no harm
        wrong={
            "divide by the standard deviation as well": _only_centered,
            "subtract the mean: half of the samples must come out below zero": _only_scaled,
            "the deviation of these samples, divided by n: `correction=0`": _sample_spread,
            "no small number in the divisor is needed": _padded,
        },
        hints=["What is better than usual? Compare with the mean of the group."]),
    "00.3": wb.Exercise(
        reference=updated, inputs=_step, minutes=5, difficulty=2,
        wrong={
            "uphill: a good sample pulls the mean towards itself": _downhill,
            "the slope is x less the mean, not x itself": _without_mean,
            "the pull of a sample is its distance from the mean: subtract it": _mean_added,
            "multiply each sample's pull by its own advantage, then average": _weighted_average,
            "the mean over the samples, not the sum": _summed_step,
        },
        hints=["For a Gaussian of width 1 the slope of log pi at x is x - mean.",
               "Each sample pulls with its advantage times its slope; average the pulls."]),
    "00.4": wb.Exercise(
        reference=centered_by_group, inputs=_two_prompts, minutes=5, difficulty=2,
        wrong={
            "a picture competes with the pictures of its own prompt only": _whole_batch,
            "those are the means themselves: subtract them": _means_of_groups,
        },
        hints=["Go through `groups.unique()`, one prompt at a time.",
               "The pictures of a prompt need not stand side by side: use a Boolean mask."]),
}

QUIZZES = {
    "00.q1": wb.Quiz(
        "The policy starts at 1. The reward is highest at 3, the truth at 2. While the reward is "
        "raised, what does the truth do?",
        ["it rises with the reward all the way", "it rises, then falls back",
         "it falls from the start"],
        1, "On the way from 1 to 3 the policy passes 2, and nothing tells it to stay there.",
        holds=_comes_back),
    "00.q2": wb.Quiz(
        "Guidance is lowered from 3 to 1. What becomes of the contrast of the pictures?",
        ["it falls", "it stays", "it rises"], 0,
        "Guidance exaggerates what the prompt changes, colors too. With guidance 3 section 3 "
        "prints 0.185 for this seed. Over ten other runs of that cell the mean was 0.17, and 0.14 "
        "without guidance, lower in each. Whether more or fewer prompts come out right differs "
        "from seed to seed."),
}
