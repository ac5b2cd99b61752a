"""The committed models: they open in plain diffusers and transformers, and they are as good as their cards say."""

import json
import math

import pytest
import torch
from torch import nn

from data.models import cards, recipes
from data.models.consistency import train as consistency
from data.models.evaluate import SAMPLING, sample
from data.models.flow import train as flow
from data.models.recipes import MODELS, fit
from rlgenkit.models import denoiser, embed, encode, load_policy
from rlgenkit.worlds.prompts import COLORS
from rlgenkit.worlds import (
    REWARD_READER,
    check,
    load_reader,
    parse,
    read,
    render,
    sample_prompts,
    sample_scenes,
)

GENERATORS = ("flow", "epsilon", "consistency")


def present(name: str) -> bool:
    return (MODELS / name).is_dir()


def scenes(n: int, seed: int, split: str = "test"):
    generator = torch.Generator().manual_seed(seed)
    prompts = sample_prompts(n, split=split, generator=generator)
    return prompts, render(sample_scenes(prompts, generator))


def test_every_model_is_small_and_has_a_card():
    for folder in MODELS.iterdir():
        if folder.is_dir() and folder.name != "__pycache__":
            size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            assert size <= 13e6, folder.name
            assert (folder / "README.md").is_file(), folder.name


def test_cards_say_what_was_measured():
    for name in cards.ABOUT:
        assert (MODELS / name / "README.md").read_text() == cards.card(name), name


def test_autoencoder_opens_in_diffusers_and_reconstructs():
    from diffusers import AutoencoderDC

    vae = AutoencoderDC.from_pretrained(MODELS / "autoencoder", torch_dtype=torch.float32)
    _, images = scenes(48, 501)
    with torch.no_grad():
        output = vae.decode(vae.encode(images * 2 - 1).latent).sample / 2 + 0.5
    error = (output.clamp(0, 1) - images).square().mean().item()
    assert -10 * math.log10(error) > 28


def test_truth_meter_reads_clean_scenes():
    prompts, images = scenes(300, 502)
    result = check(read(load_reader(), images), prompts)
    things = torch.tensor([p.word is None for p in prompts])
    assert result["kind_color"][things].mean() >= 0.97


def test_reward_reader_is_another_and_weaker_network():
    prompts, images = scenes(200, 503)
    meter, other = load_reader(), load_reader(REWARD_READER)
    count = [sum(p.numel() for p in m.parameters()) for m in (meter, other)]
    assert count[1] < count[0] / 2
    noisy = (
        images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    ).clamp(0, 1)
    right = [check(read(m, noisy), prompts)["correct"].mean().item() for m in (meter, other)]
    assert right[1] < right[0]


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_open_in_diffusers(name):
    import diffusers

    absent = (
        dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
        if name == "flow"
        else {}
    )
    kind = json.loads((MODELS / name / "model_index.json").read_text())["_class_name"]
    pipe = getattr(diffusers, kind).from_pretrained(
        MODELS / name, torch_dtype=torch.float32, **absent
    )
    assert sum(p.numel() for p in pipe.transformer.parameters()) > 1e6


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_are_as_good_as_their_cards(name):
    card = json.loads((MODELS / name / "quality.json").read_text())["quality"]["test, single"]
    prompts = sample_prompts(
        48, split="test", category="single", generator=torch.Generator().manual_seed(504)
    )
    images = sample(load_policy(MODELS / name), prompts, **SAMPLING[name], seed=505)
    measured = check(read(load_reader(), images), prompts)["kind_color"].mean().item()
    noise = math.sqrt(card["kind_color"] * (1 - card["kind_color"]) / 48 + 1e-3)
    assert abs(measured - card["kind_color"]) < 4 * noise


def test_dual_encoder_tells_captions_apart():
    from rlgenkit.rewards import embed_images, embed_texts, load_dual_encoder

    encoder = load_dual_encoder(MODELS / "clip")
    prompts, images = scenes(64, 506)
    similarity = embed_images(encoder, images) @ embed_texts(encoder, [p.text for p in prompts]).T
    assert (similarity.argmax(1) == torch.arange(64)).float().mean() > 0.5  # chance: 1/64


def test_interrupted_training_ends_like_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "WORK", tmp_path)
    target = torch.linspace(-1, 1, 12)

    def train(name: str, stops: tuple[int, ...]) -> dict:
        for stop in stops:
            torch.manual_seed(0)
            module = nn.Linear(12, 12)
            tree = nn.ModuleDict({"blocks": nn.ModuleDict({"attn": module})})
            optimizers = recipes.optimizers_for(tree, 0.02, 1e-2, ("blocks",))

            def loss_at(step: int):
                if step >= stop:
                    raise KeyboardInterrupt
                noise = torch.randn(4, 12, generator=recipes.at_step(1, step))
                return (module(noise) - target).square().mean()

            try:
                fit(name, module, optimizers, 8, loss_at, every=2)
            except KeyboardInterrupt:
                continue
        return module.state_dict()

    whole, broken = train("whole", (99,)), train("broken", (5, 99))
    assert all(torch.equal(whole[k], broken[k]) for k in whole)


def test_non_finite_loss_stops_training_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "WORK", tmp_path)
    module = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    with pytest.raises(FloatingPointError, match="step 3"):
        fit(
            "bad",
            module,
            [optimizer],
            5,
            lambda s: module.weight.sum() * (math.nan if s == 3 else 1),
            every=2,
        )
    assert recipes._progress(tmp_path / "bad.safetensors")["step"] == 2


def test_reading_labels_follow_from_the_captions():
    tokenizer = flow.build_tokenizer()
    reading = flow.Reading(tokenizer)
    prompts = sample_prompts(400, generator=torch.Generator().manual_seed(508))
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    names = (None, "left of", "right of", "above", "below")
    want = [
        (
            COLORS.index(g.color),
            g.count - 1,
            k,
            names.index(p.relation),
            names.index(opposite.get(p.relation) if k else p.relation),
        )
        for p in prompts
        if p.word is None
        for k, g in enumerate(p.groups)
    ]
    nouns, labels = reading.labels(flow.token_ids(tokenizer, prompts))
    assert [tuple(row) for row in labels.tolist()] == want
    assert nouns.sum(1).tolist() == [0 if p.word else len(p.groups) for p in prompts]


def test_flow_model_tells_left_from_right():
    """Its loss is lower under the true caption than under the one with the opposite side."""
    policy = load_policy(MODELS / "flow")
    generator = torch.Generator().manual_seed(509)
    prompts = sample_prompts(96, category="relation", generator=generator)
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    wrong = [" ".join(opposite.get(w, w) for w in p.text.split()) for p in prompts]
    x0 = encode(policy, render(sample_scenes(prompts, generator)))
    noise = torch.randn(x0.shape, generator=generator)
    with torch.no_grad():
        errors = [
            (
                denoiser(policy, embed(policy, texts))(x0.lerp(noise, 0.85), torch.tensor(850.0))
                - (noise - x0)
            )
            .square()
            .mean((1, 2, 3))
            for texts in ([p.text for p in prompts], wrong)
        ]
    gap = errors[1] - errors[0]
    assert gap.mean() > 5 * gap.std() / 96**0.5


def test_consistency_boundary_conditions():
    skip, out = consistency.boundary(torch.tensor([0, 999]))
    assert skip[0].item() == 1 and out[0].item() == 0
    assert skip[1].item() < 1e-6 and out[1].item() == pytest.approx(1, abs=1e-6)


def test_tokenizer_covers_the_whole_grammar():
    tokenizer = flow.build_tokenizer()
    for prompt in sample_prompts(300, generator=torch.Generator().manual_seed(507)):
        ids = tokenizer(prompt.text).input_ids
        assert tokenizer.unk_token_id not in ids and len(ids) <= flow.TOKENS
    assert (
        tokenizer('the word "TEA" in red').input_ids == tokenizer("the word tea in red").input_ids
    )
    assert parse('the word "TEA" in red').word == "TEA"
