"""Selectors of rejection fine-tuning against loops over the samples."""

import itertools

import pytest
import torch

from rlgenkit.optimizers import best_of_k
from rlgenkit.records import Scores
from tests.notebook_code import definitions


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
@pytest.mark.parametrize("pick", [best_of_k])
def test_no_selector_keeps_a_score_that_is_not_finite(pick, bad):
    scores, groups = torch.tensor([1.0, bad, 0.0]), torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match="sample 1 is"):
        pick(scores, groups)


def test_scores_are_selected_as_they_are():
    scores, groups, valid, _ = draw(4)
    whole = Scores(torch.where(valid, scores, 0.0), valid)
    assert torch.equal(best_of_k(whole, groups), best_of_k(scores, groups, valid))
    assert valid[best_of_k(whole, groups)].all()


def test_only_the_order_counts():
    scores, groups, valid, _ = draw(3)
    for warp in (torch.exp, lambda r: 1e3 * r - 7, lambda r: r**3):
        same = best_of_k(warp(scores), groups, valid)
        assert torch.equal(same, best_of_k(scores, groups, valid))
    assert not torch.equal(best_of_k(-scores, groups, valid), best_of_k(scores, groups, valid))


def test_anchored_scores_are_the_kl_regularized_reward():
    """E_p[r - beta (log p - log q)] is E_p[r] - beta KL(p || q), and no gradient flows."""
    anchored = definitions("30").anchored_scores
    p, q = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.6, 0.3, 0.1])
    r, log_p = torch.tensor([1.0, 2.0, 4.0]), p.log()[:, None].requires_grad_()
    ranked = anchored(r, log_p, q.log()[:, None], torch.ones(3, 1).bool(), 0.7)
    kl = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * ranked).sum(), (p * r).sum() - 0.7 * kl)
    assert not ranked.requires_grad
    wide = torch.cat([log_p, torch.full((3, 1), 9.0)], 1)  # what is off the mask does not count
    mask = torch.tensor([[True, False]] * 3)
    again = anchored(r, wide, torch.cat([q.log()[:, None], log_p], 1), mask, 0.7)
    torch.testing.assert_close(again, ranked)


@pytest.mark.parametrize("seed", range(5))
def test_the_functions_of_the_notebook_are_those_of_the_kit(seed):
    scores, groups, _, gen = draw(seed)
    rows = definitions("30").best_rows(scores, groups)
    assert torch.equal(rows, best_of_k(scores, groups))
    mixed = definitions("30").shuffled(scores, groups, gen)
    assert not torch.equal(mixed, scores)
    for group in groups.unique():  # permuted inside each group
        inside = groups == group
        assert torch.equal(mixed[inside].sort().values, scores[inside].sort().values)


def test_equal_progress_compares_curves_where_both_have_been():
    """Twice the reward for the same surprise is twice the gain at equal surprise, wherever they end."""
    steps = torch.linspace(0, 1, 9).numpy()
    slow = {"surprise": 4.0 + 0.5 * steps, "reward": -1.0 + steps}
    fast = {"surprise": 4.0 + 2.0 * steps, "reward": -1.0 + 8.0 * steps}
    one, two = definitions("30").equal_progress(slow, fast, "surprise", "reward")
    assert abs(one - 0.5) < 1e-6 and abs(two - 1.0) < 1e-6
    one, two = definitions("30").equal_progress(slow, fast, "reward", "surprise")
    assert abs(one - 0.25) < 1e-6 and abs(two - 0.125) < 1e-6


def test_bad_settings_are_named():
    scores, groups, _, _ = draw(0)
    for call, word in (
        (lambda: best_of_k(scores, groups, keep=0), "keep"),
        (lambda: best_of_k(scores, groups[:3]), "groups"),
    ):
        with pytest.raises(ValueError, match=word):
            call()
