"""Exact policy gradients against autograd, sampling and closed forms; what shaping leaves alone."""

import pytest
import torch

from rlgenkit.optimizers import potential_shaping
from rlgenkit.worlds import gridworld as grid
from tests.notebook_code import definitions

book = definitions("50")

GAMMA = 0.9
BOARD = grid.make_board(torch.tensor([[0, 0, 3], [0, 2, 0], [0, 0, 1]]))
S = len(BOARD.starts)
LIVE = BOARD.starts[:, None].double()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def starts():
    weights = draw(S, seed=1).exp() * BOARD.starts
    return weights / weights.sum()


def test_visits_are_the_discounted_sum_over_time():
    policy, where = draw(2, S, 4).softmax(-1), starts().expand(2, S)
    total = torch.zeros(2, S).double()
    flow = torch.einsum("bsa,sat->bst", policy, BOARD.transitions)
    for t in range(400):
        total += GAMMA**t * where
        where = torch.einsum("bs,bst->bt", where, flow)
    found = book.discounted_visits(BOARD.transitions, policy, starts(), GAMMA)
    torch.testing.assert_close(found, total)
    torch.testing.assert_close(found.sum(-1), torch.full((2,), 1 / (1 - GAMMA)).double())


def test_visits_weigh_rewards_to_the_return():
    policy, rewards = draw(S, 4).softmax(-1), draw(S, 4, seed=2)
    visits = book.discounted_visits(BOARD.transitions, policy, starts(), GAMMA)
    by_visits = (visits[:, None] * policy * rewards).sum()
    values = grid.policy_values(BOARD, policy, rewards, GAMMA)
    torch.testing.assert_close(by_visits, (values * starts()).sum())


@pytest.mark.parametrize("entropy", [0.0, 0.3])
def test_gradient_is_the_gradient_of_the_return(entropy):
    """With the reward -entropy * log pi in the return: its direct slope averages to 0."""
    logits, rewards = draw(3, S, 4).requires_grad_(), draw(3, S, 4, seed=2)
    policy = logits.softmax(-1)
    soft = (rewards - entropy * policy.log()) * LIVE
    values = grid.policy_values(BOARD, policy, soft, GAMMA)
    (wanted,) = torch.autograd.grad((values * starts()).sum(), logits, retain_graph=True)
    q = grid.action_values(BOARD, soft, values, GAMMA)
    visits = book.discounted_visits(BOARD.transitions, policy, starts(), GAMMA)
    torch.testing.assert_close(book.softmax_gradient(logits, q, visits), wanted)


def sampled(policy, rewards, n, horizon=40, seed=3):
    noise = torch.rand(horizon, n, 2, generator=torch.Generator().manual_seed(seed)).double()
    states, actions = book.sample_walks(BOARD.transitions, policy, 0, noise)
    return states, actions, rewards[states[:-1], actions]


def test_mean_of_sampled_reinforce_is_the_exact_gradient():
    n, logits, rewards = 20_000, draw(2, S, 4, seed=4), draw(S, 4, seed=5) * LIVE
    policy = logits.softmax(-1)
    states, actions, r = sampled(policy, rewards, n)
    found = book.reinforce_gradients(policy, states, actions, r, GAMMA)
    values = grid.policy_values(BOARD, policy, rewards.expand(2, -1, -1), GAMMA)
    q = grid.action_values(BOARD, rewards, values, GAMMA)
    visits = book.discounted_visits(BOARD.transitions, policy, torch.eye(S).double()[0], GAMMA)
    exact = book.softmax_gradient(logits, q, visits)
    error = (found.mean(1) - exact).abs()
    assert (error <= 5 * found.std(1) / n**0.5 + 0.02 * exact.abs().max()).all()
    assert exact.abs().max() > 0.1


def test_reinforce_of_one_walk_by_plain_loops():
    logits = draw(1, S, 4, seed=4).requires_grad_()
    policy = logits.softmax(-1)
    states, actions, r = sampled(policy.detach(), draw(S, 4, seed=5), 3, horizon=6)
    found = book.reinforce_gradients(policy.detach(), states, actions, r, GAMMA)
    for k in range(3):
        total = 0.0
        for t in range(6):
            to_go = sum(GAMMA ** (j - t) * r[j, 0, k] for j in range(t, 6))
            total = total + GAMMA**t * to_go * policy[0, states[t, 0, k], actions[t, 0, k]].log()
        (wanted,) = torch.autograd.grad(total, logits, retain_graph=True)
        torch.testing.assert_close(found[:, k], wanted)


def test_walks_follow_policy_and_transitions():
    policy = draw(2, S, 4, seed=4).softmax(-1)
    states, actions, _ = sampled(policy, draw(S, 4), 20_000, horizon=3)
    assert (states[0] == 0).all() and states.shape == (4, 2, 20_000)
    shares = torch.stack([(actions[0] == a).double().mean(-1) for a in range(4)], -1)
    assert (shares - policy[:, 0]).abs().max() < 0.015
    assert (BOARD.transitions[states[:-1], actions].gather(-1, states[1:, ..., None]) == 1).all()
    random = torch.full((1, 1, 2), 0.5).double().expand(2, 1, 2)  # a world with random moves
    noise = torch.rand(1, 20_000, 2, generator=torch.Generator().manual_seed(1)).double()
    moved, _ = book.sample_walks(random.contiguous(), torch.ones(1, 2, 1).double(), 0, noise)
    assert abs(moved[1].double().mean().item() - 0.5) < 0.015


def linear_inner_loop():
    """update = C phi - M theta, so theta* = M^-1 C phi and the slope of s theta* is C^T M^-T s."""
    m = torch.eye(4).double() + 0.3 * draw(2, 4, 4)  # not symmetric
    c, s = draw(2, 4, 3, seed=1), draw(2, 4, seed=2)
    theta, phi = draw(2, 4, seed=3).requires_grad_(), draw(2, 3, seed=4).requires_grad_()
    update = torch.einsum("bij,bj->bi", c, phi) - torch.einsum("bij,bj->bi", m, theta)
    return m, c, s, theta, phi, update


def test_implicit_hypergradient_of_a_linear_inner_loop():
    m, c, s, theta, phi, update = linear_inner_loop()
    wanted = torch.einsum("bji,bj->bi", c, torch.linalg.solve(m.mT, s))
    (found,) = book.implicit_hypergradient([update], [theta], [s], [phi], 400)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)
    (loose,) = book.implicit_hypergradient([update], [theta], [s], [phi], 400, safety=4.0)
    assert (loose - wanted).norm() > 1e3  # beyond 2 / |H| the series grows


def test_one_term_is_one_plain_step_and_problems_do_not_mix():
    m, c, s, theta, phi, update = linear_inner_loop()
    (one,) = book.implicit_hypergradient([update], [theta], [s], [phi], 1)
    plain = torch.einsum("bji,bj->bi", c, s)
    torch.testing.assert_close(
        one / one.norm(dim=1, keepdim=True), plain / plain.norm(dim=1, keepdim=True)
    )
    s = torch.stack([s[0], 0 * s[1]])
    (found,) = book.implicit_hypergradient([update], [theta], [s], [phi], 50)
    assert found[0].abs().max() > 0.1 and found[1].abs().max() == 0


def test_implicit_hypergradient_over_several_tensors():
    m, c, s, theta, phi, _ = linear_inner_loop()
    a, b = theta.detach()[:, :2].requires_grad_(), theta.detach()[:, 2:].requires_grad_()
    whole = torch.einsum("bij,bj->bi", c, phi) - torch.einsum("bij,bj->bi", m, torch.cat([a, b], 1))
    (found,) = book.implicit_hypergradient(whole.split(2, 1), [a, b], s.split(2, 1), [phi], 400)
    wanted = torch.einsum("bji,bj->bi", c, torch.linalg.solve(m.mT, s))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


def test_without_ratios_the_fixed_point_is_behavior_times_value():
    behavior, q, visits = draw(S, 4).softmax(-1), draw(S, 4, seed=2).exp(), draw(S, seed=3).exp()
    fixed = (behavior * q).log()
    assert book.softmax_gradient(fixed, q, visits, behavior).abs().max() < 1e-12
    assert book.softmax_gradient(fixed, q, visits).abs().max() > 1e-3
    own = draw(S, 4, seed=6)  # the behavior of the policy itself is the on-policy case
    torch.testing.assert_close(
        book.softmax_gradient(own, q, visits, own.softmax(-1)),
        book.softmax_gradient(own, q, visits),
    )


def test_logits_of_a_state_never_drift_together():
    found = book.softmax_gradient(draw(2, S, 4), draw(2, S, 4, seed=2), draw(2, S, seed=3).exp())
    assert found.sum(-1).abs().max() < 1e-12


def shaped(potential, live=LIVE[:, 0]):
    after = BOARD.transitions @ (potential * live)  # the end counts as 0
    return potential_shaping(potential[:, None], after, GAMMA) * LIVE


def test_shaping_moves_values_by_the_potential_and_no_gradient():
    logits, rewards, potential = draw(S, 4), draw(S, 4, seed=2) * LIVE, 3 * draw(S, seed=7)
    policy = logits.softmax(-1)
    visits = book.discounted_visits(BOARD.transitions, policy, starts(), GAMMA)
    values = [
        grid.policy_values(BOARD, policy, r, GAMMA) for r in (rewards, rewards + shaped(potential))
    ]
    torch.testing.assert_close(values[1], values[0] - potential * LIVE[:, 0])
    grads = [
        book.softmax_gradient(logits, grid.action_values(BOARD, r, v, GAMMA), visits)
        for r, v in zip((rewards, rewards + shaped(potential)), values)
    ]
    assert (grads[0] - grads[1]).abs().max() < 1e-12


def test_best_moves_survive_shaping_unless_the_end_keeps_its_potential():
    goal = BOARD.features[..., 1]
    potential = torch.zeros(S).double()
    potential[S - 1] = -5.0  # the goal itself looks bad
    plans = [
        grid.optimal_policy(BOARD, goal + f, GAMMA)[0]
        for f in (0, shaped(potential), shaped(potential, torch.ones(S).double()))
    ]
    free = BOARD.starts
    assert torch.equal(plans[0][free], plans[1][free])
    assert not torch.equal(plans[0][free], plans[2][free])


def test_shaping_of_an_episode_telescopes_to_minus_the_first_potential():
    potential = draw(7, seed=8)  # of the 7 states of one episode
    ended = torch.arange(6) == 5
    f = potential_shaping(potential[:-1], potential[1:], GAMMA, ended)
    assert float((GAMMA ** torch.arange(6) * f).sum()) == pytest.approx(-float(potential[0]))
    assert float(f[-1]) == pytest.approx(-float(potential[5]))
