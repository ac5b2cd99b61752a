"""Adversarial rewards and the actor-critic against closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from rlgenkit.optimizers import actor_critic as ac
from rlgenkit.rewards import adversarial as adv


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def test_slope_of_a_linear_and_of_a_quadratic_discriminator():
    weight, points = normal(5), normal(7, 5, seed=1)
    assert torch.allclose(adv.local_slope(lambda u: u @ weight, points), weight.norm().expand(7))
    root = normal(5, 5, seed=2)
    form = root + root.T
    slopes = adv.local_slope(lambda u: ((u @ form) * u).sum(-1) / 2, points)
    assert torch.allclose(slopes, (points @ form).norm(dim=-1))


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("length", [0.4, 2.5])
def test_penalty_and_its_gradient_for_a_linear_discriminator(one_sided, length):
    """(|w| - k)^2 has the gradient 2 (|w| - k) w / |w|; one-sided: nothing below k."""
    weight = (length * F.normalize(normal(5), dim=0)).requires_grad_()
    penalty = adv.gradient_penalty(
        lambda u: u @ weight, normal(9, 5, seed=1), 1.0, one_sided
    ).mean()
    gradient = torch.autograd.grad(penalty, weight)[0]
    excess = 0.0 if one_sided and length < 1 else length - 1
    assert float(penalty.detach()) == pytest.approx(excess**2)
    assert torch.allclose(gradient, 2 * excess * F.normalize(weight.detach(), dim=0), atol=1e-8)


def test_penalty_of_many_discriminators_at_once_with_a_mask():
    weight = normal(3, 5, 1)
    one_sided = torch.tensor([False, True, False])[:, None]
    points = normal(3, 6, 5, seed=1)
    together = adv.gradient_penalty(lambda u: (u @ weight)[..., 0], points, 1.5, one_sided)
    for k in range(3):
        alone = adv.gradient_penalty(
            lambda u: (u @ weight[k])[..., 0], points[k], 1.5, bool(one_sided[k])
        )
        assert torch.allclose(together[k], alone)


def test_penalty_stays_finite_where_the_gradient_vanishes():
    weight = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    penalty = adv.gradient_penalty(lambda u: (u @ weight) ** 2, normal(3, 4)).sum()
    assert torch.isfinite(torch.autograd.grad(penalty, weight)[0]).all()


def test_where_the_penalty_acts():
    expert, policy = torch.zeros(2, 500, 3), torch.ones(2, 500, 3)
    between = adv.penalty_points(expert, policy, "wgan", generator())
    assert 0 <= between.min() and between.max() <= 1 and abs(between.mean() - 0.5) < 0.03
    same = (between - between[..., :1]).abs().max()
    assert same > 0.5  # every coordinate has its own fraction
    for place, middle in (("dragan", 0), ("nagard", 1)):
        points = adv.penalty_points(expert, policy, place, generator(), 0.5)
        assert abs(points.mean() - middle) < 0.05 and abs(points.std() - 0.5) < 0.02
    with pytest.raises(ValueError, match="wgan, dragan, nagard"):
        adv.penalty_points(expert, policy, "gan", generator())
    with pytest.raises(ValueError, match="same shape"):
        adv.penalty_points(expert, policy[:, :3], "wgan", generator())


def test_discriminator_loss_by_hand_and_its_optimum():
    real, fake = normal(4, 6), normal(4, 8, seed=1)
    p, q = real.sigmoid(), fake.sigmoid()
    both = torch.cat([p, q], -1)
    entropy = -(both * both.log() + (1 - both) * (1 - both).log()).mean(-1)
    byhand = -p.log().mean(-1) - (1 - q).log().mean(-1) - 0.01 * entropy
    assert torch.allclose(adv.discriminator_loss(real, fake, entropy=0.01), byhand)
    smooth = (
        F.binary_cross_entropy_with_logits(real, torch.full_like(real, 0.8)) - (1 - q).log().mean()
    )
    assert torch.allclose(adv.discriminator_loss(real, fake, 0.8, 0.0).mean(), smooth)
    # Two points with known densities: the best logit is the log of the ratio.
    logit = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    draws = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 1, 1])
    for _ in range(3000):
        loss = adv.discriminator_loss(logit[draws[0]], logit[draws[1]], entropy=0.0)
        logit = (logit - torch.autograd.grad(loss, logit)[0]).detach().requires_grad_()
    assert torch.allclose(logit, torch.tensor([3.0, 1 / 3]).double().log(), atol=1e-6)


def test_rewards_of_logits():
    x = normal(20) * 3
    assert torch.allclose(adv.adversarial_reward(x), -torch.log(1 - x.sigmoid()))
    assert torch.equal(adv.adversarial_reward(x, signed=True), x)


def test_spectral_norm_against_singular_values():
    weight, guess = normal(3, 6, 4), normal(3, 1, 4, seed=1)
    for _ in range(300):
        scaled, guess = adv.spectral_normalized(weight, guess)
    assert torch.allclose(torch.linalg.svdvals(scaled)[:, 0], torch.ones(3).double())
    one, ray = torch.full((1, 1), 3.0, requires_grad=True), torch.ones(1, 1)
    adv.spectral_normalized(one, ray)[0].sum().backward()
    assert float(one.grad) == pytest.approx(0)  # w / |w| does not change with w


def test_pessimism_factor():
    factor = adv.pessimism(torch.tensor([0.0, 2.0, 2.5, 9.0]), 2.0, 1.0)
    assert factor.tolist() == pytest.approx([1, 1, math.exp(-0.25), 0.7])
    assert float(adv.pessimism(torch.tensor(2.5), 2.0, 0.5)) == pytest.approx(
        0.7
    )  # exp(-0.5) < floor
    assert float(adv.pessimism(torch.tensor(9.0), 2.0, 0.0, 0.1)) == pytest.approx(0.1)


# A linear system s' = a s + b u with cost q s^2 + r u^2 and the control u = -k s has the exact value
# Q(s, u) = -(q s^2 + r u^2) + d V(a s + b u), V(s) = -p s^2, p = (q + r k^2) / (1 - d (a - b k)^2).
SYSTEM = {"a": 0.9, "b": 0.5, "q": 1.0, "r": 0.3, "d": 0.9}


def exact_weights(k):
    """Weights of (s^2, s u, u^2) in Q."""
    a, b, q, r, d = SYSTEM.values()
    p = (q + r * k**2) / (1 - d * (a - b * k) ** 2)
    return torch.tensor([-q - d * p * a * a, -2 * d * p * a * b, -r - d * p * b * b]).double()


def features(s, u):
    return torch.stack([s * s, s * u, u * u], -1)


def test_td_learning_finds_the_known_values_of_a_linear_quadratic_problem():
    a, b, q, r, d = SYSTEM.values()
    s, u, k = normal(256), normal(256, seed=1), 0.7
    after, weights = a * s + b * u, torch.zeros(2, 3, dtype=torch.float64)  # two critics
    for _ in range(400):
        q1, q2 = weights @ features(after, -k * after).T
        target = ac.td_target(-(q * s * s + r * u * u), q1, q2, d)
        weights = torch.linalg.lstsq(features(s, u), target[:, None]).solution.T.repeat(2, 1)
    assert torch.allclose(weights[0], exact_weights(k), atol=1e-8)


def test_actor_and_critic_together_reach_the_best_control():
    a, b, q, r, d = SYSTEM.values()
    p = q
    for _ in range(500):
        best = d * p * a * b / (r + d * p * b * b)
        p = q + d * p * a * (a - b * best)
    s, k = normal(256), torch.zeros((), dtype=torch.float64, requires_grad=True)
    for _ in range(400):
        value = features(s, -k * s) @ exact_weights(k.detach())
        k = (k - 0.1 * torch.autograd.grad(ac.actor_loss(value), k)[0]).detach().requires_grad_()
    assert float(k.detach()) == pytest.approx(best, abs=1e-4)


def test_target_is_detached_and_softened():
    q1, q2 = torch.tensor([1.0, 4.0], requires_grad=True), torch.tensor([3.0, 2.0])
    target = ac.td_target(torch.ones(2), q1, q2, 0.5, 0.75)
    assert target.tolist() == [1 + 0.5 * 1.5, 1 + 0.5 * 2.5] and not target.requires_grad
    assert ac.td_target(torch.zeros(2), q1, q2, 1.0).tolist() == [1, 2]
    with pytest.raises(ValueError, match="0..1"):
        ac.td_target(torch.zeros(2), q1, q2, 1.0, 2.0)


def test_huber_noise_and_slow_targets():
    target = torch.zeros(2, 3)
    loss = ac.critic_loss([torch.tensor([[0.5, 0, 0], [0, 3, 0.0]]), target], target)
    assert loss.tolist() == pytest.approx([0.125 / 3, 2.5 / 3])
    noisy = ac.smoothed_action(torch.tensor([0.0, 0.99]).expand(4000, 2), generator())
    assert (
        noisy.abs().max() <= 1
        and noisy[:, 0].abs().max() == 0.5
        and 0.18 < noisy[:, 0].std() < 0.21
    )
    slow, fast = [torch.zeros(2)], [torch.ones(2)]
    ac.follow_slowly(slow, fast, 0.25)
    ac.follow_slowly(slow, fast, 0.25)
    assert slow[0].tolist() == [0.4375, 0.4375] and fast[0].tolist() == [1, 1]


def test_stacked_networks_are_their_members():
    seeds = [generator(1), generator(2)]
    net = ac.stacked_net((3, 8, 8, 2), seeds, copies=2, head=0.1)
    x = torch.randn(4, 5, 3, generator=generator())
    together = ac.stacked_forward(net, x, 0.1)
    for n in range(4):
        h = x[n]
        for k in (0, 2, 4):
            h = h @ net[k][n] + net[k + 1][n, 0]
            h = torch.where(h > 0, h, 0.1 * h) if k < 4 else h
        assert torch.allclose(together[n], h, atol=1e-6)
    assert torch.equal(net[0][:2], net[0][2:]) and not torch.equal(net[0][0], net[0][1])
    assert torch.allclose(net[2][0] @ net[2][0].T, 2 * torch.eye(8), atol=1e-5)
    assert torch.allclose(net[4][0].T @ net[4][0], 0.01 * torch.eye(2), atol=1e-6)
    together[0].sum().backward()
    assert net[0].grad[0].any() and not net[0].grad[1:].any()
