"""Exercises and questions of notebook 31 (RLCM): references, known mistakes, hints, answers."""

import math

import torch

from rlgenkit import workbook as wb

# --- 31.1: the consistency function


def consistency_function(x, noise, level, time):
    """c_skip x + c_out (x - sqrt(1 - level) noise) / sqrt(level): [B, ...] of one jump."""
    clean = (x - math.sqrt(1 - level) * noise) / math.sqrt(level)
    scaled, spread = 10.0 * time, 0.5
    skip = spread**2 / (scaled**2 + spread**2)
    return skip * x + scaled / math.sqrt(scaled**2 + spread**2) * clean


def _clean_only(x, noise, level, time):
    return (x - math.sqrt(1 - level) * noise) / math.sqrt(level)


def _unscaled(x, noise, level, time):
    return consistency_function(x, noise, level, time / 10)


def _no_division(x, noise, level, time):
    scaled, spread = 10.0 * time, 0.5
    skip = spread**2 / (scaled**2 + spread**2)
    out = scaled / math.sqrt(scaled**2 + spread**2)
    return skip * x + out * (x - math.sqrt(1 - level) * noise)


def _roots_missing(x, noise, level, time):
    scaled, spread = 10.0 * time, 0.5
    skip = spread**2 / (scaled**2 + spread**2)
    out = scaled / math.sqrt(scaled**2 + spread**2)
    return skip * x + out * (x - (1 - level) * noise) / level


def _jump(generator):
    """A latent, a predicted noise that carries a gradient, and a time near 0."""
    x = torch.randn(3, 2, 4, 4, generator=generator)
    noise = torch.randn(3, 2, 4, 4, generator=generator, requires_grad=True)
    return [x, noise, 0.6, 1 if torch.rand(1, generator=generator) < 0.5 else 0.07]


# --- 31.2: the Gaussian of an action


def action_gaussian(clean, next_level):
    """sqrt(next_level) clean and sqrt(1 - next_level): mean [B, ...] and width."""
    return math.sqrt(next_level) * clean, math.sqrt(1 - next_level)


def _without_roots(clean, next_level):
    return next_level * clean, 1 - next_level


def _variance(clean, next_level):
    return math.sqrt(next_level) * clean, 1 - next_level


def _unshrunk(clean, next_level):
    return clean, math.sqrt(1 - next_level)


def _swapped(clean, next_level):
    return math.sqrt(1 - next_level) * clean, math.sqrt(next_level)


def _guess(generator):
    """A clean guess that carries a gradient, and the level after the step."""
    return [torch.randn(3, 2, 4, 4, generator=generator, requires_grad=True), 0.3]


# --- 31.3: the loss of the acting steps


def acting_loss(log_probs, advantages):
    """Mean of -A log p over all but the last action: [B, H], [B] -> scalar."""
    return -(advantages[:, None] * log_probs[:, :-1]).mean()


def _haunted(log_probs, advantages):
    return -(advantages[:, None] * log_probs).mean()


def _rescaled(log_probs, advantages):
    steps = log_probs.shape[1]
    return _haunted(log_probs, advantages) * steps / (steps - 1)


def _first_dropped(log_probs, advantages):
    return -(advantages[:, None] * log_probs[:, 1:]).mean()


def _ascending(log_probs, advantages):
    return -acting_loss(log_probs, advantages)


def _by_picture(log_probs, advantages):
    return -(advantages[:, None] * log_probs[:, :-1]).sum(1).mean()


def _wrong_axis(log_probs, advantages):
    return -(advantages * log_probs)[:, :-1].mean()


def _batch(generator):
    """As many pictures as actions, so that advantages along the wrong axis show."""
    log_probs = torch.randn(4, 4, generator=generator, requires_grad=True)
    return [log_probs, torch.randn(4, generator=generator)]


# --- 31.4: the price of a picture


def evaluations(steps, trained):
    """One evaluation a step of the sampler, three more a trained step."""
    return steps + 3 * trained


def _forward_only(steps, trained):
    return steps + trained


def _kept_graph(steps, trained):
    return steps + 2 * trained


def _all_trained(steps, trained):
    return 4 * steps


def _chain(generator):
    """A sampler of 5 to 24 steps that trains all but one or two of them."""
    steps = int(torch.randint(5, 25, (1,), generator=generator))
    return [steps, steps - 1 - int(torch.randint(2, (1,), generator=generator))]


# --- 31.5: the divergence of two actions


def action_kl(clean, frozen, next_level):
    """next_level |clean - frozen|^2 / (2 (1 - next_level)), summed over a latent: [B]."""
    square = (clean - frozen.detach()).flatten(1).square().sum(1)
    return next_level / (2 * (1 - next_level)) * square


def _of_cleans(clean, frozen, next_level):
    return (clean - frozen.detach()).flatten(1).square().sum(1) / 2


def _unshrunk_means(clean, frozen, next_level):
    return _of_cleans(clean, frozen, next_level) / (1 - next_level)


def _over_width(clean, frozen, next_level):
    return next_level / math.sqrt(1 - next_level) * _of_cleans(clean, frozen, next_level)


def _averaged(clean, frozen, next_level):
    return action_kl(clean, frozen, next_level) / clean[0].numel()


def _attached(clean, frozen, next_level):
    square = (clean - frozen).flatten(1).square().sum(1)
    return next_level / (2 * (1 - next_level)) * square


def _two_models(generator):
    """Clean guesses of the tuned and of the frozen model, and a level."""
    clean = torch.randn(3, 2, 2, 2, generator=generator, requires_grad=True)
    return [clean, torch.randn(3, 2, 2, 2, generator=generator, requires_grad=True), 0.4]


# --- 31.6: REBEL


def rebel_loss(change, advantages, eta):
    """Mean square of eta times the difference of log-ratios less that of advantages: scalar."""
    total = change.sum(0)
    gap = eta * (total[:, 0] - total[:, 1]) - (advantages[:, 0] - advantages[:, 1])
    return gap.square().mean()


def _mean_over_steps(change, advantages, eta):
    return rebel_loss(change / len(change), advantages, eta)


def _signs_differ(change, advantages, eta):
    return rebel_loss(change, -advantages, eta)


def _eta_on_all(change, advantages, eta):
    return eta**2 * rebel_loss(change, advantages, 1.0)


def _each_picture(change, advantages, eta):
    return (eta * change.sum(0) - advantages).square().mean()


def _pairs(generator):
    """Log-ratios of three actions and five pairs, their advantages, eta."""
    change = torch.randn(3, 5, 2, generator=generator, requires_grad=True)
    return [change, torch.randn(5, 2, generator=generator), 0.7]


# --- 31.q1 and 31.q3


def _price_ratio(seed):
    """(20 + 3 * 19) / (4 + 3 * 3) is about 5.9, whatever the seed."""
    return abs(evaluations(20, 19) / evaluations(4, 3) - 5.9) < 0.05


def _one_percent(seed):
    """The squared weights of a two-jump chain with the levels of Stable Diffusion."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2
    abar = torch.cumprod(1 - betas, 0)
    snr = abar / (1 - abar)
    climb = (snr[499] / snr[999]).item()
    return 0.005 < 1 / (1 + climb) < 0.02


EXERCISES = {
    "31.1": wb.Exercise(
        reference=consistency_function, inputs=_jump, minutes=10, difficulty=2,
        wrong={
            "near time 0 the two factors count: c_skip x + c_out times the clean guess":
                _clean_only,
            "the factors see 10 times the time": _unscaled,
            "divide by sqrt(level): the state holds a shrunk picture": _no_division,
            "level is a variance: the state holds sqrt(level) x0 + sqrt(1 - level) noise":
                _roots_missing,
        },
        hints=["Solve x = sqrt(level) x0 + sqrt(1 - level) noise for x0.",
               "c_skip = 0.25 / ((10 t)^2 + 0.25), c_out = 10 t / sqrt((10 t)^2 + 0.25)."]),
    "31.2": wb.Exercise(
        reference=action_gaussian, inputs=_guess, minutes=3, difficulty=1,
        wrong={
            "level is a variance: take roots": _without_roots,
            "the second value is a width, the root of 1 - level": _variance,
            "the mean is shrunk by sqrt(level)": _unshrunk,
            "the other way round: sqrt(level) belongs to the picture": _swapped,
        },
        hints=["The next state is a noised picture: sqrt(l) times the picture plus "
               "sqrt(1 - l) times noise."]),
    "31.3": wb.Exercise(
        reference=acting_loss, inputs=_batch, minutes=10, difficulty=3,
        wrong={
            "the last draw never reaches the picture: leave its column out": _haunted,
            "a factor scales mean and noise alike: leave the last column out instead": _rescaled,
            "the phantom is the last column, not the first": _first_dropped,
            "the loss is minimized, so that a good action needs a minus sign": _ascending,
            "take the mean over pictures and actions, not the sum over actions": _by_picture,
            "an advantage belongs to a picture, the first axis: `advantages[:, None]`":
                _wrong_axis,
        },
        hints=["Which of the H log-probabilities belong to draws that the picture has seen?",
               "One mean over all remaining terms."]),
    "31.4": wb.Exercise(
        reference=evaluations, inputs=_chain, minutes=3, difficulty=1,
        wrong={
            "a trained step also goes backward, which costs as much as two forward passes":
                _forward_only,
            "a trained step is computed once more with its graph: 1 + 2": _kept_graph,
            "only the trained steps go forward again and backward": _all_trained,
        },
        hints=["Sampling takes one pass a step. What does a trained step take on top?"]),
    "31.5": wb.Exercise(
        reference=action_kl, inputs=_two_models, minutes=10, difficulty=3,
        wrong={
            "the actions have means sqrt(level) f and variance 1 - level": _of_cleans,
            "both means are shrunk by sqrt(level)": _unshrunk_means,
            "divide by the variance 1 - level, not by the width": _over_width,
            "sum over the latent's numbers, do not average": _averaged,
            "the frozen model is fixed: detach it": _attached,
        },
        hints=["KL of two Gaussians of equal width s: |m1 - m2|^2 / (2 s^2).",
               "Put in the means and the width of exercise 2."]),
    "31.6": wb.Exercise(
        reference=rebel_loss, inputs=_pairs, minutes=10, difficulty=3,
        wrong={
            "add the log-ratios of a picture's actions up": _mean_over_steps,
            "the two differences need the same sign": _signs_differ,
            "eta scales the log-ratios only": _eta_on_all,
            "regress the difference of the pair, not each picture": _each_picture,
        },
        hints=["First sum over the actions, then take the difference of the two pictures.",
               "The square comes last, then the mean over the pairs."]),
}

QUIZZES = {
    "31.q1": wb.Quiz(
        "RLCM jumps 4 times and trains 3 actions; DDPO takes 20 steps and trains 19. By which "
        "factor is a training picture of RLCM cheaper?",
        ["about 3", "5", "about 6", "20"],
        2, "(20 + 3 * 19) / (4 + 3 * 3) = 77 / 13 = 5.9. The last step is sampled and not "
        "trained, in either chain.", holds=_price_ratio),
    "31.q2": wb.Quiz(
        "RLCM and DDPO get about as many scored pictures, DDPO five times the network "
        "evaluations. What do you expect of the learned look?",
        ["RLCM far ahead at equal evaluations, the two about level at equal queries",
         "RLCM far ahead at both: credit for three actions is easier than for nineteen",
         "about level at equal evaluations, DDPO ahead at equal queries",
         "DDPO ends higher: it spent more"],
        0, "A picture costs RLCM a sixth, so a clock that counts evaluations shows it far ahead. "
        "Per scored picture the two come out level: the longer chain was no handicap here."),
    "31.q3": wb.Quiz(
        "With H = 2 the phantom is one of two trained terms. Which part of the variance of a "
        "picture's gradient does it make up?",
        ["more than half: it is pure noise", "about half", "about a quarter", "a few percent"],
        3, "The real action climbs from almost no signal to much of it, so the same change of "
        "the weights moves its log-probability far more. The phantom stays on its level. The "
        "levels alone say about 1 %; measured are 5 %. Section 10 tells why.",
        holds=_one_percent),
}
