"""The rounds of notebook 02: who draws the pictures, and which way an update goes."""

from types import SimpleNamespace

import pytest
import torch

from rlgenkit import optimizers
from tests.notebook_code import definitions

book = definitions("02")


@pytest.mark.parametrize("kind", ["nft", "sham", "grpo", "sft"])
def test_nft_and_its_sham_draw_with_the_old_weights(kind, monkeypatch):
    """Trained weights 2, old ones 1: what the sampler sees, and what is left afterward."""
    weight, drawn = torch.nn.Parameter(torch.ones(1)), []
    old = optimizers.Ema([weight])
    with torch.no_grad():
        weight.fill_(2.0)

    def sample(prompts, generator, copies, window):
        drawn.append(weight.item())
        return SimpleNamespace(output=torch.zeros(4), prompts=prompts, groups=torch.zeros(4).long())

    def learn(policy, optimizer, old, rollout, advantages, generator):
        drawn.append(weight.item())
        return {}

    space = book.one_round.__globals__
    given = {
        "p": SimpleNamespace(groups=1, group_size=4, steps=4, timed=0),
        "run": SimpleNamespace(log=lambda step, **values: None),
        "ask": lambda n, generator: ["a red cat"] * n,
        "reward_of": lambda images, prompts: torch.arange(4.0),
        "nft_round": learn if kind in ("nft", "sham") else book.nft_round,
    }
    for name, value in given.items():
        monkeypatch.setitem(space, name, value)
    policy = SimpleNamespace(sample=sample)
    generator = torch.Generator().manual_seed(0)
    book.one_round(0, policy, None, old, generator, learn, 0, kind == "sham")
    assert drawn == [1.0 if kind in ("nft", "sham") else 2.0, 2.0]
    assert old.averages[0].item() == 2.0  # at round 0 they catch up


KINDS = torch.tensor([0, 1, 1, 0, 1, 0])  # of six pictures; those of kind 0 are good
ADVANTAGES = torch.where(KINDS == 0, 1.0, -1.0)


@pytest.fixture
def toy(monkeypatch):
    """Two weights, one the velocity of the good kind, one that of the bad: all targets are 1."""
    weights = torch.nn.Parameter(torch.tensor([0.2, 0.4]))
    policy = SimpleNamespace(parameters=[weights])

    def noised(policy, rollout, rows, generator):
        times = torch.full((len(rows),), 0.5)
        kinds = KINDS[rows][:, None]
        return (lambda x, t: weights[kinds] * x), torch.ones(len(rows), 4), torch.ones(1), times

    given = {"noised": noised, "p": SimpleNamespace(passes=1, chunk=2, best=1, group_size=3)}
    for name, value in given.items():
        monkeypatch.setitem(book.descend.__globals__, name, value)
    return policy, weights, torch.optim.SGD([weights], 0.01)


def rollout_of(groups):
    return SimpleNamespace(groups=torch.tensor(groups))


def test_nft_draws_the_good_kind_nearer_and_the_bad_kind_away(toy):
    policy, weights, optimizer = toy
    old, generator = optimizers.Ema([weights]), torch.Generator().manual_seed(0)
    book.nft_round(policy, optimizer, old, rollout_of([0] * 6), ADVANTAGES, generator)
    assert weights[0] > 0.2 and weights[1] < 0.4


def test_the_loss_of_nft_is_taken_from_the_old_weights(toy, monkeypatch):
    policy, weights, optimizer = toy
    old, seen = optimizers.Ema([weights]), []
    with torch.no_grad():
        weights.add_(1.0)
    keep = book.nft_terms
    monkeypatch.setitem(
        book.descend.__globals__, "nft_terms", lambda *given: seen.append(given) or keep(*given)
    )
    generator = torch.Generator().manual_seed(0)
    book.nft_round(policy, optimizer, old, rollout_of([0] * 6), ADVANTAGES, generator)
    new, before = seen[0][:2]
    assert set(before.unique().tolist()) <= set(torch.tensor([0.2, 0.4]).tolist())
    assert new.min() > 1 and new.requires_grad and not before.requires_grad


def test_imitation_fits_the_best_of_each_group_alone(toy):
    policy, weights, optimizer = toy
    generator = torch.Generator().manual_seed(0)
    rollout = rollout_of([0, 0, 0, 1, 1, 1])  # a good one in each group
    book.sft_round(policy, optimizer, None, rollout, ADVANTAGES, generator)
    assert weights[0] > 0.2 and weights[1] == 0.4


def test_flow_grpo_raises_the_log_probs_of_the_good_kind(monkeypatch):
    parts, chosen = [], torch.arange(6)

    def update(policy, optimizer, part, loss):
        new = torch.zeros(len(part), 2, requires_grad=True)
        loss(new, torch.zeros(len(part), 2), torch.arange(len(part))).sum().backward()
        parts.append((part, new.grad[:, 0]))
        return {"ratio_deviation": 0.0, "clip_fraction": 0.0}

    space = book.grpo_round.__globals__
    monkeypatch.setattr(optimizers, "policy_update", update)
    monkeypatch.setitem(space, "p", SimpleNamespace(steps=3, clip=0.1))
    rollout = SimpleNamespace(
        mask=torch.ones(6, 3, dtype=torch.bool),
        rows=lambda half: SimpleNamespace(columns=lambda steps: chosen[half]),
    )
    generator = torch.Generator().manual_seed(0)
    book.grpo_round(None, None, None, rollout, ADVANTAGES, generator)
    rows, slopes = (torch.cat(column) for column in zip(*parts, strict=True))
    assert sorted(rows.tolist()) == list(range(6))
    assert torch.equal(slopes.sign(), -ADVANTAGES[rows])


def test_noise_and_clean_latents_are_not_exchanged(monkeypatch):
    """x - t v is the clean latent, which comes back from what `noised` returns."""
    clean = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    path = SimpleNamespace(trajectory=SimpleNamespace(final=clean))
    rollout = SimpleNamespace(path=path, prompts=[SimpleNamespace(text="a red cat")] * 4)
    models = SimpleNamespace(embed=lambda model, texts: texts, denoiser=lambda model, words: words)
    monkeypatch.setitem(book.noised.__globals__, "models", models)
    policy, rows = SimpleNamespace(model=None), torch.tensor([2, 0])
    generator = torch.Generator().manual_seed(0)
    _, latents, target, times = book.noised(policy, rollout, rows, generator)
    found = latents - times[:, None, None, None] * target
    assert torch.allclose(found, clean[rows], atol=1e-5)
