"""Cart and car against equations of motion, published code, hand-made steps and known play."""

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
    matrix = torch.stack(
        [
            torch.stack([(big + m) * one, m * half * cos], -1),
            torch.stack([m * half * cos, 4 / 3 * m * half**2 * one], -1),
        ],
        1,
    )
    right = torch.stack([force + m * half * sin * spin**2, m * control.GRAVITY * half * sin], -1)
    wanted = torch.linalg.solve(matrix, right)
    torch.testing.assert_close(torch.stack(control.cartpole_accelerations(s, force), -1), wanted)


def test_energy_is_kept_without_a_force():
    """A fine leapfrog of the accelerations keeps kinetic and potential energy of cart and pole."""
    big, m, half = control.CART_MASS, control.POLE_MASS, control.HALF_LENGTH

    def energy(s):
        _, v, angle, spin = s.unbind(-1)
        moving = 0.5 * (big + m) * v**2 + m * half * angle.cos() * v * spin
        return moving + 2 / 3 * m * half**2 * spin**2 + m * control.GRAVITY * half * angle.cos()

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
    assert first.abs().max() <= 0.05 and first.std(0).sub(0.1 / 12**0.5).abs().max() < 2e-3
    assert torch.equal(first, control.cartpole_starts(1000, torch.Generator().manual_seed(0)))


def test_episodes_are_steps_in_a_row_and_freeze_after_a_fall():
    gen = torch.Generator().manual_seed(5)
    first = torch.stack([control.cartpole_starts(6, gen) for _ in range(2)])  # [M, N, 4]
    noise = torch.rand(40, 2, 6, generator=gen)
    right = lambda s: torch.sigmoid(3 * s[..., 2])
    states, actions, up = control.episodes(control.cartpole_step, right, first, noise)
    assert states.shape == (2, 41, 6, 4) and actions.shape == (2, 40, 6) and up.shape == (2, 41, 6)
    assert up[:, 0].all() and not up[:, -1].all() and torch.equal(states[:, 0], first)
    assert torch.equal(actions, (noise.transpose(0, 1) < right(states[:, :-1])).long())
    after, fallen = control.cartpole_step(states[:, :-1], actions)
    assert torch.equal(states[:, 1:][up[:, :-1]], after[up[:, :-1]])
    assert torch.equal(states[:, 1:][~up[:, :-1]], states[:, :-1][~up[:, :-1]])
    assert torch.equal(up[:, 1:], up[:, :-1] & ~fallen)


def test_who_fell_stays_down_even_where_the_next_step_would_lead_back():
    first = torch.tensor([[2.3999, 0.01, 0.0, 0.0]]).double()
    _, _, up = control.episodes(
        control.cartpole_step, lambda s: torch.zeros(1), first, torch.ones(3, 1) / 2
    )
    fallen = torch.tensor([[2.4001, -0.185, 0.0, 0.0]]).double()
    assert not control.cartpole_step(fallen, torch.zeros(1))[1].any()  # it would lead back
    assert up[:, 0].tolist() == [True, False, False, False]


def published_car(position, velocity, action):
    """MountainCar-v0's step, in plain numbers, as gymnasium's documentation and code give it."""
    velocity += (action - 1) * 0.001 + math.cos(3 * position) * (-0.0025)
    velocity = min(max(velocity, -0.07), 0.07)
    position = min(max(position + velocity, -1.2), 0.6)
    if position == -1.2 and velocity < 0:
        velocity = 0.0
    return position, velocity, position >= 0.5 and velocity >= 0


def test_the_car_follows_the_published_step():
    gen = torch.Generator().manual_seed(6)
    s = torch.rand(3, 400, 2, generator=gen).double() * torch.tensor([1.7, 0.14]).double()
    s -= torch.tensor([1.2, 0.07]).double()  # positions -1.2..0.5, all velocities
    s[0, :50, 0] = -1.19  # many at the wall
    a = torch.randint(3, (3, 400), generator=gen)
    after, there = control.mountain_step(s, a)
    wanted = [published_car(*x, k) for x, k in zip(s.view(-1, 2).tolist(), a.flatten().tolist())]
    torch.testing.assert_close(after.view(-1, 2), torch.tensor([w[:2] for w in wanted]).double())
    assert there.flatten().tolist() == [w[2] for w in wanted] and 5 < there.sum() < 200
    crash, _ = control.mountain_step(torch.tensor([-1.19, -0.03]), torch.tensor(0))  # in fp32 too
    assert torch.equal(crash, torch.tensor([-1.2, 0.0])) and (after[0, :50, 1] == 0).any()


def test_car_steps_by_hand():
    """At rest where cos 3x = 0 only the engine acts; at x = -pi/3 gravity gives 0.0025."""
    flat, valley = -math.pi / 6, -math.pi / 3
    s = torch.tensor(
        [[flat, 0.0], [flat, 0], [flat, 0], [valley, 0], [-1.2, -0.05], [0.47, 0.05], [0.55, -0.03]]
    )  # the last one rolls back over the flag: not an arrival
    after, there = control.mountain_step(s.double(), torch.tensor([0, 1, 2, 1, 0, 2, 2]))
    wanted = [
        [flat - 0.001, -0.001],
        [flat, 0],
        [flat + 0.001, 0.001],
        [valley + 0.0025, 0.0025],
        [-1.2, 0],
        [0.47 + 0.051 - 0.0025 * math.cos(1.41), 0.051 - 0.0025 * math.cos(1.41)],
        [0.521 - 0.0025 * math.cos(1.65), -0.029 - 0.0025 * math.cos(1.65)],
    ]
    torch.testing.assert_close(after, torch.tensor(wanted).double(), atol=1e-7, rtol=0)
    assert there.tolist() == [False] * 5 + [True, False]


def test_a_coasting_car_keeps_its_energy():
    """v^2 / 2 + 0.0025 sin(3x) / 3: the symplectic step keeps it within a small band."""
    s = torch.tensor([-0.9, 0.0]).double()
    energy = []
    for _ in range(2000):
        s, _ = control.mountain_step(s, torch.tensor(1))
        energy.append(float(s[1] ** 2 / 2 + 0.0025 / 3 * torch.sin(3 * s[0])))
    assert max(energy) - min(energy) < 4e-5 and s[0] > -1.2  # the hill itself is 1.7e-3 high


def test_a_held_action_is_single_steps_and_ends_at_the_goal():
    gen = torch.Generator().manual_seed(7)
    s = control.mountain_starts(300, gen).double()
    s = s + torch.rand(300, 2, generator=gen) * torch.tensor([0.9, 0.05])
    a = torch.randint(3, (300,), generator=gen)
    held, there = control.mountain_step(s, a, repeat=10)
    one, arrived = s, torch.zeros(300, dtype=torch.bool)
    for _ in range(10):
        after, now = control.mountain_step(one, a)
        one, arrived = torch.where(arrived[:, None], one, after), arrived | now
    torch.testing.assert_close(held, one)
    assert torch.equal(there, arrived) and 20 < there.sum() < 280
    again, still = control.mountain_step(held[there], torch.zeros(int(there.sum())), repeat=10)
    assert torch.equal(again, held[there]) and still.all()


def drive(act, repeat, limit, n=2000):
    """(share that arrives within `limit` steps, mean steps of these) of n cars."""
    gen = torch.Generator().manual_seed(8)
    first = control.mountain_starts(n, gen)
    _, _, on = control.episodes(
        lambda s, a: control.mountain_step(s, 2 * a, repeat),
        act,
        first,
        torch.rand(limit // repeat, n, generator=gen),
    )
    arrived = ~on[-1]
    return arrived.float().mean().item(), repeat * on[:, arrived].float().sum(0).mean().item()


def test_known_drives():
    """Full throttle never climbs, pushing along the velocity takes about 119 steps; a random
    driver never arrives within the classic 200 steps, but does if it holds its pushes."""
    assert drive(lambda s: torch.ones(len(s)), 1, 400)[0] == 0
    share, steps = drive(lambda s: (s[:, 1] >= 0).float(), 1, 300)
    assert share == 1 and steps == pytest.approx(119, abs=2)
    half = lambda s: torch.full((len(s),), 0.5)
    assert drive(half, 1, 200)[0] < 0.002
    assert drive(half, 10, 400)[0] == pytest.approx(0.36, abs=0.05)


def test_car_starts():
    first = control.mountain_starts(1000, torch.Generator().manual_seed(0))
    assert (first[:, 1] == 0).all() and first[:, 0].min() >= -0.6 and first[:, 0].max() <= -0.4
    assert first[:, 0].mean() == pytest.approx(-0.5, abs=5e-3)
    assert first[:, 0].std() == pytest.approx(0.2 / 12**0.5, abs=2e-3)
