"""The gate of model folders: no code, no pickle, no random weight, no changed file; one sentence each."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.models.vision_language import train as seeing
from rlgenkit import models
from rlgenkit.models import folders
from rlgenkit.rewards.sentences import load_sentence_encoder
from tests.tiny_pipelines import save_language_model, save_pipeline, word_tokenizer


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flow")
    save_pipeline("embedded flow", folder)
    return folder


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A folder for each loader of transformers' models."""
    made = {kind: tmp_path_factory.mktemp(kind) for kind in ("language", "vision", "sentences")}
    save_language_model("llama", made["language"])
    save_language_model("mpnet", made["sentences"])
    torch.manual_seed(0)
    seeing.build().save_pretrained(made["vision"])
    seeing.build_processor().save_pretrained(made["vision"])
    return made


LOADERS = {
    "language": models.load_language_model,
    "vision": models.load_vision_language,
    "sentences": load_sentence_encoder,
}
every_loader = pytest.mark.parametrize("kind", LOADERS)


def copied(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@every_loader
def test_the_loaders_read_a_whole_folder(others, kind):
    LOADERS[kind](others[kind])


@every_loader
def test_code_in_a_folder_never_runs_and_is_not_recommended(others, tmp_path, kind, monkeypatch):
    folder = copied(others[kind], tmp_path)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText")
    change(folder / "config.json", model_type="evil", auto_map=dict.fromkeys(names, "evil.Evil"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match="code of its own, which is never run") as caught:
        LOADERS[kind](folder)
    assert "trust_remote_code" not in str(caught.value) and not (tmp_path / "ran").exists()


@every_loader
def test_no_kernel_is_fetched_and_no_base_of_an_adapter(others, tmp_path, kind):
    folder = copied(others[kind], tmp_path)
    change(folder / "config.json", text_config={"_attn_implementation": "someone/kernel"})
    with pytest.raises(ValueError, match="fetched from elsewhere"):
        LOADERS[kind](folder)
    shutil.copy(others[kind] / "config.json", folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/base"}')
    with pytest.raises(ValueError, match="fetched from elsewhere"):
        LOADERS[kind](folder)


@every_loader
def test_no_weight_is_drawn_at_random_and_no_pickle_is_read(others, tmp_path, kind):
    folder = copied(others[kind], tmp_path)
    state = load_file(folder / "model.safetensors")
    gone = next(
        key
        for key in sorted(state)
        if key.endswith("weight") and "layers" in key or "layer." in key
    )
    del state[gone]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights .* save the model again"):
        LOADERS[kind](folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="lacks model.safetensors: no pickled"):
        LOADERS[kind](folder)


@pytest.mark.parametrize("config", ["[]", "{", "", '"text"'])
def test_a_config_that_is_no_object_is_one_sentence(others, tmp_path, config):
    folder = copied(others["language"], tmp_path)
    (folder / "config.json").write_text(config)
    with pytest.raises(ValueError, match="no JSON object"):
        models.load_language_model(folder)


@pytest.mark.parametrize(
    "entry",
    [
        ["transformers", "AutoModel"],
        ["transformers", "T5Tokenizer"],
        ["diffusers", "UNet2DConditionModel"],
        ["builtins", "print"],
        ["transformers", "T5EncoderModel", "more"],
        [["transformers"], "T5EncoderModel"],
        ["transformers", {"_class_name": "T5EncoderModel"}],
        [None, "T5EncoderModel"],
        {"library": "transformers"},
        "T5EncoderModel",
        7,
    ],
    ids=str,
)
def test_only_the_known_kind_of_class_stands_in_an_index(pipeline, tmp_path, entry):
    folder = copied(pipeline, tmp_path)
    change(folder / "model_index.json", text_encoder_3=entry)
    with pytest.raises(ValueError, match="wants .* as 'text_encoder_3'"):
        models.load_policy(folder)


@pytest.mark.parametrize("name", [[], {}, 3, None, "AutoPipelineForText2Image"])
def test_the_class_of_a_pipeline_is_a_known_name(pipeline, tmp_path, name):
    folder = copied(pipeline, tmp_path)
    change(folder / "model_index.json", _class_name=name)
    with pytest.raises(ValueError, match="not supported; use one of"):
        models.load_policy(folder)


def test_missing_parts_are_named_together_before_any_is_read(pipeline, tmp_path):
    folder = copied(pipeline, tmp_path)
    shutil.rmtree(folder / "vae")
    shutil.rmtree(folder / "tokenizer_3")
    with pytest.raises(FileNotFoundError, match="lacks vae, tokenizer_3"):
        folders.check_pipeline(folder)


@pytest.mark.parametrize("part", ["transformer", "vae", "scheduler"])
@pytest.mark.parametrize("entry", [None, [None, None]], ids=str)
def test_an_index_without_a_needed_part_is_refused_by_its_name(pipeline, tmp_path, part, entry):
    folder = copied(pipeline, tmp_path)
    change(folder / "model_index.json", **{part: entry}, safety_checker=[None, None])
    with pytest.raises(ValueError, match=f"wants .*None.* as '{part}'"):
        folders.check_pipeline(folder)
    shutil.rmtree(folder / part)
    with pytest.raises(FileNotFoundError, match=f"lacks {part}"):
        folders.check_pipeline(folder)


def test_parts_that_may_be_absent_are_none(pipeline, tmp_path):
    folder = copied(pipeline, tmp_path)
    absent = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"), [None, None])
    change(folder / "model_index.json", text_encoder_2=[None, None], **absent)
    assert folders.check_pipeline(folder)[1]["text_encoder_2"] is None


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder_3"])
@pytest.mark.parametrize("suffix", ["fp16", "other", "index"])
def test_weights_under_a_name_that_no_loader_reads_are_refused(pipeline, tmp_path, part, suffix):
    folder = copied(pipeline, tmp_path)
    file = next((folder / part).glob("*.safetensors"))
    name = f"{file.stem}.fp16.safetensors"
    if suffix == "other":  # the name of the other library
        name = "model.safetensors" if "diffusion" in name else "diffusion_pytorch_model.safetensors"
    elif suffix == "index":
        (folder / part / f"{file.stem}.safetensors.index.fp16.json").write_text("{}")
    file.rename(folder / part / name)
    with pytest.raises(ValueError, match=f"{part}' lacks {file.name}"):
        folders.check_pipeline(folder)


@pytest.mark.parametrize(
    "text", ["[]", '{"weight_map": []}', '{"weight_map": {"a": "b.safetensors"}}']
)
def test_a_list_of_shards_must_name_files_that_are_there(pipeline, tmp_path, text):
    part = copied(pipeline, tmp_path) / "transformer"
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="list of shards|missing, truncated"):
        folders.check_model(part)


def test_a_changed_byte_of_a_committed_model_is_refused_by_name(tmp_path, monkeypatch):
    for name in ("clip", "arithmetic"):
        shutil.copytree(folders.ROOT / "data/models" / name, tmp_path / "data/models" / name)
    shutil.copy(folders.ROOT / "data/manifest.json", tmp_path / "data")
    monkeypatch.setattr(folders, "ROOT", tmp_path)
    models.load_language_model(tmp_path / "data/models/arithmetic")
    weights = tmp_path / "data/models/arithmetic/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="arithmetic/model.safetensors is not the file that"):
        models.load_language_model(tmp_path / "data/models/arithmetic")
    content[-1] ^= 1
    weights.write_bytes(content)
    models.load_language_model(tmp_path / "data/models/arithmetic")
    (tmp_path / "data/models/arithmetic/quality.json").write_text("{}")  # is read by nobody
    folders.check_committed(tmp_path / "data/models/arithmetic")
    (tmp_path / "data/models/clip/tokenizer.json").unlink()
    with pytest.raises(ValueError, match="clip/tokenizer.json is not the file"):
        folders.check_committed(tmp_path / "data/models/clip")


def test_every_committed_model_passes_the_gate():
    for folder in (folders.ROOT / "data/models").iterdir():
        if (folder / "model_index.json").is_file():
            folders.check_pipeline(folder)
        elif (folder / "config.json").is_file():
            folders.check_model(folder)


def test_a_sentencepiece_file_alone_says_what_to_install(pipeline, tmp_path):
    folder = copied(pipeline, tmp_path)
    (folder / "tokenizer_3" / "tokenizer.json").unlink()
    (folder / "tokenizer_3" / "spiece.model").write_bytes(b"\n\x0e\n\x05<unk>")
    change(folder / "model_index.json", tokenizer_3=["transformers", "T5Tokenizer"])
    with pytest.raises(ValueError, match="tokenizer_3' .*pip install sentencepiece"):
        models.load_policy(folder)


SIZES = dict(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
CAUSAL = {  # type -> (settings, whether a policy over its tokens works)
    "llama": (SIZES | dict(intermediate_size=16, num_key_value_heads=2), True),
    "gpt2": (dict(vocab_size=32, n_embd=16, n_layer=2, n_head=2), True),
    "opt": (SIZES | dict(ffn_dim=16, word_embed_proj_dim=16), True),
    "gpt_neox": (SIZES | dict(intermediate_size=16), True),
    "mamba": (dict(vocab_size=32, hidden_size=16, num_hidden_layers=2, state_size=4), False),
    "xlnet": (dict(vocab_size=32, d_model=16, n_layer=2, n_head=2, d_inner=16), False),
    "bert": (SIZES | dict(intermediate_size=16), False),
    "rwkv": (dict(vocab_size=32, hidden_size=16, num_hidden_layers=2), False),
}


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_language_model_works_or_is_refused_with_one_sentence(tmp_path, kind):
    from transformers import AutoConfig, AutoModelForCausalLM

    settings, works = CAUSAL[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    if not works:
        with pytest.raises(ValueError, match="does not go from left to right"):
            models.load_language_model(tmp_path)
        return
    policy = models.language_policy(tmp_path, new=5, end=1, pad=0)
    rollout = policy.sample([[3, 4, 5], [6]], torch.Generator().manual_seed(0))
    alone = model(torch.tensor([[6, *rollout.output[1].tolist()]])).logits[0, :-1].log_softmax(-1)
    wanted = alone.gather(1, rollout.output[1][:, None])[:, 0]
    mask = rollout.mask[1]
    torch.testing.assert_close(rollout.log_probs[1][mask], wanted[mask], atol=1e-4, rtol=0)
