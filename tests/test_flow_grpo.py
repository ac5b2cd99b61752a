"""Who draws the pictures of a round of notebook 02."""

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
