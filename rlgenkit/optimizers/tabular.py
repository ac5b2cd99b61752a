"""Policies in tables, exactly and by sampling; potential shaping; gradients through an inner loop.

S states, A actions; leading dimensions [...] are independent policies or rewards. Values come
from the world (`worlds.gridworld.policy_values`); the exact functions are differentiable.
"""

import torch
from torch import Tensor

Parts = list[Tensor] | tuple[Tensor, ...]


def discounted_visits(
    transitions: Tensor, policy: Tensor, starts: Tensor, discount: float
) -> Tensor:
    """Expected visits [..., S]: sum over t of discount^t P(S_t = s), by one linear solve.

    transitions [S, A, S]; policy [..., S, A]; starts [S], the distribution of the first state;
    discount in [0, 1). The visits of each policy add up to 1 / (1 - discount).
    """
    if not 0 <= discount < 1:
        raise ValueError(f"discount must be in [0, 1), not {discount}")
    flow = torch.einsum("...sa,sat->...st", policy, transitions)
    back = (torch.eye(flow.shape[-1], dtype=flow.dtype) - discount * flow).mT
    return torch.linalg.solve(back, starts.expand(flow.shape[:-1]))


def softmax_gradient(
    logits: Tensor, action_values: Tensor, visits: Tensor, behavior: Tensor | None = None
) -> Tensor:
    """Expected REINFORCE update [..., S, A] of softmax logits: visits * sum_a b(a) Q(a) psi(a).

    action_values [..., S, A] and visits [..., S] of the acting policy; psi is the gradient of
    log pi. behavior None: the policy acts itself, and the update is the gradient of its discounted
    return when reward and discounts are (policy gradient theorem, Sutton et al. 2000, theorem 1).
    behavior [..., S, A]: another policy acted and no importance ratio corrects for it, so that the
    update is biased; its fixed point is pi proportional to b Q.
    """
    policy = torch.softmax(logits, -1)
    acting = policy if behavior is None else behavior
    push = visits[..., None] * acting * action_values
    return push - policy * push.sum(-1, keepdim=True)


def potential_shaping(
    before: Tensor, after: Tensor, discount: float | Tensor, ended: Tensor | None = None
) -> Tensor:
    """Shaping rewards discount * Phi(s') - Phi(s) of transitions (Ng et al. 1999).

    before, after [...]: potentials at both ends of a transition, or their expectations; ended
    Bool[...]: transitions into a terminal state or the cut of an episode, where Phi(s') counts as
    0. Only then is the shaped return the old one minus Phi(first state).
    """
    if ended is not None:
        after = after.masked_fill(ended, 0.0)
    return discount * after - before


def sample_walks(
    transitions: Tensor, policy: Tensor, first: int, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """(states Long[T + 1, M, N], actions Long[T, M, N]) of N walks of T moves from state `first`.

    policy [M, S, A]; noise [T, N, 2], uniform in 0..1, for actions and moves: policies share it.
    """
    who = torch.arange(len(policy))[:, None]
    states, actions = [torch.full((len(policy), noise.shape[1]), first)], []
    chance, move = policy.cumsum(-1)[..., :-1], transitions.cumsum(-1)[..., :-1]
    for choose, land in zip(*noise.unbind(-1)):
        actions.append((choose[:, None] > chance[who, states[-1]]).sum(-1))
        states.append((land[:, None] > move[states[-1], actions[-1]]).sum(-1))
    return torch.stack(states), torch.stack(actions)


def reinforce_gradients(
    policy: Tensor, states: Tensor, actions: Tensor, rewards: Tensor, discount: float
) -> Tensor:
    """The REINFORCE estimate of each walk [M, N, S, A]: sum_t discount^t psi_t (return from t on).

    policy [M, S, A] softmax of the logits; states Long[T, M, N] or longer, actions and rewards
    [T, M, N], rewards 0 after the end. No baseline.
    """
    steps, m, n = actions.shape
    gap = torch.arange(steps)[None] - torch.arange(steps)[:, None]
    power = discount ** gap.clamp(min=0).double() * (gap >= 0)  # [T, T]
    weights = power[0, :, None] * (power @ rewards.flatten(1))
    weights = weights.view(rewards.shape)
    who, walk = torch.arange(m)[:, None].expand_as(actions), torch.arange(n).expand_as(actions)
    where = (who, walk, states[:steps])
    found = torch.zeros(m, n, *policy.shape[1:], dtype=policy.dtype)
    found.index_put_((*where, actions), weights, accumulate=True)
    total = torch.zeros(found.shape[:-1], dtype=policy.dtype)
    total.index_put_(where, weights, accumulate=True)
    return found - policy[:, None] * total[..., None]


def implicit_hypergradient(
    update: Parts,
    params: Parts,
    slopes: Parts,
    phi: Parts,
    terms: int,
    safety: float = 0.5,
    power: int = 20,
) -> Parts:
    """-(d update / d phi)^T H^-T slopes, H = d update / d params: the gradient in phi of what an
    inner loop returns that ends where its update is 0 (implicit function theorem).

    update: differentiable in params and phi, one tensor per parameter; params [B, ...] hold B
    independent problems; slopes [B, ...], the gradient of the outer objective in the parameters.
    H^-T is a Neumann series of `terms` terms with step safety / |H|, |H| by `power` iterations:
    it converges for an H with eigenvalues below 0 where safety < 2. One Jacobian product a term.
    """

    def size(parts):
        return sum(x.flatten(1).square().sum(1) for x in parts).sqrt() + 1e-12

    def scale(parts, factor):
        return [x * factor.view(-1, *[1] * (x.ndim - 1)) for x in parts]

    def product(v):
        return torch.autograd.grad(update, params, v, retain_graph=True)

    v = slopes
    for _ in range(power):
        v = product(scale(v, 1 / size(v)))
    eta, v = safety / size(v), slopes
    for _ in range(terms - 1):
        v = [g + x + h for g, x, h in zip(slopes, v, scale(product(v), eta))]
    return torch.autograd.grad(update, phi, scale(v, eta), retain_graph=True)
