"""The step-wise DPO loss against closed forms, brute force and its own stated bounds."""

import itertools
import math

import pytest
import torch
from torch import nn

from rlgenkit import optimizers as o
from rlgenkit import samplers as s
from rlgenkit.optimizers import preferences as pf
from tests.fake_device import far, far_device


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


PAIRS = torch.tensor([[0, 1], [2, 3], [1, 3]])
LABELS = torch.tensor([1.0, -1.0, 0.0])


# ------------------------------------------------------------------ pairs and labels


def test_pairs_are_all_within_groups():
    groups = torch.tensor([7, 3, 7, 7, 3, 9])
    wanted = [[i, j] for i, j in itertools.combinations(range(6), 2) if groups[i] == groups[j]]
    assert pf.pairs_within_groups(groups).tolist() == wanted
    assert (
        len(pf.pairs_within_groups(torch.zeros(7, dtype=torch.long))) == 21
    )  # the paper's 7 pictures
    assert pf.pairs_within_groups(torch.arange(4)).shape == (0, 2)
    with pytest.raises(ValueError, match="groups"):
        pf.pairs_within_groups(torch.zeros(2, 2, dtype=torch.long))


def test_labels_are_pareto_dominance_and_survive_every_rising_warp():
    scores = torch.tensor([[1.0, 2.0, 2.0, 0.0], [5.0, 5.0, 4.0, 9.0]])
    pairs = torch.tensor([[0, 1], [1, 2], [0, 2], [3, 0], [1, 1]])
    assert pf.dominance_labels(scores, pairs).tolist() == [-1, 1, 0, 0, 0]
    values, pairs = randn(40), pf.pairs_within_groups(torch.zeros(40, dtype=torch.long))
    plain = pf.dominance_labels(values, pairs)
    brute = [(values[i] > values[j]).double() - (values[i] < values[j]).double() for i, j in pairs]
    assert torch.equal(plain.double(), torch.stack(brute)) and plain.abs().min() == 1
    for warp in (
        lambda v: v**3,
        lambda v: torch.exp(5 * v),
        lambda v: torch.where(v > 1, 50 * v, v),
    ):
        assert torch.equal(pf.dominance_labels(warp(values), pairs), plain)
    assert torch.equal(pf.dominance_labels(-values, pairs), -plain)


# ------------------------------------------------------------------ loss


def test_loss_by_hand_and_as_released():
    new, ref = randn(3, 4, scale=0.04), randn(3, 4, seed=1, scale=0.04)
    terms = pf.step_dpo_terms(new, ref, PAIRS, LABELS, beta=0.3, clip=0.05)
    assert terms.shape == (3, 3)
    for k, (p, (a, b)) in itertools.product(range(3), enumerate(PAIRS.tolist())):
        h = {1.0: (1, -1), -1.0: (-1, 1), 0.0: (0, 0)}[LABELS[p].item()]
        rho = [min(max(math.exp(new[k, i] - ref[k, i]), 0.95), 1.05) for i in (a, b)]
        inside = 0.3 * (h[0] * math.log(rho[0]) + h[1] * math.log(rho[1]))
        assert terms[k, p].item() == pytest.approx(math.log(1 + math.exp(-inside)), abs=1e-12)
    assert terms[:, 2].tolist() == pytest.approx([math.log(2)] * 3)


def test_loss_is_flat_by_construction():
    """Whatever is learned, each term lies within 0.0100 of log 2 (the card's [0.683, 0.703])."""
    wild = randn(50, 4, scale=100)
    terms = pf.step_dpo_terms(wild, torch.zeros_like(wild), PAIRS[:2], LABELS[:2])
    width = 0.1 * (math.log(1.1) - math.log(0.9))
    assert round(terms.min().item(), 3) == 0.683 and round(terms.max().item(), 3) == 0.703
    assert terms.max().item() == pytest.approx(math.log(1 + math.exp(width)), abs=1e-12)
    assert terms.min().item() == pytest.approx(math.log(1 + math.exp(-width)), abs=1e-12)
    free = pf.step_dpo_terms(wild, torch.zeros_like(wild), PAIRS[:2], LABELS[:2], clip=None)
    assert free.max() > 5


def test_gradient_raises_the_preferred_and_lowers_the_other():
    new = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    pf.step_dpo_terms(new, torch.zeros(2, 4), PAIRS, LABELS, beta=0.2).sum().backward()
    # -d/d log rho of -log sigmoid(beta h margin) at 0 is beta h / 2: descent raises row 0 and row 3
    wanted = -0.1 * torch.tensor([1.0, -1, -1, 1], dtype=torch.float64).expand(2, 4)
    torch.testing.assert_close(new.grad, wanted)


def test_first_step_is_a_policy_gradient_with_ranks():
    """At ratio 1, all pairs of a group: the gradient is that of REINFORCE with wins minus losses."""
    values, groups = randn(10), torch.tensor([0] * 5 + [1] * 5)
    pairs = pf.pairs_within_groups(groups)
    labels = pf.dominance_labels(values, pairs)
    ranks = torch.stack([(values[i] - values[groups == groups[i]]).sign().sum() for i in range(10)])
    new = randn(3, 10, seed=2).requires_grad_()
    pf.step_dpo_terms(new, new.detach(), pairs, labels, beta=0.4).sum().backward()
    other = new.detach().clone().requires_grad_()
    (0.5 * 0.4 * o.reinforce_terms(other, ranks)).sum().backward()
    torch.testing.assert_close(new.grad, other.grad)


@pytest.mark.parametrize("change", [0.3, -0.3])
def test_clip_silences_both_directions(change):
    """Outside the range a step gets no gradient, not even one that would bring it back."""
    new = torch.full((1, 2), 0.0, dtype=torch.float64)
    new[0, 0] = change
    new.requires_grad_()
    for label in (1.0, -1.0):
        terms = pf.step_dpo_terms(new, torch.zeros(1, 2), PAIRS[:1], torch.tensor([label]))
        (grad,) = torch.autograd.grad(terms.sum(), new)
        assert grad[0, 0] == 0 and grad[0, 1] != 0
    inside = (0.99 * math.log(0.9), 0.99 * math.log(1.1))
    for x in inside:
        leaf = torch.tensor([[x, 0.0]], requires_grad=True)
        pf.step_dpo_terms(leaf, torch.zeros(1, 2), PAIRS[:1], LABELS[:1]).sum().backward()
        assert leaf.grad[0, 0] < 0
    one_sided = pf.clipped_log_ratio(torch.tensor([[9.0, -9.0]]), torch.zeros(1, 2), (0.5, 3.0))
    assert one_sided.tolist()[0] == pytest.approx([math.log(4), math.log(0.5)])


def test_reference_is_data():
    new, ref = (randn(2, 4, seed=i, scale=0.01).requires_grad_() for i in (0, 1))
    pf.step_dpo_terms(new, ref, PAIRS, LABELS).sum().backward()
    assert ref.grad is None and new.grad.abs().sum() > 0


def test_reference_fixed_and_moving():
    rollout, calls = randn(3, 4).requires_grad_(), []

    def pretrained():
        calls.append(torch.is_grad_enabled())
        return 2 * rollout

    moving = pf.reference_log_probs("round_start", rollout, pretrained)
    assert torch.equal(moving, rollout) and not moving.requires_grad and calls == []
    fixed = pf.reference_log_probs("pretrained", rollout, pretrained)
    assert torch.equal(fixed, 2 * rollout) and not fixed.requires_grad and calls == [False]
    with pytest.raises(ValueError, match="pretrained, round_start"):
        pf.reference_log_probs("ema", rollout, pretrained)


def test_unclipped_optimum_is_the_log_odds():
    """A pair preferred with probability p: the minimizer of the expected loss is logit(p) / beta."""
    margin = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([margin], lr=0.5, max_iter=200)

    def closure():
        optimizer.zero_grad()
        terms = [
            pf.step_dpo_terms(margin, torch.zeros(1, 2), PAIRS[:1], torch.tensor([h]), 0.5, None)
            for h in (1.0, -1.0)
        ]
        loss = (0.8 * terms[0] + 0.2 * terms[1]).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    gap = (margin[0, 0] - margin[0, 1]).item()
    assert gap == pytest.approx(math.log(0.8 / 0.2) / 0.5, rel=1e-4)


def test_bad_input_of_the_loss():
    x = torch.zeros(2, 4)
    for labels, pairs, beta, word in (
        (LABELS[:2], PAIRS, 0.1, "labels"),
        (LABELS, PAIRS, 0.0, "beta"),
        (3 * LABELS, PAIRS, 0.1, "-1..1"),
        (LABELS, PAIRS[:, 0], 0.1, "pairs"),
    ):
        with pytest.raises(ValueError, match=word):
            pf.step_dpo_terms(x, x, pairs, labels, beta)
    with pytest.raises(ValueError, match="clip"):
        pf.step_dpo_terms(x, x, PAIRS, LABELS, clip=1.5)


# ------------------------------------------------------------------ monitors


def test_implicit_accuracy_by_hand():
    ref = randn(1, 4)
    gain = torch.tensor([[0.2, 0.1, 0.3, -0.1]], dtype=torch.float64)
    assert pf.implicit_accuracy(ref, ref, PAIRS, LABELS) == 0.5  # nothing learned yet
    assert pf.implicit_accuracy(ref + gain, ref, PAIRS, LABELS) == 0.5  # pair 0 right, pair 1 wrong
    assert pf.implicit_accuracy(ref + gain, ref, PAIRS[:1], LABELS[:1]) == 1
    assert pf.implicit_accuracy(ref - gain, ref, PAIRS[:1], LABELS[:1]) == 0
    big = 100 * gain  # not clipped: the order counts far outside the range too
    assert pf.implicit_accuracy(ref + big, ref, PAIRS[:1], LABELS[:1]) == 1
    assert torch.isnan(pf.implicit_accuracy(ref, ref, PAIRS[2:], LABELS[2:]))


def test_silenced_share_by_hand():
    change = torch.tensor([[0.05, 0.2, -0.2, -0.05]])
    assert pf.silenced_share(change, torch.zeros(1, 4), 0.1) == 0.5
    assert pf.silenced_share(change, torch.zeros(1, 4), (0.5, 0.1)) == 0.25


def test_chunks_hold_every_pair_once_and_few_rows():
    pairs = pf.pairs_within_groups(torch.tensor([0] * 5 + [1] * 3))
    for size in (None, 1, 3, 4, 100):
        seen = []
        for own, rows, local in pf.pair_chunks(pairs, size):
            assert torch.equal(rows[local], pairs[own]) and len(rows.unique()) == len(rows)
            assert size is None or len(rows) <= max(size, 2)
            seen += own.tolist()
        assert seen == list(range(len(pairs)))
    assert list(pf.pair_chunks(pairs[:0], 4)) == []


# ------------------------------------------------------------------ update, on a real chain


class Chain(nn.Module):
    """A denoiser with two weights for latents [B, 3]."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3))
        self.scale = nn.Parameter(torch.tensor(0.9))

    def forward(self, x, t):
        return self.scale * x + self.shift + 0.001 * t[:, None]


def chain():
    alphas = torch.linspace(0.999, 0.01, 100)
    table = s.ddim_table(alphas, [90, 60, 30, 10])
    net = Chain()
    path = s.rollout(net, table, randn(6, 3).float(), generator(1))
    pairs = pf.pairs_within_groups(torch.tensor([0, 0, 0, 1, 1, 1]))
    labels = pf.dominance_labels(path.final[:, 0], pairs)
    labels[1] = 0.0
    return net, path, pairs, labels, lambda k, b: s.replay(net, path, k, b)


def test_update_is_one_step_on_the_mean_loss():
    net, path, pairs, labels, replay = chain()
    steps = [0, 2]
    new, _ = s.replay(net, path, steps)
    loss = pf.step_dpo_terms(new, path.log_probs[steps], pairs, labels).mean()
    wanted = torch.autograd.grad(loss, list(net.parameters()))
    stats = pf.step_dpo_update(
        replay,
        torch.optim.SGD(net.parameters(), 1.0),
        net.parameters(),
        path.log_probs,
        pairs,
        labels,
        torch.tensor(steps),
    )
    torch.testing.assert_close(-net.shift.detach(), wanted[0])  # SGD of rate 1 from 0
    torch.testing.assert_close(0.9 - net.scale.detach(), wanted[1])
    assert stats["loss"] == pytest.approx(loss.item(), abs=1e-7)
    assert stats["accuracy"] == 0.5 and stats["drift"] == 0 and stats["silenced"] == 0
    assert stats["grad_norm"] == pytest.approx(
        torch.cat([g.flatten() for g in wanted]).norm().item()
    )
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("size", [2, 3, 4])
def test_update_does_not_depend_on_the_split(size):
    results = []
    for batch_size in (None, size):
        net, path, pairs, labels, replay = chain()
        reference = path.log_probs + randn(4, 6, seed=5, scale=0.03).float()
        stats = pf.step_dpo_update(
            replay,
            torch.optim.SGD(net.parameters(), 1.0),
            net.parameters(),
            reference,
            pairs,
            labels,
            torch.arange(4),
            batch_size=batch_size,
        )
        results.append((stats, net.shift.detach(), net.scale.detach()))
    torch.testing.assert_close(results[0][1:], results[1][1:], rtol=1e-4, atol=1e-7)
    for name in ("loss", "accuracy", "grad_norm"):
        assert results[0][0][name] == pytest.approx(results[1][0][name], rel=1e-4)


def test_updates_raise_what_is_preferred():
    net, path, pairs, labels, replay = chain()
    optimizer = torch.optim.Adam(net.parameters(), 0.003)
    for _ in range(40):
        stats = pf.step_dpo_update(
            replay,
            optimizer,
            net.parameters(),
            path.log_probs,
            pairs,
            labels,
            torch.arange(3),
            clip=0.5,
        )
    assert stats["accuracy"] > 0.6
    again = s.rollout(net, path.table, randn(6, 3).float(), generator(1))
    assert again.final[:, 0].mean() > path.final[:, 0].mean()


def test_ties_change_the_loss_and_the_length_of_the_step_only():
    got = []
    for keep in (slice(None), LABELS != 7):
        net, path, pairs, labels, replay = chain()
        keep = labels != 0 if isinstance(keep, torch.Tensor) else keep
        pf.step_dpo_update(
            replay,
            torch.optim.SGD(net.parameters(), 1.0),
            net.parameters(),
            path.log_probs,
            pairs[keep],
            labels[keep],
            torch.arange(3),
        )
        got.append(net.shift.detach())
    share = 5 / 6  # one of six pairs is a tie
    torch.testing.assert_close(got[0], share * got[1])


def test_update_refuses_what_it_cannot_learn_from():
    net, path, pairs, labels, replay = chain()
    optimizer, before = torch.optim.SGD(net.parameters(), 1.0), net.shift.detach().clone()
    with pytest.raises(ValueError, match="tie"):
        pf.step_dpo_update(
            replay, optimizer, net.parameters(), path.log_probs, pairs, 0 * labels, torch.arange(2)
        )
    with pytest.raises(FloatingPointError, match="step 1, picture 2"):

        def broken(k, b):
            new = replay(k, b)[0]
            return torch.where((k[:, None] == 1) & (b == 2), torch.nan, new), None

        pf.step_dpo_update(
            broken, optimizer, net.parameters(), path.log_probs, pairs, labels, torch.arange(2)
        )
    assert torch.equal(net.shift.detach(), before)


def test_labels_refuse_nan_and_are_the_same_on_a_device_without_float64():
    scores, pairs = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([[0, 1], [1, 2], [0, 0]])
    labels = pf.dominance_labels(scores, pairs)
    assert labels.tolist() == [-1, 1, 0]
    with far_device():
        assert torch.equal(pf.dominance_labels(far(scores), far(pairs)).cpu(), labels)
    with pytest.raises(ValueError, match="nan"):  # no silent tie
        pf.dominance_labels(torch.tensor([1.0, float("nan"), 2.0]), pairs)
