"""Tiny random pipelines of every supported class, and tiny language models, saved as ordinary folders."""

import json
import shutil
from pathlib import Path

import torch

from data.models.recipes import write_components

WORDS = "a red blue cat cloud star left right of above two on".split()
CLASSES = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "PixArtAlphaPipeline",
    "LatentConsistencyModelPipeline",
)
PUBLISHED = Path(__file__).parent / "published"
LENGTH, WIDTH = 16, 16  # tokens per prompt, width of every text encoder


def clip_tokenizer():
    """Byte-pair tokenizer whose only merges spell the test words."""
    from transformers import CLIPTokenizer

    letters = sorted(set("".join(WORDS)))
    vocab = letters + [c + "</w>" for c in letters]
    merges = []
    for word in WORDS:
        pieces = list(word[:-1]) + [word[-1] + "</w>"]
        while len(pieces) > 1:
            merge = (pieces[0], pieces[1])
            pieces = ["".join(merge)] + pieces[2:]
            if merge not in merges:
                merges.append(merge)
                vocab.append(pieces[0])
    vocab = list(dict.fromkeys(vocab)) + ["<|startoftext|>", "<|endoftext|>"]
    table = {token: i for i, token in enumerate(vocab)}
    return CLIPTokenizer(vocab=table, merges=merges, model_max_length=LENGTH)


def word_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<pad>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", model_max_length=LENGTH
    )


def t5_tokenizer():
    """As the tokenizers of published pipelines: pieces with scores, and an end behind every text."""
    from transformers import T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", *(f"\u2581{word}" for word in WORDS)]
    return T5Tokenizer(
        vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=LENGTH
    )


def clip_encoder(projection: bool):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=32, projection_dim=WIDTH,
        num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5_encoder(width: int = 2 * WIDTH):
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=32, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    )


def vae_kl(channels: int = 4, shift: float | None = None):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), latent_channels=channels, norm_num_groups=4, sample_size=16,
        scaling_factor=0.3, shift_factor=shift,
    )  # fmt: skip


def vae_dc():
    from diffusers import AutoencoderDC

    vae = AutoencoderDC(
        latent_channels=8, encoder_block_out_channels=(8, 16), decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(0, 1), decoder_layers_per_block=(0, 1),
        encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
    )  # fmt: skip
    vae.register_to_config(
        latents_mean=[0.1 * i for i in range(8)], latents_std=[0.5 + 0.1 * i for i in range(8)]
    )
    return vae


def unet(**options):
    from diffusers import UNet2DConditionModel

    settings = dict(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=WIDTH, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return UNet2DConditionModel(**{**settings, **options})


def sd3_transformer(**options):
    from diffusers import SD3Transformer2DModel

    settings = dict(
        sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=2 * WIDTH, caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    return SD3Transformer2DModel(**{**settings, **options})


def pixart_transformer(**options):
    from diffusers import PixArtTransformer2DModel

    settings = dict(
        sample_size=8, patch_size=1, in_channels=4, out_channels=8, num_layers=2,
        attention_head_dim=8, num_attention_heads=2, cross_attention_dim=16,
        caption_channels=2 * WIDTH, norm_num_groups=4,
    )  # fmt: skip
    return PixArtTransformer2DModel(**{**settings, **options})


def flux_transformer(guidance: bool = True):
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=2 * WIDTH, pooled_projection_dim=WIDTH,
        guidance_embeds=guidance, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip


def diffusion_scheduler(kind: str = "DDIMScheduler", **options):
    import diffusers

    return getattr(diffusers, kind)(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, **options,
    )  # fmt: skip


def flow_scheduler(**options):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def components(name: str) -> dict:
    """Random components of one pipeline; "embedded flow" and "embedded epsilon" too."""
    if name == "StableDiffusionPipeline":
        parts = dict(unet=unet(), vae=vae_kl(), scheduler=diffusion_scheduler())
        return parts | dict(text_encoder=clip_encoder(False), tokenizer=clip_tokenizer())
    if name == "LatentConsistencyModelPipeline":
        parts = dict(unet=unet(time_cond_proj_dim=9), vae=vae_kl())
        parts["scheduler"] = diffusion_scheduler("LCMScheduler")
        return parts | dict(text_encoder=clip_encoder(False), tokenizer=clip_tokenizer())
    pair = dict(text_encoder=clip_encoder(True), tokenizer=clip_tokenizer())
    second = dict(text_encoder_2=clip_encoder(True), tokenizer_2=clip_tokenizer())
    if name == "StableDiffusionXLPipeline":
        network = unet(
            cross_attention_dim=2 * WIDTH, addition_embed_type="text_time",
            addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 * 4 + WIDTH,
        )  # fmt: skip
        parts = dict(unet=network, vae=vae_kl(), scheduler=diffusion_scheduler())
        parts |= pair | dict(text_encoder=clip_encoder(False), force_zeros_for_empty_prompt=True)
        return parts | second
    third = dict(text_encoder_3=t5_encoder(), tokenizer_3=word_tokenizer())
    if name == "StableDiffusion3Pipeline":
        parts = dict(transformer=sd3_transformer(), vae=vae_kl(shift=0.2))
        return parts | dict(scheduler=flow_scheduler(shift=3.0)) | pair | second | third
    if name == "FluxPipeline":
        parts = dict(transformer=flux_transformer(), vae=vae_kl(shift=0.2))
        parts |= dict(scheduler=flow_scheduler(use_dynamic_shifting=True))
        parts |= dict(text_encoder=clip_encoder(False), tokenizer=clip_tokenizer())
        return parts | dict(text_encoder_2=t5_encoder(), tokenizer_2=word_tokenizer())
    t5 = dict(text_encoder=t5_encoder(), tokenizer=word_tokenizer())
    if name.startswith("PixArt"):
        parts = dict(transformer=pixart_transformer(), vae=vae_kl())
        return parts | dict(scheduler=diffusion_scheduler()) | t5
    if name == "embedded flow":
        network = sd3_transformer(in_channels=8, out_channels=8)
        return dict(transformer=network, vae=vae_dc(), scheduler=flow_scheduler()) | third
    network = pixart_transformer(in_channels=8, out_channels=8)
    return dict(transformer=network, vae=vae_dc(), scheduler=diffusion_scheduler()) | t5


def pipeline_class(name: str) -> str:
    embedded = {"embedded flow": CLASSES[2], "embedded epsilon": CLASSES[4]}
    return embedded.get(name, name)


def save_pipeline(name: str, folder) -> None:
    """Write the random pipeline `name` to `folder` (float32); the same name gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        parts = components(name)
        for part in parts.values():  # some layers start at zero: shake everything
            for p in part.parameters() if isinstance(part, torch.nn.Module) else ():
                p.data += 0.05 * torch.randn(p.shape)
    write_components(pipeline_class(name), parts, folder, torch.float32)


def save_published(name: str, folder) -> None:
    """A random pipeline with the index and the scheduler that tests/published/<name> holds."""
    index = json.loads((PUBLISHED / name / "model_index.json").read_text())
    save_pipeline(index["_class_name"], folder)
    shutil.copy(PUBLISHED / name / "model_index.json", folder)
    shutil.copy(PUBLISHED / name / "scheduler_config.json", folder / "scheduler")
    for part, entry in index.items():
        if isinstance(entry, list) and entry[1].startswith("T5Tokenizer"):
            shutil.rmtree(folder / part)
            t5_tokenizer().save_pretrained(folder / part)
        if entry == ["diffusers", "Transformer2DModel"]:  # PixArt's, by the name of its time
            path = folder / part / "config.json"
            config = json.loads(path.read_text()) | {"_class_name": entry[1]}
            path.write_text(json.dumps(config))


def letter_tokenizer(pad: bool = True):
    """Word-level tokenizer whose words are single characters, so that no two texts look alike."""
    from string import printable

    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *printable])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="</s>",
        pad_token="<pad>" if pad else None,
    )  # fmt: skip


def save_language_model(kind: str, folder, width: int = WIDTH) -> None:
    """A random one-layer model of transformers' type `kind` (mpnet, llama, qwen3) and a tokenizer.

    Like Llama's own, the tokenizer of decoders has no padding token.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    tokenizer = letter_tokenizer(pad=kind == "mpnet")
    settings = dict(num_key_value_heads=1, head_dim=width // 2) if kind != "mpnet" else {}
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=300, **settings,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(len(kind))
        model = (AutoModel if kind == "mpnet" else AutoModelForCausalLM).from_config(config)
    for p in model.parameters():  # the start is so narrow that all texts would look alike
        p.data *= 10
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
