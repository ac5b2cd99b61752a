"""Distill the noise-prediction model into a few-step one: latent consistency distillation (LCM).

Luo et al. 2023, arXiv 2310.04378. One departure: the guidance scale is fixed at GUIDANCE and built
into the student, because the PixArt class has no input for it; the student then samples without
classifier-free guidance.
"""

import copy

import torch
from torch import Tensor

from ..recipes import MODELS, at_step, fit, write_components, write_record
from ..epsilon.train import encode_text, predict
from ..flow.train import BATCH, SCENES, empty_ids, latent_bank

STEPS, GUIDANCE, SKIP, GRID = 500, 2.5, 20, 50
SIGMA_DATA, TIME_SCALE, HUBER = (
    0.5,
    10.0,
    1e-3,
)  # LCMScheduler's boundary constants; pseudo-Huber width


def boundary(t: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out at times [B], shaped for latents: c_skip(0) = 1, c_out(0) = 0."""
    scaled = (t.float() * TIME_SCALE)[:, None, None, None]
    square = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / square, scaled / square.sqrt()


def clean(noisy: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """x0 from predicted noise at cumulative alphas [B, 1, 1, 1]."""
    return (noisy - (1 - alpha).sqrt() * noise) / alpha.sqrt()


def consistency(network, text, alphas: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
    """The consistency function f(x_t, t) = c_skip x_t + c_out x0(x_t); text = states and mask."""
    skip, out = boundary(t)
    noise = predict(network, text, noisy, t)
    return skip * noisy + out * clean(noisy, noise, alphas[t][:, None, None, None])


@torch.no_grad()
def teacher_step(
    teacher, both, alphas: Tensor, noisy: Tensor, t: Tensor, previous: Tensor
) -> Tensor:
    """One DDIM step of the guided teacher from t to previous [B], in one batched call.

    both: states and mask of the captions [B], then of as many empty ones.
    """
    with_text, without = predict(teacher, both, noisy.repeat(2, 1, 1, 1), t.repeat(2)).chunk(2)
    noise = without + GUIDANCE * (with_text - without)
    now, then = (alphas[k][:, None, None, None] for k in (t, previous))
    return then.sqrt() * clean(noisy, noise, now) + (1 - then).sqrt() * noise


def main(steps: int = STEPS, batch: int = BATCH, scenes: int = SCENES, device: str = "cpu") -> None:
    """Distill and save data/models/consistency as a PixArtAlphaPipeline with an LCMScheduler."""
    from diffusers import LCMScheduler, PixArtAlphaPipeline

    pipe = PixArtAlphaPipeline.from_pretrained(MODELS / "epsilon", torch_dtype=torch.float32)
    latents, ids = latent_bank(pipe.vae, pipe.tokenizer, scenes, device)
    encoder, teacher = (
        m.requires_grad_(False).to(device) for m in (pipe.text_encoder, pipe.transformer)
    )
    alphas = pipe.scheduler.alphas_cumprod.to(device)
    student, target = (copy.deepcopy(teacher) for _ in range(2))
    student.requires_grad_(True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=4e-4, weight_decay=0.0)

    def loss_at(step: int) -> Tensor:
        if step > 0:
            for old, new in zip(target.parameters(), student.parameters()):
                old.data.lerp_(new.data, 0.05)
        generator = at_step(52, step, device)
        rows = torch.randint(len(latents), (batch,), generator=generator, device=device)
        clean_latents, tokens = latents[rows].float(), ids[rows]
        t = torch.randint(1, GRID + 1, (batch,), generator=generator, device=device) * SKIP - 1
        previous = (t - SKIP).clamp_min(0)
        noise = torch.randn(clean_latents.shape, generator=generator, device=device)
        now = alphas[t][:, None, None, None]
        noisy = now.sqrt() * clean_latents + (1 - now).sqrt() * noise
        both = encode_text(encoder, torch.cat([tokens, empty_ids(device).expand_as(tokens)]))
        text = both[0][:batch], both[1][:batch]
        earlier = teacher_step(teacher, both, alphas, noisy, t, previous)
        with torch.no_grad():
            goal = consistency(target, text, alphas, earlier, previous)
        error = consistency(student, text, alphas, noisy, t) - goal
        return ((error.square() + HUBER**2).sqrt() - HUBER).mean()

    seconds = fit("consistency", student, [optimizer], steps, loss_at, ema=0.99, every=100)
    scheduler = LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps=GRID)
    parts = {
        "transformer": student.cpu(),
        "vae": pipe.vae,
        "scheduler": scheduler,
        "text_encoder": encoder.cpu(),
        "tokenizer": pipe.tokenizer,
    }
    write_components("PixArtAlphaPipeline", parts, MODELS / "consistency", torch.float16)
    write_record(
        "consistency",
        device,
        False,
        steps=steps,
        batch=batch,
        scenes=scenes,
        seconds=round(seconds),
    )


if __name__ == "__main__":
    main()
