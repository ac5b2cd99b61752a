"""Fronts against enumeration in plain Python, hypervolume against inclusion-exclusion and dice."""

import itertools

import pytest
import torch

from rlgenkit import optimizers as o
from tests.fake_device import far, far_device


def draw(n, m, seed, levels=None):
    """Scores [n, m]; with `levels` whole numbers below it, so that ties and duplicates occur."""
    g = torch.Generator().manual_seed(seed)
    if levels:
        return torch.randint(levels, (n, m), generator=g).double()
    return torch.randn(n, m, generator=g, dtype=torch.float64)


def beats(a, b):
    return all(x >= y for x, y in zip(a, b)) and any(x > y for x, y in zip(a, b))


def enumerated_ranks(scores, groups):
    """Peel fronts one by one, pair by pair."""
    rows, rank = scores.tolist(), [-1] * len(scores)
    for group in set(groups):
        left, level = [i for i, g in enumerate(groups) if g == group], 0
        while left:
            front = [i for i in left if not any(beats(rows[j], rows[i]) for j in left)]
            for i in front:
                rank[i] = level
            left, level = [i for i in left if i not in front], level + 1
    return rank


CASES = [(n, m, levels) for n in (1, 2, 7, 40) for m in (1, 2, 3, 4) for levels in (None, 3)]


@pytest.mark.parametrize("n, m, levels", CASES)
def test_fronts_equal_enumeration(n, m, levels):
    scores = draw(n, m, n + 10 * m, levels)
    groups = torch.arange(n) % 3
    for ids in (None, groups):
        expected = torch.tensor(enumerated_ranks(scores, [0] * n if ids is None else ids.tolist()))
        assert torch.equal(o.pareto_mask(scores, ids), expected == 0)
        relation = o.dominance(scores, ids)
        for i, j in itertools.product(range(n), repeat=2):
            same = ids is None or ids[i] == ids[j]
            assert bool(relation[i, j]) == (same and beats(scores[i].tolist(), scores[j].tolist()))


def test_front_by_hand():
    scores = torch.tensor([[3.0, 1], [1, 3], [2, 2], [2, 1], [1, 1], [2, 2]])
    assert o.pareto_mask(scores).tolist() == [1, 1, 1, 0, 0, 1]  # a duplicate stays beside its twin
    expected = torch.tensor([0.25, 0.25, 0.25, 0, 0, 0.25])
    assert torch.equal(o.pareto_weights(scores), expected)


def test_weights_give_each_group_the_same_share():
    scores = torch.tensor([[1.0, 0], [0, 1], [0, 0], [5, 5], [4, 9], [7, 3]])
    groups = torch.tensor([8, 8, 8, 2, 2, 2])
    weights = o.pareto_weights(scores, groups)
    assert torch.allclose(weights, torch.tensor([1 / 4, 1 / 4, 0, 1 / 6, 1 / 6, 1 / 6]))
    dead = torch.tensor([False, False, False, True, True, True])  # a group without a valid row
    assert torch.allclose(
        o.pareto_weights(scores, groups, dead), torch.tensor([0, 0, 0, *[1 / 3] * 3])
    )
    assert weights.dtype == torch.float32 and float(weights.sum()) == pytest.approx(1)
    assert o.pareto_weights(scores, groups, ~dead & ~dead.roll(3)).sum() == 0


@pytest.mark.parametrize("m", [1, 2, 3])
def test_single_winners_are_always_on_the_front(m):
    scores = draw(50, m, m)
    assert o.pareto_mask(scores)[scores.argmax(0)].all()
    assert o.pareto_mask(scores).sum() >= 1


def test_increasing_maps_of_single_objectives_change_nothing():
    scores = draw(60, 3, 4, levels=6)
    maps = (lambda v: v.exp(), lambda v: v**3 - 5, lambda v: 0.001 * v)
    warped = torch.stack([f(c) for f, c in zip(maps, scores.unbind(1))], 1)
    assert torch.equal(o.pareto_mask(warped), o.pareto_mask(scores))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(o.pareto_mask(scores[order]), o.pareto_mask(scores)[order])
    assert torch.equal(o.pareto_mask(scores[:, [2, 0, 1]]), o.pareto_mask(scores))
    assert not torch.equal(o.pareto_mask(-scores), o.pareto_mask(scores))


@pytest.mark.parametrize("n, m", [(8, 2), (8, 3), (64, 3), (256, 4)])
def test_front_size_of_independent_objectives(n, m):
    share = [1.0] * n  # K_1(i) = 1, K_m(n) = sum over i <= n of K_{m-1}(i) / i
    for _ in range(m - 1):
        share = list(itertools.accumulate(k / (i + 1) for i, k in enumerate(share)))
    sizes = [int(o.pareto_mask(draw(n, m, 1000 + s)).sum()) for s in range(300)]
    spread = torch.tensor(sizes).double().std().item()
    assert abs(sum(sizes) / 300 - share[-1]) < 4 * spread / 300**0.5


def union_of_boxes(points):
    """Inclusion-exclusion over all subsets of boxes [0, p]."""
    total = 0.0
    for k in range(1, len(points) + 1):
        for some in itertools.combinations(points, k):
            total += (-1) ** (k + 1) * float(torch.stack(some).amin(0).clamp(min=0).prod())
    return total


@pytest.mark.parametrize(
    "m, n, levels", [(m, n, v) for m in (1, 2, 3) for n in (1, 2, 5, 9) for v in (None, 4)]
)
def test_hypervolume_equals_inclusion_exclusion(m, n, levels):
    scores, corner = draw(n, m, 7 * n + m, levels), torch.linspace(-0.3, 0.4, 3)[:m].double()
    assert o.hypervolume(scores, corner) == pytest.approx(union_of_boxes(scores - corner), abs=1e-9)


@pytest.mark.parametrize("m", [2, 3])
def test_hypervolume_equals_dice(m):
    scores = torch.rand(30, m, generator=torch.Generator().manual_seed(m), dtype=torch.float64)
    dice = torch.rand(40_000, m, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    hit = (dice[:, None] < scores[None]).all(2).any(1).double().mean()
    assert o.hypervolume(scores, [0.0] * m) == pytest.approx(float(hit), abs=0.012)


@pytest.mark.parametrize("m", [2, 3])
def test_only_the_front_fills_volume(m):
    scores, corner = draw(40, m, m), [-3.0] * m
    whole = o.hypervolume(scores, corner)
    assert o.hypervolume(scores[o.pareto_mask(scores)], corner) == pytest.approx(whole, rel=1e-12)
    assert o.hypervolume(torch.cat([scores, scores]), corner) == pytest.approx(whole, rel=1e-12)
    better = torch.cat([scores, scores.amax(0, keepdim=True) + 0.1])
    assert o.hypervolume(better, corner) > whole
    below = torch.full((1, m), -3.5)
    below[0, 0] = 50.0  # far out in one objective, under the reference in the others
    assert o.hypervolume(torch.cat([scores, below]), corner) == pytest.approx(whole, rel=1e-12)


def test_hypervolume_by_hand():
    assert o.hypervolume(torch.tensor([[2.0, 1], [1, 3]]), [0, 0]) == 4
    assert o.hypervolume(torch.tensor([[1.0, 1, 1], [2, 1, 0.5]]), [0, 0, 0]) == 1.5
    assert o.hypervolume(torch.tensor([[-1.0, 5]]), [0, 0]) == 0


def test_invalid_rows_take_no_part():
    scores, valid = draw(20, 2, 3), torch.ones(20, dtype=torch.bool)
    scores[4], valid[4] = torch.tensor([float("nan"), 9.0]), False
    scores[5], valid[5] = torch.tensor([9.0, 9.0]), False  # would beat everybody
    keep = valid.nonzero()[:, 0]
    assert not o.pareto_mask(scores, valid=valid)[[4, 5]].any()
    assert torch.equal(o.pareto_mask(scores, valid=valid)[keep], o.pareto_mask(scores[keep]))
    assert o.pareto_weights(scores, valid=valid)[[4, 5]].sum() == 0
    assert o.hypervolume(scores, [-9, -9], valid) == o.hypervolume(scores[keep], [-9, -9])
    assert o.hypervolume(scores, [-9, -9], torch.zeros_like(valid)) == 0


def test_the_fronts_carry_no_gradient():
    scores = draw(5, 2, 1).requires_grad_()
    assert not o.pareto_weights(scores).requires_grad
    assert isinstance(o.hypervolume(scores, [0, 0]), float)


@pytest.mark.parametrize(
    "call, what",
    [
        (lambda: o.pareto_mask(torch.zeros(3)), r"scores must be \[N, M\]"),
        (lambda: o.pareto_mask(torch.zeros(0, 2)), r"scores must be \[N, M\]"),
        (lambda: o.pareto_mask(torch.tensor([[1.0, float("nan")]])), "sample 0"),
        (lambda: o.hypervolume(torch.tensor([[1.0, float("inf")]]), [0, 0]), "sample 0"),
        (lambda: o.pareto_mask(torch.zeros(3, 2), torch.zeros(2)), "groups must be"),
        (lambda: o.pareto_weights(torch.zeros(3, 2), valid=torch.ones(2).bool()), "valid must be"),
        (lambda: o.hypervolume(torch.zeros(3, 2), [0.0]), "reference must be 2"),
        (lambda: o.hypervolume(torch.zeros(3, 4), [0.0] * 4), "1, 2 or 3"),
    ],
)
def test_bad_input_is_named(call, what):
    with pytest.raises(ValueError, match=what):
        call()


def test_fronts_and_volumes_are_the_same_on_a_device_without_float64():
    scores = torch.randn(20, 3, generator=torch.Generator().manual_seed(4))
    groups, corner = torch.arange(20) % 3, (-1.0, -1.0, -1.0)
    weights, volume = o.pareto_weights(scores, groups), o.hypervolume(scores, corner)
    with far_device():
        there = o.pareto_weights(far(scores), groups)
        assert there.device == far(scores).device and torch.equal(there.cpu(), weights)
        assert o.hypervolume(far(scores), corner) == volume
