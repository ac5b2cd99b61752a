"""IterComp (notebook 35): pairs, losses, the late estimate, rewards and the plane against oracles."""

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch

from rlgenkit import models, rewards, samplers as s, worlds
from tests.notebook_code import definitions

nb = definitions("35")
known = nb.rank_pairs.__globals__  # what a run would define
SETTINGS = dict(
    device="cpu", rank=0, steps=3, chunk=16, batch=6, micro=4, first=2, epochs=3, toys=3
)
known |= {"p": SimpleNamespace(**SETTINGS), "STICKERS": True, "DRAWS": 1.0}
eyes = worlds.load_reader(worlds.REWARD_READER)
known |= {"lookers": {"people": None, "eyes": eyes}, "some_prompts": nb.sticker_prompts}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_pairs_by_brute_force():
    rank = torch.rand(5, 7, generator=generator(1)).argsort(1)
    for new in (0, 1, 2, 3):
        found = nb.rank_pairs(rank, 7 - new if new else 0)
        assert found.shape[1] == (new * 7 - new * (new + 1) // 2 if new else 21)
        for row, pairs in zip(rank.tolist(), found.tolist()):
            wanted = [[a, b] for i, a in enumerate(row) for b in row[i + 1 :]]
            assert pairs == [x for x in wanted if not new or max(x) >= 7 - new]


def test_ranking_loss_by_hand_and_by_the_package():
    said = torch.randn(3, 4, generator=generator(2), dtype=torch.float64)
    pairs = nb.rank_pairs(torch.rand(3, 4, generator=generator(3)).argsort(1))
    rows = [(n, a, b) for n in range(3) for a, b in pairs[n].tolist()]
    terms = [math.log(1 + math.exp((said[n, b] - said[n, a]).item())) for n, a, b in rows]
    assert nb.ranking_loss(said, pairs).item() == pytest.approx(sum(terms) / len(terms))
    first = torch.stack([said[n, a] for n, a, _ in rows])
    second = torch.stack([said[n, b] for n, _, b in rows])
    theirs = rewards.bradley_terry_loss(first, second, torch.ones(len(rows)).double())
    torch.testing.assert_close(nb.ranking_loss(said, pairs), theirs)


@pytest.mark.parametrize("m", [0, 1, 3])
def test_late_estimate_and_its_gradient(m):
    """The gradient is that of one call at a constant state; the noise gets one at m = 0 only."""
    table = s.ddim_table(torch.linspace(0.99, 0.02, 1000), torch.tensor([999, 700, 400, 100]), 0.0)
    weight = torch.tensor(0.7, requires_grad=True)
    noise = torch.randn(2, 3, generator=generator(4)).requires_grad_(True)

    def denoise(x, t):
        return torch.sin(weight * x) + t[:, None] / 1000

    found = nb.late_estimate(denoise, table, noise, m)
    with torch.no_grad():
        state = s.rollout(denoise, table, noise.detach()).latents[m]
    wanted = s.denoised(table, m, state, denoise(state, table.t[m].expand(2)))
    torch.testing.assert_close(found, wanted)
    slope, of_noise = torch.autograd.grad(found.sum(), (weight, noise), allow_unused=True)
    by_hand = float(table.b_x0[m]) * (state * torch.cos(weight * state)).sum()
    torch.testing.assert_close(slope, by_hand.detach())
    assert (of_noise is not None) == (m == 0)


def test_hinge_and_its_gradient():
    R = torch.tensor([[1.0, 2.5], [3.0, -1.0], [2.0, 0.0]], requires_grad=True)
    loss = nb.hinge_loss(R, 2.0)
    assert loss.item() == pytest.approx((1 + 0 + 0 + 0 + 3 + 2) / 2)
    (slope,) = torch.autograd.grad(loss, R)
    assert slope[:, 1].tolist() == [0.0, -0.5, -0.5] and slope[:2, 0].tolist() == [-0.5, 0.0]


def test_people_are_a_bradley_terry_crowd():
    felt = nb.felt_by_people(torch.tensor([0.5, 0.25]).expand(40_000, 2), generator(5))
    share = (felt[:, 1] > felt[:, 0]).float().mean().item()
    assert share == pytest.approx(1 / (1 + math.exp(0.25 / nb.SLIP)), abs=0.01)
    scores = torch.tensor([[0.0, 1.0, 1.0]])
    assert nb.turned(scores, torch.tensor([[0.5, 0.4, 0.9]])) == 0.5


def test_specialists_hear_one_criterion():
    prompts = worlds.sample_prompts(30, "train", "relation", generator=generator(17))
    prompts += worlds.sample_prompts(30, "train", "binding", generator=generator(18))
    prompts += worlds.sample_prompts(30, "train", "counting", generator=generator(18))
    for hears in (0, 1, 2):
        found = nb.heard(nb.Member(None, hears=hears), prompts)
        kept = [a.text == b.text for a, b in zip(prompts, found)]
        assert kept == [prompt.category == nb.ASKS[hears] for prompt in prompts]
        assert all(a.groups == b.groups for a, b in zip(prompts, found))
    assert nb.heard(nb.Member(None), prompts) == prompts


def test_standing_of_newcomers():
    felt = torch.tensor([[0.9, 0.1, 0.5, 1.0], [0.2, 0.4, 0.3, 0.1]])
    assert nb.standing(felt, -1, None) == pytest.approx((0 + 1) / 2)
    assert nb.standing(felt, 0, 1) == pytest.approx((1 / 3 + 2 / 3) / 2)


def test_complement_counts_skill_and_not_luck():
    skill = torch.tensor([[1.0, 0.0, 0.6], [0.0, 1.0, 0.6], [0.6, 0.6, 0.6]])  # [criterion, member]
    assert nb.complement(skill.repeat_interleave(4, 0)) == pytest.approx(2.6 / 3 - 0.6)
    noise = torch.rand(3 * 400, 6, generator=generator(6))
    assert abs(nb.complement(noise)) < 0.03


def scenes(relation, count=24):
    """Rendered scenes and captions with this relation, all of them right."""
    made = worlds.sample_prompts(12 * count, "train", "relation", generator=generator(7))
    prompts = [prompt for prompt in made if prompt.relation == relation][:count]
    return worlds.render(worlds.sample_scenes(prompts, generator(16))), prompts


@pytest.mark.parametrize("relation", worlds.RELATIONS)
def test_the_caption_asks_the_picture(relation):
    """On right pictures all six answers are good; wrong places, colors, numbers show where they must."""
    pictures, prompts = scenes(relation)
    cells, whole, _ = worlds.load_reader(worlds.REWARD_READER)(pictures)
    asked = nb.told(prompts)
    assert asked.shape == (24, 8)
    right = nb.answers(cells, whole, asked).mean(0)
    assert right[:2].min() > 0.8 and right[3:5].min() > 0.8
    assert right[2] > -0.3 and right[5] > -0.4
    turned = asked.clone()
    turned[:, 6] = asked[:, 6] ^ 1  # left and right, above and below change places
    assert nb.answers(cells, whole, turned)[:, 3].mean() < -0.8
    painted = asked.clone()
    painted[:, 1] = (asked[:, 1] + 1) % len(worlds.COLORS)
    found = nb.answers(cells, whole, painted).mean(0)
    assert found[0] < right[0] - 0.3 and abs(found[1] - right[1]) < 0.05
    more = asked.clone()
    more[:, 2] = 3
    assert nb.answers(cells, whole, more)[:, 2].mean() < right[2] - 0.2
    ground = asked.clone()
    ground[:, 7] = torch.where(asked[:, 7] >= 0, (asked[:, 7] + 1) % 5, -1)
    some = asked[:, 7] >= 0
    assert nb.answers(cells, whole, ground)[some, 4].mean() < 0.2


def test_a_reward_learns_its_lists_and_its_head_is_linear():
    """Pictures of right and of wrong captions: the reward learns to order them; frozen parts stay."""
    pictures, prompts = scenes("left of", 12)
    shelf = torch.stack([pictures, pictures.roll(1, 0)], 1)  # the second is of another caption
    asked, net = nb.told(prompts), nb.Reward(generator(8))
    kept = [x.clone() for x in net.trunk.stem.parameters()]
    assert not any(x.requires_grad for x in net.parameters())
    with torch.no_grad():
        seen = nb.seen_in(pictures)
        for mine, whole in zip(nb.late_layers(net.trunk, *seen), net.trunk(pictures)):
            torch.testing.assert_close(mine, whole)
        test = nb.features_for(net, seen, asked)
        bias = net.head(torch.zeros_like(test[:1]))[0, 0]
        torch.testing.assert_close(
            net(seen, asked), test @ nb.direction(net) + bias, atol=1e-4, rtol=1e-4
        )
    pairs = torch.tensor([[[0, 1]]]).expand(12, -1, -1)
    nb.learn(net, nb.in_bytes(shelf), asked, pairs, 12, generator(9))
    with torch.no_grad():
        lead = net(seen, asked) - net(nb.seen_in(pictures.roll(1, 0)), asked)
    assert (lead > 0).float().mean() > 0.9
    assert all(torch.equal(a, b) for a, b in zip(kept, net.trunk.stem.parameters()))
    assert not any(x.requires_grad for x in net.parameters())
    again = nb.rewards_from([nb.weights_in(net)] * 3)[2]
    assert torch.equal(again(seen, asked), net(seen, asked))


def test_an_update_raises_the_rewards_on_the_same_noise():
    base = models.load_policy("data/models/epsilon")
    base.scheduler.register_to_config(timestep_spacing="trailing")
    known["base"] = base
    policy, nets = nb.new_policy(0), [nb.Reward(generator(k)) for k in range(3)]
    optimizer = torch.optim.SGD(policy.parameters, 1e-3)
    seen = [
        nb.feedback_update(policy, optimizer, nets, (0, 1, 2), 50.0, generator(10))["reward"].mean()
        for _ in range(3)
    ]
    assert seen[2] > seen[1] > seen[0]
    content = nb.feedback_update(policy, optimizer, nets, (0,), -50.0, generator(10))
    assert content["norm"] == 0.0 and content["reward"].shape == (6,)
    copy = nb.new_policy(1, nb.weights_of(policy))
    assert all(torch.equal(a, b) for a, b in zip(copy.parameters, policy.parameters))


@pytest.fixture
def lists(monkeypatch):
    """Galleries of six captions and four pictures of captions with fewer and fewer right things."""
    pictures, prompts = scenes("left of", 6)
    felt = torch.tensor([3.0, 2.0, 1.0, 0.0]).expand(6, -1).clone()
    shelf = {"pictures": nb.in_bytes(torch.stack([pictures.roll(k, 0) for k in range(4)], 1))}
    shelf |= {"felt": felt, "scores": felt / 3}
    shelf["latents"] = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(6, -1, 8, 8, 8)
    monkeypatch.setitem(known, "gallery", lambda seed, own_six=False: shelf)
    monkeypatch.setitem(known, "gallery_prompts", lambda seed: prompts)
    monkeypatch.setitem(known, "own", lambda prompts: torch.arange(len(prompts)) // 2)
    return shelf, prompts


def test_rivals_follow_the_lists(lists, monkeypatch):
    """SFT takes the first place; DPO lowers the winner's error against the loser's."""
    weight = torch.tensor(1.0, requires_grad=True)
    seen = []

    class Policy:
        model = None

        def reference(self):
            return contextlib.nullcontext()

    class Words(list):
        def repeat(self, times):
            return self * times

    def errors(policy, latents, words, time, noise):
        assert len(words) == len(latents) == len(time) == len(noise)
        seen.append((latents[:, 0, 0, 0], time, noise))
        return weight * latents[:, 0, 0, 0]  # place 0 to 3; 0 is the best

    monkeypatch.setitem(known, "denoising_errors", errors)
    monkeypatch.setitem(known, "levels", torch.ones(1000))
    base = SimpleNamespace(latent_shape=(8, 8, 8))
    monkeypatch.setitem(known, "base", base)
    monkeypatch.setattr(models, "embed", lambda base, texts: Words(texts))
    monkeypatch.setitem(known, "BETA", 2.0)
    rows = torch.tensor([4, 0, 2])
    assert nb.imitation_terms(Policy(), 0, rows, generator(1)).tolist() == [0.0, 0.0, 0.0]
    loss = nb.comparison_terms(Policy(), 0, rows, generator(2)).mean()
    (slope,) = torch.autograd.grad(loss, weight)
    place, time, noise = seen[-1]
    assert (place[:3] < place[3:]).all()  # the winner stands first
    assert torch.equal(time[:3], time[3:]) and torch.equal(noise[:3], noise[3:])
    # a larger weight raises the losers' errors above the winners': the loss falls
    assert slope < 0


def test_permuted_ranks_and_the_gallerys_scale(lists, monkeypatch):
    shelf, prompts = lists
    asked, right, learn = nb.told(prompts), {}, nb.learn

    def watched(net, pictures, asked, pairs, epochs, generator):
        right.setdefault(shuffled, []).append((pairs[..., 0] < pairs[..., 1]).float().mean())
        learn(net, pictures, asked, pairs, epochs, generator)

    monkeypatch.setitem(known, "learn", watched)
    for shuffled in (False, True):
        nets = [nb.Reward(generator(k)) for k in range(3)]
        nb.learned(nets, 0, shelf, 0, shuffled, generator(3))
        seen = nb.seen_in(nb.pixels(shelf["pictures"]).flatten(0, 1))
        with torch.no_grad():
            found = nb.standard(nets[0], seen, asked.repeat_interleave(4, 0)).view(6, 4)
        torch.testing.assert_close(found.mean(), torch.tensor(0.0), atol=1e-3, rtol=0)
        torch.testing.assert_close(found.std(), torch.tensor(1.0), atol=1e-3, rtol=0)
    assert right[False] == [1, 1, 1] and 0.2 < sum(right[True]) / 3 < 0.8  # of ordered pairs


def test_newcomers_err_anew_in_each_round(lists, monkeypatch):
    shelf, prompts = lists
    monkeypatch.setitem(known, "run", SimpleNamespace(result=lambda name, draw: draw()))
    base = SimpleNamespace(latent_shape=(8, 8, 8))
    monkeypatch.setitem(known, "base", base)
    drawn = []

    def render(policy, many, noise):
        drawn.append(noise)
        return noise, torch.zeros(len(many), 3, 64, 64)

    monkeypatch.setitem(known, "render", render)
    monkeypatch.setitem(known, "score", lambda who, pictures, many: torch.full((len(many),), 0.5))
    first, second = (nb.grown(shelf, None, 0, "refreshed", number) for number in (1, 2))
    assert first["felt"].shape == (6, 6) and torch.equal(first["felt"][:, :4], shelf["felt"])
    assert not (first["felt"][:, 4:] == second["felt"][:, 4:]).any()
    assert not torch.equal(*drawn)


def test_pairs_that_a_judge_orders_rightly():
    seen = {"own": torch.tensor([1] * 4 + [0] * 4)}
    seen["scores"] = torch.tensor([0.0, 1.0, 1.0, 0.5, 0.3, 0.3, 0.3, 0.3])
    said = torch.zeros(3, 8)
    said[1, :4] = torch.tensor([0.0, 2.0, -1.0, 1.0])
    said[0, 4:] = torch.arange(4.0)  # equal in truth: counts nowhere
    # unequal pairs of the first caption: 1>0 yes, 2>0 no, 3>0 yes, 1>3 yes, 2>3 no
    assert nb.right_pairs({**seen, "judge": said}, "judge") == pytest.approx(3 / 5)
    assert nb.right_pairs({**seen, "judge": torch.zeros(3, 8)}, "judge") == 0.5


def test_the_plane_is_exact():
    plane, mean = nb.planes(0.0, generator(11)), torch.randn(3, 2, generator=generator(12))
    drawn = mean[:, None] + nb.TAU * torch.randn(3, 40_000, 2, generator=generator(13))
    torch.testing.assert_close(
        nb.value(plane, mean), nb.bumps(plane, drawn).mean((1, 2)), atol=3e-3, rtol=0.02
    )
    points = torch.randn(3, 4, 5, 2, generator=generator(14))
    felt = nb.toy_felt(plane, points, generator(15))
    assert felt.shape == (3, 3, 4, 5)
    better, worse = nb.toy_pairs(points, felt, 4)
    assert better.shape == (9, 4 * 4, 2)
    for k in range(3):
        here = nb.bumps(plane, better.view(3, 3, -1, 2)[:, k])[:, k]
        there = nb.bumps(plane, worse.view(3, 3, -1, 2)[:, k])[:, k]
        assert (here >= there).all()  # no error: the better one is better


def test_arms_of_the_plane_share_the_first_round():
    known["p"].toy_updates = 4
    found = {arm: nb.toy_loop(arm, rounds=2) for arm in ("refreshed", "frozen", "blind")}
    first = found["refreshed"]
    assert first.shape == (3, 3) and torch.equal(first, nb.toy_loop("refreshed", rounds=2))
    for arm in ("frozen", "blind"):
        assert torch.equal(found[arm][:, :2], first[:, :2])
        assert not torch.equal(found[arm][:, 2], first[:, 2])


def test_rated_gallery_is_whole():
    rated = nb.rated_gallery()
    assert rated["pair_1"].shape == (160, 5) and not rated["pair_1"].isnan().any()
    two = (rated["pair_1"] + rated["pair_2"]) / 2
    assert two.max(1).values.mean().item() == pytest.approx(4.56, abs=0.005)
    unequal = sum((two[:, i] != two[:, j]).sum() for i in range(5) for j in range(i))
    assert unequal == 1036
