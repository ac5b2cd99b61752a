"""Gaussian policies: numbers or a network give mean and log-std of an action, once or step by step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rlgenkit.records import Rollout, Rows

from .trainable import Trainable, make_trainable

Move = Callable[[Tensor, Tensor], Tensor]
"""fn(states [B, S], actions [B, ...]) -> next states [B, S]."""


class Constant(nn.Module):
    """The same numbers for every state."""

    def __init__(self, numbers: Tensor) -> None:
        super().__init__()
        self.numbers = nn.Parameter(numbers.detach().clone())

    def forward(self, states: Tensor) -> Tensor:
        """states [B, ...] -> the numbers B times."""
        return self.numbers.expand(len(states), *self.numbers.shape)


@dataclass(frozen=True, eq=False)
class ActionPath:
    """states [B, T, S] and the actions [B, T, ...] taken in them."""

    states: Tensor
    actions: Tensor

    def rows(self, rows: Rows) -> ActionPath:
        """Some samples."""
        return ActionPath(self.states[rows], self.actions[rows])

    def columns(self, steps: Tensor) -> ActionPath:
        """Some steps."""
        return ActionPath(self.states[:, steps], self.actions[:, steps])


@dataclass(frozen=True, eq=False)
class GaussianPolicy:
    """Actions N(mean, exp(log_std)^2) of a network's two numbers; see gaussian_policy."""

    net: nn.Module
    trained: Trainable
    move: Move | None = None
    horizon: int = 1
    chunk: int = 4096

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters."""
        return self.trained.parameters

    def reference(self) -> AbstractContextManager[None]:
        """Inside, the policy is what it was before training."""
        return self.trained.reference()

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Any] | Tensor, generator: torch.Generator, copies: int = 1
    ) -> Rollout:
        """`copies` samples from every start state [n, S], neighbors, each start a group of its own.

        The output is the action [B, ...] or, with a world to move in, the states seen
        [B, horizon + 1, S]. A policy of numbers alone takes any list of n things as starts.
        """
        if isinstance(prompts, Tensor):
            prompts = state = prompts.repeat_interleave(copies, 0)
        else:
            prompts = [prompt for prompt in prompts for _ in range(copies)]
            state = torch.zeros(len(prompts), 0)
        states, actions, log_probs = [state], [], []
        for _ in range(self.horizon):
            mean, log_std = self._moments(states[-1])
            noise = torch.empty_like(mean).normal_(generator=generator)
            actions.append(mean + log_std.exp() * noise)
            log_probs.append(_log_prob(actions[-1], mean, log_std))
            if self.move is not None:
                states.append(self.move(states[-1], actions[-1]))
        path = ActionPath(torch.stack(states[: self.horizon], 1), torch.stack(actions, 1))
        old = torch.stack(log_probs, 1)
        return Rollout(
            prompts=prompts,
            groups=torch.arange(len(state)) // copies,
            output=actions[0] if self.move is None else torch.stack(states, 1),
            log_probs=old,
            mask=torch.ones_like(old, dtype=torch.bool),
            path=path,
        )

    def log_probs(self, rollout: Rollout) -> Tensor:
        """Log-probs [B, T] of the stored actions; bit-equal to the stored ones until it is trained."""
        return self.replay(rollout)[0]

    def divergence(self, rollout: Rollout) -> Tensor:
        """KL of each step's Gaussian from the reference's: [B, T]."""
        return self.replay(rollout, divergence=True)[1]

    def choices_at_once(self, rows: int) -> int:
        """All steps."""
        return self.horizon

    def replay(self, rollout: Rollout, divergence: bool = False) -> tuple[Tensor, Tensor | None]:
        """(log_probs [B, T], divergence [B, T] or None) from one pass."""
        path, log_probs, penalties = rollout.path, [], []
        for state, action in zip(path.states.unbind(1), path.actions.unbind(1)):
            mean, log_std = self._moments(state)
            log_probs.append(_log_prob(action, mean, log_std))
            if divergence:
                with torch.no_grad(), self.reference():
                    before = self._moments(state)
                penalties.append(_kl(mean, log_std, *before))
        return torch.stack(log_probs, 1), torch.stack(penalties, 1) if divergence else None

    def _moments(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log_std), each [B, ...]."""
        found = self.net(states)
        if found.ndim < 2 or found.shape[1] != 2:
            raise ValueError(
                f"the network must return [B, 2, ...] (mean, log_std), got {list(found.shape)}"
            )
        return found.unbind(1)


def _log_prob(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-density [B], summed over what an action consists of."""
    z = (action - mean) / log_std.exp()
    each = -0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi)
    return each.reshape(len(each), -1).sum(1)


def _kl(mean: Tensor, log_std: Tensor, other_mean: Tensor, other_log_std: Tensor) -> Tensor:
    """KL [B] of N(mean, std^2) from another Gaussian, summed over what an action consists of."""
    wide = (2 * (log_std - other_log_std)).exp() + ((mean - other_mean) / other_log_std.exp()) ** 2
    each = other_log_std - log_std + 0.5 * (wide - 1)
    return each.reshape(len(each), -1).sum(1)


def gaussian_policy(
    source: Tensor | nn.Module | GaussianPolicy, move: Move | None = None, horizon: int = 1
) -> GaussianPolicy:
    """A policy over numbers: mean and log-std from `source`, which is copied and trained as a whole.

    source: numbers [2, ...] (mean, log_std), the same in every state, or a network, states [B, S] ->
    [B, 2, ...]. move(states, actions) -> states lets it walk `horizon` steps; without, it acts once.
    """
    if isinstance(source, GaussianPolicy):
        net = copy.deepcopy(source.net)
        return replace(source, net=net, trained=make_trainable(net, 0, 0))
    if horizon < 1 or (move is None and horizon > 1):
        raise ValueError(f"horizon must be at least 1, and needs `move` above 1; got {horizon}")
    net = Constant(source) if isinstance(source, Tensor) else copy.deepcopy(source)
    return GaussianPolicy(net, make_trainable(net, 0, 0), move, horizon)
