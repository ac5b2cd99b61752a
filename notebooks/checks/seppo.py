"""Exercises and questions of notebook 33 (SePPO): references, known mistakes, hints, answers."""

import torch
from torch.nn import functional as F

from rlgenkit import workbook as wb

# --- 33.1: the anchor's sign


def anchor_sign(reference_error, current_error):
    """1: the current model fits the winner better, -1: the checkpoint, 0: a tie. [B]"""
    return (reference_error - current_error).detach().sign()


def _turned(reference_error, current_error):
    return (current_error - reference_error).detach().sign()


def _sizes(reference_error, current_error):
    return (reference_error - current_error).detach()


def _attached(reference_error, current_error):
    return torch.tanh(1e4 * (reference_error - current_error))


def _tie_is_a_flip(reference_error, current_error):
    return torch.where(reference_error.detach() > current_error.detach(), 1.0, -1.0)


def _zero_or_one(reference_error, current_error):
    return (reference_error > current_error).float()


def _batch_mean(reference_error, current_error):
    gap = (reference_error - current_error).detach().mean().sign()
    return gap.expand(len(reference_error))


def _errors(generator):
    """Errors of reference and current model; the current one's carries a gradient."""
    reference = torch.rand(8, generator=generator)
    current = reference + 0.1 * torch.randn(8, generator=generator)
    current[0] = reference[0]  # a tie, as right after a checkpoint
    return [reference, current.requires_grad_(True)]


# --- 33.2: one loss for all


def signed_terms(winner_change, reference_change, sign, beta):
    """-log sigmoid(-beta (winner - sign * reference)): three [B] and a float -> [B]."""
    return -F.logsigmoid(-beta * (winner_change - sign * reference_change))


def _rising(winner_change, reference_change, sign, beta):
    return -F.logsigmoid(beta * (winner_change - sign * reference_change))


def _both_signed(winner_change, reference_change, sign, beta):
    return -F.logsigmoid(-beta * sign * (winner_change - reference_change))


def _added(winner_change, reference_change, sign, beta):
    return -F.logsigmoid(-beta * (winner_change + sign * reference_change))


def _no_beta(winner_change, reference_change, sign, beta):
    return signed_terms(winner_change, reference_change, sign, 1.0)


def _unsigned(winner_change, reference_change, sign, beta):
    return signed_terms(winner_change, reference_change, torch.ones_like(sign), beta)


def _no_log(winner_change, reference_change, sign, beta):
    return 1 - torch.sigmoid(-beta * (winner_change - sign * reference_change))


def _changes(generator):
    """Changes of both errors, with gradients, and signs of all three kinds."""
    winner = (0.1 * torch.randn(9, generator=generator)).requires_grad_(True)
    reference = (0.1 * torch.randn(9, generator=generator)).requires_grad_(True)
    return [winner, reference, torch.tensor([1.0, -1.0, 0.0] * 3), 7.0]


# --- 33.3: the signs of each method


def sign_vector(rule, reference_error, current_error):
    """Signs [B] of the reference terms, rule "none", "anchor" or "indicator"."""
    if rule == "none":
        return torch.ones_like(reference_error)
    sign = anchor_sign(reference_error, current_error)
    return sign.clamp(min=0) if rule == "indicator" else sign


def _none_is_zero(rule, reference_error, current_error):
    sign = sign_vector(rule, reference_error, current_error)
    return 0 * sign if rule == "none" else sign


def _indicator_is_sign(rule, reference_error, current_error):
    kind = "anchor" if rule == "indicator" else rule
    return sign_vector(kind, reference_error, current_error)


def _indicator_of_flips(rule, reference_error, current_error):
    sign = sign_vector(rule, reference_error, current_error)
    if rule == "indicator":
        return anchor_sign(current_error, reference_error).clamp(min=0)
    return sign


def _rules(generator):
    """One of the three rules, another in each trial, and errors of eight winners."""
    rule = ("none", "anchor", "indicator")[generator.initial_seed() % 3]
    return [rule, *_errors(generator)]


# --- 33.4: the audit of the flips


def flip_precision(sign, reference_worth, current_worth):
    """Share of references as good as the current model's picture, flipped and all: [B] x 3 -> [2]."""
    good, flipped = (reference_worth >= current_worth).float(), (sign < 0).float()
    precision = (good * flipped).sum() / flipped.sum()
    return torch.stack([precision, good.mean()])


def _recall(sign, reference_worth, current_worth):
    good, flipped = (reference_worth >= current_worth).float(), (sign < 0).float()
    return torch.stack([(good * flipped).sum() / good.sum().clamp(min=1), good.mean()])


def _kept_instead(sign, reference_worth, current_worth):
    return flip_precision(-sign, reference_worth, current_worth)


def _worse_counted(sign, reference_worth, current_worth):
    return flip_precision(sign, -reference_worth, -current_worth)


def _over_all(sign, reference_worth, current_worth):
    good, flipped = (reference_worth >= current_worth).float(), (sign < 0).float()
    return torch.stack([(good * flipped).mean(), good.mean()])


def _flips_as_base(sign, reference_worth, current_worth):
    answer = flip_precision(sign, reference_worth, current_worth)
    return torch.stack([answer[0], (sign < 0).float().mean()])


def _audited(generator):
    """Forty references with signs that are nearly always right, some of them flipped, and some ties."""
    worth = torch.randn(40, generator=generator)
    current = torch.randn(40, generator=generator)
    current[:3] = worth[:3]
    hint = worth - current + torch.randn(40, generator=generator)
    sign = torch.where(hint > 0.5, -1.0, 1.0)
    sign[:4] = torch.tensor([-1.0, 1.0, -1.0, 0.0])
    return [sign, worth, current]


# --- 33.5: the weight that fades


def flipped_weight(winner_change, reference_change, beta):
    """Slope of a flipped term with respect to the winner's error: two [B], float -> [B]."""
    return beta * torch.sigmoid(beta * (winner_change + reference_change))


def _kept_weight(winner_change, reference_change, beta):
    return beta * torch.sigmoid(beta * (winner_change - reference_change))


def _growing(winner_change, reference_change, beta):
    return beta * torch.sigmoid(-beta * (winner_change + reference_change))


def _bare(winner_change, reference_change, beta):
    return torch.sigmoid(beta * (winner_change + reference_change))


def _downhill(winner_change, reference_change, beta):
    return -flipped_weight(winner_change, reference_change, beta)


def _plain_changes(generator):
    return [0.1 * torch.randn(6, generator=generator), 0.1 * torch.randn(6, generator=generator), 9.0]


# --- 33.6: a sign of several draws


def mean_sign(reference_errors, current_errors):
    """Sign [B] of the mean gap over m draws: errors [m, B], [m, B] -> [B]."""
    return (reference_errors - current_errors).detach().mean(0).sign()


def _majority(reference_errors, current_errors):
    return (reference_errors - current_errors).detach().sign().mean(0).sign()


def _mean_of_signs(reference_errors, current_errors):
    return (reference_errors - current_errors).detach().sign().mean(0)


def _over_winners(reference_errors, current_errors):
    gap = (reference_errors - current_errors).detach().mean(1).sign()
    return gap


def _first_draw(reference_errors, current_errors):
    return (reference_errors - current_errors).detach()[0].sign()


def _draws(generator):
    """Five draws for five winners: a few large gaps against many small ones."""
    reference = torch.rand(5, 5, generator=generator)
    gap = torch.full((5, 5), -0.05)
    gap[0] = 0.1 + 0.2 * torch.rand(5, generator=generator)
    gap[1:, 1] = -0.3
    gap[0, 2] = -0.1
    gap[1:, 2] = 0.02 * torch.rand(4, generator=generator)
    return [reference, reference - gap]


# --- 33.7: whose errors the sign looks at


def anchored_loss(now, past, beta):
    """Loss [B] from errors of the current model and the checkpoint, each [2, B]."""
    changes = now - past
    sign = (past[0] - now[0]).detach().sign()
    return signed_terms(changes[0], changes[1], sign, beta)


def _sign_of_references(now, past, beta):
    return signed_terms(*(now - past), (now[1] - past[1]).detach().sign(), beta)


def _turned_references(now, past, beta):
    return signed_terms(*(now - past), (past[1] - now[1]).detach().sign(), beta)


def _turned_winners(now, past, beta):
    return signed_terms(*(now - past), (now[0] - past[0]).detach().sign(), beta)


def _two_errors(generator):
    """Errors of nine winners and references, now (with gradient) and at the checkpoint; beta."""
    past = torch.rand(2, 9, generator=generator)
    now = past + 0.1 * torch.randn(2, 9, generator=generator)
    return [now.requires_grad_(True), past, 7.0]


EXERCISES = {
    "33.1": wb.Exercise(
        reference=anchor_sign, inputs=_errors, minutes=5, difficulty=1,
        wrong={
            "on a tie the sign is 0: the reference is left out": _tie_is_a_flip,
            "a smaller error is a better fit: reference less current": _turned,
            "only the sign counts, not the size": _sizes,
            "the sign is a constant of the update: detach it": _attached,
            "a flip is -1; dropping the term is another method": _zero_or_one,
            "each example has a sign of its own": _batch_mean,
        },
        hints=["Which of the two errors is larger if the current model is better?",
               "`tensor.sign()` is 1, 0 or -1; `detach()` says that it is a constant."]),
    "33.2": wb.Exercise(
        reference=signed_terms, inputs=_changes, minutes=10, difficulty=2,
        wrong={
            "the winner's error should fall: check the sign in front of beta": _rising,
            "the sign belongs to the reference alone, the winner always teaches": _both_signed,
            "the reference term is subtracted": _added,
            "the margin is multiplied by beta": _no_beta,
            "the vector of signs is not used": _unsigned,
            "take the logarithm of the sigmoid": _no_log,
        },
        hints=["The margin is winner_change - sign * reference_change; it should become negative.",
               "`F.logsigmoid` is the logarithm of the logistic function."]),
    "33.3": wb.Exercise(
        reference=sign_vector, inputs=_rules, minutes=5, difficulty=1,
        wrong={
            "without an anchor every reference is a loser: signs of 1": _none_is_zero,
            "the indicator drops a flipped term: 0 instead of -1": _indicator_is_sign,
            "the indicator keeps the terms that are not flipped": _indicator_of_flips,
        },
        hints=["Call `anchor_sign` for two of the three rules.",
               "`clamp(min=0)` turns -1 into 0."]),
    "33.4": wb.Exercise(
        reference=flip_precision, inputs=_audited, minutes=10, difficulty=2,
        wrong={
            "divide by the number of flips, not of good references": _recall,
            "a flip is a sign below 0": _kept_instead,
            "good means: at least as much worth as the current model's picture": _worse_counted,
            "divide by the number of flips, not of all": _over_all,
            "the base rate is the share of good references, not of flips": _flips_as_base,
        },
        hints=["Two masks: good references, and flipped ones.",
               "`mask.float().mean()` is a share; among the flips divide by their number."]),
    "33.5": wb.Exercise(
        reference=flipped_weight, inputs=_plain_changes, minutes=10, difficulty=3,
        wrong={
            "this is the weight of a term that is not flipped": _kept_weight,
            "the weight fades as the errors fall: check the sign inside": _growing,
            "the chain rule brings a factor beta": _bare,
            "the slope is positive: descent lowers the winner's error": _downhill,
        },
        hints=["The derivative of -log sigmoid(-z) is sigmoid(z).",
               "For a flip z = beta (winner_change + reference_change)."]),
    "33.6": wb.Exercise(
        reference=mean_sign, inputs=_draws, minutes=5, difficulty=2,
        wrong={
            "average the gaps first, then take the sign: a vote of signs forgets sizes": _majority,
            "the result is a sign: 1, 0 or -1": _mean_of_signs,
            "draws are the first axis, winners the second": _over_winners,
            "use all draws": _first_draw,
        },
        hints=["Mean over axis 0 of reference less current, then the sign."]),
    "33.7": wb.Exercise(
        reference=anchored_loss, inputs=_two_errors, minutes=5, difficulty=2,
        wrong={
            "nothing has changed yet: the sign looks at the references": _sign_of_references,
            "the sign still looks at the references": _turned_references,
            "right row, wrong way round: 1 where the current model fits the winner better":
                _turned_winners,
        },
        hints=["Which row does the anchor look at?", "Compare with `anchor_sign`."]),
}


def _half(seed):
    """Whether a sign of one noisy draw is wrong in 35 to 50 % although the mean gap is right."""
    generator = torch.Generator().manual_seed(seed)
    gap = 0.2 + torch.randn(4000, generator=generator)
    return 0.35 < (gap < 0).float().mean().item() < 0.5


QUIZZES = {
    "33.q1": wb.Quiz(
        "The current model fits winners a little better than an old checkpoint does: by a fifth "
        "of the spread that one noise draw has. What share of the winners will the anchor flip?",
        ["none: the current model is better", "about 5 %", "about 40 %", "about 80 %"],
        2, "A mean gap of 0.2 spreads is below 0 in 42 % of the draws. The sign of one draw is "
        "mostly noise.",
        holds=_half),
    "33.q2": wb.Quiz(
        "SePPO flips the signs that its anchor names. A sham permutes them: as many flips, in "
        "places by chance. Votes of SePPO less those of the sham, on unseen captions: what do you "
        "expect?",
        ["clearly above 0", "about 0", "clearly below 0"],
        1, "The study measured -0.013, with an interval from -0.031 to 0.006: the sign looks at one "
        "noisy draw of the winner and never at the reference."),
    "33.q3": wb.Quiz(
        "A flipped term has driven the errors of winner and reference far below the old "
        "checkpoint's. What does it do next?",
        ["it imitates both ever harder", "it fades out", "it pushes the reference away",
         "it stops for the reference and goes on for the winner"],
        1, "Its weight is beta times sigmoid(beta (winner change + reference change)), which goes "
        "to 0 as both changes become negative."),
}
