"""Gaussian policies: numbers or a network give mean and log-std of an action."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rlgenkit.records import Rollout, Rows

from .trainable import Trainable, make_trainable


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
    """states [B, S] and the actions [B, ...] taken in them: one choice each."""

    states: Tensor
    actions: Tensor

    def rows(self, rows: Rows) -> ActionPath:
        """Some samples."""
        return ActionPath(self.states[rows], self.actions[rows])

    def columns(self, steps: Tensor) -> ActionPath:
        """There is one choice."""
        return self


@dataclass(frozen=True, eq=False)
class GaussianPolicy:
    """Actions N(mean, exp(log_std)^2) of a network's two numbers; see gaussian_policy."""

    net: nn.Module
    trained: Trainable
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
        """`copies` actions [B, ...] in every state [n, S], neighbors, each state a group of its own.

        A policy of numbers alone takes any list of n things as states.
        """
        if isinstance(prompts, Tensor):
            prompts = state = prompts.repeat_interleave(copies, 0)
        else:
            prompts = [prompt for prompt in prompts for _ in range(copies)]
            state = torch.zeros(len(prompts), 0)
        mean, log_std = self._moments(state)
        noise = torch.empty_like(mean).normal_(generator=generator)
        action = mean + log_std.exp() * noise
        old = _log_prob(action, mean, log_std)[:, None]
        return Rollout(
            prompts=prompts,
            groups=torch.arange(len(state)) // copies,
            output=action,
            log_probs=old,
            mask=torch.ones_like(old, dtype=torch.bool),
            path=ActionPath(state, action),
        )

    def log_probs(self, rollout: Rollout) -> Tensor:
        """Log-probs [B, 1] of the stored actions; bit-equal to the stored ones until it is trained."""
        return self.replay(rollout)[0]

    def divergence(self, rollout: Rollout) -> Tensor:
        """KL of each Gaussian from the reference's: [B, 1]."""
        return self.replay(rollout, divergence=True)[1]

    def choices_at_once(self, rows: int) -> int:
        """The only one."""
        return 1

    def replay(self, rollout: Rollout, divergence: bool = False) -> tuple[Tensor, Tensor | None]:
        """(log_probs [B, 1], divergence [B, 1] or None) from one pass."""
        path, penalty = rollout.path, None
        mean, log_std = self._moments(path.states)
        if divergence:
            with torch.no_grad(), self.reference():
                before = self._moments(path.states)
            penalty = _kl(mean, log_std, *before)[:, None]
        return _log_prob(path.actions, mean, log_std)[:, None], penalty

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


def gaussian_policy(source: Tensor | nn.Module | GaussianPolicy) -> GaussianPolicy:
    """A policy over numbers: mean and log-std from `source`, which is copied and trained as a whole.

    source: numbers [2, ...] (mean, log_std), the same in every state, or a network, states [B, S] ->
    [B, 2, ...].
    """
    if isinstance(source, GaussianPolicy):
        net = copy.deepcopy(source.net)
        return replace(source, net=net, trained=make_trainable(net, 0, 0))
    net = Constant(source) if isinstance(source, Tensor) else copy.deepcopy(source)
    return GaussianPolicy(net, make_trainable(net, 0, 0))
