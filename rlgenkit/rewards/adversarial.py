"""Rewards learned by telling an expert from a policy: losses, gradient penalties, slopes.

A discriminator is any callable f(points [..., D]) -> logits [...], expert = 1, policy = 0; leading
axes may hold many discriminators at once. Gradients are those of the logit with respect to the
concatenated state and action (Blonde et al. 2022, arXiv 2006.16785, and its published code).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Logit = Callable[[Tensor], Tensor]
PLACES = ("wgan", "dragan", "nagard")


def input_gradient(f: Logit, points: Tensor, create_graph: bool = False) -> Tensor:
    """Gradient [..., D] of f at points [..., D]; with create_graph a loss of it can be minimized."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        return torch.autograd.grad(f(points).sum(), points, create_graph=create_graph)[0]


def local_slope(f: Logit, points: Tensor, create_graph: bool = False) -> Tensor:
    """Local Lipschitz constant: Euclidean norm [...] of the gradient of f at points [..., D].

    A tiny constant under the root keeps second derivatives finite where the gradient vanishes.
    """
    return (input_gradient(f, points, create_graph).square().sum(-1) + 1e-12).sqrt()


def gradient_penalty(
    f: Logit, points: Tensor, target: float = 1.0, one_sided: bool | Tensor = False
) -> Tensor:
    """(slope - target)^2 [...] at points [..., D]; one-sided: only slopes above target cost.

    one_sided may be a Bool tensor that broadcasts to [...]. Two-sided: Gulrajani et al. 2017, eq. 3.
    """
    excess = local_slope(f, points, create_graph=True) - target
    return torch.where(torch.as_tensor(one_sided), excess.clamp(min=0), excess) ** 2


def penalty_points(
    expert: Tensor, policy: Tensor, place: str, generator: torch.Generator, noise: float = 1.0
) -> Tensor:
    """Points [..., B, D] where the penalty acts, from pairs expert and policy [..., B, D].

    wgan: between them, with a fraction of its own for every coordinate; dragan: around the
    expert's, nagard: around the policy's, with Gaussian noise of the given standard deviation.
    """
    if place not in PLACES:
        raise ValueError(f"place must be one of {', '.join(PLACES)}, not {place!r}")
    if expert.shape != policy.shape:
        raise ValueError(
            f"expert {list(expert.shape)} and policy {list(policy.shape)} points must "
            "have the same shape"
        )
    if place == "wgan":
        return policy + torch.rand(expert.shape, generator=generator) * (expert - policy)
    middle = expert if place == "dragan" else policy
    return middle + noise * torch.randn(middle.shape, generator=generator)


def discriminator_loss(
    expert: Tensor, policy: Tensor, labels: Tensor | float = 1.0, entropy: float = 1e-3
) -> Tensor:
    """Cross-entropy [...] of expert logits [..., B] as `labels`, policy logits [..., C] as 0,
    minus `entropy` times the mean entropy of the predictions. Labels other than 1 smooth.
    """
    fit = (F.softplus(expert) - labels * expert).mean(-1) + F.softplus(policy).mean(-1)
    both = torch.cat([expert, policy], -1)
    return fit - entropy * (F.softplus(both) - both * both.sigmoid()).mean(-1)


def adversarial_reward(logits: Tensor, signed: bool = False) -> Tensor:
    """Reward of logits [...]: -log(1 - sigmoid(logit)) >= 0, or the logit itself if signed."""
    return logits if signed else F.softplus(logits)


def spectral_normalized(weight: Tensor, guess: Tensor) -> tuple[Tensor, Tensor]:
    """(weight / its largest singular value, next guess) by one power iteration.

    weight [..., I, O]; guess [..., 1, O] approximates the right singular vector. The gradient passes
    through the division, not through the vectors (Miyato et al. 2018, sec. 2.1).
    """
    with torch.no_grad():
        left = F.normalize(guess @ weight.mT, dim=-1)
        guess = F.normalize(left @ weight, dim=-1)
    return weight / (left @ weight @ guess.mT), guess


def pessimism(slopes: Tensor, allowed: float, spread: Tensor | float, floor: float = 0.7) -> Tensor:
    """Factor [...] in [floor, 1] on a reward >= 0 where the dynamics have slopes [...] above `allowed`.

    max(exp(-max(0, slope - allowed)^2 / spread), floor); spread is the running standard deviation
    of the squared excess.
    """
    excess = (slopes - allowed).clamp(min=0) ** 2
    return torch.exp(-excess / (spread + 1e-8)).clamp(min=floor)
