"""Exercises and questions of notebook 37 (reward hacking): references, known mistakes, hints."""

import torch

from rlgenkit import workbook as wb

# --- 37.1: advantages of a guarded reward


def guarded_advantages(liked, whole, groups, weight):
    """Both standardized in the group, added, standardized again: [B], [B], Long[B], float -> [B]."""
    advantages = torch.zeros_like(liked)
    for group in groups.unique():
        rows = groups == group
        total = _unit(liked[rows]) + weight * _unit(whole[rows])
        advantages[rows] = _unit(total)
    return advantages


def _unit(scores):
    return (scores - scores.mean()) / (scores.std(correction=0) + 1e-4)


def _raw_sum(liked, whole, groups, weight):
    advantages = torch.zeros_like(liked)
    for group in groups.unique():
        rows = groups == group
        advantages[rows] = _unit(liked[rows] + weight * whole[rows])
    return advantages


def _whole_batch(liked, whole, groups, weight):
    return guarded_advantages(liked, whole, torch.zeros_like(groups), weight)


def _no_weight(liked, whole, groups, weight):
    return guarded_advantages(liked, whole, groups, 1.0)


def _only_summed(liked, whole, groups, weight):
    advantages = torch.zeros_like(liked)
    for group in groups.unique():
        rows = groups == group
        advantages[rows] = _unit(liked[rows]) + weight * _unit(whole[rows])
    return advantages


def _sample_spread(liked, whole, groups, weight):
    def unit(scores):
        return (scores - scores.mean()) / (scores.std() + 1e-4)

    advantages = torch.zeros_like(liked)
    for group in groups.unique():
        rows = groups == group
        advantages[rows] = unit(unit(liked[rows]) + weight * unit(whole[rows]))
    return advantages


def _no_floor(liked, whole, groups, weight):
    def unit(scores):
        return (scores - scores.mean()) / scores.std(correction=0)

    advantages = torch.zeros_like(liked)
    for group in groups.unique():
        rows = groups == group
        advantages[rows] = unit(unit(liked[rows]) + weight * unit(whole[rows]))
    return advantages


def _prompts(generator):
    """Four pictures each of three prompts; the guard says the same about those of the last."""
    liked, groups = torch.randn(12, generator=generator), torch.arange(12) % 3
    whole = torch.rand(12, generator=generator)
    whole[groups == 2] = 0.5
    return [liked, whole, groups, 2.0]


# --- 37.2: P(whole) from the spellings of yes and no


def p_whole(yes, no):
    """P(no) / (P(yes) + P(no)), probabilities of spellings added: [B, K], [B, L] -> [B]."""
    return torch.sigmoid(no.logsumexp(1) - yes.logsumexp(1))


def _last_spelling(yes, no):
    return torch.sigmoid(no[:, -1] - yes[:, -1])


def _broken(yes, no):
    return 1 - p_whole(yes, no)


def _logs_added(yes, no):
    return torch.sigmoid(no.sum(1) - yes.sum(1))


def _mean_spelling(yes, no):
    return torch.sigmoid(no.exp().mean(1).log() - yes.exp().mean(1).log())


def _words(generator):
    """Log-probs of three spellings of yes and two of no."""
    logs = torch.randn(5, 9, generator=generator).log_softmax(1)
    return [logs[:, :3], logs[:, 3:5]]


# --- 37.3: the pair test


def pair_accuracy(whole, broken):
    """Share of pairs in which whole > broken, ties half: [N], [N] -> scalar."""
    return ((whole > broken).float() + (whole == broken).float() / 2).mean()


def _ties_lost(whole, broken):
    return (whole > broken).float().mean()


def _ties_won(whole, broken):
    return (whole >= broken).float().mean()


def _ties_left_out(whole, broken):
    kept = whole != broken
    return (whole > broken)[kept].float().mean()


def _turned(whole, broken):
    return 1 - pair_accuracy(whole, broken)


def _some_pairs(generator):
    """Nine pairs of a reward that knows three values, one tie at least."""
    values = torch.randint(3, (2, 9), generator=generator).float()
    values[1, 0] = values[0, 0]
    values[:, 1] = torch.tensor([1.0, 0.0])
    values[:, 2] = torch.tensor([2.0, 0.0])
    return [values[0], values[1]]


# --- 37.4: the share broken at an equal gain


def share_at(gains, shares, target):
    """Share broken where the gain first reaches target, by the line between two looks: float."""
    for k in range(len(gains)):
        if gains[k] >= target:
            if k == 0:
                return float(shares[0])
            part = (target - gains[k - 1]) / (gains[k] - gains[k - 1])
            return float(shares[k - 1] + part * (shares[k] - shares[k - 1]))
    return float(shares[-1])


def _last_time(gains, shares, target):
    below = [k for k in range(len(gains)) if gains[k] < target]
    k = below[-1] + 1 if below else 0
    if k == 0 or k == len(gains):
        return float(shares[min(k, len(gains) - 1)])
    part = (target - gains[k - 1]) / (gains[k] - gains[k - 1])
    return float(shares[k - 1] + part * (shares[k] - shares[k - 1]))


def _no_line(gains, shares, target):
    for k in range(len(gains)):
        if gains[k] >= target:
            return float(shares[k])
    return float(shares[-1])


def _largest_gain(gains, shares, target):
    best = int(torch.as_tensor(gains).argmax())
    return share_at(gains, shares, target) if gains[best] >= target else float(shares[best])


def _interpolated(gains, shares, target):
    import numpy

    return float(numpy.interp(target, gains, shares))


def _beyond(gains, shares, target):
    for k in range(1, len(gains)):
        if gains[k] > target:
            part = (target - gains[k - 1]) / (gains[k] - gains[k - 1])
            return float(shares[k - 1] + part * (shares[k] - shares[k - 1]))
    return float(shares[-1])


def _curve(generator):
    """A gain that rises to 2, falls, and rises again, with targets of four sorts: between looks,
    at a look, reached from the start, out of reach."""
    draw, sort = torch.rand(4, generator=generator), int(torch.randint(4, (), generator=generator))
    gains = torch.tensor([0.0, -0.2, 2.0, 0.5, 1.8]) + 0.1 * torch.cat([torch.zeros(1), draw])
    shares = torch.tensor([0.1, 0.2, 0.6, 0.3, 0.4]) + 0.05 * torch.cat([torch.zeros(1), draw])
    target = (1.95, float(gains[2]), 0.0, 5.0)[sort]
    return [gains, shares, target]


# --- 37.5: who has the say in a sum


def shares_of_say(scores, weights, groups):
    """|w_k| times the root mean within-group variance, over the sum: [K, B], [K], Long[B] -> [K]."""
    centered = scores.clone()
    for group in groups.unique():
        rows = groups == group
        centered[:, rows] -= centered[:, rows].mean(1, keepdim=True)
    say = weights.abs() * centered.square().mean(1).sqrt()
    return say / say.sum()


def _whole_spread(scores, weights, groups):
    say = weights.abs() * scores.std(1, correction=0)
    return say / say.sum()


def _variances(scores, weights, groups):
    say = weights * shares_of_say(scores, torch.ones_like(weights), groups) ** 2
    return say / say.sum()


def _weights_alone(scores, weights, groups):
    return weights.abs() / weights.abs().sum()


def _not_shared(scores, weights, groups):
    centered = scores.clone()
    for group in groups.unique():
        rows = groups == group
        centered[:, rows] -= centered[:, rows].mean(1, keepdim=True)
    return weights.abs() * centered.square().mean(1).sqrt()


def _bank(generator):
    """Three rewards of eight pictures; prompts differ much more than the pictures of one."""
    groups = torch.arange(8) // 4
    scores = torch.randn(3, 8, generator=generator) * torch.tensor([[0.1], [1.0], [0.4]])
    scores[0] += 5.0 * groups
    return [scores, torch.tensor([2.0, 1.0, 0.5]), groups]


def _quarter(seed):
    """Whether 16 equal errors average to one of the same length and 16 others to a quarter."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(16, 500, generator=generator) / 500**0.5
    return abs(draws.mean(0).norm() - 0.25) < 0.05


EXERCISES = {
    "37.1": wb.Exercise(
        reference=guarded_advantages, inputs=_prompts, minutes=10, difficulty=2,
        wrong={
            "standardize each score before you add them: raw sums follow the larger spread":
                _raw_sum,
            "every picture competes with those of its own prompt, not with the whole batch":
                _whole_batch,
            "the guard's weight is missing": _no_weight,
            "the sum is standardized once more, else a heavy guard means large updates":
                _only_summed,
            "take the population deviation (divide by n): `correction=0`": _sample_spread,
            "add 1e-4 to the deviation: a guard that says the same everywhere divides by zero":
                _no_floor,
        },
        hints=["Write a helper that standardizes [n] numbers and use it three times.",
               "Go through `groups.unique()` and fill in the rows of one prompt at a time."]),
    "37.2": wb.Exercise(
        reference=p_whole, inputs=_words, minutes=5, difficulty=2,
        wrong={
            "spellings add up, the last must not overwrite the others": _last_spelling,
            "this is the chance that the picture is broken": _broken,
            "add probabilities, not logarithms": _logs_added,
            "add the spellings' probabilities, do not average them": _mean_spelling,
        },
        hints=["`logsumexp` adds probabilities that are given as logarithms.",
               "P / (P + Q) is a sigmoid of log P - log Q."]),
    "37.3": wb.Exercise(
        reference=pair_accuracy, inputs=_some_pairs, minutes=5, difficulty=1,
        wrong={
            "a tie counts half: a reward that cannot tell is not wrong": _ties_lost,
            "a tie counts half: a reward that cannot tell is not right": _ties_won,
            "a tie stays among the pairs and counts half": _ties_left_out,
            "right means that the whole picture scores higher": _turned,
        },
        hints=["Two comparisons, `>` and `==`, each turned into numbers.",
               "A reward that says the same about all pictures must get 0.5."]),
    "37.4": wb.Exercise(
        reference=share_at, inputs=_curve, minutes=10, difficulty=2, trials=16,
        wrong={
            "`interp` needs gains that only rise: walk from look to look": _interpolated,
            "a look whose gain *equals* the target has reached it, the first one too": _beyond,
            "take the *first* time that the gain reaches the target": _last_time,
            "take the line between the look before and the look after": _no_line,
            "if the target is never reached, take the last look": _largest_gain,
        },
        hints=["Go through the looks and stop at the first that reaches the target.",
               "Between two looks a part (target - gain before) / (gain after - gain before) "
               "of the way is gone."]),
    "37.5": wb.Exercise(
        reference=shares_of_say, inputs=_bank, minutes=10, difficulty=3,
        wrong={
            "differences between prompts do not reach the advantages: take the spread within "
            "groups": _whole_spread,
            "the spread is a deviation, not a variance": _variances,
            "a weight says little without the spread": _weights_alone,
            "shares sum to 1": _not_shared,
        },
        hints=["First subtract from each score the mean of its prompt.",
               "Then the root of the mean square of each row, times the weight."]),
}

QUIZZES = {
    "37.q1": wb.Quiz(
        "The guard gets twice the weight of the preference reward, on standardized scores. What do "
        "you expect at the end of training, compared with the preference reward alone?",
        ["fewer broken pictures, and just as much gain",
         "fewer broken pictures, and less gain",
         "as many broken pictures: a small guard is fooled at once",
         "no broken pictures at all"],
        1, "The sum is standardized, so what the guard gets is taken from the preference: less "
        "push there, whatever the guard does. The paper reports fewer artifacts in all arms."),
    "37.q2": wb.Quiz(
        "Sixteen rewards are averaged. How long is the mean of their errors, compared with one "
        "error, if all errors are equal? And if they are independent?",
        ["a quarter; a sixteenth", "the same; a quarter", "the same; a sixteenth",
         "a quarter; the same"],
        1, "Equal errors average to themselves. Independent ones add up in squares: 1 / sqrt(16).",
        holds=_quarter),
}
