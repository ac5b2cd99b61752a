"""Samplers against closed forms, torch.distributions and diffusers' own schedulers."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from rlgenkit import samplers as s
from tests.notebook_code import definitions

SHAPE = (4, 8, 8)
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ABAR = torch.cumprod(1 - BETAS, 0)
GRID = torch.tensor([999, 759, 519, 279])  # the times of RLCM for four jumps
noise_left = definitions("02").noise_left


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(batch, seed=0):
    return s.initial_noise(batch, SHAPE, generator(seed))


class Network(nn.Module):
    """Mixes positions and knows the time: enough for a replay to notice a wrong row or step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(256, 32), nn.Linear(32, 256)

    def forward(self, x, t):
        hidden = torch.tanh(self.first(x.flatten(1)) + t.float().view(-1, 1) / 1000)
        return self.second(hidden).view(x.shape) + 0.3 * x


def tables():
    ddim = s.ddim_table(ABAR, torch.arange(901, 0, -100), eta=1.0)
    return {
        "flow": s.flow_table(6, "flow", shift=3.0),
        "dance": s.flow_table(6, "dance", noise=0.3),
        "cps": s.flow_table(6, "cps", noise=0.8),
        "ode": s.flow_table(6, "ode"),
        "ddim": ddim,
        "ddim v": s.ddim_table(ABAR, torch.arange(901, 0, -100), eta=0.5, prediction="v"),
        "consistency": s.consistency_table(ABAR, GRID),
        "consistency noisy": s.consistency_table(ABAR, GRID, last="noisy"),
        "window": s.windowed(s.flow_table(6, "flow"), range(1, 3)),
    }


@pytest.fixture(params=list(tables()))
def table(request):
    return tables()[request.param]


# ------------------------------------------------------------------ replay


def test_replay_is_bit_equal_and_close_when_split(table):
    network = Network()
    path = s.rollout(network, table, noise(8), generator(1))
    steps = torch.arange(len(table))
    with torch.no_grad():
        log_probs, means = s.replay(network, path, steps)
        assert torch.equal(log_probs, path.log_probs)
        assert torch.equal((log_probs - path.log_probs).exp(), torch.ones_like(log_probs))
        pieces = [s.replay(network, path, steps, torch.arange(i, i + 2))[0] for i in (0, 2, 4, 6)]
        split = torch.cat(pieces, 1)
        joint, joint_means = s.replay(network, path, steps, together=True)
        part, _ = s.replay(network, path, steps[1:3], slice(2, 5), together=True)
    assert (split - path.log_probs).abs().max() <= 5e-7 * path.log_probs.abs().max().clamp(min=1)
    assert (joint - log_probs).abs().max() <= 5e-7 * path.log_probs.abs().max().clamp(min=1)
    assert torch.allclose(part, log_probs[1:3, 2:5], atol=2e-6)
    assert torch.allclose(joint_means, means, atol=1e-5)
    assert torch.isfinite(path.log_probs).all()
    assert (path.log_probs[~path.stochastic] == 0).all()
    assert torch.equal(path.stochastic, table.std > 0)


def test_same_seed_same_path_and_rows_are_independent(table):
    runs = [s.rollout(Network(), table, noise(4), generator(3)) for _ in range(2)]
    assert torch.equal(runs[0].latents, runs[1].latents)
    if table.stochastic.any():
        other = s.rollout(Network(), table, noise(4), generator(4))
        assert not torch.equal(runs[0].final, other.final)


def test_log_prob_is_that_of_torch_distributions(table):
    x, v = noise(5), noise(5, 1)
    for i in table.stochastic.nonzero().flatten().tolist():
        taken = s.step(table, i, x, v, generator=generator(i))
        expected = Normal(taken.mean.double(), float(table.std[i])).log_prob(taken.sample.double())
        # float32 residuals: the relative error of (x'-mean)/std grows as std shrinks
        tolerance = 1e-5 + 1e-6 / float(table.std[i])
        assert torch.allclose(taken.log_prob.double(), expected.mean((1, 2, 3)), atol=tolerance)
        summed = s.step(table, i, x, v, taken.sample, reduction="sum").log_prob.double()
        assert torch.allclose(summed, expected.sum((1, 2, 3)), rtol=1e-4, atol=256 * tolerance)


def test_step_numbers_may_differ_by_row(table):
    i = torch.tensor([0, 2, 1, 3, 2])
    x, v, after = noise(5), noise(5, 1), noise(5, 2)
    joint = s.step(table, i, x, v, after)
    for row, k in enumerate(i.tolist()):
        one = s.step(table, k, x[row : row + 1], v[row : row + 1], after[row : row + 1])
        assert torch.equal(joint.log_prob[row : row + 1], one.log_prob)
        assert torch.equal(joint.mean[row : row + 1], one.mean)
    drawn = s.step(table, i, x, v, generator=generator())
    assert torch.equal(s.step(table, i, x, v, drawn.sample).log_prob, drawn.log_prob)
    with pytest.raises(ValueError, match="shape"):
        s.step(table, i[:2], x, v, after)


def test_gradient_reaches_the_log_prob_through_the_mean_only():
    table, x = s.flow_table(6), noise(3)
    v = noise(3, 1).requires_grad_()
    taken = s.step(table, 2, x, v, generator=generator())
    taken.log_prob.sum().backward()
    _, b, std, _, _ = table.rows[2]
    expected = (taken.sample - taken.mean) / std**2 * b / 256  # d log N / d mean * B
    assert torch.allclose(v.grad, expected.detach(), rtol=1e-4, atol=1e-6)
    assert v.grad.abs().max() > 1e-3  # with x' attached it would be exactly 0


def test_log_prob_is_float32_whatever_comes_in():
    table = s.flow_table(6)
    x, v = noise(2).bfloat16(), noise(2, 1).bfloat16()
    taken = s.step(table, 1, x, v, generator=generator())
    assert {taken.sample.dtype, taken.log_prob.dtype, taken.mean.dtype} == {torch.float32}


# ------------------------------------------------------------------ flow tables


@pytest.mark.parametrize("kind", ["flow", "dance", "cps"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_no_noise_is_the_euler_ode(kind, shift):
    silent, ode = s.flow_table(8, kind, 0.0, shift), s.flow_table(8, "ode", shift=shift)
    for name in ("t", "std", "log_norm"):
        assert torch.equal(getattr(silent, name), getattr(ode, name))
    assert torch.allclose(silent.a, ode.a, atol=1e-7) and torch.allclose(silent.b, ode.b, atol=1e-7)
    assert not s.flow_table(8, kind, 0.7, shift).std[0] == 0


def test_flow_step_is_the_published_equation():
    table, x, v = s.flow_table(10, noise=0.7, shift=3.0), noise(3), noise(3, 1)
    level = s.flow_sigmas(10, 3.0)
    for i in range(10):
        sigma, dt = float(level[i]), float(level[i + 1] - level[i])
        below = float(level[1]) if i == 0 else sigma  # the sigma = 1 rule
        noise_rate = 0.7 * math.sqrt(sigma / (1 - below))
        drift = v + noise_rate**2 / (2 * sigma) * (x + (1 - sigma) * v)
        taken = s.step(table, i, x, v, generator=generator())
        assert torch.allclose(taken.mean, x + drift * dt, atol=2e-6)
        assert float(table.std[i]) == pytest.approx(noise_rate * math.sqrt(-dt), rel=1e-6)


def test_dance_is_flow_with_another_noise_rate():
    dance, level = s.flow_table(10, "dance", noise=0.3), s.flow_sigmas(10)
    for i in range(1, 10):
        equivalent = 0.3 / math.sqrt(float(level[i] / (1 - level[i])))
        flow = s.flow_table(10, "flow", noise=equivalent)
        for name in ("a", "b", "std"):
            one, other = getattr(flow, name)[i], getattr(dance, name)[i]
            assert float(one) == pytest.approx(float(other), rel=1e-5)


def test_cps_keeps_the_coefficients_of_the_schedule():
    table, level = s.flow_table(10, "cps", noise=0.6), s.flow_sigmas(10)
    x0, x1 = noise(2), noise(2, 1)
    for i in range(10):
        x = (1 - level[i]).float() * x0 + level[i].float() * x1
        mean = s.step(table, i, x, x1 - x0, generator=generator()).mean
        direct = (1 - level[i + 1]) * x0 + level[i + 1] * math.cos(0.6 * math.pi / 2) * x1
        assert torch.allclose(mean, direct.float(), atol=1e-5)
    assert torch.allclose(noise_left(table).double(), level[1:], atol=1e-6)


def test_residual_noise_of_the_flow_sde():
    flow = noise_left(s.flow_table(10, "flow", noise=0.7))
    expected = torch.tensor([0.959, 0.516, 0.131, 0.079])
    assert torch.allclose(flow[[0, 4, 8, 9]], expected, atol=1e-3)
    for n, rate, left in ((10, 0.3, 0.032), (4, 0.7, 0.218)):
        last = noise_left(s.flow_table(n, noise=rate))[-1]
        assert float(last) == pytest.approx(left, abs=1e-3)


def velocity_slope(sigma, variance):
    """k with v(x) = k x: the exact velocity at level sigma for data N(0, variance)."""
    spread = (1 - sigma) ** 2 * variance + sigma**2
    return (sigma - (1 - sigma) * variance) / spread


def exact_variances(table, variance):
    """Variances float64 [N+1] of the states of a flow sampler on data N(0, variance), no sampling.

    With an exact velocity k x the step is linear: var' = (A + B k)^2 var + C^2, from var = 1.
    """
    a, b, std, sigma = (x.double() for x in (table.a, table.b, table.std, table.sigma[:-1]))
    gain = a + b * velocity_slope(sigma, variance)
    states = [1.0]
    for g, c in zip(gain.tolist(), std.tolist(), strict=True):
        states.append(g**2 * states[-1] + c**2)
    return torch.tensor(states, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "level", "expected"),
    [
        ("ode", 0.0, (0.186, 0.233, 0.245, 0.250)),
        ("flow", 0.7, (0.230, 0.247, 0.251, 0.252)),
        ("dance", 0.3, (0.195, 0.235, 0.246, 0.249)),
        ("cps", 0.8, (0.123, 0.149, 0.158, 0.162)),
        ("cps", 0.3, (0.177, 0.218, 0.231, 0.235)),
    ],
)
def test_marginals_on_a_gaussian_target(kind, level, expected):
    # the listed values are Monte Carlo estimates (error about 1e-3); ours are exact recursions
    for n, value in zip((10, 40, 160, 640), expected, strict=True):
        variance = exact_variances(s.flow_table(n, kind, level), 0.25)[-1]
        assert float(variance) == pytest.approx(value, abs=1.6e-3)
    limit = 0.25 * (1 + math.cos(level * math.pi / 2)) / 2 if kind == "cps" else 0.25
    fine = [float(exact_variances(s.flow_table(n, kind, level), 0.25)[-1]) for n in (1280, 2560)]
    assert 2 * fine[1] - fine[0] == pytest.approx(limit, abs=5e-4)  # Richardson: error ~ 1/N


def test_exact_variances_agree_with_sampling():
    table = s.flow_table(10, "flow", noise=0.7)
    slope = velocity_slope(table.sigma[:-1], 0.25).float()

    def velocity(x, t):
        return x * slope[(table.t - t[0]).abs().argmin()]

    path = s.rollout(velocity, table, torch.randn(200, 1000, generator=generator()), generator(1))
    measured = path.latents.double().var(dim=(1, 2))
    assert torch.allclose(measured, exact_variances(table, 0.25), rtol=0.015)


def test_last_step_is_nearly_deterministic():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    table = s.flow_table(sigmas=s.sigmas_from_scheduler(scheduler, 10), noise=0.7)
    assert float(table.std[-1]) == pytest.approx(0.0063, abs=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_equals_diffusers_flow_scheduler(shift):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    table = s.flow_table(sigmas=s.sigmas_from_scheduler(scheduler, 10), kind="ode")
    network, x = Network(), noise(2)
    ours = s.rollout(network, table, x)
    assert torch.allclose(table.t, scheduler.timesteps, atol=1e-3)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t.expand(2)), t, x, return_dict=False)[0]
    assert torch.allclose(ours.final, x, atol=1e-5)


def test_solver_orders_with_a_known_solution():
    def cubic(x, t):  # v = 3 t^2 adds -1 from t = 1 to 0
        return 3 * (t / 1000).double().square().view(-1, 1).expand_as(x).float()

    x = torch.full((2, 1), 5.0)
    errors = {}
    for solver in ("euler", "midpoint"):
        ends = [s.rollout(cubic, s.flow_table(n, "ode"), x, solver=solver).final for n in (4, 8)]
        errors[solver] = [float((end - 4.0)[0, 0].double()) for end in ends]
    assert errors["euler"][0] / errors["euler"][1] == pytest.approx(2, abs=0.2)
    assert errors["midpoint"][0] / errors["midpoint"][1] == pytest.approx(4, abs=0.05)
    # a state-dependent field, v = x, from t = 1 to 0: x(0) = x(1)/e
    gaps = []
    for n in (8, 16):
        end = s.rollout(lambda x, t: x, s.flow_table(n, "ode"), x, solver="midpoint").final
        gaps.append(abs(float(end[0, 0]) - 5 / math.e))
    assert gaps[0] / gaps[1] == pytest.approx(4, abs=0.5)


def test_constant_velocity_has_gradient_minus_one():
    v = torch.zeros(1, requires_grad=True)
    for start, slope in ((0, -1.0), (3, -0.25)):  # from step 3 of 4 on, only the last quarter
        table = s.flow_table(4, "ode")
        path = s.rollout(lambda x, t: v.expand_as(x), table, torch.ones(1, 1), grad_from=start)
        (gradient,) = torch.autograd.grad(path.final.sum(), v)
        assert float(gradient) == pytest.approx(slope, abs=1e-6)
        assert not path.latents.requires_grad and not path.log_probs.requires_grad
    assert not s.rollout(lambda x, t: v.expand_as(x), table, torch.ones(1, 1)).final.requires_grad


# ------------------------------------------------------------------ DDIM


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("alpha_one", [True, False])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_equals_diffusers_and_is_never_nan(offset, alpha_one, prediction, eta):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=alpha_one, steps_offset=offset, prediction_type=prediction,
    )  # fmt: skip
    table = s.ddim_table_from_scheduler(scheduler, 10, eta)
    x, out, z = noise(3), noise(3, 1), noise(3, 2)
    assert torch.equal(table.t, scheduler.timesteps)
    for i, t in enumerate(scheduler.timesteps):
        mean = s.step(table, i, x, out, generator=generator()).mean
        silent = torch.zeros_like(z)
        theirs = scheduler.step(out, t, x, eta=eta, variance_noise=silent if eta else None)
        assert torch.allclose(mean, theirs.prev_sample, atol=2e-5, rtol=1e-5)
        noised = scheduler.step(out, t, x, eta=eta, variance_noise=z if eta else None).prev_sample
        assert torch.allclose(mean + float(table.std[i]) * z, noised, atol=2e-5, rtol=1e-5)
        clean = s.denoised(table, i, x, out)
        assert torch.allclose(clean, theirs.pred_original_sample, atol=2e-5, rtol=1e-4)
    path = s.rollout(Network(), table, noise(3), generator())
    assert torch.isfinite(path.log_probs).all()
    last_is_noisy = eta > 0 and offset == 1 and not alpha_one
    assert bool(path.stochastic[-1]) == last_is_noisy
    assert bool((path.log_probs[-1] == 0).all()) == (not last_is_noisy)
    if last_is_noisy:
        assert float(table.std[-1]) == pytest.approx(0.0206, abs=1e-3)


def test_ddim_steps_compose_to_the_schedule():
    # with the exact noise of a point x0 the deterministic sampler returns x0
    table = s.ddim_table(ABAR, torch.arange(950, 0, -50), eta=0.0, final_alpha_cumprod=1.0)
    x0 = noise(2, 7)
    by_time = dict(zip(table.t.tolist(), ABAR[table.t].float().tolist(), strict=True))

    def exact(x, t):
        level = by_time[int(t[0])]
        return (x - level**0.5 * x0) / (1 - level) ** 0.5

    assert torch.allclose(s.rollout(exact, table, noise(2)).final, x0, atol=1e-4)


def test_ddim_refuses_what_it_cannot_do():
    from diffusers import DDIMScheduler

    with pytest.raises(ValueError, match="clip_sample"):
        s.ddim_table_from_scheduler(DDIMScheduler(clip_sample=True), 10)
    with pytest.raises(ValueError, match="eta"):
        s.ddim_table(ABAR, [500, 100], eta=2.0)
    with pytest.raises(ValueError, match="falling"):
        s.ddim_table(ABAR, [100, 500])
    with pytest.raises(ValueError, match="prediction"):
        s.ddim_table(ABAR, [500, 100], prediction="noise")


# ------------------------------------------------------------------ published schedulers

PUBLISHED = Path(__file__).parent / "published"
DISCRETE = ("stable-diffusion-v1-5", "stable-diffusion-xl-base-1.0", "lcm-dreamshaper-v7",
            "pixart-alpha-xl-2-1024-ms", "pixart-sigma-xl-2-1024-ms")  # fmt: skip
FLOWS = {"stable-diffusion-3.5-medium": None, "stable-diffusion-3.5-large": None,
         "flux.1-schnell": None, "flux.1-dev": 1.15}  # fmt: skip


def published(name, **changes):
    import diffusers

    config = json.loads((PUBLISHED / name / "scheduler_config.json").read_text())
    return getattr(diffusers, config["_class_name"]).from_config(config | changes)


def chain(scheduler, network, x, n):
    """The scheduler's own sampler on states of variance 1, as its pipeline runs it."""
    scheduler.set_timesteps(n)
    states, scaled = [], x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(scaled, t)
        states.append(seen)
        scaled = scheduler.step(network(seen, t.expand(len(x))), t, scaled).prev_sample
    return torch.stack([*states, scaled])


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("n", [10, 20])
def test_a_table_has_the_levels_and_times_of_any_published_scheduler(name, n):
    scheduler = published(name)
    table = s.ddim_table_from_scheduler(scheduler, n)
    scheduler.set_timesteps(n)
    assert table.t.tolist() == sorted({int(t) for t in scheduler.timesteps}, reverse=True)
    abar = scheduler.alphas_cumprod.double()[table.t]
    assert torch.allclose(table.sigma[:-1].double(), (1 - abar).sqrt(), atol=1e-7)
    if hasattr(scheduler, "sigmas"):  # in their unit the state is x0 + sigma noise
        theirs = scheduler.sigmas[:-1].double()
        ratio = theirs / (1 + theirs**2).sqrt()
        assert torch.allclose(table.sigma[:-1].double(), ratio, atol=1e-7)
    path = s.rollout(Network(), table, noise(2), generator())
    assert torch.isfinite(path.log_probs).all() and path.stochastic[:-1].all()


@pytest.mark.parametrize("name", ["stable-diffusion-v1-5", "stable-diffusion-xl-base-1.0"])
def test_without_noise_the_steps_are_those_of_ddim_on_the_published_config(name):
    from diffusers import DDIMScheduler

    scheduler = published(name)
    ddim = DDIMScheduler.from_config(scheduler.config)
    table = s.ddim_table_from_scheduler(scheduler, 10, eta=0.0)
    with torch.no_grad():
        theirs = chain(ddim, Network(), noise(2), 10)
    path = s.rollout(Network(), table, noise(2))
    assert torch.equal(table.t, ddim.timesteps)
    assert torch.allclose(path.latents, theirs, atol=5e-5)


@pytest.mark.parametrize("name, changes", [
    ("stable-diffusion-xl-base-1.0", {"set_alpha_to_one": True}),
    ("stable-diffusion-xl-base-1.0", {"timestep_spacing": "trailing", "set_alpha_to_one": True}),
    ("pixart-alpha-xl-2-1024-ms", {"solver_order": 1}),
    ("pixart-sigma-xl-2-1024-ms", {"solver_order": 1, "final_sigmas_type": "sigma_min"}),
    ("pixart-alpha-xl-2-1024-ms", {"solver_order": 1, "prediction_type": "v_prediction"}),
])  # fmt: skip
def test_without_noise_the_steps_are_those_of_a_first_order_solver_of_that_class(name, changes):
    scheduler = published(name, **changes)
    table = s.ddim_table_from_scheduler(scheduler, 10, eta=0.0)
    with torch.no_grad():
        theirs = chain(scheduler, Network(), noise(2), 10)
    path = s.rollout(Network(), table, theirs[0])
    assert torch.allclose(path.latents, theirs, atol=1e-4)


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_table_steps_like_the_published_scheduler(name):
    scheduler, mu = published(name), FLOWS[name]
    for own in (None, torch.linspace(1, 1 / 8, 8).tolist()):
        level = s.sigmas_from_scheduler(scheduler, 8, mu, own)
        if own and mu:  # FLUX.1-dev as its pipeline runs it; Black Forest Labs' formula
            expected = [math.exp(mu) / (math.exp(mu) + 1 / t - 1) for t in own]
            assert level.tolist() == pytest.approx([*expected, 0.0], abs=1e-6)
        table = s.flow_table(sigmas=level, kind="ode")
        assert torch.allclose(table.t, scheduler.timesteps, atol=1e-3)
        path = s.rollout(Network(), table, noise(2))
        x = noise(2)
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(Network()(x, t.expand(2)), t, x).prev_sample
        assert torch.allclose(path.final, x, atol=1e-5)


def test_what_no_table_can_honor_is_refused_in_one_sentence():
    sd, xl, dpm, flow = (published(n) for n in (*DISCRETE[:2], DISCRETE[3], "flux.1-dev"))
    still = published("flux.1-schnell")
    for call, word in (
        (lambda: s.ddim_table_from_scheduler(published(DISCRETE[0], skip_prk_steps=False), 10), "skip_prk_steps of PNDMScheduler must be True"),
        (lambda: s.ddim_table_from_scheduler(published(DISCRETE[1], use_karras_sigmas=True), 10), "use_karras_sigmas"),
        (lambda: s.ddim_table_from_scheduler(published(DISCRETE[3], use_lu_lambdas=True), 10), "use_lu_lambdas"),
        (lambda: s.ddim_table_from_scheduler(published(DISCRETE[3], thresholding=True), 10), "thresholding"),
        (lambda: s.ddim_table_from_scheduler(published(DISCRETE[1], timestep_type="continuous"), 10), "whole times"),
        (lambda: s.ddim_table_from_scheduler(flow, 10), "no noise levels"),
        (lambda: s.ddim_table_from_scheduler(published(DISCRETE[1], timestep_spacing="linspace"), 1500), "1000 times of 1500"),
        (lambda: s.sigmas_from_scheduler(sd, 10), "FlowMatch"),
        (lambda: s.sigmas_from_scheduler(flow, 10), "pass mu"),
        (lambda: s.sigmas_from_scheduler(still, 10, mu=1.0), "no mu"),
        (lambda: s.sigmas_from_scheduler(published("flux.1-schnell", stochastic_sampling=True), 4), "stochastic"),
        (lambda: s.sigmas_from_scheduler(published("flux.1-schnell", num_train_timesteps=500), 4), "1000 times"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            call()
    for scheduler in (sd, xl, dpm, published(DISCRETE[2])):
        with pytest.raises(ValueError, match="at least one step"):
            s.ddim_table_from_scheduler(scheduler, 0)
        with pytest.raises(ValueError, match="at least one step"):
            s.consistency_table_from_scheduler(scheduler, 0)
    for scheduler, mu in ((flow, 1.0), (still, None)):
        with pytest.raises(ValueError, match="at least one step"):
            s.sigmas_from_scheduler(scheduler, 0, mu)


@pytest.mark.parametrize("size", [1e-45, 1e-30, 1e-20, 1e-12, 1e-8, 1e-5, 1e-3])
def test_log_probs_are_finite_however_small_the_noise_and_0_where_float32_loses_it(size):
    for table in (
        s.ddim_table(ABAR, torch.arange(901, 0, -100), eta=size),
        *(s.flow_table(6, kind, noise=size) for kind in ("flow", "dance", "cps")),
    ):
        path = s.rollout(Network(), table, noise(2), generator())
        again, _ = s.replay(Network(), path, range(len(table)))
        assert torch.isfinite(path.log_probs).all() and torch.equal(again, path.log_probs)
        assert torch.equal(table.stochastic, table.precision > 0)
        assert (path.log_probs[~table.stochastic] == 0).all()
        if size < 1e-6:
            assert not table.stochastic.any()


# ------------------------------------------------------------------ consistency


def test_consistency_equals_diffusers_lcm_scheduler():
    from diffusers import LCMScheduler

    scheduler = LCMScheduler(clip_sample=False, original_inference_steps=50)
    for n in (1, 2, 4):
        table = s.consistency_table_from_scheduler(scheduler, n)
        scheduler.set_timesteps(n)
        network, x = Network(), noise(2)
        path = s.rollout(network, table, x, generator(5))
        draws = generator(5)
        with torch.no_grad():
            for t in scheduler.timesteps:
                out = network(x, t.expand(2))
                x = scheduler.step(out, t, x, generator=draws, return_dict=False)[0]
        assert torch.allclose(path.final, x, atol=3e-5)
        assert path.stochastic.tolist() == [True] * (n - 1) + [False]


def test_the_published_last_step():
    quiet = s.consistency_table(ABAR, GRID)
    noisy = s.consistency_table(ABAR, GRID, last="noisy")
    for i in range(4):
        after = ABAR[GRID[min(i + 1, 3)]]
        assert float(noisy.std[i]) == pytest.approx(float((1 - after).sqrt()), rel=1e-6)
    assert quiet.std[-1] == 0 and quiet.log_norm[-1] == 0
    one, other = (s.rollout(Network(), t, noise(2), generator()) for t in (quiet, noisy))
    assert torch.allclose(one.final, other.final, atol=1e-6)
    assert (other.latents[-1] - other.final).abs().max() > 0.1
    with pytest.raises(ValueError, match="deterministic step"):
        s.windowed(quiet, range(1))


# ------------------------------------------------------------------ windows, groups, branches


def test_window_is_stochastic_inside_and_the_ode_outside():
    full, ode = s.flow_table(8), s.flow_table(8, "ode")
    table = s.windowed(full, range(2, 5))
    assert table.stochastic.tolist() == [2 <= i < 5 for i in range(8)]
    outside = ~table.stochastic
    for name in ("a", "b", "std", "log_norm", "precision"):
        assert torch.equal(getattr(table, name)[outside], getattr(ode, name)[outside])
        assert torch.equal(getattr(table, name)[2:5], getattr(full, name)[2:5])
    silent = s.windowed(s.ddim_table(ABAR, [900, 500, 100]), [])
    still = s.ddim_table(ABAR, [900, 500, 100], eta=0.0)
    assert torch.equal(silent.a, still.a) and torch.equal(silent.b, still.b)
    path = s.rollout(Network(), full, noise(3), generator(), window=range(2, 5))
    before = s.rollout(Network(), ode, noise(3))
    assert torch.equal(path.latents[:3], before.latents[:3])
    with pytest.raises(ValueError, match="not inside"):
        s.windowed(full, [8])


def test_second_order_outside_the_window_only():
    calls = []

    def counting(x, t):
        calls.append(float(t[0]))
        return Network()(x, t)

    window = range(2, 4)
    path = s.rollout(counting, s.flow_table(6), noise(2), generator(), window, solver="midpoint")
    assert len(calls) == 4 * 2 + 2
    log_probs, _ = s.replay(Network(), path, [2, 3])
    assert torch.equal(log_probs.detach(), path.log_probs[2:4])
    with pytest.raises(ValueError, match="flow table"):
        s.rollout(
            Network(), s.ddim_table(ABAR, [500, 100]), noise(1), generator(), solver="midpoint"
        )


def test_a_random_window_may_begin_anywhere():
    drawn = {s.random_window(0, 5, 2, generator(i)).start for i in range(60)}
    assert drawn == {0, 1, 2, 3}


def test_initial_noise_shared_or_independent():
    groups = torch.tensor([7, 3, 7, 3, 5])
    shared = s.initial_noise(5, SHAPE, generator(), groups)
    assert torch.equal(shared[0], shared[2]) and torch.equal(shared[1], shared[3])
    assert not torch.equal(shared[0], shared[1]) and not torch.equal(shared[4], shared[0])
    free = noise(5)
    assert len({float(n.sum()) for n in free}) == 5
    assert torch.equal(free, noise(5)) and free.std() == pytest.approx(1, abs=0.1)
    with pytest.raises(ValueError, match="groups"):
        s.initial_noise(4, SHAPE, generator(), groups)


# ------------------------------------------------------------------ numbers that peers got wrong


def test_kl_with_dt_is_the_gaussian_kl():
    table, x = s.flow_table(10, shift=3.0), noise(2)
    v, other = noise(2, 1), noise(2, 2)
    for i in range(10):
        p = s.step(table, i, x, v, x).mean.double()
        q = s.step(table, i, x, other, x).mean.double()
        std = float(table.std[i])
        rate = std / math.sqrt(float(table.dt[i]))  # s_t
        exact = kl_divergence(Normal(p, std), Normal(q, std)).sum((1, 2, 3))
        ours = (p - q).square().sum((1, 2, 3)) / (2 * rate**2 * float(table.dt[i]))
        assert torch.allclose(ours, exact, rtol=1e-6)


def test_mean_reduced_ratio_has_mean_below_one():
    # E exp(mean_j log r_j) = exp(-KL/D + KL/D^2), though the true ratio has mean 1
    table, d, kl = s.flow_table(10), 256, 2.0
    x = torch.randn(16_000, d, generator=generator())
    std, b = float(table.std[4]), float(table.b[4])
    v = torch.zeros(d)
    shifted = v + math.sqrt(2 * kl / d) * std / b
    taken = s.step(table, 4, x, v.expand_as(x), generator=generator(1))
    new = s.step(table, 4, x, shifted.expand_as(x), taken.sample)
    ratio = (new.log_prob - taken.log_prob).double().exp()
    theory = math.exp(-kl / d + kl / d**2)
    error = float(ratio.std()) / math.sqrt(len(ratio))
    assert float(ratio.mean()) == pytest.approx(theory, abs=5 * error)
    assert theory == pytest.approx(0.99225, abs=1e-5) and error < 1e-4
    true = ((new.log_prob - taken.log_prob).double() * d).exp()
    assert float(true.mean()) == pytest.approx(1, abs=0.25)


def noise_floor(denoise, trajectory, dtype, what):
    """Mean |change of log-prob| [N] when the prediction or the stored latents are rounded to dtype.

    what "prediction" or "latents". A clip range below this floor cuts rounding errors, not policy
    changes: keep latents in float32.
    """
    path, gaps = trajectory.latents, []
    stored = path.to(dtype).float() if what == "latents" else path
    with torch.no_grad():
        for i in range(len(trajectory.table)):
            t = trajectory.table.t[i].to(path.device).expand(path.shape[1])
            prediction = denoise(path[i], t)
            if what == "prediction":
                prediction = prediction.to(dtype)
            rounded = s.step(trajectory.table, i, stored[i], prediction, stored[i + 1])
            exact = s.step(trajectory.table, i, path[i], denoise(path[i], t), path[i + 1])
            gaps.append((rounded.log_prob - exact.log_prob).abs().mean())
    return torch.stack(gaps)


def test_bfloat16_noise_floor():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    table = s.flow_table(sigmas=s.sigmas_from_scheduler(scheduler, 10), noise=0.7)
    path = s.rollout(Network(), table, noise(32), generator())
    velocity = noise_floor(Network(), path, torch.bfloat16, "prediction")[[0, 4, 8, 9]]
    stored = noise_floor(Network(), path, torch.bfloat16, "latents")[[0, 4, 8, 9]]
    published = ((3e-6, 2e-5, 1e-4, 1e-4), (1.2e-4, 1.8e-4, 3.3e-4, 3.4e-2))
    for measured, known in zip((velocity, stored), published, strict=True):
        ratio = measured / torch.tensor(known)
        assert (ratio > 1 / 8).all() and (ratio < 8).all(), ratio
    assert stored[-1] > 1e-3 > 1e-4  # above every published clip range
    exact = noise_floor(Network(), path, torch.float32, "latents")
    assert (exact == 0).all()


def test_forward_process_and_its_targets():
    x0, x1 = noise(3), noise(3, 1)
    sigma = torch.tensor([0.0, 0.4, 1.0])
    x, v = s.noised_flow(x0, x1, sigma)
    assert torch.equal(x[0], x0[0]) and torch.equal(x[2], x1[2]) and torch.equal(v, x1 - x0)
    assert torch.allclose(x - sigma.view(-1, 1, 1, 1) * v, x0, atol=1e-6)
    steps = torch.tensor([900, 500, 100])
    for prediction in ("epsilon", "v", "sample"):
        table = s.ddim_table(ABAR, steps, prediction=prediction)
        for i in range(3):
            level = ABAR[steps[i]].expand(3)
            x, target = s.noised_diffusion(x0, x1, level, prediction)
            assert torch.allclose(s.denoised(table, i, x, target), x0, atol=2e-5)


def test_bad_input_is_named():
    wrong = (
        {"kind": "sde"},
        {"noise": -1.0},
        {"kind": "cps", "noise": 1.5},
        {"sigmas": [1.0, 0.5]},
        {"shift": 0.0},
        *({name: x} for name in ("noise", "shift") for x in (math.nan, math.inf)),
    )
    for arguments in wrong:
        with pytest.raises(ValueError, match="must be|not both|not finite"):
            s.flow_table(10, **arguments)
    for sigmas in ([0.5, 1.0], [2.0, 0.0], [1.0]):
        with pytest.raises(ValueError, match="fall strictly"):
            s.flow_table(sigmas=sigmas)
    with pytest.raises(ValueError, match="generator"):
        s.step(s.flow_table(4), 0, noise(1), noise(1))
    with pytest.raises(ValueError, match="reduction"):
        s.step(s.flow_table(4), 0, noise(1), noise(1), noise(1), reduction="total")
    with pytest.raises(FloatingPointError, match="step 0, sample 1"):
        s.rollout(
            lambda x, t: x * torch.tensor([1.0, math.inf]).view(-1, 1, 1, 1),
            s.flow_table(4),
            noise(2),
            generator(),
        )
    with pytest.raises(ValueError, match="steps"):
        s.replay(Network(), s.rollout(Network(), s.flow_table(4), noise(1), generator()), [4])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_table_has_entries_that_are_not_finite(bad):
    holed = ABAR.clone()
    holed[500] = bad
    for call in (
        lambda: s.ddim_table(ABAR, [500, 100], final_alpha_cumprod=bad),
        lambda: s.ddim_table(holed, [500, 100]),
        lambda: s.ddim_table(holed, [500, 100], prediction="v"),
        lambda: s.ddim_table(torch.ones(1000), [500, 100]),
        lambda: s.consistency_table(holed, [500, 100]),
        lambda: s.consistency_table(ABAR, [500, 100], sigma_data=bad),
        lambda: s.consistency_table(ABAR, [500, 100], timestep_scaling=bad),
        lambda: s.flow_table(4, "dance", noise=1e200),
        lambda: s.flow_table(4, noise=math.inf),
    ):
        with pytest.raises(ValueError, match="table has entries that are not finite"):
            call()


def test_a_scheduler_that_names_no_prediction_predicts_the_noise():
    from diffusers import RePaintScheduler

    levels = dict(beta_schedule="linear", clip_sample=False)
    table = s.ddim_table_from_scheduler(RePaintScheduler(**levels), 10)
    other = s.ddim_table(RePaintScheduler(**levels).alphas_cumprod, table.t, 1.0, "epsilon", 1.0)
    assert torch.equal(table.a, other.a) and torch.equal(table.b, other.b) and len(table) == 10


@pytest.mark.parametrize("kind", ["ode", "flow", "dance", "cps"])
def test_denoised_of_a_flow_undoes_the_exact_velocity(kind):
    table, x0, x1 = s.flow_table(6, kind, noise=0.5), noise(3), noise(3, seed=1)
    for i, level in enumerate(table.sigma[:-1].tolist()):
        x = (1 - level) * x0 + level * x1
        assert torch.allclose(s.denoised(table, i, x, x1 - x0), x0, atol=1e-5)


def test_scored_steps_of_a_rollout_have_the_gradient_of_their_replay():
    network, table, weights = (
        Network(),
        s.flow_table(6, "flow"),
        torch.randn(3, 5, generator=generator(2)),
    )
    path = s.rollout(network, table, noise(5), generator(1), score_steps=[1, 2, 4])
    assert not path.latents.requires_grad and not path.log_probs[[0, 3, 5]].detach().isnan().any()
    again, _ = s.replay(network, path, [1, 2, 4])
    assert torch.equal(path.log_probs[[1, 2, 4]].detach(), again.detach())
    kept, replayed = (
        torch.autograd.grad((weights * logs).sum(), list(network.parameters()))
        for logs in (path.log_probs[[1, 2, 4]], again)
    )
    for a, b in zip(kept, replayed, strict=True):  # states are cut: no gradient from step to step
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
