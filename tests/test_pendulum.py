"""The control worlds against their equations, a Riccati solver and what their experts must reach."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_are

from rlgenkit.worlds import pendulum as w


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_regulator_against_a_riccati_solver():
    a, b = (m.double() for m in w.point_matrices())
    q, r = torch.diag(torch.tensor([1.0, 1.0, 0.1, 0.1])).double(), 0.1 * torch.eye(2).double()
    p = solve_discrete_are(*(m.numpy() for m in (a, b, q, r)))
    exact = np.linalg.solve(r.numpy() + b.numpy().T @ p @ b.numpy(), b.numpy().T @ p @ a.numpy())
    assert np.allclose(w.lqr_gain(a, b, q, r).numpy(), exact, atol=1e-9)


def test_point_mass_is_linear_inside_and_clamped_outside():
    world, (a, b) = w.point_mass(), w.point_matrices()
    s = 0.8 * torch.randn(64, 4, generator=generator()).clamp(-2, 2)
    u = torch.rand(64, 2, generator=generator(1)) * 2 - 1
    assert torch.allclose(world.step(s, u), s @ a.T + u @ b.T, atol=1e-6)
    edge = world.step(torch.tensor([2.0, 0, 2, 0]), torch.tensor([9.0, 0]))
    assert torch.equal(edge, torch.tensor([2.0, 0, 2, 0]))
    assert world.reward(torch.tensor([3.0, 4, 1, 1]), u[0]) == -5


def test_wall_kicks_sideways_and_only_there():
    free, walled, u = w.point_mass(), w.point_mass(0.5), torch.zeros(2)
    on, off = torch.tensor([w.WALL, 0.0, 0, 0]), torch.tensor([w.WALL - 1, 0.0, 0, 0])
    assert torch.allclose(walled.step(on, u) - free.step(on, u), torch.tensor([0, 0.05, 0, 0.5]))
    assert torch.allclose(walled.step(off, u), free.step(off, u), atol=1e-6)
    steep = torch.tensor([w.WALL + w.WALL_WIDTH / math.sqrt(2), 0.0, 0, 0])
    slope = torch.autograd.functional.jacobian(lambda s: walled.step(s, u), steep)
    assert float(slope[3, 0]) == pytest.approx(
        -0.5 / w.WALL_WIDTH * math.sqrt(2) * math.exp(-0.5), rel=1e-4
    )


def test_point_expert_reaches_the_middle_and_beats_weaker_gains():
    world, starts = w.point_mass(), w.point_mass().reset((500,), generator())
    states, actions, total = w.rollout(world, world.expert, starts)
    assert states.shape == (500, 50, 4) and actions.shape == (500, 50, 2) and total.shape == (500,)
    assert states[:, -1, :2].norm(dim=-1).max() < 0.01
    assert torch.allclose(total, -states[..., :2].norm(dim=-1).sum(-1), atol=1e-4)
    weak = w.rollout(world, lambda s: 0.2 * world.expert(s), starts)[2]
    assert (total >= weak - 1e-3).float().mean() > 0.95


def test_pendulum_follows_the_published_equations():
    world, g = w.pendulum(), generator()
    s, u = world.reset((400,), g), torch.rand(400, 1, generator=g) * 4 - 2
    assert 3.1 < s[:, 0].abs().max() <= math.pi and 0.98 < s[:, 1].abs().max() <= 1
    s *= torch.tensor([1.5, 8.0])  # beyond one turn, and up to the speed limit
    for (angle, speed), action, after, reward in zip(
        s.tolist(), u[:, 0].tolist(), world.step(s, u).tolist(), world.reward(s, u).tolist()
    ):
        torque = 2.0 * min(max(action, -1), 1)
        fast = speed + (3 * 10.0 / 2 * math.sin(angle) + 3.0 * torque) * 0.05
        fast = min(max(fast, -8.0), 8.0)
        assert after == pytest.approx([angle + fast * 0.05, fast], abs=1e-5)
        near = (angle + math.pi) % (2 * math.pi) - math.pi
        assert reward == pytest.approx(-(near**2 + 0.1 * speed**2 + 0.001 * torque**2), abs=1e-4)
    assert (world.step(s, u)[:, 1].abs() == 8).sum() > 5
    assert torch.allclose(
        world.observe(s), torch.stack([s[:, 0].cos(), s[:, 0].sin(), s[:, 1]], -1)
    )


def test_pendulum_without_torque_keeps_its_energy_in_small_steps():
    """The semi-implicit step is symplectic: over a swing the energy stays within its O(dt) band."""
    world, s = w.pendulum(), torch.tensor([2.5, 0.0]).double()
    energy = []
    for _ in range(400):
        s = world.step(s, torch.zeros(1).double())
        energy.append(0.5 * s[1] ** 2 + 15 * torch.cos(s[0]))
    first, last = (torch.stack(e).mean() for e in (energy[:200], energy[200:]))
    assert abs(float(first - last)) < 0.1


def test_swing_up_expert_ends_upright_from_everywhere():
    world = w.pendulum()
    states, actions, total = w.rollout(world, world.expert, world.reset((1000,), generator()))
    assert w.wrapped(states[:, -1, 0]).abs().max() < 0.05 and states[:, -1, 1].abs().max() < 0.05
    assert actions.abs().max() <= 1 and total.mean() > -250


def test_reference_returns_span_the_scale():
    for world in (w.point_mass(), w.point_mass(0.5), w.pendulum()):
        starts = world.reset((300,), generator())
        random, expert = w.reference_returns(world, starts, generator(1))
        assert expert > random + 20
        assert expert == pytest.approx(float(w.rollout(world, world.expert, starts)[2].mean()))


def test_gradients_pass_through_time():
    world, s = w.point_mass(), torch.tensor([0.5, -0.5, 0.0, 0.0], requires_grad=True)
    w.rollout(world, world.expert, s)[2].backward()
    assert s.grad[0] < 0 < s.grad[1]  # farther from the middle costs
