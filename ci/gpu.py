"""What a GPU does with the same code: the tests marked `gpu`, and the cost of one policy-gradient iteration.

`python ci/gpu.py` writes data/results/gpu.json: for the embedded flow model's network and for one of the
shape and size of Stable Diffusion 3.5 medium (random weights, LoRA of rank 32, 512 x 512 px), seconds of
a rollout and of an update, the sampler's overhead over the bare network calls, and peak memory. Weights
do not change what these cost.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rlgenkit import optimizers, samplers  # noqa: E402
from rlgenkit.models import add_lora  # noqa: E402

STEPS, WINDOW = 10, range(2, 4)
SD35 = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
EMBEDDED = {
    "sample_size": 8,
    "patch_size": 1,
    "in_channels": 8,
    "out_channels": 8,
    "num_layers": 6,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "joint_attention_dim": 128,
    "caption_projection_dim": 128,
    "pooled_projection_dim": 128,
    "pos_embed_max_size": 8,
    "qk_norm": "rms_norm",
}
# name: network, images, side of the latents, text tokens, LoRA rank (None: all weights are trained)
CASES = {
    "embedded flow model": (EMBEDDED, 512, 8, 16, None),
    "size of SD 3.5 medium, 512 px": (SD35, 16, 64, 333, 32),
}


def seconds(call: Callable[[], object], repeats: int, device: str) -> float:
    """Median wall-clock seconds of a call, after one that is not counted."""
    found = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def build(config: dict, rank: int | None, device: str):
    """A random network in eval mode on the device, and the parameters that are trained."""
    from diffusers import SD3Transformer2DModel

    with torch.device(device):
        network = SD3Transformer2DModel(**config).to(
            torch.float32 if rank is None else torch.bfloat16
        )
    torch.nn.init.normal_(network.proj_out.weight, std=0.02)
    return network, list(network.parameters()) if rank is None else add_lora(network, rank)


def iteration(
    config: dict, images: int, side: int, tokens: int, rank: int | None, device: str, repeats: int
) -> dict[str, float]:
    """Seconds and memory of a rollout over STEPS steps and of an update over a window of two."""
    network, trained = build(config, rank, device)
    dtype, draw = next(network.parameters()).dtype, torch.Generator().manual_seed(0)
    text = torch.randn(images, tokens, config["joint_attention_dim"], generator=draw).to(
        device, dtype
    )
    pooled = torch.randn(images, config["pooled_projection_dim"], generator=draw).to(device, dtype)
    noise = torch.randn(images, config["in_channels"], side, side, generator=draw).to(device)
    table, optimizer = (
        samplers.flow_table(STEPS, noise=0.7),
        optimizers.make_optimizer(trained, lr=1e-6),
    )

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        k = len(x) // images
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device != "cpu"):
            return network(
                x.to(dtype),
                text.repeat(k, 1, 1),
                pooled.repeat(k, 1),
                t.to(device).expand(len(x)),
                return_dict=False,
            )[0].float()

    generator = torch.Generator(device).manual_seed(1)

    @torch.no_grad()
    def bare() -> None:
        for t in table.t:
            denoise(noise, t.expand(images))

    @torch.no_grad()
    def roll() -> samplers.Trajectory:
        return samplers.rollout(denoise, table, noise, generator, WINDOW)

    path = roll()

    def update() -> None:
        optimizers.policy_gradient_update(
            lambda steps, rows: samplers.replay(denoise, path, steps, together=False),
            optimizer,
            trained,
            path.log_probs.detach(),
            torch.linspace(-1, 1, images, device=device),
            torch.tensor(list(WINDOW)),
            clip=1e-4,
            steps_per_forward=1,
        )

    times = [seconds(call, repeats, device) for call in (bare, roll, update)]
    peak = torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else float("nan")
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "images": images,
        "steps": STEPS,
        "bare calls, seconds": round(times[0], 4),
        "rollout, seconds": round(times[1], 4),
        "rollout over bare calls": round(times[1] / times[0], 4),
        "update over 2 steps, seconds": round(times[2], 4),
        "peak memory, GiB": round(peak, 2),
    }


def gpu_tests() -> str:
    """The last line of pytest's report on the tests marked `gpu`."""
    out = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--noconftest", "tests/test_models.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.strip()
    print(out[-3000:], flush=True)
    return out.splitlines()[-1].strip("= ") if out else "did not run"


def main(argv: list[str] | None = None) -> int:
    """Run tests and timings and write the results; the exit status is 0."""
    parser = argparse.ArgumentParser(prog="gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cases", type=int, default=len(CASES), help="how many of the cases")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "results" / "gpu.json")
    options = parser.parse_args(argv)
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    import diffusers

    name = "CPU" if options.device == "cpu" else torch.cuda.get_device_name(options.device)
    result: dict = {
        "hardware": name,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "cases": {},
    }
    for case, setting in list(CASES.items())[: options.cases]:
        result["cases"][case] = iteration(*setting, options.device, options.repeats)
        print(case, json.dumps(result["cases"][case], indent=1), flush=True)
        if options.device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    result["tests marked gpu"] = gpu_tests()
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
