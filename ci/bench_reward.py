"""Time to a result: CPU seconds and pictures until an embedded model reaches a given reward.

Arms of one family share network, adapters, sampler, noise, reward, prompts, number of pictures,
guidance (1: none), optimizer and gradient norm. "all steps" of ours and the peer's loop do the same
mathematics; the window and NFT are what ours may do instead. The peers' own functions come from
local checkouts only. Their scripts need CUDA, a hub and a tracker, so the loops below follow them
step by step, without what only logs.
"""

import ast
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rlgenkit import models, optimizers, rewards, samplers, worlds
from rlgenkit.commands.places import ROOT

STEPS, NOISE, RANK, CLIP = 10, 0.7, 8, 3e-3
COPIES = 4
WINDOW, TAIL = range(2), 2  # the steps that are trained, and deterministic ones behind them
NFT_RANGE = 2.0  # advantages beyond it count as it
TRACKER = 16, 4  # rewards of a prompt that are kept, and that are needed
EXAM_STEPS, EXAM_SEED = 5, 987_654


Plan = tuple[float, int]  # learning rate, updates a round
Grid = Sequence[Plan]
GRID: Grid = ((3e-3, 4), (1e-2, 2), (1e-2, 4), (3e-2, 4))
TRIAL_SEED, SEEDS = 100, (0, 1, 2)


@dataclass(frozen=True)
class Setting:
    """One family of models ("flow" or "epsilon"), what it is asked, and what is rewarded."""

    base: models.Policy
    table: samplers.StepTable
    short: samplers.StepTable
    exam: samplers.StepTable
    trained: range
    compare: Callable[[], Callable[[list[str], Tensor], Tensor]]
    gain: float  # of the exam, from its start to the target
    groups: int = 8
    most: int = 8  # rounds
    looks: int = 32  # pictures of the exam


@dataclass
class Run:
    """One training run. old: the weights that draw for NFT."""

    setting: Setting
    policy: models.ImagePolicy
    optimizer: torch.optim.Optimizer
    old: optimizers.Ema
    generator: torch.Generator
    compare: Callable[[list[str], Tensor], Tensor]
    updates: int
    memory: Any = None  # a peer's own tracker


Arms = Mapping[str, Callable[[Run], None]]

PROMPTS = [  # one thing in one color, as notebook 01 asks: pairs that the models have seen
    prompt
    for kind in worlds.KINDS[::2]
    for color in worlds.COLORS
    if worlds.split_of(prompt := worlds.caption((worlds.Group(kind, color),))) != "heldout"
]


def within_groups(texts: list[str], scores: Tensor) -> Tensor:
    """Advantages [B] of a round whose prompts have COPIES pictures each, neighbors."""
    return optimizers.group_advantages(scores, torch.arange(len(scores)) // COPIES)


def with_memory() -> Callable[[list[str], Tensor], Tensor]:
    """Advantages as DDPO's tracker gives them, fresh."""
    return optimizers.PromptTracker(*TRACKER).update


def flow_setting() -> Setting:
    """The flow model: SDE of Flow-GRPO; the last, nearly deterministic step is not trained."""
    base = models.load_policy(ROOT / "data" / "models" / "flow")
    models.embed(base, [prompt.text for prompt in PROMPTS])  # known to all, counted for none
    sigmas = samplers.sigmas_from_scheduler(base.scheduler, STEPS)
    table = samplers.flow_table(sigmas=sigmas, noise=NOISE)
    short = samplers.flow_table(sigmas=sigmas[_kept()], noise=NOISE)
    exam = samplers.flow_table(
        sigmas=samplers.sigmas_from_scheduler(base.scheduler, EXAM_STEPS), kind="ode"
    )
    return Setting(base, table, short, exam, range(STEPS - 1), lambda: within_groups, 0.4)


def epsilon_setting() -> Setting:
    """The noise-prediction model: DDIM with eta 1, every step trained, as in the peer."""
    base = models.load_policy(ROOT / "data" / "models" / "epsilon")
    models.embed(base, [prompt.text for prompt in PROMPTS])
    base.scheduler.register_to_config(timestep_spacing="trailing")
    base.scheduler.set_timesteps(STEPS)
    levels, times = base.scheduler.alphas_cumprod, base.scheduler.timesteps
    made = partial(samplers.ddim_table, levels)
    kept = times[_kept()[:-1]]
    return Setting(
        base, made(times), made(kept), made(times[::2], 0.0), range(STEPS), with_memory, 0.2
    )


def _kept() -> list[int]:
    """Places of the levels of a short sampler: those of the window, then TAIL steps to the end."""
    behind = torch.linspace(WINDOW[-1] + 1, STEPS, TAIL + 1).round().long()
    return [*WINDOW, *behind.tolist()]


@cache
def taste() -> torch.nn.Module:
    """The learned look, loaded once."""
    return rewards.load_aesthetic_proxy()


@torch.no_grad()
def reward(images: Tensor) -> Tensor:
    """The learned look [B] of pictures."""
    return taste()(images)


def begin(setting: Setting, seed: int, rate: float, updates: int) -> Run:
    """A fresh adapter, optimizer and generator; the global generator too, which the peers use."""
    torch.manual_seed(seed)
    policy = models.image_policy(setting.base, table=setting.table, rank=RANK, seed=seed)
    optimizer = optimizers.make_optimizer(policy.parameters, lr=rate)
    old, generator = optimizers.Ema(policy.parameters), torch.Generator().manual_seed(seed)
    return Run(setting, policy, optimizer, old, generator, setting.compare(), updates)


def ask(run: Run) -> list[str]:
    """The prompts of a round, each COPIES times, neighbors."""
    order = torch.randperm(len(PROMPTS), generator=run.generator)[: run.setting.groups]
    return [PROMPTS[i].text for i in order.tolist() for _ in range(COPIES)]


def parts(run: Run, count: int) -> tuple[Tensor, ...]:
    """The rows of each update of a round."""
    return torch.randperm(count, generator=run.generator).chunk(run.updates)


# ---------------------------------------------------------------- ours


def all_steps(run: Run) -> None:
    """GRPO over all trained steps: the peers' mathematics."""
    texts = ask(run)
    rollout = run.policy.sample(texts, run.generator)
    advantages = run.compare(texts, reward(rollout.output))
    for rows in parts(run, len(rollout)):
        part = rollout.rows(rows).columns(torch.tensor(run.setting.trained))
        loss = optimizers.clipped_ratio(advantages[rows], CLIP)
        optimizers.policy_update(run.policy, run.optimizer, part, loss)


def window(run: Run) -> None:
    """GRPO over the first two steps, a short deterministic tail, the first update on the graph that
    the rollout kept."""
    model, texts = run.policy.model, ask(run)
    cond = models.embed(model, texts)
    noise = samplers.initial_noise(len(texts), model.latent_shape, run.generator)
    path = samplers.rollout(
        models.denoiser(model, cond), run.setting.short, noise, run.generator, WINDOW,
        score_steps=WINDOW,
    )  # fmt: skip
    with torch.no_grad():
        advantages = run.compare(texts, reward(models.decode(model, path.final)))

    def kept(some: Tensor, rows: Tensor) -> tuple[Tensor, None]:
        return path.log_probs[some][:, rows], None

    def again(some: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        act = models.denoiser(model, cond.index(rows))
        return samplers.replay(act, path, some, rows, together=True)

    for k, rows in enumerate(parts(run, len(texts))):
        optimizers.policy_gradient_update(
            again if k else kept, run.optimizer, run.policy.parameters, path.log_probs.detach(),
            advantages, torch.tensor(WINDOW), CLIP, rows, steps_per_forward=len(WINDOW),
        )  # fmt: skip


def nft(run: Run) -> None:
    """DiffusionNFT on pictures of the exam's short ODE; two passes over the round."""
    texts, model = ask(run), run.policy.model
    with run.old.applied():
        rollout = replace(run.policy, table=run.setting.exam).sample(texts, run.generator)
    advantages = run.compare(texts, reward(rollout.output))
    optimality = 0.5 + 0.5 * (advantages / NFT_RANGE).clamp(-1, 1)
    clean, cond = rollout.path.trajectory.final, models.embed(model, texts)
    for rows in [rows for _ in range(2) for rows in parts(run, len(texts))]:
        times = torch.rand(len(rows), generator=run.generator)
        noise = samplers.draw_noise(clean[rows].shape, run.generator, clean.device)
        x, target = samplers.noised_flow(clean[rows], noise, times)
        act = models.denoiser(model, cond.index(rows))
        with torch.no_grad(), run.old.applied():
            before = act(x, 1000 * times)
        terms = optimizers.nft_terms(
            act(x, 1000 * times), before, target, optimality[rows], 1.0, times
        )
        terms.mean().backward()
        torch.nn.utils.clip_grad_norm_(run.policy.parameters, 1.0)
        run.optimizer.step()
        run.optimizer.zero_grad()
    run.old.update(0.5)


# ---------------------------------------------------------------- the peers


def lifted(script: Path, name: str, scope: dict) -> Callable:
    """The function `name` of a script whose imports are not there, by ast."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    wanted = [node for node in tree.body if getattr(node, "name", "") == name]
    exec(compile(ast.Module(wanted, []), name, "exec"), scope)
    return scope[name]


class Decoder(torch.nn.Module):
    """An embedded autoencoder as the peers' pipelines call it: latents of unit scale."""

    def __init__(self, model: models.Policy) -> None:
        super().__init__()
        self.model, self.dtype, self.device = model, torch.float32, model.device
        self.config = SimpleNamespace(scaling_factor=1.0, shift_factor=0.0, block_out_channels=(1,))

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (models.decode(self.model, latents) * 2 - 1,)


@dataclass(frozen=True)
class FlowGrpo:
    """flow_grpo's pipeline, step, log-prob and tracker."""

    step: Callable
    sample: Callable
    log_prob: Callable
    tracker: Callable


def flow_grpo(path: Path) -> FlowGrpo:
    """From a local checkout."""
    sys.path.insert(0, str(path))
    patches = "flow_grpo.diffusers_patch.sd3_"
    step = importlib.import_module(f"{patches}sde_with_logprob").sde_step_with_logprob
    sample = importlib.import_module(f"{patches}pipeline_with_logprob").pipeline_with_logprob
    scope = {"torch": torch, "sde_step_with_logprob": step}
    log_prob = lifted(path / "scripts" / "train_sd3.py", "compute_log_prob", scope)
    tracker = importlib.import_module("flow_grpo.stat_tracking").PerPromptStatTracker
    return FlowGrpo(step, sample, log_prob, tracker)


def sd3_pipeline(network: torch.nn.Module, vae: torch.nn.Module, scheduler: Any) -> Any:
    """A diffusers pipeline around a network in training."""
    from diffusers import StableDiffusion3Pipeline

    texts = ("", "_2", "_3")
    nothing = {f"{kind}{k}": None for kind in ("text_encoder", "tokenizer") for k in texts}
    pipeline = StableDiffusion3Pipeline(
        transformer=network, vae=vae, scheduler=scheduler, **nothing
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flow_grpo_round(peer: FlowGrpo, run: Run) -> None:
    """One epoch of flow_grpo's scripts/train_sd3.py (from "SAMPLING" to the end of the loop) with
    cfg False, beta 0, ema False and one inner epoch."""
    model, texts = run.policy.model, ask(run)
    pipeline = sd3_pipeline(model.network, Decoder(model), model.scheduler)
    cond, side = models.embed(model, texts), model.latent_shape[-1]
    images, latents, log_probs = peer.sample(
        pipeline, prompt_embeds=cond.tokens, pooled_prompt_embeds=cond.pooled,
        num_inference_steps=STEPS, guidance_scale=1.0, output_type="pt", height=side, width=side,
        noise_level=NOISE,
    )  # fmt: skip
    states = torch.stack(latents, dim=1)
    scores = reward(images)[:, None].repeat(1, len(run.setting.trained))
    advantages = peer.tracker(global_std=False).update(texts, scores.numpy())
    samples = {
        "prompt_embeds": cond.tokens,
        "pooled_prompt_embeds": cond.pooled,
        "timesteps": pipeline.scheduler.timesteps.repeat(len(texts), 1),
        "latents": states[:, :-1],
        "next_latents": states[:, 1:],
        "log_probs": torch.stack(log_probs, dim=1),
        "advantages": torch.as_tensor(advantages).float(),
    }
    for rows in parts(run, len(texts)):
        flow_grpo_update(peer, run, pipeline, {k: v[rows] for k, v in samples.items()})


def flow_grpo_update(peer: FlowGrpo, run: Run, pipeline, sample: dict[str, Tensor]) -> None:
    """Its inner loop over one batch: a backward pass a step, one optimizer step at the end."""
    config = SimpleNamespace(
        train=SimpleNamespace(cfg=False), sample=SimpleNamespace(noise_level=NOISE)
    )
    embeds = sample["prompt_embeds"], sample["pooled_prompt_embeds"]
    for j in run.setting.trained:
        _, log_prob, _, _ = peer.log_prob(
            pipeline.transformer, pipeline, sample, j, *embeds, config
        )
        clipped_backward(log_prob, sample["log_probs"][:, j], sample["advantages"][:, j], run)
    descend(run)


def clipped_backward(log_prob: Tensor, before: Tensor, advantages: Tensor, run: Run) -> None:
    """The clipped loss of one step as both scripts write it, its gradient accumulated."""
    advantages = torch.clamp(advantages, -5, 5)
    ratio = torch.exp(log_prob - before)
    clipped = torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
    loss = torch.mean(torch.maximum(-advantages * ratio, -advantages * clipped))
    (loss / len(run.setting.trained)).backward()


def descend(run: Run) -> None:
    """Clip the gradient, one optimizer step."""
    torch.nn.utils.clip_grad_norm_(run.policy.parameters, 1.0)
    run.optimizer.step()
    run.optimizer.zero_grad()


@dataclass(frozen=True)
class Ddpo:
    """ddpo-pytorch's pipeline, step and tracker."""

    sample: Callable
    step: Callable
    tracker: Callable


def ddpo(path: Path) -> Ddpo:
    """From a local checkout, whose import of randn_tensor is older than the diffusers here."""
    import diffusers.utils
    from diffusers.utils.torch_utils import randn_tensor

    diffusers.utils.randn_tensor = randn_tensor
    sys.path.insert(0, str(path))
    patches = "ddpo_pytorch.diffusers_patch."
    step = importlib.import_module(f"{patches}ddim_with_logprob").ddim_step_with_logprob
    sample = importlib.import_module(f"{patches}pipeline_with_logprob").pipeline_with_logprob
    return Ddpo(
        sample, step, importlib.import_module("ddpo_pytorch.stat_tracking").PerPromptStatTracker
    )


class Unet:
    """The denoiser of some prompts as ddpo-pytorch calls its U-Net."""

    def __init__(self, run: Run, cond: models.Conditioning) -> None:
        channels, side, _ = run.policy.model.latent_shape
        self.config = SimpleNamespace(in_channels=channels, sample_size=side)
        self.act = models.denoiser(run.policy.model, cond)

    def __call__(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, **_: object) -> tuple:
        return (self.act(x, t),)


def ddim_pipeline(run: Run, cond: models.Conditioning) -> SimpleNamespace:
    """What ddpo-pytorch's sampling asks of a Stable Diffusion pipeline, around the network in
    training: the class itself wants a U-Net and, in the diffusers here, guidance."""
    from diffusers.image_processor import VaeImageProcessor

    model = run.policy.model

    def start(count: int, channels: int, height: int, width: int, *_: object) -> Tensor:
        return torch.randn(count, channels, height, width)

    return SimpleNamespace(
        unet=Unet(run, cond), vae=Decoder(model), scheduler=model.scheduler, vae_scale_factor=1,
        image_processor=VaeImageProcessor(), _execution_device=model.device,
        check_inputs=lambda *_: None, prepare_latents=start,
        _encode_prompt=lambda *_, prompt_embeds, **__: prompt_embeds,
        prepare_extra_step_kwargs=lambda generator, eta: {"eta": eta, "generator": generator},
        progress_bar=lambda total: nullcontext(SimpleNamespace(update=lambda: None)),
        run_safety_checker=lambda image, *_: (image, None),
    )  # fmt: skip


def ddpo_round(peer: Ddpo, run: Run) -> None:
    """One epoch of ddpo-pytorch's scripts/train.py (from "SAMPLING" to the end of the loop) with
    cfg False, timestep_fraction 1 and one inner epoch; run.memory is its tracker."""
    texts = ask(run)
    cond = models.embed(run.policy.model, texts)
    pipeline = ddim_pipeline(run, cond)
    images, _, latents, log_probs = peer.sample(
        pipeline, prompt_embeds=cond.tokens, num_inference_steps=STEPS, guidance_scale=1.0, eta=1.0,
        output_type="pt",
    )  # fmt: skip
    states = torch.stack(latents, dim=1)
    if run.memory is None:
        run.memory = peer.tracker(*TRACKER)
    advantages = run.memory.update(texts, reward(images).double().numpy())
    samples = {
        "timesteps": pipeline.scheduler.timesteps.repeat(len(texts), 1),
        "latents": states[:, :-1],
        "next_latents": states[:, 1:],
        "log_probs": torch.stack(log_probs, dim=1),
    }
    # Its shuffle along time, each sample in an order of its own.
    order = torch.stack([torch.randperm(STEPS) for _ in texts])
    samples = {k: v[torch.arange(len(texts))[:, None], order] for k, v in samples.items()}
    samples["advantages"] = torch.as_tensor(advantages).float()
    for rows in parts(run, len(texts)):
        unet = Unet(run, cond.index(rows))
        ddpo_update(peer, run, unet, {k: v[rows] for k, v in samples.items()})


def ddpo_update(peer: Ddpo, run: Run, unet: Unet, sample: dict[str, Tensor]) -> None:
    """Its inner loop over one batch: a backward pass a step, one optimizer step at the end."""
    for j in run.setting.trained:
        times, x = sample["timesteps"][:, j], sample["latents"][:, j]
        _, log_prob = peer.step(
            run.policy.model.scheduler, unet(x, times, None)[0], times, x, eta=1.0,
            prev_sample=sample["next_latents"][:, j],
        )  # fmt: skip
        clipped_backward(log_prob, sample["log_probs"][:, j], sample["advantages"], run)
    descend(run)


# ---------------------------------------------------------------- runs


def exam(run: Run) -> float:
    """Mean reward of fixed noise and prompts, drawn without noise."""
    chosen = [PROMPTS[i % len(PROMPTS)] for i in range(run.setting.looks)]
    generator = torch.Generator().manual_seed(EXAM_SEED)
    rollout = replace(run.policy, table=run.setting.exam).sample(chosen, generator)
    return reward(rollout.output).mean().item()


def race(arms: Arms, setting: Setting, plan: dict[str, Plan], seed: int, target: float) -> dict:
    """Every arm from scratch until its exam reaches `target`, at most MOST rounds, the arms' rounds
    in turn: {arm: CPU seconds without exams, exams from the start on}."""
    runs = {name: begin(setting, seed, *plan[name]) for name in arms}
    found = {name: {"seconds": 0.0, "exams": [exam(run)]} for name, run in runs.items()}
    for _ in range(setting.most):
        for name, learn in arms.items():
            if (own := found[name])["exams"][-1] >= target:
                continue
            start = time.process_time()
            learn(runs[name])
            own["seconds"] += time.process_time() - start
            own["exams"].append(exam(runs[name]))
    return found


def family(setting: Setting, peers: Arms, seeds: Sequence[int] = SEEDS, grid: Grid = GRID) -> dict:
    """Time to the start's exam and `gain` more, for ours and the peers'.

    Rates and updates a round come from one trial seed, the same grid for each arm of ours; a peer
    takes those of ours over all steps, whose update it shares.
    """
    ours = {"ours, all steps": all_steps, "ours, window": window}
    if setting.base.family == "flow":
        ours["ours, NFT"] = nft
    start = exam(begin(setting, TRIAL_SEED, *grid[0]))
    target, trials = start + setting.gain, []
    for plan in grid:
        found = race(ours, setting, dict.fromkeys(ours, plan), TRIAL_SEED, target)
        trials += [{"arm": name, "plan": plan, **rounded(own)} for name, own in found.items()]
    plans = {name: best([t for t in trials if t["arm"] == name], target) for name in ours}
    plans |= dict.fromkeys(peers, plans["ours, all steps"])
    races = [race(peers | ours, setting, plans, seed, target) for seed in seeds]
    first = next(iter(races[0]))
    return {
        "start": round(start, 3),
        "target": round(target, 3),
        "pictures a round": setting.groups * COPIES,
        "arms": {
            name: told([r[name] for r in races], [r[first] for r in races], target, plans[name])
            for name in races[0]
        },
        "grid": trials,
    }  # fmt: skip


def best(trials: list[dict], target: float) -> Plan:
    """The plan that was first at the target, or came nearest to it."""
    done = [t for t in trials if t["exams"][-1] >= target]
    if done:
        return min(done, key=lambda t: t["seconds"])["plan"]
    return max(trials, key=lambda t: t["exams"][-1])["plan"]


def rounded(own: dict) -> dict:
    """A run for the record."""
    return {"seconds": round(own["seconds"], 2), "exams": [round(x, 3) for x in own["exams"]]}


def told(runs: list[dict], first: list[dict], target: float, plan: Plan) -> dict:
    """An arm over its seeds: medians, and the median and range of its seconds over the first arm's.

    Where a run did not reach the target its seconds are those of all its rounds, a lower bound.
    """
    rounds = [len(own["exams"]) - 1 for own in runs]
    ratios = [own["seconds"] / other["seconds"] for own, other in zip(runs, first)]
    return {
        "rate": plan[0],
        "updates": plan[1],
        "reached": sum(own["exams"][-1] >= target for own in runs),
        "seconds": round(statistics.median(own["seconds"] for own in runs), 2),
        "seconds a round": round(sum(own["seconds"] for own in runs) / sum(rounds), 2),
        "rounds": statistics.median(rounds),
        "ratio": round(statistics.median(ratios), 3),
        "range": [round(min(ratios), 3), round(max(ratios), 3)],
        "runs": [rounded(own) for own in runs],
    }
