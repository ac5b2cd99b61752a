"""Continuous control in batches: a damped point mass in an arena, and the torque-limited pendulum.

States [..., S] and actions [..., A] in [-1, 1] are tensors, all functions work on any leading axes
and let gradients through. Both worlds come with a good expert and with the true reward. They end
after `horizon` steps and nowhere else, so a learner bootstraps through the end.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ARENA, DT, DRAG, FORCE = 2.0, 0.1, 0.95, 0.3  # point mass: bounds, time step, drag, force gain
WALL, WALL_WIDTH = 0.75, 0.08  # where the ridge of `point_mass(wall)` lies, and its width
GRAVITY, TORQUE, PENDULUM_DT, MAX_SPEED = 10.0, 2.0, 0.05, 8.0  # Gymnasium's Pendulum-v1


@dataclass(frozen=True)
class ControlWorld:
    """A deterministic control task.

    reset(shape, generator) -> states [*shape, S]; observe(states) -> [..., observations];
    step(states, actions) -> next states; reward(states, actions) -> [...]; expert(states) -> actions
    [..., actions] in [-1, 1].
    """

    name: str
    observations: int
    actions: int
    horizon: int
    reset: Callable[[tuple[int, ...], torch.Generator], Tensor]
    observe: Callable[[Tensor], Tensor]
    step: Callable[[Tensor, Tensor], Tensor]
    reward: Callable[[Tensor, Tensor], Tensor]
    expert: Callable[[Tensor], Tensor]


def lqr_gain(a: Tensor, b: Tensor, q: Tensor, r: Tensor, rounds: int = 1000) -> Tensor:
    """Gain K [A, S] of the best linear control u = -K s of s' = a s + b u, cost s q s + u r u.

    Iterates the discrete Riccati equation (Anderson and Moore 1990, ch. 2) from P = q.
    """
    p = q
    for _ in range(rounds):
        gain = torch.linalg.solve(r + b.T @ p @ b, b.T @ p @ a)
        p = q + a.T @ p @ (a - b @ gain)
    return gain


def point_matrices() -> tuple[Tensor, Tensor]:
    """(a [4, 4], b [4, 2]) of the point mass inside its bounds: s' = a s + b u, s = (x, y, vx, vy)."""
    eye, zero = torch.eye(2), torch.zeros(2, 2)
    a = torch.cat([torch.cat([eye, DT * DRAG * eye], 1), torch.cat([zero, DRAG * eye], 1)])
    return a, torch.cat([DT * FORCE * eye, FORCE * eye])


def point_mass(wall: float = 0.0) -> ControlWorld:
    """A point with drag in a square arena; the true reward is minus the distance from the middle.

    v' = clamp(0.95 v + 0.3 u), x' = clamp(x + 0.1 v'), both to [-2, 2]. wall > 0 adds a narrow ridge
    along x = 0.75 that kicks vy by up to `wall` a step: there the dynamics are stiff. The expert is
    the clipped linear-quadratic regulator of the world without a wall.
    """
    a, b = point_matrices()
    gain = lqr_gain(a, b, torch.diag(torch.tensor([1.0, 1.0, 0.1, 0.1])), 0.1 * torch.eye(2))

    def reset(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        place = 2 * torch.rand(*shape, 2, generator=generator) - 1
        return torch.cat([place, torch.zeros_like(place)], -1)

    def step(states: Tensor, actions: Tensor) -> Tensor:
        speed = DRAG * states[..., 2:] + FORCE * actions.clamp(-1, 1)
        if wall:
            ridge = torch.exp(-(((states[..., 0] - WALL) / WALL_WIDTH) ** 2))
            speed = speed + wall * torch.stack([torch.zeros_like(ridge), ridge], -1)
        speed = speed.clamp(-ARENA, ARENA)
        return torch.cat([(states[..., :2] + DT * speed).clamp(-ARENA, ARENA), speed], -1)

    return ControlWorld(
        "point mass",
        4,
        2,
        50,
        reset,
        lambda s: s,
        step,
        lambda s, u: -s[..., :2].norm(dim=-1),
        lambda s: (-s @ gain.to(s.dtype).T).clamp(-1, 1),
    )


def pendulum() -> ControlWorld:
    """Gymnasium's Pendulum-v1: swing up and hold a rod, states (angle, speed), angle 0 is upright.

    speed' = clamp(speed + (15 sin(angle) + 3 u) 0.05, 8), angle' = angle + 0.05 speed', with the torque
    u = 2 action; reward = -(angle^2 + 0.1 speed^2 + 0.001 u^2), the angle wrapped to [-pi, pi). The
    expert pumps energy (Astrom and Furuta 2000) and catches the rod near the top.
    """

    def reset(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        high = torch.tensor([math.pi, 1.0])
        return high * (2 * torch.rand(*shape, 2, generator=generator) - 1)

    def observe(states: Tensor) -> Tensor:
        angle, speed = states.unbind(-1)
        return torch.stack([angle.cos(), angle.sin(), speed], -1)

    def step(states: Tensor, actions: Tensor) -> Tensor:
        angle, speed = states.unbind(-1)
        pull = 1.5 * GRAVITY * angle.sin() + 3 * TORQUE * actions[..., 0].clamp(-1, 1)
        speed = (speed + PENDULUM_DT * pull).clamp(-MAX_SPEED, MAX_SPEED)
        return torch.stack([angle + PENDULUM_DT * speed, speed], -1)

    def reward(states: Tensor, actions: Tensor) -> Tensor:
        torque = TORQUE * actions[..., 0].clamp(-1, 1)
        return -(wrapped(states[..., 0]) ** 2 + 0.1 * states[..., 1] ** 2 + 0.001 * torque**2)

    return ControlWorld("pendulum", 3, 1, 200, reset, observe, step, reward, swing_up)


def swing_up(states: Tensor) -> Tensor:
    """Actions [..., 1] of the energy swing-up expert for pendulum states [..., 2]."""
    angle, speed = wrapped(states[..., 0]), states[..., 1]
    missing = 1.5 * GRAVITY * (1 - angle.cos()) - 0.5 * speed**2  # energy per moment of inertia
    pump = missing * torch.where(speed == 0, torch.ones_like(speed), speed.sign())
    hold = -(10 * angle + 3 * speed) / TORQUE
    near = (angle.abs() < 0.5) & (speed.abs() < 3)
    return torch.where(near, hold, pump).clamp(-1, 1)[..., None]


def wrapped(angle: Tensor) -> Tensor:
    """Angles [...] in [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def rollout(world: ControlWorld, policy: Callable[[Tensor], Tensor], states: Tensor):
    """(states [..., H, S], actions [..., H, A], return [...]) of policy(states) -> actions."""
    seen, done, total = [], [], 0.0
    for _ in range(world.horizon):
        actions = policy(states)
        seen.append(states)
        done.append(actions)
        total = total + world.reward(states, actions)
        states = world.step(states, actions)
    return torch.stack(seen, -2), torch.stack(done, -2), total


def reference_returns(world: ControlWorld, starts: Tensor, generator: torch.Generator) -> tuple:
    """(random, expert) mean returns from starts [N, S]: the ends of the scale 0..1 of a policy."""

    def uniform(states: Tensor) -> Tensor:
        shape = (len(states), world.actions)
        return 2 * torch.rand(shape, generator=generator) - 1

    return tuple(rollout(world, f, starts)[2].mean().item() for f in (uniform, world.expert))
