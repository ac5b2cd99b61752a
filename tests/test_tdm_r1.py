"""Notebook 39: its formulas against closed forms, and who pulls whom, with networks of one number."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rlgenkit import optimizers
from tests.notebook_code import definitions

book = definitions("39")
SPACE = book.three_steps.__globals__


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# --- formulas


def test_noising_further_keeps_the_marginal():
    clean, n = 3.0, 200_000
    first, second = (torch.randn(n, 1, generator=seeded(k)) for k in (1, 2))
    level, later = torch.full((n,), 0.25), torch.full((n,), 0.6)
    found = book.renoise_from(0.75 * clean + 0.25 * first, level, later, second)
    assert found.mean().item() == pytest.approx(0.4 * clean, abs=5e-3)
    assert found.std().item() == pytest.approx(0.6, abs=5e-3)


def test_velocity_target_is_the_derivative_of_the_noised_state():
    state, noise = (torch.randn(5, 3, generator=seeded(k)).double() for k in (3, 4))
    level = torch.tensor([0, 0.1, 0.25, 0.5, 0.7]).double()
    later = (level + 0.2).requires_grad_(True)
    noised = book.renoise_from(state, level, later, noise)
    wanted = [
        torch.autograd.grad(noised[:, k].sum(), later, retain_graph=True)[0] for k in range(3)
    ]
    found = book.velocity_target(state, level, later, noise)
    torch.testing.assert_close(found, torch.stack(wanted, 1))


def test_velocity_target_averages_to_the_velocity_of_the_data():
    """Data at one point: the mean target given the noised state is that of the exact flow."""
    point, n = 2.0, 400_000
    draws = [torch.randn(n, 1, generator=seeded(k)) for k in (5, 6)]
    level, later = torch.full((n,), 0.5), torch.full((n,), 0.8)
    state = 0.5 * point + 0.5 * draws[0]
    noised = book.renoise_from(state, level, later, draws[1])
    target = book.velocity_target(state, level, later, draws[1])
    exact = (noised - point) / 0.8
    for low in (-1.0, 0.0, 1.0):
        rows = ((noised > low) & (noised < low + 0.5))[:, 0]
        assert (target - exact)[rows].mean().item() == pytest.approx(0, abs=0.05)


def test_group_loss_has_the_gradient_of_bradley_terry():
    errors = (1 + 0.3 * torch.randn(12, generator=seeded(7))).double().requires_grad_(True)
    reference = errors.detach() + 0.3 * torch.randn(12, generator=seeded(8))
    groups, beta = torch.arange(12) % 3, 2.5
    advantages = torch.randn(12, generator=seeded(9)).double()
    for group in range(3):
        advantages[groups == group] -= advantages[groups == group].mean()
    weights = book.group_weights(advantages, errors, reference, groups, beta)
    terms = book.surrogate_terms(errors, errors, advantages, weights, 1e9)
    found = torch.autograd.grad(terms.sum() / 4, errors)[0]
    loss = torch.zeros((), dtype=torch.double)
    for group in range(3):
        rows = groups == group
        score = beta * (reference - errors)[rows]  # the surrogate reward
        good, bad = advantages[rows] > 0, advantages[rows] < 0
        size = advantages[rows].abs() / 4
        gap = (size * score)[good].sum() - (size * score)[bad].sum()
        loss = loss - torch.nn.functional.logsigmoid(gap)
    wanted = torch.autograd.grad(loss, errors)[0]
    torch.testing.assert_close(beta * found, wanted)


@pytest.mark.parametrize("advantage, moved, silent", [
    (1.0, -0.1, True), (1.0, 0.1, False), (-1.0, 0.1, True), (-1.0, -0.1, False)])  # fmt: skip
def test_what_has_moved_far_enough_is_silent(advantage, moved, silent):
    before = torch.ones(2)
    errors = (before + torch.tensor([moved, 0.0])).requires_grad_(True)
    advantages, weights = torch.tensor([advantage, -advantage]), torch.full((2,), 0.5)
    terms = book.surrogate_terms(errors, before, advantages, weights, 0.05)
    slope = torch.autograd.grad(terms.sum(), errors)[0]
    assert (slope[0].item() == 0) is silent and slope[1].item() != 0


def test_descent_goes_along_the_pull_and_reaches_the_guess_alone():
    guess, pull, size = torch.zeros(2, 3), torch.randn(2, 3, generator=seeded(1)), torch.ones(2) * 2
    for part in (guess, pull, size):
        part.requires_grad_(True)
    loss = book.pulled_terms(guess, pull, size).sum()
    found = torch.autograd.grad(loss, (guess, pull, size), allow_unused=True)
    torch.testing.assert_close(found[0], -2 * pull.detach() / 3 / 2)
    assert found[1] is None and found[2] is None


def test_levels_lie_above_the_state_and_the_floor_and_groups_share_them():
    after = torch.tensor([0.0, 0.5, 0.5, 0.75]).repeat(500)
    groups = torch.arange(2000) % 4
    for shift in (1.0, 3.0):
        level = book.draw_levels(after, 0.3, shift, seeded(1))
        low = 0.3 * shift / (1 + (shift - 1) * 0.3)
        assert (level > after).all() and level.max() <= 1 and level.min() >= low - 1e-6
        shared = book.draw_levels(after, 0.3, shift, seeded(2), groups)
        assert all(shared[groups == g].unique().numel() == 1 for g in range(4))
    near_end = book.draw_levels(torch.zeros(20_000), 0.0, 1.0, seeded(3))
    assert near_end.mean().item() == pytest.approx(0.51, abs=0.01)


def test_states_of_a_group_lie_before_and_after_one_step():
    levels = torch.tensor([1, 0.75, 0.5, 0.25, 0])
    clean, noise = torch.randn(2, 8, 3, generator=seeded(4))
    states = torch.stack([(1 - level) * clean + level * noise for level in levels])
    groups = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    counts = torch.zeros(4)
    for k in range(300):
        picked = book.pick_states(states, levels, groups, torch.arange(8.0), ["a"] * 8, seeded(k))
        assert (picked.step[::2] == picked.step[1::2]).all()
        torch.testing.assert_close(picked.guess, clean)  # a straight path
        rows = torch.arange(8)
        assert torch.equal(picked.state, states[picked.step, rows])
        assert torch.equal(picked.moved, states[picked.step + 1, rows])
        assert torch.equal(picked.after, levels[picked.step + 1])
        counts += torch.bincount(picked.step[::2], minlength=4)
    torch.testing.assert_close(counts / 1200, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.05, rtol=0)
    some = picked.rows(torch.tensor([4, 5, 2, 3]))
    assert some.groups.tolist() == [1, 1, 0, 0] and some.advantages.tolist() == [4.0, 5, 2, 3]


# --- who pulls whom: networks whose data lie at one point, the only weight


def point_flow(point):
    """The exact flow to data at one point."""
    return lambda x, level: (x - point) / level[:, None]


@pytest.fixture
def toy():
    """Three networks at 0, the teacher at 0, and paths that end at -1 and 1."""
    points = {name: torch.nn.Parameter(torch.zeros(1)) for name in ("student", "surrogate", "fake")}
    fixed = {name: torch.zeros(1) for name in ("teacher", "free", "reference")}

    def flows_of(texts):
        flows = {name: point_flow(point) for name, point in {**points, **fixed}.items()}
        flows["guided surrogate"] = flows["surrogate"]
        return flows

    nets = {name: book.Learner([point], torch.optim.SGD([point], 0.05))
            for name, point in points.items()}  # fmt: skip
    ends = torch.tensor([1.0, -1.0]).repeat(32)[:, None]
    return SimpleNamespace(points=points, fixed=fixed, flows_of=flows_of, nets=nets, ends=ends)


def paths_to(ends, advantages, step=3):
    """Picked paths to `ends` [64, 1]; step 3 ends at level 0."""
    levels = torch.tensor([1, 0.75, 0.5, 0.25, 0])
    noise = torch.randn(ends.shape, generator=seeded(1))
    now, after = levels[step].expand(len(ends)), levels[step + 1].expand(len(ends))
    state, moved = ((1 - x)[:, None] * ends + x[:, None] * noise for x in (now, after))
    groups, steps = torch.zeros(len(ends), dtype=torch.long), torch.full((len(ends),), step)
    return book.Picked(state, moved, ends, now, after, steps, groups, advantages, ["a"] * len(ends))


def update(toy, picked, recipe, times=1):
    graded = "student" if recipe.direct else "surrogate"
    old = optimizers.Ema(toy.nets[graded].parameters)
    for number in range(times):
        book.three_steps(toy.nets, old, toy.flows_of, picked, seeded(number), recipe, number)
    return {name: point.item() for name, point in toy.points.items()}


FREE = book.Recipe(clip=1e9, leash=1e9)
GOOD_UP = torch.tensor([1.0, -1.0]).repeat(32)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("step", [1, 3])
def test_the_surrogate_goes_where_the_good_paths_end(toy, sign, step):
    picked = paths_to(toy.ends, sign * GOOD_UP, step)
    found = update(toy, picked, replace(FREE, trained=("surrogate",)), 5)
    assert sign * found["surrogate"] > 1e-3 and found["student"] == found["fake"] == 0


def test_without_advantages_the_surrogate_returns_to_the_teacher(toy):
    with torch.no_grad():
        toy.points["surrogate"].fill_(0.5)
    found = update(toy, paths_to(toy.ends, 0 * GOOD_UP), replace(FREE, trained=("surrogate",)), 5)
    assert 0 < found["surrogate"] < 0.5


def test_the_fake_score_goes_where_the_student_draws(toy):
    picked = paths_to(0 * toy.ends + 0.7, 0 * GOOD_UP, step=1)
    found = update(toy, picked, replace(FREE, trained=("fake",)), 20)
    assert 0.1 < found["fake"] < 0.9 and found["student"] == found["surrogate"] == 0


@pytest.mark.parametrize(
    "mover, sign", [("teacher", 1), ("fake", -1), ("surrogate", 1), ("free", -1)]
)
def test_the_student_is_pulled_by_each_network_in_its_direction(toy, mover, sign):
    place = toy.fixed.get(mover, toy.points.get(mover))
    with torch.no_grad():
        place.fill_(0.5)
        if mover == "teacher":  # guidance and surrogate are relative to it
            toy.fixed["free"].fill_(0.5)
            toy.points["surrogate"].fill_(0.5)
    recipe = replace(FREE, guidance=2.0, trained=("student",))
    found = update(toy, paths_to(toy.ends, GOOD_UP), recipe)
    assert sign * found["student"] > 1e-3


def test_a_surrogate_at_the_teacher_pulls_by_its_guidance_only(toy):
    flows = toy.flows_of([""])
    flows["guided surrogate"] = point_flow(torch.ones(1))
    picked = paths_to(toy.ends, GOOD_UP)
    guess = picked.guess
    pulls, guided, learned = book.pulls_on(flows, guess, picked.moved, picked, seeded(1), FREE)
    torch.testing.assert_close(pulls["rl"], torch.ones(64, 1))
    assert pulls["kl"].abs().max() < 1e-5 and guided.abs().max() < 1e-5
    torch.testing.assert_close(learned, torch.ones(64, 1))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_direct_loss_moves_the_student_itself(toy, sign):
    recipe = replace(FREE, direct=True, kl=0.0, trained=("student",))
    found = update(toy, paths_to(toy.ends, sign * GOOD_UP), recipe)
    assert sign * found["student"] > 1e-3 and found["surrogate"] == 0


def test_without_a_fake_score_the_teacher_pulls_from_the_guess(toy):
    with torch.no_grad():
        toy.points["fake"].fill_(9.0)  # nobody asks it
    picked, recipe = paths_to(toy.ends, GOOD_UP), replace(FREE, faked=False)
    guess = picked.guess + 0.25
    pulls, _, _ = book.pulls_on(toy.flows_of(""), guess, picked.moved, picked, seeded(1), recipe)
    torch.testing.assert_close(pulls["kl"], -guess, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("place, stands", [(0.5, True), (-0.5, False)])
def test_beyond_the_leash_only_what_is_wrong_is_mended(toy, place, stands):
    """The good paths end at 1: a surrogate at 0.5 is right and goes no further, one at -0.5 is wrong."""
    with torch.no_grad():
        toy.points["surrogate"].fill_(place)
    recipe = replace(FREE, leash=0.01, trained=("surrogate",))
    flows, old = toy.flows_of(""), optimizers.Ema(toy.nets["surrogate"].parameters)
    picked = paths_to(toy.ends, GOOD_UP)
    loss = book.group_loss("surrogate", flows, old, picked, seeded(1), recipe)
    left = book.group_loss(
        "surrogate", flows, old, replace(picked, advantages=0 * GOOD_UP), seeded(1), recipe
    )
    silenced = (loss - left).abs() < 1e-9
    assert silenced.float().mean() > 0.6 if stands else silenced.float().mean() < 0.4


@pytest.mark.parametrize("shared", [True, False])
def test_a_group_shares_its_noise_or_not(toy, shared):
    seen, flows = [], toy.flows_of("")
    flows["reference"] = lambda x, level: seen.append(x) or x
    same = torch.ones(64, 1)
    picked = paths_to(same, GOOD_UP)
    old = optimizers.Ema(toy.nets["surrogate"].parameters)
    book.group_loss("surrogate", flows, old, picked, seeded(1), replace(FREE, shared=shared))
    assert (seen[0].unique().numel() == 1) is shared


def test_a_moving_reference_is_the_averaged_network(toy):
    """Old and new weights are equal at first, so the weight is one half wherever the teacher is."""
    toy.fixed["reference"] = torch.full((1,), 5.0)
    picked = paths_to(toy.ends, GOOD_UP)
    old = optimizers.Ema(toy.nets["surrogate"].parameters)
    found = []
    for moving in (True, False):
        recipe = replace(FREE, moving=moving, beta=50.0)
        loss = book.group_loss("surrogate", toy.flows_of(""), old, picked, seeded(1), recipe)
        found.append(loss.detach())
    toy.fixed["reference"] = torch.zeros(1)
    recipe = replace(FREE, beta=0.0)
    half = book.group_loss("surrogate", toy.flows_of(""), old, picked, seeded(1), recipe).detach()
    anchor = 1e-3 * (toy.fixed["reference"] - 5.0).square()
    assert (found[0] - half).std() < 0.02 + anchor.item() and not torch.allclose(found[0], found[1])


def test_edges_of_blurred_pictures_are_wider_however_many_there_are():
    pictures = torch.zeros(2, 3, 32, 32)
    pictures[0, :, 8:16, 8:16] = 1
    pictures[1, :, 8:16, 8:16] = pictures[1, :, 20:28, 4:12] = pictures[1, :, 4:12, 20:28] = 1
    sharp = book.edge_sharpness(pictures)
    torch.testing.assert_close(sharp[0], sharp[1], rtol=0.05, atol=0)
    blurred = book.edge_sharpness(torch.nn.functional.avg_pool2d(pictures, 3, 1, 1))
    assert (blurred < 0.7 * sharp).all()


def test_the_student_never_sees_the_advantages_but_through_the_surrogate(toy):
    recipe, moved = replace(FREE, trained=("student",)), []
    with torch.no_grad():
        toy.points["surrogate"].fill_(0.5)
    for sign in (1.0, -1.0):
        with torch.no_grad():
            toy.points["student"].zero_()
        moved.append(update(toy, paths_to(toy.ends, sign * GOOD_UP), recipe)["student"])
    assert moved[0] == moved[1] != 0


@pytest.mark.parametrize("number, decay", [(0, 0.001), (99, 0.1), (1000, 0.3)])
def test_averaged_weights_follow_the_graded_network(toy, number, decay):
    old = optimizers.Ema(toy.nets["surrogate"].parameters)
    picked = paths_to(toy.ends, GOOD_UP)
    recipe = replace(FREE, trained=("surrogate",))
    book.three_steps(toy.nets, old, toy.flows_of, picked, seeded(0), recipe, number)
    now = toy.points["surrogate"].item()
    assert old.averages[0].item() == pytest.approx((1 - decay) * now, rel=1e-4)


def test_chunks_of_whole_groups_change_nothing(toy, monkeypatch):
    picked = paths_to(toy.ends, GOOD_UP)
    picked = replace(picked, groups=torch.arange(64) // 16)
    slopes = []
    for chunk in (64, 16):
        draws = torch.full((64,), 0.6)
        monkeypatch.setitem(SPACE, "draw_levels", lambda after, *rest: draws[: len(after)])
        monkeypatch.setitem(
            SPACE, "fresh_noise", lambda like, generator: torch.full_like(like, 0.3)
        )
        toy.points["surrogate"].grad = None
        recipe = replace(FREE, chunk=chunk)
        old = optimizers.Ema(toy.nets["surrogate"].parameters)
        learner = SimpleNamespace(
            parameters=[toy.points["surrogate"]],
            optimizer=SimpleNamespace(zero_grad=lambda: None, step=lambda: None),
        )

        def loss_of(part):
            return book.group_loss("surrogate", toy.flows_of(""), old, part, seeded(0), recipe)

        book.descend(learner, picked, loss_of, recipe)
        slopes.append(toy.points["surrogate"].grad.clone())
    torch.testing.assert_close(*slopes)


def test_lead_is_positive_where_the_surrogate_ranks_as_the_reward_does(toy):
    with torch.no_grad():
        toy.points["surrogate"].fill_(0.5)
    leads = [
        book.lead_of(toy.flows_of(""), paths_to(toy.ends, sign * GOOD_UP), seeded(2), FREE)
        for sign in (1.0, -1.0)
    ]
    assert leads[0] > 0.01 and leads[1] == pytest.approx(-leads[0])


# --- a round of pictures


@pytest.mark.parametrize("sham, alone", [(False, False), (True, False), (False, True)])
def test_a_round_hands_over_the_rewards_of_its_own_pictures(monkeypatch, sham, alone):
    seen, logged = [], {}
    scores = torch.tensor([0.0, 0.2, 0.9, 1.0, 0.5, 0.5, 0.5, 0.5])
    groups = torch.arange(8) // 4
    rollout = SimpleNamespace(
        output=torch.zeros(8), groups=groups,
        prompts=[SimpleNamespace(text="a")] * 8,
        path=SimpleNamespace(trajectory=SimpleNamespace(latents=torch.randn(5, 8, 2))),
    )  # fmt: skip
    given = {
        "p": SimpleNamespace(groups=2, group_size=4, passes=2, lessons=3, exam_every=3),
        "run": SimpleNamespace(log=lambda step, **values: logged.update(values)),
        "FOUR": SimpleNamespace(sigma=torch.tensor([1, 0.75, 0.5, 0.25, 0])),
        "ask": lambda n, generator: ["a"] * n,
        "reward_of": lambda images, prompts: scores,
        "flows_of_team": lambda team, texts: None,
        "lead_of": lambda *rest: 0.0,
        "three_steps": lambda nets, old, flows, picked, generator, recipe, number: seen.append(
            (picked, number)
        ),
    }
    for name, value in given.items():
        monkeypatch.setitem(SPACE, name, value)
    team = {"student": SimpleNamespace(sample=lambda prompts, generator, copies: rollout)}
    recipe = book.Recipe(trained=("surrogate",)) if alone else book.Recipe()
    book.one_round(3, team, None, None, seeded(5), recipe, sham)
    wanted = optimizers.group_advantages(scores, groups, "batch")
    assert [number for _, number in seen] == ([9, 10, 11] if alone else [9, 10])
    for picked, _ in seen:
        same = torch.allclose(picked.advantages, wanted, atol=1e-5)
        assert same is not sham
        order = picked.advantages[:4].sort().values
        torch.testing.assert_close(order, wanted[:4].sort().values)
        assert picked.advantages[4:].abs().max() < 1e-6
    assert torch.equal(logged["reward"], scores) and logged["dead"].item() == 0.5


def test_auc_counts_pairs_within_groups():
    scores = torch.tensor([0.9, 0.1, 0.5, 0.2, 0.2, 0.8])
    right = torch.tensor([True, False, True, False, True, False])
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    # group 0: both right ones above the wrong one; group 1: a tie and one below
    assert book.auc_within(scores, right, groups) == pytest.approx(2.5 / 4)
    assert math.isnan(book.auc_within(scores, torch.ones(6).bool(), groups))


def test_favorites_are_the_highest_scores_of_each_group():
    scores = torch.tensor([0.9, 0.1, -0.5, -0.2, 0.2, 0.8])
    right = torch.tensor([True, False, False, True, False, False])
    groups = torch.tensor([0, 1, 2, 2, 1, 0])
    # 0: the first picture, right; 1: the fifth, wrong; 2: the fourth, right
    assert book.favorites_right(scores, right, groups) == pytest.approx(2 / 3)


# --- the small world


@pytest.fixture
def plane(monkeypatch):
    angles = torch.arange(6) * math.pi / 3
    centers = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    monkeypatch.setitem(SPACE, "CENTERS", centers)
    monkeypatch.setitem(SPACE, "PLANE_LEVELS", torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))
    return centers


def test_exact_clean_is_the_posterior_mean(plane):
    """By brute force: two million points of data, weighed by how well they explain x."""
    generator = seeded(1)
    kind = torch.randint(6, (400_000,), generator=generator)
    data = plane[kind] + 0.2 * torch.randn(400_000, 2, generator=generator)
    for x, level in (((0.5, 0.3), 0.6), ((1.2, -0.4), 0.3)):
        x = torch.tensor([x])
        odds = (-(x - (1 - level) * data).square().sum(1) / (2 * level**2)).softmax(0)
        wanted = (odds[:, None] * data).sum(0)
        found = book.exact_clean(x, torch.tensor([level]))[0]
        torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)


def test_networks_of_the_plane_start_exact_and_do_not_mix_runs(plane):
    net = book.PlaneNet(2, seeded(1))
    x, level = torch.randn(10, 2, generator=seeded(2)), torch.full((10,), 0.5)
    torch.testing.assert_close(net(x, level), book.exact_flow(x, level))
    with torch.no_grad():
        net.out += torch.randn(net.out.shape, generator=seeded(3))
    slope = torch.autograd.grad(net(x, level)[:5].sum(), net.out)[0]
    assert slope[0].abs().max() > 0 and slope[1].abs().max() == 0


def test_euler_paths_have_one_end_and_stochastic_ones_many(plane):
    start = torch.randn(4, 2, generator=seeded(1))
    one, two = (book.plane_paths(book.exact_flow, start, seeded(k))[0] for k in (2, 3))
    assert torch.equal(one, two)
    levels = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    x = start
    for now, after in zip(levels[:-1], levels[1:]):
        x = x - (now - after) * book.exact_flow(x, now.expand(4))
    torch.testing.assert_close(one[-1], x, atol=1e-4, rtol=1e-4)
    first, second = (
        book.plane_paths(book.exact_flow, start, seeded(k), stochastic=True)[0] for k in (2, 3)
    )
    assert not torch.equal(first[-1], second[-1])
    assert len(book.plane_paths(book.exact_flow, start, seeded(1), first=3)[0]) == 2


def test_open_share_splits_the_variance():
    rewards = torch.rand(7, 9, generator=seeded(1)) + torch.rand(7, 1, generator=seeded(2))
    decided = rewards.mean(1).var(correction=0) / rewards.var(correction=0)
    assert book.open_share(rewards).item() == pytest.approx(1 - decided.item(), abs=1e-5)


@pytest.mark.parametrize("kind", ["", "sham", "stochastic"])
def test_a_round_of_the_plane_compares_within_runs(plane, monkeypatch, kind):
    seen = []
    monkeypatch.setitem(SPACE, "POINTS", 64)
    monkeypatch.setitem(
        SPACE, "three_steps", lambda nets, old, flows, picked, *rest: seen.append(picked)
    )
    networks = {
        name: book.PlaneNet(3, seeded(k)) for k, name in enumerate(("student", "surrogate"))
    }
    recipe = book.Recipe(stochastic=kind == "stochastic")
    found = book.plane_round(networks, None, None, recipe, 0, seeded(4), kind == "sham")
    (picked,) = seen
    assert found.shape == (2, 3) and picked.groups.tolist() == [i // 16 for i in range(192)]
    for group in range(12):
        assert picked.advantages[picked.groups == group].mean().abs() < 1e-4
    if kind != "stochastic":
        expected = picked.state - picked.now[:, None] * networks["student"](
            picked.state, picked.now
        )
        torch.testing.assert_close(picked.guess, expected.detach(), atol=1e-4, rtol=1e-3)
    # at the last step the state is the picture: its reward is the advantage's sign
    last = picked.step == 3
    good = book.in_region(picked.moved) > 0
    if kind == "" and last.any():
        assert (picked.advantages[last & good] > 0).all()
        assert (picked.advantages[last & ~good] <= 0).all()
