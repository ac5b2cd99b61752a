"""Train the rectified-flow text-to-image model of sticker scenes (SD3 class) and its text encoder (T5 class)."""

import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlgenkit.worlds.prompts import (
    BACKGROUNDS,
    COLORS,
    DIGITS,
    KINDS,
    NUMBERS,
    WORDS,
    Prompt,
    sample_prompts,
)
from rlgenkit.worlds.scenes import render, sample_scenes
from ..recipes import (
    MODELS,
    WORK,
    at_step,
    fit,
    load_weights,
    optimizers_for,
    write_components,
    write_record,
)

BATCH, STEPS, SCENES = 48, 10000, 49152
TOKENS, WIDTH, LAYERS, HEADS = 16, 128, 6, 4
MIX = {
    "single": 6,
    "counting": 14,
    "binding": 12,
    "relation": 22,
    "word": 10,
}  # of 64 scenes; relations are hardest
DROPPED = 0.1  # share of captions replaced by the empty one, for classifier-free guidance
READING, CAPTIONS, TEXT_STEPS = (
    0.1,
    128,
    1000,
)  # the text encoder's own task: weight later, batch and steps before


def build_tokenizer():
    """A word-level tokenizer over the caption grammar; case and quotes do not matter."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [
        *NUMBERS,
        *COLORS,
        *KINDS,
        *(k + "s" for k in KINDS),
        *BACKGROUNDS,
        "left",
        "right",
        "of",
        "above",
        "below",
        "and",
        "on",
        "background",
        "the",
        "word",
        "number",
        "in",
        *(w.lower() for w in WORDS),
        *DIGITS,
    ]
    names = ["<pad>", "</s>", "<unk>", *dict.fromkeys(words)]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r'[\s",.]+'), "removed")
    tokenizer.post_processor = processors.TemplateProcessing(
        "$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TOKENS,
    )


def build_text_encoder(vocabulary: int):
    """A three-layer T5 encoder of width 128."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=WIDTH,
            d_kv=32,
            num_heads=HEADS,
            d_ff=256,
            num_layers=3,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
            feed_forward_proj="gated-gelu",
            use_cache=False,
        )
    )


def build_network():
    """The SD3-class transformer, 3.5 M parameters: 6 joint blocks of width 128 over 64 latent tokens."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=8,
        out_channels=8,
        num_layers=LAYERS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


class Reading(nn.Module):
    """The text encoder's own task: what a caption says of each thing, read off the noun's state.

    From pictures alone the side of "left of" is not learned: it takes the relation and the order of
    the nouns together, and either without the other says nothing. Large models get text encoders
    trained on text; this task is the small one's substitute, and is dropped after training.
    """

    SIZES = (len(COLORS), len(NUMBERS), 2, 5, 5)  # classes of each label

    def __init__(self, tokenizer):
        super().__init__()
        table = torch.full((4, len(tokenizer)), -1)  # rows: is a noun, color, count, relation
        for row, words in enumerate(
            (
                [*KINDS, *(k + "s" for k in KINDS)],
                COLORS,
                NUMBERS,
                ("left", "right", "above", "below"),
            )
        ):
            table[row, tokenizer.convert_tokens_to_ids(list(words))] = torch.arange(len(words))
        self.register_buffer("table", table, persistent=False)
        self.head = nn.Linear(WIDTH, sum(self.SIZES))

    def labels(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Nouns bool[B, 16] of captions [B, 16], and for each noun its labels [nouns, 5].

        The labels: color, count - 1, second noun or first, the caption's relation, and the side that
        follows from these two: 0 = none, 1 = left, 2 = right, 3 = above, 4 = below of the other thing.
        """
        noun, color, count, relation = self.table[:, ids]
        nouns, said = noun >= 0, (relation + 1).amax(1, keepdim=True).expand_as(ids)
        second = (nouns.cumsum(1) == 2).long()
        other = torch.tensor([0, 2, 1, 4, 3], device=ids.device)[said]
        side = torch.where(second == 1, other, said)
        return nouns, torch.stack([color.roll(1, 1), count.roll(2, 1), second, said, side], 2)[
            nouns
        ]

    def forward(self, states: Tensor, ids: Tensor) -> Tensor:
        """Sum of the labels' cross-entropies at the nouns of captions [B, 16]; states [B, 16, 128]."""
        nouns, labels = self.labels(ids)
        parts = self.head(states[nouns]).split(self.SIZES, 1)
        return sum(F.cross_entropy(part, label) for part, label in zip(parts, labels.unbind(1)))


def learn_to_read(name: str, encoder, reading: Reading, ids: Tensor, steps: int) -> None:
    """Train a text encoder on the reading task alone, before its generator, on captions ids [N, 16]."""
    both = nn.ModuleDict({"text": encoder, "reading": reading})

    def loss_at(step: int) -> Tensor:
        rows = torch.randint(
            len(ids), (CAPTIONS,), generator=at_step(33, step, ids.device), device=ids.device
        )
        return reading(encode_text(encoder, ids[rows])[0], ids[rows])

    optimizer = torch.optim.AdamW(both.parameters(), lr=1.5e-3, weight_decay=0.0, betas=(0.9, 0.98))
    fit(f"{name}-text", both, [optimizer], steps, loss_at, ema=0.98)


def token_ids(tokenizer, prompts: list[Prompt | str]) -> Tensor:
    """Token ids [B, 16] of captions."""
    texts = [p if isinstance(p, str) else p.text for p in prompts]
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    ).input_ids


def encode_text(encoder, ids: Tensor) -> tuple[Tensor, Tensor]:
    """States [B, 16, 128] and their mean over real tokens [B, 128], as `rlgenkit.models.embed` gives them."""
    states = encoder(ids, attention_mask=(ids != 0).long()).last_hidden_state
    real = (ids != 0).to(states)[..., None]
    return states, (states * real).sum(1) / real.sum(1)


class Scenes(torch.utils.data.Dataset):
    """Training pictures by step: item k is (pictures [64, 3, 64, 64] in [0, 1], their captions)."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count // sum(MIX.values())

    def __getitem__(self, step: int) -> tuple[Tensor, list[str]]:
        if step >= len(self):
            raise IndexError(step)
        generator = at_step(31, step)
        prompts = [
            x
            for category, n in MIX.items()
            for x in sample_prompts(n, category=category, generator=generator)
        ]
        return render(sample_scenes(prompts, generator)), [p.text for p in prompts]


def latent_bank(vae, tokenizer, scenes: int = SCENES, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Standardized latents [N, 8, 8, 8] and token ids [N, 16] of training scenes, cached in build/models.

    With a GPU, which encodes faster than one core renders, every core renders.
    """
    from safetensors.torch import load_file, save_file

    path = WORK / f"latents-{scenes}-{'-'.join(map(str, MIX.values()))}.safetensors"
    if not path.exists():
        mean, std = (
            torch.tensor(v, device=device)[None, :, None, None]
            for v in (vae.config.latents_mean, vae.config.latents_std)
        )
        workers = 0 if device == "cpu" else os.cpu_count()
        latents, ids, encoder = [], [], vae.to(device)
        for images, texts in torch.utils.data.DataLoader(
            Scenes(scenes), batch_size=None, num_workers=workers
        ):
            with torch.no_grad():
                latents.append(
                    ((encoder.encode(images.to(device) * 2 - 1).latent - mean) / std).half().cpu()
                )
            ids.append(token_ids(tokenizer, texts))
        vae.to("cpu")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"latents": torch.cat(latents), "ids": torch.cat(ids)}, path)
    bank = load_file(path, device)
    return bank["latents"], bank["ids"]


def drop_captions(ids: Tensor, generator: torch.Generator) -> Tensor:
    """Replace a tenth of the captions [B, 16] by the empty one."""
    dropped = torch.rand(len(ids), generator=generator, device=ids.device) < DROPPED
    return torch.where(dropped[:, None], empty_ids(ids.device), ids)


def empty_ids(device: str | torch.device = "cpu") -> Tensor:
    """Token ids [16] of the empty caption."""
    return F.one_hot(
        torch.zeros((), dtype=torch.long, device=device), TOKENS
    )  # </s> has id 1, <pad> 0


def loss(
    network, encoder, reading, latents: Tensor, ids: Tensor, generator: torch.Generator
) -> Tensor:
    """Conditional flow matching with logit-normal times, || v(x_t, t, c) - (noise - latents) ||^2, and reading."""
    ids = drop_captions(ids, generator)
    time = torch.randn(len(latents), generator=generator, device=latents.device).sigmoid()
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    mixed = torch.lerp(latents, noise, time[:, None, None, None])
    states, pooled = encode_text(encoder, ids)
    velocity = network(mixed, states, pooled, time * 1000).sample
    return F.mse_loss(velocity, noise - latents) + READING * reading(states, ids)


def main(
    steps: int = STEPS,
    batch: int = BATCH,
    scenes: int = SCENES,
    device: str = "cpu",
    further: bool = False,
) -> None:
    """Train network and text encoder together; save data/models/flow as a StableDiffusion3Pipeline.

    further: start from the weights that are there, not from nothing.
    """
    from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler

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
        load_weights("flow", transformer=both["network"], text_encoder_3=both["text"])
    learn_to_read("flow", both["text"], both["reading"], ids, TEXT_STEPS)
    optimizers = optimizers_for(both["network"], 0.02, 1.5e-3, ("transformer_blocks",))
    optimizers[1].add_param_group(
        {"params": [*both["text"].parameters(), *both["reading"].parameters()]}
    )

    def loss_at(step: int) -> Tensor:
        generator = at_step(32, step, device)
        rows = torch.randint(len(latents), (batch,), generator=generator, device=device)
        return loss(*both.values(), latents[rows].float(), ids[rows], generator)

    seconds = fit("flow", both, optimizers, steps, loss_at, ema=0.998)
    both.cpu()
    parts = {
        "transformer": both["network"],
        "vae": vae,
        "text_encoder_3": both["text"],
        "tokenizer_3": tokenizer,
        "text_encoder": None,
        "text_encoder_2": None,
        "tokenizer": None,
        "tokenizer_2": None,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0),
    }
    write_components("StableDiffusion3Pipeline", parts, MODELS / "flow", torch.float16)
    write_record(
        "flow", device, further, steps=steps, batch=batch, scenes=scenes, seconds=round(seconds)
    )


if __name__ == "__main__":
    main()
