"""Exercises and questions of notebook 27 (Critique-RL): references, known mistakes, answers."""

import torch

from rlgenkit import workbook as wb

# --- 27.1: the reward of stage II


def two_part_reward(agrees, helped, bonus):
    """-1 for a wrong or missing verdict, else helped + bonus: Bool[B], [B], float -> [B]."""
    return torch.where(agrees, helped + bonus, -1.0)


def _tip(agrees, helped, bonus):
    return helped + bonus * agrees


def _without_bonus(agrees, helped, bonus):
    return torch.where(agrees, helped, -1.0)


def _halves(agrees, helped, bonus):
    return helped + torch.where(agrees, bonus, -1.0)


def _fixed_bonus(agrees, helped, bonus):
    return two_part_reward(agrees, helped, 0.2)


def _verdicts(generator):
    agrees = torch.rand(8, generator=generator) < 0.5
    agrees[:2] = torch.tensor([True, False])
    helped = torch.randint(2, (8,), generator=generator).float()
    helped[:2] = 1.0
    return [agrees, helped, 0.3 + torch.rand((), generator=generator).item()]


# --- 27.2: leave-one-out advantages


def leave_one_out(rewards, groups):
    """Reward minus the mean reward of the others of its group: [B], Long[B] -> [B]."""
    same = (groups[:, None] == groups[None, :]).float()
    others = same - torch.eye(len(rewards))
    return rewards - others @ rewards / others.sum(1)


def _with_itself(rewards, groups):
    same = (groups[:, None] == groups[None, :]).float()
    return rewards - same @ rewards / same.sum(1)


def _whole_batch(rewards, groups):
    return leave_one_out(rewards, torch.zeros_like(groups))


def _standardized(rewards, groups):
    advantages = torch.zeros_like(rewards)
    for group in groups.unique():
        rows = groups == group
        mean, spread = rewards[rows].mean(), rewards[rows].std(correction=0)
        advantages[rows] = (rewards[rows] - mean) / (spread + 1e-6)
    return advantages


def _always_three(rewards, groups):
    same = (groups[:, None] == groups[None, :]).float() - torch.eye(len(rewards))
    return rewards - same @ rewards / 3


def _neighbors(rewards, groups):
    return leave_one_out(rewards, groups.sort().values)


def _groups(generator):
    sizes = torch.tensor([2, 4, 6])[torch.randperm(3, generator=generator)]
    groups = torch.arange(3).repeat_interleave(sizes)
    groups = groups[torch.randperm(12, generator=generator)]
    return [torch.randn(12, generator=generator), groups]


# --- 27.3: returns of tokens


def token_returns(advantages, away, price):
    """Advantage at the last token, minus price * away at each, summed to the end: -> [B, T]."""
    each = -price * away
    each[:, -1] += advantages
    return each.flip(1).cumsum(1).flip(1)


def _no_sum(advantages, away, price):
    each = -price * away
    each[:, -1] += advantages
    return each


def _from_the_start(advantages, away, price):
    return _no_sum(advantages, away, price).cumsum(1)


def _paid(advantages, away, price):
    return token_returns(advantages, -away, price)


def _everywhere(advantages, away, price):
    each = advantages[:, None] - price * away
    return each.flip(1).cumsum(1).flip(1)


def _whole_answer(advantages, away, price):
    return (advantages - price * away.sum(1))[:, None].expand_as(away).clone()


def _without_itself(advantages, away, price):
    return token_returns(advantages, away, price) + price * away


def _fixed_price(advantages, away, price):
    return token_returns(advantages, away, 0.3)


def _tokens(generator):
    price = 0.4 + torch.rand((), generator=generator).item()
    return [
        torch.randn(5, generator=generator),
        torch.randn(5, 6, generator=generator).requires_grad_(),
        price,
    ]


# --- 27.4: what a critic that does not judge earns


def mean_reward(table, chance, heal, harm):
    """Mean reward of a critic: table [2, 2] (first answer, revised), three floats -> scalar."""
    wrong = heal * table[0, 1] + (1 - heal) * table[0, 0]
    right = harm * table[1, 0] + (1 - harm) * table[1, 1]
    return (1 - chance) * wrong + chance * right


def _transposed(table, chance, heal, harm):
    return mean_reward(table.T, chance, heal, harm)


def _swapped(table, chance, heal, harm):
    return mean_reward(table, 1 - chance, heal, harm)


def _kept_for_harmed(table, chance, heal, harm):
    return mean_reward(table, chance, heal, 1 - harm)


def _worth(generator):
    return [torch.randn(2, 2, generator=generator), *torch.rand(3, generator=generator)]


# --- 27.5: a parser that cannot be fooled


def safe_verdict(words):
    """+1 for Correct, -1 for Wrong, 0 for none or both: list of words -> int."""
    says_right, says_wrong = "Correct" in words, "Wrong" in words
    return int(says_right) - int(says_wrong)


def _first_wins(words):
    return 1 if "Correct" in words else -1 if "Wrong" in words else 0


def _default(words):
    return 1 if "Correct" in words and "Wrong" not in words else -1


def _substring(words):
    return safe_verdict([word for word in ("Correct", "Wrong") if word in " ".join(words)])


def _count(words):
    return words.count("Correct") - words.count("Wrong")


def _majority(words):
    return (_count(words) > 0) - (_count(words) < 0)


def _any_case(words):
    return safe_verdict([word.capitalize() for word in words])


SENTENCES = [
    ["step", "Correct"],
    ["Wrong", "step"],
    ["Correct", "Wrong"],
    ["Wrong", "step", "Correct"],
    ["step", "step"],
    ["Correct", "step", "Correct"],
    ["Wrong", "Wrong"],
    ["Correct", "Correct", "Wrong"],
    ["notCorrect"],
    ["step", "Wrongly"],
    ["correct"],
    ["wrong", "step"],
]


def _sentences(generator):
    """Every sentence once in as many trials: the seeds of the trials are 0, 1, 2, ..."""
    return [list(SENTENCES[generator.initial_seed() % len(SENTENCES)])]


EXERCISES = {
    "27.1": wb.Exercise(
        reference=two_part_reward,
        inputs=_verdicts,
        wrong={
            "a wrong verdict still earns the revision: it must cancel it": _tip,
            "a right verdict earns the bonus, too": _without_bonus,
            "the two parts are added: a wrong verdict must override": _halves,
            "the bonus is an argument, not always 0.2": _fixed_bonus,
        },
        hints=[
            "The two lines of the equation are the two branches of one choice per critique.",
            "torch.where takes a condition, then what holds where it is true, then the rest.",
        ],
        minutes=5,
        difficulty=1,
    ),
    "27.2": wb.Exercise(
        reference=leave_one_out,
        inputs=_groups,
        wrong={
            "the mean holds the critique itself, too": _with_itself,
            "the others are those of the same answer, not of the batch": _whole_batch,
            "nothing is divided by a spread here": _standardized,
            "the others are not always three: count them in each group": _always_three,
            "groups need not be neighbors in the batch": _neighbors,
        },
        hints=[
            "The sum of the others is the sum of the group minus the critique itself.",
            "A matrix [B, B] that says who is in whose group makes it one product.",
        ],
        minutes=15,
        difficulty=3,
    ),
    "27.3": wb.Exercise(
        reference=token_returns,
        inputs=_tokens,
        wrong={
            "a token answers for all that follows: sum to the end": _no_sum,
            "sum from a token to the end, not from the start to it": _from_the_start,
            "leaving the reference is a price, not a reward": _paid,
            "the advantage arrives once, at the last token, before the sum": _everywhere,
            "a token pays for itself and what follows, not for what came before": _whole_answer,
            "a token pays its own price, too": _without_itself,
            "the price is an argument, not a number of yours": _fixed_price,
        },
        hints=[
            "First write down what each token earns by itself.",
            "flip, cumsum, flip sums from each place to the end.",
        ],
        minutes=15,
        difficulty=3,
    ),
    "27.4": wb.Exercise(
        reference=mean_reward,
        inputs=_worth,
        wrong={
            "rows are the first answer, columns the revised one": _transposed,
            "chance is that of a right first answer": _swapped,
            "harm is the share of right answers that become wrong": _kept_for_harmed,
        },
        hints=[
            "Four cases: wrong healed, wrong left, right broken, right left.",
            "Weigh each by how often it happens.",
        ],
        minutes=10,
        difficulty=2,
    ),
    "27.5": wb.Exercise(
        reference=safe_verdict,
        inputs=_sentences,
        trials=len(SENTENCES),
        wrong={
            "both words together are no verdict": _first_wins,
            "no word at all is no verdict": _default,
            "a word that only contains a verdict is none: compare whole words": _substring,
            "a verdict said twice counts once, and both together are none": _count,
            "a majority is no verdict: both together are none": _majority,
            "other spelling is no verdict": _any_case,
        },
        hints=[
            "Ask two questions: is the one word there, and is the other?",
            "`in` on a list compares whole words; on a text it finds parts of words.",
        ],
        minutes=5,
        difficulty=1,
    ),
}

QUIZZES = {
    "27.q1": wb.Quiz(
        "The actor refuses nearly every revision that makes an answer worse. What does the reward "
        "of the revision then teach about answers that were right?",
        ["to leave them alone", "nearly nothing", "to mark them less often"],
        1,
        "A false alarm is refused, so right answers stay right whatever the critic says: the "
        "critiques of one answer all earn the same, and equal rewards have no advantage.",
    ),
    "27.q2": wb.Quiz(
        "Stage I pays for the verdict alone, and a mark at the wrong place goes with a right "
        "verdict just as well. Do its marks move to the slips all the same?",
        ["no, they stay beside them", "yes, though nothing pays for them", "they vanish"],
        1,
        "The verdict is written after the marks and leans on them. Marks that find slips make "
        "right verdicts likelier, and each token shares its critique's advantage. Section 7 "
        "measures it.",
    ),
    "27.q3": wb.Quiz(
        "Rewards are +1 or -1, four critiques each. What happens to the leave-one-out advantage of "
        "a lone failure, and to those of a group with two failures, under GRPO?",
        [
            "both stay as they are",
            "both shrink, the lone failure's less",
            "the lone failure's grows, the others shrink",
        ],
        1,
        "The lone failure has -2 leave-one-out, and -1.5 / 0.87 = -1.73 in GRPO. With two failures "
        "1.33 becomes 1 / 1 = 1. Dividing by the spread favors groups that nearly agree.",
    ),
}
