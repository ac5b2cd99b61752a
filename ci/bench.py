"""What samplers and one policy-gradient iteration cost and how soon they reach a result, beside peers
on a CPU; the cost at full size on a GPU.

On a CPU everything runs in one process on one thread. Each repeat times all rivals in turn by CPU
seconds (wall clock on a shared machine varies several times over); reported are the median of each
and the median of the ratios to the first. `--peer PATH` names a local checkout of flow_grpo, whose
own functions then run on the same network, noise level and number of steps, loaded from there only;
`--ddpo-peer PATH` does so for ddpo-pytorch. `--parts` names what is measured (all): speed, flow and
epsilon (time to a reward, ci/bench_reward.py), tokens and study (ci/bench_tokens.py); the other parts
of the file stay. `--quick` is a small case of each part that says nothing.
`--device cuda` times the embedded network and one of the size of Stable Diffusion 3.5 medium
(random weights, LoRA of rank 32: weights do not change the cost) and runs the tests marked `gpu`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ci import bench_reward, bench_tokens
from rlgenkit import models, optimizers, samplers
from rlgenkit.commands.experiment import hardware
from rlgenkit.commands.places import ROOT

STEPS, NOISE, CLIP = 10, 0.7, 1e-4
TRAINED = range(STEPS - 1)  # the last step is nearly deterministic and left out, as in the peer
WINDOW = range(2, 4)
# Networks of the class SD3; then images, side of the latents, text tokens, rank of the LoRA.
SMALL = {
    "sample_size": 8, "patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 4,
    "attention_head_dim": 32, "num_attention_heads": 4, "joint_attention_dim": 128,
    "caption_projection_dim": 128, "pooled_projection_dim": 128, "pos_embed_max_size": 8,
}  # fmt: skip
EMBEDDED = {**SMALL, "in_channels": 8, "out_channels": 8, "num_layers": 6, "qk_norm": "rms_norm"}
SD35 = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096,
    "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm",
}  # fmt: skip
CPU_CASE = (SMALL, 8, 8, 16, None)
GPU_CASES = {
    "embedded flow model": (EMBEDDED, 512, 8, 16, None),
    "size of SD 3.5 medium, 512 px": (SD35, 16, 64, 333, 32),
}
Rivals = Mapping[str, Callable[[], object]]


def medians(rivals: Rivals, repeats: int, clock: Callable[[], float], inner: int = 1) -> dict:
    """Median microseconds of every rival, and the median ratio of each to the first one."""
    spent: dict[str, list[float]] = {name: [] for name in rivals}
    for k in range(repeats + 1):
        for name, call in rivals.items():
            start = clock()
            for _ in range(inner):
                call()
            if k:  # the first time warms up
                spent[name].append((clock() - start) / inner)
    first = next(iter(spent.values()))
    return {
        name: {
            "microseconds": round(statistics.median(values) * 1e6, 1),
            "ratio": round(statistics.median(a / b for a, b in zip(values, first)), 4),
        }
        for name, values in spent.items()
    }


class Setting:
    """A random network with fixed random text states, and our functions closed over them."""

    def __init__(self, case: tuple, device: str) -> None:
        from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

        config, self.batch, side, tokens, rank = case
        torch.manual_seed(0)
        with torch.device(device):
            network = SD3Transformer2DModel(**config)
            torch.nn.init.normal_(network.proj_out.weight, std=0.02)
            self.network = network if rank is None else network.bfloat16()
            self.trained = (
                list(network.parameters()) if rank is None else models.add_lora(network, rank)
            )
            self.dtype = next(network.parameters()).dtype
            shape = (self.batch, tokens, config["joint_attention_dim"])
            self.tokens = torch.randn(shape, dtype=self.dtype)
            self.pooled = torch.randn(self.batch, config["pooled_projection_dim"], dtype=self.dtype)
            self.noise = torch.randn(self.batch, config["in_channels"], side, side)
            self.advantages = torch.randn(self.batch)
            self.vae = AutoencoderKL(
                block_out_channels=(4,), norm_num_groups=2, layers_per_block=1,
                latent_channels=config["in_channels"], scaling_factor=1.0, shift_factor=0.0,
            )  # fmt: skip
        self.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        self.table = samplers.flow_table(
            sigmas=samplers.sigmas_from_scheduler(self.scheduler, STEPS), noise=NOISE
        )
        self.optimizer = optimizers.make_optimizer(self.trained, lr=1e-6)
        self.generator = torch.Generator(device).manual_seed(0)

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        k = len(x) // self.batch
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            return self.network(
                hidden_states=x.to(self.dtype), timestep=t.to(x.device), return_dict=False,
                encoder_hidden_states=self.tokens.repeat(k, 1, 1),
                pooled_projections=self.pooled.repeat(k, 1),
            )[0].float()  # fmt: skip

    @torch.no_grad()
    def bare(self) -> None:
        for t in self.table.t:
            self.denoise(self.noise, t.expand(self.batch))

    def rollout(self, window: range | None = None, scored: range | tuple = (), tail: int = 0):
        """A trajectory; tail: deterministic steps behind the window instead of those of the table."""
        table = self.table
        if tail:
            picked = torch.linspace(window[-1] + 1, STEPS, tail + 1).round().long()
            sigmas = torch.cat([table.sigma[: window[-1] + 1], table.sigma[picked]])
            table = samplers.flow_table(sigmas=sigmas, noise=NOISE)
        return samplers.rollout(
            self.denoise, table, self.noise, self.generator, window, score_steps=scored
        )

    def update(self, path: Any, steps: range, reuse: bool = False, together: bool = True) -> None:
        """One clipped update over `steps`; reuse: on the graph that the rollout kept."""

        def replay(some: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None]:
            if reuse:
                return path.log_probs[some][:, rows], None
            return samplers.replay(self.denoise, path, some, together=together)

        optimizers.policy_gradient_update(
            replay, self.optimizer, self.trained, path.log_probs.detach(), self.advantages,
            torch.tensor(list(steps)), clip=CLIP, steps_per_forward=len(steps) if reuse else 1,
        )  # fmt: skip

    def iteration(self, window: range | None = None, reuse: bool = False, tail: int = 0) -> None:
        """Rollout, decode and one update over the trained steps."""
        steps = window or TRAINED
        path = self.rollout(window, steps if reuse else (), tail)
        with torch.no_grad():
            self.vae.decode(path.final, return_dict=False)
        self.update(path, steps, reuse)


# ---------------------------------------------------------------- the peer


class Peer:
    """flow_grpo's own functions around the network of a setting."""

    def __init__(self, path: Path, setting: Setting) -> None:
        self.own, self.setting = bench_reward.flow_grpo(path), setting
        self.step, self.sample, self.log_prob = self.own.step, self.own.sample, self.own.log_prob
        self.pipeline = bench_reward.sd3_pipeline(setting.network, setting.vae, setting.scheduler)

    def rollout(self) -> dict[str, Tensor]:
        """Its rollout without guidance, arranged as its training loop wants the samples."""
        s = self.setting
        _, latents, log_probs = self.sample(
            self.pipeline, prompt_embeds=s.tokens, pooled_prompt_embeds=s.pooled,
            num_inference_steps=STEPS, guidance_scale=1.0, output_type="pt", height=8, width=8,
            latents=s.noise, noise_level=NOISE,
        )  # fmt: skip
        states = torch.stack(latents, dim=1)
        return {
            "latents": states[:, :-1],
            "next_latents": states[:, 1:],
            "log_probs": torch.stack(log_probs, dim=1),
            "timesteps": self.pipeline.scheduler.timesteps.repeat(s.batch, 1),
        }

    def iteration(self) -> None:
        """Its rollout and its per-step backward passes, with one optimizer step at the end."""
        s, sample = self.setting, self.rollout()
        config = SimpleNamespace(
            train=SimpleNamespace(cfg=False), sample=SimpleNamespace(noise_level=NOISE)
        )
        for j in TRAINED:
            _, log_prob, _, _ = self.log_prob(
                s.network, self.pipeline, sample, j, s.tokens, s.pooled, config
            )
            ratio = torch.exp(log_prob - sample["log_probs"][:, j])
            clipped = torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
            loss = torch.maximum(-s.advantages * ratio, -s.advantages * clipped).mean()
            (loss / len(TRAINED)).backward()
        torch.nn.utils.clip_grad_norm_(s.trained, 1.0)
        s.optimizer.step()
        s.optimizer.zero_grad()


# ---------------------------------------------------------------- the tables


def steps(setting: Setting, peer: Peer | None) -> Rivals:
    """One step with its log-prob on 32 x 4 x 8 x 8: drawn and replayed.

    The peer's pipeline passes one time for the batch, its training loop one per sample.
    """
    table, g = setting.table, torch.Generator().manual_seed(0)
    x, v = torch.randn(32, 4, 8, 8), torch.randn(32, 4, 8, 8)
    after = samplers.step(table, 3, x, v, generator=g).sample
    rivals = {
        "ours draw": lambda: samplers.step(table, 3, x, v, generator=g),
        "ours replay": lambda: samplers.step(table, 3, x, v, after),
    }
    if peer is None:
        return rivals
    scheduler, t = setting.scheduler, setting.scheduler.timesteps[3]
    many = t.expand(32)
    return rivals | {
        "peer draw": lambda: peer.step(scheduler, v, t.unsqueeze(0), x, NOISE, generator=g),
        "peer draw, a time per sample": lambda: peer.step(
            scheduler, v, many, x, NOISE, generator=g
        ),
        "peer replay": lambda: peer.step(scheduler, v, many, x, NOISE, prev_sample=after),
    }


def speed(options: argparse.Namespace) -> dict:
    """All tables of the cost; ratios are to the first row of each."""
    setting, clock = Setting(CPU_CASE, "cpu"), time.process_time
    peer = options.peer and Peer(options.peer.resolve(), setting)
    with torch.no_grad():
        rows = {"step": medians(steps(setting, peer), options.repeats, clock, inner=200)}
    theirs = {"peer": peer.rollout} if peer else {}
    rivals = {"bare calls": setting.bare, "ours": setting.rollout, **theirs}
    rows["rollout"] = medians(rivals, options.repeats, clock)
    rivals = {"peer, all steps": peer.iteration} if peer else {}
    rivals |= {
        "ours, all steps": setting.iteration,
        "ours, rollout's graph reused": lambda: setting.iteration(reuse=True),
        "ours, 2-step window": lambda: setting.iteration(WINDOW),
        "ours, 2-step window, graph reused": lambda: setting.iteration(WINDOW, reuse=True),
        "the same, window first, 2-step tail": lambda: setting.iteration(range(2), True, tail=2),
    }
    rows["iteration"] = medians(rivals, options.repeats, clock)
    count = sum(p.numel() for p in setting.network.parameters())
    return {"tables": rows, "parameters": count, "repeats": options.repeats}


def reward(options: argparse.Namespace, name: str) -> dict:
    """Time to a reward of the flow model or of the noise-prediction model."""
    if name == "flow":
        setting, path, load = bench_reward.flow_setting(), options.peer, bench_reward.flow_grpo
        label, round_of = "flow_grpo's loop", bench_reward.flow_grpo_round
    else:
        setting, path, load = bench_reward.epsilon_setting(), options.ddpo_peer, bench_reward.ddpo
        label, round_of = "ddpo-pytorch's loop", bench_reward.ddpo_round
    peers = {label: partial(round_of, load(path.resolve()))} if path else {}
    if options.quick:
        small = replace(setting, groups=1, most=1, looks=4)
        return bench_reward.family(small, peers, (0,), bench_reward.GRID[1:2])
    return bench_reward.family(setting, peers)


def tokens(options: argparse.Namespace) -> dict:
    """Tokens for a small vocabulary and for GPT-2's."""
    if options.quick:
        return {"64": bench_tokens.tokens(64, 1, width=16, layers=1)}
    return {
        str(words): bench_tokens.tokens(words, turns)
        for words, turns in bench_tokens.VOCABULARIES.items()
    }


def study(options: argparse.Namespace) -> dict:
    """Studies of the template by one process and by two."""
    lengths = bench_tokens.STUDIES[: 1 if options.quick else None]
    return {str(steps): bench_tokens.study(steps) for steps in lengths}


PARTS = {
    "speed": speed,
    "flow": partial(reward, name="flow"),
    "epsilon": partial(reward, name="epsilon"),
    "tokens": tokens,
    "study": study,
}


def on_cpu(options: argparse.Namespace) -> dict:
    """The parts that are asked for, with the CPU seconds of each."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in options.parts or PARTS:
        start = time.process_time()
        made = PARTS[name](options)
        found |= made if name == "speed" else {name: made}
        print(f"{name}: {time.process_time() - start:.0f} CPU seconds", flush=True)
    return {**found, "hardware": hardware()}


def gpu_case(case: tuple, options: argparse.Namespace) -> dict:
    """Cost and memory of a rollout and of an update over a window of two."""

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    setting = Setting(case, options.device)
    path = setting.rollout(WINDOW)
    rivals = {
        "bare calls": setting.bare,
        "rollout": lambda: setting.rollout(WINDOW),
        "update over 2 steps": lambda: setting.update(path, WINDOW, together=False),
    }
    return {
        "parameters": sum(p.numel() for p in setting.network.parameters()),
        "images": setting.batch,
        "steps": STEPS,
        **medians(rivals, options.repeats, clock),
        "peak memory, GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2),
    }


def on_gpu(options: argparse.Namespace) -> dict:
    """Every case, and the last line of the tests marked `gpu`."""
    cases = {}
    for name, case in GPU_CASES.items():
        cases[name] = gpu_case(case, options)
        print(name, json.dumps(cases[name], indent=1), flush=True)
    ask = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "--noconftest",
        "tests/test_models.py",
    ]
    said = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "hardware": torch.cuda.get_device_name(options.device),
        "torch": torch.__version__,
        "cases": cases,
        "tests marked gpu": said.splitlines()[-1].strip("= ") if said else "did not run",
    }


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark, print it and write data/results/bench.json or gpu.json."""
    parser = argparse.ArgumentParser(prog="rlgenkit bench", description=__doc__.split("\n")[0])
    parser.add_argument("--peer", type=Path, help="local checkout of flow_grpo to compare with")
    parser.add_argument("--ddpo-peer", type=Path, help="local checkout of ddpo-pytorch")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="what is measured (all)")
    parser.add_argument("--quick", action="store_true", help="a small case of each part")
    parser.add_argument("--repeats", type=int, default=15, help="timings per rival")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--out", type=Path, help="file (data/results/bench.json or gpu.json)")
    options = parser.parse_args(argv)
    cpu = options.device == "cpu"
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    if options.peer is not None and not (options.peer / "flow_grpo").is_dir():
        parser.error("--peer must be a checkout of flow_grpo (it has no folder flow_grpo)")
    if options.ddpo_peer is not None and not (options.ddpo_peer / "ddpo_pytorch").is_dir():
        parser.error("--ddpo-peer must be a checkout of ddpo-pytorch (no folder ddpo_pytorch)")
    if not cpu and not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    result = on_cpu(options) if cpu else on_gpu(options)
    target = options.out or ROOT / "data" / "results" / ("bench.json" if cpu else "gpu.json")
    if cpu and target.is_file():
        result = json.loads(target.read_text(encoding="utf-8")) | result
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
