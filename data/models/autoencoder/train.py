"""Train the autoencoder of sticker scenes: 64x64 RGB to 8x8 latents of 8 channels (AutoencoderDC class).

Gaussian noise on the latents and a small penalty on their size make the latent space smooth, which
matters more to the models trained on it than the last decibel of reconstruction.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rlgenkit.worlds.prompts import sample_prompts
from rlgenkit.worlds.scenes import render, sample_scenes
from ..recipes import MODELS, at_step, fit

LATENT_NOISE, LATENT_PENALTY, BATCH, STEPS = 0.15, 1e-3, 32, 1000


def build():
    """The untrained autoencoder, 1.7 M parameters."""
    from diffusers import AutoencoderDC

    widths, empty = (32, 32, 64, 128), ((),) * 4
    return AutoencoderDC(
        in_channels=3,
        latent_channels=8,
        attention_head_dim=16,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(0, 1, 2, 2),
        decoder_layers_per_block=(0, 1, 2, 2),
        encoder_qkv_multiscales=empty,
        decoder_qkv_multiscales=empty,
        upsample_block_type="interpolate",
        downsample_block_type="stride_conv",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=1.0,
    )


def scenes_at(step: int, batch: int, seed: int = 11) -> Tensor:
    """The training pictures of one step, [batch, 3, 64, 64] in [0, 1]."""
    generator = at_step(seed, step)
    return render(sample_scenes(sample_prompts(batch, generator=generator), generator))


def loss(vae, images: Tensor, generator: torch.Generator) -> Tensor:
    """Reconstruction (L1 + squared + edges) through noised latents, plus the latent penalty."""
    target = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
    latents = vae.encode(target).latent
    noise = torch.randn(latents.shape, generator=generator)
    output = vae.decode(latents + LATENT_NOISE * noise).sample
    edges = sum((output.diff(dim=d) - target.diff(dim=d)).abs().mean() for d in (2, 3))
    return (
        F.l1_loss(output, target)
        + 2 * F.mse_loss(output, target)
        + 0.5 * edges
        + LATENT_PENALTY * latents.square().mean()
    )


def main(steps: int = STEPS) -> None:
    """Train, store the per-channel statistics of the latents in the config, save to data/models."""
    torch.manual_seed(0)  # weight initialization inside diffusers draws from the global generator
    vae = build().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4, betas=(0.9, 0.98))
    seconds = fit(
        "autoencoder",
        vae,
        [optimizer],
        steps,
        lambda step: loss(vae, scenes_at(step, BATCH), at_step(12, step)),
    )
    with torch.no_grad():
        images = scenes_at(10_000_000, 512)
        latents = vae.encode(images * 2 - 1).latent
        error = F.mse_loss(vae.decode(latents).sample.clamp(-1, 1), images * 2 - 1) / 4
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    vae.register_to_config(
        latents_mean=[round(v, 5) for v in mean.tolist()],
        latents_std=[round(v, 5) for v in std.tolist()],
    )
    vae.half().save_pretrained(MODELS / "autoencoder")
    print(
        f"autoencoder: {seconds:.0f} s, PSNR {-10 * error.log10():.2f} dB, latent std {std.tolist()}"
    )


if __name__ == "__main__":
    main()
