"""A pole on a cart and a car in a valley, as batched equations: classic control, no library.

The constants, the Euler step and the limits are those of gymnasium's CartPole-v1 (Barto, Sutton and
Anderson 1983, without friction): states [..., 4] hold cart position (m), cart velocity (m/s), pole
angle (rad, 0 = upright) and angular velocity (rad/s). The car is MountainCar-v0 (Moore 1990):
states [..., 2] hold position and velocity; its engine is too weak to climb without a back swing.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

GRAVITY = 9.8  # m/s^2
CART_MASS, POLE_MASS = 1.0, 0.1  # kg
HALF_LENGTH = 0.5  # m, from the joint to the middle of the pole
FORCE = 10.0  # N, to the left or to the right
TIME_STEP = 0.02  # s
MAX_POSITION, MAX_ANGLE = 2.4, 12 * math.pi / 180  # beyond these the pole counts as fallen
THRUST, SLOPE, MAX_VELOCITY = 0.001, 0.0025, 0.07  # car: engine and gravity per step, speed limit
LEFT, RIGHT, GOAL = -1.2, 0.6, 0.5  # the wall on the left, the end of the road, the flag


def cartpole_starts(n: int, generator: torch.Generator) -> Tensor:
    """n first states [n, 4], each number uniform in -0.05 to 0.05."""
    return torch.rand(n, 4, generator=generator) * 0.1 - 0.05


def cartpole_accelerations(states: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
    """(cart m/s^2, pole rad/s^2) [...] of states [..., 4] under forces [...] in newtons."""
    _, _, angle, spin = states.unbind(-1)
    mass, lever = CART_MASS + POLE_MASS, POLE_MASS * HALF_LENGTH
    push = (force + lever * spin.square() * angle.sin()) / mass
    pole = (GRAVITY * angle.sin() - angle.cos() * push) / (
        HALF_LENGTH * (4 / 3 - POLE_MASS * angle.cos().square() / mass)
    )
    return push - lever * pole * angle.cos() / mass, pole


def cartpole_step(states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """(next states [..., 4], fallen Bool[...]) after actions [...]: 0 pushes left, 1 right.

    Positions move with the old velocities (explicit Euler). A fallen state is not reset.
    """
    cart, pole = cartpole_accelerations(states, FORCE * (2 * actions.to(states.dtype) - 1))
    position, velocity, angle, spin = states.unbind(-1)
    after = states + TIME_STEP * torch.stack([velocity, cart, spin, pole], -1)
    fallen = (after[..., 0].abs() > MAX_POSITION) | (after[..., 2].abs() > MAX_ANGLE)
    return after, fallen


def mountain_starts(n: int, generator: torch.Generator) -> Tensor:
    """n first states [n, 2]: at rest, positions uniform in -0.6 to -0.4, around the bottom."""
    place = torch.rand(n, 1, generator=generator) * 0.2 - 0.6
    return torch.cat([place, torch.zeros_like(place)], -1)


def mountain_step(states: Tensor, actions: Tensor, repeat: int = 1) -> tuple[Tensor, Tensor]:
    """(next states [..., 2], arrived Bool[...]) after actions [...]: 0 back, 1 none, 2 forward.

    v' = v + 0.001 (a - 1) - 0.0025 cos 3x, within +-0.07; x' = x + v', within -1.2 to 0.6, where
    the left wall stops the car. The action is held for `repeat` steps; a car that has arrived
    (x >= 0.5, v >= 0) stays where it is.
    """
    for _ in range(repeat):
        x, v = states.unbind(-1)
        fast = v + THRUST * (actions.to(x.dtype) - 1) - SLOPE * torch.cos(3 * x)
        fast = fast.clamp(-MAX_VELOCITY, MAX_VELOCITY)
        place = (x + fast).clamp(LEFT, RIGHT)
        fast = torch.where(place == LEFT, fast.clamp(min=0), fast)
        there = (x >= GOAL) & (v >= 0)
        states = torch.where(there[..., None], states, torch.stack([place, fast], -1))
    return states, (states[..., 0] >= GOAL) & (states[..., 1] >= 0)


@torch.no_grad()
def episodes(
    step: Callable, chance: Callable[[Tensor], Tensor], states: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(states [..., T+1, N, S], actions Long[..., T, N], running Bool[..., T+1, N]) of N episodes.

    step(states, actions) -> (next states, ended); states [..., N, S]: first states; chance: states
    -> probability [..., N] of action 1, else 0; noise [T, ..., N] uniform in 0..1. After the end
    the state stays, with running False.
    """
    running, seen = torch.ones(states.shape[:-1], dtype=torch.bool), []
    for u in noise:
        actions = (u < chance(states)).long()
        after, ended = step(states, actions)
        seen.append((states, actions, running))
        states, running = torch.where(running[..., None], after, states), running & ~ended
    s, a, r = zip(*seen)
    return torch.stack([*s, states], -3), torch.stack(a, -2), torch.stack([*r, running], -2)
