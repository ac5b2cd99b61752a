"""Exercises and questions of notebook 21 (VisionPrefer): references, mistakes, hints, answers."""

import math

import torch
import torch.nn.functional as F

from rlgenkit import rewards
from rlgenkit import workbook as wb

# --- 21.1: comparisons of aspects


def aspect_pairs(scores):
    """Comparisons in every aspect: [4 P, A] -> winner, loser (rows), aspect, Long[N]."""
    by_caption = scores.view(-1, 4, scores.shape[1])
    ahead = by_caption[:, :, None] > by_caption[:, None]
    caption, winner, loser, aspect = ahead.nonzero().T
    return 4 * caption + winner, 4 * caption + loser, aspect


def _turned(scores):
    winner, loser, aspect = aspect_pairs(scores)
    return loser, winner, aspect


def _with_ties(scores):
    by_caption = scores.view(-1, 4, scores.shape[1])
    ahead = by_caption[:, :, None] >= by_caption[:, None]
    ahead &= ~torch.eye(4, dtype=torch.bool)[None, :, :, None]
    caption, winner, loser, aspect = ahead.nonzero().T
    return 4 * caption + winner, 4 * caption + loser, aspect


def _of_all_captions(scores):
    ahead = scores[:, None] > scores[None]
    winner, loser, aspect = ahead.nonzero().T
    return winner, loser, aspect


def _rows_in_a_caption(scores):
    winner, loser, aspect = aspect_pairs(scores)
    return winner % 4, loser % 4, aspect


def _first_aspect(scores):
    return aspect_pairs(scores[:, :1])


def _coarse(generator):
    """Scores 1 to 3 of three captions in two aspects."""
    return [torch.randint(1, 4, (12, 2), generator=generator).float()]


# --- 21.2: the pooled loss


def pair_loss(rewards_of, winner, loser):
    """Mean of -log sigmoid(r_w - r_l): rewards [N], rows Long[M] -> scalar."""
    return -F.logsigmoid(rewards_of[winner] - rewards_of[loser]).mean()


def _reward_turned(rewards_of, winner, loser):
    return pair_loss(rewards_of, loser, winner)


def _no_log(rewards_of, winner, loser):
    return -torch.sigmoid(rewards_of[winner] - rewards_of[loser]).mean()


def _summed(rewards_of, winner, loser):
    return len(winner) * pair_loss(rewards_of, winner, loser)


def _each_alone(rewards_of, winner, loser):
    return -(F.logsigmoid(rewards_of[winner]) + F.logsigmoid(-rewards_of[loser])).mean()


def _rewards_and_rows(generator):
    values = torch.randn(8, generator=generator).requires_grad_()
    winner = torch.randint(8, (6,), generator=generator)
    return [values, winner, (winner + 1 + torch.randint(7, (6,), generator=generator)) % 8]


# --- 21.3: agreement with people


def agreement(scores, felt, caption):
    """Share of pairs ordered as the mean of four people, mean over who is left out."""
    shares = []
    for person in range(felt.shape[1]):
        rest = felt.sum(1) - felt[:, person]
        shares.append(rewards.pairwise_accuracy(scores, rest, caption))
    return torch.tensor(shares).mean()


def _all_five(scores, felt, caption):
    return torch.tensor(rewards.pairwise_accuracy(scores, felt.mean(1), caption))


def _one_person(scores, felt, caption):
    shares = [rewards.pairwise_accuracy(scores, one, caption) for one in felt.T]
    return torch.tensor(shares).mean()


def _all_pairs(scores, felt, caption):
    return agreement(scores, felt, torch.zeros_like(caption))


def _as_correlation(scores, felt, caption):
    return 2 * agreement(scores, felt, caption) - 1


def _judged(generator):
    scores = torch.randint(4, (40,), generator=generator).float()
    felt = scores[:, None] + 2 * torch.randn(40, 5, generator=generator)
    return [scores, felt, torch.arange(40) // 4]


# --- 21.4: PPO


def clipped_loss(log_probs, old_log_probs, advantages, clip):
    """Mean of max(-A rho, -A clip(rho)): [T, B], [T, B], [B] -> scalar."""
    ratio = (log_probs - old_log_probs).exp()
    bounded = ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(-advantages * ratio, -advantages * bounded).mean()


def _smaller(log_probs, old_log_probs, advantages, clip):
    ratio = (log_probs - old_log_probs).exp()
    bounded = ratio.clamp(1 - clip, 1 + clip)
    return torch.minimum(-advantages * ratio, -advantages * bounded).mean()


def _no_clip(log_probs, old_log_probs, advantages, clip):
    return (-advantages * (log_probs - old_log_probs).exp()).mean()


def _down(log_probs, old_log_probs, advantages, clip):
    return clipped_loss(log_probs, old_log_probs, -advantages, clip)


def _ratio_turned(log_probs, old_log_probs, advantages, clip):
    return clipped_loss(old_log_probs, log_probs, advantages, clip)


def _over_steps(log_probs, old_log_probs, advantages, clip):
    ratio = (log_probs - old_log_probs).sum(0).exp()
    bounded = ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(-advantages * ratio, -advantages * bounded).mean()


def _path(generator):
    old = torch.randn(3, 6, generator=generator)
    new = (old + 0.4 * torch.randn(3, 6, generator=generator)).requires_grad_()
    return [new, old, torch.randn(6, generator=generator), 0.2]


# --- 21.5: DPO


def dpo_loss(winner, loser, beta):
    """Mean of -log sigmoid(-beta (winner - loser)): changes of error [M] -> scalar."""
    return -F.logsigmoid(-beta * (winner - loser)).mean()


def _errors_as_rewards(winner, loser, beta):
    return dpo_loss(loser, winner, beta)


def _both_down(winner, loser, beta):
    return -F.logsigmoid(-beta * (winner + loser)).mean()


def _beta_outside(winner, loser, beta):
    return -beta * F.logsigmoid(-(winner - loser)).mean()


def _mean_inside(winner, loser, beta):
    return -F.logsigmoid(-beta * (winner - loser).mean())


def _changes(generator):
    draw = torch.randn(2, 7, generator=generator)
    return [draw[0].clone().requires_grad_(), draw[1].clone().requires_grad_(), 3.0]


# --- 21.6: what a label is worth


def labels_worth(machine, human):
    """Machine labels that tell as much as one human label: chances in (0.5, 1)."""
    bits = []
    for chance in (machine, human):
        rest = 1 - chance
        bits.append(1 + chance * math.log2(chance) + rest * math.log2(rest))
    return bits[1] / bits[0]


def _upside_down(machine, human):
    return labels_worth(human, machine)


def _of_entropies(machine, human):
    told = []
    for chance in (machine, human):
        told.append(-chance * math.log2(chance) - (1 - chance) * math.log2(1 - chance))
    return told[1] / told[0]


def _half_entropy(machine, human):
    told = [1 + chance * math.log2(chance) for chance in (machine, human)]
    return told[1] / told[0]


def _share_above_chance(machine, human):
    return (human - 0.5) / (machine - 0.5)


def _chances(generator):
    low, more = torch.rand(2, generator=generator).tolist()
    return [0.55 + 0.15 * low, 0.75 + 0.2 * more]


EXERCISES = {
    "21.1": wb.Exercise(
        reference=aspect_pairs, inputs=_coarse, minutes=15, difficulty=3,
        wrong={
            "the higher score wins": _turned,
            "a tie is no comparison": _with_ties,
            "only pictures of one caption are compared": _of_all_captions,
            "rows count over all captions: 4 i + k": _rows_in_a_caption,
            "every aspect gives comparisons": _first_aspect,
        },
        hints=["Compare by_caption[:, :, None] with by_caption[:, None]: [P, 4, 4, A].",
               "nonzero() of that gives caption, winner, loser and aspect, in this order."]),
    "21.2": wb.Exercise(
        reference=pair_loss, inputs=_rewards_and_rows, minutes=5, difficulty=1,
        wrong={
            "the winner's reward comes first": _reward_turned,
            "take the logarithm of the chance": _no_log,
            "the mean, not the sum": _summed,
            "only the difference of two rewards counts": _each_alone,
        },
        hints=["F.logsigmoid keeps far differences finite."]),
    "21.3": wb.Exercise(
        reference=agreement, inputs=_judged, minutes=10, difficulty=2,
        wrong={
            "four people are the target, the fifth is left out": _all_five,
            "the target is the mean of four, not one person": _one_person,
            "only pairs of one caption count": _all_pairs,
            "this is a correlation of signs, not a share": _as_correlation,
        },
        hints=["The sum over people less one person orders as the mean of the other four.",
               "rewards.pairwise_accuracy takes the captions as groups."]),
    "21.4": wb.Exercise(
        reference=clipped_loss, inputs=_path, minutes=10, difficulty=2,
        wrong={
            "the larger of the two losses counts": _smaller,
            "the ratio is clipped in one of the two": _no_clip,
            "a good picture must become likelier: mind the sign": _down,
            "the ratio is new over old": _ratio_turned,
            "every step has a ratio of its own": _over_steps,
        },
        hints=["exp(new - old), then clamp, then torch.maximum of two losses."]),
    "21.5": wb.Exercise(
        reference=dpo_loss, inputs=_changes, minutes=5, difficulty=2,
        wrong={
            "a smaller error is better: the sign is turned": _errors_as_rewards,
            "the loser's error should grow": _both_down,
            "beta stands inside the logistic function": _beta_outside,
            "the mean is taken last": _mean_inside,
        },
        hints=["The margin is minus beta times (winner - loser)."]),
    "21.6": wb.Exercise(
        reference=labels_worth, inputs=_chances, minutes=15, difficulty=2,
        wrong={
            "how many of the machine's make one of people's": _upside_down,
            "information is 1 - H": _of_entropies,
            "both outcomes enter the entropy": _half_entropy,
            "bits do not grow linearly with the chance": _share_above_chance,
        },
        hints=["Bits of the human label over bits of the machine's."]),
}

QUIZZES = {
    "21.q1": wb.Quiz(
        "All AI comparisons against 300 by people: which reward agrees better with people?",
        ["people's, by five points and more", "less than five points apart",
         "the AI's, by five points and more"],
        1,
        "Number makes up for noise, not for the annotator's shared mistakes; 300 are enough to "
        "learn the rough weights of a few features.",
    ),
    "21.q2": wb.Quiz(
        "A majority of four aspects, balanced pairs dropped, instead of all aspect comparisons:",
        ["it keeps every comparison", "it loses how many aspects agree",
         "it removes the annotator's bias for color"],
        1,
        "Three aspects against one and four against none become the same label; pooled "
        "comparisons still know the difference. A bias passes through both.",
    ),
}
