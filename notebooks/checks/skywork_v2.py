"""Exercises and questions of notebook 13 (Skywork-Reward-V2): references, known mistakes, hints."""

import torch

from rlgenkit import workbook as wb


def _labels(count, generator):
    return (torch.rand(count, generator=generator) < 0.5).float()


# --- 13.1: the chance of a label


def chance_of(label, first, second):
    """Chance of the labeled direction: labels [P], rewards [P], [P] -> [P] in 0..1."""
    gap = first - second
    return torch.sigmoid(torch.where(label > 0.5, gap, -gap))


def _of_the_first(label, first, second):
    return torch.sigmoid(first - second)


def _of_the_surer(label, first, second):
    return torch.sigmoid((first - second).abs())


def _of_the_other(label, first, second):
    return 1 - chance_of(label, first, second)


def _without_sigmoid(label, first, second):
    return torch.where(label > 0.5, first - second, second - first)


def _rewards(generator):
    first, second = 2 * torch.randn(2, 9, generator=generator)
    return [torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]), first, second]


# --- 13.2: the rule of retrieval


def neighbors_to_fetch(chance, k_max):
    """Neighbors of each verified pair: chances [G] in 0..1, int -> Long[G]."""
    unsure = torch.ceil(k_max * (1 - chance))
    return torch.where(chance <= 0.5, float(k_max), unsure).long()


def _surer_of_both(chance, k_max):
    return torch.ceil(k_max * (1 - torch.maximum(chance, 1 - chance))).long()


def _rounded_down(chance, k_max):
    unsure = torch.floor(k_max * (1 - chance))
    return torch.where(chance <= 0.5, float(k_max), unsure).long()


def _no_jump(chance, k_max):
    return torch.ceil(k_max * (1 - chance)).long()


def _more_where_sure(chance, k_max):
    return torch.where(chance <= 0.5, float(k_max), torch.ceil(k_max * chance)).long()


def _half_left_out(chance, k_max):
    unsure = torch.ceil(k_max * (1 - chance))
    return torch.where(chance < 0.5, float(k_max), unsure).long()


def _to_the_nearest(chance, k_max):
    unsure = torch.round(k_max * (1 - chance))
    return torch.where(chance <= 0.5, float(k_max), unsure).long()


def _always_eight(chance, k_max):
    return neighbors_to_fetch(chance, 8)


def _chances(generator):
    k_max = (8, 5, 11)[generator.initial_seed() % 3]
    return [torch.tensor([0.02, 0.3, 0.5, 0.51, 0.66, 0.8, 0.85, 0.93, 1.0]), k_max]


# --- 13.3: two filters


def two_filters(label, gold_chance, judge_agrees, best_chance):
    """[P], [P], Bool[P], [P] -> kept Bool[P], labels [P] with the others swapped."""
    second_opinion = judge_agrees | (best_chance > 0.5)
    keep = (gold_chance > 0.5) & second_opinion
    return keep, torch.where(keep, label, 1 - label)


def _any_of_them(label, gold_chance, judge_agrees, best_chance):
    keep = (gold_chance > 0.5) | judge_agrees | (best_chance > 0.5)
    return keep, torch.where(keep, label, 1 - label)


def _all_of_them(label, gold_chance, judge_agrees, best_chance):
    keep = (gold_chance > 0.5) & judge_agrees & (best_chance > 0.5)
    return keep, torch.where(keep, label, 1 - label)


def _wrong_brackets(label, gold_chance, judge_agrees, best_chance):
    keep = ((gold_chance > 0.5) & judge_agrees) | (best_chance > 0.5)
    return keep, torch.where(keep, label, 1 - label)


def _kept_are_swapped(label, gold_chance, judge_agrees, best_chance):
    keep, _ = two_filters(label, gold_chance, judge_agrees, best_chance)
    return keep, torch.where(keep, 1 - label, label)


def _nothing_swapped(label, gold_chance, judge_agrees, best_chance):
    keep, _ = two_filters(label, gold_chance, judge_agrees, best_chance)
    return keep, label


def _opinions(generator):
    every = torch.cartesian_prod(*[torch.tensor([0.2, 0.8])] * 4)  # all 16 cases
    return [every[:, 0].round(), every[:, 1], every[:, 2] > 0.5, every[:, 3]]


# --- 13.4: the exam


def style_grid(right, wrong):
    """Shares of pairs ranked well: rewards [N, 3], [N, 3], plain to loud -> [4]."""
    won = (right[:, :, None] > wrong[:, None, :]).float().mean(0)
    style = torch.arange(3)
    easy = won[style[:, None] > style[None]].mean()
    hard = won[style[:, None] < style[None]].mean()
    return torch.stack([won.mean(), easy, won.diagonal().mean(), hard])


def _easy_is_hard(right, wrong):
    return style_grid(right, wrong)[[0, 3, 2, 1]]


def _only_the_corners(right, wrong):
    won = (right[:, :, None] > wrong[:, None, :]).float().mean(0)
    return torch.stack([won.mean(), won[2, 0], won.diagonal().mean(), won[0, 2]])


def _equal_counts(right, wrong):
    won = (right[:, :, None] >= wrong[:, None, :]).float().mean(0)
    style = torch.arange(3)
    easy = won[style[:, None] > style[None]].mean()
    hard = won[style[:, None] < style[None]].mean()
    return torch.stack([won.mean(), easy, won.diagonal().mean(), hard])


def _answers(generator):
    """Rewards of style and substance, a few of them equal."""
    style = torch.tensor([0.0, 1.0, 2.0])
    right = 0.6 + style + torch.randn(40, 3, generator=generator)
    wrong = style + torch.randn(40, 3, generator=generator)
    wrong[:4] = right[:4]
    return [right, wrong]


# --- 13.5: should discarded pairs go back?


def swap_precision(kept, label, truth, checked):
    """Share of wrong labels among the discarded pairs that people checked."""
    return (label != truth)[checked & ~kept].float().mean()


def _of_all_discarded(kept, label, truth, checked):
    return (label != truth)[~kept].float().mean()


def _of_all_checked(kept, label, truth, checked):
    return (label != truth)[checked].float().mean()


def _of_the_kept(kept, label, truth, checked):
    return (label != truth)[checked & kept].float().mean()


def _share_right(kept, label, truth, checked):
    return (label == truth)[checked & ~kept].float().mean()


def _discarded_share_of_checked(kept, label, truth, checked):
    return ((label != truth) & checked & ~kept).sum() / checked.sum()


def _nothing_known_is_zero(kept, label, truth, checked):
    rows = checked & ~kept
    return (label != truth)[rows].float().sum() / rows.sum().clamp_min(1)


def _checked_pairs(generator):
    """Pairs of which people checked some; of every third draw no discarded one."""
    truth = _labels(60, generator)
    slip = torch.rand(60, generator=generator) < 0.4
    label = torch.where(slip, 1 - truth, truth)
    kept = torch.rand(60, generator=generator) < torch.where(slip, 0.2, 0.7)
    checked = torch.rand(60, generator=generator) < 0.5
    if generator.initial_seed() % 3 == 2:
        checked &= kept
    return [kept, label, truth, checked]


# --- 13.6: merged judges


def merged_verdict(one_order, other_order):
    """Merged verdicts: [J, N] in {0, 1}, [J, N] -> [N] in {0, 1/2, 1}."""
    steady = one_order == other_order
    lead = torch.where(steady, 2 * one_order - 1, torch.zeros_like(one_order)).sum(0)
    return lead.sign() / 2 + 0.5


def _all_have_a_say(one_order, other_order):
    return (2 * one_order - 1).sum(0).sign() / 2 + 0.5


def _mean_of_the_steady(one_order, other_order):
    steady = (one_order == other_order).float()
    return (one_order * steady).sum(0) / steady.sum(0).clamp_min(1)


def _tie_is_second(one_order, other_order):
    return (merged_verdict(one_order, other_order) > 0.5).float()


def _verdicts(generator):
    one = _labels(48, generator).view(4, 12)
    other = torch.where(torch.rand(4, 12, generator=generator) < 0.4, 1 - one, one)
    one[:, 0], other[:, 0] = 1.0, 0.0  # nobody is left
    one[:, 1] = other[:, 1] = torch.tensor([1.0, 1.0, 0.0, 0.0])  # a tie
    return [one, other]


EXERCISES = {
    "13.1": wb.Exercise(
        reference=chance_of,
        inputs=_rewards,
        wrong={
            "this is the chance of the first answer: look at the label": _of_the_first,
            "a surely wrong reward must give a low chance, not a high one": _of_the_surer,
            "this is the chance of the answer that the label does not name": _of_the_other,
            "a chance lies between 0 and 1": _without_sigmoid,
        },
        hints=[
            "Chosen less rejected: which is which depends on the label.",
            "torch.where, sigmoid",
        ],
        minutes=5,
        difficulty=1,
    ),
    "13.2": wb.Exercise(
        reference=neighbors_to_fetch,
        inputs=_chances,
        wrong={
            "with max(p, 1 - p) a sure mistake counts as knowledge": _surer_of_both,
            "round up, so that a little doubt fetches one neighbor": _rounded_down,
            "up, not to the nearest: 1.2 becomes 2": _to_the_nearest,
            "k_max is an argument, not always 8": _always_eight,
            "at p = 0.3 the label is judged wrong: fetch all k_max": _no_jump,
            "the surer the model, the fewer neighbors": _more_where_sure,
            "at exactly one half the model does not know: fetch all k_max": _half_left_out,
        },
        hints=[
            "What is missing to certainty is 1 - p.",
            "torch.ceil, then torch.where on p <= 0.5",
        ],
        minutes=5,
        difficulty=2,
    ),
    "13.3": wb.Exercise(
        reference=two_filters,
        inputs=_opinions,
        wrong={
            "one opinion is not enough: the gold model must agree too": _any_of_them,
            "the second opinion is the judge or the best model, one suffices": _all_of_them,
            "mind the brackets: gold and (judge or best)": _wrong_brackets,
            "swap the discarded labels, not the kept ones": _kept_are_swapped,
            "discarded labels come back swapped": _nothing_swapped,
        },
        hints=["First the second opinion: judge_agrees | ...", "Swapped is 1 - label."],
        minutes=10,
        difficulty=2,
    ),
    "13.4": wb.Exercise(
        reference=style_grid,
        inputs=_answers,
        wrong={
            "easy is where the right picture is the louder one": _easy_is_hard,
            "easy and hard are three pairs each, not the corner alone": _only_the_corners,
            "equal rewards rank nothing: ask for more, not for at least as much": _equal_counts,
        },
        hints=[
            "Compare all nine pairs at once: right[:, :, None] > wrong[:, None, :].",
            "Average over captions, then over the entries below, on and above the diagonal.",
        ],
        minutes=15,
        difficulty=3,
    ),
    "13.5": wb.Exercise(
        reference=swap_precision,
        inputs=_checked_pairs,
        wrong={
            "only of checked pairs do people know the truth": _of_all_discarded,
            "the kept ones do not go back: leave them out": _of_all_checked,
            "of the discarded ones, not of the kept": _of_the_kept,
            "a swap is right where the label was wrong": _share_right,
            "divide by the checked and discarded, not by all checked": _discarded_share_of_checked,
            "where no discarded pair was checked nothing is known: nan, not 0": _nothing_known_is_zero,
        },
        hints=["Choose the rows first: checked & ~kept.", "The mean of an empty tensor is nan."],
        minutes=10,
        difficulty=2,
    ),
    "13.6": wb.Exercise(
        reference=merged_verdict,
        inputs=_verdicts,
        wrong={
            "a judge that contradicts itself has no say": _all_have_a_say,
            "a share of votes is not a majority": _mean_of_the_steady,
            "a tie is 1/2": _tie_is_second,
        },
        hints=["Turn verdicts into -1 and 1; a judge without a say gets 0.", "The sign of a sum."],
        minutes=15,
        difficulty=3,
    ),
}

QUIZZES = {
    "13.q1": wb.Quiz(
        "From 1,000 to 6,000 raw pairs, three in ten labels wrong in favor of the louder picture:",
        [
            "errors average out, accuracy rises by five points and more",
            "it gains a few points at most, none of them on hard pairs",
            "it falls to one half",
        ],
        1,
        "Independent slips average out; errors that share a cause do not, and the model learns the cause.",
    ),
    "13.q2": wb.Quiz(
        "As many wrong labels, but independent of style; from 1,000 to 6,000 pairs:",
        [
            "accuracy hardly moves",
            "accuracy rises by three points and more",
            "accuracy falls, since there are more wrong labels",
        ],
        1,
        "Independent errors average out: twice the pairs halve the variance of what they teach.",
    ),
}
