"""One loop for every policy: records, sampling and replay, and the update, against slow code."""

import copy
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from transformers import LlamaConfig, LlamaForCausalLM

from rlgenkit import models, optimizers as o, rewards, samplers
from rlgenkit.models.tokens import TokenBatch, _pick, _scaled
from rlgenkit.records import Rollout
from tests.fake_device import Far, far, far_device
from tests.tiny_pipelines import components, word_tokenizer

PROMPTS = ["a red cat", "two blue star", "cloud"]


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=gen(seed))


def shake(policy, size=0.05, seed=1):
    with torch.no_grad():
        for i, weight in enumerate(policy.parameters):
            weight.add_(size * randn(*weight.shape, seed=seed + i))


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    base = models.make_policy("StableDiffusion3Pipeline", components("StableDiffusion3Pipeline"))
    nn.init.normal_(base.network.proj_out.weight, std=0.3, generator=gen(5))
    return base


@pytest.fixture(scope="module")
def epsilon():
    torch.manual_seed(0)
    return models.make_policy("PixArtAlphaPipeline", components("PixArtAlphaPipeline"))


def small_language():
    torch.manual_seed(3)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=14,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
    ).eval()


def language(**options):
    tokenizer = word_tokenizer()
    tokenizer.eos_token = "<unk>"
    return models.language_policy((small_language(), tokenizer), **{"new": 7, "chunk": 5} | options)


ALPHAS = torch.linspace(0.999, 0.01, 1000)
TABLES = {
    "flow": samplers.flow_table(5, shift=3.0),
    "dance": samplers.flow_table(5, "dance", noise=0.3),
    "cps": samplers.flow_table(5, "cps"),
    "ddim": samplers.ddim_table(ALPHAS, [900, 700, 500, 300, 1]),
    "consistency": samplers.consistency_table(ALPHAS, [999, 759, 519, 279]),
    "consistency, noisy end": samplers.consistency_table(
        ALPHAS, [999, 759, 519, 279], last="noisy"
    ),
}


def image(base, kind="flow", **options):
    return models.image_policy(base, **{"table": TABLES[kind], "rank": 2, "chunk": 4} | options)


def walker():
    """Two numbers in answer to four."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4), nn.Unflatten(1, (2, 2)))
    return models.gaussian_policy(net)


def some_policies(flow, epsilon):
    for kind in TABLES:
        base = flow if kind in ("flow", "dance", "cps") else epsilon
        yield kind, image(base, kind), PROMPTS
        yield f"{kind}, guided", image(base, kind, guidance=3.0, reduction="sum"), PROMPTS
    yield "whole network", image(flow, rank=0), PROMPTS
    yield "texts", language(), PROMPTS
    yield "ids, adapter", language(rank=2, temperature=0.5), [[3, 4, 5], [8], [9, 10]]
    yield "ids in a tensor", language(), torch.tensor([[3, 4], [8, 2], [9, 10]])
    yield "a number", models.gaussian_policy(torch.zeros(2)), ["a", "b", "c"]
    yield "a walk", walker(), randn(3, 4)


# ------------------------------------------------------------------ sampling and replay


def test_replay_is_bit_equal_and_ratios_start_at_one(flow, epsilon):
    for name, policy, prompts in some_policies(flow, epsilon):
        rollout = policy.sample(prompts, gen(1), copies=2)
        assert rollout.groups.tolist() == [0, 0, 1, 1, 2, 2] and len(rollout.output) == 6
        assert torch.equal(policy.log_probs(rollout), rollout.log_probs), name
        assert torch.equal(policy.sample(prompts, gen(1), copies=2).log_probs, rollout.log_probs)
        assert policy.divergence(rollout).abs().max() == 0
        stats = o.policy_update(
            policy,
            o.make_optimizer(policy.parameters, 1e-2),
            rollout,
            o.clipped_ratio(randn(6), 0.2),
            beta=0.1,
        )
        assert stats["ratio_deviation"] == 0 and stats["ratio_mean"] == 1, name
        assert stats["grad_norm"] > 0 and stats["clip_fraction"] == 0
        assert not torch.equal(policy.log_probs(rollout), rollout.log_probs), name
        assert (policy.divergence(rollout)[rollout.mask] >= 0).all()
        with policy.reference():
            assert torch.equal(policy.log_probs(rollout), rollout.log_probs), name
        # Some rows and some choices: the same numbers to rounding.
        rows, steps = torch.tensor([5, 0, 2]), [0, 2][: rollout.mask.shape[1]]
        part = rollout.rows(rows).columns(steps)
        for method in (policy.log_probs, policy.divergence):
            torch.testing.assert_close(
                method(part), method(rollout)[rows][:, steps], rtol=1e-4, atol=1e-5
            )


def test_windows_train_their_steps_only(flow):
    policy = image(flow)
    rollout = policy.sample(PROMPTS, gen(), window=range(1, 3))
    assert rollout.mask.tolist() == [[False, True, True, False, False]] * 3
    calls = []
    policy.model.network.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(policy.log_probs(rollout), rollout.log_probs) and len(calls) == 2
    noisy = image(flow, "consistency, noisy end").sample(PROMPTS, gen())
    assert noisy.mask[0].tolist() == [True, True, True, False]  # nothing sees the last draw


def test_the_samples_are_those_of_the_samplers(flow):
    """The policy adds nothing: latents, log-probs and pictures as by hand."""
    policy = image(flow, guidance=2.0)
    rollout = policy.sample(PROMPTS, gen(4))
    generator = gen(4)
    noise = samplers.initial_noise(3, policy.model.latent_shape, generator)
    act = models.denoiser(policy.model, models.embed(policy.model, PROMPTS), 2.0)
    path = samplers.rollout(act, policy.table, noise, generator)
    assert torch.equal(path.log_probs.T, rollout.log_probs)
    assert torch.equal(models.decode(policy.model, path.final), rollout.images)
    assert torch.equal(
        rewards.compressibility(rollout).values,
        rewards.compressibility(rewards.Batch(rollout.output, PROMPTS, rollout.groups)).values,
    )


def test_no_forward_has_more_rows_than_chunk(flow):
    policy, seen = image(flow, chunk=2), []
    policy.model.network.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    rollout = policy.sample(PROMPTS, gen(), copies=3)
    o.policy_update(
        policy, o.make_optimizer(policy.parameters, 1e-3), rollout, o.reinforce(randn(9)), beta=0.1
    )
    assert max(seen) == 2
    wide, calls = image(flow, chunk=6), len(seen)
    rollout = wide.sample(PROMPTS, gen(), copies=2)
    wide.model.network.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    o.policy_update(
        wide, o.make_optimizer(wide.parameters, 1e-3), rollout.rows([0, 4]), o.reinforce(randn(2))
    )
    assert seen[calls:] == [6, 4]  # two rows: three steps at once, then the other two
    text, seen = language(chunk=3), []
    rollout = text.sample(PROMPTS, gen(), copies=3)
    text.model.register_forward_hook(
        lambda m, args, kw, out: seen.append(len(args[0])), with_kwargs=True
    )
    o.policy_update(text, o.make_optimizer(text.parameters, 1e-3), rollout, o.reinforce(randn(9)))
    assert max(seen) == 3


def test_equal_answers_are_computed_once():
    policy, seen = language(temperature=0.0, chunk=64), []
    rollout = policy.sample(PROMPTS, None, copies=4)
    policy.model.register_forward_hook(
        lambda m, args, kw, out: seen.append(len(args[0])), with_kwargs=True
    )
    got = policy.log_probs(rollout)
    assert seen == [3]
    batch = rollout.path.batch
    torch.testing.assert_close(
        got, models.token_logprobs(policy.model, batch), rtol=1e-5, atol=1e-5
    )
    assert rollout.output[0] == rollout.output[3] and isinstance(rollout.output[0], str)
    assert policy.sample(PROMPTS, None, score=False).log_probs.isnan().all()


def test_copies_of_a_policy_share_nothing_that_is_trained():
    first = language(rank=2)
    shake(first)
    second = models.language_policy(first, temperature=0.3)
    assert (
        second.new == 7
        and second.temperature == 0.3
        and len(second.parameters) == len(first.parameters)
    )
    rollout = first.sample(PROMPTS, gen())
    assert torch.equal(models.language_policy(first).log_probs(rollout), rollout.log_probs)
    shake(second)
    assert torch.equal(first.log_probs(rollout), rollout.log_probs)


def test_divergence_is_the_kl_of_the_steps(flow):
    policy = image(flow, reduction="sum")
    rollout = policy.sample(PROMPTS, gen())
    shake(policy, 0.3)
    means, path = [], rollout.path.trajectory
    act = models.denoiser(policy.model, models.embed(policy.model, PROMPTS))
    for how in (models.reference(policy.model.network), torch.no_grad()):
        with how, torch.no_grad():
            means.append(samplers.replay(act, path, range(5))[1].double())
    for k in range(5):
        std = policy.table.std[k].double()
        kl = kl_divergence(Normal(means[1][k], std), Normal(means[0][k], std)).sum((1, 2, 3))
        torch.testing.assert_close(
            policy.divergence(rollout)[:, k].double(), kl, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("rank", [0, 2])
def test_divergence_of_tokens_is_k3_and_its_gradient(rank):
    policy = language(rank=rank)
    twin = copy.deepcopy(policy.model)
    rollout = policy.sample(PROMPTS, gen(), copies=2)
    shake(policy)
    with torch.no_grad():
        before = models.token_logprobs(twin, rollout.path.batch)
    now = models.token_logprobs(policy.model, rollout.path.batch)
    slow = torch.where(rollout.mask, torch.expm1(before - now) - (before - now), 0.0)
    got = policy.divergence(rollout)
    torch.testing.assert_close(got, slow, rtol=1e-4, atol=1e-5)
    pairs = zip(*(torch.autograd.grad(x.sum(), policy.parameters) for x in (got, slow)))
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_reference_comes_back_after_an_error():
    policy = language()
    weights = [w.detach().clone() for w in policy.parameters]
    shake(policy)
    with pytest.raises(RuntimeError, match="stop"), policy.reference():
        assert all(torch.equal(a, b) for a, b in zip(policy.parameters, weights))
        raise RuntimeError("stop")
    assert not torch.equal(policy.parameters[0], weights[0])


@torch.no_grad()
def test_tokens_are_drawn_and_scored_on_a_device_without_float64():
    """The logits are elsewhere, the generator is here."""
    model = small_language()
    logits = model(torch.tensor([[3, 4, 5]])).logits[:, -1].expand(50, -1).clone()
    here = [_pick(logits, 1.0, gen(1)), _scaled(logits, 0.7)]
    with far_device():
        there = [_pick(far(logits), 1.0, gen(1)), _scaled(far(logits), 0.7)]
    assert all(isinstance(t, Far) for t in there)
    assert all(torch.equal(t.real_, h) for t, h in zip(there, here))


def test_a_gaussian_policy_is_a_gaussian():
    policy = walker()
    states = randn(3, 4)
    rollout = policy.sample(states, gen(), copies=2)
    assert rollout.output.shape == (6, 2) and rollout.log_probs.shape == (6, 1)
    assert torch.equal(rollout.prompts, states.repeat_interleave(2, 0))
    shake(policy, 0.3)
    found = []
    for how in (torch.enable_grad(), policy.reference()):
        with how:
            mean, log_std = policy.net(rollout.prompts).unbind(1)
        found.append(Normal(mean, log_std.exp()))
    after, before = found
    for now, stored in ((after, policy.log_probs(rollout)), (before, rollout.log_probs)):
        torch.testing.assert_close(stored[:, 0], now.log_prob(rollout.output).sum(1))
    kl = kl_divergence(after, before).sum(1)
    torch.testing.assert_close(policy.divergence(rollout)[:, 0], kl, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="mean, log_std"):
        models.gaussian_policy(torch.zeros(3)).sample(["x"], gen())


def test_a_gaussian_policy_finds_the_best_number():
    policy, generator = models.gaussian_policy(torch.zeros(2)), gen()
    adam = torch.optim.Adam(policy.parameters, lr=0.05)
    for _ in range(100):
        rollout = policy.sample(["a number"], generator, copies=64)
        advantages = o.group_advantages(-((rollout.output - 3) ** 2), rollout.groups)
        assert (
            o.policy_update(policy, adam, rollout, o.reinforce(advantages))["ratio_deviation"] == 0
        )
    assert policy.parameters[0][0].item() == pytest.approx(3, abs=0.1)


# ------------------------------------------------------------------ pictures that are looked at


@pytest.fixture(scope="module")
def seeing():
    from data.models.vision_language import train

    torch.manual_seed(3)
    model = train.build().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(3.0)
    return model, train.build_processor()


def test_seeing_policies(seeing):
    policy = models.vision_language_policy(seeing, new=6, chunk=4)
    eye = [w.clone() for w in policy.model.model.vision_tower.parameters()]
    pictures = torch.rand(4, 3, 64, 64, generator=gen())
    asked = [(picture, "rate") for picture in pictures]
    rollout = policy.sample(asked, gen(1), copies=2)
    assert len(rollout.output) == 8 and isinstance(rollout.output[0], str)
    assert torch.equal(policy.log_probs(rollout), rollout.log_probs)
    views = models.make_views(policy.model, policy.processor, pictures, "rate")
    batch = models.answer_views(policy.model, views, 6, gen(1), 1.0, policy.end, policy.pad, 2)
    assert torch.equal(batch.ids, rollout.path.batch.ids)
    torch.testing.assert_close(batch.log_probs, rollout.log_probs, rtol=1e-4, atol=1e-5)
    # Rows in any company: uneven groups read their pictures anew.
    rows = torch.tensor([5, 0, 1, 7])
    torch.testing.assert_close(
        policy.log_probs(rollout.rows(rows)), rollout.log_probs[rows], rtol=1e-4, atol=1e-5
    )
    frozen = policy.sample(models.freeze_views(policy.model, views, 2), gen(1), copies=2)
    assert torch.equal(frozen.path.batch.ids, batch.ids)
    loss = o.clipped_ratio(randn(8), 0.2)
    stats = o.policy_update(
        policy, o.make_optimizer(policy.parameters, 1e-2), frozen, loss, beta=0.1
    )
    assert stats["ratio_deviation"] == 0 and stats["grad_norm"] > 0
    assert (policy.entropies(frozen)[frozen.mask] > 0).all()
    with policy.reference():
        assert torch.equal(policy.log_probs(frozen), frozen.log_probs)
    assert not torch.equal(policy.log_probs(frozen), frozen.log_probs)
    assert all(torch.equal(a, b) for a, b in zip(policy.model.model.vision_tower.parameters(), eye))
    twin = models.vision_language_policy(policy)
    assert twin.new == 6 and twin.processor is policy.processor and twin.model is not policy.model


# ------------------------------------------------------------------ the update, on a policy of numbers


@dataclass(frozen=True)
class Toy:
    """log p [B, T] = features @ theta; its divergence is (log p)^2. Path: features [B, T, D]."""

    theta: nn.Parameter
    chunk: int = 64
    at_once: int = 99

    @property
    def parameters(self):
        return [self.theta]

    def choices_at_once(self, rows):
        return self.at_once

    def replay(self, rollout, divergence=False):
        now = torch.where(rollout.mask, rollout.path.data @ self.theta, 0.0)
        return now, now**2 if divergence else None


@dataclass(frozen=True)
class Features:
    data: torch.Tensor

    def rows(self, rows):
        return Features(self.data[rows])

    def columns(self, steps):
        return Features(self.data[:, steps])


def toy(b=6, t=4, at_once=99, ragged=True):
    """(policy, rollout, advantages [B]) with ratios on both sides of 1 and ragged ends."""
    policy = Toy(nn.Parameter(randn(3, seed=7)), at_once=at_once)
    data, mask = randn(b, t, 3), torch.ones(b, t, dtype=torch.bool)
    if ragged:
        mask = torch.arange(t) <= torch.arange(b)[:, None] % t
    old = torch.where(mask, data @ policy.theta.detach() + 0.3 * randn(b, t, seed=1), 0.0)
    rollout = Rollout(
        list(range(b)), torch.arange(b) // 2, list(range(b)), old, mask, Features(data)
    )
    return policy, rollout, randn(b, seed=2)


def slow_gradient(policy, rollout, advantages, clip=0.2, beta=0.0, average="token"):
    """The loss and its gradient by loops over samples and choices."""
    theta, terms = policy.theta.detach().double().requires_grad_(), []
    count = rollout.mask.sum(1)
    for i in range(len(rollout)):
        for t in rollout.mask[i].nonzero().flatten().tolist():
            now = (rollout.path.data[i, t].double() * theta).sum()
            ratio, a = (now - rollout.log_probs[i, t].double()).exp(), float(advantages[i])
            term = torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip)) + beta * now**2
            part = {"token": rollout.mask.sum(), "sequence": count[i] * len(rollout)}
            terms.append(term / part.get(average, len(rollout) * 9))
    loss = torch.stack(terms).sum()
    return float(loss.detach()), torch.autograd.grad(loss, theta)[0].float()


def step_of(policy, rollout, loss, **options):
    """(stats, gradient that the optimizer was given)."""
    before = policy.theta.detach().clone()
    stats = o.policy_update(
        policy, torch.optim.SGD([policy.theta], 1.0), rollout, loss, max_grad_norm=1e9, **options
    )
    gradient = before - policy.theta.detach()
    with torch.no_grad():
        policy.theta.copy_(before)
    return stats, gradient


@pytest.mark.parametrize("average", ["token", "sequence", 9])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_update_equals_loops_for_every_split(shape, average):
    for batch in (None, 1, 2, 4):
        for at_once in (99, 1, 2):
            policy, rollout, advantages = toy(*shape, at_once=at_once)
            loss, gradient = slow_gradient(policy, rollout, advantages, 0.2, 0.3, average)
            stats, got = step_of(
                policy,
                rollout,
                o.clipped_ratio(advantages, 0.2),
                batch=batch,
                beta=0.3,
                average=average,
            )
            torch.testing.assert_close(got, gradient, rtol=1e-5, atol=1e-6)
            assert stats["loss"] == pytest.approx(loss, rel=1e-5)
            assert stats["grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-4)
            ratio = (policy.replay(rollout)[0] - rollout.log_probs).detach().exp()[rollout.mask]
            assert stats["ratio_mean"] == pytest.approx(float(ratio.mean()), rel=1e-5)
            outside = ((ratio < 0.8) | (ratio > 1.2)).float().mean()
            assert stats["clip_fraction"] == pytest.approx(float(outside)) and 0 < outside < 1


def wrong_losses(advantages):
    """name -> a loss with one mistake that runs through without an error where T = B."""
    right, a = o.clipped_ratio(advantages, 0.2), advantages
    return {
        "wrong sign": lambda new, old, rows: -right(new, old, rows),
        "wrong axis": lambda new, old, rows: o.ppo_clip_terms(new, old, a[rows][None, :], 0.2),
        "transposed": lambda new, old, rows: right(new.T, old.T, rows).T,
        "ratio to itself": lambda new, old, rows: right(new, new.detach(), rows),
        "no gradient in the ratio": lambda new, old, rows: right(new.detach(), old, rows) + 0 * new,
        "missing detach": lambda new, old, rows: right(new, new, rows),
        "rows ignored": lambda new, old, rows: right(new, old, torch.arange(len(rows))),
    }


def test_mistakes_show_where_samples_and_choices_are_equally_many():
    policy, rollout, advantages = toy(5, 5, ragged=False)
    gradient = slow_gradient(policy, rollout, advantages)[1]
    for name, loss in wrong_losses(advantages).items():
        got = step_of(policy, rollout, loss, batch=2 if name == "rows ignored" else None)[1]
        assert (got - gradient).norm() > 0.05 * gradient.norm(), name
    for batch in (None, 2):
        got = step_of(policy, rollout, o.clipped_ratio(advantages, 0.2), batch=batch)[1]
        torch.testing.assert_close(got, gradient, rtol=1e-5, atol=1e-6)


def test_shapes_are_asserted():
    policy, rollout, advantages = toy(6, 4)
    with pytest.raises(ValueError, match=r"\[samples, choices\]"):
        replace(rollout, log_probs=rollout.log_probs.T, mask=rollout.mask.T)
    with pytest.raises(ValueError, match=r"\[samples, choices\]"):
        replace(rollout, log_probs=rollout.log_probs[:, 0])
    with pytest.raises(ValueError, match="index both by the same rows"):
        o.policy_update(policy, None, rollout.rows([0, 3]), o.clipped_ratio(advantages, 0.2))
    with pytest.raises(ValueError, match="index both by the same rows"):
        o.policy_update(policy, None, rollout, o.reinforce(randn(4, 6)))
    with pytest.raises(ValueError, match=r"terms \[6, 4\], got \[6\]"):
        step_of(policy, rollout, lambda new, old, rows: new.sum(1))
    with pytest.raises(ValueError, match="nothing to train on"):
        o.policy_update(policy, None, rollout.rows([]), o.reinforce(advantages[:0]))
    by_choice = advantages[:, None].expand(6, 4)
    both = [step_of(policy, rollout, o.clipped_ratio(a, 0.2))[1] for a in (advantages, by_choice)]
    assert torch.equal(*both)


def test_a_loss_may_join_choices_of_one_pass_only():
    def whole(new, old, rows):  # one ratio a sample, as in GSPO
        return -(new - old).sum(1, keepdim=True).exp().expand(new.shape)

    policy, rollout, _ = toy()
    both = [step_of(policy, rollout, whole, batch=b)[1] for b in (None, 2)]
    torch.testing.assert_close(*both)
    with pytest.raises(ValueError, match="joins choices"):
        step_of(toy(at_once=2)[0], rollout, whole)


def test_far_ratios_neither_overflow_nor_vanish():
    policy, rollout, _ = toy(2, 3, ragged=False)
    far = replace(rollout, log_probs=rollout.log_probs - 100)
    stats, gradient = step_of(policy, far, o.clipped_ratio(torch.ones(2), 0.2))
    assert stats["loss"] == pytest.approx(-1.2) and gradient.norm() == 0
    stats, gradient = step_of(policy, far, o.clipped_ratio(torch.zeros(2), 0.2))
    assert stats["loss"] == 0 and gradient.norm() == 0
    loss = o.token_policy_loss(
        torch.zeros(1, 2),
        torch.full((1, 2), -100.0),
        torch.zeros(1),
        torch.ones(1, 2, dtype=torch.bool),
    )
    assert float(loss) == 0


def test_nothing_enters_off_the_mask():
    policy, rollout, advantages = toy()
    nan = torch.where(rollout.mask, rollout.log_probs, torch.nan)
    results = [
        step_of(policy, r, o.clipped_ratio(advantages, 0.2), batch=4)
        for r in (rollout, replace(rollout, log_probs=nan))
    ]
    assert torch.equal(results[0][1], results[1][1]) and results[0][0] == results[1][0]
    kept = torch.tensor([0, 2, 5])  # samples without a score are masked out
    valid = torch.zeros(6, dtype=torch.bool).index_fill(0, kept, True)
    masked = replace(rollout, mask=rollout.mask & valid[:, None])
    for average in ("token", "sequence"):
        a = step_of(policy, masked, o.clipped_ratio(advantages, 0.2), batch=2, average=average)
        b = step_of(
            policy, rollout.rows(kept), o.clipped_ratio(advantages[kept], 0.2), average=average
        )
        torch.testing.assert_close(a[1], b[1])


def test_bad_numbers_are_named_and_change_nothing():
    policy, rollout, advantages = toy(ragged=False)
    bad = advantages.index_fill(0, torch.tensor([3]), torch.nan)
    before = policy.theta.detach().clone()
    with pytest.raises(FloatingPointError, match="non-finite loss at step 0, sample 3"):
        o.policy_update(
            policy, o.make_optimizer([policy.theta], 0.1), rollout, o.reinforce(bad), batch=2
        )

    class Root(Toy):
        def replay(self, rollout, divergence=False):
            zero = rollout.path.data @ self.theta * 0.0  # a square root at 0
            extra = torch.where(
                torch.tensor(rollout.prompts)[:, None] == 4, zero.abs().sqrt(), zero
            )
            return super().replay(rollout)[0] + extra, None

    rooted = Root(policy.theta)
    with pytest.raises(FloatingPointError, match="non-finite gradient at step 0, sample 0"):
        o.policy_update(
            rooted, o.make_optimizer([policy.theta], 0.1), rollout, o.reinforce(advantages)
        )
    assert torch.equal(policy.theta, before) and policy.theta.grad is None


# ------------------------------------------------------------------ old calls on the same core


def gradients(policy, update):
    """What reaches the optimizer, as bits."""
    seen = []
    optimizer = torch.optim.SGD(policy.parameters, 0.0)
    optimizer.register_step_pre_hook(
        lambda *_: seen.extend(w.grad.clone() for w in policy.parameters)
    )
    return update(optimizer), seen


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_image_update_equals_policy_gradient_update_to_the_bit(flow, beta):
    policy = image(flow, guidance=2.0)
    rollout = policy.sample(PROMPTS, gen())
    shake(policy)
    path, advantages = rollout.path.trajectory, randn(3)
    act = models.denoiser(policy.model, models.embed(policy.model, PROMPTS), 2.0)
    table = policy.table
    anchor = o.anchor_weights("mean_dt", table.std, table.dt, table.b, 1)

    def replay(steps, rows):
        return samplers.replay(act, path, steps, rows)

    def reference(steps, rows):
        with models.reference(policy.model.network):
            return replay(steps, rows)

    old, old_grads = gradients(
        policy,
        lambda adam: o.policy_gradient_update(
            replay,
            adam,
            policy.parameters,
            path.log_probs,
            advantages,
            torch.arange(4),
            0.01,
            reference=reference,
            beta=beta,
            anchor=anchor,
        ),
    )
    new, new_grads = gradients(
        policy,
        lambda adam: o.policy_update(
            replace(policy, chunk=3),
            adam,
            rollout.columns(range(4)),
            o.clipped_ratio(advantages, 0.01),
            beta=beta,
        ),
    )
    for a, b in zip(old_grads, new_grads):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
        assert beta or torch.equal(a, b)
    assert {k: pytest.approx(v, rel=1e-6) for k, v in old.items()} == new


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("average, length", [("token", None), ("sequence", None), ("constant", 9)])
def test_token_update_equals_token_policy_loss_to_the_bit(average, length, beta):
    policy = language(chunk=64, temperature=3.0)
    twin = copy.deepcopy(policy.model)
    rollout = policy.sample([[3, 4, 5], [8], [9, 10], [2, 3]], gen(1), copies=3)
    shake(policy, 0.02)
    batch, advantages = rollout.path.batch, randn(12)
    assert len(batch.ids.unique(dim=0)) == 12
    now = models.token_logprobs(policy.model, batch)
    loss = o.token_policy_loss(
        now, rollout.log_probs, advantages, rollout.mask, (0.1, 0.3), average, length
    )
    if beta:
        with torch.no_grad():
            before = models.token_logprobs(twin, batch)
        loss = loss + beta * o.masked_mean(o.kl_k3(now, before), rollout.mask, average, length)
    loss.backward()
    nn.utils.clip_grad_norm_(policy.parameters, 1.0)
    slow = [w.grad.clone() for w in policy.parameters]
    stats, fast = gradients(
        policy,
        lambda adam: o.policy_update(
            policy,
            adam,
            rollout,
            o.clipped_ratio(advantages, (0.1, 0.3)),
            beta=beta,
            average=length or average,
        ),
    )
    assert all(torch.equal(a, b) for a, b in zip(slow, fast))
    assert stats["loss"] == pytest.approx(loss.item(), rel=1e-5) and stats["clip_fraction"] > 0
    assert math.isfinite(stats["approx_kl"]) and isinstance(batch, TokenBatch)
