"""Exercises and questions of notebook 20 (RPCD): references, known mistakes, hints, answers."""

import math
from collections import Counter

import torch

from rlgenkit import workbook as wb

# --- 20.1: shares of one comment


def shares_of(values):
    """Shares (negative, neutral, positive) of one comment: list of valences -> [3].

    Three zeros for a comment without words.
    """
    positive = sum(v + 1 for v in values if v > 0)
    negative = sum(1 - v for v in values if v < 0)
    neutral = sum(v == 0 for v in values)
    total = max(positive + negative + neutral, 1)
    return torch.tensor([negative, neutral, positive]) / total


def _counted(values):
    kinds = [sum(v < 0 for v in values), sum(v == 0 for v in values), sum(v > 0 for v in values)]
    return torch.tensor(kinds) / max(len(values), 1)


def _without_one(values):
    kinds = [
        sum(-v for v in values if v < 0),
        sum(v == 0 for v in values),
        sum(v for v in values if v > 0),
    ]
    return torch.tensor(kinds) / max(sum(kinds), 1)


def _per_word(values):
    return shares_of(values) * (sum(1 + abs(v) if v else 1 for v in values) / max(len(values), 1))


def _other_order(values):
    return shares_of(values).flip(0)


def _signed(values):
    positive = sum(v + 1 for v in values if v > 0)
    negative = sum(v - 1 for v in values if v < 0)
    neutral = sum(v == 0 for v in values)
    return torch.tensor([negative, neutral, positive]) / max(positive - negative + neutral, 1)


def _no_guard(values):
    kinds = [
        sum(1 - v for v in values if v < 0),
        sum(v == 0 for v in values),
        sum(v + 1 for v in values if v > 0),
    ]
    return torch.tensor(kinds) / sum(kinds)


def _neutral_if_empty(values):
    return shares_of(values or [0.0])


def _feelings(generator):
    """Nine words, or a comment without any (one of three trials)."""
    values = torch.randint(-3, 4, (9,), generator=generator).float()
    values[:4] = torch.tensor([0.0, 2.5, -1.5, 0.0])
    return [values.tolist() if generator.initial_seed() % 3 else []]


# --- 20.2: the score


def polarity(shares):
    """Sentiment score s(c) = positive + neutral / 2: [N, 3] -> [N] in [0, 1]."""
    return shares[:, 2] + 0.5 * shares[:, 1]


def _difference(shares):
    return shares[:, 2] - shares[:, 0]


def _only_positive(shares):
    return shares[:, 2]


def _backward(shares):
    return shares[:, 0] + 0.5 * shares[:, 1]


def _three(generator):
    return [torch.rand(7, 3, generator=generator).softmax(1)]


# --- 20.3: informativeness


def information(comments):
    """I = -1/2 log(product of all q): comments as lists of units -> [N].

    q(unit): its occurrences over those of all units of its kind, in all comments.
    """
    total = torch.zeros(len(comments))
    for kind in range(2):  # nouns, then pairs
        counts = Counter(unit for comment in comments for unit in comment[kind])
        everything = counts.total()
        for row, comment in enumerate(comments):
            for unit in comment[kind]:
                total[row] -= 0.5 * math.log(counts[unit] / everything)
    return total


def _informed(comments, share, once=False, kinds=(0, 1), weight=-0.5):
    """Sum of `weight` log share(counts, unit, kind) over units, with a mistake of the caller's."""
    total = torch.zeros(len(comments))
    for kind in kinds:
        counts = Counter(unit for comment in comments for unit in comment[kind])
        for row, comment in enumerate(comments):
            for unit in set(comment[kind]) if once else comment[kind]:
                total[row] += weight * math.log(share(counts, unit, kind))
    return total


def _of_all(counts, unit, kind):
    return counts[unit] / counts.total()


def _whole(comments):
    return _informed(comments, _of_all, weight=-1.0)


def _types_once(comments):
    return _informed(comments, _of_all, once=True)


def _only_nouns(comments):
    return _informed(comments, _of_all, kinds=(0,))


def _by_comments(comments):
    def share(counts, unit, kind):
        return sum(unit in comment[kind] for comment in comments) / len(comments)

    return _informed(comments, share)


def _one_pool(comments):
    both = Counter(unit for comment in comments for kind in (0, 1) for unit in comment[kind])
    return _informed(comments, lambda counts, unit, kind: both[unit] / both.total())


def _per_unit(comments):
    sizes = [max(len(comment[0]) + len(comment[1]), 1) for comment in comments]
    return information(comments) / torch.tensor(sizes)


def _units(generator):
    """Five comments; a unit stands twice in the first, and the last one is empty."""
    comments = [(["sky", "sky", "tone"], ["blue sky", "dark tone"])]
    for _ in range(3):
        nouns = torch.randint(4, (3,), generator=generator).tolist()
        pairs = torch.randint(3, (2,), generator=generator).tolist()
        comments.append(([f"noun{k}" for k in nouns], [f"pair{k}" for k in pairs]))
    return [[*comments, ([], [])]]


# --- 20.4: the shrunk mean


def shrunk(means, number, center, strength):
    """(n mean + k center) / (n + k), center where n = 0: [P], Long[P] -> [P]."""
    blend = (number * means + strength * center) / (number + strength).clamp_min(1e-6)
    return torch.where(number > 0, blend, center)


def _same_for_all(means, number, center, strength):
    return (means + strength * center) / (1 + strength)


def _swapped(means, number, center, strength):
    blend = (strength * means + number * center) / (number + strength).clamp_min(1e-6)
    return torch.where(number > 0, blend, center)


def _to_zero(means, number, center, strength):
    return number * means / (number + strength).clamp_min(1e-6)


def _not_divided(means, number, center, strength):
    return number * means + strength * center


def _pictures(generator):
    """Numbers of comments 0, 0 and up, so that an empty picture is there."""
    number = torch.randint(7, (9,), generator=generator)
    number[:3] = torch.tensor([0, 1, 6])
    return [torch.rand(9, generator=generator) * (number > 0), number, torch.tensor(0.6), 2.0]


def _pictures_and_zero(generator):
    """As above, with k = 0 for one draw in two."""
    given = _pictures(generator)
    given[3] = float(2 * torch.randint(2, (1,), generator=generator))
    return given


# --- 20.5: EMD


def emd_loss(predicted, target):
    """Mean of sqrt(mean_c (F_hat - F)^2 + 1e-12), cumulated: [P, 3] twice -> scalar."""
    gap = predicted.cumsum(1) - target.cumsum(1)
    return (gap.square().mean(1) + 1e-12).sqrt().mean()


def _not_cumulated(predicted, target):
    return ((predicted - target).square().mean(1) + 1e-12).sqrt().mean()


def _no_root(predicted, target):
    return (predicted.cumsum(1) - target.cumsum(1)).square().mean()


def _root_outside(predicted, target):
    return ((predicted.cumsum(1) - target.cumsum(1)).square().mean() + 1e-12).sqrt()


def _absolute(predicted, target):
    return (predicted.cumsum(1) - target.cumsum(1)).abs().mean()


def _down_the_batch(predicted, target):
    gap = predicted.cumsum(0) - target.cumsum(0)
    return (gap.square().mean(1) + 1e-12).sqrt().mean()


def _no_number(predicted, target):
    return (predicted.cumsum(1) - target.cumsum(1)).square().mean(1).sqrt().mean()


def _large_number(number):
    def loss(predicted, target):
        gap = predicted.cumsum(1) - target.cumsum(1)
        return (gap.square().mean(1) + number).sqrt().mean()

    return loss


def _from_the_end(predicted, target):
    return emd_loss(predicted.flip(1), target.flip(1))


def _guesses(generator):
    """Six guesses; the first one is exact."""
    predicted = torch.rand(6, 3, generator=generator).softmax(1)
    target = torch.rand(6, 3, generator=generator).softmax(1)
    target[0] = predicted[0]
    return [predicted.requires_grad_(), target]


# --- 20.6: the mean of m readings


def correlation_of_mean(r, a, m):
    """Spearman-Brown: correlation of the mean of m readings with the truth."""
    return r * math.sqrt(m / (1 + (m - 1) * a))


def _no_overlap(r, a, m):
    return r * math.sqrt(m)


def _reliability(r, a, m):
    return m * r / (1 + (m - 1) * r)


def _no_correlation_root(r, a, m):
    return r * m / (1 + (m - 1) * a)


def _all_m(r, a, m):
    return r * math.sqrt(m / (1 + m * a))


def _noisy(generator):
    r, a = torch.rand(2, generator=generator).tolist()
    return [0.1 + 0.3 * r, 0.2 + 0.5 * a, int(torch.randint(2, 9, (1,), generator=generator))]


EXERCISES = {
    "20.1": wb.Exercise(
        reference=shares_of, inputs=_feelings, minutes=10, difficulty=2,
        wrong={
            "a word counts by its strength: 1 more than its valence": _counted,
            "each word with a feeling counts 1 more than its valence": _without_one,
            "divide by the sum of the three, not by the number of words": _per_word,
            "the order is negative, neutral, positive": _other_order,
            "shares are never negative: take the size of a negative word": _signed,
            "a comment without words must not divide by zero": _no_guard,
            "a comment without words gets three zeros": _neutral_if_empty,
        },
        hints=["Three sums: one over v > 0, one over v < 0, and the number of zeros.",
               "A word of valence -2 adds 3 to the negative sum."]),
    "20.2": wb.Exercise(
        reference=polarity, inputs=_three, minutes=3, difficulty=1,
        wrong={
            "neutral is the middle, 0.5: it counts one half": _only_positive,
            "that lies in -1..1; a wholly neutral comment must get 0.5": _difference,
            "the last column is positive": _backward,
        },
        hints=["A wholly positive comment gets 1, a wholly neutral one 0.5."]),
    "20.3": wb.Exercise(
        reference=information, inputs=_units, minutes=15, difficulty=3,
        wrong={
            "the factor is one half": _whole,
            "a unit that stands twice in a comment counts twice": _types_once,
            "pairs count as well as nouns": _only_nouns,
            "q is a share among occurrences of units, not among comments": _by_comments,
            "nouns and pairs have shares of their own": _one_pool,
            "it is a sum: a longer comment tells more": _per_unit,
        },
        hints=["The logarithm of a product is a sum of logarithms.",
               "One `Counter` for nouns and one for pairs, over all comments; `total()` is the "
               "number of units."]),
    "20.4": wb.Exercise(
        reference=shrunk, inputs=_pictures_and_zero, minutes=10, difficulty=2,
        wrong={
            "n belongs in it: many comments move less": _same_for_all,
            "n weighs the picture's own mean, k the center": _swapped,
            "shrink toward the center, not toward 0": _to_zero,
            "divide by n + k": _not_divided,
        },
        hints=["As if k further comments had all said `center`.",
               "With n = 0 and k = 0 the fraction is 0 / 0: `torch.where` puts the center there."]),
    "20.5": wb.Exercise(
        reference=emd_loss, inputs=_guesses, minutes=10, difficulty=2,
        wrong={
            "compare cumulated shares: the classes have an order": _not_cumulated,
            "take the root of each picture's mean square": _no_root,
            "the root comes before the mean over pictures": _root_outside,
            "squares, not absolute differences": _absolute,
            "cumulate over classes, axis 1": _down_the_batch,
            "without a number under the root an exact guess has no slope": _no_number,
            "the number under the root is 1e-12, not 1e-6": _large_number(1e-6),
            "the number under the root is 1e-12, not 1e-8": _large_number(1e-8),
            "equal for shares that sum to 1, but begin with negative, as F does": _from_the_end,
        },
        hints=["`cumsum(1)` of both, then the difference.",
               "Mean over the three classes, root, mean over pictures."]),
    "20.6": wb.Exercise(
        reference=correlation_of_mean, inputs=_noisy, minutes=10, difficulty=3,
        wrong={
            "readings are alike: two of them tell less than twice as much": _no_overlap,
            "r is the correlation with the truth; a is the one between readings": _reliability,
            "a correlation divides by a standard deviation: take a root": _no_correlation_root,
            "a reading is not its own neighbor: there are m - 1 others": _all_m,
        },
        hints=["The covariance of the mean of m readings with the truth is that of one reading.",
               "Divide it by the root of the mean's variance, (1 + (m - 1) a) / m."]),
}  # fmt: skip


def _six_comments(seed):
    """Whether six noisy readings rank more than 1.5 times as well as one where they are noisy."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(4000, generator=generator)
    readings = truth[:, None] + 2.5 * torch.randn(4000, 6, generator=generator)
    one = torch.corrcoef(torch.stack([truth, readings[:, 0]]))[0, 1]
    six = torch.corrcoef(torch.stack([truth, readings.mean(1)]))[0, 1]
    return 1.5 < float(six / one) < 2.45


QUIZZES = {
    "20.q1": wb.Quiz(
        "The labels of single pictures have an SRCC with the true look of about 0.45. The model "
        "that learns from them is tested on unseen pictures. Its SRCC is ...",
        ["below 0.45: no model is better than its labels",
         "about 0.45: it reproduces its labels",
         "maybe higher: noise of labels averages out",
         "about 0: nobody ever gave it a score"],
        2, "Noise in labels that has nothing to do with the picture cannot be learned, and "
        "thousands of pictures average it out. What remains is what critics agree on, right or "
        "wrong, as far as the features show it."),
    "20.q2": wb.Quiz(
        "A reading has correlation 0.37 with the truth; its noise is independent from comment to "
        "comment. With six comments instead of one the correlation is ...",
        ["six times as high, at most 1", "about 0.37: the noise stays",
         "about twice as high", "0.37 plus 6 times 0.1"],
        2, "Readings that share nothing but the truth agree with each other at 0.37 squared, 0.14. "
        "So 0.37 times the root of 6 / (1 + 5 times 0.14), about 0.7. What comments share besides "
        "the truth would stay.",
        holds=_six_comments),
}  # fmt: skip
