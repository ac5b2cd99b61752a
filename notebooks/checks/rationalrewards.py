"""Exercises and questions of notebook 23 (RationalRewards): references, known mistakes, answers."""

import torch

from rlgenkit import workbook as wb

NAN = float("nan")


def some_scores(generator):
    """Six rows of scores, some N/A, one beyond 4, one below 1."""
    scores = 1 + 3 * torch.rand(6, 3, generator=generator)
    scores[1, 2] = scores[4, 2] = NAN
    scores[2] = torch.tensor([8.0, 2.0, 2.5])
    scores[3] = torch.tensor([0.5, 1.0, 1.0])
    return scores


# --- 23.1: the reward of a critique


def critique_reward(scores):
    """clip((mean of the scores that are not nan - 1) / 3, 0, 1)."""
    return ((scores.nanmean(1) - 1) / 3).clamp(0, 1)


# --- 23.2: the anchored teacher


def anchored_words(first, second, label, lean):
    """Words of both pictures: the winner's readings are raised, the loser's lowered."""
    side = torch.where(label, lean, -lean)[:, None]
    return first + side > 0, second - side > 0


def _readings(generator):
    label = torch.tensor([True, False, True, False, True, False])
    return [*(0.3 * torch.randn(2, 6, 7, generator=generator)), label, 0.2]


# --- 23.3: the filter


def consistent(first, second, label):
    """Does the sign of the gap say what the label says? A tie does not."""
    gap = first - second
    return (gap.abs() > 1e-4) & ((gap > 0) == label)


def _pairs(generator):
    first, second = torch.rand(2, 8, generator=generator)
    second[:2] = first[:2]
    second[2] = first[2] + 5e-5
    label = first > second
    label[4:] = ~label[4:]
    label[1] = True
    label[0] = False
    return [first, second, label]


# --- 23.4: DiffusionNFT


def nft_loss(new, old, reference, target, optimality, level):
    """The released loss with b = 1."""
    total = 0.0
    for branch, weight in ((new, optimality), (2 * old.detach() - new, 1 - optimality)):
        error = level[:, None] * (branch - target)
        size = error.detach().abs().mean(1).clamp(min=1e-5)
        total = total + weight * error.square().mean(1) / size
    away = (new - reference.detach()).square().mean()
    return 5 * total.mean() + 1e-4 * away


def _velocities(generator):
    four = [torch.randn(5, 7, generator=generator) for _ in range(4)]
    four[3][0] = four[0][0]  # an error of 0 must not divide by 0
    four[:3] = [v.requires_grad_() for v in four[:3]]
    return [*four, *torch.rand(2, 5, generator=generator)]


def _swapped(new, old, reference, target, optimality, level):
    return nft_loss(new, old, reference, target, 1 - optimality, level)


def _no_mirror(new, old, reference, target, optimality, level):
    return nft_loss(new, new.detach(), reference, target, optimality, level)


def _no_level(new, old, reference, target, optimality, level):
    return nft_loss(new, old, reference, target, optimality, torch.ones_like(level))


def _size_learns(new, old, reference, target, optimality, level):
    total = 0.0
    for branch, weight in ((new, optimality), (2 * old.detach() - new, 1 - optimality)):
        error = level[:, None] * (branch - target)
        size = error.abs().mean(1).clamp(min=1e-5)
        total = total + weight * error.square().mean(1) / size
    return 5 * total.mean() + 1e-4 * (new - reference.detach()).square().mean()


def _no_floor(new, old, reference, target, optimality, level):
    total = 0.0
    for branch, weight in ((new, optimality), (2 * old.detach() - new, 1 - optimality)):
        error = level[:, None] * (branch - target)
        size = error.detach().abs().mean(1)
        total = total + weight * error.square().mean(1) / size
    return 5 * total.mean() + 1e-4 * (new - reference.detach()).square().mean()


def _old_learns(new, old, reference, target, optimality, level):
    mirrored = nft_loss(new, old, reference, target, optimality, level)
    return mirrored + (old - old.detach()).sum()


def _no_factor(new, old, reference, target, optimality, level):
    away = 1e-4 * (new - reference.detach()).square().mean()
    return (nft_loss(new, old, reference, target, optimality, level) - away) / 5 + away


# --- 23.5: the rule of test time


def passes(scores, threshold):
    """Text faithfulness and physical quality reach the threshold."""
    return (scores[:, 0] >= threshold) & (scores[:, 1] >= threshold)


def _exams(generator):
    scores = some_scores(generator)
    edge = torch.tensor([[3.0, 3.0, 1.0], [3.0, 2.9, 4.0], [2.9, 3.0, 4.0], [3.5, 3.5, NAN]])
    return [torch.cat([scores, edge]), 3.0]


# --- 23.6: effective clusters


def as_many(pairs):
    """Kish's effective number: the squared sum by the sum of squares."""
    weights = pairs.double()
    return weights.sum() ** 2 / weights.square().sum()


def _counts(generator):
    return [torch.cat([torch.randint(1, 90, (7,), generator=generator), torch.zeros(2).long()])]


EXERCISES = {
    "23.1": wb.Exercise(
        critique_reward, lambda generator: [some_scores(generator)],
        {"N/A does not count: the mean is over the other scores":
            lambda s: ((s.nan_to_num(1.0).mean(1) - 1) / 3).clamp(0, 1),
         "scores run from 1: subtract it first": lambda s: (s.nanmean(1) / 4).clamp(0, 1),
         "a hallucinated 8 must not give more than 1": lambda s: (s.nanmean(1) - 1) / 3,
         "clip the result, not the scores":
            lambda s: (s.clamp(1, 4).nanmean(1) - 1) / 3},
        hints=["A mean that leaves out nan has a name of its own.", "From 1..4 to 0..1."],
        minutes=5, difficulty=1),
    "23.2": wb.Exercise(
        anchored_words, _readings,
        {"the winner's readings go up, not down":
            lambda a, b, y, bend: anchored_words(a, b, ~y, bend),
         "the loser is bent as well": lambda a, b, y, bend: (
            anchored_words(a, b, y, bend)[0], b > 0),
         "without the label nothing is bent": lambda a, b, y, bend: (a > 0, b > 0)},
        hints=["One number per pair: +lean or -lean.", "It enters the two pictures with opposite signs."],
        minutes=10, difficulty=2),
    "23.3": wb.Exercise(
        consistent, _pairs,
        {"a tie gives nothing back": lambda a, b, y: ((a - b) > 0) == y,
         "rewards within 0.0001 are a tie, too": lambda a, b, y: (a != b) & ((a > b) == y),
         "keep what agrees with the label":
            lambda a, b, y: ((a - b).abs() > 1e-4) & ((a > b) != y),
         "a label may also say that the second is better":
            lambda a, b, y: (a - b > 1e-4) & y},
        hints=["Two conditions: no tie, and the right side."], minutes=5, difficulty=1),
    "23.4": wb.Exercise(
        nft_loss, _velocities,
        {"r belongs to the branch that steps toward the sample": _swapped,
         "the second branch is mirrored at the old velocity": _no_mirror,
         "the error of the clean picture is the level times that of the velocity": _no_level,
         "no gradient flows through the size of an error": _size_learns,
         "no gradient flows into the old network": _old_learns,
         "an error of 0 divides by 0: floor the size at 1e-5": _no_floor,
         "the factor 5 belongs to both branches": _no_factor},
        hints=["Write one branch as a function of its velocity, then sum two.",
               "Sizes are means over the numbers of one sample."],
        minutes=20, difficulty=3),
    "23.5": wb.Exercise(
        passes, _exams,
        {"both must reach the threshold": lambda s, t: (s[:, 0] >= t) | (s[:, 1] >= t),
         "text rendering does not count here": lambda s, t: (s >= t).all(1),
         "reaching the threshold is enough": lambda s, t: (s[:, 0] > t) & (s[:, 1] > t),
         "not their mean: each of them": lambda s, t: s[:, :2].mean(1) >= t},
        minutes=5, difficulty=1),
    "23.6": wb.Exercise(
        as_many, _counts,
        {"two reviewers of very different size are not two": lambda n: (n > 0).sum().double(),
         "square the sum, and sum the squares":
            lambda n: n.double().square().sum() / n.double().sum() ** 2,
         "a share of all pairs is not a number of reviewers":
            lambda n: n.double().max() / n.double().sum()},
        hints=["Equal weights must give the number of reviewers."], minutes=10, difficulty=2),
}
QUIZZES = {
    "23.q1": wb.Quiz(
        "The filter reads the words of an anchored teacher. Which wrong labels does it find?",
        ["All of them", "Those that plain faults contradict", "None of them"], 1,
        "A small lean hides what was close anyway. Plain faults stay in the words, and these then "
        "contradict the label."),
    "23.q2": wb.Quiz(
        "A scalar reward learned from labels of which some reward vividness. Which curve of RL would "
        "tell you that it is hacked?",
        ["Its own reward falls", "A measure that training does not climb falls", "The loss rises"], 1,
        "Training climbs whatever the reward pays for, so that the reward rises either way. "
        "Only something else can tell."),
    "23.q3": wb.Quiz(
        "A generator hears everything, and fails by bad luck alone. Which second try gains more?",
        ["Refining the request, same noise", "A fresh sample, the better of two", "Neither gains"], 1,
        "No word can move attention that is there already; only other noise gives other luck."),
}
