"""A deterministic actor with twin critics (TD3, Fujimoto et al. 2018) as plain functions.

The losses take the networks' outputs, so leading axes may hold many agents that learn side by side;
`stacked_net` and `stacked_forward` are N small networks in one batched product per layer.
B = batch, A = action coordinates.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def stacked_net(
    sizes: Sequence[int], generators: Sequence[torch.Generator], copies: int = 1, head: float = 1.0
) -> list[Tensor]:
    """Weights [N, I, O] and biases [N, 1, O], in turn, of N = copies * len(generators) networks.

    Orthogonal with gain sqrt(2), the last layer with gain `head`, biases 0. Network n draws from
    generator n modulo their number, so that the copies start alike.
    """
    net, last = [], len(sizes) - 2
    for k, (i, o) in enumerate(zip(sizes, sizes[1:])):
        gain = head if k == last else math.sqrt(2)
        weight = torch.stack(
            [torch.nn.init.orthogonal_(torch.empty(o, i), gain, generator=g).T for g in generators]
        )
        net += [weight.repeat(copies, 1, 1), torch.zeros(copies * len(generators), 1, o)]
    return [w.requires_grad_() for w in net]


def stacked_forward(net: Sequence[Tensor], x: Tensor, slope: float = 0.0) -> Tensor:
    """Outputs [N, B, O] of N networks at inputs [N, B, I]; slope of the (leaky) ReLU below zero."""
    for k in range(0, len(net), 2):
        x = torch.baddbmm(net[k + 1], x, net[k])
        if k < len(net) - 2:
            x = F.leaky_relu(x, slope)
    return x


def smoothed_action(
    actions: Tensor, generator: torch.Generator, std: float = 0.2, clip: float = 0.5
) -> Tensor:
    """Target actions [..., A] plus clipped Gaussian noise, kept in [-1, 1] (TD3, eq. 14)."""
    noise = std * torch.randn(actions.shape, generator=generator)
    return (actions + noise.clamp(-clip, clip)).clamp(-1, 1)


def td_target(
    rewards: Tensor, q1: Tensor, q2: Tensor, discount: float = 0.99, pessimism: float = 1.0
) -> Tensor:
    """rewards + discount * (w min(q1, q2) + (1 - w) max(q1, q2)), all [...]; w = pessimism in 0..1.

    w = 1 is TD3's minimum (eq. 10). q1 and q2 are the target critics at the next state.
    """
    if not 0 <= pessimism <= 1:
        raise ValueError(f"pessimism must be in 0..1, not {pessimism}")
    low, high = torch.minimum(q1, q2), torch.maximum(q1, q2)
    return (rewards + discount * (pessimism * low + (1 - pessimism) * high)).detach()


def critic_loss(values: Sequence[Tensor], target: Tensor) -> Tensor:
    """Huber losses [...] of the critics' values (each [..., B]) to the target [..., B], added up."""
    return sum(F.smooth_l1_loss(q, target, reduction="none").mean(-1) for q in values)


def actor_loss(values: Tensor) -> Tensor:
    """-mean Q [...] of the actor's own actions, values [..., B]: the deterministic policy gradient."""
    return -values.mean(-1)


@torch.no_grad()
def follow_slowly(targets: Sequence[Tensor], online: Sequence[Tensor], rate: float) -> None:
    """Move every target in place by `rate` in 0..1 of its distance to the online parameter."""
    for target, value in zip(targets, online, strict=True):
        target.lerp_(value, rate)
