"""Distill the flow model into one of four steps: trajectory distribution matching (TDM).

Luo et al. 2025, arXiv 2503.06674, with the losses of TDM-R1 (arXiv 2603.07700) and no reward. Two
adapters of the flow model are trained together: the student, whose Euler steps should end where the
guided flow model's pictures lie, and the fake score, which learns the velocity of what the student
draws. No picture of a scene is needed, only captions.
"""

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rlgenkit.models import add_lora, denoiser, embed, load_policy, save_adapter
from rlgenkit.samplers import flow_sigmas
from rlgenkit.worlds.prompts import COLORS, KINDS, Group, Prompt, caption, numpy_rng
from rlgenkit.worlds.prompts import sample_prompts, split_of

from ..recipes import MODELS, at_step, fit, write_record

STEPS, BATCH, SCENES, RATE = (
    500,
    64,
    6400,
    1e-3,
)  # RATE: of the fake score; the student has a quarter
LEVELS, GUIDANCE, RANK = 4, 3.0, 32
WARM, GAP, NEAR = (
    40,
    0.02,
    0.02,
)  # updates of the fake score alone; least new noise; hold to teacher
MIX = {
    "single": 6,
    "counting": 12,
    "binding": 8,
    "relation": 12,
    "word": 8,
}  # of 64; counted pairs: 18
COUNTS = ((2, 1), (1, 2), (3, 1), (1, 3), (2, 2))
LAYERS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
)
LAYERS += ("ff.net.0.proj", "ff.net.2")


def counted_pair(draw) -> Prompt:
    """Two kinds of things, each with a color and a count, at most four in all."""
    kinds, colors = draw.permutation(KINDS), draw.permutation(COLORS)
    counts = COUNTS[draw.integers(len(COUNTS))]
    return caption(tuple(Group(str(kinds[i]), str(colors[i]), counts[i]) for i in range(2)))


def captions(count: int, split: str = "train") -> list[Prompt]:
    """Captions of a split in the shares of MIX, in 64s, the rest of each 64 counted pairs."""
    generator, found = torch.Generator().manual_seed(61), []
    draw = numpy_rng(generator)
    while len(found) < count:
        for category, n in MIX.items():
            found += sample_prompts(n, split=split, category=category, generator=generator)
        while len(found) % 64:
            pair = counted_pair(draw)
            found += [pair] if split_of(pair) == split else []
    return found[:count]


def wide(values: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1]."""
    return values[:, None, None, None]


def renoised(after: Tensor, level: Tensor, later: Tensor, noise: Tensor) -> Tensor:
    """A latent [B, ...] at `level` [B], noised further to the level `later` [B]."""
    keep = (1 - later) / (1 - level)
    width = (later**2 - (keep * level) ** 2).clamp(min=0).sqrt()
    return wide(keep) * after + wide(width) * noise


def noised_further(after: Tensor, level: Tensor, generator) -> tuple[Tensor, Tensor]:
    """Latents [B, ...] at `level` [B], noised to a level drawn between that and 1; both."""
    drawn = torch.rand(len(after), generator=generator, device=after.device)
    later = level + GAP + (1 - level - GAP) * drawn
    noise = torch.randn(after.shape, generator=generator, device=after.device)
    return renoised(after, level, later, noise), later


def clean(velocity, x: Tensor, level: Tensor) -> Tensor:
    """The clean latent that a velocity function expects at levels [B]."""
    return x - wide(level) * velocity(x, 1000 * level)


@torch.no_grad()
def rolled(velocity, noise: Tensor, start: Tensor, levels: Tensor) -> Tensor:
    """Each row's state [B, ...] after its own number of Euler steps, start [B] in 0..LEVELS-1."""
    x, found = noise, noise.clone()
    for k in range(LEVELS - 1):
        x = x - (levels[k] - levels[k + 1]) * velocity(x, 1000 * levels[k])
        found = torch.where(wide(start == k + 1), x, found)
    return found


def losses(velocities, x: Tensor, now: Tensor, after: Tensor, generator) -> tuple[Tensor, Tensor]:
    """Loss of the student and loss of the fake score, from states x at levels now [B].

    velocities: functions of the student, the fake score, the teacher, and the teacher without caption.
    """
    student, fake, teacher, free = velocities
    velocity = student(x, 1000 * now)
    guess = x - wide(now) * velocity
    moved = (x - wide(now - after) * velocity).detach()
    noisy, later = noised_further(moved, after, generator)
    learned = fake(noisy, 1000 * later)
    goal = (noisy - guess.detach()) / wide(later)
    with torch.no_grad():
        known = teacher(noisy, 1000 * later)
    fake_loss = (learned - goal).square().mean() + NEAR * (learned - known).square().mean()
    with torch.no_grad():
        noisy, later = noised_further(moved, after, generator)
        with_text, without = clean(teacher, noisy, later), clean(free, noisy, later)
        guided = without + GUIDANCE * (with_text - without)
        force = guided - clean(fake, noisy, later)
        weight = (guess - guided).abs().mean((1, 2, 3)).clamp(min=1e-4)
    pulled = ((guess + force).detach() - guess).square().mean((1, 2, 3)) / weight
    return pulled.mean(), fake_loss


def main(
    steps: int = STEPS,
    batch: int = BATCH,
    scenes: int = SCENES,
    device: str = "cpu",
    rate: float = RATE,
    folder: Path = MODELS / "few_step",
) -> None:
    """Train both adapters; save them as folder/student and folder/fake.

    scenes: number of captions. rate: of the fake score; the student's is a quarter of it.
    """
    teacher = load_policy(MODELS / "flow", device)
    teacher.network.requires_grad_(False)
    nets = {name: copy.deepcopy(teacher.network) for name in ("student", "fake")}
    weights = [add_lora(net, RANK, None, LAYERS, 62 + i) for i, net in enumerate(nets.values())]
    policies = [replace(teacher, network=net) for net in nets.values()]
    bank = [prompt.text for prompt in captions(scenes)]
    words, nothing = embed(teacher, bank), embed(teacher, [""] * batch)
    levels = flow_sigmas(LEVELS, teacher.scheduler.config.shift).float().to(device)
    free = denoiser(teacher, nothing)

    def loss_at(step: int) -> Tensor:
        generator = at_step(63, step, device)
        some = words.index(
            torch.randint(scenes, (batch,), generator=generator, device=device).cpu()
        )
        student, fake, known = (denoiser(p, some) for p in (*policies, teacher))
        start = torch.arange(batch, device=device) % LEVELS
        noise = torch.randn((batch, *teacher.latent_shape), generator=generator, device=device)
        x = rolled(student, noise, start, levels)
        now, after = levels[start], levels[start + 1]
        pulled, fake_loss = losses((student, fake, known, free), x, now, after, generator)
        return fake_loss + pulled if step >= WARM else fake_loss

    optimizers = [
        torch.optim.AdamW(part, lr=lr, weight_decay=0.0, betas=(0.0, 0.99))
        for part, lr in zip(weights, (rate / 4, rate))
    ]
    module = nn.ModuleDict(nets)
    seconds = fit(folder.name, module, optimizers, steps, loss_at, ema=0.99, every=50)
    for name, net in nets.items():
        save_adapter(net, folder / name)
    if folder == MODELS / "few_step":
        write_record(
            "few_step",
            device,
            False,
            steps=steps,
            batch=batch,
            scenes=scenes,
            seconds=round(seconds),
        )


if __name__ == "__main__":
    main()
