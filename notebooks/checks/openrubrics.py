"""Exercises and questions of notebook 14 (OpenRubrics): references, known mistakes, answers."""

import torch

from rlgenkit import workbook as wb

# --- 14.1: the contrastive writer


def contrastive_rubric(found, chosen, rejected, least, most):
    """Found rules, and up to `most` leads of `least` or more of the chosen response."""
    ahead = (chosen - rejected)[:, 6:]
    largest = ahead.argsort(1, descending=True)[:, :most]
    named = torch.zeros_like(ahead, dtype=torch.bool).scatter_(1, largest, True)
    return torch.cat([found, named & (ahead >= least)], 1)


def _for_the_rejected(found, chosen, rejected, least, most):
    return contrastive_rubric(found, rejected, chosen, least, most)


def _all_leads(found, chosen, rejected, least, most):
    return contrastive_rubric(found, chosen, rejected, least, 10)


def _any_size(found, chosen, rejected, least, most):
    return contrastive_rubric(found, chosen, rejected, -2.0, most)


def _both_signs(found, chosen, rejected, least, most):
    apart = (chosen - rejected)[:, 6:].abs()
    largest = apart.argsort(1, descending=True)[:, :most]
    named = torch.zeros_like(apart, dtype=torch.bool).scatter_(1, largest, True)
    return torch.cat([found, named & (apart >= least)], 1)


def _rules_from_contrast(found, chosen, rejected, least, most):
    whole = contrastive_rubric(found, chosen, rejected, least, most)
    whole[:, :6] = (chosen > rejected)[:, :6]
    return whole


def _high_readings(found, chosen, rejected, least, most):
    return contrastive_rubric(found, chosen, torch.zeros_like(chosen), least, most)


def _fixed_most(found, chosen, rejected, least, most):
    return contrastive_rubric(found, chosen, rejected, least, 3)


def _fixed_least(found, chosen, rejected, least, most):
    return contrastive_rubric(found, chosen, rejected, 0.15, most)


def _reading(generator, count):
    rules = (torch.rand(count, 6, generator=generator) < 0.6).float()
    looks = torch.rand(count, 5, generator=generator)
    return torch.cat([rules, looks, 1 - looks], 1)


def _pairs(generator):
    found = torch.rand(12, 6, generator=generator) < 0.4
    most = 2 if generator.initial_seed() % 2 else 4
    chosen, rejected = _reading(generator, 12), _reading(generator, 12)
    near = 0.4 + torch.tensor([0.1, 0.03, 0.0, 0.0, 0.0])  # one lead above `least`, one below
    rejected[0, 6:], chosen[0, 6:] = 0.5, torch.cat([near + 0.1, 0.9 - near])
    return [found, chosen, rejected, 0.05, most]


# --- 14.2: the verdict


def rubric_verdict(first, second, rubrics):
    """Rules decide, then principles: [N, 16], [N, 16], Bool[N, 16] -> [N]."""
    gap = (first - second) * rubrics
    rules, principles = gap[:, :6].sum(1), gap[:, 6:].sum(1)
    side = torch.where(rules != 0, rules.sign(), principles.sign())
    return (1 + side) / 2


def _one_sum(first, second, rubrics):
    gap = ((first - second) * rubrics).sum(1)
    return (1 + gap.sign()) / 2


def _whole_list(first, second, rubrics):
    return rubric_verdict(first, second, torch.ones_like(rubrics))


def _principles_first(first, second, rubrics):
    gap = (first - second) * rubrics
    rules, principles = gap[:, :6].sum(1), gap[:, 6:].sum(1)
    side = torch.where(principles != 0, principles.sign(), rules.sign())
    return (1 + side) / 2


def _ties_to_first(first, second, rubrics):
    return (rubric_verdict(first, second, rubrics) >= 0.5).float()


def _signs(first, second, rubrics):
    return 2 * rubric_verdict(first, second, rubrics) - 1


def _rules_alone(first, second, rubrics):
    gap = (first - second) * rubrics
    return (1 + gap[:, :6].sum(1).sign()) / 2


def _judged(generator):
    first, second = _reading(generator, 24), _reading(generator, 24)
    rubrics = torch.rand(24, 16, generator=generator) < 0.35
    rubrics[:3, 6:] = False
    rubrics[3:6, :6] = False
    rubrics[0] = False
    first[6], second[6] = torch.zeros(16), torch.zeros(16)  # one rule against three principles
    first[6, 0], second[6, 6:9] = 1.0, 1.0
    first[6, 11:14] = 1.0
    rubrics[6] = torch.arange(16).unsqueeze(1).eq(torch.tensor([0, 6, 7, 8])).any(1)
    return [first, second, rubrics]


# --- 14.3: the filter


def consistent(chosen_first, chosen_second):
    """Preferred in both orders? [N], [N] in {0, 1/2, 1} -> Bool[N]."""
    return (chosen_first == 1) & (chosen_second == 0)


def _same_place(chosen_first, chosen_second):
    return (chosen_first == 1) & (chosen_second == 1)


def _one_order(chosen_first, chosen_second):
    return chosen_first == 1


def _either(chosen_first, chosen_second):
    return (chosen_first == 1) | (chosen_second == 0)


def _ties_pass(chosen_first, chosen_second):
    return (chosen_first >= 0.5) & (chosen_second <= 0.5)


def _mean(chosen_first, chosen_second):
    return (chosen_first + 1 - chosen_second) / 2 > 0.5


def _verdicts(generator):
    grid = torch.tensor([0.0, 0.5, 1.0])
    every = torch.cartesian_prod(grid, grid)
    every = every[torch.randperm(9, generator=generator)]
    return [every[:, 0], every[:, 1]]


# --- 14.4: the loss of the generator


def rubric_loss(logits, rubrics, kept):
    """Mean negative log-likelihood of kept rubrics: [N, 16], Bool[N, 16], Bool[N]."""
    target = rubrics.to(logits.dtype)
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return each.sum(1)[kept].mean()


def _all_rubrics(logits, rubrics, kept):
    return rubric_loss(logits, rubrics, torch.ones_like(kept))


def _mean_over_criteria(logits, rubrics, kept):
    return rubric_loss(logits, rubrics, kept) / logits.shape[1]


def _over_all(logits, rubrics, kept):
    return rubric_loss(logits, rubrics, kept) * kept.float().mean()


def _only_written(logits, rubrics, kept):
    each = -(torch.nn.functional.logsigmoid(logits) * rubrics).sum(1)
    return each[kept].mean()


def _one_choice(logits, rubrics, kept):
    each = -(logits.log_softmax(1) * rubrics).sum(1)
    return each[kept].mean()


def _lessons(generator):
    logits = torch.randn(8, 16, generator=generator).requires_grad_()
    rubrics = torch.rand(8, 16, generator=generator) < 0.4
    kept = torch.rand(8, generator=generator) < 0.6
    kept[:2] = torch.tensor([True, False])
    return [logits, rubrics, kept]


# --- 14.5: a pointwise score


def share_met(reading, rubrics):
    """Share of a rubric's criteria that are met: [N, 16], Bool[N, 16] -> [N]."""
    return ((reading >= 0.5) & rubrics).sum(1) / rubrics.sum(1)


def _soft(reading, rubrics):
    return (reading * rubrics).sum(1) / rubrics.sum(1)


def _of_sixteen(reading, rubrics):
    return ((reading >= 0.5) & rubrics).sum(1) / 16


def _default_zero(reading, rubrics):
    return share_met(reading, rubrics).nan_to_num(0.0)


def _above(reading, rubrics):
    return ((reading > 0.5) & rubrics).sum(1) / rubrics.sum(1)


def _scored(generator):
    reading = _reading(generator, 10)
    rubrics = torch.rand(10, 16, generator=generator) < 0.4
    rubrics[0] = False
    rubrics[1, 6], reading[1, 6] = True, 0.5
    return [reading, rubrics]


# --- 14.6: a vote that abstains


def majority(looks):
    """Majority of K looks, nan where none is readable: [K, N] -> [N]."""
    readable = ~looks.isnan()
    balance = ((looks.nan_to_num(0.5) - 0.5).sign()).sum(0)
    side = (1 + balance.sign()) / 2
    return torch.where(readable.any(0), side, torch.nan)


def _unreadable_is_second(looks):
    votes = looks.nan_to_num(0.0).mean(0)
    return (1 + (votes - 0.5).sign()) / 2


def _even_is_second(looks):
    side = majority(looks)
    return torch.where(side.isnan(), side, (side > 0.5).float())


def _nothing_is_a_tie(looks):
    return majority(looks).nan_to_num(0.5)


def _share(looks):
    return looks.nanmean(0)


def _looks(generator):
    looks = torch.tensor([0.0, 0.5, 1.0])[torch.randint(3, (4, 12), generator=generator)]
    looks[torch.rand(looks.shape, generator=generator) < 0.3] = torch.nan
    looks[:, 0] = torch.nan
    looks[:, 1] = torch.tensor([1.0, 1.0, 0.0, 0.0])
    looks[:, 2] = torch.tensor([1.0, torch.nan, torch.nan, torch.nan])
    looks[:, 3] = torch.tensor([1.0, 1.0, 0.0, torch.nan])
    return [looks]


# --- 14.7: keep what teaches


def needed(with_first, with_second, bare_first, bare_second):
    """Consistent with the rubric and not without it: four times [N] -> Bool[N]."""
    return consistent(with_first, with_second) & ~consistent(bare_first, bare_second)


def _consistent_alone(with_first, with_second, bare_first, bare_second):
    return consistent(with_first, with_second)


def _bare_wrong(with_first, with_second, bare_first, bare_second):
    wrong = (bare_first == 0) & (bare_second == 1)
    return consistent(with_first, with_second) & wrong


def _bare_right(with_first, with_second, bare_first, bare_second):
    return consistent(with_first, with_second) & consistent(bare_first, bare_second)


def _places_mixed(with_first, with_second, bare_first, bare_second):
    return consistent(with_first, with_second) & ~((bare_first == 1) & (bare_second == 1))


def _four(generator):
    grid = torch.tensor([0.0, 0.5, 1.0])
    every = torch.cartesian_prod(grid, grid, grid, grid)
    every = every[torch.randperm(len(every), generator=generator)]
    return list(every.unbind(1))


EXERCISES = {
    "14.1": wb.Exercise(
        reference=contrastive_rubric,
        inputs=_pairs,
        wrong={
            "the rubric must speak for the chosen response, not for the rejected one": (
                _for_the_rejected
            ),
            "at most `most` principles": _all_leads,
            "a difference below `least` is not named": _any_size,
            "only leads of the chosen response count, not any difference": _both_signs,
            "rules come from the request, not from the contrast": _rules_from_contrast,
            "the contrast matters, not how high the chosen response reads": _high_readings,
            "`most` is an argument, not always three": _fixed_most,
            "`least` is an argument, not always 0.15": _fixed_least,
        },
        hints=[
            "Columns 6 and on hold 'more' and 'less' of each look: a lead of one is minus the other.",
            "argsort(descending=True) and scatter_ mark the largest; then ask for `least`.",
        ],
        minutes=15,
        difficulty=3,
    ),
    "14.2": wb.Exercise(
        reference=rubric_verdict,
        inputs=_judged,
        wrong={
            "rules decide before principles: do not add them up": _one_sum,
            "only criteria of the rubric count": _whole_list,
            "rules come first, then principles": _principles_first,
            "a tie is 1/2": _ties_to_first,
            "1 is the first place, 0 the second": _signs,
            "where rules tie, principles decide": _rules_alone,
        },
        hints=[
            "Multiply the differences by the rubric, then take two sums.",
            "torch.where(rules != 0, ..., ...) chooses which sum gives the sign.",
        ],
        minutes=10,
        difficulty=2,
    ),
    "14.3": wb.Exercise(
        reference=consistent,
        inputs=_verdicts,
        wrong={
            "verdicts name places: in the second order the chosen one stands second": _same_place,
            "ask for both orders": _one_order,
            "both orders, not one of them": _either,
            "a tie does not reproduce a preference": _ties_pass,
            "one right order and one tie is not both": _mean,
        },
        hints=["Where does the chosen response stand in each order?"],
        minutes=5,
        difficulty=1,
    ),
    "14.4": wb.Exercise(
        reference=rubric_loss,
        inputs=_lessons,
        wrong={
            "dropped rubrics must not count": _all_rubrics,
            "sum over criteria, mean over rubrics": _mean_over_criteria,
            "divide by the number of kept rubrics": _over_all,
            "what is not written counts, too: it has a probability": _only_written,
            "criteria are decided one by one: no softmax": _one_choice,
        },
        hints=[
            "Each criterion is a yes or no with its own probability.",
            "binary_cross_entropy_with_logits has reduction='none'.",
        ],
        minutes=10,
        difficulty=2,
    ),
    "14.5": wb.Exercise(
        reference=share_met,
        inputs=_scored,
        wrong={
            "count criteria that are met, do not average readings": _soft,
            "divide by the number of the rubric's criteria": _of_sixteen,
            "an empty rubric has no score, not the score 0": _default_zero,
            "0.5 counts as met": _above,
        },
        hints=["reading >= 0.5 gives Bool[N, 16]; combine it with the rubric."],
        minutes=5,
        difficulty=1,
    ),
    "14.6": wb.Exercise(
        reference=majority,
        inputs=_looks,
        wrong={
            "an unreadable look abstains, it does not vote for the second place": (
                _unreadable_is_second
            ),
            "even votes are a tie, 1/2": _even_is_second,
            "where no look is readable there is no verdict: nan": _nothing_is_a_tie,
            "the majority decides, not the share": _share,
        },
        hints=[
            "Turn each look into +1, 0 or -1; unreadable ones into 0.",
            "The sign of the sum says who wins; then put nan where nobody could read.",
        ],
        minutes=10,
        difficulty=2,
    ),
    "14.7": wb.Exercise(
        reference=needed,
        inputs=_four,
        wrong={
            "drop what the bare judge knows already": _consistent_alone,
            "unsure counts as well as wrong": _bare_wrong,
            "keep where the bare judge fails, not where it is right": _bare_right,
            "without the rubric, too, verdicts name places": _places_mixed,
        },
        hints=["`consistent` answers both questions."],
        minutes=5,
        difficulty=2,
    ),
}

QUIZZES = {
    "14.q1": wb.Quiz(
        "A label is wrong and the writer does not know it. When will the filter drop its rubric?",
        [
            "mostly when a rule of the request speaks against the label",
            "mostly when taste speaks against the label",
            "about equally in both cases",
        ],
        0,
        "Principles are written to explain the label, right or wrong, so a judge that follows them "
        "agrees with it. Rules come from the request; only they can contradict a wrong label.",
    ),
    "14.q2": wb.Quiz(
        "Without the filter, what happens to the two weights that the judge learns?",
        [
            "both become smaller by the same factor",
            "the weight of rules falls, that of principles stays",
            "the weight of principles falls, that of rules stays",
        ],
        1,
        "Wrong labels of pairs that rules decide say that rules do not matter. The filter drops just "
        "those. Nothing in the filter protects principles.",
    ),
    "14.q3": wb.Quiz(
        "One judge lets rules decide first; the other takes the response with the larger share of "
        "all criteria met. Whom do they prefer?",
        [
            "both the response with the better rules",
            "the first the better rules, the second the better principles",
            "the first the better principles, the second the better rules",
        ],
        1,
        "One rule outweighs any number of principles for the first judge. For the second three met "
        "criteria count more than one: a pretty response that breaks a rule wins.",
    ),
}
