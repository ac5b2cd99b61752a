"""Distill the noise-prediction model into a few-step one: latent consistency distillation (LCM).

Luo et al. 2023, arXiv 2310.04378. One departure: the guidance scale is fixed at GUIDANCE and built
into the student, because the PixArt class has no input for it; the student then samples without
classifier-free guidance.
"""

import copy

import torch
from torch import Tensor

from ..folders import write_components
from .common import MODELS, at_step, fit
from .epsilon import predict
from .flow import BATCH, TOKENS, latent_bank

STEPS, GUIDANCE, SKIP, GRID = 500, 2.5, 20, 50
SIGMA_DATA, TIME_SCALE, HUBER = 0.5, 10.0, 1e-3  # LCMScheduler's boundary constants; pseudo-Huber width


def boundary(t: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out at times [B], shaped for latents: c_skip(0) = 1, c_out(0) = 0."""
    scaled = (t.float() * TIME_SCALE)[:, None, None, None]
    square = scaled ** 2 + SIGMA_DATA ** 2
    return SIGMA_DATA ** 2 / square, scaled / square.sqrt()


def clean(noisy: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """x0 from predicted noise at cumulative alphas [B, 1, 1, 1]."""
    return (noisy - (1 - alpha).sqrt() * noise) / alpha.sqrt()


def consistency(network, encoder, alphas: Tensor, noisy: Tensor, t: Tensor, ids: Tensor) -> Tensor:
    """The consistency function f(x_t, t) = c_skip x_t + c_out x0(x_t)."""
    skip, out = boundary(t)
    noise = predict(network, encoder, noisy, t, ids)
    return skip * noisy + out * clean(noisy, noise, alphas[t][:, None, None, None])


@torch.no_grad()
def teacher_step(teacher, encoder, alphas: Tensor, noisy: Tensor, t: Tensor, previous: Tensor,
                 ids: Tensor) -> Tensor:
    """One DDIM step of the guided teacher from t to previous [B], in one batched call."""
    empty = torch.tensor([1] + [0] * (TOKENS - 1)).expand_as(ids)
    with_text, without = predict(teacher, encoder, noisy.repeat(2, 1, 1, 1), t.repeat(2),
                                 torch.cat([ids, empty])).chunk(2)
    noise = without + GUIDANCE * (with_text - without)
    now, then = (alphas[k][:, None, None, None] for k in (t, previous))
    return then.sqrt() * clean(noisy, noise, now) + (1 - then).sqrt() * noise


def main(steps: int = STEPS) -> None:
    """Distill and save data/models/consistency as a PixArtAlphaPipeline with an LCMScheduler."""
    from diffusers import LCMScheduler, PixArtAlphaPipeline

    pipe = PixArtAlphaPipeline.from_pretrained(MODELS / "epsilon", torch_dtype=torch.float32)
    encoder, alphas = pipe.text_encoder.requires_grad_(False), pipe.scheduler.alphas_cumprod
    latents, ids = latent_bank(pipe.vae, pipe.tokenizer)
    teacher = pipe.transformer.requires_grad_(False)
    student, target = (copy.deepcopy(teacher) for _ in range(2))
    student.requires_grad_(True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=4e-4, weight_decay=0.0)

    def loss_at(step: int) -> Tensor:
        if step > 0:
            for old, new in zip(target.parameters(), student.parameters()):
                old.data.lerp_(new.data, 0.05)
        generator = at_step(52, step)
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        clean_latents, tokens = latents[rows].float(), ids[rows]
        t = (torch.randint(1, GRID + 1, (BATCH,), generator=generator) * SKIP - 1)
        previous = (t - SKIP).clamp_min(0)
        noise = torch.randn(clean_latents.shape, generator=generator)
        now = alphas[t][:, None, None, None]
        noisy = now.sqrt() * clean_latents + (1 - now).sqrt() * noise
        earlier = teacher_step(teacher, encoder, alphas, noisy, t, previous, tokens)
        with torch.no_grad():
            goal = consistency(target, encoder, alphas, earlier, previous, tokens)
        error = consistency(student, encoder, alphas, noisy, t, tokens) - goal
        return ((error.square() + HUBER ** 2).sqrt() - HUBER).mean()

    fit("consistency", student, [optimizer], steps, loss_at, ema=0.99, every=100)
    scheduler = LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps=GRID)
    parts = {"transformer": student, "vae": pipe.vae, "scheduler": scheduler,
             "text_encoder": encoder, "tokenizer": pipe.tokenizer}
    write_components("PixArtAlphaPipeline", parts, MODELS / "consistency", torch.float16)


if __name__ == "__main__":
    main()
