"""Train the small vision-language model of sticker scenes (LLaVA class): it describes, answers yes or no,
and scores the look with a short reasoning.

One training row is a picture and eleven texts about it, packed behind it: every text sees the picture
and itself, never another text, as if it stood alone. A linear head that reads shapes, colors and look
from the picture's tokens helps the tower to see early; it is thrown away. Run it with
`python -m rlgenkit models vision_language [--steps N] [--device cuda]`.
"""

import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlgenkit.rewards.aesthetic import aesthetic_truth
from rlgenkit.rewards.judges import Scale, scalar_scores
from rlgenkit.worlds.prompts import COLORS, sample_prompts
from rlgenkit.worlds.scenes import LOOKS, SHAPES, SIZE, Scene, render, sample_scenes
from . import questions as world
from ..recipes import MODELS, WORK, at_step, fit, write_record

STEPS, SCENES, CHUNK, PACKS = 4000, 32768, 256, 4
BATCH = {"cpu": 16, "cuda": 96}  # pictures of one step
WIDTH, HEADS, VISION_LAYERS, LAYERS, PATCH = 128, 4, 4, 4, 8
IMAGE_TOKENS, TEXT_TOKENS = (SIZE // PATCH) ** 2, 176
PAD, END, IMAGE = (world.SPECIAL.index(s) for s in ("<pad>", "<end>", "<image>"))
QUESTIONS = {
    "thing questions": world.ask_thing,
    "caption questions": world.ask_caption,
    "look questions": world.ask_look,
    "background questions": world.ask_background,
}
GROUNDING = 0.5  # weight of the loss that teaches the tower where things are
SEEDS = 3  # of the scenes that measure it
BLUR, GRAIN = 0.3, 0.04  # share of pictures that are smoothed a little; largest noise added
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ '<image> ' if part['type'] == 'image' else part['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{{ ':' if add_generation_prompt }}"
)


def build_tokenizer():
    """A word-level tokenizer: words are divided by blanks, a score is three tokens ("0.", "6", "3")."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    table = {word: i for i, word in enumerate(world.vocabulary())}
    tokenizer = Tokenizer(
        models.WordPiece(table, unk_token="<unk>", continuing_subword_prefix="##")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def build_processor():
    """The LlavaProcessor: scales pictures to 64 px and writes 64 <image> tokens for each."""
    from transformers import LlavaProcessor
    from transformers.models.clip import CLIPImageProcessorPil

    side = {"height": SIZE, "width": SIZE}
    images = CLIPImageProcessorPil(
        size=side, crop_size=side, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        images,
        build_tokenizer(),
        patch_size=PATCH,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
    )


def build():
    """The untrained model, 1.8 M parameters: CLIP vision tower and Llama decoder of width 128."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=HEADS,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(world.vocabulary()),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=256,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
    )
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=IMAGE,
            projector_hidden_act="gelu",
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            image_seq_length=IMAGE_TOKENS,
            tie_word_embeddings=False,
            pad_token_id=PAD,
            eos_token_id=END,
        )
    )


def encode(words: dict[str, int], text: str) -> list[int]:
    """Token ids of a text, as the tokenizer gives them (a plain table look-up, for speed)."""
    ids = []
    for word in text.split():
        ids += (
            [words[word]]
            if word in words
            else [words[word[:2]], *(words[f"##{d}"] for d in word[2:])]
        )
    return ids


def pack(
    words: dict[str, int], pairs: list[tuple[str, str]]
) -> tuple[list[int], list[int], list[bool]]:
    """(ids, number of the text, is it to be learned) per token, each of length TEXT_TOKENS; 0 is padding."""
    ids, parts, learned = [], [], []
    for number, (request, answer) in enumerate(pairs, 1):
        before, after = encode(words, request + " :"), encode(words, answer) + [END]
        if len(ids) + len(before) + len(after) > TEXT_TOKENS:
            break
        ids += before + after
        parts += [number] * (len(before) + len(after))
        learned += [False] * len(before) + [True] * len(after)
    fill = [0] * (TEXT_TOKENS - len(ids))
    return ids + fill, parts + fill, learned + [False] * len(fill)


def cells_of(scenes: list[Scene]) -> np.ndarray:
    """Which shape (1..) and color (1..) covers each patch's center, 0 for none: uint8 [C, 2, 64]."""
    found = np.zeros((len(scenes), 2, SIZE // PATCH, SIZE // PATCH), dtype=np.uint8)
    middles = PATCH * np.arange(SIZE // PATCH) + PATCH / 2
    for row, scene in zip(found, scenes):
        for s in scene.stickers:
            down, across = (np.flatnonzero(abs(middles - c) < 0.45 * s.size) for c in (s.y, s.x))
            row[:, down[:, None], across] = np.array(
                [SHAPES.index(s.kind) + 1, COLORS.index(s.color) + 1]
            )[:, None, None]
    return found.reshape(len(scenes), 2, -1)


def chunk_of_bank(step: int) -> dict[str, np.ndarray]:
    """CHUNK scenes: pictures uint8 [C, 3, 64, 64] and PACKS packs of texts of each, [C, PACKS, T]."""
    torch.set_num_threads(1)
    generator, words = at_step(61, step), {w: i for i, w in enumerate(world.vocabulary())}
    scenes = sample_scenes(sample_prompts(CHUNK, generator=generator), generator)
    values = aesthetic_truth(torch.tensor([s.look for s in scenes])).tolist()
    rng = np.random.default_rng(610_000 + step)
    packs = [
        [pack(words, world.lesson(s, v, rng)) for _ in range(PACKS)] for s, v in zip(scenes, values)
    ]
    ids, parts, learned = (np.array([[p[k] for p in row] for row in packs]) for k in range(3))
    pictures = (render(scenes) * 255).round().byte().numpy()
    return {
        "images": pictures,
        "cells": cells_of(scenes),
        "looks": np.array([s.look for s in scenes], dtype=np.float32),
        "ids": ids.astype(np.uint8),
        "parts": parts.astype(np.uint8),
        "learned": learned.astype(np.uint8),
    }


def bank(scenes: int = SCENES) -> dict[str, Tensor]:
    """The training bank, made by all cores and kept in build/models."""
    from safetensors.torch import load_file, save_file

    path = WORK / f"views-{scenes}-{PACKS}-cells.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(cores, 16), mp_context=context) as pool:
            parts = list(pool.map(chunk_of_bank, range(max(1, scenes // CHUNK))))
        save_file(
            {k: torch.from_numpy(np.concatenate([p[k] for p in parts])) for k in parts[0]},
            str(path) + ".part",
        )
        os.replace(str(path) + ".part", path)
    return load_file(path)


def roughen(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures [B, 3, 64, 64] in [0, 1], some smoothed, all a little noisy, as generators draw them."""
    draws = torch.rand(2, len(images), 1, 1, 1, generator=generator, device=images.device)
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = torch.where(draws[0] < BLUR, 0.5 * (images + soft), images)
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return (images + GRAIN * draws[1].square() * noise).clamp(0, 1)


def views(parts: Tensor) -> tuple[Tensor, Tensor]:
    """(attention Bool[B, 1, L, L], positions Long[B, L]) of packed rows, from the text numbers [B, T].

    A text sees the picture's tokens and its own earlier ones; its positions follow the picture's.
    """
    parts = F.pad(parts.long(), (IMAGE_TOKENS, 0), value=-1)
    width = parts.shape[1]
    places = torch.arange(width, device=parts.device)
    same = (parts[:, :, None] == parts[:, None]) | (parts[:, None] == -1)
    begins = F.pad(parts[:, 1:] != parts[:, :-1], (1, 0))
    start = torch.where(begins, places, 0).cummax(1).values
    positions = places - start + torch.where(parts == -1, 0, IMAGE_TOKENS)
    return (same & (places[None, :] <= places[:, None]))[:, None], positions.clamp(max=255)


def grounding_loss(head, features: Tensor, cells: Tensor, looks: Tensor) -> Tensor:
    """How well a linear head reads shape and color of each patch, and the look, from what the decoder
    gets to see: features [B, 64, D], cells [B, 2, 64], looks [B, 5]. The head is thrown away."""
    read = head(features).float()
    shape, color, look = read.split([len(SHAPES) + 1, len(COLORS) + 1, len(LOOKS)], 2)
    return (
        F.cross_entropy(shape.flatten(0, 1), cells[:, 0].long().flatten())
        + F.cross_entropy(color.flatten(0, 1), cells[:, 1].long().flatten())
        + 4 * F.mse_loss(look.mean(1), looks)
    )


def loss(model, images: Tensor, ids: Tensor, parts: Tensor, learned: Tensor) -> Tensor:
    """Mean cross-entropy of the answers' tokens of packed rows: images [B, 3, 64, 64], the rest [B, T]."""
    return packed_loss(model, images, ids, parts, learned)[0]


def packed_loss(
    model, images: Tensor, ids: Tensor, parts: Tensor, learned: Tensor
) -> tuple[Tensor, Tensor]:
    """(`loss`, the picture's tokens as the decoder gets them [B, 64, D])."""
    attention, positions = views(parts)
    ids = F.pad(ids.long(), (IMAGE_TOKENS, 0), value=IMAGE)
    out = model.model(
        input_ids=ids,
        pixel_values=images * 2 - 1,
        attention_mask=attention,
        position_ids=positions,
        use_cache=False,
    )
    wanted = F.pad(learned.bool(), (IMAGE_TOKENS, 0))[:, 1:]
    logits = model.lm_head(out.last_hidden_state[:, :-1][wanted])
    features = out.image_hidden_states.reshape(len(images), IMAGE_TOKENS, -1)
    return F.cross_entropy(logits.float(), ids[:, 1:][wanted]), features


def optimizers_of(model) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of both towers' layers, AdamW on the rest."""
    named = list(model.named_parameters())
    matrices = [p for n, p in named if ".layers." in n and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    return [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0, momentum=0.95),
        torch.optim.AdamW(
            [p for _, p in named if id(p) not in chosen],
            lr=2e-3,
            weight_decay=0.0,
            betas=(0.9, 0.98),
        ),
    ]


def main(
    steps: int = STEPS, batch: int | None = None, scenes: int = SCENES, device: str = "cpu"
) -> None:
    """Train and save data/models/vision_language: model, processor, tokenizer; steps 0 only measures it.

    On a CPU it is measured at once; a GPU's minutes are better spent, so call it again with steps 0.
    """
    if steps == 0:
        return measure()
    kind, began = torch.device(device).type, time.perf_counter()
    batch = batch or BATCH[kind]
    data = {k: v.to(device) for k, v in bank(scenes).items()}
    made = time.perf_counter() - began
    torch.manual_seed(
        0
    )  # weight initialization inside transformers draws from the global generator
    both = nn.ModuleDict(
        {"model": build(), "head": nn.Linear(WIDTH, len(SHAPES) + len(COLORS) + 2 + len(LOOKS))}
    )
    model = both.to(device)["model"]

    def loss_at(step: int) -> Tensor:
        generator = at_step(62, step, device)
        rows = torch.randint(len(data["images"]), (batch,), generator=generator, device=device)
        packs = torch.randint(PACKS, (batch,), generator=generator, device=device)
        texts = (data[k][rows, packs] for k in ("ids", "parts", "learned"))
        images = roughen(data["images"][rows].float() / 255, generator)
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            words, features = packed_loss(model, images, *texts)
            return words + GROUNDING * grounding_loss(
                both["head"], features, data["cells"][rows], data["looks"][rows]
            )

    seconds = fit("vision_language", both, optimizers_of(both), steps, loss_at, ema=0.998)
    print(f"bank {made:.0f} s, training {seconds:.0f} s", flush=True)
    save(model.cpu().eval())
    write_record(
        "vision_language",
        device,
        False,
        steps=steps,
        batch=batch,
        scenes=scenes,
        seconds=round(seconds),
    )
    if kind == "cpu":
        measure()


def save(model) -> None:
    """Write the model in half precision and its processor."""
    folder = MODELS / "vision_language"
    model.generation_config.update(pad_token_id=PAD, eos_token_id=END)
    model.half().save_pretrained(folder)
    build_processor().save_pretrained(folder)


def measure() -> None:
    """Write quality.json of the saved model: mean and spread over SEEDS draws of new scenes."""
    from ci import manifest
    from rlgenkit.models.vision_language import load_vision_language

    manifest.main([])  # models are read only as the manifest names them
    folder, began = MODELS / "vision_language", time.perf_counter()
    model, processor = load_vision_language(folder)
    rows = [
        quality(model, processor, split, seed)
        for split in ("test", "heldout")
        for seed in range(SEEDS)
    ]
    table = {
        name: spread(rows[k * SEEDS : (k + 1) * SEEDS])
        for k, name in enumerate(("test", "heldout"))
    }
    (folder / "quality.json").write_text(json.dumps({"quality": table}, indent=1) + "\n")
    print(
        json.dumps(table, indent=1), f"measured in {time.perf_counter() - began:.0f} s", flush=True
    )


def spread(rows: list[dict[str, float]]) -> dict[str, str]:
    """Mean and standard deviation over seeds of each number, as text."""
    found = {k: np.array([r[k] for r in rows]) for k in rows[0]}
    return {k: f"{v.mean():.3f} ± {v.std(ddof=1):.3f}" for k, v in found.items()}


def quality(model, processor, split: str, seed: int, count: int = 400) -> dict[str, float]:
    """Shares of right answers and errors of scores on new scenes, likeliest answers."""
    from rlgenkit.models.vision_language import ask

    generator, rng = at_step(7_100 + seed, 0), np.random.default_rng(7_100 + seed)
    scenes = sample_scenes(sample_prompts(count, split, generator=generator), generator)
    images, found = render(scenes), {}
    said = ask(model, processor, images, world.DESCRIBE, 20)
    found["caption exact"] = np.mean([a == world.caption_of(s).text for a, s in zip(said, scenes)])
    for name, question in QUESTIONS.items():
        pairs = [question(s, rng) for s in scenes]
        said = ask(model, processor, images, [q for q, _ in pairs], 2)
        found[name] = np.mean([a == b for a, (_, b) in zip(said, pairs)])
    looks = torch.tensor([s.look for s in scenes])
    said = ask(model, processor, images, world.SCORE)
    found["look words right"] = np.mean(
        [
            f"{name}: {world.level(v)}" in a
            for a, s in zip(said, scenes)
            for name, v in zip(LOOKS, s.look)
        ]
    )
    found |= _errors("whole", said, aesthetic_truth(looks))
    for k, name in enumerate(LOOKS):
        found |= _errors(name, ask(model, processor, images, f"score the {name}"), looks[:, k])
    return {k: float(v) for k, v in found.items()}


def _errors(name: str, said: list[str], truth: Tensor) -> dict[str, float]:
    """Mean absolute error and rank correlation of the readable scores, and their share."""
    from scipy.stats import spearmanr

    scores = scalar_scores(said, Scale(0.0, 1.0))
    ours, theirs = scores.values[scores.valid].numpy(), truth[scores.valid].numpy()
    few = len(ours) < 3 or ours.std() == 0
    return {
        f"{name} readable": scores.valid.float().mean().item(),
        f"{name} error": float(np.abs(ours - theirs).mean()) if len(ours) else 1.0,
        f"{name} rank correlation": 0.0 if few else float(spearmanr(ours, theirs).statistic),
    }
