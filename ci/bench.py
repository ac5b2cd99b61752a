"""make bench: CPU cost of the samplers and of one policy-gradient iteration, side by side.

Everything runs in one process on one thread. Every repeat times all rivals in turn by process_time
(CPU seconds; wall clock on a shared machine can vary several times over), and what is reported is
the median of the ratios of the repeats. With --peer PATH (a local checkout of flow_grpo) its own
functions run on the same network, noise level and number of steps; its code is loaded from that
path only.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rlgenkit import optimizers, samplers  # noqa: E402

STEPS, BATCH, NOISE, CLIP = 10, 8, 0.7, 1e-4
TRAINED = STEPS - 1  # the last step is nearly deterministic and left out, as in the peer


def medians(rivals: dict[str, Callable[[], object]], repeats: int, inner: int = 1) -> dict:
    """Median CPU microseconds of every rival, and the median ratio of each to the first one."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for call in rivals.values():
        call()
    for _ in range(repeats):
        for name, call in rivals.items():
            start = time.process_time()
            for _ in range(inner):
                call()
            seconds[name].append((time.process_time() - start) / inner)
    first = next(iter(rivals))
    return {
        name: {
            "microseconds": round(statistics.median(values) * 1e6, 1),
            "ratio": round(
                statistics.median(a / b for a, b in zip(values, seconds[first], strict=True)), 4
            ),
        }
        for name, values in seconds.items()
    }


def build_pipeline() -> object:
    """Random SD3-class pipeline: 4 layers of width 128 over 64 + 16 tokens, and a tiny autoencoder."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    torch.manual_seed(0)
    network = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=4,
        attention_head_dim=32, num_attention_heads=4, joint_attention_dim=128,
        caption_projection_dim=128, pooled_projection_dim=128, pos_embed_max_size=8,
    )  # fmt: skip
    torch.nn.init.normal_(network.proj_out.weight, std=0.02)
    vae = AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=2, latent_channels=4, layers_per_block=1,
        scaling_factor=1.0, shift_factor=0.0,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=network, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


class Setting:
    """The network with fixed random text states, and our functions closed over them."""

    def __init__(self) -> None:
        self.pipeline = build_pipeline()
        self.pipeline.set_progress_bar_config(disable=True)
        self.network = self.pipeline.transformer
        self.tokens, self.pooled = torch.randn(BATCH, 16, 128), torch.randn(BATCH, 128)
        self.noise = torch.randn(BATCH, 4, 8, 8)
        self.advantages = torch.randn(BATCH)
        sigmas = samplers.sigmas_from_scheduler(self.pipeline.scheduler, STEPS)
        self.table = samplers.flow_table(sigmas=sigmas, noise=NOISE)
        self.optimizer = optimizers.make_optimizer(self.network.parameters(), lr=1e-5)
        self.generator = torch.Generator().manual_seed(0)

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        k = len(x) // BATCH
        return self.network(
            hidden_states=x, timestep=t, encoder_hidden_states=self.tokens.repeat(k, 1, 1),
            pooled_projections=self.pooled.repeat(k, 1), return_dict=False,
        )[0]  # fmt: skip

    @torch.no_grad()
    def bare(self) -> None:
        for t in self.table.t:
            self.denoise(self.noise, t.expand(BATCH))

    def rollout(
        self, window: range | None = None, score_steps: range | tuple = (), tail: int | None = None
    ) -> samplers.Trajectory:
        table = self.table
        if tail is not None:
            sigmas = samplers.coarse_tail(table.sigma, window[-1] + 1, tail)
            table = samplers.flow_table(sigmas=sigmas, noise=NOISE)
        return samplers.rollout(
            self.denoise, table, self.noise, self.generator, window, score_steps=score_steps
        )

    @torch.no_grad()
    def decode(self, latents: Tensor) -> None:
        self.pipeline.vae.decode(latents, return_dict=False)

    def iteration(
        self,
        window: range | None = None,
        per_forward: int = 1,
        reuse: bool = False,
        tail: int | None = None,
    ) -> None:
        """Rollout, decode and one clipped update over the trained steps."""
        steps = window or range(TRAINED)
        path = self.rollout(window, steps if reuse else (), tail)
        self.decode(path.final)

        def replay(some: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None]:
            if reuse:
                return path.log_probs[some][:, rows], None
            return samplers.replay(self.denoise, path, some, together=True)

        optimizers.policy_gradient_update(
            replay, self.optimizer, self.network.parameters(), path.log_probs.detach(),
            self.advantages, torch.tensor(list(steps)), clip=CLIP,
            steps_per_forward=len(steps) if reuse else per_forward,
        )  # fmt: skip


# ---------------------------------------------------------------- the peer


def load_peer(path: Path) -> SimpleNamespace:
    """The peer's step, pipeline and compute_log_prob; the last is lifted out of its script by ast."""
    sys.path.insert(0, str(path))
    step = importlib.import_module("flow_grpo.diffusers_patch.sd3_sde_with_logprob")
    pipeline = importlib.import_module("flow_grpo.diffusers_patch.sd3_pipeline_with_logprob")
    tree = ast.parse((path / "scripts" / "train_sd3.py").read_text(encoding="utf-8"))
    wanted = [n for n in tree.body if getattr(n, "name", "") == "compute_log_prob"]
    scope = {"torch": torch, "sde_step_with_logprob": step.sde_step_with_logprob}
    exec(compile(ast.Module(wanted, []), "compute_log_prob", "exec"), scope)
    return SimpleNamespace(
        step=step.sde_step_with_logprob,
        pipeline=pipeline.pipeline_with_logprob,
        log_prob=scope["compute_log_prob"],
    )


def peer_rollout(peer: SimpleNamespace, setting: Setting) -> dict[str, Tensor]:
    """Its rollout without guidance, arranged as its training loop wants the samples."""
    _, latents, log_probs = peer.pipeline(
        setting.pipeline, prompt_embeds=setting.tokens, pooled_prompt_embeds=setting.pooled,
        num_inference_steps=STEPS, guidance_scale=1.0, output_type="pt", height=8, width=8,
        latents=setting.noise, noise_level=NOISE,
    )  # fmt: skip
    states = torch.stack(latents, dim=1)
    return {
        "latents": states[:, :-1],
        "next_latents": states[:, 1:],
        "log_probs": torch.stack(log_probs, dim=1),
        "timesteps": setting.pipeline.scheduler.timesteps.repeat(BATCH, 1),
    }


def peer_iteration(peer: SimpleNamespace, setting: Setting) -> None:
    """Its rollout and its per-step backward passes, with one optimizer step at the end."""
    sample = peer_rollout(peer, setting)
    config = SimpleNamespace(
        train=SimpleNamespace(cfg=False), sample=SimpleNamespace(noise_level=NOISE)
    )
    for j in range(TRAINED):
        _, log_prob, _, _ = peer.log_prob(
            setting.network, setting.pipeline, sample, j, setting.tokens, setting.pooled, config
        )
        ratio = torch.exp(log_prob - sample["log_probs"][:, j])
        clipped = torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
        loss = torch.maximum(-setting.advantages * ratio, -setting.advantages * clipped).mean()
        (loss / TRAINED).backward()
    torch.nn.utils.clip_grad_norm_(setting.network.parameters(), 1.0)
    setting.optimizer.step()
    setting.optimizer.zero_grad()


# ---------------------------------------------------------------- the tables


def bench_step(peer: SimpleNamespace | None, repeats: int) -> dict:
    """(a) one step with its log-prob on 32x4x8x8: drawn and replayed; peer / ours when given.

    The peer's pipeline passes one time for the batch, its training loop one per sample.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    sigmas = samplers.sigmas_from_scheduler(scheduler, STEPS)
    table = samplers.flow_table(sigmas=sigmas, noise=NOISE)
    x, v, g = torch.randn(32, 4, 8, 8), torch.randn(32, 4, 8, 8), torch.Generator().manual_seed(0)
    after = samplers.step(table, 3, x, v, generator=g).sample
    rivals = {
        "ours draw": lambda: samplers.step(table, 3, x, v, generator=g),
        "ours replay": lambda: samplers.step(table, 3, x, v, after),
        "noise alone": lambda: torch.randn(x.shape, generator=g),
    }
    if peer is not None:
        t = scheduler.timesteps[3]
        many = t.expand(32)
        rivals |= {
            "peer draw": lambda: peer.step(scheduler, v, t.unsqueeze(0), x, NOISE, generator=g),
            "peer draw, a time per sample": lambda: peer.step(
                scheduler, v, many, x, NOISE, generator=g
            ),
            "peer replay": lambda: peer.step(scheduler, v, many, x, NOISE, prev_sample=after),
        }
    with torch.no_grad():
        return medians(rivals, repeats, inner=200)


def bench(peer: SimpleNamespace | None, repeats: int) -> dict:
    """All tables; ratios are to the first row of each."""
    setting = Setting()
    window = range(2, 4)
    rows = {"step": bench_step(peer, repeats)}
    rows["rollout"] = medians({"bare calls": setting.bare, "ours": setting.rollout}, repeats)
    rivals: dict[str, Callable[[], object]] = {}
    if peer is not None:
        rows["rollout"]["peer"] = medians(
            {"bare calls": setting.bare, "peer": lambda: peer_rollout(peer, setting)}, repeats
        )["peer"]
        rivals["peer, all steps"] = lambda: peer_iteration(peer, setting)
    rivals |= {
        "ours, all steps": setting.iteration,
        "ours, 3 steps per forward": lambda: setting.iteration(per_forward=3),
        "ours, rollout's graph reused": lambda: setting.iteration(reuse=True),
        "ours, 2-step window": lambda: setting.iteration(window, 2),
        "ours, 2-step window, graph reused": lambda: setting.iteration(window, reuse=True),
        "the same, window first, 3-step tail": lambda: setting.iteration(
            range(2), reuse=True, tail=3
        ),
        "the same, window first, 2-step tail": lambda: setting.iteration(
            range(2), reuse=True, tail=2
        ),
    }
    rows["iteration"] = medians(rivals, repeats)
    count = sum(p.numel() for p in setting.network.parameters())
    overhead = 100 * (rows["rollout"]["ours"]["ratio"] - 1)
    return {"tables": rows, "parameters": count, "rollout_overhead_percent": round(overhead, 2)}


def hardware() -> dict:
    """Processor, cores and versions: no host name, no path."""
    import diffusers

    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark, print it and write the results; the exit status is 0."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.split("\n")[0])
    parser.add_argument("--peer", type=Path, help="local checkout of flow_grpo to compare with")
    parser.add_argument("--repeats", type=int, default=15, help="timings per rival")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "results" / "bench.json")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    if options.peer is not None and not (options.peer / "flow_grpo").is_dir():
        parser.error("--peer must be a checkout of flow_grpo (it has no folder flow_grpo)")
    torch.set_num_threads(1)
    peer = None if options.peer is None else load_peer(options.peer.resolve())
    result = bench(peer, options.repeats) | {"repeats": options.repeats, "hardware": hardware()}
    for title, rows in result["tables"].items():
        print(title)
        for name, row in rows.items():
            print(f"  {name:36s} {row['microseconds']:12.1f} us   x{row['ratio']:.3f}")
    print(f"rollout overhead over bare calls: {result['rollout_overhead_percent']} %")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
