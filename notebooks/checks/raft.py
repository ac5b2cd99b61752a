"""Exercises and questions of notebook 30 (RAFT): references, known mistakes, hints, answers."""

import torch

from rlgenkit import workbook as wb

# --- 30.1: the selection


def best_rows(scores, groups):
    """Row of the best sample of each group, groups rising: [B], Long[B] -> Long[G]."""
    rows = []
    for group in groups.unique():
        inside = (groups == group).nonzero()[:, 0]
        rows.append(inside[scores[inside].argmax()])
    return torch.stack(rows)


def _worst(scores, groups):
    return best_rows(-scores, groups)


def _place_inside(scores, groups):
    return torch.stack([scores[groups == group].argmax() for group in groups.unique()])


def _times_mask(scores, groups):
    return torch.stack([(scores * (groups == g)).argmax() for g in groups.unique()])


def _neighbors(scores, groups):
    count = len(groups.unique())
    size = len(scores) // count
    return scores.view(count, size).argmax(1) + torch.arange(count) * size


def _best_of_all(scores, groups):
    return scores.topk(len(groups.unique())).indices


def _their_scores(scores, groups):
    return scores[best_rows(scores, groups)]


def _samples(generator):
    """Three prompts, four samples each, first samples, second samples, ...; most below 0."""
    return [torch.randn(12, generator=generator) - 3, torch.arange(12) % 3]


# --- 30.2: the imitation of texts


def imitation_loss(log_probs, mask):
    """Mean of -log p over the words under the mask: [B, T], Bool[B, T] -> scalar."""
    return -log_probs[mask].mean()


def _over_texts(log_probs, mask):
    each = torch.where(mask, log_probs, 0.0).sum(1) / mask.sum(1)
    return -each.mean()


def _summed(log_probs, mask):
    return -log_probs[mask].sum()


def _without_mask(log_probs, mask):
    return -log_probs.mean()


def _ascent(log_probs, mask):
    return log_probs[mask].mean()


def _texts(generator):
    """Log-probs of three texts of 5, 3 and 1 words; what stands behind them is no zero."""
    log_probs = -torch.rand(3, 5, generator=generator).requires_grad_(True)
    lengths = torch.tensor([5, 3, 1])
    return [log_probs.detach().requires_grad_(True), torch.arange(5) < lengths[:, None]]


# --- 30.3: the anchored ranking


def anchored_scores(scores, log_probs, base_log_probs, mask, beta):
    """r - beta log(p / p_base) of whole texts, no gradient: [B], 2 x [B, T], Bool[B, T] -> [B]."""
    ratio = torch.where(mask, log_probs - base_log_probs, 0.0).sum(1)
    return scores - beta * ratio.detach()


def _other_sign(scores, log_probs, base_log_probs, mask, beta):
    return anchored_scores(scores, log_probs, base_log_probs, mask, -beta)


def _mean_ratio(scores, log_probs, base_log_probs, mask, beta):
    ratio = torch.where(mask, log_probs - base_log_probs, 0.0).sum(1) / mask.sum(1)
    return scores - beta * ratio.detach()


def _padding_counted(scores, log_probs, base_log_probs, mask, beta):
    return scores - beta * (log_probs - base_log_probs).sum(1).detach()


def _attached(scores, log_probs, base_log_probs, mask, beta):
    ratio = torch.where(mask, log_probs - base_log_probs, 0.0).sum(1)
    return scores - beta * ratio


def _only_now(scores, log_probs, base_log_probs, mask, beta):
    return scores - beta * torch.where(mask, log_probs, 0.0).sum(1).detach()


def _ranked(generator):
    """Rewards, and log-probs with numbers on padding; only the latter carry a graph."""
    log_probs, mask = _texts(generator)
    scores = torch.randn(3, generator=generator)
    return [scores, log_probs, -torch.rand(3, 5, generator=generator), mask, 0.3]


# --- 30.4: the imitation of pictures


def flow_loss(velocity, clean, noise, sigma):
    """Mean square error of the velocity: fn, 2 x [B, C, h, w], [B] -> scalar."""
    share = sigma.view(-1, 1, 1, 1)
    noisy = (1 - share) * clean + share * noise
    return (velocity(noisy) - (noise - clean)).square().mean()


def _backwards(velocity, clean, noise, sigma):
    share = sigma.view(-1, 1, 1, 1)
    noisy = (1 - share) * clean + share * noise
    return (velocity(noisy) - (clean - noise)).square().mean()


def _other_share(velocity, clean, noise, sigma):
    return flow_loss(velocity, clean, noise, 1 - sigma)


def _predicts_noise(velocity, clean, noise, sigma):
    share = sigma.view(-1, 1, 1, 1)
    return (velocity((1 - share) * clean + share * noise) - noise).square().mean()


def _wrong_axis(velocity, clean, noise, sigma):
    noisy = (1 - sigma) * clean + sigma * noise  # sigma [B] meets the last axis
    return (velocity(noisy) - (noise - clean)).square().mean()


def _summed_flow(velocity, clean, noise, sigma):
    return flow_loss(velocity, clean, noise, sigma) * clean.numel()


def _pictures(generator):
    """A network of one weight, as many pictures as columns, so that a wrong axis of sigma shows."""
    clean, noise = torch.randn(2, 3, 2, 3, 3, generator=generator)
    sigma = torch.rand(3, generator=generator)
    return [_network, clean.requires_grad_(True), noise, sigma]


def _network(noisy):
    return torch.tanh(1.3 * noisy) + 0.2


# --- 30.5: soft RAFT


def soft_weights(scores, k, tau):
    """exp(r / tau), normalized within each prompt of k neighbors; all sum to 1: [B] -> [B]."""
    inside = (scores.view(-1, k) / tau).softmax(1)
    return inside.flatten() / len(inside)


def _batch_softmax(scores, k, tau):
    return (scores / tau).softmax(0)


def _sum_of_prompts(scores, k, tau):
    return (scores.view(-1, k) / tau).softmax(1).flatten()


def _low_first(scores, k, tau):
    return soft_weights(-scores, k, tau)


def _times_tau(scores, k, tau):
    return soft_weights(scores, k, 1 / tau)


def _wrong_neighbors(scores, k, tau):
    inside = (scores.view(k, -1) / tau).softmax(0)
    return inside.flatten() / inside.shape[1]


# --- 30.6: the bug


def fixed_best(scores, prompts, k):
    """Row of each prompt's best where row = sample * prompts + prompt: -> Long[prompts]."""
    return scores.view(k, prompts).argmax(0) * prompts + torch.arange(prompts)


def _broken(scores, prompts, k):
    return scores.view(prompts, k).argmax(1) + torch.arange(prompts) * k


def _old_offset(scores, prompts, k):
    return scores.view(k, prompts).argmax(0) + torch.arange(prompts) * k


def _sample_number(scores, prompts, k):
    return scores.view(k, prompts).argmax(0)


def _by_k(scores, prompts, k):
    return scores.view(k, prompts).argmax(0) * k + torch.arange(prompts)


# --- 30.q3: the winner's curse


def _half(seed):
    """Whether the truth of the winner grows half as fast as its reward."""
    worth, noise = torch.randn(2, 4000, 64, generator=torch.Generator().manual_seed(seed))
    row = (worth + noise).argmax(1, keepdim=True)
    true, promised = worth.gather(1, row).mean(), (worth + noise).gather(1, row).mean()
    return abs(true / promised - 0.5) < 0.03


EXERCISES = {
    "30.1": wb.Exercise(
        reference=best_rows, inputs=_samples, minutes=5, difficulty=1,
        wrong={
            "keep the highest score of each prompt, not the lowest": _worst,
            "return the row in the batch, not the place inside the prompt": _place_inside,
            "samples of a prompt need not be neighbors: look at `groups`": _neighbors,
            "each prompt keeps one: the best of the whole batch is global ranking": _best_of_all,
            "return row numbers, not the scores": _their_scores,
            "rewards may be negative: a product with the mask makes strangers 0": _times_mask,
        },
        hints=["Go through `groups.unique()`; which rows belong to a group?",
               "`nonzero` turns a mask into row numbers; `argmax` of some rows is a place among "
               "them."]),
    "30.2": wb.Exercise(
        reference=imitation_loss, inputs=_texts, minutes=5, difficulty=1,
        wrong={
            "every word counts the same: a mean over words, not over texts": _over_texts,
            "take the mean, so that the rate does not depend on how much was kept": _summed,
            "padding does not count: use the mask": _without_mask,
            "a loss falls when log p rises: the sign is missing": _ascent,
        },
        hints=["Which entries of log_probs were chosen by the model?",
               "A Boolean mask as an index gives a flat tensor of what it marks."]),
    "30.3": wb.Exercise(
        reference=anchored_scores, inputs=_ranked, minutes=10, difficulty=2,
        wrong={
            "what the base would hardly write must rank lower: subtract": _other_sign,
            "the ratio is that of the whole text: sum over its words": _mean_ratio,
            "padding does not count: use the mask": _padding_counted,
            "ranks carry no gradient: detach the ratio": _attached,
            "the base is missing: a ratio compares two models": _only_now,
        },
        hints=["The log of a product of chances is a sum.",
               "`detach` gives the same numbers without a graph."]),
    "30.4": wb.Exercise(
        reference=flow_loss, inputs=_pictures, minutes=10, difficulty=3,
        wrong={
            "the velocity leads from picture to noise: noise - clean": _backwards,
            "sigma is the share of noise": _other_share,
            "a flow predicts the velocity, not the noise": _predicts_noise,
            "a share belongs to a picture, the first axis: `sigma[:, None, None, None]`":
                _wrong_axis,
            "take the mean over all numbers, not the sum": _summed_flow,
        },
        hints=["Mix first: at sigma = 0 the network sees the picture, at 1 the noise.",
               "Shapes: sigma is [B], latents are [B, C, h, w]."]),
    "30.5": wb.Exercise(
        reference=soft_weights, minutes=10, difficulty=2,
        inputs=lambda generator: [100 + torch.randn(12, generator=generator), 4, 0.7],
        wrong={
            "normalize within each prompt": _batch_softmax,
            "the weights of the batch sum to 1": _sum_of_prompts,
            "high rewards get high weights": _low_first,
            "a small tau is a hard choice: divide by it": _times_tau,
            "samples of a prompt are neighbors: view as [prompts, k]": _wrong_neighbors,
        },
        hints=["View the scores as [prompts, k] and take a softmax over the last axis.",
               "`exp` of a large reward overflows; `softmax` does not."]),
    "30.6": wb.Exercise(
        reference=fixed_best, minutes=5, difficulty=2,
        inputs=lambda generator: [torch.randn(12, generator=generator), 3, 4],
        wrong={
            "that is the bug: the view takes neighbors for samples of one prompt": _broken,
            "that is the sample's number; its row is sample * prompts + prompt": _sample_number,
            "rows of a sample are `prompts` long, not `k`": _by_k,
            "the offset belongs to the old order: a row is sample * prompts + prompt": _old_offset,
        },
        hints=["Which rows belong to prompt 0 in that order?",
               "The first axis of the view must be the sample."]),
}

QUIZZES = {
    "30.q1": wb.Quiz(
        "One step of imitation makes the winner likelier. What becomes of the three texts that "
        "were thrown away?",
        ["all three rise", "all three fall", "some rise and some fall",
         "nothing moves: they are not in the loss"],
        2, "All texts share weights and words, and the chances of next words sum to one. A text "
        "that has words in common with the winner may even rise."),
    "30.q2": wb.Quiz(
        "RAFT and PPO get the same texts. At equal surprise at human sentences, who has gained "
        "more reward?",
        ["RAFT: it imitates whole good texts", "PPO: it also learns from bad texts",
         "they are level within a tenth", "neither gains anything at this size"],
        1, "The paper reports RAFT ahead. Here a winner's neutral words pull as well, which costs "
        "fluency; where bad texts are pushed down, they cancel. Section 8 measures how much."),
    "30.q3": wb.Quiz(
        "Truth and noise have spread 1, and the winner of K by their sum is kept. Its truth grows "
        "with K",
        ["as fast as its reward", "half as fast as its reward", "not at all",
         "for a while, then it falls again"],
        1, "Truth and noise share the winner's excess equally: half of what the reward promises "
        "is luck.", holds=_half),
}
