"""On a device without float64 (Apple's GPUs) everything computes what it computes on the CPU."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from rlgenkit import optimizers as O
from rlgenkit import rewards as R
from rlgenkit import samplers as S
from rlgenkit.divergences import anchor_terms, anchor_weights, kl_k3
from rlgenkit.records import Rollout, Scores
from tests.fake_device import FAR, Far, far, far_device


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


GROUPS = torch.arange(12) % 3
MASK = torch.arange(5)[None] < torch.tensor([5, 3, 1, 4] * 3)[:, None]
VALID = torch.arange(12) % 5 > 0


def to_device(x):
    """The same on the absent device, through scores, lists and tensors."""
    if isinstance(x, Scores):
        return Scores(far(x.values), far(x.valid))
    if isinstance(x, (list, tuple)):
        return type(x)(to_device(y) for y in x)
    return far(x) if isinstance(x, torch.Tensor) else x


def near(x):
    return x.real_ if isinstance(x, Far) else x


ONE = R.scored(draw(12), VALID)
CALLS = {
    "group": lambda v, g, m, s: O.group_advantages(v, g, "group", valid=m),
    "batch": lambda v, g, m, s: O.group_advantages(v, g, "batch", valid=m),
    "mean": lambda v, g, m, s: O.group_advantages(v, g, "none", valid=m),
    "scores": lambda v, g, m, s: O.group_advantages(s, g),
    "whole batch": lambda v, g, m, s: O.batch_advantages(v, valid=m),
    "leave one out": lambda v, g, m, s: O.rloo_advantages(v, g, m),
    "tracker": lambda v, g, m, s: O.PromptTracker().update(list("abcabcabcabc"), v, valid=m),
    "weights": lambda v, g, m, s: O.rwr_weights(v, 0.3, g, m),
    "best": lambda v, g, m, s: O.best_of_k(v, g, m),
    "standardize": lambda v, g, m, s: R.standardize(s, g).values,
    "standardized sum": lambda v, g, m, s: R.standardized_sum([s, s], [1, 2], g).values,
    "share": lambda v, g, m, s: R.effective_weights([s, s], [1, 2], g),
    "picks": lambda v, g, m, s: R.best_of(v.view(3, 4), v.view(3, 4), [1, 2]),
    "r": lambda v, g, m, s: torch.tensor(R.pearson(v, v + g)),
    "spread": lambda v, g, m, s: R.mean_pairwise_distance(v[:, None], g),
    "k3": lambda v, g, m, s: kl_k3(v, 2 * v),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_scores_become_the_same_on_a_device_without_float64(name):
    given = (draw(12), GROUPS, VALID, ONE)
    expected = CALLS[name](*given)
    with far_device():
        found = CALLS[name](*to_device(given))
    assert torch.equal(near(found), expected)
    assert found.dtype == torch.float64 or found.device == FAR or name in ("r", "share")


@pytest.mark.parametrize("average", ["token", "sequence", "constant"])
def test_token_losses_are_the_same_on_a_device_without_float64(average):
    def loss(new, old, mask, rewards):
        back = O.rewards_to_go(rewards, mask, old - new, 0.1)
        terms = O.token_policy_loss(new, old, O.whiten(back, mask), mask, 0.2, average, 5)
        return terms + O.masked_mean(kl_k3(new, old), mask, average, 5)

    given = (draw(12, 5), draw(12, 5, seed=1), MASK, draw(12, seed=2))
    with far_device():
        found = loss(*to_device(given))
    assert torch.equal(near(found), loss(*given))


def act(weight):
    return lambda x, t: x * weight + t.view(-1, 1) / 1000


@pytest.mark.parametrize("table", [
    S.flow_table(4), S.windowed(S.flow_table(4, "cps"), [1, 2]),
    S.ddim_table(torch.linspace(0.99, 0.1, 100), [90, 60, 30, 10]),
])  # fmt: skip
def test_an_update_with_an_anchor_is_the_same_on_a_device_without_float64(table):
    def train(device):
        weight = nn.Parameter(torch.linspace(-0.5, 0.5, 6).to(device))
        generator = torch.Generator().manual_seed(0)
        x = S.initial_noise(5, (6,), generator).to(device)
        path = S.rollout(act(weight), table, x, generator)
        start, ema = weight.detach().clone(), O.Ema([weight])
        anchor = anchor_weights("mean_dt", table.std, table.dt, table.b, 6)
        optimizer, stats = torch.optim.SGD([weight], lr=0.1), []
        steps = S.acting_steps(table)
        for _ in range(2):
            stats.append(O.policy_gradient_update(
                lambda k, rows: S.replay(act(weight), path, k, rows, together=True), optimizer,
                [weight], path.log_probs, draw(5).to(device), steps, clip=0.05, beta=0.3,
                anchor=anchor, batch_size=3, steps_per_forward=2,
                reference=lambda k, rows: S.replay(act(start), path, k, rows, together=True),
            ))  # fmt: skip
            ema.update()
        again, means = S.replay(act(weight), path, steps)
        gap = anchor_terms(means, means + 1, anchor[steps])
        return [near(x.detach()) for x in (weight, ema.averages[0], again, gap)], stats

    numbers, stats = train(torch.device("cpu"))
    with far_device():
        there, told = train(FAR)
    assert told == stats and stats[1]["penalty"] > 0
    for one, other in zip(numbers, there, strict=True):
        assert torch.equal(one, other)


@dataclass
class Draws:
    """What a policy of T numbers a sample drew: x [B, T]; columns Long[T]."""

    x: torch.Tensor
    at: torch.Tensor

    def rows(self, rows):
        return Draws(self.x[rows], self.at)

    def columns(self, columns):
        return Draws(self.x[:, columns], self.at[columns])


class Normals:
    """N(mean_t, 1) in each of T places."""

    chunk = 5

    def __init__(self, device):
        self.mean = nn.Parameter(torch.zeros(5, device=device))
        self.parameters = [self.mean]

    def choices_at_once(self, rows):
        return 2

    def replay(self, rollout, divergence=False):
        path = rollout.path
        mean = self.mean[path.at]
        gap = path.x.to(self.mean.device) - mean
        return -gap.square() / 2, mean.square().expand(gap.shape) / 2 if divergence else None


def test_the_loop_of_every_method_is_the_same_on_a_device_without_float64():
    """Rollout, scores, advantages as they are, and `policy_update` with an anchor."""

    def train(device):
        policy = Normals(device)
        optimizer = torch.optim.SGD(policy.parameters, lr=0.5)
        for seed in range(2):
            x, path = draw(12, 5, seed=seed), torch.arange(5)
            blank = torch.zeros(12, 5)
            rollout = Rollout(list(range(12)), GROUPS, x, blank, MASK, Draws(x, path))
            with torch.no_grad():
                rollout = replace(rollout, log_probs=policy.replay(rollout)[0].cpu())
            advantages = O.group_advantages(R.scored(x.sum(1).to(device), VALID.to(device)), GROUPS)
            loss = O.clipped_ratio(advantages, 0.2)
            stats = O.policy_update(policy, optimizer, rollout, loss, 5, beta=0.1)
        return near(policy.mean.detach()), stats

    weight, stats = train(torch.device("cpu"))
    with far_device():
        there, told = train(FAR)
    assert torch.equal(weight, there) and stats == told and stats["penalty"] > 0


def test_the_absent_device_refuses_float64_and_mixed_devices():
    with far_device(), pytest.raises(TypeError, match="float64"):
        far(draw(3)).double()
    with far_device(), pytest.raises(RuntimeError, match="expected one device"):
        far(draw(3)) + draw(3)
