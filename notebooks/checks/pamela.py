"""Exercises and questions of notebook 18 (PAMELA): references, known mistakes, hints, answers."""

import math

import torch
import torch.nn.functional as F

from rlgenkit import rewards
from rlgenkit import workbook as wb

LAMBDA, TAU = 0.5, 0.5

# --- 18.2: the loss


def rating_loss(score, rating, other_score, other_rating):
    """Squared error of levels, and a logistic loss on pairs of one user: scalars."""
    squares = (score - rating).square() + (other_score - other_rating).square()
    side = (rating - other_rating).sign()
    pairs = F.softplus(-side * (score - other_score) / TAU) * side.abs()
    return squares.mean() / 2 + LAMBDA * pairs.mean()


def _halves(score, rating, other_score, other_rating):
    """Mean squared error of both pictures, side of the pair, difference of scores."""
    squares = (score - rating).square() + (other_score - other_rating).square()
    return squares.mean() / 2, (rating - other_rating).sign(), score - other_score


def _other_way(score, rating, other_score, other_rating):
    squares, side, gap = _halves(score, rating, other_score, other_rating)
    return squares + LAMBDA * (F.softplus(side * gap / TAU) * side.abs()).mean()


def _ties_count(score, rating, other_score, other_rating):
    squares, side, gap = _halves(score, rating, other_score, other_rating)
    return squares + LAMBDA * F.softplus(-side * gap / TAU).mean()


def _no_tau(score, rating, other_score, other_rating):
    squares, side, gap = _halves(score, rating, other_score, other_rating)
    return squares + LAMBDA * (F.softplus(-side * gap) * side.abs()).mean()


def _one_square(score, rating, other_score, other_rating):
    _, side, gap = _halves(score, rating, other_score, other_rating)
    pairs = F.softplus(-side * gap / TAU) * side.abs()
    return (score - rating).square().mean() + LAMBDA * pairs.mean()


def _two_pictures(generator):
    score, other = torch.randn(2, 12, generator=generator)
    rating, other_rating = torch.randint(-2, 3, (2, 12), generator=generator).float()
    other_rating[:3] = rating[:3]  # ties
    return [score.requires_grad_(), rating, other.requires_grad_(), other_rating]


# --- 18.4: ridge


def ridge_offset(x, residual, penalty):
    """Personal weights (X'X + penalty I)^-1 X' r: [k, D], [k] -> [D]."""
    residual = residual - residual.mean()
    gram = x.T @ x + penalty * torch.eye(x.shape[1])
    return torch.linalg.solve(gram, x.T @ residual)


def _with_lenience(x, residual, penalty):
    return torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1]), x.T @ residual)


def _unpenalized(x, residual, penalty):
    return ridge_offset(x, residual, 1e-6)


def _penalty_per_row(x, residual, penalty):
    return ridge_offset(x, residual, penalty * len(x))


def _everywhere(x, residual, penalty):
    centered = residual - residual.mean()
    return torch.linalg.solve(x.T @ x + penalty, x.T @ centered)


def _few_ratings(generator):
    x = torch.randn(7, 3, generator=generator)
    return [x, torch.randn(7, generator=generator) + 1.0, 2.0]


# --- 18.1: mean of the others


def others_mean(ratings):
    """Mean rating of all other users: [N, U] with nan -> [N, U], nan where nobody else rated."""
    known = ~ratings.isnan()
    total = ratings.nansum(1, keepdim=True) - ratings.nan_to_num()
    return total / (known.sum(1, keepdim=True) - known.long())


def _with_oneself(ratings):
    return ratings.nanmean(1, keepdim=True).expand_as(ratings)


def _nan_as_zero(ratings):
    filled = ratings.nan_to_num()
    return (filled.sum(1, keepdim=True) - filled) / (ratings.shape[1] - 1)


def _one_less(ratings):
    known = ~ratings.isnan()
    total = ratings.nansum(1, keepdim=True) - ratings.nan_to_num()
    return total / (known.sum(1, keepdim=True) - 1)


def _over_pictures(ratings):
    return others_mean(ratings.T).T


def _sparse(generator):
    ratings = torch.randint(1, 6, (9, 6), generator=generator).float()
    away = torch.rand(9, 6, generator=generator) < 0.4
    away[:, :2] = False  # two answers at least
    away[0] = torch.tensor([False, False, True, True, False, False])
    return [ratings.masked_fill(away, torch.nan)]


# --- 18.3: within a user first


def by_user(scores, ratings, agreement):
    """agreement of scores and ratings [N, U] for each user: [U], nan if undefined."""
    found = []
    for user in range(ratings.shape[1]):
        seen = ~ratings[:, user].isnan()
        own, said = scores[seen, user], ratings[seen, user]
        varied = len(said) > 1 and said.min() < said.max() and own.min() < own.max()
        found.append(agreement(own, said) if varied else torch.nan)
    return torch.tensor(found)


def _pooled(scores, ratings, agreement):
    seen = ~ratings.isnan()
    one = agreement(scores[seen], ratings[seen])
    return torch.full((ratings.shape[1],), one)


def _zeros_too(scores, ratings, agreement):
    return by_user(scores, ratings.nan_to_num(), agreement)


def _by_picture(scores, ratings, agreement):
    return by_user(scores.T, ratings.T, agreement)


def _backward(scores, ratings, agreement):
    return by_user(-scores, ratings, agreement)


def _users(generator):
    scores = torch.randn(12, 12, generator=generator)
    ratings = torch.randint(1, 6, (12, 12), generator=generator).float()
    away = torch.rand(12, 12, generator=generator) < 0.3
    return [scores, ratings.masked_fill(away, torch.nan), rewards.pearson]


# --- 18.5: the ceiling


def ceiling_of(population, personal, noise):
    """Correlation of everybody's taste with one user's rating, from variances."""
    return math.sqrt(population / (population + personal + noise))


def _share(population, personal, noise):
    return population / (population + personal + noise)


def _no_noise(population, personal, noise):
    return math.sqrt(population / (population + personal))


def _perfect(population, personal, noise):
    return math.sqrt((population + personal) / (population + personal + noise))


def _variances(generator):
    return (0.3 + torch.rand(3, generator=generator)).tolist()


EXERCISES = {
    "18.2": wb.Exercise(
        reference=rating_loss, inputs=_two_pictures, minutes=10, difficulty=2,
        wrong={
            "the better rated picture must score higher: mind the sign": _other_way,
            "a tie says nothing and adds nothing": _ties_count,
            "divide the difference of scores by TAU": _no_tau,
            "both pictures have a squared error, half of it each": _one_square,
        },
        hints=["`side = (rating - other_rating).sign()` is 0 for a tie.",
               "softplus(-side * difference / TAU) is the logistic loss of one pair."]),
    "18.4": wb.Exercise(
        reference=ridge_offset, inputs=_few_ratings, minutes=10, difficulty=2,
        wrong={
            "take the mean residual off first: it is lenience": _with_lenience,
            "the penalty belongs on the diagonal": _unpenalized,
            "the penalty is not multiplied by the number of ratings": _penalty_per_row,
            "add the penalty to the diagonal, not to each entry": _everywhere,
        },
        hints=["`torch.linalg.solve(A, b)` is A^-1 b without an inverse.",
               "A = x.T @ x + penalty * torch.eye(D)"]),
    "18.1": wb.Exercise(
        reference=others_mean, inputs=_sparse, minutes=8, difficulty=2,
        wrong={
            "a user must not be part of the mean that predicts this user": _with_oneself,
            "a missing rating is no rating of 0": _nan_as_zero,
            "who did not rate takes nothing off the number": _one_less,
            "sum over users, axis 1": _over_pictures,
        },
        hints=["Sum of all less the own one, divided by how many others rated.",
               "`ratings.nan_to_num()` is the own rating, or 0 if there is none."]),
    "18.3": wb.Exercise(
        reference=by_user, inputs=_users, minutes=10, difficulty=2,
        wrong={
            "one number for each user, not one over all rows": _pooled,
            "unrated pictures are left out, not counted as 0": _zeros_too,
            "a user is a column": _by_picture,
            "high scores go with high ratings": _backward,
        },
        hints=["Loop over columns; `seen = ~ratings[:, user].isnan()`.",
               "Call `agreement(scores, ratings)` with the rated rows alone."]),
    "18.5": wb.Exercise(
        reference=ceiling_of, inputs=_variances, minutes=10, difficulty=3,
        wrong={
            "a correlation is the root of a share of variance": _share,
            "noise belongs to the rating's variance": _no_noise,
            "a population model does not know the personal part": _perfect,
        },
        hints=["The covariance of everybody's taste with the rating is its own variance.",
               "Divide by both standard deviations."]),
}  # fmt: skip


def _below_one(seed):
    """Whether the exact taste of everybody stays well below 1 for single users."""
    generator = torch.Generator().manual_seed(seed)
    common, own, noise = torch.randn(3, 4000, generator=generator)
    said = common + own + 0.7 * noise
    return 0.55 < float(torch.corrcoef(torch.stack([common, said]))[0, 1]) < 0.75


QUIZZES = {
    "18.q1": wb.Quiz(
        "Everybody's taste, one's own taste and noise have alike variances. A population model "
        "knows everybody's taste exactly. Its correlation with one user's ratings is ...",
        ["1: it is exact", "about 0.6: it knows one part of three",
         "about 0.33: one part of three", "0: it knows nothing of this user"],
        1, "It explains a share of the variance, and a correlation is the root of that share. No "
        "amount of data lifts a population model over this ceiling.",
        holds=_below_one),
}  # fmt: skip
