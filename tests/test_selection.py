"""Selectors of rejection fine-tuning against loops over the samples."""

import itertools

import pytest
import torch

from rlgenkit.optimizers.selection import (
    best_of_k,
    penalized,
    selection_weights,
    then,
    top_fraction,
)
from rlgenkit.records import Scores


def draw(seed, b=40, levels=None):
    gen = torch.Generator().manual_seed(seed)
    scores = torch.randn(b, generator=gen)
    if levels:
        scores = torch.randint(levels, (b,), generator=gen).float()
    return scores, torch.randint(7, (b,), generator=gen), torch.rand(b, generator=gen) < 0.7, gen


def by_hand(scores, groups, valid, keep):
    """Sorted by group, then falling score, then row."""
    rows = []
    for g in sorted(set(groups.tolist())):
        inside = [i for i in range(len(scores)) if groups[i] == g and valid[i]]
        rows += sorted(inside, key=lambda i: (-scores[i].item(), i))[:keep]
    return rows


@pytest.mark.parametrize("seed, levels, keep", itertools.product(range(5), (None, 3), (1, 2, 50)))
def test_best_of_k_is_a_sort_within_groups(seed, levels, keep):
    scores, groups, valid, _ = draw(seed, levels=levels)
    assert best_of_k(scores, groups, valid, keep).tolist() == by_hand(scores, groups, valid, keep)
    every = torch.ones_like(valid)
    assert best_of_k(scores, groups, None, keep).tolist() == by_hand(scores, groups, every, keep)


def test_groups_need_not_be_neighbors_and_may_be_empty():
    scores, groups = torch.tensor([1.0, 9, 3, 2, 8]), torch.tensor([4, 0, 4, 4, 0])
    assert best_of_k(scores, groups).tolist() == [1, 2]
    valid = torch.tensor([True, False, False, True, False])
    assert best_of_k(scores, groups, valid).tolist() == [3]
    assert best_of_k(scores, groups, torch.zeros(5, dtype=torch.bool)).tolist() == []
    scores[1] = float("nan")
    assert best_of_k(scores, groups, valid).tolist() == [3]  # an invalid score may be anything
    with pytest.raises(ValueError, match="sample 1"):
        best_of_k(scores, groups)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("pick", [best_of_k, top_fraction, then(best_of_k, top_fraction)])
def test_no_selector_keeps_a_score_that_is_not_finite(pick, bad):
    scores, groups = torch.tensor([1.0, bad, 0.0]), torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match="sample 1 is"):
        pick(scores, groups)


def test_scores_are_selected_as_they_are():
    scores, groups, valid, _ = draw(4)
    whole = Scores(torch.where(valid, scores, 0.0), valid)
    for pick in (best_of_k, top_fraction, then(best_of_k, top_fraction)):
        assert torch.equal(pick(whole, groups), pick(scores, groups, valid))
        assert valid[pick(whole, groups)].all()


def test_only_the_order_counts():
    scores, groups, valid, _ = draw(3)
    for warp in (torch.exp, lambda r: 1e3 * r - 7, lambda r: r**3):
        for pick in (best_of_k, top_fraction, then(best_of_k, top_fraction)):
            assert torch.equal(pick(warp(scores), groups, valid), pick(scores, groups, valid))
    assert not torch.equal(best_of_k(-scores, groups, valid), best_of_k(scores, groups, valid))


@pytest.mark.parametrize("share, kept", [(0.1, 2), (0.5, 10), (1.0, 20), (0.001, 1)])
def test_top_fraction_ranks_across_groups(share, kept):
    scores, groups, _, _ = draw(2)
    valid = torch.arange(40) % 2 == 0
    rows = top_fraction(scores, groups, valid, share).tolist()
    order = sorted(range(0, 40, 2), key=lambda i: -scores[i].item())
    assert rows == order[:kept]


def test_then_asks_about_the_winners_only():
    scores = torch.tensor([5.0, 9, 1, 2, 7, 6])
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    rows = then(best_of_k, lambda s, g, v: top_fraction(s, g, v, 2 / 3))(scores, groups)
    assert rows.tolist() == [1, 4]


def test_penalized_is_the_kl_regularized_reward():
    """E_p[r - beta (log p - log q)] is E_p[r] - beta KL(p || q), and no gradient flows."""
    p, q = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.6, 0.3, 0.1])
    r, log_p = torch.tensor([1.0, 2.0, 4.0]), p.log().requires_grad_()
    ranked = penalized(r, log_p, q.log(), 0.7)
    kl = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * ranked).sum(), (p * r).sum() - 0.7 * kl)
    assert not ranked.requires_grad
    torch.testing.assert_close(penalized(r, log_p, q.log(), 0.0), r)
    with pytest.raises(ValueError, match="beta"):
        penalized(r, log_p, q.log(), -1.0)


def test_weights_give_the_mean_over_kept_rows():
    losses = torch.tensor([1.0, 10, 100, 1000], requires_grad=True)
    rows = torch.tensor([1, 3, 3])
    weights = selection_weights(rows, 4)
    torch.testing.assert_close((weights * losses).sum(), losses[rows].mean())
    ours, theirs = (
        torch.autograd.grad(x, losses)[0] for x in ((weights * losses).sum(), losses[rows].mean())
    )
    torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match="discarded"):
        selection_weights(torch.empty(0, dtype=torch.long), 4)


def test_bad_settings_are_named():
    scores, groups, _, _ = draw(0)
    for call, word in (
        (lambda: best_of_k(scores, groups, keep=0), "keep"),
        (lambda: top_fraction(scores, groups, share=0.0), "share"),
        (lambda: best_of_k(scores, groups[:3]), "groups"),
    ):
        with pytest.raises(ValueError, match=word):
            call()
