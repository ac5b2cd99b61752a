"""Consistency sampling as a decision process: densities, acting steps, the phantom last transition."""

import math

import pytest
import torch

from rlgenkit import samplers as s
from rlgenkit.optimizers import anchor_terms, anchor_weights
from tests.notebook_code import definitions

ABAR = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2, 0)
consistency_timesteps = definitions("31").consistency_timesteps
BOTH = pytest.mark.parametrize("last", ["deterministic", "noisy"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def table(horizon: int, last: str = "deterministic") -> s.StepTable:
    return s.consistency_table(ABAR, consistency_timesteps(horizon), last=last)


def f(x, eps, t):
    """The consistency function of one time t, in float64, straight from its definition."""
    clean = (x - (1 - ABAR[t]).sqrt() * eps) / ABAR[t].sqrt()
    scaled = 10.0 * t
    return 0.25 / (scaled**2 + 0.25) * x + scaled / math.sqrt(scaled**2 + 0.25) * clean


def network(x, t):
    return torch.tanh(1.3 * x) + 0.2 * torch.sin(t.view(-1, 1) / 300)


@BOTH
@pytest.mark.parametrize("horizon", [1, 2, 4, 8])
def test_every_transition_has_the_density_of_the_renoising(horizon, last):
    """N(sqrt(abar') f, 1 - abar') with abar' of the NEXT level; the last one as published."""
    steps = table(horizon, last)
    times = consistency_timesteps(horizon).tolist()
    path = s.rollout(network, steps, torch.randn(5, 6, generator=generator()), generator(1))
    for h, t in enumerate(times):
        state, action = path.latents[h].double(), path.latents[h + 1].double()
        mean = f(state, network(path.latents[h], torch.full((5,), t)).double(), t)
        if h == horizon - 1 and last == "deterministic":
            assert torch.allclose(action, mean, atol=1e-4)
            assert (path.log_probs[h] == 0).all() and not path.stochastic[h]
            continue
        level = ABAR[times[min(h + 1, horizon - 1)]]
        normal = torch.distributions.Normal(level.sqrt() * mean, (1 - level).sqrt())
        assert torch.allclose(
            path.log_probs[h].double(), normal.log_prob(action).mean(1), atol=1e-4
        )
    end = f(
        path.latents[horizon - 1].double(),
        network(path.latents[horizon - 1], torch.full((5,), times[-1])).double(),
        times[-1],
    )
    assert torch.allclose(path.final.double(), end, atol=1e-4)  # the noise-free estimate is decoded


def test_grid_of_the_authors():
    assert consistency_timesteps(4).tolist() == [999, 759, 519, 279]
    assert consistency_timesteps(2).tolist() == [999, 499]
    assert consistency_timesteps(8).tolist() == list(range(999, 158, -120))
    for bad in (0, 51):
        with pytest.raises(ValueError, match="1..50"):
            consistency_timesteps(bad)


def test_boundary_condition_near_time_zero():
    """f(x, 0) = x, and c_skip still counts at small times."""
    steps = s.consistency_table(ABAR, [500, 1, 0])
    assert steps.a_x0[-1] == 1 and steps.b_x0[-1] == 0
    x, eps = torch.randn(4, generator=generator()), torch.randn(4, generator=generator(1))
    mine = s.denoised(steps, 1, x, eps).double()
    assert torch.allclose(mine, f(x.double(), eps.double(), 1), atol=1e-6)


def test_kept_graph_gives_the_gradient_of_a_replay():
    """log p of a drawn action: d/d mean = (a - mean) / variance, the action being data."""
    steps, shift = table(4), torch.zeros(4, requires_grad=True)

    def act(x, t):
        return torch.tanh(x) + shift[steps.t.tolist().index(int(t[0]))]

    path = s.rollout(
        act, steps, torch.randn(5, 6, generator=generator(3)), generator(4), score_steps=range(3)
    )
    weight = torch.linspace(-1, 1, 15).view(3, 5)
    kept = torch.autograd.grad((path.log_probs[:3] * weight).sum(), shift)[0]
    again = torch.autograd.grad((s.replay(act, path, [0, 1, 2])[0] * weight).sum(), shift)[0]
    with torch.no_grad():
        means = s.replay(act, path, [0, 1, 2])[1]
        gap = (path.latents[1:4] - means) / steps.std[:3].view(3, 1, 1) ** 2
        exact = (weight * gap.mean(2)).sum(1) * steps.b[:3]
    assert torch.equal(kept, again) and kept[:3].abs().min() > 1e-3
    assert torch.allclose(kept[:3], exact, rtol=1e-3)


def test_acting_steps():
    for horizon in (1, 2, 4, 8):
        for last in ("deterministic", "noisy"):
            assert s.acting_steps(table(horizon, last)).tolist() == list(range(horizon - 1))
    assert table(4, "noisy").stochastic.tolist() == [True] * 4  # and stays untouched
    ddim = s.ddim_table(ABAR, [900, 500, 100])
    assert (
        s.acting_steps(ddim).tolist() == ddim.stochastic.nonzero().flatten().tolist() == [0, 1, 2]
    )
    assert s.acting_steps(s.flow_table(4, "ode")).tolist() == []
    assert s.acting_steps(s.windowed(s.flow_table(5), [1, 2])).tolist() == [1, 2]


@BOTH
def test_draws_of_acting_steps_reach_the_result_and_others_do_not(last):
    """Brute force: replace the noise of one step and look whether the result moves."""
    steps = table(4, last)
    draws = torch.randn(4, 3, 6, generator=generator(2))

    def result(noise):
        x = torch.ones(3, 6)
        for h in range(4):
            t = steps.t[h].expand(3)
            done = s.denoised(steps, h, x, network(x, t))
            mean = s.step(steps, h, x, network(x, t), sample=x).mean
            x = mean + steps.std[h] * noise[h]
        return done

    reaches = []
    for h in range(4):
        other = draws.clone()
        other[h] += 1.0
        reaches.append(not torch.equal(result(draws), result(other)))
    assert [h for h, yes in enumerate(reaches) if yes] == s.acting_steps(steps).tolist()


def score_gradient(horizon, last, shifts, rows, seed, steps=None):
    """Per-sample gradients [rows, H] of r * sum_h log p for eps = 0.3 x + shift_h, r = 2 x_final."""
    steps_table = table(horizon, last)
    times = steps_table.t.tolist()

    def act(x, t):
        return 0.3 * x + shifts[times.index(int(t[0]))]

    with torch.no_grad():
        path = s.rollout(
            act, steps_table, torch.randn(rows, 1, generator=generator(seed)), generator(seed + 1)
        )
    chosen = s.acting_steps(path.table) if steps is None else torch.tensor(steps)
    leaves = [shifts.expand(rows, horizon).clone().requires_grad_() for _ in chosen]
    total = 0
    for leaf, h in zip(leaves, chosen.tolist()):
        log_prob, _ = s.replay(
            lambda x, t: 0.3 * x + leaf[:, h : h + 1], path, [h], reduction="sum"
        )
        total = total + (log_prob[0] * 2 * path.final[:, 0]).sum()
    return sum(torch.autograd.grad(total, leaves)).double()


def exact_gradient(horizon, shifts):
    """d E[2 x_final] / d shift: the network is linear, so the mean path carries it exactly."""
    shifts = shifts.double().clone().requires_grad_()
    times = consistency_timesteps(horizon).tolist()
    x = torch.zeros(1, dtype=torch.float64)
    for h, t in enumerate(times):
        clean = f(x, 0.3 * x + shifts[h], t)
        x = clean if h == horizon - 1 else ABAR[times[h + 1]].sqrt() * clean
    return torch.autograd.grad(2 * x.sum(), shifts)[0]


@pytest.mark.parametrize("horizon", [2, 4])
def test_acting_steps_give_the_exact_gradient_but_for_the_last_application(horizon):
    shifts, rows = torch.linspace(-0.02, 0.03, horizon), 200_000
    found = score_gradient(horizon, "deterministic", shifts, rows, 5)
    error = found.std(0) / math.sqrt(rows)
    exact = exact_gradient(horizon, shifts)
    assert ((found.mean(0) - exact).abs()[:-1] < 4 * error[:-1]).all()
    assert (exact.abs()[:-1] > 8 * error[:-1]).all()  # a wrong sign or level would show
    assert (found[:, -1] == 0).all() and exact[-1].abs() > 0.1  # f at the last level has no action


@pytest.mark.parametrize("horizon", [1, 2, 4])
def test_the_phantom_term_has_mean_zero_and_variance_as_computed(horizon):
    """Its score is independent of the reward: mean 0, variance E[r^2] times the weight squared."""
    shifts, rows = torch.linspace(-0.02, 0.03, horizon), 200_000
    phantom = score_gradient(horizon, "noisy", shifts, rows, 9, steps=[horizon - 1])[:, -1]
    steps = table(horizon, "noisy")
    path = s.rollout(
        lambda x, t: 0.3 * x + shifts[steps.t.tolist().index(int(t[0]))],
        steps,
        torch.randn(rows, 1, generator=generator(9)),
        generator(10),
    )
    spread = (2 * path.final[:, 0].double()).square().mean()
    assert phantom.mean().abs() < 4 * phantom.std() / math.sqrt(rows)
    assert phantom.var() == pytest.approx(float(spread), rel=0.03)  # the weight is exactly 1
    if horizon > 1:
        whole = score_gradient(horizon, "noisy", shifts, rows, 9, steps=list(range(horizon)))
        acting = score_gradient(horizon, "noisy", shifts, rows, 9)
        assert torch.allclose(whole[:, :-1], acting[:, :-1], atol=1e-5)
        assert torch.allclose(whole[:, -1], phantom, atol=1e-5)


def test_weight_of_a_score_is_the_root_of_the_ratio_of_signal_to_noise():
    """|b| / std = sqrt(SNR' / SNR): what a change of epsilon does to log p; 1 for the phantom."""
    snr = ABAR / (1 - ABAR)
    for horizon in (2, 4, 8, 16):
        steps, times = table(horizon, "noisy"), consistency_timesteps(horizon)
        weight = (steps.b.abs() / steps.std).double()
        after = torch.cat([times[1:], times[-1:]])
        assert torch.allclose(weight, (snr[after] / snr[times]).sqrt(), rtol=1e-4)
        assert weight[-1] == pytest.approx(1, rel=1e-4) and (weight[:-1] > 1).all()


def test_kl_to_the_frozen_model_is_the_scaled_distance_of_the_two_functions():
    """KL = abar' |f - f_ref|^2 / (2 (1 - abar')), summed over the latent."""
    steps, x = table(4), torch.randn(3, 6, generator=generator(4))
    one, other = (torch.randn(3, 6, generator=generator(k)) for k in (5, 6))
    weights = anchor_weights("exact", steps.std, steps.dt, steps.b, 6)
    times = consistency_timesteps(4).tolist()
    for h in range(3):
        means = [s.step(steps, h, x, e, sample=x).mean[None] for e in (one, other)]
        level = ABAR[times[h + 1]]
        gap = f(x.double(), one.double(), times[h]) - f(x.double(), other.double(), times[h])
        exact = level / (2 * (1 - level)) * gap.square().sum(1)
        assert torch.allclose(
            anchor_terms(*means, weights[h : h + 1])[0].double(), exact, rtol=1e-3
        )
