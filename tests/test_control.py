"""The pole on a cart against Lagrange's equations, hand-made steps and known play."""

import math

import pytest
import torch

from rlgenkit.worlds import control


def states(n=200, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=gen, dtype=torch.float64) * torch.tensor([1.0, 2, 0.5, 2])


def test_accelerations_solve_the_equations_of_motion():
    """(M + m) x'' + m l cos q'' = F + m l sin q'^2 and m l cos x'' + 4/3 m l^2 q'' = m g l sin."""
    s, force = states(), torch.randn(200, generator=torch.Generator().manual_seed(1)).double() * 10
    big, m, half = control.CART_MASS, control.POLE_MASS, control.HALF_LENGTH
    cos, sin, spin = s[:, 2].cos(), s[:, 2].sin(), s[:, 3]
    one = torch.ones_like(cos)
    matrix = torch.stack([torch.stack([(big + m) * one, m * half * cos], -1),
                          torch.stack([m * half * cos, 4 / 3 * m * half ** 2 * one], -1)], 1)
    right = torch.stack([force + m * half * sin * spin ** 2, m * control.GRAVITY * half * sin], -1)
    wanted = torch.linalg.solve(matrix, right)
    torch.testing.assert_close(torch.stack(control.cartpole_accelerations(s, force), -1), wanted)


def test_energy_is_kept_without_a_force():
    """A fine leapfrog of the accelerations keeps kinetic and potential energy of cart and pole."""
    big, m, half = control.CART_MASS, control.POLE_MASS, control.HALF_LENGTH

    def energy(s):
        _, v, angle, spin = s.unbind(-1)
        moving = 0.5 * (big + m) * v ** 2 + m * half * angle.cos() * v * spin
        return moving + 2 / 3 * m * half ** 2 * spin ** 2 + m * control.GRAVITY * half * angle.cos()

    s, step = torch.tensor([[0.0, 0.3, 0.2, 0.1]]).double(), 1e-4
    before = energy(s)
    for _ in range(5000):
        cart, pole = control.cartpole_accelerations(s, torch.zeros(1).double())
        half_way = s + 0.5 * step * torch.stack([s[:, 1], cart, s[:, 3], pole], -1)
        cart, pole = control.cartpole_accelerations(half_way, torch.zeros(1).double())
        s = s + step * torch.stack([half_way[:, 1], cart, half_way[:, 3], pole], -1)
    assert s[0, 2].abs() > 0.5  # it did fall
    torch.testing.assert_close(energy(s), before, rtol=1e-6, atol=1e-9)


def test_one_step_by_hand():
    """From rest, upright: 10 N on 1.1 kg with the pole's share, worked out on paper."""
    after, fallen = control.cartpole_step(torch.zeros(2, 4).double(), torch.tensor([0, 1]))
    push = 10 / 1.1
    pole = -push / (0.5 * (4 / 3 - 0.1 / 1.1))
    cart = push - 0.05 * pole / 1.1
    wanted = 0.02 * torch.tensor([[0, -cart, 0, -pole], [0, cart, 0, pole]]).double()
    torch.testing.assert_close(after, wanted)
    assert after[1, 1] == pytest.approx(0.1951219, abs=1e-6) and not fallen.any()


def test_positions_move_with_the_old_velocities():
    s = states(seed=2)
    after, _ = control.cartpole_step(s, torch.zeros(200))
    torch.testing.assert_close(after[:, [0, 2]], s[:, [0, 2]] + 0.02 * s[:, [1, 3]])


@pytest.mark.parametrize("column, limit", [(0, 2.4), (2, 12 * math.pi / 180)])
def test_the_limits(column, limit):
    s = torch.zeros(4, 4).double()
    s[:, column] = torch.tensor([limit - 1e-6, limit + 1e-6, -limit + 1e-6, -limit - 1e-6])
    _, fallen = control.cartpole_step(s, torch.ones(4))
    assert fallen.tolist() == [False, True, False, True]


def test_mirror_symmetry_and_any_leading_shape():
    s = states(seed=3).view(10, 20, 4)
    a = torch.randint(2, (10, 20), generator=torch.Generator().manual_seed(4))
    after, fallen = control.cartpole_step(s, a)
    mirrored, same = control.cartpole_step(-s, 1 - a)
    torch.testing.assert_close(after, -mirrored)
    assert torch.equal(fallen, same)


def survival(act, seed=0, limit=500):
    """Mean number of steps until the pole falls, at most `limit`, of 200 episodes."""
    gen = torch.Generator().manual_seed(seed)
    s, up, steps = control.cartpole_starts(200, gen), torch.ones(200, dtype=torch.bool), 0.0
    for _ in range(limit):
        steps += up.float().mean().item()
        s, fallen = control.cartpole_step(s, act(s, gen))
        up &= ~fallen
    return steps


def test_known_play():
    """A random player lasts about 22 steps (the known number), a constant push about 9, and a
    linear controller never falls."""
    random = survival(lambda s, g: torch.randint(2, (len(s),), generator=g))
    assert random == pytest.approx(22, abs=2.5)
    assert survival(lambda s, g: torch.ones(len(s))) == pytest.approx(9.4, abs=0.5)
    gain = torch.tensor([0.1, 0.3, 4.0, 1.0])
    assert survival(lambda s, g: (s @ gain > 0).long()) == pytest.approx(500)


def test_starts():
    first = control.cartpole_starts(1000, torch.Generator().manual_seed(0))
    assert first.abs().max() <= 0.05 and first.std(0).sub(0.1 / 12 ** 0.5).abs().max() < 2e-3
    assert torch.equal(first, control.cartpole_starts(1000, torch.Generator().manual_seed(0)))


def test_episodes_are_steps_in_a_row_and_freeze_after_a_fall():
    gen = torch.Generator().manual_seed(5)
    first = torch.stack([control.cartpole_starts(6, gen) for _ in range(2)])  # [M, N, 4]
    noise = torch.rand(40, 2, 6, generator=gen)
    right = lambda s: torch.sigmoid(3 * s[..., 2])
    states, actions, up = control.cartpole_episodes(right, first, noise)
    assert states.shape == (2, 41, 6, 4) and actions.shape == (2, 40, 6) and up.shape == (2, 41, 6)
    assert up[:, 0].all() and not up[:, -1].all() and torch.equal(states[:, 0], first)
    assert torch.equal(actions, (noise.transpose(0, 1) < right(states[:, :-1])).long())
    after, fallen = control.cartpole_step(states[:, :-1], actions)
    assert torch.equal(states[:, 1:][up[:, :-1]], after[up[:, :-1]])
    assert torch.equal(states[:, 1:][~up[:, :-1]], states[:, :-1][~up[:, :-1]])
    assert torch.equal(up[:, 1:], up[:, :-1] & ~fallen)


def test_who_fell_stays_down_even_where_the_next_step_would_lead_back():
    first = torch.tensor([[2.3999, 0.01, 0.0, 0.0]]).double()
    _, _, up = control.cartpole_episodes(lambda s: torch.zeros(1), first, torch.ones(3, 1) / 2)
    fallen = torch.tensor([[2.4001, -0.185, 0.0, 0.0]]).double()
    assert not control.cartpole_step(fallen, torch.zeros(1))[1].any()  # it would lead back
    assert up[:, 0].tolist() == [True, False, False, False]
