"""Measure the embedded generators with the truth meter, write their model cards and the contact sheet."""

import json
import time
from pathlib import Path

import torch
from torch import Tensor

from rlgenkit.worlds.prompts import CATEGORIES, Prompt, sample_prompts
from rlgenkit.worlds.reader import check, load_reader, read
from .recipes import MODELS

SAMPLING = {
    "flow": {"steps": 20, "guidance": 3.0},
    "epsilon": {"steps": 20, "guidance": 3.0},
    "consistency": {"steps": 4, "guidance": 1.0},
    "few_step": {"steps": 4, "guidance": 1.0},
}
POLICY = {"steps": 6, "guidance": 1.0}  # as notebooks draw what they train: few steps, no guidance
SHEET = (
    "a red cat",
    "three green hearts",
    "a blue star left of a red ball",
    'the word "TEA" in blue',
    "a yellow crab and a purple umbrella",
    "two black airplanes on a peach background",
    "a green tree above a red droplet",
    'the number "3" in red',
)


TEACHER = ((4, 3.0), (10, 3.0), (40, 3.0), (4, 1.0))  # steps and guidance beside the student's four


def load(name: str, folder: Path | None = None):
    """The policy of a model; the few-step student is an adapter of the flow model."""
    from rlgenkit.models import load_adapter, load_policy

    policy = load_policy(MODELS / ("flow" if name == "few_step" else name))
    if name == "few_step":
        load_adapter(policy.network, (folder or MODELS / name) / "student")
    return policy


def beside_teacher(
    folder: Path | None = None, n: int = 200, teacher: bool = True
) -> dict[str, dict[str, float]]:
    """The student in `folder` and its teacher on n unseen captions of counted pairs, by steps."""
    from rlgenkit.rewards import mean_pairwise_distance, sharpness

    from .few_step.train import counted_pair, numpy_rng, split_of

    draw, prompts = numpy_rng(torch.Generator().manual_seed(77_003)), []
    while len(prompts) < n:
        pair = counted_pair(draw)
        prompts += [pair, pair] if split_of(pair) == "test" else []  # two pictures each
    prompts, reader, table = prompts[:n], load_reader(), {}
    groups = torch.arange(len(prompts)) // 2
    rows = [("student", "few_step", 4, 1.0)]
    if teacher:
        rows += [("teacher", "flow", steps, scale) for steps, scale in TEACHER]
    for label, name, steps, guidance in rows:
        images = sample(load(name, folder), prompts, steps, guidance, seed=77_004)
        reading = read(reader, images)
        found = {k: v.mean() for k, v in check(reading, prompts).items() if not v.isnan().any()}
        found["sharpness"] = sharpness(images).mean() * 10  # so that three digits say something
        found["diversity"] = mean_pairwise_distance(reading.features, groups)
        table[f"{label}, {steps} steps, guidance {guidance:g}"] = {
            k: round(float(v), 3) for k, v in found.items()
        }
    return table


def table_for(policy, steps: int):
    """The noise-free sampling table of a policy's family (multi-step noise for consistency models)."""
    from rlgenkit.samplers import (
        consistency_table_from_scheduler,
        ddim_table_from_scheduler,
        flow_table,
    )

    if policy.family == "flow":
        return flow_table(steps, kind="ode")
    if policy.family == "consistency":
        return consistency_table_from_scheduler(policy.scheduler, steps)
    return ddim_table_from_scheduler(policy.scheduler, steps, eta=0.0)


@torch.no_grad()
def sample(
    policy, prompts: list[Prompt], steps: int, guidance: float, seed: int, batch: int = 50
) -> Tensor:
    """Pictures [N, 3, 64, 64] of the prompts, without gradient."""
    from rlgenkit.models import decode, denoiser, embed
    from rlgenkit.samplers import initial_noise, rollout

    generator, images = torch.Generator().manual_seed(seed), []
    table = table_for(policy, steps)
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        noise = initial_noise(len(some), policy.latent_shape, generator)
        denoise = denoiser(policy, embed(policy, [p.text for p in some]), guidance)
        images.append(decode(policy, rollout(denoise, table, noise, generator).final))
    return torch.cat(images)


def quality(name: str, sampling: dict[str, float], n: int = 500) -> dict[str, dict[str, float]]:
    """Truth-meter scores over n captions kept from training ("test") and n/2 with unseen pairs.

    sampling: steps and guidance, as in SAMPLING.
    """
    policy, reader = load(name), load_reader()
    generator, table = torch.Generator().manual_seed(77_001), {}
    for split, count in (("test", n), ("heldout", n // 2)):
        prompts = sample_prompts(count, split=split, generator=generator)
        images = sample(policy, prompts, **sampling, seed=77_002)
        result = check(read(reader, images), prompts)
        for category in ("all", *CATEGORIES):
            rows = torch.tensor([category in ("all", p.category) for p in prompts])
            if rows.any():
                table[f"{split}, {category}"] = {
                    k: round(float(v[rows].nanmean()), 3)
                    for k, v in result.items()
                    if not v[rows].isnan().all()
                } | {"n": int(rows.sum())}
    return table


def contact_sheet(name: str) -> None:
    """Save data/models/<name>/samples.png: eight captions, six pictures each."""
    from PIL import Image

    from rlgenkit.worlds.prompts import parse

    prompts = [parse(text) for text in SHEET for _ in range(6)]
    images = sample(load(name), prompts, **SAMPLING[name], seed=7)
    grid = images.reshape(8, 6, 3, 64, 64).permute(1, 3, 0, 4, 2).reshape(6 * 64, 8 * 64, 3)
    picture = Image.fromarray((grid * 255).round().byte().numpy()).resize(
        (1024, 768), Image.Resampling.LANCZOS
    )
    picture.save(MODELS / name / "samples.png", optimize=True)


def readme_sheet(name: str = "flow", rows: int = 4, columns: int = 8) -> None:
    """Save data/models/contact-sheet.png: captions never trained on, first draw each, nothing picked."""
    import textwrap

    import matplotlib.pyplot as plt

    from rlgenkit.models import load_policy

    generator = torch.Generator().manual_seed(2024)
    prompts = sample_prompts(rows * columns, split="test", generator=generator)
    images = sample(load_policy(MODELS / name), prompts, **SAMPLING[name], seed=2025)
    figure, axes = plt.subplots(rows, columns, figsize=(12, 7.4))
    for axis, prompt, image in zip(axes.flat, prompts, images):
        axis.imshow(image.permute(1, 2, 0), interpolation="bicubic")
        axis.set_title("\n".join(textwrap.wrap(prompt.text, 22)), fontsize=7)
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(MODELS / "contact-sheet.png", dpi=80, metadata={"Software": None})
    plt.close(figure)


def main(names: tuple[str, ...] = ("flow", "epsilon", "consistency", "few_step")) -> None:
    """Write quality.json, samples.png and README.md beside each generator."""
    from ci import manifest

    manifest.main([])  # models are read only as the manifest names them
    if "flow" in names:
        readme_sheet()
    for name in names:
        began = time.perf_counter()
        table = quality(name, SAMPLING[name])
        contact_sheet(name)
        record = {"sampling": SAMPLING[name], "quality": table}
        if name == "few_step":
            record["beside_teacher"] = beside_teacher()
        elif name != "consistency":
            record |= {"policy": POLICY, "policy_quality": quality(name, POLICY)}
        (MODELS / name / "quality.json").write_text(json.dumps(record, indent=1))
        print(f"{name}: measured in {time.perf_counter() - began:.0f} s", flush=True)
        print(json.dumps(table, indent=1), flush=True)


if __name__ == "__main__":
    import sys

    main(tuple(sys.argv[1:]) or ("flow", "epsilon", "consistency", "few_step"))
