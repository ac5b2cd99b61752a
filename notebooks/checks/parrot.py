"""Exercises and questions of notebook 36 (Parrot): references, known mistakes, hints, answers."""

import numpy as np
import torch

from rlgenkit import workbook as wb

# --- 36.1: the front


def front_of(scores):
    """Rows that no other row dominates: [N, K] -> Bool[N]."""
    as_good = (scores[:, None] >= scores[None]).all(2)
    better = (scores[:, None] > scores[None]).any(2)
    return ~(as_good & better).any(0)


def _beaten_everywhere(scores):
    return ~(scores[:, None] > scores[None]).all(2).any(0)


def _ties_beat(scores):
    no_worse = (scores[:, None] >= scores[None]).all(2)
    return ~(no_worse & ~torch.eye(len(scores), dtype=torch.bool)).any(0)


def _who_beats_nobody(scores):
    as_good = (scores[:, None] >= scores[None]).all(2)
    better = (scores[:, None] > scores[None]).any(2)
    return ~(as_good & better).any(1)


def _somewhere_better(scores):
    return ~(scores[:, None] > scores[None]).any(2).any(0)


def _winners(scores):
    return (scores == scores.amax(0)).any(1)


def _rows(generator):
    """Whole numbers, so that ties occur, and a pair of equal rows on the front."""
    scores = torch.randint(4, (12, 3), generator=generator).float()
    scores[3:5] = torch.tensor([5.0, 5.0, 1.0])
    scores[7] = torch.tensor([4.5, 4.5, 2.5])
    return [scores]


# --- 36.2: the own reward


def own_reward(scores, token):
    """Reward of the own token, shifted to >= 0, over its spread: [N, K], Long[N] -> [N]."""
    shifted = (scores - scores.min(0).values) / (scores.std(0, correction=0) + 1e-6)
    return shifted.gather(1, token[:, None])[:, 0]


def _centered(scores, token):
    z = (scores - scores.mean(0)) / (scores.std(0, correction=0) + 1e-6)
    return z.gather(1, token[:, None])[:, 0]


def _raw(scores, token):
    return scores.gather(1, token[:, None])[:, 0]


def _only_shifted(scores, token):
    return (scores - scores.min(0).values).gather(1, token[:, None])[:, 0]


def _sample_spread(scores, token):
    shifted = (scores - scores.min(0).values) / (scores.std(0) + 1e-6)
    return shifted.gather(1, token[:, None])[:, 0]


def _lowest_of_the_picture(scores, token):
    shifted = (scores - scores.min(1, keepdim=True).values) / (scores.std(0, correction=0) + 1e-6)
    return shifted.gather(1, token[:, None])[:, 0]


def _no_floor(scores, token):
    shifted = (scores - scores.min(0).values) / scores.std(0, correction=0)
    return shifted.gather(1, token[:, None])[:, 0]


def _all_rewards(scores, token):
    return ((scores - scores.min(0).values) / (scores.std(0, correction=0) + 1e-6)).mean(1)


def _units(generator):
    """Rewards in units of 1, 0.01 and 1e-5, so that the 1e-6 shows."""
    scores = torch.randn(8, 3, generator=generator) * torch.tensor([1.0, 1e-2, 1e-5])
    return [scores, torch.randint(3, (8,), generator=generator)]


# --- 36.3: the factors


def parrot_weights(scores, token, groups):
    """Factors of the log-probabilities: [B, K], Long[B], Long[B] -> [B]."""
    weights, ids = torch.zeros(len(scores)), groups.unique()
    for group in ids:
        rows = groups == group
        front = front_of(scores[rows])
        own = own_reward(scores[rows], token[rows])
        weights[rows] = own * front / front.sum() / len(ids)
    return weights


def _over_all(scores, token, groups):
    return parrot_weights(scores, token, torch.zeros_like(groups))


def _by_group_size(scores, token, groups):
    weights, ids = torch.zeros(len(scores)), groups.unique()
    for group in ids:
        rows = groups == group
        own = own_reward(scores[rows], token[rows])
        weights[rows] = own * front_of(scores[rows]) / rows.sum() / len(ids)
    return weights


def _no_selection(scores, token, groups):
    weights, ids = torch.zeros(len(scores)), groups.unique()
    for group in ids:
        rows = groups == group
        weights[rows] = own_reward(scores[rows], token[rows]) / rows.sum() / len(ids)
    return weights


def _not_over_prompts(scores, token, groups):
    return parrot_weights(scores, token, groups) * len(groups.unique())


def _only_the_front(scores, token, groups):
    weights, ids = torch.zeros(len(scores)), groups.unique()
    for group in ids:
        rows = groups == group
        front = front_of(scores[rows])
        own = torch.zeros(int(rows.sum()))
        own[front] = own_reward(scores[rows][front], token[rows][front])
        weights[rows] = own / front.sum() / len(ids)
    return weights


def _batch(generator):
    """Three prompts, their pictures not side by side, with scales of their own."""
    groups = torch.arange(18) % 3
    scores = torch.randn(18, 3, generator=generator) + 2 * groups[:, None]
    return [scores, torch.randint(3, (18,), generator=generator), groups]


# --- 36.5: guidance with two prompts


def two_prompt_guidance(original, empty, expanded, w1, w2):
    """Equation 5: w1 e(c) + (1 - w1 - w2) e(empty) + w2 e(expanded)."""
    return w1 * original + (1 - w1 - w2) * empty + w2 * expanded


def _no_empty(original, empty, expanded, w1, w2):
    return w1 * original + w2 * expanded


def _averaged(original, empty, expanded, w1, w2):
    return (w1 * original + w2 * expanded) / (w1 + w2)


def _swapped(original, empty, expanded, w1, w2):
    return w2 * original + (1 - w1 - w2) * empty + w1 * expanded


def _three(generator):
    made = torch.randn(3, 2, 4, 3, 3, generator=generator)
    return [*made, 1.5, 4.0]


# --- 36.4: the size of a front


def expected_front(count, rewards_count):
    """K_m(N): the mean number of pictures on the front of independent rewards."""
    sizes = np.ones(count)
    for _ in range(rewards_count - 1):
        sizes = np.cumsum(sizes / np.arange(1, count + 1))
    return float(sizes[-1])


def _share(count, rewards_count):
    return expected_front(count, rewards_count) / count


def _one_too_many(count, rewards_count):
    return expected_front(count, rewards_count + 1)


def _one_too_few(count, rewards_count):
    return expected_front(count - 1, rewards_count) if count > 1 else 0.0


def _power(count, rewards_count):
    return float(np.sum(1 / np.arange(1, count + 1))) ** (rewards_count - 1)


def _sizes(generator):
    count = int(torch.randint(5, 40, (1,), generator=generator))
    return [count, int(torch.randint(3, 5, (1,), generator=generator))]


# --- 36.6: the dominated area


def dominated_area(points):
    """Area of the union of the boxes [0, x] x [0, y], points [N, 2] > 0."""
    x, order = points[:, 0].sort(descending=True)
    tallest = points[order, 1].cummax(0).values
    return ((x - torch.cat([x[1:], x.new_zeros(1)])) * tallest).sum()


def _sum_of_boxes(points):
    return points.prod(1).sum()


def _around_all(points):
    return points.amax(0).prod()


def _largest_box(points):
    return points.prod(1).max()


def _own_height(points):
    x, order = points[:, 0].sort(descending=True)
    return ((x - torch.cat([x[1:], x.new_zeros(1)])) * points[order, 1]).sum()


def _points(generator):
    return [0.1 + torch.rand(9, 2, generator=generator)]


# --- 36.q1: how many of 24


def _eight(seed):
    """Whether fronts of 24 pictures and three independent rewards hold 6 to 9 on average."""
    generator, sizes = torch.Generator().manual_seed(seed), []
    for _ in range(200):
        sizes.append(front_of(torch.randn(24, 3, generator=generator)).sum().item())
    return 6 < np.mean(sizes) < 9


EXERCISES = {
    "36.1": wb.Exercise(
        reference=front_of, inputs=_rows, minutes=10, difficulty=3,
        wrong={
            "being better in *one* reward is enough, if it is as good in the others":
                _beaten_everywhere,
            "two equal rows do not dominate each other: some reward must be strictly better":
                _ties_beat,
            "the other way round: those rows dominate nobody": _who_beats_nobody,
            "a row must be at least as good in *all* rewards to dominate": _somewhere_better,
            "the winners of single rewards are on the front, but they are not all of it": _winners,
        },
        hints=["Two Boolean tables [N, N]: i is at least as good as j everywhere; i is better "
               "than j somewhere. Both together: i dominates j.",
               "A row is lost if *any* other row dominates it: reduce over the axis of the "
               "dominating rows."]),
    "36.2": wb.Exercise(
        reference=own_reward, inputs=_units, minutes=5, difficulty=2,
        wrong={
            "shift by the lowest, not by the mean: the own reward is never negative": _centered,
            "raw rewards: shift and divide": _raw,
            "divide by the spread too": _only_shifted,
            "take the population standard deviation (divide by n): `correction=0`":
                _sample_spread,
            "the lowest of the prompt, reward by reward, not the lowest of the picture":
                _lowest_of_the_picture,
            "add 1e-6 to the spread, else equal rewards divide by zero": _no_floor,
            "only the reward of the picture's own token counts here": _all_rewards,
        },
        hints=["Shift and divide the whole table first, column by column.",
               "`table.gather(1, token[:, None])` picks one column in each row."]),
    "36.3": wb.Exercise(
        reference=parrot_weights, inputs=_batch, minutes=10, difficulty=3,
        wrong={
            "pictures compete with those of their own prompt only": _over_all,
            "divide by the size of the front, not by the number of pictures": _by_group_size,
            "the dominated pictures get 0: the selection is missing": _no_selection,
            "average over the prompts: divide by their number": _not_over_prompts,
            "the own reward is shifted by the lowest of the whole prompt, not of the front":
                _only_the_front,
        },
        hints=["Go through `groups.unique()` and fill in one prompt's rows at a time.",
               "For one prompt: own reward, times the front (True is 1), over the number on the "
               "front."]),
    "36.4": wb.Exercise(
        reference=expected_front, inputs=_sizes, minutes=10, difficulty=3,
        wrong={
            "that is the share; the expected number is asked for": _share,
            "one sum too many: K_1 is 1, without any sum": _one_too_many,
            "the sum runs to N, N included": _one_too_few,
            "the sums are nested: K_3 is not the square of K_2": _power,
        },
        hints=["Keep a whole list: K_{m-1}(1), ..., K_{m-1}(N).",
               "`np.cumsum` turns the list for m - 1 into the list for m."]),
    "36.5": wb.Exercise(
        reference=two_prompt_guidance, inputs=_three, minutes=5, difficulty=1,
        wrong={
            "the empty prompt has a weight too: all three sum to 1": _no_empty,
            "no average: classifier-free guidance goes *beyond* the predictions": _averaged,
            "w1 belongs to the original prompt": _swapped,
        },
        hints=["With w2 = 0 it must be ordinary guidance: w1 e(c) + (1 - w1) e(empty)."]),
    "36.6": wb.Exercise(
        reference=dominated_area, inputs=_points, minutes=10, difficulty=3,
        wrong={
            "boxes overlap, so that their areas do not add up": _sum_of_boxes,
            "this is the box around all points": _around_all,
            "this is the largest single box": _largest_box,
            "a stripe is as high as the tallest point at its right or beyond: `cummax`":
                _own_height,
        },
        hints=["Sort by the first reward, highest first. Between two neighbors lies a stripe.",
               "The stripe is as high as the tallest point so far."]),
}

QUIZZES = {
    "36.q1": wb.Quiz(
        "24 pictures of one prompt, three independent rewards. How many stand on the front, on "
        "average?",
        ["3, the winner of each reward", "about 8", "12, half of them", "1, the best"],
        1, "K_3(24) is 7.7: the winners of single rewards and all that are good in pairs. So two "
        "thirds of the pictures teach nothing.",
        holds=_eight),
    "36.q2": wb.Quiz(
        "After eight rounds with equally many pictures, which order of the mean gain of the three "
        "truths do you expect?",
        ["Parrot first, then the two sums, the shuffled arm last",
         "the two sums a little ahead of Parrot, the shuffled arm last",
         "look alone first, since it has one goal only; the shuffled arm last",
         "all within each other's luck, the shuffled arm included"],
        1, "The study measured 0.16 and 0.13 for the sums, 0.04 for Parrot and -0.20 for the "
        "shuffled arm. A sum learns from all 48 pictures of a round, Parrot from a third of them, "
        "and without pushing any away. (The lead of the sums is not beyond doubt: see row C1.)"),
}
