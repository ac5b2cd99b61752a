"""Exercises and questions of notebook 35 (IterComp): references, mistakes, hints, answers."""

import torch
from torch.nn import functional as F

from rlgenkit import samplers
from rlgenkit import workbook as wb

# --- 35.1: pairs from ranks


def rank_pairs(rank, first_new=0):
    """Pairs (better, worse) with a new picture: rank Long[N, M] -> Long[N, P, 2]."""
    i, j = torch.triu_indices(rank.shape[1], rank.shape[1], 1)
    pairs = torch.stack([rank[:, i], rank[:, j]], 2)
    fresh = (pairs >= first_new).any(2)
    return pairs[fresh].view(len(rank), -1, 2)


def _worse_first(rank, first_new=0):
    return rank_pairs(rank, first_new).flip(2)


def _all_pairs(rank, first_new=0):
    return rank_pairs(rank, 0)


def _both_new(rank, first_new=0):
    i, j = torch.triu_indices(rank.shape[1], rank.shape[1], 1)
    pairs = torch.stack([rank[:, i], rank[:, j]], 2)
    return pairs[(pairs >= first_new).all(2)].view(len(rank), -1, 2)


def _places(rank, first_new=0):
    return rank_pairs(rank.argsort(1), first_new)


def _place_is_new(rank, first_new=0):
    i, j = torch.triu_indices(rank.shape[1], rank.shape[1], 1)
    pairs = torch.stack([rank[:, i], rank[:, j]], 2)
    return pairs[:, (i >= first_new) | (j >= first_new)]


def _later_than_new(rank, first_new=0):
    return rank_pairs(rank, first_new + 1)


def _lists(generator):
    """Four lists of six members, the last two of them new."""
    return [torch.rand(4, 6, generator=generator).argsort(1), 4]


# --- 35.2: the Bradley-Terry loss


def ranking_loss(said, pairs):
    """Mean Bradley-Terry loss: rewards [N, M], pairs Long[N, P, 2] -> scalar."""
    better = said.gather(1, pairs[..., 0])
    worse = said.gather(1, pairs[..., 1])
    return -F.logsigmoid(better - worse).mean()


def _turned(said, pairs):
    return ranking_loss(said, pairs.flip(2))


def _mean_first(said, pairs):
    better, worse = (said.gather(1, pairs[..., k]) for k in (0, 1))
    return -F.logsigmoid((better - worse).mean())


def _chances(said, pairs):
    better, worse = (said.gather(1, pairs[..., k]) for k in (0, 1))
    return -torch.sigmoid(better - worse).mean()


def _frozen_loser(said, pairs):
    better, worse = (said.gather(1, pairs[..., k]) for k in (0, 1))
    return -F.logsigmoid(better - worse.detach()).mean()


def _first_list(said, pairs):
    better, worse = (said.gather(1, pairs[:1, :, k].expand(len(said), -1)) for k in (0, 1))
    return -F.logsigmoid(better - worse).mean()


def _squared(said, pairs):
    better, worse = (said.gather(1, pairs[..., k]) for k in (0, 1))
    return (1 - better + worse).clamp(min=0).mean()


def _told_pairs(generator):
    """Rewards of five pictures of four prompts, and the pairs of random lists."""
    said = torch.randn(4, 5, generator=generator).requires_grad_(True)
    return [said, rank_pairs(torch.rand(4, 5, generator=generator).argsort(1))]


# --- 35.3: the late estimate


def late_estimate(denoise, table, noise, m):
    """Guess of the clean latents at step m, from start noise: [B, ...] -> [B, ...]."""
    x = noise
    with torch.no_grad():
        for i in range(m):
            x = samplers.step(table, i, x, denoise(x, table.t[i].expand(len(x)))).sample
    said = denoise(x, table.t[m].expand(len(x)))
    return samplers.denoised(table, m, x, said)


def _whole_graph(denoise, table, noise, m):
    x = noise
    for i in range(m):
        x = samplers.step(table, i, x, denoise(x, table.t[i].expand(len(x)))).sample
    return samplers.denoised(table, m, x, denoise(x, table.t[m].expand(len(x))))


def _no_graph(denoise, table, noise, m):
    with torch.no_grad():
        return late_estimate(denoise, table, noise, m)


def _one_more(denoise, table, noise, m):
    return late_estimate(denoise, table, noise, m + 1)


def _next_state(denoise, table, noise, m):
    x = noise
    with torch.no_grad():
        for i in range(m):
            x = samplers.step(table, i, x, denoise(x, table.t[i].expand(len(x)))).sample
    return samplers.step(table, m, x, denoise(x, table.t[m].expand(len(x)))).sample


def _state_with_graph(denoise, table, noise, m):
    x = noise
    for i in range(m):
        said = denoise(x, table.t[i].expand(len(x))).detach()
        x = samplers.step(table, i, x, said).sample
    return samplers.denoised(table, m, x, denoise(x, table.t[m].expand(len(x))))


def _first_time(denoise, table, noise, m):
    x = noise
    with torch.no_grad():
        for i in range(m):
            x = samplers.step(table, i, x, denoise(x, table.t[0].expand(len(x)))).sample
    return samplers.denoised(table, m, x, denoise(x, table.t[m].expand(len(x))))


def _one_less(denoise, table, noise, m):
    return late_estimate(denoise, table, noise, max(0, m - 1))


def _small_sampler(generator):
    """A denoiser that depends on place, time and one weight; five steps, m 0, 2 or 3."""
    weight = torch.tensor(0.8, requires_grad=True)

    def denoise(x, t):
        return torch.tanh(weight * x + t[:, None] / 1000)

    levels = torch.linspace(0.99, 0.02, 1000)
    table = samplers.ddim_table(levels, torch.tensor([999, 799, 599, 399, 199]), eta=0.0)
    noise = torch.randn(3, 4, generator=generator)
    m = int(torch.randint(1, 4, (1,), generator=generator))
    return [denoise, table, noise.requires_grad_(True), m if generator.initial_seed() % 3 else 0]


# --- 35.4: the hinge


def hinge_loss(R, top):
    """Mean over pictures of the summed hinges max(0, top - R): R [3, B] -> scalar."""
    return (top - R).clamp(min=0).sum(0).mean()


def _no_brake(R, top):
    return (top - R).sum(0).mean()


def _joint_brake(R, top):
    return (3 * top - R.sum(0)).clamp(min=0).mean()


def _mean_over_rewards(R, top):
    return (top - R).clamp(min=0).mean()


def _upside_down(R, top):
    return (R - top).clamp(min=0).sum(0).mean()


def _worst_only(R, top):
    return (top - R.amin(0)).clamp(min=0).mean()


def _always_two(R, top):
    return hinge_loss(R, 2.0)


def _sum_below_one_top(R, top):
    return (top - R.sum(0)).clamp(min=0).mean()


def _three_rewards(generator):
    """Rewards of seven pictures around a hinge of 1, 2 or 3."""
    top = float(torch.randint(1, 4, (1,), generator=generator))
    R = top - 0.5 + 1.5 * torch.randn(3, 7, generator=generator)
    return [R.requires_grad_(True), top]


# --- 35.5: insertion


def insert(rank, scores, new):
    """A list of pictures, best first, with a new one at its place: list of numbers."""
    place = len(rank)
    while place > 0 and scores[new] > scores[rank[place - 1]]:
        place -= 1
    return rank[:place] + [new] + rank[place:]


def _as_released(rank, scores, new):
    place = len(rank)
    while place > 1 and scores[new] > scores[rank[place - 1]]:
        place -= 1
    place = 0 if place == 1 else place
    return rank[:place] + [new] + rank[place:]


def _never_first(rank, scores, new):
    place = len(rank)
    while place > 1 and scores[new] > scores[rank[place - 1]]:
        place -= 1
    return rank[:place] + [new] + rank[place:]


def _sorted_anew(rank, scores, new):
    return sorted([*rank, new], key=lambda k: -scores[k])


def _equal_overtakes(rank, scores, new):
    place = len(rank)
    while place > 0 and scores[new] >= scores[rank[place - 1]]:
        place -= 1
    return rank[:place] + [new] + rank[place:]


def _newcomers(generator):
    """A list whose order people gave; the newcomer belongs to place 1, 0 or 3, with a tie."""
    kind = generator.initial_seed() % 3
    scores = [4.0, 3.0, 0.5, 2.5, 1.0, (3.5, 4.5, 2.5)[kind]]
    return [[0, 1, 3, 2, 4], scores, 5]


# --- 35.6: information


def mean_information(said, pairs):
    """Mean information of pairs: rewards [N, M], pairs Long[N, P, 2] -> scalar."""
    lead = said.gather(1, pairs[..., 0]) - said.gather(1, pairs[..., 1])
    chance = torch.sigmoid(lead)
    return (chance * (1 - chance)).mean()


def _first_derivative(said, pairs):
    lead = said.gather(1, pairs[..., 0]) - said.gather(1, pairs[..., 1])
    return (torch.sigmoid(lead) - 1).mean()


def _entropy(said, pairs):
    lead = said.gather(1, pairs[..., 0]) - said.gather(1, pairs[..., 1])
    chance = torch.sigmoid(lead)
    return -(chance * chance.log() + (1 - chance) * (1 - chance).log()).mean()


def _of_the_mean(said, pairs):
    lead = said.gather(1, pairs[..., 0]) - said.gather(1, pairs[..., 1])
    chance = torch.sigmoid(lead).mean()
    return chance * (1 - chance)


def _summed_information(said, pairs):
    return mean_information(said, pairs) * pairs.shape[1]


# --- 35.7: a brake for each reward


def leaning_loss(R, width):
    """Loss that leans toward the least content reward: R [3, B] -> scalar."""
    weights = ((2 - R.mean(1)) / width).softmax(0).detach()
    return -(weights[:, None] * R).sum(0).mean()


def _attached(R, width):
    weights = ((2 - R.mean(1)) / width).softmax(0)
    return -(weights[:, None] * R).sum(0).mean()


def _toward_the_best(R, width):
    weights = ((R.mean(1) - 2) / width).softmax(0).detach()
    return -(weights[:, None] * R).sum(0).mean()


def _by_picture(R, width):
    weights = ((2 - R) / width).softmax(0).detach()
    return -(weights * R).sum(0).mean()


def _downhill(R, width):
    return -leaning_loss(R, width)


def _width_multiplied(R, width):
    return leaning_loss(R, 1 / width)


def _some_rewards(generator):
    """Rewards of six pictures, and a width."""
    return [torch.randn(3, 6, generator=generator).requires_grad_(True), 0.4]


EXERCISES = {
    "35.1": wb.Exercise(
        reference=rank_pairs,
        inputs=_lists,
        minutes=15,
        difficulty=3,
        wrong={
            "the better picture stands first in its pair": _worse_first,
            "keep only pairs with a number of first_new or larger": _all_pairs,
            "one new picture is enough: the other may be old": _both_new,
            "rank already lists pictures by place; no further sorting": _places,
            "new is a picture's number, not its place in the list": _place_is_new,
            "first_new itself is new": _later_than_new,
        },
        hints=[
            "`torch.triu_indices(M, M, 1)` gives all places i < j of a list.",
            "`rank[:, i]` holds the numbers at these places, for all lists at once.",
            "All lists have as many new pictures, so all keep as many pairs: select, then `view`.",
        ],
    ),
    "35.2": wb.Exercise(
        reference=ranking_loss,
        inputs=_told_pairs,
        minutes=10,
        difficulty=2,
        wrong={
            "the first of a pair is the better one": _turned,
            "take the loss of each pair, then the mean": _mean_first,
            "take the logarithm of the chance": _chances,
            "the worse picture learns as well: do not detach it": _frozen_loser,
            "each prompt has its own pairs": _first_list,
            "this is a hinge; Bradley-Terry takes the logistic function": _squared,
        },
        hints=[
            "`said.gather(1, pairs[..., 0])` are the rewards of the better ones, [N, P].",
            "`F.logsigmoid(z)` is the logarithm of the logistic function.",
        ],
    ),
    "35.3": wb.Exercise(
        reference=late_estimate,
        inputs=_small_sampler,
        minutes=15,
        difficulty=3,
        wrong={
            "the first m steps must not keep a graph": _whole_graph,
            "the state keeps a graph too: the whole loop belongs under no_grad": _state_with_graph,
            "the call at step m needs its graph: leave it outside of no_grad": _no_graph,
            "m steps without a graph are the steps 0 to m - 1": _one_more,
            "take m steps before the call that keeps its graph": _one_less,
            "return the guess of the clean latent, not the next state": _next_state,
            "each step has its own time": _first_time,
        },
        hints=[
            "A loop over range(m) inside `with torch.no_grad():`, and one more call after it.",
            "After the loop x is the state before step m.",
        ],
    ),
    "35.4": wb.Exercise(
        reference=hinge_loss,
        inputs=_three_rewards,
        minutes=5,
        difficulty=1,
        wrong={
            "a reward beyond the hinge must not pull any more": _no_brake,
            "each reward has a brake of its own; do not add them up before": _joint_brake,
            "one brake for each reward, not one for their sum": _sum_below_one_top,
            "the hinge stands where `top` says": _always_two,
            "the sum over rewards, the mean over pictures": _mean_over_rewards,
            "the loss is large where a reward is small": _upside_down,
            "all rewards that are below the hinge pull, not the lowest alone": _worst_only,
        },
        hints=["`x.clamp(min=0)` is max(0, x) for each entry. Which axis holds the rewards?"],
    ),
    "35.5": wb.Exercise(
        reference=insert,
        inputs=_newcomers,
        minutes=10,
        difficulty=2,
        wrong={
            "nothing has changed: the first place is still not compared": _as_released,
            "a picture that beats all others belongs to the front": _never_first,
            "the old list keeps its order, whatever its scores say": _sorted_anew,
            "an equal picture stays behind those that were there": _equal_overtakes,
        },
        hints=["Walk up from the end. When may the walk go on, and where does it end at last?"],
    ),
    "35.6": wb.Exercise(
        reference=mean_information,
        inputs=_told_pairs,
        minutes=15,
        difficulty=3,
        wrong={
            "this is the first derivative; take it once more": _first_derivative,
            "the entropy is large at the same place, but the second derivative is not it": _entropy,
            "the information of each pair first, then the mean": _of_the_mean,
            "the mean over pairs, not the sum": _summed_information,
        },
        hints=[
            "The loss of a lead d is -log sigma(d); its slope is sigma(d) - 1.",
            "The derivative of sigma can be written with sigma alone.",
        ],
    ),
    "35.7": wb.Exercise(
        reference=leaning_loss,
        inputs=_some_rewards,
        minutes=15,
        difficulty=4,
        wrong={
            "the weights are constants: no gradient flows through them": _attached,
            "the least content reward gets the largest weight": _toward_the_best,
            "one weight for a reward, from its mean over the batch": _by_picture,
            "a loss falls when rewards rise": _downhill,
            "the width divides": _width_multiplied,
        },
        hints=[
            "`R.mean(1)` has one number for each reward; `softmax(0)` runs over rewards.",
            "`weights[:, None] * R` spreads one weight over the pictures of its reward.",
        ],
    ),
}

QUIZZES = {
    "35.q1": wb.Quiz(
        "The loss is taken at the guess of step m. What do the steps before m get of its gradient?",
        [
            "each gets its part, through the chain of noisy latents",
            "the noisy latent is taken as given, so these steps get none",
            "they get it through their log-probabilities",
            "only the first step does, through the start noise",
        ],
        1,
        "The noisy latent of step m is a constant of the loss. But all steps share one network, so "
        "what is learned at step m changes them as well.",
    ),
    "35.q2": wb.Quiz(
        "Between two rounds the rewards learn on, while the model waits. The proxy of the same "
        "pictures is then another number. What does that change say about the pictures?",
        [
            "people like them less, or more, than before",
            "they have passed the hinge, or fallen below it",
            "another yardstick looks at pictures that have not changed",
            "they lie farther apart, or closer, than before",
        ],
        2,
        "The policy did not move between the rounds; only who measures did. A proxy can be "
        "compared inside a round.",
    ),
    "35.q3": wb.Quiz(
        "A refresh of the plane never sees pairs of two old points again. Which order may the "
        "reward lose, and which two arms would have to part if the loss mattered?",
        [
            "old against new points; 'blind' and 'frozen'",
            "old against old points; 'all-pairs' and 'refreshed'",
            "none, for the scale is fixed; 'no-hinge' and 'frozen'",
            "new against new points; 'frozen' and 'refreshed'",
        ],
        1,
        "Nothing holds the order of two old points. If that order mattered for the climb, the arm "
        "that keeps all pairs would end higher. Where both end level, the climb has left the old "
        "points behind and does not need their order.",
    ),
}
