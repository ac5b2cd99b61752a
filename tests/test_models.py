"""Policies and adapters, on tiny random pipelines of every supported class, against diffusers."""

import json
import math
import socket
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch

from rlgenkit.models import (
    Conditioning,
    add_lora,
    concat,
    decode,
    denoiser,
    embed,
    encode,
    load_adapter,
    load_policy,
    make_policy,
    reference,
    save_adapter,
    unconditional,
)
from data.models.recipes import write_components
from rlgenkit.models.folders import read_components
from tests.tiny_pipelines import (
    CLASSES,
    LENGTH,
    WIDTH,
    components,
    diffusion_scheduler,
    pipeline_class,
    pixart_transformer,
    save_pipeline,
    sd3_transformer,
    unet,
)

PROMPTS = ["a red cat", "two blue star on a cloud", "a red cat"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> saved pipeline folder (float32), each built once."""
    made = {}

    def folder(name: str):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("policies") / name.replace(" ", "_")
            save_pipeline(name, made[name])
        return made[name]

    return folder


@pytest.fixture
def load(folders):
    """name -> Policy for 16 px."""
    return lambda name: load_policy(folders(name), size=16)


@pytest.fixture
def pipeline(folders):
    """name -> diffusers' own pipeline from the same folder."""
    import diffusers

    def pipe(name: str):
        absent = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        nulls = dict.fromkeys(absent) if name == "embedded flow" else {}
        made = getattr(diffusers, pipeline_class(name)).from_pretrained(folders(name), **nulls)
        made.set_progress_bar_config(disable=True)
        return made

    return pipe


def noise(policy, n: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *policy.latent_shape, generator=torch.Generator().manual_seed(seed))


def call_options(name: str) -> dict:
    """What diffusers' calls need so that a tiny model takes the same path as a big one."""
    if name in ("StableDiffusion3Pipeline", "FluxPipeline"):
        return dict(max_sequence_length=LENGTH)
    if name == "PixArtAlphaPipeline":
        return dict(use_resolution_binning=False, clean_caption=False, max_sequence_length=LENGTH)
    return {}


# --- oracles: diffusers' own pipelines --------------------------------------------------------


def diffusers_states(name: str, pipe, prompts):
    """(tokens, pooled, mask) of prompts and of the empty prompt by pipe.encode_prompt."""
    if name == "FluxPipeline":
        tokens, pooled, _ = pipe.encode_prompt(prompts, max_sequence_length=LENGTH)
        return (tokens, pooled, None), None
    if name == "StableDiffusion3Pipeline":
        out = pipe.encode_prompt(prompts, None, None, max_sequence_length=LENGTH)
        return (out[0], out[2], None), (out[1], out[3], None)
    if name == "StableDiffusionXLPipeline":
        out = pipe.encode_prompt(prompts)
        return (out[0], out[2], None), (out[1], out[3], None)
    if name == "PixArtAlphaPipeline":
        out = pipe.encode_prompt(prompts, max_sequence_length=LENGTH)
        return (out[0], None, out[1]), (out[2], None, out[3])
    out = pipe.encode_prompt(prompts, "cpu", 1, name == "StableDiffusionPipeline")
    return (out[0], None, None), (out[1], None, None)


@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_embed_equals_encode_prompt(load, pipeline, name):
    policy, pipe = load(name), pipeline(name)
    ours = [embed(policy, PROMPTS), unconditional(policy, 3)]
    theirs = diffusers_states(name, pipe, PROMPTS)
    for cond, states in zip(ours, theirs):
        if states is None or states[0] is None:
            continue
        for got, want in zip((cond.tokens, cond.pooled, cond.mask), states):
            assert (got is None) == (want is None)
            if got is not None:
                torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert not torch.allclose(ours[0].tokens[0], ours[0].tokens[1])


@torch.no_grad()
def run_ours(name, policy, scheduler, x, guidance, generator):
    """Loop over our denoiser with the scheduler that the pipeline has just set up and used."""
    scheduler._step_index = None
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    fn = denoiser(policy, embed(policy, PROMPTS), guidance)
    options = {"generator": generator} if name == "LatentConsistencyModelPipeline" else {}
    for t in scheduler.timesteps:
        out = scheduler.step(fn(x, t), t, x, return_dict=False, **options)
        x = out[0]
    return out[1] if name == "LatentConsistencyModelPipeline" else x


def pack(x):
    """FLUX tokens of latents [N, C, H, W]: every 2x2 cell is one token."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(n, (h // 2) * (w // 2), c * 4)


@pytest.mark.parametrize("name", CLASSES)
def test_loop_equals_pipeline(load, pipeline, name):
    policy, pipe = load(name), pipeline(name)
    x, seed = noise(policy), torch.Generator().manual_seed(3)
    start = pack(x) if name == "FluxPipeline" else x
    want = pipe(
        prompt=PROMPTS, num_inference_steps=3, guidance_scale=3.5, latents=start, height=16,
        width=16, output_type="latent", return_dict=False, generator=seed, **call_options(name),
    )[0]  # fmt: skip
    seed = torch.Generator().manual_seed(3)
    got = run_ours(name, policy, pipe.scheduler, x, 3.5, seed)
    got = pack(got) if name == "FluxPipeline" else got
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_sd3_without_t5_pads_with_zeros(folders):
    from diffusers import StableDiffusion3Pipeline

    parts = components("StableDiffusion3Pipeline") | dict(text_encoder_3=None, tokenizer_3=None)
    policy = make_policy("StableDiffusion3Pipeline", parts)
    want = StableDiffusion3Pipeline(**parts).encode_prompt(PROMPTS, None, None)
    cond = embed(policy, PROMPTS)
    assert cond.tokens.shape == (3, LENGTH + 256, 2 * WIDTH)
    torch.testing.assert_close(cond.tokens, want[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(cond.pooled, want[2], atol=1e-5, rtol=0)


@torch.no_grad()
def test_embedded_flow_takes_masked_t5_only(load, pipeline):
    policy, pipe = load("embedded flow"), pipeline("embedded flow")
    assert pipe.text_encoder is None and pipe.vae_scale_factor == 2
    cond = embed(policy, PROMPTS)
    assert cond.tokens.shape == (3, LENGTH, 2 * WIDTH) and cond.mask.sum(1).tolist() == [3, 6, 3]
    tokenizer, encoder = policy.text[2][1], policy.text[2][0]
    short = encoder(torch.tensor([tokenizer(PROMPTS[0]).input_ids]))[0]  # no padding at all
    torch.testing.assert_close(cond.tokens[:1, :3], short, atol=1e-5, rtol=0)
    torch.testing.assert_close(cond.pooled[0], short[0].mean(0), atol=1e-5, rtol=0)
    x = noise(policy)
    want = pipe(
        prompt_embeds=cond.tokens, pooled_prompt_embeds=cond.pooled, num_inference_steps=3,
        guidance_scale=1.0, latents=x, height=16, width=16, output_type="latent",
        return_dict=False,
    )[0]  # fmt: skip
    got = run_ours("embedded flow", policy, pipe.scheduler, x, 1.0, None)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_embedded_epsilon_matches_diffusers_longer_padding(load, pipeline):
    """diffusers pads this class to 120 tokens, we to the tokenizer's 16: masked, hence equal."""
    policy, pipe = load("embedded epsilon"), pipeline("embedded epsilon")
    x = noise(policy)
    want = pipe(
        prompt=PROMPTS, num_inference_steps=3, guidance_scale=3.5, latents=x, height=16, width=16,
        output_type="latent", return_dict=False, use_resolution_binning=False, clean_caption=False,
    )[0]  # fmt: skip
    got = run_ours("PixArtAlphaPipeline", policy, pipe.scheduler, x, 3.5, None)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)


# --- records ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "family", "prediction"),
    [
        ("StableDiffusionPipeline", "epsilon", "epsilon"),
        ("StableDiffusion3Pipeline", "flow", "velocity"),
        ("FluxPipeline", "flow", "velocity"),
        ("LatentConsistencyModelPipeline", "consistency", "epsilon"),
        ("embedded epsilon", "epsilon", "epsilon"),
    ],
)
def test_family_prediction_and_shape(folders, name, family, prediction):
    policy = load_policy(folders(name), size=16)
    assert (policy.family, policy.prediction) == (family, prediction)
    assert policy.latent_shape == (8 if name.startswith("embedded") else 4, 8, 8)
    assert not any(p.requires_grad for p in policy.network.parameters())
    assert load_policy(folders(name), size=32).latent_shape[1:] == (16, 16)
    with pytest.raises(ValueError, match="multiple"):
        load_policy(folders(name), size=17)


def test_v_prediction_and_unknown_prediction():
    parts = components("StableDiffusionPipeline")
    parts["scheduler"] = diffusion_scheduler(prediction_type="v_prediction")
    assert make_policy("StableDiffusionPipeline", parts).prediction == "v"
    parts["scheduler"].register_to_config(prediction_type="score")
    with pytest.raises(ValueError, match="score"):
        make_policy("StableDiffusionPipeline", parts)


def test_conditioning_rows():
    cond = Conditioning(torch.arange(6.0).view(2, 3, 1), mask=torch.tensor([[1, 0], [1, 1]]))
    assert cond.repeat_interleave(2).tokens[:, 0, 0].tolist() == [0, 0, 3, 3]
    assert cond.repeat(2).tokens[:, 0, 0].tolist() == [0, 3, 0, 3]
    assert cond.index([1]).mask.tolist() == [[1, 1]] and cond.pooled is None
    assert len(concat([cond, cond.index(slice(1))])) == 3
    with pytest.raises(ValueError, match="fields differ"):
        concat([cond, replace(cond, mask=None)])


def test_embed_encodes_each_prompt_once(load, monkeypatch):
    policy = load("embedded flow")
    calls = []
    encoder = policy.text[2][0]
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    first = embed(policy, PROMPTS)
    assert len(calls) == 2  # two distinct prompts of three
    again = embed(policy, PROMPTS[::-1])
    assert len(calls) == 2 and torch.equal(again.tokens, first.tokens.flip(0))
    alone = embed(load("embedded flow"), PROMPTS[1:2])
    assert torch.equal(alone.tokens[0], first.tokens[1])  # whatever the company
    assert not first.tokens.requires_grad
    with pytest.raises(ValueError, match="list of strings"):
        embed(policy, [])


def test_cache_forgets_oldest(load, monkeypatch):
    import rlgenkit.models.conditioning as module

    policy = load("embedded flow")
    size = embed(policy, ["a"]).tokens.nbytes + embed(policy, ["a"]).pooled.nbytes
    monkeypatch.setattr(module, "CACHE_BYTES", 2 * size)
    rows = embed(policy, ["a", "red", "cat"])
    assert len(rows) == 3 and list(policy.cache) == ["red", "cat"]


def test_long_prompt_is_cut_with_one_warning(load):
    policy = load("embedded epsilon")
    with pytest.warns(UserWarning, match="longer than the text encoder"):
        long = embed(policy, ["cat " * 40])
    assert torch.equal(long.tokens, embed(policy, ["cat " * LENGTH]).tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embed(policy, ["star " * 40])


# --- denoiser ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["embedded flow", "embedded epsilon", CLASSES[1]])
def test_guidance_is_one_call_of_two_batches(load, monkeypatch, name):
    policy = load(name)
    cond, x, t = embed(policy, PROMPTS), noise(policy), torch.tensor([900, 500, 20])
    fn_c, fn_u = denoiser(policy, cond), denoiser(policy, unconditional(policy, 3))
    v_c, v_u = fn_c(x, t), fn_u(x, t)
    rows = []
    policy.network.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(args[0])), with_kwargs=True
    )
    out = denoiser(policy, cond, 2.5)(x, t)
    torch.testing.assert_close(out, v_u + 2.5 * (v_c - v_u), atol=1e-5, rtol=1e-5)
    assert torch.equal(fn_c(x, t), v_c) and rows == [6, 3]
    given = denoiser(policy, cond, 2.5, uncond=unconditional(policy))(x, t)
    assert torch.equal(given, out) and out.dtype == torch.float32


def test_detached_uncond_has_only_the_conditional_gradient(load):
    policy = load("embedded flow")
    policy.network.requires_grad_(True)
    cond, x, t = embed(policy, PROMPTS), noise(policy), torch.tensor([900.0, 500.0, 20.0])

    def gradient(loss):
        policy.network.zero_grad()
        loss.backward()
        grads = [p.grad for p in policy.network.parameters() if p.grad is not None]
        return torch.cat([grad.flatten() for grad in grads])

    want = gradient((2.5 * denoiser(policy, cond)(x, t)).sum())
    got = gradient(denoiser(policy, cond, 2.5, detach_uncond=True)(x, t).sum())
    both = gradient(denoiser(policy, cond, 2.5)(x, t).sum())
    scale = want.abs().max()
    assert (got - want).abs().max() < 1e-4 * scale < (both - want).abs().max()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@torch.no_grad()
def test_several_steps_in_one_call(load, guidance):
    policy = load("embedded flow")
    fn = denoiser(policy, embed(policy, PROMPTS[:2]), guidance)
    x = noise(policy, 4)
    t = torch.tensor([900.0, 900.0, 100.0, 100.0])  # step-major: prompts a, b at 900, a, b at 100
    one = torch.cat([fn(x[:2], t[:2]), fn(x[2:], t[2:])])
    torch.testing.assert_close(fn(x, t), one, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="built for 2 prompts"):
        fn(x[:3], t[:3])


@torch.no_grad()
def test_distilled_networks_read_guidance(load):
    for name in ("FluxPipeline", "LatentConsistencyModelPipeline"):
        policy = load(name)
        cond, x = embed(policy, PROMPTS), noise(policy)
        low, high = (denoiser(policy, cond, w)(x, torch.tensor(500)) for w in (1.0, 7.0))
        assert (low - high).abs().max() > 1e-6
        with pytest.raises(ValueError, match="distilled"):
            denoiser(policy, cond, 2.0, uncond=cond)
    policy = load("FluxPipeline")
    with pytest.raises(ValueError, match="pass size"):
        denoiser(policy, embed(policy, PROMPTS))(torch.zeros(3, 4, 4, 4), torch.tensor(500.0))


@torch.no_grad()
def test_pixart_at_1024_is_told_its_size():
    parts = components("PixArtAlphaPipeline")
    options = dict(sample_size=128, use_additional_conditions=True, num_attention_heads=3)
    options |= dict(cross_attention_dim=24)
    parts["transformer"] = pixart_transformer(**options)
    policy = make_policy("PixArtAlphaPipeline", parts, size=16)
    cond = embed(policy, PROMPTS)
    assert cond.extra.tolist() == [[16, 16, 1]] * 3
    x, t = noise(policy), torch.tensor([900, 500, 20])
    size = {"resolution": torch.full((3, 2), 16.0), "aspect_ratio": torch.ones(3, 1)}
    want = parts["transformer"](
        x, cond.tokens, t, size, encoder_attention_mask=cond.mask, return_dict=False
    )[0]
    assert torch.equal(denoiser(policy, cond)(x, t), want[:, :4])


def test_bfloat16_weights_give_float32_predictions(folders):
    policy = load_policy(folders("embedded flow"), dtype=torch.bfloat16, size=16)
    assert policy.dtype == torch.bfloat16
    assert next(policy.vae.parameters()).dtype == torch.float32
    add_lora(policy.network, 2)
    out = denoiser(policy, embed(policy, PROMPTS), 2.0)(noise(policy), torch.tensor(500.0))
    assert out.dtype == torch.float32 and out.isfinite().all() and out.requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", CLASSES)
def test_cuda_autocast_is_close_to_cpu(folders, name):
    cpu, cuda = (load_policy(folders(name), device, size=16) for device in ("cpu", "cuda"))
    assert cuda.autocast == torch.bfloat16
    x, outs = noise(cpu), []
    for policy in (cpu, cuda):
        add_lora(policy.network, 2)
        out = denoiser(policy, embed(policy, PROMPTS), 2.0)(x, torch.tensor(500))
        outs.append(out.detach().cpu())
        assert out.dtype == torch.float32 and decode(policy, out).dtype == torch.float32
    assert (outs[0] - outs[1]).abs().max() < 0.05 * outs[0].abs().max()


# --- images -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["embedded flow", "StableDiffusion3Pipeline", CLASSES[1]])
def test_decode_undoes_the_latent_scaling(load, name):
    policy = load(name)
    latents = noise(policy, 2).requires_grad_()
    config = policy.vae.config
    if name == "embedded flow":
        mean, std = (torch.tensor(config[f"latents_{k}"]).view(1, 8, 1, 1) for k in ("mean", "std"))
    else:
        mean, std = config.shift_factor or 0.0, 1 / 0.3
    raw = latents * std + mean
    want = (policy.vae.decode(raw).sample / 2 + 0.5).clamp(0, 1)
    image = decode(policy, latents)
    torch.testing.assert_close(image, want, atol=1e-6, rtol=0)
    assert image.shape == (2, 3, 16, 16) and 0 <= image.min() and image.max() <= 1
    image.sum().backward()
    assert latents.grad.abs().sum() > 0
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    code = policy.vae.encode(images * 2 - 1)
    code = code.latent if name == "embedded flow" else code.latent_dist.mode()
    torch.testing.assert_close(encode(policy, images), (code - mean) / std, atol=1e-5, rtol=0)


def test_encode_draws_with_a_generator(load):
    policy = load("StableDiffusionPipeline")
    images = torch.rand(2, 3, 16, 16)
    draws = [encode(policy, images, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


# --- folders ----------------------------------------------------------------------------------


def test_half_on_disk_float_in_memory(folders, tmp_path):
    from safetensors import safe_open

    policy = load_policy(folders("embedded flow"))
    name, parts = read_components(folders("embedded flow"), torch.float32)
    write_components(name, parts, tmp_path / "half", torch.float16)
    file = tmp_path / "half" / "transformer" / "diffusion_pytorch_model.safetensors"
    with safe_open(file, "pt") as weights:
        assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.float16}
    assert policy.dtype == torch.float32
    again = load_policy(tmp_path / "half")
    assert again.dtype == torch.float32 and again.vae.config.latents_std[7] == 0.5 + 0.1 * 7
    index = json.loads((tmp_path / "half" / "model_index.json").read_text())
    assert index["tokenizer_3"] == ["transformers", "PreTrainedTokenizerFast"]
    assert index["text_encoder"] == [None, None]
    assert torch.equal(embed(again, PROMPTS).mask, embed(policy, PROMPTS).mask)


def test_loading_opens_no_socket_and_is_silent(folders, monkeypatch, capfd):
    folder = folders("embedded flow")

    def refuse(*_):
        raise AssertionError("network used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_policy(folder)
    assert capfd.readouterr().err == ""


def damage(folder, kind: str) -> None:
    """Spoil one thing in a copied pipeline folder."""
    part = folder / "transformer"
    weights = part / "diffusion_pytorch_model.safetensors"
    index = json.loads((folder / "model_index.json").read_text())
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "garbage":
        weights.write_bytes(b"PK\x03\x04" * 10)
    elif kind == "pickled":
        weights.rename(part / "diffusion_pytorch_model.bin")
    elif kind == "config":
        (part / "config.json").write_text("[]")
    elif kind == "component":
        weights.unlink(), (part / "config.json").unlink(), part.rmdir()
    elif kind == "keys":
        from safetensors.torch import load_file, save_file

        state = load_file(weights)
        del state["proj_out.bias"]
        save_file(state, weights, {"format": "pt"})
    elif kind == "index":
        (folder / "model_index.json").write_text("{")
    else:
        remote, other = {"transformer": ["my_code", "Net"]}, {"_class_name": "Foo"}
        index |= {"remote": remote, "class": other}[kind]
        (folder / "model_index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "truncated or not a safetensors"),
        ("garbage", "truncated or not a safetensors"),
        ("pickled", r"no pickled weights \(.bin\)"),
        ("component", "missing; copy or download"),
        ("config", "no JSON object; copy or save it again"),
        ("keys", "lacks 1 weights .*proj_out.bias"),
        ("index", "not a readable model index"),
        ("remote", "my_code"),
        ("class", "Foo, which is not supported"),
    ],
)
def test_bad_folders_are_one_sentence(folders, tmp_path, kind, words):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(folders("embedded flow"), folder)
    damage(folder, kind)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
        load_policy(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_folder_and_non_pipeline(tmp_path):
    with pytest.raises(FileNotFoundError, match="check the path"):
        load_policy(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="not a pipeline folder"):
        load_policy(tmp_path / "empty")


def test_missing_components_are_named():
    parts = components("embedded flow")
    with pytest.raises(ValueError, match="'vae'"):
        make_policy("StableDiffusion3Pipeline", parts | dict(vae=None))
    with pytest.raises(ValueError, match="lacks text encoders"):
        make_policy("StableDiffusion3Pipeline", parts | dict(text_encoder_3=None))


def test_importing_models_stays_light():
    code = (
        "import sys, rlgenkit.models;"
        "assert not {'diffusers', 'transformers', 'peft', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- LoRA -------------------------------------------------------------------------------------


def test_lora_starts_at_the_base_and_reference_returns_to_it(load):
    policy = load("embedded flow")
    fn = denoiser(policy, embed(policy, PROMPTS))
    x, t = noise(policy), torch.tensor(500.0)
    base = fn(x, t)
    state = torch.random.get_rng_state()
    parameters = add_lora(policy.network, rank=2, generator=7)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(fn(x, t), base)
    trained = [p for p in policy.network.parameters() if p.requires_grad]
    assert all(a is b for a, b in zip(trained, parameters, strict=True))
    # per block 4 image projections, 3 text ones, and to_add_out in all blocks but the last
    assert len(parameters) == 2 * (8 + 7)
    with torch.no_grad():
        for p in parameters:
            p.add_(0.1)
    moved = fn(x, t)
    assert not torch.equal(moved, base) and moved.requires_grad
    with reference(policy.network):
        assert torch.equal(fn(x, t), base)
        with reference(policy.network):
            pass
        assert torch.equal(fn(x, t), base)
    assert torch.equal(fn(x, t), moved) and all(p.requires_grad for p in parameters)


def test_lora_draws_follow_the_seed_and_scale():
    drawn = [add_lora(sd3_transformer(), 4, generator=seed) for seed in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1]))
    assert not torch.equal(drawn[0][0], drawn[2][0])
    matrices = torch.cat([p.flatten() for p in drawn[0] if p.shape[0] == 4])
    assert math.isclose(matrices.std().item(), 1 / 4, rel_tol=0.1)
    network = sd3_transformer()
    layer = network.transformer_blocks[0].attn.to_q
    weight, x = layer.weight.clone(), torch.randn(5, 16)
    a, b = add_lora(network, rank=2, alpha=8.0, targets=["transformer_blocks.0.attn.to_q"])
    torch.nn.init.normal_(b)
    want = torch.nn.functional.linear(x, weight + 4 * b @ a, layer.bias)
    got = network.transformer_blocks[0].attn.to_q(x)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_lora_bad_input(tmp_path):
    network = sd3_transformer()
    with pytest.raises(ValueError, match="adapter off"), reference(network):
        pass
    with pytest.raises(ValueError, match="no adapter to save"):
        save_adapter(network, tmp_path)
    with pytest.raises(ValueError, match="rank=0"):
        add_lora(network, 0)
    with pytest.raises(ValueError, match="'to_x' is linear"):
        add_lora(network, 1, targets=["to_x"])
    with pytest.raises(ValueError, match="pass targets"):
        add_lora(torch.nn.Linear(2, 2), 1)
    with pytest.raises(ValueError, match="missing, truncated"):
        load_adapter(network, tmp_path)
    add_lora(network, 1)
    with pytest.raises(ValueError, match="already carries"):
        add_lora(network, 1)
    save_adapter(network, tmp_path)
    with pytest.raises(ValueError, match="does not have"):
        load_adapter(unet(), tmp_path)
    other = sd3_transformer()
    add_lora(other, 1, alpha=2)
    with pytest.raises(ValueError, match="another scale"):
        load_adapter(other, tmp_path)
    other = sd3_transformer()
    add_lora(other, 2, alpha=1)
    with pytest.raises(ValueError, match="another rank"):
        load_adapter(other, tmp_path)


def test_peft_folder_is_read(tmp_path):
    from safetensors.torch import save_file

    network = sd3_transformer()
    a, b = torch.randn(2, 16), torch.randn(16, 2)
    key = "base_model.model.transformer_blocks.1.attn.to_v"
    state = {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    save_file(state, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "r": 2}))
    got = load_adapter(network, tmp_path)
    assert torch.equal(got[0], a) and torch.equal(got[1], b)
    assert network.transformer_blocks[1].attn.to_v.scaling == {"default": 3.0}


# --- end to end -------------------------------------------------------------------------------


def make_table(policy):
    from rlgenkit import samplers

    if policy.family == "flow":
        return samplers.flow_table(3, kind="flow", noise=0.7)
    if policy.family == "consistency":
        return samplers.consistency_table_from_scheduler(policy.scheduler, 3)
    return samplers.ddim_table_from_scheduler(policy.scheduler, 3, eta=1.0)


@pytest.mark.parametrize("name", CLASSES)
def test_sample_update_save_load(folders, tmp_path, name):
    """Load, sample 3 steps with log-probs, one clipped update of LoRA, save, load, equal."""
    import diffusers

    from rlgenkit import samplers

    policy = load_policy(folders(name), size=16)
    parameters = add_lora(policy.network, rank=2, alpha=4)
    table = make_table(policy)
    fn = denoiser(policy, embed(policy, PROMPTS), 2.0, detach_uncond=False)
    path = samplers.rollout(fn, table, noise(policy), torch.Generator().manual_seed(0))
    steps = path.stochastic.nonzero().flatten()
    log_prob, _ = samplers.replay(fn, path, steps)
    assert torch.equal(log_prob.detach(), path.log_probs[steps]) and len(steps) >= 2
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    advantages = torch.tensor([1.0, -1.0, 0.5])
    loss = -((log_prob - path.log_probs[steps]).exp() * advantages).mean()
    loss.backward()
    assert parameters[1].grad.abs().sum() > 0
    optimizer.step()

    x, t = noise(policy, seed=5), torch.tensor(499)
    with torch.no_grad():
        trained = fn(x, t)
        with reference(policy.network):
            assert not torch.equal(fn(x, t), trained)
        save_adapter(policy.network, tmp_path)
        fresh = load_policy(folders(name), size=16)
        loaded = load_adapter(fresh.network, tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(loaded, parameters, strict=True))
        assert torch.equal(denoiser(fresh, embed(fresh, PROMPTS), 2.0)(x, t), trained)
        images = decode(fresh, path.final)
        assert images.shape == (3, 3, 16, 16) and images.isfinite().all()
        if hasattr(getattr(diffusers, name), "load_lora_weights"):
            pipe = getattr(diffusers, name).from_pretrained(folders(name))
            pipe.load_lora_weights(tmp_path)
            network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
            theirs = replace(fresh, network=network.eval())
            got = denoiser(theirs, embed(fresh, PROMPTS), 2.0)(x, t)
            torch.testing.assert_close(got, trained, atol=1e-6, rtol=1e-6)
