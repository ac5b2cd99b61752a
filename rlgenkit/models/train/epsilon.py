"""Train the noise-prediction text-to-image model of sticker scenes (PixArt class, DDIM scheduler).

Its text encoder is trained along with it; padding is masked, as the PixArt pipeline does.
"""

import torch
from torch import Tensor, nn

from ..folders import write_components
from .common import MODELS, at_step, fit, optimizers_for
from .flow import (BATCH, DROPPED, HEADS, LAYERS, TOKENS, WIDTH, build_text_encoder, build_tokenizer,
                   latent_bank)

STEPS = 6000
SNR_CAP = 5.0  # min-SNR weighting (Hang et al. 2023): no time step dominates the loss


def build_network():
    """The PixArt-class transformer, 1.8 M parameters: 6 blocks of width 128 over 64 latent tokens."""
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, in_channels=8, out_channels=8,
        num_layers=LAYERS, cross_attention_dim=WIDTH, sample_size=8, patch_size=1,
        caption_channels=WIDTH, use_additional_conditions=False)


def build_scheduler():
    """DDIM over 1,000 steps with Stable Diffusion's noise schedule; the last step ends at t = 0."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012,
                         beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
                         steps_offset=1, prediction_type="epsilon")


def predict(network, encoder, noisy: Tensor, t: Tensor, ids: Tensor) -> Tensor:
    """Predicted noise [B, 8, 8, 8] for integer times [B] and token ids [B, 16] (0 = padding)."""
    mask = (ids != 0).long()
    states = encoder(ids, attention_mask=mask).last_hidden_state
    return network(noisy, encoder_hidden_states=states, encoder_attention_mask=mask, timestep=t).sample


def drop_captions(ids: Tensor, generator: torch.Generator) -> Tensor:
    """Replace a tenth of the captions [B, 16] by the empty one."""
    dropped = torch.rand(len(ids), generator=generator) < DROPPED
    return torch.where(dropped[:, None], torch.tensor([1] + [0] * (TOKENS - 1)), ids)


def loss(network, encoder, alphas: Tensor, latents: Tensor, ids: Tensor,
         generator: torch.Generator) -> Tensor:
    """Noise-prediction loss with min-SNR weights; alphas = cumulative products [1000]."""
    ids = drop_captions(ids, generator)
    t = torch.randint(len(alphas), (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    signal = alphas[t][:, None, None, None]
    error = predict(network, encoder, signal.sqrt() * latents + (1 - signal).sqrt() * noise, t, ids) - noise
    snr = alphas[t] / (1 - alphas[t])
    return (error.square().mean((1, 2, 3)) * (SNR_CAP / snr).clamp_max(1)).mean()


def main(steps: int = STEPS) -> None:
    """Train network and text encoder together; save data/models/epsilon as a PixArtAlphaPipeline."""
    from diffusers import AutoencoderDC

    vae = AutoencoderDC.from_pretrained(MODELS / "autoencoder", torch_dtype=torch.float32).eval()
    tokenizer = build_tokenizer()
    latents, ids = latent_bank(vae, tokenizer)
    torch.manual_seed(0)
    both = nn.ModuleDict({"network": build_network(), "text": build_text_encoder(len(tokenizer))})
    scheduler = build_scheduler()
    optimizers = optimizers_for(both["network"], 0.02, 1.5e-3, ("transformer_blocks",))
    optimizers[1].add_param_group({"params": list(both["text"].parameters())})

    def loss_at(step: int) -> Tensor:
        generator = at_step(42, step)
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        return loss(both["network"], both["text"], scheduler.alphas_cumprod, latents[rows].float(),
                    ids[rows], generator)

    fit("epsilon", both, optimizers, steps, loss_at, ema=0.998)
    parts = {"transformer": both["network"], "vae": vae, "scheduler": scheduler,
             "text_encoder": both["text"], "tokenizer": tokenizer}
    write_components("PixArtAlphaPipeline", parts, MODELS / "epsilon", torch.float16)


if __name__ == "__main__":
    main()
