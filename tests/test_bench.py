"""The benchmark: its arms do the mathematics that it names, its arithmetic and its page."""

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from ci import bench, bench_page, bench_reward, bench_tokens
from rlgenkit import models, optimizers, samplers
from rlgenkit.commands.places import RESULTS


@cache
def setting(name):
    """A family with one prompt of four pictures a round."""
    made = {"flow": bench_reward.flow_setting, "epsilon": bench_reward.epsilon_setting}[name]()
    return replace(made, groups=1, most=1, looks=4)


def fresh(name):
    """A run whose optimizer subtracts the clipped gradient itself, one update a round. Adapters start
    at a product of 0, where one half of them has no gradient: a shake moves them off."""
    run = bench_reward.begin(setting(name), 3, 1e-2, 1)
    run.optimizer = torch.optim.SGD(run.policy.parameters, lr=1.0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in run.policy.parameters:
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return run


def moved(run, learn):
    """What `learn` subtracts from the adapters, as one vector."""
    before = torch.cat([p.detach().flatten() for p in run.policy.parameters])
    learn(run)
    return before - torch.cat([p.detach().flatten() for p in run.policy.parameters])


def by_hand(run, table, steps, rollout_of):
    """The clipped gradient of -A exp(log p - old) over the steps, densities by torch."""
    texts = bench_reward.ask(run)
    path = rollout_of(texts)
    scores = bench_reward.reward(models.decode(run.policy.model, path.final))
    advantages = run.compare(texts, scores)
    act = models.denoiser(run.policy.model, models.embed(run.policy.model, texts))
    for j in steps:
        x, after = path.latents[j], path.latents[j + 1]
        mean = table.a[j] * x + table.b[j] * act(x, table.t[j].expand(len(x)))
        density = torch.distributions.Normal(mean, table.std[j]).log_prob(after)
        new = density.flatten(1).mean(1)
        assert torch.allclose(new, path.log_probs[j], atol=1e-4)
        (-(advantages * (new - path.log_probs[j].detach()).exp()).mean() / len(steps)).backward()
    torch.nn.utils.clip_grad_norm_(run.policy.parameters, 1.0)
    return torch.cat([p.grad.flatten() for p in run.policy.parameters])


def close(found, expected):
    size = expected.abs().max()
    assert size > 1e-4
    assert (found - expected).abs().max() <= min(1e-5, 1e-3 * size)


@pytest.mark.parametrize("name", ["flow", "epsilon"])
def test_all_steps_make_the_gradient_of_the_clipped_loss(name):
    run = fresh(name)
    expected = by_hand(
        run,
        run.setting.table,
        run.setting.trained,
        lambda texts: run.policy.sample(texts, run.generator).path.trajectory,
    )
    close(moved(fresh(name), bench_reward.all_steps), expected)


@pytest.mark.parametrize("name", ["flow", "epsilon"])
def test_the_window_makes_the_gradient_of_its_own_steps_alone(name):
    run = fresh(name)
    table = samplers.windowed(run.setting.short, bench_reward.WINDOW)

    def rollout_of(texts):
        noise = samplers.initial_noise(len(texts), run.policy.model.latent_shape, run.generator)
        act = models.denoiser(run.policy.model, models.embed(run.policy.model, texts))
        with torch.no_grad():
            return samplers.rollout(act, table, noise, run.generator)

    expected = by_hand(run, table, bench_reward.WINDOW, rollout_of)
    assert table.std[2:].count_nonzero() == 0 and len(table) == 4
    close(moved(fresh(name), bench_reward.window), expected)


def checkout(name):
    """A local checkout of a peer, named by an environment variable."""
    if not (path := os.environ.get(name)):
        pytest.skip(f"set {name} to a checkout of the peer")
    return Path(path)


def samples_of(run, rollout):
    """Our rollout as the peers' loops want it."""
    path, scheduler = rollout.path.trajectory, run.policy.model.scheduler
    scheduler.set_timesteps(bench_reward.STEPS)
    return {
        "timesteps": scheduler.timesteps.repeat(len(rollout), 1),
        "latents": path.latents[:-1].transpose(0, 1),
        "next_latents": path.latents[1:].transpose(0, 1),
        "log_probs": rollout.log_probs,
    }


def test_flow_grpo_makes_our_update():
    peer, run = bench_reward.flow_grpo(checkout("FLOW_GRPO")), fresh("flow")

    def learn(run):
        texts, model = bench_reward.ask(run), run.policy.model
        rollout = run.policy.sample(texts, run.generator)
        scores = bench_reward.reward(rollout.output)[:, None].repeat(1, len(run.setting.trained))
        cond = models.embed(model, texts)
        sample = samples_of(run, rollout) | {
            "prompt_embeds": cond.tokens,
            "pooled_prompt_embeds": cond.pooled,
            "advantages": torch.tensor(peer.tracker(False).update(texts, scores.numpy())).float(),
        }
        pipeline = bench_reward.sd3_pipeline(
            model.network, bench_reward.Decoder(model), model.scheduler
        )
        bench_reward.flow_grpo_update(peer, run, pipeline, sample)

    close(moved(run, learn), moved(fresh("flow"), bench_reward.all_steps))


def test_ddpo_pytorch_makes_our_update():
    peer, run = bench_reward.ddpo(checkout("DDPO_PYTORCH")), fresh("epsilon")

    def learn(run):
        texts = bench_reward.ask(run)
        rollout = run.policy.sample(texts, run.generator)
        scores = bench_reward.reward(rollout.output).double().numpy()
        tracker = peer.tracker(*bench_reward.TRACKER)
        sample = samples_of(run, rollout)
        sample["advantages"] = torch.tensor(tracker.update(texts, scores)).float()
        unet = bench_reward.Unet(run, models.embed(run.policy.model, texts))
        bench_reward.ddpo_update(peer, run, unet, sample)

    close(moved(run, learn), moved(fresh("epsilon"), bench_reward.all_steps))


def test_a_race_ends_at_the_target_and_counts_no_exam(monkeypatch):
    clock, made = [0.0], []

    def look(run):
        clock[0] += 100.0  # an exam takes long
        return run["score"]

    def arm(cost, step):
        def learn(run):
            clock[0] += cost
            run["score"] += step

        return learn

    def begin(setting, seed, rate, updates):
        made.append((seed, rate, updates))
        return {"score": 0.0}

    monkeypatch.setattr(bench_reward, "begin", begin)
    monkeypatch.setattr(bench_reward, "exam", look)
    monkeypatch.setattr(bench_reward.time, "process_time", lambda: clock[0])
    arms = {"slow": arm(4.0, 1.0), "fast": arm(1.0, 2.0), "never": arm(1.0, 0.0)}
    few = replace(setting("flow"), most=5)
    plan = {name: (0.1 * k, k) for k, name in enumerate(arms)}
    found = bench_reward.race(arms, few, plan, 7, 3.0)
    assert made == [(7, 0.1 * k, k) for k in range(3)]
    assert found["slow"] == {"seconds": 12.0, "exams": [0.0, 1.0, 2.0, 3.0]}
    assert found["fast"] == {"seconds": 2.0, "exams": [0.0, 2.0, 4.0]}
    assert found["never"] == {"seconds": 5.0, "exams": [0.0] * 6}
    told = bench_reward.told([found["fast"]] * 2, [found["slow"], found["never"]], 3.0, (0.1, 1))
    assert (told["reached"], told["rounds"], told["seconds"]) == (2, 2, 2.0)
    assert told["ratio"] == round((2 / 12 + 2 / 5) / 2, 3) and told["range"] == [0.167, 0.4]


def test_the_best_plan_is_the_first_at_the_target_else_the_nearest():
    rows = [
        {"plan": "a", "seconds": 9.0, "exams": [0.0, 3.0]},
        {"plan": "b", "seconds": 5.0, "exams": [0.0, 1.0]},
        {"plan": "c", "seconds": 7.0, "exams": [0.0, 2.0]},
    ]
    assert bench_reward.best(rows, 2.0) == "c"
    assert bench_reward.best(rows, 4.0) == "a"


def test_an_unscored_step_of_tokens_is_the_clipped_one():
    """On the policy's own draws; that TRL's loss is the same too is tested in test_trl.py."""
    model = bench_tokens.network(64, width=16, layers=1)
    reader, texts = bench_tokens.tokenizer(64), bench_tokens.prompts(64)
    ends = []
    for scored in (False, True):
        policy = models.language_policy((model, reader), new=8, chunk=64)
        optimizer = torch.optim.SGD(policy.parameters, lr=1.0)
        draw = torch.Generator().manual_seed(2)
        if scored:
            rollout = policy.sample(texts, draw, copies=bench_tokens.COPIES)
            scores = torch.tensor(bench_tokens.reward(rollout.output))
            loss = optimizers.clipped_ratio(
                optimizers.group_advantages(scores, rollout.groups), 0.2
            )
            optimizers.policy_update(policy, optimizer, rollout, loss)
        else:
            bench_tokens.our_step(policy, optimizer, texts, draw)
        ends.append(torch.cat([p.detach().flatten() for p in policy.parameters]))
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (ends[0] - start).abs().max() > 1e-3
    assert torch.allclose(*ends, atol=1e-6)


def test_a_study_is_timed_by_one_process_and_two_in_turn(monkeypatch):
    clock, jobs = [0.0], []

    def run(command, **_):
        jobs.append(int(command[command.index("--jobs") + 1]))
        clock[0] += 30.0 if jobs[-1] == 1 else 16.0

    monkeypatch.setattr(bench_tokens.subprocess, "run", run)
    monkeypatch.setattr(bench_tokens.time, "perf_counter", lambda: clock[0])
    found = bench_tokens.study(50, 2)
    assert jobs == [1, 2, 1, 2]
    assert found == {"one process": 30.0, "two processes": 16.0, "ratio": 1.88}


def test_a_quick_bench_writes_its_parts_and_leaves_the_others(tmp_path):
    target = tmp_path / "bench.json"
    target.write_text('{"study": {"9": {"one process": 19, "two processes": 10, "ratio": 1.9}}}')
    assert bench.main(["--quick", "--parts", "flow", "tokens", "--out", str(target)]) == 0
    found = json.loads(target.read_text())
    assert found["study"]["9"]["ratio"] == 1.9 and "epsilon" not in found
    assert set(found["flow"]["arms"]) == {"ours, all steps", "ours, window", "ours, NFT"}
    assert {"TRL, a step", "ours, a step"} <= found["tokens"]["64"].keys()
    assert "tables" not in found and bench_page.page(found)


def test_the_page_is_made_from_the_committed_numbers():
    result = json.loads((RESULTS / "bench.json").read_text(encoding="utf-8"))
    assert (RESULTS / "bench.md").read_text(encoding="utf-8") == bench_page.page(result)
