"""D3PO's step-wise loss (notebook 32) against closed forms, brute force and its own stated bounds."""

import itertools
import math

import pytest
import torch

from rlgenkit import models, optimizers as o, samplers as s
from rlgenkit.worlds import parse
from tests.notebook_code import definitions

nb = definitions("32")
GROUPS = torch.tensor([0, 0, 0, 1, 1, 1])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def loss_of(new, reference, wanted, beta=0.1, clip=0.1):
    """The scalar that policy_update would average."""
    return nb.d3po_loss(wanted, reference, beta, clip)(new, new, torch.arange(len(new))).mean()


def test_choices_are_orders_within_prompts_and_survive_every_rising_warp():
    values, groups = randn(40), torch.arange(40) % 7
    values[7] = values[0]
    wanted = nb.choices(values, groups)
    for i, j in itertools.product(range(40), repeat=2):
        brute = float(values[i] > values[j]) - float(values[i] < values[j])
        assert wanted[i, j] == brute * (groups[i] == groups[j])
    assert torch.equal(wanted, -wanted.T) and wanted[0, 7] == 0
    for warp in (lambda v: v**3, lambda v: torch.exp(5 * v)):
        assert torch.equal(nb.choices(warp(values), groups), wanted)


def test_loss_is_the_mean_over_pairs_and_steps_by_hand():
    new, reference, scores = randn(6, 3, scale=0.04), randn(6, 3, seed=1, scale=0.04), randn(6)
    total, count = 0.0, 0
    for i, j, k in itertools.product(range(6), range(6), range(3)):
        if GROUPS[i] == GROUPS[j] and scores[i] > scores[j]:
            rho = [min(max(math.exp(new[b, k] - reference[b, k]), 0.95), 1.05) for b in (i, j)]
            inside = 0.3 * (math.log(rho[0]) - math.log(rho[1]))
            total, count = total + math.log(1 + math.exp(-inside)), count + 1
    found = loss_of(new, reference, nb.choices(scores, GROUPS), beta=0.3, clip=0.05)
    assert count == 18 and found.item() == pytest.approx(total / count, abs=1e-12)
    one = slice(0, 3)  # the loops that the notebook shows
    slow = nb.slow_d3po(new[one], reference[one], scores[one], 0.3, 0.05)
    fast = loss_of(new[one], reference[one], nb.choices(scores[one], GROUPS[one]), 0.3, 0.05)
    assert fast.item() == pytest.approx(slow.item(), abs=1e-12)


def test_loss_is_flat_by_construction():
    """Whatever is learned, each term lies within 0.0100 of log 2 (the card's [0.683, 0.703])."""
    ratio = nb.clipped_log_ratio(randn(6, 50, scale=100), torch.zeros(6, 50), 0.1)
    terms = nb.preference_terms(ratio, nb.choices(randn(6), GROUPS), 0.1)
    terms = terms[terms != 0]
    width = 0.1 * (math.log(1.1) - math.log(0.9))
    assert round(terms.min().item(), 3) == 0.683 and round(terms.max().item(), 3) == 0.703
    assert terms.max().item() == pytest.approx(math.log(1 + math.exp(width)), abs=1e-12)


def test_first_step_is_a_policy_gradient_with_wins_less_losses():
    wanted, new = nb.choices(randn(6), GROUPS), randn(6, 3, seed=2).requires_grad_()
    pairs = (wanted > 0).sum()
    loss_of(new, new.detach(), wanted, beta=0.4).backward()
    other = new.detach().clone().requires_grad_()
    (0.4 / 2 * o.reinforce_terms(other, wanted.sum(1, keepdim=True))).sum().backward()
    torch.testing.assert_close(new.grad, other.grad / (pairs * 3))
    marks = torch.tensor([1.0, 0, 0, 1, 1, 0])  # yes or no: the mark less the mean mark
    centered = marks - torch.tensor([1 / 3] * 3 + [2 / 3] * 3)
    torch.testing.assert_close(nb.choices(marks, GROUPS).sum(1), 3 * centered)


@pytest.mark.parametrize("change", [0.3, -0.3])
def test_clip_silences_both_directions(change):
    """Outside the range a step gets no gradient, not even one that would bring it back."""
    for scores in ([1.0, 0.0], [0.0, 1.0]):
        new = torch.tensor([[change], [0.0]], dtype=torch.float64, requires_grad=True)
        wanted = nb.choices(torch.tensor(scores), torch.zeros(2))
        loss_of(new, torch.zeros(2, 1), wanted).backward()
        assert new.grad[0, 0] == 0 and new.grad[1, 0] != 0
    for x in (0.99 * math.log(0.9), 0.99 * math.log(1.1)):
        leaf = torch.tensor([[x], [0.0]], requires_grad=True)
        wanted = nb.choices(torch.tensor([1.0, 0.0]), torch.zeros(2))
        loss_of(leaf, torch.zeros(2, 1), wanted).backward()
        assert leaf.grad[0, 0] < 0 < leaf.grad[1, 0]  # descent: the preferred up, the other down


def test_reference_is_data():
    new, reference = (randn(6, 2, seed=i, scale=0.01).requires_grad_() for i in (0, 1))
    loss_of(new, reference, nb.choices(randn(6), GROUPS)).backward()
    assert reference.grad is None and new.grad.abs().sum() > 0


def test_unclipped_optimum_is_the_log_odds():
    """A pair preferred with probability p: the minimizer of the expected loss is logit(p) / beta."""
    change = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([change], lr=0.5, max_iter=200)
    first = nb.choices(torch.tensor([1.0, 0.0]), torch.zeros(2))

    def closure():
        optimizer.zero_grad()
        terms = [nb.preference_terms(change, wanted, 0.5).sum() for wanted in (first, -first)]
        loss = 0.8 * terms[0] + 0.2 * terms[1]
        loss.backward()
        return loss

    optimizer.step(closure)
    gap = (change[0] - change[1]).item()
    assert gap == pytest.approx(math.log(0.8 / 0.2) / 0.5, rel=1e-4)


def test_votes_are_won_by_three_of_five():
    votes = torch.tensor([[0, 1, 2], [0, 1, 0], [0, 1, 1], [1, 0, 2], [2, 0, 0]])
    assert nb.won(votes, 3).tolist() == pytest.approx([1 / 3, 1 / 3, 0.0])


def test_shuffled_marks_stay_in_their_prompt():
    marks, groups = torch.arange(12.0), torch.arange(12) % 3
    mixed = nb.shuffled(marks, groups, generator(1))
    assert not torch.equal(mixed, marks)
    for group in range(3):
        assert mixed[groups == group].sort().values.tolist() == marks[groups == group].tolist()


@pytest.fixture(scope="module")
def policy():
    """The embedded model with three steps and an adapter."""
    return models.image_policy(
        "data/models/epsilon",
        table=lambda x: s.ddim_table_from_scheduler(x, 3, eta=1.0),
        rank=2,
        seed=0,
    )


def test_update_does_not_depend_on_the_split_and_raises_what_is_preferred(policy):
    rollout = policy.sample([parse("a red cat"), parse("a blue star")], generator(1), copies=3)
    chain = rollout.columns([0, 1])
    wanted = nb.choices(randn(6), GROUPS)
    reference = chain.log_probs.clone()
    first = [x.detach().clone() for x in policy.parameters]
    results = []
    for batch in (6, 3):
        for x, start in zip(policy.parameters, first):
            x.data.copy_(start)
        optimizer = torch.optim.SGD(policy.parameters, 100.0)
        loss = nb.d3po_loss(wanted, reference, 0.1, 0.1)
        o.policy_update(policy, optimizer, chain, loss, batch=batch)
        results.append(torch.cat([x.detach().flatten() for x in policy.parameters]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        change = policy.log_probs(chain) - reference
    better, worse = (wanted > 0).nonzero().T
    assert (change[better] - change[worse]).mean() > 0
