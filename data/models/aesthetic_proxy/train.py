"""Train the learned aesthetic proxy on its curated set, and measure the flaw that it was given."""

import json
import time
from pathlib import Path

import torch
from torch import Tensor

from rlgenkit.rewards.aesthetic import aesthetic_truth
from rlgenkit.rewards.proxy import FOLDER, AestheticProxy, curated_looks
from rlgenkit.worlds.prompts import sample_prompts
from rlgenkit.worlds.scenes import render, sample_scenes


def rate(looks: Tensor, generator: torch.Generator, annotators: int = 3) -> Tensor:
    """Mean rating [n] of looks [n,5] by honest annotators: truth plus noise of 0.05 each."""
    noise = 0.05 * torch.randn(len(looks), annotators, generator=generator)
    return (aesthetic_truth(looks)[:, None] + noise).mean(1)


def main(
    folder: str | Path = FOLDER, scenes: int = 2048, steps: int = 500, seed: int = 0
) -> dict[str, float]:
    """Train the proxy on a curated set, write it to `folder` and return its measures.

    Batches of 64, AdamW 1e-2 with a one-cycle schedule, squared error. Less than a minute on
    one free CPU thread; bit-identical for a seed. Writes model.safetensors, config.json and
    README.md (the model card). Measures: `measure_flaw` on unseen scenes, and cpu_seconds.
    """
    start = time.process_time()
    generator = torch.Generator().manual_seed(seed)
    looks = curated_looks(scenes, generator)
    images, looks = _rendered(looks, generator)
    ratings = rate(looks, generator)
    targets = (ratings - ratings.mean()) / ratings.std()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # layers draw their start values from the default generator
        proxy = AestheticProxy()
    optimizer = torch.optim.AdamW(proxy.parameters(), lr=1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(scenes, (64,), generator=generator)
        loss = (proxy(images[rows]) - targets[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    unseen = torch.Generator().manual_seed(seed + 1)
    measures = measure_flaw(proxy.eval(), unseen, min(scenes, 256))
    measures["cpu_seconds"] = round(time.process_time() - start, 1)
    save(proxy, folder, measures, scenes, steps, seed)
    return measures


def measure_flaw(
    proxy: AestheticProxy, generator: torch.Generator, scenes: int = 256
) -> dict[str, float]:
    """How the proxy and the truth answer to look changes, in held-out scenes.

    pearson: correlation with the truth over random looks; pearson_curated: over curated looks.
    *_saturation, *_clutter: mean score change from saturation 0.6 to 1 and from clutter 0.1 to
    0.9, all else equal, in units of the score's std over random looks.
    """
    random_looks = torch.rand(scenes, 5, generator=generator)
    images, looks = _rendered(random_looks, generator)
    truth, score = aesthetic_truth(looks), _scores(proxy, images)
    curated, curated_truth = _rendered(curated_looks(scenes, generator), generator)
    result = {
        "pearson": _pearson(score, truth),
        "pearson_curated": _pearson(_scores(proxy, curated), aesthetic_truth(curated_truth)),
    }
    seed = int(torch.randint(2**31, (1,), generator=generator))
    for name, column, low, high in (("saturation", 1, 0.6, 1.0), ("clutter", 4, 0.1, 0.9)):
        pair = []
        for value in (low, high):
            changed = random_looks.clone()
            changed[:, column] = value
            pair.append(_rendered(changed, torch.Generator().manual_seed(seed)))
        shift = _scores(proxy, pair[1][0]) - _scores(proxy, pair[0][0])
        true_shift = aesthetic_truth(pair[1][1]) - aesthetic_truth(pair[0][1])
        result[f"proxy_{name}"] = float(shift.mean() / score.std())
        result[f"truth_{name}"] = float(true_shift.mean() / truth.std())
    return {name: round(value, 3) for name, value in result.items()}


def save(
    proxy: AestheticProxy,
    folder: str | Path,
    measures: dict[str, float],
    scenes: int,
    steps: int,
    seed: int,
) -> None:
    """Write model.safetensors, config.json and the model card README.md to `folder`."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.contiguous() for k, v in proxy.state_dict().items()}, folder / "model.safetensors"
    )
    widths = [convolution.out_channels for convolution in proxy.convolutions]
    parameters = sum(p.numel() for p in proxy.parameters())
    (folder / "config.json").write_text(json.dumps({"widths": widths}) + "\n")
    rows = "\n".join(f"| {name} | {value} |" for name, value in measures.items())
    (folder / "README.md").write_text(
        CARD.format(parameters=parameters, scenes=scenes, steps=steps, seed=seed, rows=rows)
    )


def _rendered(looks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures [n,3,64,64] with the looks [n,5] that they really have (balance has its limits)."""
    prompts = sample_prompts(len(looks), generator=generator)
    scenes = sample_scenes(prompts, generator, looks)
    return render(scenes), torch.tensor([scene.look for scene in scenes])


def _scores(proxy: AestheticProxy, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([proxy(part) for part in images.split(256)])


def _pearson(first: Tensor, second: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first, second]))[0, 1])


CARD = """# Aesthetic proxy (with a planted flaw)

A convolutional net of {parameters} parameters that scores 64x64 sticker scenes; a stand-in for
learned aesthetic predictors, made to be hacked. License: MIT.

Trained on {scenes} rendered scenes, {steps} steps, seed {seed}, by

    python -m rlgenkit models aesthetic_proxy

**Planted flaw.** Ratings come from honest simulated annotators, but over a curated set in which
saturation (never above its optimum 0.6) and speckle clutter rise with quality. The net therefore
overvalues color and texture: saturation above 0.6 and clutter raise its score while the truth
falls. Do not use it as a measure of quality; the truth is `rlgenkit.rewards.aesthetic_truth`.

Measured on held-out scenes (look changes in units of the score's std over random looks):

| measure | value |
|---|---|
{rows}
"""
