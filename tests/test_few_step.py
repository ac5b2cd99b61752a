"""The recipe of the few-step student, on toys whose answer is known; and the committed student."""

import json

import pytest
import torch

from data.models.evaluate import beside_teacher
from data.models.few_step import train as few
from data.models.recipes import MODELS


def constant(clean):
    """The velocity function of data that lie at one point `clean`."""
    return lambda x, t: (x - clean) / (t.reshape(-1, 1, 1, 1) / 1000)


def states(rows=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 2, 1, 1, generator=generator)
    start = torch.arange(rows) % few.LEVELS
    levels = torch.tensor([1, 0.75, 0.5, 0.25, 0])
    return x, start, levels, generator


def test_noising_further_gives_the_marginal_of_the_later_level():
    generator = torch.Generator().manual_seed(2)
    clean, one = torch.tensor(3.0), torch.ones(200_000)
    first, second = (torch.randn(200_000, 1, 1, 1, generator=generator) for _ in range(2))
    after = (1 - 0.25) * clean + 0.25 * first
    later = few.renoised(after, 0.25 * one, 0.6 * one, second)
    assert later.mean().item() == pytest.approx(0.4 * 3, abs=5e-3)
    assert later.std().item() == pytest.approx(0.6, abs=5e-3)


def test_states_are_those_of_euler_steps():
    x, start, levels, _ = states()
    found = few.rolled(constant(torch.tensor(0.5)), x, start, levels)
    # toward one point Euler is exact: x = (1 - level) point + level noise
    level = levels[start].reshape(-1, 1, 1, 1)
    torch.testing.assert_close(found, (1 - level) * 0.5 + level * x)


def test_forces_point_to_the_guided_teacher_and_from_the_fake_score():
    """With data at one point each, the pull of the student is guided - fake over its own size."""
    x, start, levels, generator = states()
    now, after = levels[start], levels[start + 1]
    guess = torch.tensor(0.0, requires_grad=True)
    velocities = (
        constant(guess),
        constant(torch.tensor(0.25)),
        constant(torch.tensor(1.0)),
        constant(torch.tensor(0.5)),
    )
    pulled, _ = few.losses(velocities, x, now, after, generator)
    (slope,) = torch.autograd.grad(pulled, guess)
    guided = 0.5 + few.GUIDANCE * 0.5
    assert slope.item() == pytest.approx(-2 * (guided - 0.25) / guided, rel=1e-4)


def test_each_loss_reaches_its_own_network_only():
    x, start, levels, generator = states()
    now, after = levels[start], levels[start + 1]
    student, fake = (torch.tensor(0.3, requires_grad=True) for _ in range(2))
    known = constant(torch.tensor(1.0))
    losses = few.losses((constant(student), constant(fake), known, known), x, now, after, generator)
    for loss, own, other in zip(losses, (student, fake), (fake, student)):
        mine, theirs = torch.autograd.grad(loss, (own, other), retain_graph=True, allow_unused=True)
        assert mine.abs() > 1e-3 and theirs is None


def test_fake_score_learns_where_the_student_draws():
    x, start, levels, generator = states(60)
    now, after = levels[start], levels[start + 1]
    student, known = constant(torch.tensor(-2.0)), constant(torch.tensor(-2.0))
    for place, sign in ((-1.0, 1), (-3.0, -1), (-2.0, 0)):
        fake = torch.tensor(place, requires_grad=True)
        _, loss = few.losses((student, constant(fake), known, known), x, now, after, generator)
        (slope,) = torch.autograd.grad(loss, fake)
        assert slope.sign().item() == sign or abs(slope.item()) < 1e-4


def test_captions_come_from_the_split_in_their_shares():
    found = few.captions(64)
    assert {few.split_of(prompt) for prompt in found} == {"train"}
    pairs = [p for p in found if len(p.groups) == 2 and sum(g.count for g in p.groups) > 2]
    assert len(pairs) >= 18


@pytest.mark.skipif(not (MODELS / "few_step" / "student").is_dir(), reason="not trained yet")
def test_student_is_as_good_as_its_card():
    card = json.loads((MODELS / "few_step" / "quality.json").read_text())["beside_teacher"]
    (row,) = beside_teacher(n=40, teacher=False).values()
    assert abs(row["partial"] - card["student, 4 steps, guidance 1"]["partial"]) < 0.15
