"""Adapters of peft and diffusers: every setting honored or refused, nothing left behind by a refusal."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from data.models.vision_language import train as seeing
from rlgenkit import models
from rlgenkit.models.lora import attention_inside
from tests.tiny_pipelines import sd3_transformer

IDS = torch.tensor([[3, 4, 5, 6]])


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=11,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=0.5,
        )
    ).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=11, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    ).eval()


def shake(parameters):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in parameters:
            p += 0.3 * torch.randn(p.shape, generator=generator)


def peft_folder(folder, **settings):
    """(logits of peft) of an adapter that peft made and saved with these settings."""
    config = LoraConfig(**dict(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"]) | settings)
    model = get_peft_model(llama(), config)
    shake(p for name, p in model.named_parameters() if "lora_" in name)
    model.save_pretrained(folder)
    return model.eval()(IDS).logits.detach()


HONORED = {
    "plain": {},
    "use_rslora": dict(use_rslora=True),
    "alpha_pattern": dict(alpha_pattern={"layers.1.self_attn.q_proj": 20}),
    "rank_pattern": dict(rank_pattern={"v_proj": 2}),
    "both": dict(
        use_rslora=True, rank_pattern={"v_proj": 2}, alpha_pattern={r".*\.1\..*v_proj": 9}
    ),
    "dropout": dict(lora_dropout=0.3),
    "one layer": dict(layers_to_transform=[1]),
}


@pytest.mark.parametrize("settings", HONORED.values(), ids=HONORED)
def test_settings_that_scale_an_adapter_are_honored_and_kept(tmp_path, settings):
    wanted = peft_folder(tmp_path / "peft", **settings)
    assert not torch.allclose(wanted, llama()(IDS).logits)
    network = llama()
    models.load_adapter(network, tmp_path / "peft")
    torch.testing.assert_close(network(IDS).logits, wanted)
    models.load_adapter(network, tmp_path / "peft")  # into an equal adapter too
    models.save_adapter(network, tmp_path / "ours")
    torch.testing.assert_close(
        PeftModel.from_pretrained(llama(), tmp_path / "ours")(IDS).logits, wanted
    )
    with models.reference(network):
        assert torch.equal(network(IDS).logits, llama()(IDS).logits)


REFUSED = {
    "use_dora": dict(use_dora=True),
    "lora_bias": dict(lora_bias=True),
    "bias": dict(bias="lora_only"),
    "modules_to_save": dict(modules_to_save=["lm_head"]),
    "init_lora_weights": dict(init_lora_weights="pissa"),
    "trainable_token_indices": dict(trainable_token_indices=[1]),
}


def untouched(network, before):
    """Nothing of the network has changed: weights, names, flags, hooks for later adapters."""
    now = {name: (p, p.requires_grad) for name, p in network.named_parameters()}
    assert now.keys() == before.keys() and not hasattr(network, "peft_config")
    return all(
        torch.equal(p, b[0]) and flag == b[1] for (p, flag), b in zip(now.values(), before.values())
    )


@pytest.mark.parametrize("setting", REFUSED)
def test_settings_that_change_more_than_matrices_are_refused_without_a_trace(tmp_path, setting):
    peft_folder(tmp_path / "bad", **REFUSED[setting])
    wanted = peft_folder(tmp_path / "good")
    network = llama()
    before = {name: (p.clone(), p.requires_grad) for name, p in network.named_parameters()}
    with pytest.raises(ValueError, match=setting):
        models.load_adapter(network, tmp_path / "bad")
    assert untouched(network, before)
    models.load_adapter(network, tmp_path / "good")  # the right file still fits
    torch.testing.assert_close(network(IDS).logits, wanted)


@pytest.mark.parametrize(
    "settings",
    [
        dict(alpha_pattern=[1]),
        dict(alpha_pattern=None),
        dict(alpha_pattern="q_proj"),
        dict(alpha_pattern={"(": 1}),
        dict(alpha_pattern={"(?i)q_proj": 1}),
        dict(alpha_pattern={"q_proj": "2"}),
        dict(alpha_pattern={"q_proj": float("nan")}),
        *(dict(lora_alpha=x) for x in ("x", 0, None, [6], float("nan"), float("inf"), 10**400)),
        *(dict(use_rslora=x) for x in ("yes", 1, None)),
    ],
    ids=lambda x: str(x)[:40],
)
@pytest.mark.parametrize("carried", [False, True])
def test_settings_of_the_wrong_kind_are_refused_without_a_trace(tmp_path, settings, carried):
    peft_folder(tmp_path)
    network, sidecar = llama(), tmp_path / "adapter_config.json"
    if carried:
        models.load_adapter(network, tmp_path)
    before = {name: (p.clone(), p.requires_grad) for name, p in network.named_parameters()}
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | settings))
    with pytest.raises(
        ValueError, match="adapter_model.safetensors' or its settings .* numbers other than 0"
    ):
        models.load_adapter(network, tmp_path)
    if carried:
        assert all(torch.equal(p, before[n][0]) for n, p in network.named_parameters())
    else:
        assert untouched(network, before)


@pytest.mark.parametrize(
    "bad", [dict(rank=0), dict(alpha=0), dict(alpha=float("nan")), dict(top=0)]
)
def test_an_adapter_without_a_scale_is_not_added(bad):
    network = llama()
    before = {name: (p.clone(), p.requires_grad) for name, p in network.named_parameters()}
    with pytest.raises(ValueError, match="must be at least 1, .* not 0 but finite"):
        models.add_lora(network, **dict(rank=2) | bad)
    assert untouched(network, before)


def spoil(kind, state):
    """Spoil a stored adapter in one way."""
    name = next(key for key in sorted(state) if key.endswith("1.self_attn.q_proj.lora_B.weight"))
    if kind == "shape":
        state[name] = state[name][:-1].clone()
    elif kind == "rank":
        state[name] = state[name][:, :-1].clone()
    elif kind in ("nan", "inf"):
        state[name][0, 0] = float(kind)
    elif kind == "half":
        del state[name]
    elif kind == "stranger":
        state[name.replace("q_proj", "x_proj")] = state.pop(name)
    elif kind == "norm":
        for side in "AB":
            old = name.replace("lora_B", f"lora_{side}")
            state[old.replace("self_attn.q_proj", "input_layernorm")] = state.pop(old)
    else:
        state[name.replace("lora_B.weight", "lora_magnitude_vector")] = torch.ones(16)


@pytest.mark.parametrize(
    "kind", ["shape", "rank", "half", "stranger", "norm", "extra", "nan", "inf"]
)
def test_matrices_that_do_not_fit_are_refused_without_a_trace(tmp_path, kind):
    from safetensors.torch import load_file, save_file

    peft_folder(tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    spoil(kind, state)
    save_file(state, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    network = llama()
    before = {name: (p.clone(), p.requires_grad) for name, p in network.named_parameters()}
    with pytest.raises(ValueError, match="adapter_model.safetensors"):
        models.load_adapter(network, tmp_path)
    assert untouched(network, before)


def test_settings_in_the_file_of_diffusers_are_honored_or_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    network = sd3_transformer()
    shake(models.add_lora(network, 4, 6))
    path = models.save_adapter(network, tmp_path)
    for setting, scale in (({}, 6 / 4), ({"use_rslora": True}, 6 / 2)):
        meta = {f"transformer.{k}": v for k, v in ({"r": 4, "lora_alpha": 6} | setting).items()}
        save_file(load_file(path), path, {"lora_adapter_metadata": json.dumps(meta)})
        fresh = sd3_transformer()
        models.load_adapter(fresh, tmp_path)
        assert fresh.transformer_blocks[0].attn.to_q.scaling == {"default": scale}
    meta["transformer.use_dora"] = True
    save_file(load_file(path), path, {"lora_adapter_metadata": json.dumps(meta)})
    with pytest.raises(ValueError, match="use_dora=True"):
        models.load_adapter(sd3_transformer(), tmp_path)


def test_targets_that_cannot_be_adapted_change_nothing():
    network = llama()
    before = {name: (p.clone(), p.requires_grad) for name, p in network.named_parameters()}
    for bad in ("input_layernorm", "embed_tokens", "self_attn"):
        with pytest.raises(ValueError, match="is linear"):
            models.add_lora(network, 2, targets=["q_proj", bad])
    assert untouched(network, before)


def test_an_adapter_of_any_language_model_opens_in_peft(tmp_path):
    network = gpt2()
    shake(models.add_lora(network, 2, targets=["c_attn", "mlp.c_proj"]))
    assert models.save_adapter(network, tmp_path).name == "adapter_model.safetensors"
    wanted = network(IDS).logits
    opened = PeftModel.from_pretrained(gpt2(), tmp_path)(IDS).logits
    torch.testing.assert_close(opened, wanted)
    again = gpt2()
    models.load_adapter(again, tmp_path)
    assert torch.equal(again(IDS).logits, wanted)


def test_an_adapter_of_a_model_that_sees_is_in_its_speech_and_opens_in_peft(tmp_path):
    torch.manual_seed(0)
    model, processor = seeing.build().eval(), seeing.build_processor()
    policy = models.vision_language_policy((model, processor), rank=2, new=4)
    names = [name for name, _ in policy.model.named_parameters() if ".lora_" in name]
    assert names and all("language_model" in name for name in names)
    assert len(attention_inside(model, model.model.vision_tower)) > 0
    shake(policy.parameters)
    models.save_adapter(policy.model, tmp_path)
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    views = models.make_views(model, processor, pictures, "rate")
    inputs = dict(input_ids=views.ids, attention_mask=views.real.long(), **views.inputs)
    with torch.no_grad():
        wanted, plain = policy.model(**inputs).logits, model(**inputs).logits
        opened = PeftModel.from_pretrained(model, tmp_path)(**inputs).logits
    assert not torch.allclose(wanted, plain)
    torch.testing.assert_close(opened, wanted)
