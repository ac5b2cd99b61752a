"""SePPO: signs, one loss for four methods, checkpoints, votes, and the small world of notebook 33."""

import math
from types import SimpleNamespace

import pytest
import torch

from rlgenkit import optimizers
from tests.notebook_code import definitions

nb = definitions("33")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def changes(count: int = 30) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Changes on winners and references, with gradients, and signs of 1, 0 and -1."""
    made = 0.02 * torch.randn(2, count, generator=seeded(1), dtype=torch.float64)
    sign = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64).repeat(count // 3)
    return made[0].requires_grad_(True), made[1].requires_grad_(True), sign


# --- the loss and its signs


def test_terms_and_slopes_have_their_closed_form():
    """Slope beta sigmoid(beta margin) on the winner, times minus the sign on the reference."""
    winner, reference, sign = changes()
    terms = nb.signed_terms(winner, reference, sign, 80.0)
    margin = (winner - sign * reference).detach()
    assert torch.allclose(terms, torch.log1p((80.0 * margin).exp()))
    terms.sum().backward()
    weight = 80.0 / (1 + (-80.0 * margin).exp())
    assert torch.allclose(winner.grad, weight)
    assert torch.allclose(reference.grad, -sign * weight)


@pytest.mark.parametrize("constant", [1.0, 0.0, -1.0])
def test_one_function_is_the_kits_loss_for_every_sign(constant):
    winner, reference, _ = changes()
    sign = torch.full((30,), constant)
    mine = nb.signed_terms(winner.float(), reference.float(), sign, 500.0)
    kit = optimizers.preference_denoising_terms(winner, reference, 500.0, sign)
    assert torch.allclose(mine, kit, atol=1e-6)


def test_a_flip_fades_when_both_errors_have_fallen_and_a_loser_when_its_error_has_risen():
    def weight(winner, reference, sign):
        x = torch.tensor([winner], requires_grad=True)
        nb.signed_terms(x, torch.tensor([reference]), torch.tensor([sign]), 100.0).backward()
        return x.grad.item()

    assert weight(-0.05, -0.05, -1.0) < 0.01 < weight(0.0, 0.0, -1.0)
    assert weight(0.0, 0.05, 1.0) < 1 < weight(0.0, -0.05, 1.0)


def test_the_anchor_looks_at_winners_only_and_passes_no_gradient():
    past, now = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.5, 2.0, 1.0], requires_grad=True)
    sign = nb.anchor_sign(past, now)
    assert sign.tolist() == [1, -1, 0] and not sign.requires_grad
    assert nb.sign_vector("anchor", past, now).tolist() == [1, -1, 0]
    assert nb.sign_vector("indicator", past, now).tolist() == [1, 0, 0]
    assert nb.sign_vector("none", past, now).tolist() == [1, 1, 1]


def test_the_sham_permutes_signs_and_nothing_else():
    past, now = torch.rand(64, generator=seeded(2)), torch.rand(64, generator=seeded(3))
    right = nb.signs_of(nb.Arm("", 1.0, "anchor"), past, now, seeded(4))
    mixed = nb.signs_of(nb.Arm("", 1.0, "anchor", mixed=True), past, now, seeded(4))
    assert torch.equal(right, (past - now).sign())
    assert torch.equal(right.sort().values, mixed.sort().values)
    assert (right == mixed).float().mean() < 0.8


# --- checkpoints


def test_checkpoints_are_first_latest_or_any_with_equal_chances():
    generator = seeded(5)
    drawn = [nb.which_checkpoint("random", 4, generator) for _ in range(4000)]
    shares = torch.tensor(drawn).bincount(minlength=4) / 4000
    assert (shares - 0.25).abs().max() < 0.03
    assert {nb.which_checkpoint("first", n, generator) for n in (1, 4, 7)} == {0}
    assert [nb.which_checkpoint("latest", n, generator) for n in (1, 4, 7)] == [0, 3, 6]


def test_a_worn_checkpoint_is_taken_off_again_even_after_an_error():
    net = torch.nn.Linear(3, 1)
    policy = SimpleNamespace(parameters=list(net.parameters()))
    x, own = torch.randn(5, 3, generator=seeded(6)), [w.detach().clone() for w in net.parameters()]
    past = [torch.ones_like(w) for w in own]
    with torch.no_grad(), nb.wearing(policy, past):
        assert torch.allclose(net(x)[:, 0], x.sum(1) + 1)
    with pytest.raises(RuntimeError), nb.wearing(policy, past):
        raise RuntimeError
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), own))


def test_a_graph_keeps_the_weights_with_which_it_was_made():
    """A checkpoint that is worn between forward and backward leaves the gradient alone."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    policy, x = SimpleNamespace(parameters=list(net.parameters())), torch.randn(5, 3)
    wanted = torch.autograd.grad(net(x).sum(), policy.parameters)
    out = net(x).sum()
    with torch.no_grad(), nb.wearing(policy, [torch.ones_like(w) for w in policy.parameters]):
        net(x)
    found = torch.autograd.grad(out, policy.parameters)
    assert all(torch.allclose(a, b) for a, b in zip(found, wanted))


# --- an update, on a model of one number


@pytest.fixture
def toy(monkeypatch):
    """Student with two checkpoints, archive, and the draws of every call of `errors`."""
    calls = []

    def errors(policy, clean, prompts, t, noise):
        calls.append((clean, prompts, t, noise))
        guess = policy.parameters[0] * (clean + 0.01 * t[:, None] * noise)
        return (guess - noise).square().mean(1)

    space = nb.preference_loss.__globals__
    monkeypatch.setitem(space, "errors", errors)
    monkeypatch.setitem(space, "levels", torch.zeros(100))
    monkeypatch.setitem(space, "p", SimpleNamespace(beta=3.0, batch=6))
    made = torch.randn(4, 12, 5, generator=seeded(20))
    names = [f"caption {i}" for i in range(12)]
    archive = nb.Archive(names, made[0], made[1])
    pool = [
        {"weights": [torch.tensor([w])], "latents": x} for w, x in ((0.2, made[2]), (0.3, made[3]))
    ]
    weight = torch.nn.Parameter(torch.tensor([0.5]))
    policy = SimpleNamespace(parameters=[weight])
    student = nb.Student(policy, torch.optim.SGD([weight], 0.1), seeded(21), pool)
    return SimpleNamespace(student=student, archive=archive, calls=calls, errors=errors)


def arm(**kw):
    return nb.Arm("", 1.0, **kw)


@pytest.mark.parametrize(
    "kw",
    [
        {},
        {"rule": "anchor"},
        {"rule": "indicator"},
        {"rule": "anchor", "mixed": True},
        {"rule": "anchor", "reference": "latest"},
        {"reference": "first", "losers": True},
    ],
)
def test_a_preference_loss_is_the_loop_over_its_rows(toy, kw):
    rows = torch.tensor([3, 0, 7, 11, 5, 2])
    loss, watched = nb.preference_loss(arm(**kw), toy.student, toy.archive, rows)
    (_, names, t, noise), (_, _, t_past, noise_past) = toy.calls
    assert torch.equal(t, t_past) and torch.equal(noise, noise_past)  # both models, same draws
    assert torch.equal(t[:6], t[6:]) and torch.equal(noise[:6], noise[6:]) == bool(kw.get("losers"))
    assert names == [toy.archive.prompts[i] for i in rows.tolist()] * 2
    dice = seeded(21)  # the same draws once more
    number = nb.which_checkpoint(kw.get("reference", "random"), 2, dice)
    torch.randint(100, (6,), generator=dice), torch.randn(12, 5, generator=dice)
    checkpoint, gaps, signs = toy.student.pool[number], [], []
    worn = SimpleNamespace(parameters=checkpoint["weights"])
    for i, row in enumerate(rows.tolist()):
        gap = []
        for k, clean in ((i, toy.archive.winners[row]), (6 + i, checkpoint["latents"][row])):
            draws = clean[None], [""], t[k : k + 1], noise[k : k + 1]
            gap.append((toy.errors(toy.student.policy, *draws) - toy.errors(worn, *draws)).item())
        gaps.append(gap)
        better = 1.0 if gap[0] < 0 else -1.0
        signs.append({"anchor": better, "indicator": max(better, 0.0)}.get(kw.get("rule"), 1.0))
    if kw.get("mixed"):
        signs = [signs[i] for i in torch.randperm(6, generator=dice).tolist()]
    margins = [w - s * r for (w, r), s in zip(gaps, signs)]
    by_hand = sum(math.log1p(math.exp(3.0 * margin)) for margin in margins) / 6
    assert loss.item() == pytest.approx(by_hand, rel=1e-4)
    assert watched["flips"].item() == pytest.approx(sum(s < 0 for s in signs) / 6)
    weights = [1 / (1 + math.exp(-3.0 * margin)) for margin in margins]
    assert watched["weight"].item() == pytest.approx(sum(weights) / 6, rel=1e-4)
    assert watched["winner"].item() == pytest.approx(
        sum(w for w, _ in gaps) / 6, rel=1e-3, abs=1e-6
    )
    assert {s for s in signs} == {-1.0, 1.0} or kw.get("rule") != "anchor"  # the case has both


def test_sft_is_the_mean_error_of_winners_and_an_update_moves_down_its_slope(toy):
    loss, _ = nb.sft_loss(toy.student, toy.archive, torch.arange(6))
    clean, names, t, noise = toy.calls[0]
    assert torch.equal(clean, toy.archive.winners[:6]) and names == toy.archive.prompts[:6]
    assert loss.item() == pytest.approx(
        toy.errors(toy.student.policy, clean, names, t, noise).mean().item()
    )
    before = toy.student.policy.parameters[0].item()
    nb.update(arm(rule="sft"), toy.student, toy.archive)
    weight = toy.student.policy.parameters[0]
    assert weight.item() == pytest.approx(before - 0.1 * weight.grad.item())
    assert 0 < abs(weight.grad.item()) <= 1 + 1e-5  # clipped


def test_a_snapshot_is_a_copy_with_pictures_of_its_own_or_the_losers(toy):
    final = torch.randn(12, 5, generator=seeded(22))
    path = SimpleNamespace(trajectory=SimpleNamespace(final=final))
    toy.student.policy.sample = lambda prompts, generator: SimpleNamespace(path=path)
    nb.snapshot(toy.student, arm(), toy.archive)
    nb.snapshot(toy.student, arm(losers=True), toy.archive)
    drawn, lost = toy.student.pool[2:]
    with torch.no_grad():
        toy.student.policy.parameters[0] += 1
    assert drawn["weights"][0].item() == 0.5
    assert torch.equal(drawn["latents"], final)
    assert torch.equal(lost["latents"], toy.archive.losers)


# --- votes


def test_chances_are_a_softmax_with_a_floor():
    worths = torch.randn(6, 5, generator=seeded(7))
    found = nb.chances(worths, 0.5, 0.2)
    by_hand = torch.zeros(6, 5)
    for i in range(6):
        weights = [math.exp(worths[i, j].item() / 0.5) for j in range(5)]
        for j in range(5):
            by_hand[i, j] = 0.8 * weights[j] / sum(weights) + 0.2 / 5
    assert torch.allclose(found, by_hand, atol=1e-5)
    assert torch.allclose(nb.chances(worths, 0.5, 1.0), torch.full((6, 5), 0.2))


def test_winners_come_with_their_chances_and_losers_are_others():
    worths = torch.tensor([[0.0, 1.0, 2.0, 0.5, -1.0]]).repeat(20_000, 1)
    winner, loser = nb.elect(worths, seeded(8), 1.0, 0.2)
    shares = winner.bincount(minlength=5) / len(winner)
    assert (shares - nb.chances(worths[:1], 1.0, 0.2)[0]).abs().max() < 0.02
    assert (winner != loser).all()
    others = loser[winner == 2].bincount(minlength=5)[[0, 1, 3, 4]].float()
    assert (others / others.sum() - 0.25).abs().max() < 0.03


def test_the_audit_counts_what_loops_count():
    sign = torch.randint(-1, 2, (50,), generator=seeded(9)).float()
    worth, own = torch.randn(2, 50, generator=seeded(10))
    hits = flips = good = 0
    for s, a, b in zip(sign.tolist(), worth.tolist(), own.tolist()):
        flips, good, hits = flips + (s < 0), good + (a >= b), hits + (s < 0 and a >= b)
    assert torch.allclose(
        nb.flip_precision(sign, worth, own), torch.tensor([hits / flips, good / 50])
    )
    assert nb.flip_precision(torch.ones(50), worth, own)[0].isnan()  # no flip, no share


# --- the small world


def odd_clouds(models: int = 2) -> torch.Tensor:
    return nb.ring() + 0.3 * torch.randn(models, nb.CLOUDS, 3, generator=seeded(11))


def test_expected_worth_is_the_integral_over_the_plane():
    clouds, step = odd_clouds(), 0.05
    axis = torch.arange(-5, 5, step)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(1, -1, 2)
    for model in clouds:
        share = model[:, 0].softmax(0)
        far = (grid[0][:, None] - model[:, 1:]).square().sum(2)
        density = (share * torch.exp(-far / (2 * nb.WIDE**2))).sum(1) / (2 * math.pi * nb.WIDE**2)
        total = (density * nb.small_worth(grid)[0]).sum() * step**2
        assert total.item() == pytest.approx(nb.expected_worth(model[None]).item(), abs=1e-4)


def test_samples_have_the_clouds_shares_and_spread():
    clouds = odd_clouds(1)
    x = nb.small_draw(clouds, 40_000, seeded(12))[0]
    mean = (clouds[0, :, 0].softmax(0)[:, None] * clouds[0, :, 1:]).sum(0)
    assert (x.mean(0) - mean).abs().max() < 0.04
    assert nb.small_worth(x).mean().item() == pytest.approx(
        nb.expected_worth(clouds).item(), abs=0.01
    )


def test_the_noise_prediction_is_the_score_and_no_other_predicts_better():
    clouds = odd_clouds(1)
    points = torch.randn(1, 60, 2, generator=seeded(13)).requires_grad_(True)
    level = torch.rand(1, 60, generator=seeded(14)) * 0.9 + 0.05
    (slope,) = torch.autograd.grad(nb.small_log_density(clouds, points, level).sum(), points)
    guess = nb.small_noise(clouds, points, level)
    assert torch.allclose(guess, -(1 - level).sqrt()[..., None] * slope, atol=1e-5)
    clean = nb.small_draw(clouds, 20_000, seeded(15))
    noise, level = torch.randn_like(clean), torch.rand(1, 20_000) * 0.9 + 0.05
    own = nb.small_errors(clouds, clean, level, noise)
    for shift in (0.1, -0.1):
        moved = clouds + shift * torch.tensor([0.0, 1.0, 0.5])
        gap = nb.small_errors(moved, clean, level, noise) - own
        assert gap.mean() > 3 * gap.std() / len(gap[0]) ** 0.5


@pytest.mark.parametrize("rule", ["none", "anchor", "indicator", "shuffled", "oracle"])
def test_a_small_loss_pulls_winners_and_moves_references_by_their_signs(rule):
    """The gradient is that of both errors with the weights and signs of the update."""
    clouds, past = odd_clouds(1).requires_grad_(True), odd_clouds(2)[1:].requires_grad_(True)
    winners, beta = nb.small_draw(odd_clouds(1), nb.EACH, seeded(16)), torch.tensor([[20.0]])
    loss, counts = nb.small_loss(rule, clouds, past, winners, beta, seeded(17))
    (found,) = torch.autograd.grad(loss.sum(), clouds, retain_graph=True)
    assert torch.autograd.grad(loss.sum(), past, allow_unused=True) == (None,)
    generator = seeded(17)  # the same draws once more
    angle = math.pi / 2 * torch.rand(1, nb.EACH, generator=generator)
    level = (angle.cos() ** 2).clamp(1e-4, 1 - 1e-4)
    noises = torch.randn(2, 1, nb.EACH, 2, generator=generator)
    partner = nb.small_draw(past.detach(), nb.EACH, generator)
    fresh = nb.small_draw(clouds.detach(), nb.EACH, generator)
    now, pushed = (
        nb.small_errors(clouds, x, level, noise) for x, noise in zip((winners, partner), noises)
    )
    old, old_pushed = (
        nb.small_errors(past, x, level, noise).detach()
        for x, noise in zip((winners, partner), noises)
    )
    good = nb.small_worth(partner) >= nb.small_worth(fresh)
    better = torch.where(old > now.detach(), 1.0, -1.0)
    mixed = better.gather(1, torch.rand(1, nb.EACH, generator=generator).argsort(1))
    sign = {
        "none": torch.ones(1, nb.EACH), "anchor": better, "indicator": better.clamp(min=0),
        "shuffled": mixed, "oracle": torch.where(good, -1.0, 1.0),
    }[rule]  # fmt: skip
    margin = (now - old) - sign * (pushed - old_pushed)
    weight = 20 * torch.sigmoid(20 * margin).detach()
    (wanted,) = torch.autograd.grad((weight * (now - sign * pushed)).mean(), clouds)
    assert torch.allclose(found, wanted, atol=1e-4, rtol=1e-3)
    flips = (sign < 0).float().mean()
    assert counts[:, 0].tolist() == pytest.approx(
        [flips.item(), good.float().mean().item(), ((sign < 0) & good).float().mean().item()]
    )


def test_imitating_clean_winners_raises_the_exact_worth(monkeypatch):
    p = SimpleNamespace(seed=1, small_updates=40)
    for name in ("small_train", "small_archive"):
        monkeypatch.setitem(getattr(nb, name).__globals__, "p", p)
    track, counts = nb.small_train("sft", "first", 1)
    track = track.view(len(nb.TILTS), len(nb.BETAS), len(nb.RATES), 1, -1)
    assert (track[2, :, 2, 0, -1] > nb.expected_worth(nb.ring()[None]) + 0.1).all()
    assert counts.abs().sum() == 0
