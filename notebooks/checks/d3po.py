"""Exercises and questions of notebook 32 (D3PO): references, known mistakes, hints, answers."""

import math

import torch
from torch.nn import functional as F

from rlgenkit import workbook as wb

# --- 32.1: the table of choices


def choices(scores, groups):
    """h [B, B]: 1 where the row's picture is preferred, -1 where the column's, else 0."""
    order = (scores[:, None] - scores[None, :]).sign()
    rivals = groups[:, None] == groups[None, :]
    return order * rivals


def _across_prompts(scores, groups):
    return (scores[:, None] - scores[None, :]).sign()


def _sizes(scores, groups):
    return (scores[:, None] - scores[None, :]) * (groups[:, None] == groups[None, :])


def _wins_only(scores, groups):
    return choices(scores, groups).clamp(min=0)


def _columns(scores, groups):
    return choices(scores, groups).T


def _prompts(generator):
    """Eight pictures of three prompts, in no order, two of them equally good."""
    scores, groups = torch.randn(8, generator=generator), torch.arange(8) % 3
    scores[3] = scores[0]
    return [scores, groups]


# --- 32.2: the clipped log-ratio


def clipped_log_ratio(new, reference, clip):
    """log of the ratio, held within 1 - clip .. 1 + clip: [B, T], [B, T] -> [B, T]."""
    change = new - reference.detach()
    return change.clamp(math.log(1 - clip), math.log(1 + clip))


def _ratio(new, reference, clip):
    return (new - reference.detach()).exp().clamp(1 - clip, 1 + clip)


def _range_of_ratio(new, reference, clip):
    return (new - reference.detach()).clamp(1 - clip, 1 + clip)


def _symmetric(new, reference, clip):
    return (new - reference.detach()).clamp(-clip, clip)


def _never_clipped(new, reference, clip):
    return new - reference.detach()


def _attached(new, reference, clip):
    return (new - reference).clamp(math.log(1 - clip), math.log(1 + clip))


def _ratios(generator):
    """Ratios inside the range and outside on both sides; both sides carry gradients."""
    old = torch.randn(6, 4, generator=generator)
    new = old + 0.3 * torch.randn(6, 4, generator=generator)
    new[0, 0], new[0, 1] = old[0, 0] + 0.6, old[0, 1] - 0.6
    return [new.requires_grad_(True), old.requires_grad_(True), 0.2]


# --- 32.3: the loss of every pair and step


def preference_terms(log_ratio, wanted, beta):
    """-log sigmoid(beta h margin), 0 without a choice: [B, T], [B, B] -> [B, B, T]."""
    margin = log_ratio[:, None] - log_ratio[None, :]
    terms = -F.logsigmoid(beta * wanted[:, :, None] * margin)
    return terms * (wanted != 0)[:, :, None]


def _ties_kept(log_ratio, wanted, beta):
    margin = log_ratio[:, None] - log_ratio[None, :]
    return -F.logsigmoid(beta * wanted[:, :, None] * margin)


def _both_rise(log_ratio, wanted, beta):
    total = log_ratio[:, None] + log_ratio[None, :]
    return -F.logsigmoid(beta * wanted[:, :, None] * total) * (wanted != 0)[:, :, None]


def _turned(log_ratio, wanted, beta):
    return preference_terms(log_ratio, -wanted, beta)


def _wins_alone(log_ratio, wanted, beta):
    return preference_terms(log_ratio, wanted, beta) * (wanted > 0)[:, :, None]


def _without_beta(log_ratio, wanted, beta):
    return preference_terms(log_ratio, wanted, 1.0)


def _without_sign(log_ratio, wanted, beta):
    return preference_terms(log_ratio, wanted.abs(), beta)


def _wrong_axis(log_ratio, wanted, beta):
    return preference_terms(log_ratio.T, wanted, beta)


def _batch(generator):
    """As many pictures as steps, of two prompts, so that margins along the wrong axis show."""
    log_ratio = (0.3 * torch.randn(6, 6, generator=generator)).requires_grad_(True)
    scores = torch.rand(6, generator=generator).round()
    scores[:2] = torch.tensor([0.0, 1.0])
    return [log_ratio, choices(scores, torch.tensor([0, 0, 0, 1, 1, 1])), 0.5]


# --- 32.4: wins less losses


def order_advantages(wanted, groups):
    """(wins - losses) / number of rivals: [B, B], Long[B] -> [B]; 0 without rivals."""
    rivals = (groups[:, None] == groups[None, :]).sum(1) - 1
    return wanted.sum(1) / rivals.clamp(min=1)


def _self_counted(wanted, groups):
    return wanted.sum(1) / (groups[:, None] == groups[None, :]).sum(1)


def _no_losses(wanted, groups):
    rivals = (groups[:, None] == groups[None, :]).sum(1) - 1
    return (wanted > 0).sum(1) / rivals.clamp(min=1)


def _all_rivals(wanted, groups):
    return wanted.sum(1) / (len(groups) - 1)


def _losses_less_wins(wanted, groups):
    return order_advantages(wanted.T, groups)


def _alone(wanted, groups):
    return wanted.sum(1) / ((groups[:, None] == groups[None, :]).sum(1) - 1)


def _decided(wanted, groups):
    return wanted.sum(1) / (wanted != 0).sum(1).clamp(min=1)


def _tables(generator):
    """Three prompts with four, three and one pictures; marks, so that many are equal."""
    groups = torch.tensor([0, 1, 0, 2, 1, 0, 1, 0])
    scores = torch.randint(0, 2, (8,), generator=generator).float()
    scores[[0, 2, 5, 7]] = torch.tensor([1.0, 1.0, 1.0, 0.0])
    scores[[1, 4, 6]] = torch.tensor([0.0, 1.0, 0.0])
    return [choices(scores, groups), groups]


# --- 32.5: the missing minus


def pair_loss(log_ratio, first_wins, beta):
    """Loss [P] of pairs: log-ratios [2, P], first_wins [P] 1 or -1, float."""
    first, second = log_ratio
    return -F.logsigmoid(beta * first_wins * first - beta * first_wins * second)


def _missing_minus(log_ratio, first_wins, beta):
    first, second = log_ratio
    return -F.logsigmoid(beta * first_wins * first + beta * first_wins * second)


def _minus_in_front(log_ratio, first_wins, beta):
    first, second = log_ratio
    return -F.logsigmoid(beta * first_wins * second - beta * first_wins * first)


def _pairs(generator):
    """Five pairs, some won by the second."""
    log_ratio = (0.5 * torch.randn(2, 5, generator=generator)).requires_grad_(True)
    return [log_ratio, torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]), 0.7]


def _floor(seed):
    """Whether the smallest loss at epsilon = beta = 0.1 is 0.683 to three digits."""
    margin = math.log(1.1) - math.log(0.9)
    return round(math.log(1 + math.exp(-0.1 * margin)), 3) == 0.683


EXERCISES = {
    "32.1": wb.Exercise(
        reference=choices, inputs=_prompts, minutes=5, difficulty=1,
        wrong={
            "pictures of different prompts are no rivals": _across_prompts,
            "only the order counts: take the sign of the difference": _sizes,
            "who loses gets -1, so that the table is antisymmetric": _wins_only,
            "the row's picture is the one that is preferred at +1": _columns,
        },
        hints=["`scores[:, None] - scores[None, :]` holds all differences, row less column.",
               "The same trick with `==` says which pictures share a prompt."]),
    "32.2": wb.Exercise(
        reference=clipped_log_ratio, inputs=_ratios, minutes=5, difficulty=2,
        wrong={
            "return the logarithm of the clipped ratio, not the ratio": _ratio,
            "the bounds belong to the ratio: take their logarithms": _range_of_ratio,
            "the bounds are log(1 - clip) and log(1 + clip), which differ in size": _symmetric,
            "the clip is missing": _never_clipped,
            "the reference is a constant: detach it": _attached,
        },
        hints=["The ratio is exp(new - reference). Where does its clip range begin and end on "
               "the scale of the logarithm?",
               "`tensor.clamp(low, high)` has gradient 0 outside."]),
    "32.3": wb.Exercise(
        reference=preference_terms, inputs=_batch, minutes=10, difficulty=3,
        wrong={
            "a pair without a choice is no term: its log 2 must become 0": _ties_kept,
            "the margin is a difference: with a sum both steps become likelier": _both_rise,
            "the row's picture is preferred where `wanted` is +1": _turned,
            "entries of -1 are choices too; the divisor later counts them": _wins_alone,
            "the margin is multiplied by beta": _without_beta,
            "the margin is multiplied by the choice, 1 or -1": _without_sign,
            "pictures are the first axis of the log-ratios, steps the second": _wrong_axis,
        },
        hints=["`log_ratio[:, None] - log_ratio[None, :]` is [B, B, T]: row's picture less "
               "column's, at every step.",
               "`F.logsigmoid` is the logarithm of the logistic function; `wanted[:, :, None]` "
               "fits the margins."]),
    "32.4": wb.Exercise(
        reference=order_advantages, inputs=_tables, minutes=5, difficulty=2,
        wrong={
            "a picture is no rival of itself": _self_counted,
            "losses count as well, with a minus": _no_losses,
            "only pictures of the same prompt are rivals": _all_rivals,
            "a row holds the wins of its own picture as +1": _losses_less_wins,
            "a picture without rivals gets 0, not nan": _alone,
            "a picture with an equal mark is a rival too": _decided,
        },
        hints=["What is the sum of a row of the table?",
               "Count the rivals with `groups`; `clamp(min=1)` saves the lonely picture."]),
    "32.5": wb.Exercise(
        reference=pair_loss, inputs=_pairs, minutes=5, difficulty=2,
        wrong={
            "nothing has changed yet: both steps still become likelier": _missing_minus,
            "now the rejected step becomes likelier": _minus_in_front,
        },
        hints=["Descent raises what has a negative slope. Which slopes should the two steps "
               "have?"]),
}

QUIZZES = {
    "32.q1": wb.Quiz(
        "Nothing is learned yet: all log-ratios are 0. Three of the four pictures are fine, one "
        "is flawed. How does the push on the flawed one compare with the push on a fine one?",
        ["equally strong, in opposite directions",
         "three times as strong, in the opposite direction",
         "there is no push: all losses are log 2",
         "it depends on how much crisper the fine ones are"],
        1, "The flawed one is in three pairs, a fine one in one. Each pair pushes with half of "
        "beta, whatever the pictures look like."),
    "32.q2": wb.Quiz(
        "Some 40 % of the pictures are flawed at first, and a fifth of all marks are wrong. "
        "Which arms will have clearly fewer flawed pictures after five rounds, on fresh noise?",
        ["SFT and RWR: they imitate pictures that were called fine",
         "those that train the very steps that were taken: D3PO, and DDPO if it runs",
         "all of them: the marks are the same",
         "none: a fifth of wrong marks is too much"],
        1, "SFT and RWR imitate the policy's own few-step pictures, paleness included. D3PO and "
        "DDPO also learn from what was rejected."),
    "32.q3": wb.Quiz(
        "Beta and epsilon are 0.1, and the model has learned every pair perfectly. Where is "
        "the loss?",
        ["0.000", "0.347", "0.683", "0.703"],
        2, "The clipped margin is at most log 1.1 - log 0.9 = 0.2, so the loss is at least "
        "log(1 + exp(-0.02)) = 0.683.",
        holds=_floor),
}
