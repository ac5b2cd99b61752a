"""Exercises and questions of notebook 38 (adversarial rewards): references, known mistakes, hints."""

import math

import torch
from torch.nn import functional as F

from rlgenkit import workbook as wb

# --- 38.1: a step of coefficients-preserving sampling


def cps_step(x, velocity, now, after, eta):
    """Mean [B, ...] and width of x' at level `after`: [B, ...], [B, ...], three floats."""
    clean = x - now * velocity
    noise = x + (1 - now) * velocity
    kept = after * math.cos(eta * math.pi / 2)
    return (1 - after) * clean + kept * noise, after * math.sin(eta * math.pi / 2)


def _all_noise_kept(x, velocity, now, after, eta):
    _, width = cps_step(x, velocity, now, after, eta)
    clean, noise = x - now * velocity, x + (1 - now) * velocity
    return (1 - after) * clean + after * noise, width


def _other_sign(x, velocity, now, after, eta):
    return cps_step(x, -velocity, now, after, eta)


def _level_before(x, velocity, now, after, eta):
    mean, _ = cps_step(x, velocity, now, after, eta)
    return mean, now * math.sin(eta * math.pi / 2)


def _plain_share(x, velocity, now, after, eta):
    width = after * eta
    clean, noise = x - now * velocity, x + (1 - now) * velocity
    return (1 - after) * clean + math.sqrt(after**2 - width**2) * noise, width


def _difference(x, velocity, now, after, eta):
    _, width = cps_step(x, velocity, now, after, eta)
    clean, noise = x - now * velocity, x + (1 - now) * velocity
    return (1 - after) * clean + (after - width) * noise, width


def _states(generator):
    """Four states and velocities, a step at some place, eta 0, 1 or between."""
    x, velocity = torch.randn(2, 4, 3, generator=generator).unbind(0)
    step = int(torch.randint(7, (), generator=generator))
    eta = (0.0, 0.4, 0.8, 1.0)[int(torch.randint(4, (), generator=generator))]
    return [x, velocity, 1 - step / 8, 1 - (step + 1) / 8, eta]


# --- 38.2: the hinge loss


def hinge_loss(real, fake):
    """Half the mean hinge of references plus half that of fakes: [...], [...] -> scalar."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def _turned(real, fake):
    return hinge_loss(fake, real)


def _whole_sum(real, fake):
    return 2 * hinge_loss(real, fake)


def _no_margin(real, fake):
    return (F.relu(-real).mean() + F.relu(fake).mean()) / 2


def _no_hinge(real, fake):
    return ((1 - real).mean() + (1 + fake).mean()) / 2


def _logits(generator):
    """Five logits of references and seven of fakes, some beyond the margin, with gradients."""
    real = 1.5 * torch.randn(5, generator=generator) + 0.5
    fake = 1.5 * torch.randn(7, generator=generator) - 0.5
    real[0], fake[0] = 2.5, -2.5
    return [real.requires_grad_(True), fake.requires_grad_(True)]


# --- 38.3: the pairwise loss


def pairwise_loss(real, fake):
    """Mean of -log sigmoid(real - fake) over pairs: [B], [B] -> scalar."""
    return F.softplus(fake - real).mean()


def _fakes_ahead(real, fake):
    return F.softplus(real - fake).mean()


def _two_steps(real, fake):
    return -torch.sigmoid(real - fake).log().mean()


def _each_alone(real, fake):
    return (F.softplus(-real) + F.softplus(fake)).mean()


def _all_pairs(real, fake):
    return F.softplus(fake[None] - real[:, None]).mean()


def _points(generator):
    """Points of six pairs; one pair is hundreds of points apart, the wrong way round."""
    real, fake = torch.randn(2, 6, generator=generator).unbind(0)
    real[0], fake[0] = -200.0, 150.0
    return [real.requires_grad_(True), fake.requires_grad_(True)]


# --- 38.4: the reward of the head


def picture_reward(logits, share=0.7):
    """share * whole + (1 - share) * mean of the patches: [B, 1 + K] -> [B]."""
    return share * logits[:, 0] + (1 - share) * logits[:, 1:].mean(1)


def _patches_summed(logits, share=0.7):
    return share * logits[:, 0] + (1 - share) * logits[:, 1:].sum(1)


def _whole_twice(logits, share=0.7):
    return share * logits[:, 0] + (1 - share) * logits.mean(1)


def _shares_swapped(logits, share=0.7):
    return picture_reward(logits, 1 - share)


def _batch_mean(logits, share=0.7):
    return share * logits[:, 0] + (1 - share) * logits[:, 1:].mean()


def _share_fixed(logits, share=0.7):
    return picture_reward(logits)


def _some_patches(logits, share=0.7):
    return picture_reward(logits[:, :9], share)


def _tokens(generator):
    """Logits of five pictures with 8 or 80 patches, and one of three shares."""
    patches = (8, 80)[int(torch.randint(2, (), generator=generator))]
    share = (0.7, 0.4, 0.9)[int(torch.randint(3, (), generator=generator))]
    return [torch.randn(5, 1 + patches, generator=generator), share]


# --- 38.5: advantages with the deviation of the batch


def batch_scaled(scores, groups):
    """(score - mean of its group) / (std of all + 1e-4), in -5..5: [B], Long[B] -> [B]."""
    advantages = torch.zeros_like(scores)
    for group in groups.unique():
        rows = groups == group
        advantages[rows] = scores[rows] - scores[rows].mean()
    return (advantages / (scores.std(correction=0) + 1e-4)).clamp(-5, 5)


def _group_deviation(scores, groups):
    advantages = torch.zeros_like(scores)
    for group in groups.unique():
        rows = groups == group
        own = scores[rows]
        advantages[rows] = (own - own.mean()) / (own.std(correction=0) + 1e-4)
    return advantages.clamp(-5, 5)


def _batch_mean_too(scores, groups):
    return ((scores - scores.mean()) / (scores.std(correction=0) + 1e-4)).clamp(-5, 5)


def _sample_deviation(scores, groups):
    factor = (scores.std(correction=0) + 1e-4) / (scores.std() + 1e-4)
    return batch_scaled(scores, groups) * factor


def _no_floor(scores, groups):
    spread = scores.std(correction=0)
    return (batch_scaled(scores, groups) * (spread + 1e-4) / spread).clamp(-5, 5)


def _unbounded(scores, groups):
    advantages = torch.zeros_like(scores)
    for group in groups.unique():
        rows = groups == group
        advantages[rows] = scores[rows] - scores[rows].mean()
    return advantages / (scores.std(correction=0) + 1e-4)


def _opinions(generator):
    """Three prompts of twenty pictures, not side by side: one far more spread than the others, one
    picture far off; in one case of two all scores nearly agree."""
    groups = torch.arange(60) % 3
    scores = torch.randn(60, generator=generator) * torch.tensor([0.1, 0.2, 1.0])[groups]
    scores += 0.3 * groups
    scores[5] += 30.0
    scale = (1.0, 1e-5)[int(torch.randint(2, (), generator=generator))]
    return [scale * scores, groups]


# --- 38.6: whose turn is it


def policy_learns(step, real, fake, every=None):
    """Whether round `step` is the policy's: by count, or by the mean opinions [B], [B]."""
    if every is not None:
        return (step + 1) % every == 0
    return bool(fake.mean() <= real.mean())


def _from_zero(step, real, fake, every=None):
    return step % every == 0 if every is not None else policy_learns(step, real, fake)


def _the_other(step, real, fake, every=None):
    return not policy_learns(step, real, fake, every)


def _best_picture(step, real, fake, every=None):
    if every is not None:
        return policy_learns(step, real, fake, every)
    return bool(fake.max() <= real.mean())


def _ties_teach(step, real, fake, every=None):
    if every is not None:
        return policy_learns(step, real, fake, every)
    return bool(fake.mean() < real.mean())


def _only_hacked(step, real, fake, every=None):
    return policy_learns(step, real, fake)


def _by_majority(step, real, fake, every=None):
    if every is not None:
        return policy_learns(step, real, fake, every)
    return bool((fake > real).float().mean() <= 0.5)


def _always_ten(step, real, fake, every=None):
    return policy_learns(step, real, fake, None if every is None else 10)


def _rounds(generator):
    """A round, opinions of four references and four pictures (equal ones, too), and a rule."""
    step = (9, 10, 19, 4, 5, 2)[int(torch.randint(6, (), generator=generator))]
    real, fake = torch.randn(2, 4, generator=generator).unbind(0)
    case = int(torch.randint(7, (), generator=generator))
    if case == 0:  # equal opinions
        fake = real.clone()
    if case == 1:  # the best picture is ahead, the mean is not
        real, fake = torch.ones(4), torch.tensor([3.0, 0.0, 0.0, 0.0])
    if case == 2:  # most pictures are ahead, the mean is not
        real, fake = torch.tensor([0.0, 0.0, 0.0, 10.0]), torch.ones(4)
    if case == 3:
        fake = real + 1.0
    every = (None, None, None, None, 10, 3, 2)[case]
    return [step, real, fake, every]


# --- 38.7: what an ideal discriminator pays


def ideal_logit(x, reference, policy):
    """Log density ratio of two Gaussians (mean, deviation) at x: [B], pair, pair -> [B]."""

    def log_density(mean, deviation):
        return -0.5 * ((x - mean) / deviation) ** 2 - math.log(deviation)

    return log_density(*reference) - log_density(*policy)


def _no_constants(x, reference, policy):
    return ideal_logit(x, reference, policy) + math.log(reference[1] / policy[1])


def _other_way(x, reference, policy):
    return -ideal_logit(x, reference, policy)


def _densities(x, reference, policy):
    """The logarithm of a quotient whose two parts are 0 far out."""

    def density(mean, deviation):
        return torch.exp(-0.5 * ((x - mean) / deviation) ** 2) / deviation

    return (density(*reference) / density(*policy)).log()


def _probability(x, reference, policy):
    return torch.sigmoid(ideal_logit(x, reference, policy))


def _variances(x, reference, policy):
    return ideal_logit(x, (reference[0], reference[1] ** 0.5), (policy[0], policy[1] ** 0.5))


def _gaussians(generator):
    """Six points, one far out, and two Gaussians of different width."""
    draw = torch.rand(4, generator=generator).tolist()
    x = 2 * torch.randn(6, generator=generator)
    x[0] = 40.0
    return [x, (draw[0], 0.5 + draw[1]), (-draw[2], 1.6 + draw[3])]


def _same_pictures(seed):
    """Whether the ideal logit of equal Gaussians is 0, and pays a moved one for the way back."""
    x = torch.randn(100, generator=torch.Generator().manual_seed(seed)).sort().values
    equal = ideal_logit(x, (0.0, 1.0), (0.0, 1.0))
    moved = ideal_logit(x, (0.0, 1.0), (1.0, 1.0))  # the policy has gone to the right
    return bool(equal.abs().max() < 1e-6) and bool((moved[1:] < moved[:-1]).all())


EXERCISES = {
    "38.1": wb.Exercise(
        reference=cps_step, inputs=_states, minutes=15, difficulty=3, trials=16,
        wrong={
            "the fresh noise must take the place of old noise: the factor of the old one is "
            "the root of after^2 - s^2": _all_noise_kept,
            "the factor of the old noise is the root of a difference of squares": _difference,
            "x_0 = x - sigma v and x_1 = x + (1 - sigma) v": _other_sign,
            "the width belongs to the level *after* the step": _level_before,
            "the share of fresh noise is sin(eta pi / 2), not eta": _plain_share,
        },
        hints=["First the two estimates: the clean picture and the noise.",
               "With s = after sin(a) the root of after^2 - s^2 is after cos(a)."]),
    "38.2": wb.Exercise(
        reference=hinge_loss, inputs=_logits, minutes=5, difficulty=1,
        wrong={
            "references are to lie above 1, fakes below -1": _turned,
            "half of each, so that the loss is 1 where all logits are 0": _whole_sum,
            "the margin of 1 is missing": _no_margin,
            "beyond the margin nothing more is to be gained: cut at 0": _no_hinge,
        },
        hints=["`F.relu` cuts at 0.", "What costs nothing: a reference at 2, a fake at -2."]),
    "38.3": wb.Exercise(
        reference=pairwise_loss, inputs=_points, minutes=5, difficulty=2,
        wrong={
            "the reference is the one that should be ahead": _fakes_ahead,
            "sigmoid(-350) is 0 in float32, its logarithm minus infinity: use softplus or "
            "logsigmoid": _two_steps,
            "only the difference of a pair counts": _each_alone,
            "row k is one pair; the others have other prompts": _all_pairs,
        },
        hints=["-log sigmoid(z) is softplus(-z)."]),
    "38.4": wb.Exercise(
        reference=picture_reward, inputs=_tokens, minutes=5, difficulty=1, trials=12,
        wrong={
            "patches are averaged, or their number would set the unit": _patches_summed,
            "the first column is the whole picture, not a patch": _whole_twice,
            "`share` belongs to the whole picture": _shares_swapped,
            "each picture has a mean of its own": _batch_mean,
            "use the argument `share`, it need not be 0.7": _share_fixed,
            "all patches count": _some_patches,
        },
        hints=["`logits[:, 1:]` are the patches; average over them with `mean(1)`."]),
    "38.5": wb.Exercise(
        reference=batch_scaled, inputs=_opinions, minutes=10, difficulty=2, trials=8,
        wrong={
            "the deviation is that of the whole batch": _group_deviation,
            "the mean is that of the picture's own prompt": _batch_mean_too,
            "take the population deviation (divide by n): `correction=0`": _sample_deviation,
            "add 1e-4 to the deviation": _no_floor,
            "hold the result within -5 and 5": _unbounded,
        },
        hints=["Subtract the mean prompt by prompt, then divide once.",
               "The deviation is of the scores, not of what is left after the means."]),
    "38.6": wb.Exercise(
        reference=policy_learns, inputs=_rounds, minutes=10, difficulty=2, trials=48,
        wrong={
            "rounds are counted from 0: the tenth round is number 9": _from_zero,
            "the other one's turn": _the_other,
            "opinions are compared by their means": _best_picture,
            "the means are compared, not how many pictures are ahead": _by_majority,
            "use the argument `every`, it need not be 10": _always_ten,
            "at equal opinions the policy learns": _ties_teach,
            "with a count, opinions do not matter": _only_hacked,
        },
        hints=["Two rules, so begin with `if every is not None`."]),
    "38.7": wb.Exercise(
        reference=ideal_logit, inputs=_gaussians, minutes=10, difficulty=2,
        wrong={
            "the deviations stand before the exponential as well": _no_constants,
            "high where references are more likely than the policy's": _other_way,
            "the logit, not the probability": _probability,
            "far out both densities are 0: take the difference of logarithms": _densities,
            "a deviation is given, not a variance": _variances,
        },
        hints=["log N(x; m, s) = -(x - m)^2 / (2 s^2) - log s + a constant.",
               "The constant with pi cancels in the difference."]),
}

QUIZZES = {
    "38.q1": wb.Quiz(
        "The co-trained arm is paid by a preference whose last layers learn references. What do "
        "you expect of the *frozen* preference, which is only measured there?",
        ["its highest gain is about that of the arm that is paid by it",
         "its highest gain is less than half of that",
         "it rises at first and is back at its start in the end",
         "it falls from the start"],
        0, "In the study the highest gains are 1.94 points and 1.99 (section 9, and row C1-kept in "
        "section 12). References are ahead by the frozen preference, too, so whoever comes closer "
        "to them raises it."),
    "38.q2": wb.Quiz(
        "The references are pictures of the untrained model. What does the method do?",
        ["it collapses: the discriminator has no target",
         "it improves the model as before",
         "it pulls the policy back to the untrained model, like a KL term",
         "it drifts at random for ever"],
        2, "At the start both sets come from one distribution, and an ideal discriminator's logit "
        "is 0 everywhere. As soon as the policy leaves, the logit pays for the way back.",
        holds=_same_pictures),
    "38.q3": wb.Quiz(
        "Three critics late in training. A is right about 0.97 of the pairs, its rewards spread "
        "by 1.1 within a group. B: 0.98 and 0.02. C: 0.51 and 0.6. Which one is too strong?",
        ["A", "B", "C", "A and B"],
        1, "A and B are right about nearly all pairs, but A still ranks the pictures of a group. B "
        "calls all of them equally bad: what is left of an order is chance. C knows nothing, and "
        "its spread is noise."),
}
