"""Train the noise-prediction text-to-image model of sticker scenes (PixArt class, DDIM scheduler).

Its text encoder is trained along with it; padding is masked, as the PixArt pipeline does.
"""

import torch
from torch import Tensor, nn

from ..recipes import (
    MODELS,
    at_step,
    fit,
    load_weights,
    optimizers_for,
    write_components,
    write_record,
)
from ..flow.train import (
    BATCH,
    HEADS,
    LAYERS,
    READING,
    SCENES,
    TEXT_STEPS,
    WIDTH,
    Reading,
    build_text_encoder,
    build_tokenizer,
    drop_captions,
    latent_bank,
    learn_to_read,
)

STEPS = 6000
SNR_CAP = 5.0  # min-SNR weighting (Hang et al. 2023): no time step dominates the loss


def build_network():
    """The PixArt-class transformer, 1.8 M parameters: 6 blocks of width 128 over 64 latent tokens."""
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=8,
        out_channels=8,
        num_layers=LAYERS,
        cross_attention_dim=WIDTH,
        sample_size=8,
        patch_size=1,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )


def build_scheduler():
    """DDIM over 1,000 steps with Stable Diffusion's noise schedule; the last step ends at t = 0."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def encode_text(encoder, ids: Tensor) -> tuple[Tensor, Tensor]:
    """States [B, 16, 128] and mask [B, 16] of token ids [B, 16] (0 = padding)."""
    mask = (ids != 0).long()
    return encoder(ids, attention_mask=mask).last_hidden_state, mask


def predict(network, text: tuple[Tensor, Tensor], noisy: Tensor, t: Tensor) -> Tensor:
    """Predicted noise [B, 8, 8, 8] for integer times [B] and the states and mask of captions."""
    return network(
        noisy, encoder_hidden_states=text[0], encoder_attention_mask=text[1], timestep=t
    ).sample


def loss(
    network,
    encoder,
    reading,
    alphas: Tensor,
    latents: Tensor,
    ids: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Noise-prediction loss with min-SNR weights, and reading; alphas = cumulative products [1000]."""
    ids = drop_captions(ids, generator)
    t = torch.randint(len(alphas), (len(latents),), generator=generator, device=latents.device)
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    signal = alphas[t][:, None, None, None]
    text = encode_text(encoder, ids)
    error = predict(network, text, signal.sqrt() * latents + (1 - signal).sqrt() * noise, t) - noise
    snr = alphas[t] / (1 - alphas[t])
    return (
        error.square().mean((1, 2, 3)) * (SNR_CAP / snr).clamp_max(1)
    ).mean() + READING * reading(text[0], ids)


def main(
    steps: int = STEPS,
    batch: int = BATCH,
    scenes: int = SCENES,
    device: str = "cpu",
    further: bool = False,
) -> None:
    """Train network and text encoder together; save data/models/epsilon as a PixArtAlphaPipeline.

    further: start from the weights that are there, not from nothing.
    """
    from diffusers import AutoencoderDC

    vae = AutoencoderDC.from_pretrained(MODELS / "autoencoder", torch_dtype=torch.float32).eval()
    tokenizer = build_tokenizer()
    latents, ids = latent_bank(vae, tokenizer, scenes, device)
    torch.manual_seed(0)
    both = nn.ModuleDict(
        {
            "network": build_network(),
            "text": build_text_encoder(len(tokenizer)),
            "reading": Reading(tokenizer),
        }
    ).to(device)
    if further:
        load_weights("epsilon", transformer=both["network"], text_encoder=both["text"])
    learn_to_read("epsilon", both["text"], both["reading"], ids, TEXT_STEPS)
    scheduler = build_scheduler()
    alphas = scheduler.alphas_cumprod.to(device)
    optimizers = optimizers_for(both["network"], 0.02, 1.5e-3, ("transformer_blocks",))
    optimizers[1].add_param_group(
        {"params": [*both["text"].parameters(), *both["reading"].parameters()]}
    )

    def loss_at(step: int) -> Tensor:
        generator = at_step(42, step, device)
        rows = torch.randint(len(latents), (batch,), generator=generator, device=device)
        return loss(*both.values(), alphas, latents[rows].float(), ids[rows], generator)

    seconds = fit("epsilon", both, optimizers, steps, loss_at, ema=0.998)
    both.cpu()
    parts = {
        "transformer": both["network"],
        "vae": vae,
        "scheduler": scheduler,
        "text_encoder": both["text"],
        "tokenizer": tokenizer,
    }
    write_components("PixArtAlphaPipeline", parts, MODELS / "epsilon", torch.float16)
    write_record(
        "epsilon", device, further, steps=steps, batch=batch, scenes=scenes, seconds=round(seconds)
    )


if __name__ == "__main__":
    main()
