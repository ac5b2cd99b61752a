"""Exercises and questions of notebook 24: references, known mistakes, hints, answers."""

import torch

from rlgenkit import workbook as wb

# --- 24.1: win rates


def win_rates(verdict, size):
    """Share of its duels that each picture wins: [groups, duels, ...] -> [groups, size, ...]."""
    one, other = torch.triu_indices(size, size, 1)
    wins = torch.zeros(len(verdict), size, *verdict.shape[2:])
    wins = wins.index_add(1, one, verdict).index_add(1, other, 1 - verdict)
    return wins / (size - 1)


def _lower_only(verdict, size):
    one, _ = torch.triu_indices(size, size, 1)
    wins = torch.zeros(len(verdict), size, *verdict.shape[2:])
    return wins.index_add(1, one, verdict) / (size - 1)


def _same_for_both(verdict, size):
    one, other = torch.triu_indices(size, size, 1)
    wins = torch.zeros(len(verdict), size, *verdict.shape[2:])
    return wins.index_add(1, one, verdict).index_add(1, other, verdict) / (size - 1)


def _by_size(verdict, size):
    return win_rates(verdict, size) * (size - 1) / size


def _turned(verdict, size):
    return win_rates(1 - verdict, size)


def _even_is_lost(verdict, size):
    return win_rates((verdict == 1).float(), size)


def _groups(generator):
    """Verdicts with and without an axis of categories."""
    shape = ((4, 10, 3), (4, 10))[int(torch.randint(2, (1,), generator=generator))]
    return [torch.randint(3, shape, generator=generator) / 2, 5]


# --- 24.2: the reward by categories


def category_reward(shares, category_weights):
    """Weighted mean of win rates by category: [groups, G, C], [C] -> [groups, G]."""
    return (shares * category_weights).sum(2) / category_weights.sum()


def _not_divided(shares, category_weights):
    return (shares * category_weights).sum(2)


def _by_count(shares, category_weights):
    return (shares * category_weights).mean(2)


def _unweighted(shares, category_weights):
    return shares.mean(2)


def _shares(generator):
    return [
        torch.rand(3, 5, 3, generator=generator),
        0.2 + torch.rand(3, generator=generator),
    ]


# --- 24.3: decoupled advantages


def _in_groups(reward, correction=0):
    spread = reward.std(1, correction=correction, keepdim=True)
    return (reward - reward.mean(1, keepdim=True)) / (spread + 1e-8)


def _in_batch(mixed):
    return (mixed - mixed.mean()) / (mixed.std(correction=0) + 1e-8)


def decoupled_advantages(by_overall, by_category, overall):
    """Two rewards [groups, G] -> advantages [groups, G]; overall: weight of the first."""
    mixed = overall * _in_groups(by_overall) + (1 - overall) * _in_groups(by_category)
    return _in_batch(mixed).clamp(-5, 5)


def _added_first(by_overall, by_category, overall):
    return _in_batch(_in_groups(overall * by_overall + (1 - overall) * by_category))


def _no_batch(by_overall, by_category, overall):
    mixed = overall * _in_groups(by_overall) + (1 - overall) * _in_groups(by_category)
    return mixed.clamp(-5, 5)


def _sample_deviation(by_overall, by_category, overall):
    mixed = overall * _in_groups(by_overall, 1) + (1 - overall) * _in_groups(by_category)
    return _in_batch(mixed).clamp(-5, 5)


def _whole_batch(by_overall, by_category, overall):
    return _in_batch(overall * _in_batch(by_overall) + (1 - overall) * _in_batch(by_category))


def _weights_turned(by_overall, by_category, overall):
    return decoupled_advantages(by_category, by_overall, overall)


def _unclipped(by_overall, by_category, overall):
    mixed = overall * _in_groups(by_overall) + (1 - overall) * _in_groups(by_category)
    return _in_batch(mixed)


def _clipped_above(by_overall, by_category, overall):
    return _unclipped(by_overall, by_category, overall).clamp(max=5)


def _no_floor(by_overall, by_category, overall):
    spread = [x.std(1, correction=0, keepdim=True) for x in (by_overall, by_category)]
    parts = [
        (x - x.mean(1, keepdim=True)) / wide
        for x, wide in zip((by_overall, by_category), spread)
    ]
    return _in_batch(overall * parts[0] + (1 - overall) * parts[1]).clamp(-5, 5)


def _two_rewards(generator):
    """Two wide rewards; in two groups one picture of forty stands out, in one all are equal."""
    one, two = torch.rand(2, 6, 40, generator=generator)
    scale = torch.tensor([1.0, 0.1, 3.0, 1.0, 0.5, 2.0])[:, None]
    one[0, 0], two[0, 0] = 40.0, 40.0
    one[3, 0], two[3, 0] = -40.0, -40.0
    one[5], two[5] = 0.5, 0.5
    return [one * scale, two * scale.flip(0), 0.3]


# --- 24.4: pairs of right traces


def both_right(right, rank):
    """Pairs (better, worse) of right traces: Bool[N, K], [N, K] -> Long[M, 2]."""
    best = rank.where(right, -1.0).max(1)
    worst = rank.where(right, 2.0).min(1)
    used = (right.sum(1) > 1) & (best.values > worst.values + 0.05)
    start = torch.arange(len(right)) * right.shape[1]
    pairs = torch.stack([start + best.indices, start + worst.indices], 1)
    return pairs[used]


def _wrong_ones_too(right, rank):
    return both_right(torch.ones_like(right), rank)


def _worse_first(right, rank):
    return both_right(right, rank).flip(1)


def _within_the_row(right, rank):
    return both_right(right, rank) % right.shape[1]


def _ties_too(right, rank):
    best = rank.where(right, -1.0).max(1)
    worst = rank.where(right, 2.0).min(1)
    start = torch.arange(len(right)) * right.shape[1]
    pairs = torch.stack([start + best.indices, start + worst.indices], 1)
    return pairs[right.sum(1) > 1]


def _traces(generator):
    right = torch.rand(12, 4, generator=generator) < 0.6
    right[0], right[1] = False, torch.tensor([False, True, False, False])
    right[2], right[3] = True, torch.tensor([True, True, False, True])
    # distinct ranks, so that best and worst are never a matter of order
    rank = torch.rand(12, 4, generator=generator).argsort(1) / 4 + 0.1
    rank[2] = torch.tensor([0.50, 0.51, 0.52, 0.53])  # too close
    rank[3] = torch.tensor([0.3, 0.6, 0.9, 0.4])  # the best one is wrong
    return [right, rank]


# --- 24.5: preference between traces


def preference_loss(chosen, rejected, reference_chosen, reference_rejected, beta):
    """Mean loss of DPO: four times [B], float -> scalar."""
    gain = (chosen - reference_chosen) - (rejected - reference_rejected)
    return -torch.nn.functional.logsigmoid(beta * gain).mean()


def _no_reference(chosen, rejected, reference_chosen, reference_rejected, beta):
    return -torch.nn.functional.logsigmoid(beta * (chosen - rejected)).mean()


def _sign(chosen, rejected, reference_chosen, reference_rejected, beta):
    return preference_loss(rejected, chosen, reference_rejected, reference_chosen, beta)


def _no_beta(chosen, rejected, reference_chosen, reference_rejected, beta):
    return preference_loss(chosen, rejected, reference_chosen, reference_rejected, 1.0)


def _summed(chosen, rejected, reference_chosen, reference_rejected, beta):
    loss = preference_loss(chosen, rejected, reference_chosen, reference_rejected, beta)
    return loss * len(chosen)


def _rising(chosen, rejected, reference_chosen, reference_rejected, beta):
    return -preference_loss(chosen, rejected, reference_chosen, reference_rejected, beta)


def _sums(generator):
    draw = torch.randn(4, 6, generator=generator)
    return [draw[0].requires_grad_(True), draw[1].clone().requires_grad_(True), *draw[2:], 0.4]


# --- 24.6: both orders


def both_orders(forward, backward):
    """Verdict for the lower number from two orders: [N], [N] -> [N]."""
    return torch.stack([forward, 1 - backward]).nanmean(0).nan_to_num(0.5)


def _not_turned(forward, backward):
    return torch.stack([forward, backward]).nanmean(0).nan_to_num(0.5)


def _one_is_enough(forward, backward):
    return ((forward + 1 - backward) / 2).nan_to_num(0.5)


def _left_nan(forward, backward):
    return torch.stack([forward, 1 - backward]).nanmean(0)


def _first_only(forward, backward):
    return forward.nan_to_num(0.5)


def _unread_is_lost(forward, backward):
    return (forward.nan_to_num(0.0) + 1 - backward.nan_to_num(1.0)) / 2


def _asked_twice(generator):
    values = torch.tensor([0.0, 0.5, 1.0, torch.nan])
    every = torch.cartesian_prod(values, values)
    every = every[torch.randperm(len(every), generator=generator)]
    return list(every.unbind(1))


# --- 24.7: the shadowed name and weights by place


def flexible_reward(by_overall, names, shares, weight):
    """Reward [N] from win rates [N], names of categories, [C, N] and a float."""
    own = torch.tensor([1.0 if name == "A" else 0.7 for name in names])
    mean = (own[:, None] * shares).sum(0) / own.sum()
    return (1 - weight) * by_overall + weight * mean


def _by_place(by_overall, names, shares, weight):
    return flexible_reward(by_overall, "ABC"[: len(names)], shares, weight)


def _shadowed(by_overall, names, shares, weight):
    last = 1.0 if names[-1] == "A" else 0.7
    return flexible_reward(by_overall, names, shares, last)


def _whole_norm(by_overall, names, shares, weight):
    own = torch.tensor([1.0 if name == "A" else 0.7 for name in names])
    return (1 - weight) * by_overall + weight * (own[:, None] * shares).sum(0) / 2.4


def _mixed_the_other_way(by_overall, names, shares, weight):
    return flexible_reward(by_overall, names, shares, 1 - weight)


def _missing(generator):
    """A judge that reorders its categories, and often leaves one out."""
    orders = (("C", "A"), ("B", "A"), ("B", "C"), ("C", "A", "B"), ("B", "A", "C"))
    names = orders[int(torch.randint(len(orders), (1,), generator=generator))]
    shares = torch.rand(len(names), 6, generator=generator)
    return [torch.rand(6, generator=generator), names, shares, 0.6]


EXERCISES = {
    "24.1": wb.Exercise(
        reference=win_rates,
        inputs=_groups,
        wrong={
            "the higher number of a duel wins what the lower one loses: 1 - verdict": _lower_only,
            "one picture's win is the other one's loss, not its win": _same_for_both,
            "nobody duels with itself: a picture has size - 1 duels": _by_size,
            "1 says that the lower number wins": _turned,
            "an undecided duel counts half for both": _even_is_lost,
        },
        hints=[
            "torch.triu_indices(size, size, 1) names the two pictures of every duel, in order.",
            "index_add along dimension 1 adds what each duel brings to its pictures.",
        ],
        minutes=15,
        difficulty=3,
    ),
    "24.2": wb.Exercise(
        reference=category_reward,
        inputs=_shares,
        wrong={
            "divide by the sum of the weights": _not_divided,
            "divide by the sum of the weights, not by their number": _by_count,
            "the categories have weights": _unweighted,
        },
        hints=["A weighted mean: the sum of weight times share, by the sum of the weights."],
        minutes=5,
        difficulty=1,
    ),
    "24.3": wb.Exercise(
        reference=decoupled_advantages,
        inputs=_two_rewards,
        wrong={
            "standardize each reward before mixing, not their sum": _added_first,
            "the mixture is standardized once more, over the whole batch": _no_batch,
            "population deviations: correction=0": _sample_deviation,
            "first within each group, not over the batch": _whole_batch,
            "`overall` is the weight of the first reward": _weights_turned,
            "clip at 5 on both sides": _unclipped,
            "clip at -5, too": _clipped_above,
            "a group of equal rewards has no spread: add 1e-8 to it": _no_floor,
        },
        hints=[
            "Three steps: each reward in its group, the mixture over the batch, the clip.",
            "std(1, correction=0, keepdim=True) keeps the axis for the division.",
        ],
        minutes=15,
        difficulty=3,
    ),
    "24.4": wb.Exercise(
        reference=both_right,
        inputs=_traces,
        wrong={
            "only right traces count, for the better and for the worse one": _wrong_ones_too,
            "the better trace comes first": _worse_first,
            "traces are numbered over all rows: row times K plus place": _within_the_row,
            "skip rows whose best and worst differ by 0.05 or less": _ties_too,
        },
        hints=[
            "rank.where(right, -1.0) hides the wrong ones from a maximum.",
            "For the minimum hide them behind a number above every rank.",
        ],
        minutes=15,
        difficulty=3,
    ),
    "24.5": wb.Exercise(
        reference=preference_loss,
        inputs=_sums,
        wrong={
            "what counts is the change from the reference": _no_reference,
            "the chosen trace must gain, the rejected one lose": _sign,
            "beta scales the gain": _no_beta,
            "a mean over pairs, not a sum": _summed,
            "gradient descent makes the loss small: mind the minus": _rising,
        },
        hints=["The gain of the chosen trace over its reference, less that of the rejected one."],
        minutes=5,
        difficulty=2,
    ),
    "24.6": wb.Exercise(
        reference=both_orders,
        inputs=_asked_twice,
        wrong={
            "backward speaks for the higher number: turn it round": _not_turned,
            "one readable answer is enough": _one_is_enough,
            "where no answer can be read, say 1/2": _left_nan,
            "use both orders": _first_only,
            "an unreadable answer is no loss": _unread_is_lost,
        },
        hints=["1 - backward is the verdict for the lower number.", "nanmean leaves out nan."],
        minutes=10,
        difficulty=2,
    ),
    "24.7": wb.Exercise(
        reference=flexible_reward,
        inputs=_missing,
        wrong={
            "the weight belongs to the name of a category, not to its place": _by_place,
            "the loop must not overwrite the weight that mixes": _shadowed,
            "divide by the weights of the categories that are there": _whole_norm,
            "`weight` belongs to the categories, the rest to the overall win rate": (
                _mixed_the_other_way
            ),
        },
        hints=["Name the loop's variable differently.", "Look the weight up by name."],
        minutes=10,
        difficulty=2,
    ),
}


QUIZZES = {
    "24.q1": wb.Quiz(
        "A plain Bradley-Terry reward that reads the caption's cue gets the same 500 labels as "
        "the judge that writes. Where does it end?",
        [
            "With the judges that do not read the caption",
            "Between those and the judge that writes",
            "Above the judge that writes",
        ],
        1,
        "24 cues with ten attributes each are much for 500 noisy labels. The judge that writes "
        "has a teacher who knows the cues.",
    ),
    "24.q2": wb.Quiz(
        "The policy learns from win rates within its group. What does the mean reward of a batch "
        "do while it learns?",
        ["It rises", "It stays at one half", "It rises and then falls"],
        1,
        "What one picture wins another one loses. Only the truth shows the progress.",
    ),
}
