"""Exercises and questions of notebook 34 (InstructEngine): references, mistakes, hints, answers."""

import torch
from torch.nn import functional as F

from rlgenkit import workbook as wb

# --- 34.1: the filter


def accepted(right):
    """Which pairs to keep: right [2, 2, N] (picture, text), 1 or 0 -> bool [N]."""
    own = right[0, 0] * right[1, 1]
    crossed = right[0, 1] + right[1, 0]
    return (own == 1) & (crossed == 0)


def _own_only(right):
    return right[0, 0] * right[1, 1] == 1


def _one_is_enough(right):
    return (right[0, 0] + right[1, 1] > 0) & (right[0, 1] + right[1, 0] == 0)


def _one_crossed_is_fine(right):
    return (right[0, 0] * right[1, 1] == 1) & (right[0, 1] * right[1, 0] == 0)


def _crossed_wanted(right):
    return (right[0, 1] * right[1, 0] == 1) & (right[0, 0] + right[1, 1] == 0)


def _tables(generator):
    """All sixteen tables of zeros and ones, in random order."""
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    every = every[torch.randperm(16, generator=generator)]
    return [every.T.reshape(2, 2, 16)]


# --- 34.2: one comparison


def pair_loss(winner, loser, beta):
    """-log sigmoid(-beta (winner - loser)): changes of errors [B], [B] -> [B]."""
    return -F.logsigmoid(-beta * (winner - loser))


def _likelihoods(winner, loser, beta):
    return -F.logsigmoid(beta * (winner - loser))


def _summed(winner, loser, beta):
    return -F.logsigmoid(-beta * (winner + loser))


def _chance(winner, loser, beta):
    return -torch.sigmoid(-beta * (winner - loser))


def _outside(winner, loser, beta):
    return -beta * F.logsigmoid(-(winner - loser))


def _frozen_loser(winner, loser, beta):
    return pair_loss(winner, loser.detach(), beta)


def _changes(generator):
    """Six winners and losers; both carry gradients."""
    winner, loser = (torch.randn(6, generator=generator).requires_grad_(True) for _ in range(2))
    return [winner, loser, 0.7]


# --- 34.3: both comparisons of a pair


def cross_validation(change, beta):
    """Mean of both image-contrast losses: change [2, 2, B] (picture, text) -> [B]."""
    first = pair_loss(change[0, 0], change[1, 0], beta)  # text 1: picture 1 wins
    second = pair_loss(change[1, 1], change[0, 1], beta)  # text 2: picture 2 wins
    return (first + second) / 2


def _texts_compete(change, beta):
    return cross_validation(change.transpose(0, 1), beta)


def _misprint(change, beta):
    first = pair_loss(change[0, 0], change[1, 0], beta)
    return (first + pair_loss(change[1, 1], change[1, 0], beta)) / 2


def _first_alone(change, beta):
    return pair_loss(change[0, 0], change[1, 0], beta)


def _one_margin(change, beta):
    return pair_loss(change[0, 0] + change[1, 1], change[1, 0] + change[0, 1], beta)


def _added(change, beta):
    return 2 * cross_validation(change, beta)


def _picture_1_always(change, beta):
    first = pair_loss(change[0, 0], change[1, 0], beta)
    return (first + pair_loss(change[0, 1], change[1, 1], beta)) / 2


def _table(generator):
    """Changes of seven pairs."""
    return [torch.randn(2, 2, 7, generator=generator).requires_grad_(True), 0.6]


# --- 34.4: the interaction


def interaction(change):
    """Interaction of picture and text: changes [2, 2, B] (picture, text) -> [B]."""
    return change[0, 1] + change[1, 0] - change[0, 0] - change[1, 1]


def _turned(change):
    return -interaction(change)


def _right_ones(change):
    return -change[0, 0] - change[1, 1]


def _first_text(change):
    return change[1, 0] - change[0, 0]


def _mean_of_four(change):
    return interaction(change) / 4


def _shifted(generator):
    """Changes with a large part that belongs to pictures, and one that belongs to texts."""
    change = torch.randn(2, 2, 5, generator=generator)
    return [change + 3 * change[:, :1].roll(1, 0) + 5 * change[:1].roll(1, 1)]


# --- 34.5: the misprint of equation 8


def printed_loss(change, beta):
    """Mean of two comparisons: changes [2, 2, B] (picture, text) -> [B]."""
    first = -F.logsigmoid(-beta * (change[0, 0] - change[1, 0]))
    second = -F.logsigmoid(-beta * (change[1, 1] - change[0, 1]))
    return (first + second) / 2


def _as_printed(change, beta):
    return _misprint(change, beta)


def _winner_too(change, beta):
    first = -F.logsigmoid(-beta * (change[0, 0] - change[1, 0]))
    second = -F.logsigmoid(-beta * (change[0, 1] - change[1, 1]))
    return (first + second) / 2


# --- 34.6: a model of tokens


def token_change(new, reference, image):
    """Log-probs [N, A, V] of all values, image Long[N, A] -> change [N]."""
    gap = reference.detach() - new
    return gap.gather(-1, image[..., None])[..., 0].sum(-1)


def _likelier_is_larger(new, reference, image):
    return -token_change(new, reference, image)


def _mean_token(new, reference, image):
    return token_change(new, reference, image) / new.shape[1]


def _attached(new, reference, image):
    return (reference - new).gather(-1, image[..., None])[..., 0].sum(-1)


def _all_values(new, reference, image):
    return (reference.detach() - new).sum((-1, -2))


def _token_model(generator):
    """Log-probs of four images of three tokens under two models."""
    new, old = (torch.randn(4, 3, 5, generator=generator).log_softmax(-1) for _ in range(2))
    image = torch.randint(5, (4, 3), generator=generator)
    return [new.requires_grad_(True), old.requires_grad_(True), image]


EXERCISES = {
    "34.1": wb.Exercise(
        reference=accepted,
        inputs=_tables,
        minutes=5,
        difficulty=1,
        wrong={
            "a picture that answers both texts makes no contrast: look at the crossed ones": _own_only,
            "both pictures must answer their own text": _one_is_enough,
            "one crossed answer is one too many": _one_crossed_is_fine,
            "own combinations stand on the diagonal: right[0, 0] and right[1, 1]": _crossed_wanted,
        },
        hints=[
            "Which two of the four entries must be 1, which two must be 0?",
            "`a & b` is the and of two bool tensors; put comparisons in parentheses.",
        ],
    ),
    "34.2": wb.Exercise(
        reference=pair_loss,
        inputs=_changes,
        minutes=5,
        difficulty=2,
        wrong={
            "these are errors, not likelihoods: the winner's should be smaller": _likelihoods,
            "the margin is a difference": _summed,
            "take the logarithm of the logistic function": _chance,
            "beta scales the margin, inside the logistic function": _outside,
            "the loser learns as well: do not detach it": _frozen_loser,
        },
        hints=[
            "`F.logsigmoid(z)` is the logarithm of the logistic function. When should z grow?",
            "A good update lowers the winner and raises the loser.",
        ],
    ),
    "34.3": wb.Exercise(
        reference=cross_validation,
        inputs=_table,
        minutes=10,
        difficulty=3,
        wrong={
            "these compare two texts for a picture; fix the text (the second index)": _texts_compete,
            "this is the misprint of equation 8: the second loser is picture 1 under text 2": _misprint,
            "the pair has a second comparison, under text 2": _first_alone,
            "two comparisons, each with a logistic function of its own": _one_margin,
            "take the mean of both, not the sum": _added,
            "under text 2 it is picture 2 that wins": _picture_1_always,
        },
        hints=[
            "change[picture, text]. Text 1: which two entries compete, which one wins?",
            "Your `pair_loss` takes a winner and a loser.",
        ],
    ),
    "34.4": wb.Exercise(
        reference=interaction,
        inputs=_shifted,
        minutes=5,
        difficulty=2,
        wrong={
            "wrong combinations count with a plus: their errors should rise": _turned,
            "what belongs to a picture alone does not cancel here": _right_ones,
            "what belongs to a picture alone does not cancel here: use both texts": _first_text,
            "no mean: the plain sum of four entries with their signs": _mean_of_four,
        },
        hints=["Add a number to both entries of a row. Which combination does not change?"],
    ),
    "34.5": wb.Exercise(
        reference=printed_loss,
        inputs=_table,
        minutes=5,
        difficulty=2,
        wrong={
            "nothing has changed yet: picture 2 still competes with itself": _as_printed,
            "the winner was right: under text 2 picture 2 should win": _winner_too,
        },
        hints=["Under which text does the second comparison take place, and who competes there?"],
    ),
    "34.6": wb.Exercise(
        reference=token_change,
        inputs=_token_model,
        minutes=10,
        difficulty=3,
        wrong={
            "a change falls when the image becomes likelier, as an error does": _likelier_is_larger,
            "the log-likelihood of an image is the sum over its tokens": _mean_token,
            "the frozen model gets no gradient: detach it": _attached,
            "only the values that the image holds count: gather them": _all_values,
        },
        hints=["`table.gather(-1, image[..., None])[..., 0]` picks one value for each token."],
    ),
}

QUIZZES = {
    "34.q1": wb.Quiz(
        "All changes are 0. How do the slopes of image-contrast and text-contrast triples differ?",
        [
            "image-contrast triples push pictures, text-contrast triples push texts",
            "text-contrast triples have the opposite sign at the wrong combinations",
            "not at all: both have the same four slopes",
            "text-contrast triples have no slope where all changes are 0",
        ],
        2,
        "Each kind lowers both right combinations and raises both wrong ones, with a quarter "
        "of beta each.",
    ),
    "34.q2": wb.Quiz(
        "The loss of cross-validation falls. Must the errors of the right combinations fall?",
        [
            "yes: the winner's error is in the loss",
            "no: only differences are in the loss",
            "yes, or the reference would hold them back",
            "no: right combinations carry no gradient",
        ],
        1,
        "A loss of differences also falls when wrong combinations rise faster than right "
        "ones. Section 9 looks at all four.",
    ),
    "34.q3": wb.Quiz(
        "Add f(y) to the change of picture y under both texts. What does the text-contrast loss "
        "do, and why does it matter for a generator?",
        [
            "it falls, so that pictures become likelier for nothing",
            "it does not change: the model may draw these pictures less and less, unnoticed",
            "it does not change, and neither does any other loss of the four changes",
            "it rises, so that pictures stay as they were",
        ],
        1,
        "f(y) cancels in every comparison of texts: whether the model still draws such "
        "pictures is nothing that this loss sees. A comparison of pictures sees it.",
    ),
}
