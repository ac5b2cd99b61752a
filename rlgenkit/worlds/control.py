"""A pole on a cart, as batched equations: the classic control task without an environment library.

The constants, the Euler step and the limits are those of gymnasium's CartPole-v1 (Barto, Sutton and
Anderson 1983, without friction). States [..., 4] hold cart position (m), cart velocity (m/s),
pole angle (rad, 0 = upright) and angular velocity (rad/s).
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


def cartpole_starts(n: int, generator: torch.Generator) -> Tensor:
    """n first states [n, 4], each number uniform in -0.05 to 0.05."""
    return torch.rand(n, 4, generator=generator) * 0.1 - 0.05


def cartpole_accelerations(states: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
    """(cart m/s^2, pole rad/s^2) [...] of states [..., 4] under forces [...] in newtons."""
    _, _, angle, spin = states.unbind(-1)
    mass, lever = CART_MASS + POLE_MASS, POLE_MASS * HALF_LENGTH
    push = (force + lever * spin.square() * angle.sin()) / mass
    pole = (GRAVITY * angle.sin() - angle.cos() * push) / (
        HALF_LENGTH * (4 / 3 - POLE_MASS * angle.cos().square() / mass))
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


@torch.no_grad()
def cartpole_episodes(push_right: Callable[[Tensor], Tensor], states: Tensor, noise: Tensor
                      ) -> tuple[Tensor, Tensor, Tensor]:
    """(states [..., T+1, N, 4], actions Long[..., T, N], upright Bool[..., T+1, N]) of N episodes.

    states [..., N, 4]: first states; push_right: states -> probability [..., N] of action 1;
    noise [T, ..., N] uniform in 0..1. After a fall the state stays, with upright False.
    """
    up, seen = torch.ones(states.shape[:-1], dtype=torch.bool), []
    for u in noise:
        actions = (u < push_right(states)).long()
        after, fallen = cartpole_step(states, actions)
        seen.append((states, actions, up))
        states, up = torch.where(up[..., None], after, states), up & ~fallen
    s, a, u = zip(*seen)
    return torch.stack([*s, states], -3), torch.stack(a, -2), torch.stack([*u, up], -2)
