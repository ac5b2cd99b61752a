"""Train the truth meter on scenes that are clean, blurred, noised, autoencoder-decoded or empty."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from rlgenkit.worlds.prompts import BACKGROUNDS, COLORS, sample_prompts
from rlgenkit.worlds.reader import (
    LEARNED_LOOKS,
    READER,
    REWARD_READER,
    STRIDE,
    Reader,
    check,
    load_reader,
    read,
)
from rlgenkit.worlds.scenes import SHAPES, SIZE, Scene, hue_errors, render, sample_scenes
from ..recipes import MODELS, at_step, fit

BATCH, STEPS, BANK = 64, 1000, 2048
GRID = SIZE // STRIDE


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of pictures [B, 3, S, S] with a 7-tap kernel, reflecting at the border."""
    taps = torch.exp(-torch.arange(-3, 4).float().square() / (2 * sigma**2))
    taps = (taps / taps.sum()).expand(3, 1, -1)
    padded = F.pad(images, (3, 3, 3, 3), mode="reflect")
    return F.conv2d(F.conv2d(padded, taps[:, :, None], groups=3), taps[..., None], groups=3)


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """A quarter each: clean, blurred (sigma 0.4-1.4 px), noised (0.02-0.12), both."""
    draw = torch.rand(len(images), 3, generator=generator)
    soft = blur(images, 0.4 + float(draw[0, 2]))
    images = torch.where(draw[:, 0, None, None, None] < 0.5, images, soft)
    level = (0.02 + 0.1 * draw[:, 2]) * (draw[:, 1] < 0.5)
    noise = torch.randn(images.shape, generator=generator) * level[:, None, None, None]
    return (images + noise).clamp(0, 1)


def targets(scenes: list[Scene]) -> dict[str, Tensor]:
    """Training targets on the grid: heat [B, G, G], ids and boxes at centers and their neighbors."""
    batch = len(scenes)
    axis = torch.arange(GRID) + 0.5
    heat = torch.zeros(batch, GRID, GRID)
    near = torch.full((batch, GRID, GRID), 1e3)
    fields = torch.zeros(batch, 6, GRID, GRID)
    errors = hue_errors(scenes)
    for row, scene in enumerate(scenes):
        for s, error in zip(scene.stickers, errors[row]):
            dx, dy = s.x / STRIDE - axis[None, :], s.y / STRIDE - axis[:, None]
            square = dx**2 + dy**2
            heat[row] = torch.maximum(heat[row], torch.exp(-square / 1.2))
            here = square < near[row]
            near[row] = torch.where(here, square, near[row])
            values = torch.stack(
                [
                    torch.full_like(square, SHAPES.index(s.kind)),
                    torch.full_like(square, COLORS.index(s.color)),
                    dx.expand_as(square),
                    dy.expand_as(square),
                    torch.full_like(square, s.size / 20).log(),
                    torch.full_like(square, float(error)),
                ]
            )
            fields[row] = torch.where(here, values, fields[row])
    look = torch.tensor([s.look for s in scenes])[:, list(LEARNED_LOOKS)]
    background = torch.tensor([BACKGROUNDS.index(s.background) for s in scenes])
    return {
        "heat": heat,
        "inside": near < 1.1,
        "fields": fields,
        "look": look,
        "background": background,
    }


def loss(reader: Reader, images: Tensor, target: dict[str, Tensor]) -> Tensor:
    """Focal loss of the center heat map, cross-entropies, box and look regression."""
    cells, whole, _ = reader(images)
    logit, heat = cells[:, 0], target["heat"]
    positive = heat > 0.8
    chance = logit.sigmoid()
    focal = torch.where(
        positive,
        -F.logsigmoid(logit) * (1 - chance) ** 2,
        -F.logsigmoid(-logit) * chance**2 * (1 - heat) ** 4,
    )
    focal = focal.sum() / positive.sum().clamp_min(1)
    at = target["inside"]
    picked, fields = cells.movedim(1, -1)[at][:, 1:], target["fields"].movedim(1, -1)[at]
    shapes, colors, box = picked.split([len(SHAPES), len(COLORS), 4], 1)
    return (
        focal
        + F.cross_entropy(shapes, fields[:, 0].long())
        + F.cross_entropy(colors, fields[:, 1].long())
        + F.l1_loss(box, fields[:, 2:])
        + F.cross_entropy(whole[:, : len(BACKGROUNDS)], target["background"])
        + 4 * F.mse_loss(whole[:, len(BACKGROUNDS) :], target["look"])
    )


def draw(step: int, batch: int, seed: int) -> tuple[list[Scene], list]:
    """Scenes and prompts of one step; one scene in sixteen is emptied of stickers."""
    generator = at_step(seed, step)
    split = ("train", "heldout")[int(torch.rand(1, generator=generator) < 0.2)]
    prompts = sample_prompts(batch, split=split, generator=generator)
    scenes = sample_scenes(prompts, generator)
    empty = torch.rand(batch, generator=generator) < 1 / 16
    scenes = [
        Scene((), s.background, s.look, s.seed) if e else s for s, e in zip(scenes, empty.tolist())
    ]
    return scenes, prompts


def decoded(vae, images: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures through the autoencoder, with latent noise of 0 to 0.2 standard deviations."""
    with torch.no_grad():
        latents = torch.cat([vae.encode(part * 2 - 1).latent for part in images.split(64)])
        level = 0.2 * torch.rand(len(images), 1, 1, 1, generator=generator) * latents.std()
        latents = latents + level * torch.randn(latents.shape, generator=generator)
        return (
            torch.cat([vae.decode(z).sample for z in latents.split(64)]).div(2).add(0.5).clamp(0, 1)
        )


def accuracy(
    reader: Reader, images: Tensor, scenes: list[Scene], prompts: list
) -> dict[str, float]:
    """Share of stickers read with the right kind and color (and nothing else seen), background, look error."""
    reading = read(reader, images)
    result = check(reading, prompts)
    look = torch.tensor([s.look for s in scenes])
    right = torch.tensor(
        [BACKGROUNDS[b] == s.background for b, s in zip(reading.background.tolist(), scenes)]
    ).float()
    names = ("kind_color", "count", "relation", "word", "correct")
    return (
        {n: round(float(result[n].nanmean()), 4) for n in names}
        | {"background": round(float(right.mean()), 4)}
        | {"look_error": [round(v, 3) for v in (reading.look - look).abs().mean(0).tolist()]}
    )


def measure(folder: Path, n: int = 1000) -> dict[str, dict]:
    """Accuracy on held-out scenes, clean and degraded; the generator seed was not used in training."""
    from ci import manifest
    from diffusers import AutoencoderDC

    manifest.main([])  # models are read only as the manifest names them
    vae = AutoencoderDC.from_pretrained(MODELS / "autoencoder", torch_dtype=torch.float32)
    reader, generator = load_reader(folder), torch.Generator().manual_seed(90_001)
    table = {}
    for split in ("test", "heldout"):
        prompts = sample_prompts(n, split=split, generator=generator)
        scenes = sample_scenes(prompts, generator)
        images = torch.cat([render(scenes[i : i + 100]) for i in range(0, n, 100)])
        noise = torch.randn(images.shape, generator=generator)
        variants = {
            "clean": images,
            "blurred (sigma 1 px)": blur(images, 1.0),
            "noised (0.1)": (images + 0.1 * noise).clamp(0, 1),
            "autoencoder-decoded": decoded(vae, images, generator),
        }
        for name, pictures in variants.items():
            table[f"{split}, {name}"] = accuracy(reader, pictures, scenes, prompts)
    return table


def train(name: str, folder: Path, width: int, steps: int, robust: bool) -> float:
    """Train a reader and save it; `robust` adds blurred, noised and autoencoder-decoded pictures."""
    bank_scenes, bank = decoded_bank() if robust else ([], None)
    torch.manual_seed(0)
    reader = Reader(width).to(memory_format=torch.channels_last)

    def loss_at(step: int) -> Tensor:
        generator = at_step(24, step)
        if robust and step % 3 == 2:  # every third batch comes from the bank of decoded pictures
            rows = torch.randint(BANK, (BATCH,), generator=generator)
            scenes, images = [bank_scenes[i] for i in rows.tolist()], bank[rows]
        else:
            scenes, _ = draw(step, BATCH, 21)
            images = render(scenes)
        images = degrade(images, generator) if robust else images
        return loss(
            reader.train(), images.contiguous(memory_format=torch.channels_last), targets(scenes)
        )

    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=1e-3)
    seconds = fit(name, reader, [optimizer], steps, loss_at, ema=0.99)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            k: (v.half() if v.is_floating_point() else v).contiguous()
            for k, v in reader.state_dict().items()
        },
        folder / "model.safetensors",
    )
    return seconds


def decoded_bank() -> tuple[list[Scene], Tensor]:
    """Training scenes and their pictures [BANK, 3, 64, 64] as the autoencoder decodes them."""
    from diffusers import AutoencoderDC

    vae = AutoencoderDC.from_pretrained(MODELS / "autoencoder", torch_dtype=torch.float32).eval()
    scenes, _ = draw(0, BANK, 22)
    images = torch.cat([render(scenes[i : i + 64]) for i in range(0, BANK, 64)])
    return scenes, decoded(vae, images, at_step(23, 0))


def main(steps: int = STEPS) -> None:
    """Train the truth meter and the smaller reader for rewards; write accuracy.json beside each."""
    for name, folder, width, robust in (
        ("reader", READER, 24, True),
        ("reward_reader", REWARD_READER, 12, False),
    ):
        seconds = train(name, folder, width, steps if robust else steps // 2, robust)
        table = measure(folder)
        (folder / "accuracy.json").write_text(
            json.dumps({"seconds": round(seconds), "accuracy": table}, indent=1)
        )
        print(json.dumps(table, indent=1), flush=True)


if __name__ == "__main__":
    main()
