"""Train the rectified-flow text-to-image model of sticker scenes (SD3 class) and its text encoder (T5 class)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...worlds.prompts import (BACKGROUNDS, COLORS, DIGITS, KINDS, NUMBERS, WORDS, Prompt, sample_prompts)
from ...worlds.scenes import render, sample_scenes
from ..folders import write_components
from .common import MODELS, WORK, at_step, fit, optimizers_for

BATCH, STEPS, SCENES = 48, 10000, 49152
TOKENS, WIDTH, LAYERS, HEADS = 16, 128, 6, 4
MIX = {"single": 6, "counting": 14, "binding": 12, "relation": 22, "word": 10}  # of 64 scenes; relations are hardest
DROPPED = 0.1  # share of captions replaced by the empty one, for classifier-free guidance


def build_tokenizer():
    """A word-level tokenizer over the caption grammar; case and quotes do not matter."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*NUMBERS, *COLORS, *KINDS, *(k + "s" for k in KINDS), *BACKGROUNDS, "left", "right", "of",
             "above", "below", "and", "on", "background", "the", "word", "number", "in",
             *(w.lower() for w in WORDS), *DIGITS]
    names = ["<pad>", "</s>", "<unk>", *dict.fromkeys(words)]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r'[\s",.]+'), "removed")
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>",
                                   unk_token="<unk>", model_max_length=TOKENS)


def build_text_encoder(vocabulary: int):
    """A two-layer T5 encoder of width 128."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=vocabulary, d_model=WIDTH, d_kv=32, num_heads=HEADS,
                                   d_ff=256, num_layers=2, dropout_rate=0.0, pad_token_id=0,
                                   eos_token_id=1, feed_forward_proj="gated-gelu", use_cache=False))


def build_network():
    """The SD3-class transformer, 3.5 M parameters: 6 joint blocks of width 128 over 64 latent tokens."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=8, out_channels=8, num_layers=LAYERS,
        attention_head_dim=WIDTH // HEADS, num_attention_heads=HEADS, joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH, pooled_projection_dim=WIDTH, pos_embed_max_size=8,
        qk_norm="rms_norm")


def token_ids(tokenizer, prompts: list[Prompt | str]) -> Tensor:
    """Token ids [B, 16] of captions."""
    texts = [p if isinstance(p, str) else p.text for p in prompts]
    return tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS,
                     return_tensors="pt").input_ids


def encode_text(encoder, ids: Tensor) -> tuple[Tensor, Tensor]:
    """States [B, 16, 128] and their mean over real tokens [B, 128], as `rlgenkit.models.embed` gives them."""
    states = encoder(ids, attention_mask=(ids != 0).long()).last_hidden_state
    real = (ids != 0).to(states)[..., None]
    return states, (states * real).sum(1) / real.sum(1)


def latent_bank(vae, tokenizer, scenes: int = SCENES) -> tuple[Tensor, Tensor]:
    """Standardized latents [N, 8, 8, 8] and token ids [N, 16] of training scenes, cached in build/models."""
    from safetensors.torch import load_file, save_file

    path = WORK / f"latents-{scenes}-{sum(MIX.values())}.safetensors"
    if not path.exists():
        mean, std = (torch.tensor(v)[None, :, None, None] for v in
                     (vae.config.latents_mean, vae.config.latents_std))
        latents, ids = [], []
        for step in range(scenes // sum(MIX.values())):
            generator = at_step(31, step)
            prompts = [x for category, n in MIX.items()
                       for x in sample_prompts(n, category=category, generator=generator)]
            with torch.no_grad():
                images = render(sample_scenes(prompts, generator))
                latents.append(((vae.encode(images * 2 - 1).latent - mean) / std).half())
            ids.append(token_ids(tokenizer, prompts))
        save_file({"latents": torch.cat(latents), "ids": torch.cat(ids)}, path)
    bank = load_file(path)
    return bank["latents"], bank["ids"]


def loss(network, encoder, latents: Tensor, ids: Tensor, generator: torch.Generator) -> Tensor:
    """Conditional flow matching with logit-normal times: || v(x_t, t, c) - (noise - latents) ||^2."""
    batch = len(latents)
    dropped = torch.rand(batch, generator=generator) < DROPPED
    ids = torch.where(dropped[:, None], torch.tensor([1] + [0] * (TOKENS - 1)), ids)
    time = torch.randn(batch, generator=generator).sigmoid()
    noise = torch.randn(latents.shape, generator=generator)
    mixed = torch.lerp(latents, noise, time[:, None, None, None])
    states, pooled = encode_text(encoder, ids)
    velocity = network(mixed, states, pooled, time * 1000).sample
    return F.mse_loss(velocity, noise - latents)


def main(steps: int = STEPS) -> None:
    """Train network and text encoder together; save data/models/flow as a StableDiffusion3Pipeline."""
    from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler

    vae = AutoencoderDC.from_pretrained(MODELS / "autoencoder", torch_dtype=torch.float32).eval()
    tokenizer = build_tokenizer()
    latents, ids = latent_bank(vae, tokenizer)
    torch.manual_seed(0)
    both = nn.ModuleDict({"network": build_network(), "text": build_text_encoder(len(tokenizer))})
    optimizers = optimizers_for(both["network"], 0.02, 1.5e-3, ("transformer_blocks",))
    optimizers[1].add_param_group({"params": list(both["text"].parameters())})

    def loss_at(step: int) -> Tensor:
        generator = at_step(32, step)
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        return loss(both["network"], both["text"], latents[rows].float(), ids[rows], generator)

    fit("flow", both, optimizers, steps, loss_at, ema=0.998)
    parts = {"transformer": both["network"], "vae": vae, "text_encoder_3": both["text"],
             "tokenizer_3": tokenizer, "text_encoder": None, "text_encoder_2": None,
             "tokenizer": None, "tokenizer_2": None,
             "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0)}
    write_components("StableDiffusion3Pipeline", parts, MODELS / "flow", torch.float16)


if __name__ == "__main__":
    main()
