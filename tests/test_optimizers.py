"""Advantages, losses and updates against brute force, closed forms and finite differences."""

import copy
import json
import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from rlgenkit import optimizers as o
from rlgenkit import samplers as s
from rlgenkit.records import Scores

SHAPE = (2, 2, 2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


# ------------------------------------------------------------------ advantages


def test_group_advantages_by_hand_with_interleaved_duplicates():
    values = torch.tensor([1.0, 10.0, 3.0, 30.0, 5.0, 20.0])
    groups = torch.tensor([4, 2, 4, 2, 4, 2])  # one prompt's rows need not be neighbors
    expected = torch.tensor([-1, -1, 0, 1, 1, 0]) * math.sqrt(1.5)
    assert torch.allclose(o.group_advantages(values, groups, eps=0.0), expected, atol=1e-6)
    shuffle = torch.randperm(6, generator=generator())
    moved = o.group_advantages(values[shuffle], groups[shuffle], eps=0.0)
    assert torch.allclose(moved, expected[shuffle], atol=1e-6)
    batch = o.group_advantages(values, groups, "batch", eps=0.0)
    centered = values - torch.tensor([3.0, 20, 3, 20, 3, 20])
    assert torch.allclose(batch, centered / values.std(correction=0), atol=1e-6)
    assert torch.equal(o.group_advantages(values, groups, "none", clamp=None), centered)
    assert torch.equal(o.group_advantages(values, groups, "none"), centered.clamp(-5, 5))
    assert o.group_advantages(values, groups).dtype == torch.float32
    with pytest.raises(ValueError, match="std"):
        o.group_advantages(values, groups, "global")
    with pytest.raises(ValueError, match=r"\[B\]"):
        o.group_advantages(values, groups[:3])


def test_statistics_are_float64():
    values = 1e6 + torch.tensor([0.0, 0.0625, 0.125, 0.1875])
    got = o.group_advantages(values, torch.zeros(4, dtype=torch.long), eps=0.0)
    assert torch.allclose(got, torch.tensor([-3.0, -1, 1, 3]) / math.sqrt(5), atol=1e-6)


def test_equal_rewards_give_exactly_zero():
    values = torch.tensor([0.1, 0.1, 0.1, 0.7, 0.3, 0.2])
    groups = torch.tensor([0, 0, 0, 1, 1, 2])  # a constant group and a single one
    for std in ("group", "batch", "none"):
        got = o.group_advantages(values, groups, std, eps=1e-8)
        assert torch.equal(got[[0, 1, 2, 5]], torch.zeros(4))
        assert got.nonzero().flatten().tolist() == [3, 4]
    tenths = torch.full((3,), 0.1, dtype=torch.float64)  # their rounded mean is not 0.1
    assert torch.equal(o.group_advantages(tenths, torch.zeros(3).long(), eps=0.0), torch.zeros(3))


def test_invalid_samples_are_left_out():
    values = torch.tensor([1.0, 3.0, math.nan, 2.0, 8.0])
    groups, valid = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([1, 1, 0, 1, 1]).bool()
    for std in ("group", "batch", "none"):
        got = o.group_advantages(values, groups, std, valid=valid)
        kept = o.group_advantages(values[valid], groups[valid], std)
        assert got[2] == 0 and torch.equal(got[valid], kept)
    assert o.batch_advantages(values, valid=valid)[2] == 0
    with pytest.raises(ValueError, match="sample 2 is nan"):
        o.group_advantages(values, groups)
    none = o.group_advantages(values, groups, "batch", valid=torch.zeros(5))
    assert torch.equal(none, torch.zeros(5))


SIBLINGS = {
    "group": lambda x, g, m: o.group_advantages(x, g, valid=m),
    "batch std": lambda x, g, m: o.group_advantages(x, g, "batch", valid=m),
    "mean only": lambda x, g, m: o.group_advantages(x, g, "none", valid=m),
    "batch": lambda x, g, m: o.batch_advantages(x, valid=m),
    "leave one out": lambda x, g, m: o.rloo_advantages(x, g, m),
    "tracker": lambda x, g, m: o.PromptTracker(8, 1).update(g.tolist(), x, valid=m),
    "regression": lambda x, g, m: o.rwr_weights(x, 0.5, g, m),
}


@pytest.mark.parametrize("name", SIBLINGS)
def test_scores_go_in_as_they_are_and_invalid_rows_count_nowhere(name):
    made = SIBLINGS[name]
    values, groups = randn(12), torch.arange(12) % 3
    valid = torch.arange(12) % 5 > 0
    scores = Scores(torch.where(valid, values, 0.0), valid)
    got, kept = made(scores, groups, None), made(values[valid], groups[valid], None)
    assert torch.equal(got[valid], kept) and (got[~valid] == 0).all() and kept.abs().max() > 0
    holes = torch.where(valid, values, math.nan)
    assert torch.equal(got, made(holes, groups, valid))
    fewer = valid & (torch.arange(12) != 7)  # a mask beside scores leaves out more
    assert torch.equal(made(scores, groups, fewer), made(holes, groups, fewer))


def test_advantages_of_scores_by_hand():
    scores = Scores(torch.tensor([1.0, 5.0, 0.0, 2.0]), torch.tensor([True, True, False, True]))
    got = o.group_advantages(scores, torch.tensor([0, 0, 0, 1]), eps=0.0)
    assert got.tolist() == [-1.0, 1.0, 0.0, 0.0]  # 0 is no score: the mean is 3, not 2


@pytest.mark.parametrize("name", SIBLINGS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_named_and_never_ranked(name, bad):
    values, groups = torch.tensor([1.0, bad, 0.0, 2.0]), torch.tensor([0, 0, 0, 0])
    with pytest.raises(ValueError, match="sample 1 is"):
        SIBLINGS[name](values, groups, None)
    SIBLINGS[name](values, groups, torch.tensor([True, False, True, True]))


def test_batch_advantages_are_standardized():
    got = o.batch_advantages(randn(500) * 7 + 3, clamp=None).double()
    assert float(got.mean()) == pytest.approx(0, abs=1e-6)
    assert float(got.std(correction=0)) == pytest.approx(1, abs=1e-6)


def test_tracker_inserts_first_falls_back_and_forgets():
    tracker = o.PromptTracker(buffer_size=4, min_count=3)
    keys = ["a", "b", "a", "b"]
    values = torch.tensor([1.0, 5.0, 3.0, 7.0])
    first = tracker.update(keys, values, eps=0.0)
    assert torch.allclose(first, (values - 4) / values.std(correction=0))  # 2 < min_count
    second = tracker.update(["a", "b"], torch.tensor([8.0, 6.0]), eps=0.0)
    known = torch.tensor([1.0, 3.0, 8.0])
    assert float(second[0]) == pytest.approx(float((8 - known.mean()) / known.std(correction=0)))
    tracker.update(["a"] * 3, torch.tensor([2.0, 4.0, 6.0]))
    assert list(tracker.buffers["a"]) == [8.0, 2.0, 4.0, 6.0]  # the oldest left
    copy_of = o.PromptTracker()
    copy_of.load_state_dict(json.loads(json.dumps(tracker.state_dict())))
    fresh = torch.tensor([1.0, 2.0])
    assert torch.equal(tracker.update(["a", "b"], fresh), copy_of.update(["a", "b"], fresh))
    assert copy_of.buffers == tracker.buffers and copy_of.buffer_size == 4
    valid = torch.tensor([False, True])
    got = tracker.update(["a", "c"], torch.tensor([math.nan, 1.0]), valid=valid)
    assert got[0] == 0 and all(map(math.isfinite, tracker.buffers["a"]))


# ------------------------------------------------------------------ losses


def test_ppo_terms_against_the_definition_row_by_row():
    log_probs, old, advantages = randn(3, 5), randn(3, 5, seed=1), randn(5, seed=2)
    got = o.ppo_clip_terms(log_probs, old, advantages, (0.2, 0.3))
    for k in range(3):
        for i in range(5):
            ratio, a = math.exp(log_probs[k, i] - old[k, i]), float(advantages[i])
            expected = max(-a * ratio, -a * min(max(ratio, 0.8), 1.3))
            assert float(got[k, i]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert float(o.ppo_clip_loss(log_probs, old, advantages, 0.2)) == pytest.approx(
        float(o.ppo_clip_terms(log_probs, old, advantages, (0.2, 0.2)).mean())
    )
    assert float(o.ppo_clip_loss(old, old, torch.tensor(1.0), 0.1)) == -1.0


def test_ppo_gradient_stops_where_the_clip_bites():
    log_probs = torch.tensor([0.5, 0.5, -0.5, -0.5, 0.0]).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    o.ppo_clip_terms(log_probs, torch.zeros(5), advantages, 0.1).sum().backward()
    ratio = log_probs.detach().exp()
    expected = -advantages * ratio * torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    assert torch.allclose(log_probs.grad, expected)


def test_ppo_on_policy_gradient_is_reinforce():
    values, advantages = randn(4, 6), randn(6, seed=1)
    p, q = values.clone().requires_grad_(), values.clone().requires_grad_()
    o.ppo_clip_loss(p, values, advantages, 1e-4).backward()
    o.reinforce_loss(q, advantages).backward()
    assert torch.allclose(p.grad, q.grad, atol=1e-7)
    assert torch.allclose(p.grad, (-advantages / 24).expand(4, 6), atol=1e-7)


@pytest.mark.parametrize("gap", [100.0, 1e4, -100.0, -1e4])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_a_log_ratio_of_any_size_is_bounded_before_it_is_raised(gap, advantage):
    """Stored log-probs 100 lower than now: loss -1.2 A for A >= 0, no gradient, no nan."""
    mask, a = torch.ones(2, 3, dtype=torch.bool), torch.full((2,), advantage)
    ratio = math.exp(min(max(gap, -20.0), 20.0))
    expected = max(-advantage * ratio, -advantage * min(max(ratio, 0.8), 1.2))
    for loss in (
        lambda new, old: o.ppo_clip_loss(new.T, old.T, a, 0.2),
        lambda new, old: o.token_policy_loss(new, old, a, mask, 0.2),
        lambda new, old: o.clipped_ratio(a, 0.2)(new, old, torch.arange(2)).mean(),
    ):
        new = randn(2, 3).requires_grad_()
        value = loss(new, new.detach() - gap)
        value.backward()
        assert float(value) == pytest.approx(expected, rel=1e-5, abs=1e-9)
        assert torch.equal(new.grad, torch.zeros(2, 3))
    stats = o.ratio_stats(randn(2, 3) + gap, randn(2, 3), 0.2)
    assert all(torch.isfinite(x) for x in stats.values()) and int(stats["clip_fraction"]) == 6


@pytest.mark.parametrize("gap", [100.0, 1e4])
def test_an_update_takes_a_log_ratio_of_any_size(gap):
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    for advantage, loss in ((0.0, 0.0), (1.0, -1.2)):
        stats = o.policy_gradient_update(
            lambda steps, rows: (weight.expand(len(steps), len(rows)), None), optimizer, [weight],
            torch.full((2, 3), -gap), torch.full((3,), advantage), torch.arange(2), clip=0.2,
        )  # fmt: skip
        assert stats["loss"] == pytest.approx(loss) and stats["grad_norm"] == 0 and weight == 0


@pytest.mark.parametrize("gap", [50.0, 100.0, 1e4])
def test_k3_of_a_token_that_was_all_but_lost_is_finite_with_a_finite_slope(gap):
    lost = torch.tensor([-gap, gap]).requires_grad_()
    value = o.kl_k3(lost, torch.zeros(2))
    value.sum().backward()
    assert value.tolist() == pytest.approx([math.expm1(20) - 20, gap - 1], rel=1e-6)
    assert lost.grad.tolist() == [0.0, 1.0]


def test_a_clip_lies_between_0_and_1():
    p, old, a = randn(2, 3), randn(2, 3, seed=1), randn(3, seed=2)
    for bad in (0.0, (1.5, 0.1), -0.1):
        with pytest.raises(ValueError, match="clip"):
            o.ppo_clip_loss(p, old, a, bad)


def test_ratio_stats_count_what_is_clipped():
    change = torch.tensor([[0.0, 0.3, -0.3, 0.05]])
    stats = o.ratio_stats(change, torch.zeros(1, 4), 0.1)
    assert int(stats["clip_fraction"]) == 2
    assert float(stats["approx_kl"]) == pytest.approx(0.5 * (0.09 + 0.09 + 0.0025), rel=1e-5)
    assert float(stats["ratio_deviation"]) == pytest.approx(math.exp(0.3) - 1, rel=1e-5)
    assert int(o.ratio_stats(change, torch.zeros(1, 4), None)["clip_fraction"]) == 0


def test_k3_has_the_right_sign_and_size_near_zero():
    for r in (1e-6, -1e-6, 1e-4, -1e-4, 9.9e-4, 1.01e-3, 0.5, -0.5, 3.0):
        got = float(o.kl_k3(torch.tensor(-r), torch.tensor(0.0)))
        exact = float(torch.tensor(r, dtype=torch.float64).expm1() - float(torch.tensor(r)))
        if abs(r) < 1e-3:
            exact = r * r / 2 + r**3 / 6 + r**4 / 24
        assert got > 0 and got == pytest.approx(exact, rel=1e-3)
    naive = torch.tensor(1e-6).exp() - 1 - torch.tensor(1e-6)
    assert float(naive) <= 0  # the form that this replaces
    assert float(o.kl_k3(torch.tensor(0.3), torch.tensor(0.3))) == 0


def test_k3_averages_to_the_kl():
    p, q = Normal(0.2, 1.0), Normal(0.0, 1.1)
    x = 0.2 + randn(400_000).double()
    exact = float(kl_divergence(p, q))
    got = float(o.kl_k3(p.log_prob(x), q.log_prob(x)).mean())
    assert got == pytest.approx(exact, abs=1e-3)


def test_anchors_against_torch_kl():
    table = s.flow_table(10, noise=0.7, shift=3.0)
    steps, x = torch.tensor([0, 4, 9]), randn(4, *SHAPE)
    v, w = randn(4, *SHAPE, seed=1), randn(4, *SHAPE, seed=2)
    p = torch.stack([s.step(table, i, x, v, x).mean for i in steps.tolist()])
    q = torch.stack([s.step(table, i, x, w, x).mean for i in steps.tolist()])
    forms = {
        f: o.anchor_weights(f, table.std, table.dt, table.b, 8)
        for f in ("mean", "mean_dt", "exact", "velocity")
    }
    for k, i in enumerate(steps.tolist()):
        std, dt = table.std[i].double(), table.dt[i].double()
        kl = kl_divergence(Normal(p[k].double(), std), Normal(q[k].double(), std))
        got = {f: o.anchor_terms(p, q, weight[steps])[k].double() for f, weight in forms.items()}
        assert torch.allclose(got["exact"], kl.sum((1, 2, 3)), rtol=1e-4)
        assert torch.allclose(got["mean_dt"], kl.mean((1, 2, 3)), rtol=1e-4)
        rate = std / dt.sqrt()  # released form: s_t without dt
        released = (p[k] - q[k]).double().square().mean((1, 2, 3)) / (2 * rate**2)
        assert torch.allclose(got["mean"], released, rtol=1e-4)
        assert torch.allclose(got["velocity"], o.velocity_mse(v, w).double(), rtol=2e-3)
    still = s.flow_table(4, "ode")
    assert o.anchor_weights("exact", still.std, still.dt, still.b, 8).isnan().all()
    with pytest.raises(ValueError, match="anchor"):
        o.anchor_weights("kl", table.std, table.dt, table.b, 8)


def test_anchor_pulls_the_policy_only():
    p, q = randn(1, 2, 3).requires_grad_(), randn(1, 2, 3, seed=1).requires_grad_()
    o.anchor_terms(p, q, torch.tensor([2.0])).sum().backward()
    assert q.grad is None
    assert torch.allclose(p.grad, (4 / 3 * (p - q)).detach(), atol=1e-6)


# ------------------------------------------------------------------ weighted regression


def test_rwr_weights():
    values, groups = torch.tensor([1.0, 2.0, 3.0, 9.0]), torch.tensor([0, 1, 0, 1])
    w = o.rwr_weights(values, 0.5)
    assert torch.allclose(w, (values / 0.5).softmax(0)) and float(w.sum()) == pytest.approx(1)
    grouped = o.rwr_weights(values, 0.5, groups)
    assert float(grouped[groups == 0].sum()) == pytest.approx(0.5)
    assert float(grouped[2] / grouped[0]) == pytest.approx(math.exp(4), rel=1e-4)
    assert o.rwr_weights(values, 1e6)[0] == pytest.approx(0.25, abs=1e-4)
    masked = o.rwr_weights(values, 0.5, groups, torch.tensor([1, 1, 1, 0]))
    assert masked[3] == 0 and float(masked.sum()) == pytest.approx(1)
    assert o.rwr_weights(torch.tensor([1e4, 0.0]), 0.2).tolist() == [1.0, 0.0]  # no overflow
    with pytest.raises(ValueError, match="temperature"):
        o.rwr_weights(values, 0.0)


def test_preferences_on_denoising_errors_are_dpo_of_gaussian_likelihoods():
    """log p = -error + const for a Gaussian: the loss of language models with these numbers."""
    error = randn(4, 6, seed=3).square()  # policy and reference on winner and loser
    winner, loser, beta = error[0] - error[1], error[2] - error[3], 0.7
    terms = o.preference_denoising_terms(winner, loser, beta)
    same = o.dpo_loss(-error[0], -error[2], -error[1], -error[3], beta)
    assert torch.allclose(terms.mean(), same)
    sign = torch.tensor([1.0, -1.0, 0.0, 1.0, -1.0, 0.0], requires_grad=True)
    winner, loser = winner.requires_grad_(), loser.requires_grad_()
    o.preference_denoising_terms(winner, loser, beta, sign).sum().backward()
    weight = beta * (beta * (winner - sign * loser)).sigmoid().detach()
    assert torch.allclose(winner.grad, weight) and sign.grad is None
    assert torch.allclose(loser.grad, -sign.detach() * weight)
    with pytest.raises(ValueError, match="beta"):
        o.preference_denoising_terms(winner, loser, 0.0)


def test_weighted_denoising_loss():
    prediction, target = randn(3, *SHAPE), randn(3, *SHAPE, seed=1)
    w = torch.tensor([0.5, 0.0, 0.5])
    by_hand = sum(float(w[i] * (prediction[i] - target[i]).square().mean()) for i in range(3))
    got = float(o.weighted_denoising_loss(prediction, target, w))
    assert got == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("strength", [0.1, 1.0, 2.0])
def test_nft_minimum_is_the_improvement_direction(strength):
    old, target = randn(5, 3).double(), randn(5, 3, seed=1).double()
    r = torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0]).double()
    best = old + (2 * r - 1).view(-1, 1) * (target - old) / strength
    v = best.clone().requires_grad_()
    o.nft_terms(v, old, target, r, strength).sum().backward()
    assert v.grad.abs().max() < 1e-5
    low = o.nft_terms(best, old, target, r, strength)
    for seed in range(5):
        other = o.nft_terms(best + 0.1 * randn(5, 3, seed=seed), old, target, r, strength)
        assert (other > low).all()
    # at v = v_old the value does not depend on r: the card's warning about the first update
    same = o.nft_terms(old, old, target, r, strength)
    assert torch.allclose(same, (old - target).square().mean(1), atol=1e-5)


def test_nft_released_form():
    v, old, target = randn(4, 6), randn(4, 6, seed=1), randn(4, 6, seed=2)
    r, sigma, b = torch.tensor([0.1, 0.4, 0.7, 1.0]), torch.tensor([0.2, 0.5, 0.8, 1.0]), 0.5
    x0, x1 = randn(4, 6, seed=3), randn(4, 6, seed=4)
    x, target = s.noised_flow(x0, x1, sigma)
    expected = torch.zeros(4)
    for sign, weight in ((1, r), (-1, 1 - r)):  # regression in clean-latent space
        branch = old + sign * b * (v - old)
        clean = x - sigma.view(-1, 1) * branch
        scale = (clean - x0).abs().mean(1)
        expected += weight * ((clean - x0) ** 2).mean(1) / scale / b
    assert torch.allclose(o.nft_terms(v, old, target, r, b, sigma), expected, atol=1e-5)
    one = v[:1].clone().requires_grad_()  # the divisor carries no gradient
    o.nft_terms(one, old[:1], target[:1], torch.ones(1), 1.0, torch.ones(1)).sum().backward()
    gap = (one - target[:1]).detach()
    assert torch.allclose(one.grad, 2 * gap / 6 / gap.abs().mean(), atol=1e-6)
    leaf = old.clone().requires_grad_()
    o.nft_terms(v.requires_grad_(), leaf, target, r).sum().backward()
    assert leaf.grad is None and v.grad is not None


def test_ema():
    p = nn.Parameter(torch.zeros(3))
    ema = o.Ema([p], decay=0.9)
    p.data += 1
    ema.update()
    assert torch.allclose(ema.averages[0], torch.full((3,), 0.1))
    ema.update(decay=0.0)
    assert torch.equal(ema.averages[0], torch.ones(3))
    p.data += 1
    with ema.applied():
        assert torch.equal(p, torch.ones(3))
    assert torch.equal(p, torch.full((3,), 2.0))
    other = o.Ema([nn.Parameter(torch.zeros(3))])
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.averages[0], ema.averages[0])
    with pytest.raises(ValueError, match="tensors"):
        other.load_state_dict({})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_averages_of_weights_in_half_precision_move(dtype):
    p = nn.Parameter(torch.ones(3, dtype=dtype))
    ema = o.Ema([p], decay=0.999)
    p.data += 1
    for _ in range(1000):
        ema.update()
    expected = 2 - 0.999**1000
    assert ema.averages[0].dtype == torch.promote_types(dtype, torch.float32)
    assert ema.averages[0].tolist() == pytest.approx([expected] * 3, rel=1e-5)
    with ema.applied():
        assert p.dtype == dtype and p.tolist() == pytest.approx([expected] * 3, rel=5e-3)
    assert torch.equal(p, torch.full((3,), 2.0, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_means_over_half_precision_are_float32(dtype):
    x, y = (10 + randn(3, 4000)).to(dtype), (10 + randn(3, 4000, seed=1)).to(dtype)
    mask = torch.ones(3, 4000, dtype=torch.bool)
    wide = x.double().mean()
    for average, length in (("token", None), ("sequence", None), ("constant", 4000)):
        got = o.masked_mean(x, mask, average, length)
        assert got.dtype == torch.float32 and float(got) == pytest.approx(float(wide), rel=1e-6)
    gap = (x.double() - y.double()).square().mean(1)
    got = o.velocity_mse(x, y)
    assert got.dtype == torch.float32 and torch.allclose(got.double(), gap, rtol=1e-5)


# ------------------------------------------------------------------ the update


class Linear(nn.Module):
    """Velocity W x + b t: small enough for finite differences."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(0.3 * randn(8, 8, seed=5).to(dtype))
        self.bias = nn.Parameter(0.3 * randn(8, seed=6).to(dtype))

    def forward(self, x, t):
        flat = x.flatten(1).to(self.weight.dtype)
        return (flat @ self.weight + self.bias * (t.view(-1, 1) / 1000)).view(x.shape)


def setup(batch=6, n=5):
    network = Linear()
    x = s.initial_noise(batch, SHAPE, generator())
    path = s.rollout(network, s.flow_table(n), x, generator(1))
    return network, path, randn(batch, seed=3)


def replay_of(network, path, together=False):
    return lambda steps, rows: s.replay(network, path, steps, rows, together)


def nudged(network):
    other = copy.deepcopy(network)
    with torch.no_grad():
        for i, p in enumerate(other.parameters()):
            p += 0.02 * randn(*p.shape, seed=20 + i)
    return other


def change(network, path, advantages, **arguments):
    """Parameter change of one SGD step of rate 1 (= minus the gradient), and the stats."""
    network = copy.deepcopy(network)
    before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
    together = arguments.pop("together", False)
    reference = arguments.pop("reference_network", None)
    if reference is not None:
        arguments["reference"] = replay_of(reference, path)
    steps = arguments.pop("steps", torch.arange(4))
    stats = o.policy_gradient_update(
        replay_of(network, path, together), torch.optim.SGD(network.parameters(), lr=1.0),
        network.parameters(), path.log_probs, advantages, steps,
        max_grad_norm=arguments.pop("max_grad_norm", math.inf), **arguments,
    )  # fmt: skip
    return nn.utils.parameters_to_vector(network.parameters()).detach() - before, stats


@pytest.mark.parametrize("clip", [None, 0.2])
def test_policy_gradient_against_finite_differences(clip):
    """The surrogate's gradient, from float64 Gaussian log-probs written out here."""
    network, path, advantages = setup()
    policy = nudged(network) if clip else network
    gradient = -change(policy, path, advantages, clip=clip)[0].double()
    exact = copy.deepcopy(policy).double()
    table = path.table

    def surrogate(vector):
        nn.utils.vector_to_parameters(vector, exact.parameters())
        total = 0.0
        for i in range(4):
            x, after = path.latents[i].double(), path.latents[i + 1].double()
            with torch.no_grad():
                v = exact(x, table.t[i].double().expand(len(x)))
            mean = float(table.a[i]) * x + float(table.b[i]) * v
            log_prob = Normal(mean, float(table.std[i])).log_prob(after).mean((1, 2, 3))
            if clip is None:
                total += float((-advantages.double() * log_prob).mean()) / 4
            else:
                ratio = (log_prob - path.log_probs[i].double()).exp()
                a = advantages.double()
                terms = torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip))
                total += float(terms.mean()) / 4
        return total

    start = nn.utils.parameters_to_vector(exact.parameters()).detach().clone()
    for j in (0, 9, 30, 63, 64, 71):
        h = torch.zeros_like(start)
        h[j] = 1e-4
        numeric = (surrogate(start + h) - surrogate(start - h)) / 2e-4
        assert float(gradient[j]) == pytest.approx(numeric, rel=1e-3, abs=1e-6)


def test_expected_score_gradient_is_that_of_the_expected_reward():
    """A one-step policy N(mean, std) with reward x: d E[x] / d mean = 1 per element (REINFORCE)."""
    table = s.flow_table(4, "dance", noise=1.0)
    v = torch.zeros(1, requires_grad=True)
    x = torch.zeros(200_000, 1)
    taken = s.step(table, 0, x, v.expand_as(x), generator=generator(), reduction="sum")
    o.reinforce_loss(taken.log_prob, taken.sample.detach().flatten()).backward()
    assert float(v.grad) == pytest.approx(-float(table.b[0]), rel=0.02)


def test_first_ratio_is_one_and_stats_are_right():
    network, path, advantages = setup()
    _, stats = change(network, path, advantages, clip=1e-4)
    assert stats["ratio_deviation"] == 0 and stats["ratio_mean"] == 1
    assert stats["clip_fraction"] == 0 and stats["approx_kl"] == 0
    assert stats["loss"] == pytest.approx(-float(advantages.mean()), abs=1e-6)
    _, split = change(network, path, advantages, batch_size=2)
    assert split["ratio_deviation"] <= 1e-6
    policy = nudged(network)
    delta, stats = change(policy, path, advantages, clip=1e-3)
    with torch.no_grad():
        new = replay_of(policy, path)(torch.arange(4), torch.arange(6))[0]
    shift = (new - path.log_probs[:4]).double()
    ratio = shift.exp()
    outside = float(((ratio - 1).abs() > 1e-3).double().mean())
    assert stats["clip_fraction"] == pytest.approx(outside)
    assert stats["approx_kl"] == pytest.approx(float(0.5 * (shift**2).mean()), rel=1e-5)
    assert stats["ratio_deviation"] == pytest.approx(float((ratio - 1).abs().max()), rel=1e-6)
    assert stats["grad_norm"] == pytest.approx(float(delta.norm()), rel=1e-5)


def test_invariant_to_micro_batches_and_steps_per_forward():
    network, path, advantages = setup()
    policy, common = nudged(network), {"clip": 0.05}
    table = path.table
    common |= {
        "reference_network": network,
        "beta": 0.3,
        "anchor": o.anchor_weights("mean_dt", table.std, table.dt, table.b, 8),
    }
    whole, stats = change(policy, path, advantages, **common)
    assert whole.abs().max() > 1e-3 and stats["penalty"] > 0
    splits = (
        {"batch_size": 4},
        {"batch_size": 1},
        {"steps_per_forward": 3, "together": True},
        {"batch_size": 4, "steps_per_forward": 4, "together": True},
        {"steps_per_forward": 2},
    )
    for split in splits:
        other, other_stats = change(policy, path, advantages, **common, **split)
        assert torch.allclose(whole, other, atol=2e-6), split
        for name, value in stats.items():
            assert other_stats[name] == pytest.approx(value, rel=1e-3, abs=1e-6), (split, name)


def test_zero_advantages_give_zero_gradient():
    network, path, advantages = setup()
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.2, 0.5, 0.9])
    delta, stats = change(nudged(network), path, torch.zeros(6))
    assert torch.equal(delta, torch.zeros_like(delta)) and stats["grad_norm"] == 0
    a = o.group_advantages(rewards, groups)
    policy = nudged(network)
    whole, _ = change(policy, path, a, clip=0.2)
    kept, _ = change(policy, path, a, clip=0.2, rows=a.nonzero().flatten())
    assert torch.allclose(whole * 2, kept, atol=1e-6)  # same sum, over half of the rows
    with pytest.raises(ValueError, match="nothing to train on"):
        change(network, path, a, rows=torch.zeros(0, dtype=torch.long))


def test_update_uses_the_advantage_of_its_own_sample_and_step():
    network, path, advantages = setup()
    parts = []
    for row in range(6):
        alone = torch.zeros(6)
        alone[row] = advantages[row]
        parts.append(change(network, path, alone, clip=None)[0])
        by_row = change(network, path, advantages, clip=None, rows=torch.tensor([row]))[0]
        assert torch.allclose(by_row, parts[-1] * 6, atol=1e-5)
    whole = change(network, path, advantages, clip=None)[0]
    assert torch.allclose(whole, torch.stack(parts).sum(0), atol=1e-5)
    per_step = torch.zeros(5, 6)
    per_step[2] = advantages
    one = change(network, path, per_step, clip=None)[0]
    two = change(network, path, advantages, clip=None, steps=torch.tensor([2]))[0]
    assert torch.allclose(one * 4, two, atol=1e-5)


def test_update_raises_the_reward():
    """Twelve updates on reward = mean of the sample must move the ODE's samples up."""
    network, held_out = Linear(), s.initial_noise(64, SHAPE, generator(99))
    optimizer = o.make_optimizer(network.parameters(), lr=5e-2)
    before = s.rollout(network, s.flow_table(5, "ode"), held_out).final.mean()
    for i in range(12):
        x = s.initial_noise(64, SHAPE, generator(i))
        path = s.rollout(network, s.flow_table(5), x, generator(100 + i))
        advantages = o.batch_advantages(path.final.mean((1, 2, 3)))
        stats = o.policy_gradient_update(
            replay_of(network, path, True), optimizer, network.parameters(), path.log_probs,
            advantages, torch.arange(4), clip=0.2, steps_per_forward=4,
        )  # fmt: skip
        assert stats["ratio_deviation"] < 1e-6
    after = s.rollout(network, s.flow_table(5, "ode"), held_out).final.mean()
    assert float(after - before) > 0.2


def test_anchor_pulls_back_to_the_reference():
    network, path, _ = setup()
    table, policy = path.table, nudged(network)
    for form in ("mean", "mean_dt", "exact", "velocity"):
        anchor = o.anchor_weights(form, table.std, table.dt, table.b, 8)
        delta, stats = change(
            policy, path, torch.zeros(6), reference_network=network, beta=1.0, anchor=anchor
        )
        ends = [nn.utils.parameters_to_vector(n.parameters()).detach() for n in (policy, network)]
        away = ends[0] - ends[1]
        assert float(delta @ away) < 0 and stats["penalty"] > 0, form
    with pytest.raises(ValueError, match="reference"):
        change(policy, path, torch.zeros(6), beta=1.0)
    window = s.rollout(network, s.flow_table(5), path.latents[0], generator(), range(2))
    anchor = o.anchor_weights("exact", window.table.std, window.table.dt, window.table.b, 8)
    with pytest.raises(ValueError, match="deterministic"):
        change(policy, window, torch.zeros(6), reference_network=network, beta=1.0, anchor=anchor)


def test_gradient_norm_is_clipped():
    network, path, advantages = setup()
    free, stats = change(network, path, 10 * advantages, clip=None)
    held, _ = change(network, path, 10 * advantages, clip=None, max_grad_norm=0.01)
    assert stats["grad_norm"] > 0.1 and float(held.norm()) == pytest.approx(0.01, rel=1e-3)
    assert torch.allclose(free / free.norm(), held / held.norm(), atol=1e-5)


def test_non_finite_values_name_step_and_sample_and_change_nothing():
    network, path, advantages = setup()
    bad = advantages.clone()
    bad[4] = math.nan
    before = [p.detach().clone() for p in network.parameters()]
    optimizer = o.make_optimizer(network.parameters(), lr=1.0)

    def update(replay, a):
        return o.policy_gradient_update(
            replay,
            optimizer,
            network.parameters(),
            path.log_probs,
            a,
            torch.tensor([1, 2]),
            batch_size=3,
        )

    with pytest.raises(FloatingPointError, match="loss at step 1, sample 4"):
        update(replay_of(network, path), bad)

    def broken(steps, rows):  # finite value, infinite gradient for one sample at one step
        log_probs, means = s.replay(network, path, steps, rows)
        spot = (steps.view(-1, 1) == 2) & (rows.view(1, -1) == 3)
        if spot.any():  # the root's slope at 0 is infinite
            log_probs = log_probs + (network.weight.sum() * 0).abs().sqrt()
        return log_probs, means

    with pytest.raises(FloatingPointError, match="gradient at step 2, sample 3"):
        update(broken, advantages)
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))
    assert all(p.grad is None for p in network.parameters())


def test_make_optimizer_wants_something_to_train():
    frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
    with pytest.raises(ValueError, match="LoRA"):
        o.make_optimizer([frozen], 1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_whose_steps_would_be_rounded_away_are_refused(dtype):
    weight = nn.Parameter(torch.ones(1, dtype=dtype))
    with pytest.raises(ValueError, match="half-precision"):
        o.make_optimizer([nn.Parameter(torch.ones(1)), weight], 1e-4)
    assert (weight + 1e-4 == weight).all()


def test_log_probs_kept_from_the_rollout_give_the_replay_gradient():
    network, path, advantages = setup()
    kept = s.rollout(network, s.flow_table(5), path.latents[0], generator(1), score_steps=range(4))
    assert torch.equal(kept.log_probs, path.log_probs) and not kept.latents.requires_grad
    assert kept.log_probs.requires_grad and not kept.final.requires_grad
    expected, _ = change(network, path, advantages, clip=0.1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
    stats = o.policy_gradient_update(
        lambda steps, rows: (kept.log_probs[steps][:, rows], None), optimizer, network.parameters(),
        kept.log_probs.detach(), advantages, torch.arange(4), clip=0.1, steps_per_forward=4,
        max_grad_norm=math.inf,
    )  # fmt: skip
    delta = nn.utils.parameters_to_vector(network.parameters()).detach() - before
    assert torch.allclose(delta, expected, atol=1e-6) and stats["ratio_deviation"] == 0
    with pytest.raises(ValueError, match="score_steps"):
        s.rollout(
            network,
            s.flow_table(5),
            path.latents[0],
            generator(),
            grad_from=1,
            score_steps=range(4),
        )


def test_the_series_of_k3_has_its_cubic_term():
    r = torch.tensor([-9e-4, -1e-5, 1e-5, 9e-4], dtype=torch.float64)
    exact = r**2 / 2 + r**3 / 6 + r**4 / 24
    torch.testing.assert_close(o.kl_k3(torch.zeros_like(r), r), exact, rtol=1e-6, atol=0)
