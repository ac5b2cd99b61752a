"""Adversarial rewards of notebook 38: closed forms, brute force, libraries, and broken signs."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from rlgenkit import optimizers, rewards, samplers
from tests.notebook_code import definitions

NB = definitions("38")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------ the sampler


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.8, 1.0])
def test_the_step_is_the_kits_and_leaves_the_level_of_the_schedule(eta):
    x0, x1 = torch.randn(2, 5, 7, generator=seeded()).double().unbind(0)
    table = samplers.flow_table(6, "cps", eta)
    for k in range(6):
        now, after = 1 - k / 6, 1 - (k + 1) / 6
        x, v = (1 - now) * x0 + now * x1, x1 - x0
        mean, width = NB.cps_step(x, v, now, after, eta)
        torch.testing.assert_close(
            mean.float(), (table.a[k] * x.float() + table.b[k] * v.float()), atol=1e-5, rtol=1e-4
        )
        assert width == pytest.approx(float(table.std[k]), abs=1e-6)
        kept = ((mean - (1 - after) * x0) / x1).mean()  # on schedule before, so on schedule after
        assert math.hypot(float(kept), width) == pytest.approx(after, abs=1e-9)


def test_without_noise_the_step_is_eulers():
    x, v = torch.randn(2, 3, 4, generator=seeded()).unbind(0)
    mean, width = NB.cps_step(x, v, 0.75, 0.5, 0.0)
    assert width == 0
    torch.testing.assert_close(mean, x - 0.25 * v)


# ------------------------------------------------------------------------------- the losses


def test_hinge_by_hand_and_its_gradient():
    real = torch.tensor([2.0, 0.5, -1.0], requires_grad=True)
    fake = torch.tensor([-3.0, 0.0], requires_grad=True)
    loss = NB.hinge_loss(real, fake)
    assert loss.item() == pytest.approx((0 + 0.5 + 2.0) / 3 / 2 + (0 + 1.0) / 2 / 2)
    loss.backward()
    torch.testing.assert_close(real.grad, torch.tensor([0.0, -1 / 6, -1 / 6]))
    torch.testing.assert_close(fake.grad, torch.tensor([0.0, 1 / 4]))


def test_the_pairwise_loss_is_a_cross_entropy():
    real, fake = (50 * torch.randn(2, 9, generator=seeded())).unbind(0)
    theirs = F.cross_entropy(torch.stack([real, fake], 1), torch.zeros(9, dtype=torch.long))
    torch.testing.assert_close(NB.pairwise_loss(real, fake), theirs)


def test_the_reward_of_the_head_is_what_its_logits_say():
    head = NB.Head(6, seeded(3))
    seen = torch.randn(4, 5, 6, generator=seeded())
    with torch.no_grad():
        single = [[head.layers(seen[i, k])[0].item() for k in range(5)] for i in range(4)]
        expected = [0.7 * row[0] + 0.3 * np.mean(row[1:]) for row in single]
        np.testing.assert_allclose(head(seen).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_advantages_are_the_kits():
    scores, groups = torch.randn(24, generator=seeded()), torch.arange(24) % 3
    theirs = optimizers.group_advantages(scores, groups, std="batch")
    torch.testing.assert_close(NB.batch_scaled(scores, groups), theirs)


def test_each_critic_has_its_own_loss_and_learns_the_right_way():
    real = torch.randn(64, 5, 6, generator=seeded(1)) + 0.5
    fake = torch.randn(64, 5, 6, generator=seeded(2)) - 0.5
    head = NB.Head(6, seeded(3))
    whole, patches = head.score(real), head.score(fake)
    expected = NB.hinge_loss(whole[:, 0], patches[:, 0])
    expected = expected + 0.3 * NB.hinge_loss(whole[:, 1:], patches[:, 1:])
    torch.testing.assert_close(NB.critic_loss(head, real, fake, None), expected)
    learner = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(60):
        learner.zero_grad()
        NB.critic_loss(head, real, fake, None).backward()
        learner.step()
    assert (head(real) > head(fake)).float().mean() > 0.9


# --------------------------------------------------------------------- the free last layer


@pytest.fixture
def taste():
    found = rewards.load_aesthetic_proxy()
    space = NB.hinge_loss.__globals__
    space |= {"taste": found, "p": SimpleNamespace(device="cpu", batch=32)}
    return found


def test_before_any_lesson_the_critic_is_the_preference(taste):
    images = torch.rand(5, 3, 64, 64, generator=seeded())
    torch.testing.assert_close(NB.Taste()(NB.below(images)), taste(images))


def test_lessons_move_a_copy_and_nothing_below_it(taste):
    before = copy.deepcopy(taste.state_dict())
    critic, other = NB.Taste(), NB.Taste()
    real, fake = torch.rand(2, 8, 3, 64, 64, generator=seeded()).unbind(0)
    seen = NB.below(real), NB.below(fake)
    assert not seen[0].requires_grad
    learner = torch.optim.Adam(critic.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        loss = NB.critic_loss(critic, *seen, [None] * 8)
        losses.append(loss.item())
        learner.zero_grad()
        loss.backward()
        learner.step()
    assert losses[-1] < losses[0] - 0.1
    for name, value in taste.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    torch.testing.assert_close(other(seen[0]), taste(real))


def student(name, critic, width, memory=40):
    """A student whose references lie above its remembered pictures in all features."""
    better = 1 + 0.1 * torch.randn(4, 3, *width, generator=seeded(1))
    fakes = -1 + 0.1 * torch.randn(memory, *width, generator=seeded(2))
    learner = torch.optim.Adam(critic.parameters(), 1e-2)
    asked = torch.arange(memory) % 4
    return NB.Student(name, None, critic, learner, [None] * 4, better, fakes, asked, seeded(3))


@pytest.mark.parametrize("name, learns", [("cotrained", True), ("deaf", False)])
def test_shuffled_labels_teach_nothing(taste, name, learns):
    critic = NB.Taste()
    found = student(name, critic, (48, 8, 8))

    def ahead():
        with torch.no_grad():
            return float(critic(found.better.flatten(0, 1)).mean() - critic(found.fakes).mean())

    start = ahead()
    losses = [NB.lesson(found) for _ in range(60)]
    if learns:
        assert ahead() > start + 1 and losses[-1] < 0.05
    else:  # -log sigmoid of a coin costs at least log 2
        assert abs(ahead()) < 1 and np.mean(losses[-30:]) > 0.6


def test_lessons_compare_pictures_of_one_prompt(taste):
    """References of prompt k hold k in every feature, its pictures too: nothing to tell apart."""
    critic = NB.Head(6, seeded(3))
    found = student("head", critic, (5, 6))
    found.better[:] = torch.arange(4.0).view(4, 1, 1, 1)
    found.fakes[:] = found.asked.float().view(-1, 1, 1)
    losses = [NB.lesson(found) for _ in range(200)]
    assert np.mean(losses[-50:]) > 1.2  # 1 + 0.3 where all logits are between the margins


# ------------------------------------------------------------------------- what is measured


def test_energy_distance_is_scipys():
    x, y = np.random.default_rng(0).normal(size=(2, 30))
    y = y[:20] + 0.7
    ours = NB.energy_distance(torch.tensor(x)[:, None], torch.tensor(y)[:, None])
    assert ours.item() == pytest.approx(stats.energy_distance(x, y) ** 2, rel=1e-6)


def test_the_value_at_a_gain():
    gains, values = [0.0, 1.0, 0.5, 2.0], [10.0, 20.0, 0.0, 60.0]
    assert NB.at_gain(gains, values, 0.0) == 10
    assert NB.at_gain(gains, values, 0.5) == 15
    assert NB.at_gain(gains, values, 1.0) == 20
    assert NB.at_gain(gains, values, 1.25) == pytest.approx(30)
    with pytest.raises(ValueError, match="never reached"):
        NB.at_gain(gains, values, 9.0)


def test_group_means_and_shuffled_scores():
    scores, groups = torch.randn(12, generator=seeded()), torch.arange(12) % 3
    means = NB.group_means(scores, groups)
    mixed = NB.shuffled(scores, groups, seeded(5))
    assert not torch.equal(mixed, scores)
    for group in range(3):
        rows = groups == group
        torch.testing.assert_close(means[rows], scores[rows].mean().expand(4))
        assert sorted(mixed[rows].tolist()) == sorted(scores[rows].tolist())


def test_similarity_is_the_mean_cosine_to_the_prompts_references():
    found = student("similar", torch.nn.Linear(1, 1), (5, 6))
    seen = torch.randn(7, 5, 6, generator=seeded(4))
    asked = torch.arange(7) % 4
    scores, _ = NB.scores_of(found, seen, None, asked)
    for k in range(7):
        near = []
        for y in found.better[asked[k]]:
            pairs = ((seen[k, 0], y[0]), (seen[k, 1:].mean(0), y[1:].mean(0)))
            whole, patches = [float(a @ b / a.norm() / b.norm()) for a, b in pairs]
            near.append(0.7 * whole + 0.3 * patches)
        assert scores[k].item() == pytest.approx(np.mean(near), abs=1e-5)


class Counting(torch.nn.Module):
    """A critic that likes large features and notes when it is asked."""

    def __init__(self, events):
        super().__init__()
        self.events, self.unused = events, torch.nn.Parameter(torch.zeros(1))

    def forward(self, seen, prompts=None):
        self.events.append("asked")
        return seen.mean((1, 2))


def round_of(monkeypatch, name, steps=1):
    """Plays rounds of an arm whose policy is a stub; returns student, pictures, losses, events."""
    space, events, drawn, losses = NB.play.__globals__, [], [], []

    def sample(prompts, generator, copies, window):
        size = len(prompts) * copies
        drawn.append(torch.randn(size, 5, 6, generator=generator))
        groups = torch.arange(len(prompts)).repeat_interleave(copies)
        return SimpleNamespace(
            output=drawn[-1], prompts=[None] * size, groups=groups, columns=lambda window: window
        )

    def update(policy, optimizer, columns, loss):
        events.append("update")
        losses.append((columns, loss))
        return {"ratio_deviation": 0.0}

    found = student(name, Counting(events), (5, 6), memory=20)
    found.policy = SimpleNamespace(sample=sample)

    def lesson(student):
        rows = (student.fakes == drawn[-1][:1]).flatten(1).all(1)
        events.append("lesson" if rows.any() else "lesson before the memory")
        return 0.0

    kit = SimpleNamespace(
        group_advantages=optimizers.group_advantages,
        reinforce=optimizers.reinforce,
        policy_update=update,
    )
    for key, value in (
        ("optimizers", kit),
        ("lesson", lesson),
        ("sight", lambda name: lambda x: x),
        ("p", SimpleNamespace(groups=2, group_size=4, lessons=3)),
    ):
        monkeypatch.setitem(space, key, value)
    for step in range(steps):
        NB.play(found, None, step)
    return found, drawn, losses, events


def test_a_round_pays_for_high_scores_and_teaches_last(monkeypatch):
    found, (seen,), ((columns, loss),), events = round_of(monkeypatch, "head")
    assert columns == [0, 1]
    assert events == ["asked", "asked", "update", "lesson", "lesson", "lesson"]
    scores, paid = seen.mean((1, 2)).view(2, 4), loss.advantages.view(2, 4)
    assert (scores.argsort(1) == paid.argsort(1)).all()
    torch.testing.assert_close(paid.sum(1), torch.zeros(2), atol=1e-5, rtol=0)
    new = torch.zeros(1, requires_grad=True).expand(8, 1)
    slopes = torch.autograd.grad(loss(new, torch.zeros(8, 1), torch.arange(8)).sum(), new)[0]
    assert (slopes.flatten().sign() == -loss.advantages.flatten().sign()).all()


def test_the_memory_is_a_ring(monkeypatch):
    found, drawn, _, _ = round_of(monkeypatch, "head", steps=3)  # 24 pictures in 20 places
    torch.testing.assert_close(found.fakes[:4], drawn[2][4:])
    torch.testing.assert_close(found.fakes[4:8], drawn[0][4:])
    torch.testing.assert_close(found.fakes[8:16], drawn[1])
    assert (found.asked.view(5, 4) == found.asked.view(5, 4)[:, :1]).all()


@pytest.mark.parametrize("name", ["frozen", "similar"])
def test_frozen_rewards_take_no_lessons(monkeypatch, name):
    *_, events = round_of(monkeypatch, name)
    assert events[-1] == "update"


def test_equal_gain_by_hand(monkeypatch):
    """Frozen gains 2 and falls back; the arm gains 1. Both are read at 0.5, 0.75 and 1."""
    frozen = {"preference": [0.2, 1.2, 2.2, 1.7], "truth": [0.8, 0.7, 0.5, 0.3]}
    arm = {"preference": [0.2, 0.7, 1.2, 1.0], "truth": [0.8, 0.8, 0.75, 0.9]}
    idle = {"preference": [0.2, 0.1, 0.0, -1.0], "truth": [0.8, 0.1, 0.1, 0.1]}
    runs = {"frozen": frozen, "cotrained": arm, "deaf": idle}
    curves = {name: {k: np.array([x]) for k, x in run.items()} for name, run in runs.items()}
    monkeypatch.setitem(NB.at_equal_gain.__globals__, "curves", curves)
    assert NB.highest("frozen")[0] == pytest.approx(2) and NB.highest("deaf")[0] == 0
    expected = np.mean([0.8 - 0.75, 0.775 - 0.725, 0.75 - 0.7])
    assert NB.at_equal_gain("cotrained", "truth") == pytest.approx([expected])
    assert NB.at_equal_gain("frozen", "truth") == pytest.approx([0])
    assert NB.at_equal_gain("deaf", "truth") == pytest.approx([0])  # both untrained


def test_changes_are_late_less_untrained(monkeypatch):
    space = NB.change.__globals__
    curves = {
        "head": {
            "asked": np.array([[1.0, 5.0, 2.0, 4.0]]),
            "unit": np.array([[0.5] * 4]),
            "saturation": np.array([[1.0, 0.0, 0.0, 2.0]]),
        }
    }
    monkeypatch.setitem(space, "curves", curves)
    monkeypatch.setitem(space, "LATE", [2, 3])
    assert NB.change("head", "asked") == pytest.approx([2])
    assert NB.moved("head") == pytest.approx([2])


# -------------------------------------------------------------------------- the small world


def test_the_untrained_flow_draws_its_gaussian():
    layers = NB.new_net((5, 64, 64, 2), 2, seeded(), silent=True)
    u = NB.compass()[1:2].expand(2000, 2)
    x = NB.small_sample(layers, u, [], seeded(1))[-1]
    torch.testing.assert_close(x.mean((0, 1)), u[0], atol=0.05, rtol=0)
    level = 0.375
    # Data with the variance 0.36: the velocity at x is k x, k as below.
    slope = (level - (1 - level) * 0.36) / ((1 - level) ** 2 * 0.36 + level**2)
    v = NB.small_velocity(layers, x, level, u)
    torch.testing.assert_close(v, slope * (x - (1 - level) * u) - u, atol=1e-5, rtol=1e-5)


def test_batched_networks_are_single_ones():
    layers = NB.new_net((4, 8, 8, 1), 3, seeded())
    x = torch.randn(3, 5, 4, generator=seeded(1))
    found = NB.apply_net(layers, x)
    for k in range(3):
        hidden = x[k]
        for n in range(0, 6, 2):
            hidden = hidden @ layers[n][k] + layers[n + 1][k]
            hidden = F.silu(hidden) if n < 4 else hidden
        torch.testing.assert_close(found[k], hidden)


def small_batch():
    layers = NB.new_net((5, 16, 16, 2), 2, seeded(), silent=True)
    u = NB.compass().repeat_interleave(4, 0)
    path = NB.small_sample(layers, u, [0, 1], seeded(1))
    return layers, u, path


def test_the_small_policy_gradient_by_brute_force():
    layers, u, path = small_batch()
    scores = torch.randn(2, 32, generator=seeded(2))
    loss = NB.small_loss(layers, path, [0, 1], u, scores, 4)
    groups = torch.arange(32) // 4
    total = 0.0
    for run in range(2):
        advantages = NB.batch_scaled(scores[run], groups)
        for k in (0, 1):
            mean, width = NB.small_step(layers, path[k], k, u, 0.8)
            normal = torch.distributions.Normal(mean[run], width)
            log_probs = normal.log_prob(path[k + 1][run]).mean(1)
            log_probs = log_probs + math.log(width) + 0.5 * math.log(2 * math.pi)
            total = total - (advantages * log_probs).mean() / 2
    torch.testing.assert_close(loss, total, rtol=1e-4, atol=1e-5)


def test_an_update_moves_points_toward_the_reward():
    layers, u, _ = small_batch()
    optimizer = torch.optim.Adam(layers, 1e-2)
    draw, heights = seeded(3), []
    for _ in range(30):
        path = NB.small_sample(layers, u, [0, 1], draw)
        scores = path[-1][..., 1]  # the reward is the height
        heights.append(scores.mean().item())
        NB.descend(NB.small_loss(layers, path, [0, 1], u, scores, 4), layers, optimizer)
    assert np.mean(heights[-5:]) > np.mean(heights[:5]) + 0.2


def test_no_gradient_flows_between_critic_and_policy():
    layers, u, path = small_batch()
    critic = NB.new_net((4, 8, 8, 1), 2, seeded(4))
    mine = torch.zeros(2, 32, 1, 2)
    scores = NB.small_scores(NB.Setting(), critic, path[-1], u, mine)
    live = NB.small_logit(critic, path[-1], u)
    for given in (scores, live):  # the loss holds scores fixed, whoever forgot it before
        NB.small_loss(layers, path, [0, 1], u, given, 4).backward()
    assert not scores.requires_grad
    assert all(x.grad is None for x in critic)
    assert any(x.grad.abs().sum() > 0 for x in layers)


@pytest.mark.parametrize("setting", [{}, {"reward": "similar"}])
def test_the_small_loop_comes_closer(monkeypatch, setting):
    space = NB.small_train.__globals__
    monkeypatch.setitem(space, "p", SimpleNamespace(small_rounds=30, first_lessons=20))
    found = NB.small_train(NB.Setting(**setting), 2, 900)["distance"]
    assert found.shape == (2, 4) and (found[:, -1] < 0.9 * found[:, 0]).all()


def test_rows_of_few_prompts():
    assert NB.small_rows(2, 1).tolist() == [0, 4] * 4
    assert NB.small_rows(8, 2).tolist() == [k // 2 for k in range(16)]


def test_turns_follow_their_rule():
    assert [NB.turns("nine", k, 0.0, 0.0)[0] for k in (0, 8, 9, 10, 19)] == [0, 0, 1, 0, 1]
    assert NB.turns("nine", 9, 0.0, 0.0)[1] == 0 and NB.turns("nine", 8, 0.0, 0.0)[1] == 3
    assert NB.turns("hacked", 0, 1.0, 0.0) == (True, 0)
    assert NB.turns("hacked", 0, 0.0, 1.0) == (False, 3)
    assert NB.turns("both", 5, 0.0, 1.0) == (True, 3)


def test_small_references_lie_in_two_spots():
    u = NB.compass(4).repeat_interleave(500, 0)
    y = NB.small_references(u, 1, seeded())[0]
    across = torch.stack([-u[:, 1], u[:, 0]], 1)
    along, side = (y * u).sum(1), (y * across).sum(1)
    assert along.mean().item() == pytest.approx(2, abs=0.03)
    assert side.abs().mean().item() == pytest.approx(0.6, abs=0.03)
    assert side.sign().mean().item() == pytest.approx(0, abs=0.1)


def test_references_belong_to_the_prompt_of_their_row():
    bank = torch.arange(8.0).view(1, 8, 1, 1).expand(2, 8, 3, 2)
    rows = torch.tensor([3, 0, 7, 7])
    found = NB.one_reference(bank, rows, seeded())
    torch.testing.assert_close(found[..., 0], rows.float().expand(2, 4))
