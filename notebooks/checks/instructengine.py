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


class Mask(wb.Exercise):
    """An exercise whose answer chooses rows, so it must be a bool tensor."""

    def outcome(self, student):
        """As for every exercise, and the type of a right answer."""
        found = super().outcome(student)
        if found.status == "pass":
            answer = student(*self.inputs(torch.Generator().manual_seed(0)))
            if answer.dtype != torch.bool:
                said = "right numbers, but rows are chosen by a bool tensor: compare with =="
                return type(found)("wrong", said)
        return found


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


def _overflows(winner, loser, beta):
    return -torch.log(torch.sigmoid(-beta * (winner - loser)))


def _changes(generator):
    """Eight winners and losers with gradients; the last two lie far apart."""
    winner, loser = (torch.randn(8, generator=generator) for _ in range(2))
    winner[6:] += torch.tensor([300.0, -300.0])
    return [winner.requires_grad_(True), loser.requires_grad_(True), 0.7]


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


def _two_means(change, beta):
    right, wrong = change[0, 0] + change[1, 1], change[1, 0] + change[0, 1]
    return pair_loss(right / 2, wrong / 2, beta)


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


# --- 34.5: the table of errors


def table_of_errors(predict, pictures, noise, signal):
    """Pictures [2, B, D], noise [B, D], signal [B] -> errors [2, 2, B] (picture, text)."""
    rows = []
    for picture in pictures:
        noisy = signal.sqrt()[:, None] * picture + (1 - signal).sqrt()[:, None] * noise
        guesses = [predict(noisy, j) for j in (0, 1)]
        rows.append(torch.stack([(guess - noise).square().mean(1) for guess in guesses]))
    return torch.stack(rows)


def _text_first(predict, pictures, noise, signal):
    return table_of_errors(predict, pictures, noise, signal).transpose(0, 1)


def _sums(predict, pictures, noise, signal):
    return table_of_errors(predict, pictures, noise, signal) * noise.shape[1]


def _shares(predict, pictures, noise, signal):
    return table_of_errors(predict, pictures, noise, signal.square())


def _guess_the_picture(predict, pictures, noise, signal):
    rows = []
    for picture in pictures:
        noisy = signal.sqrt()[:, None] * picture + (1 - signal).sqrt()[:, None] * noise
        rows.append(torch.stack([(predict(noisy, j) - picture).square().mean(1) for j in (0, 1)]))
    return torch.stack(rows)


def _own_text_alone(predict, pictures, noise, signal):
    own = [table_of_errors(predict, pictures, noise, signal)[i, i] for i in (0, 1)]
    return torch.stack([torch.stack([row, row]) for row in own])


def _guessing(generator):
    """A guess that listens to its text, and three pairs of pictures of five numbers."""
    pull = torch.randn(2, 5, generator=generator)
    pictures = torch.randn(2, 3, 5, generator=generator)
    noise, signal = torch.randn(3, 5, generator=generator), torch.rand(3, generator=generator)
    return [lambda noisy, j: torch.tanh(noisy) + pull[j], pictures, noise, signal]


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


def _normalized_again(new, reference, image):
    return token_change(new.log_softmax(-1), reference, image)


def _all_values(new, reference, image):
    return (reference.detach() - new).sum((-1, -2))


def _token_model(generator):
    """Log-probs of four images of three tokens under two models."""
    new, old = (torch.randn(4, 3, 5, generator=generator).log_softmax(-1) for _ in range(2))
    image = torch.randint(5, (4, 3), generator=generator)
    return [new.requires_grad_(True), old.requires_grad_(True), image]


EXERCISES = {
    "34.1": Mask(
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
            "the logarithm of a sigmoid that rounds to 0 is infinite: F.logsigmoid": _overflows,
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
            "take the mean of two losses, not the loss of two means": _two_means,
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
        reference=table_of_errors,
        inputs=_guessing,
        minutes=10,
        difficulty=3,
        wrong={
            "the first index is the picture, the second the text": _text_first,
            "an error is a mean over entries, not a sum": _sums,
            "the signal share enters as a square root": _shares,
            "the model guesses the noise, not the picture": _guess_the_picture,
            "each picture is looked at under both texts": _own_text_alone,
        },
        hints=[
            "Two loops: pictures outside, texts inside. The noisy picture belongs to the outer one.",
            "`signal.sqrt()[:, None]` multiplies the rows of a [B, D] tensor.",
        ],
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
            "these are log-probabilities already: no second log_softmax": _normalized_again,
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
            "yes: the winner's error stands in the loss, and its slope is positive",
            "no: wrong combinations may rise faster than right ones",
            "yes: the frozen reference does not let right combinations rise",
            "no: what belongs to a right combination cancels in the sum",
        ],
        1,
        "A loss of differences also falls when wrong combinations rise faster than right "
        "ones. Section 9 looks at all four.",
    ),
    "34.q3": wb.Quiz(
        "Add f(y) to the change of picture y under both texts. Which loss changes?",
        [
            "none: what belongs to a picture cancels in both kinds of triples",
            "the text-contrast loss: it compares for a fixed picture",
            "the image-contrast loss: its two margins move apart",
            "both: every margin holds the change of a picture",
        ],
        2,
        "f(y) stands on both sides of every comparison of texts and cancels. So a model could "
        "draw such pictures less and less, and the text-contrast loss would not see it. In the "
        "image-contrast loss one margin grows, the other shrinks, and the loss is larger.",
    ),
}
