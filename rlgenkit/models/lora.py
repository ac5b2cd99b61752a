"""LoRA (Hu et al. 2021, eq. 3: h = W x + alpha/r B A x) on a policy's network, by peft.

The base weights stay frozen and shared: the reference policy is the same network with its
adapters switched off, never a copy.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
PEFT_FILE = "adapter_model.safetensors"  # the name that peft looks for
ADAPTER = "default"
_IMAGE = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT_STREAM = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
# Attention projections of diffusers (joint-attention networks have a text stream of their own), and
# of Llama, Qwen, Mistral and their like.
TARGETS = (*_IMAGE, *_TEXT_STREAM, "q_proj", "k_proj", "v_proj", "o_proj")
PREFIX = re.compile(r"^(transformer|unet|base_model\.model)\.")  # of keys in stored adapters
# Settings of a stored adapter that are honored, and those that change nothing once it is trained.
# Any other that is not peft's default is refused.
_HONORED = ("lora_alpha", "use_rslora", "alpha_pattern")
_SILENT = (
    "r rank_pattern target_modules exclude_modules layers_to_transform layers_pattern fan_in_fan_out "
    "lora_dropout task_type peft_version auto_mapping base_model_name_or_path revision inference_mode"
).split()


def _layers(network: nn.Module) -> list[nn.Module]:
    """The adapted layers of `network` in module order, empty without adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


def lora_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The adapter's matrices A and B of every adapted layer, in module order."""
    return list(_matrices(network).values())


def add_lora(
    network: nn.Module,
    rank: int,
    alpha: float | None = None,
    targets: Sequence[str] | None = None,
    generator: torch.Generator | int = 0,
    top: int | None = None,
) -> list[nn.Parameter]:
    """Freeze `network`, add an adapter of rank r, return its parameters (float32, trainable).

    alpha: scale times r (None: r, i.e. scale 1). targets: name endings of linear layers (None:
    the attention projections). A ~ N(0, 1/r^2) drawn on the CPU from `generator` (or a seed), B = 0,
    so the network's output is unchanged at first. The global random state is not touched. top: only
    the last `top` blocks of a language model, so that gradients need not reach those below (None:
    all). Raises ValueError, and changes nothing, for a bad rank, unknown targets or a second adapter.
    """
    alpha = rank if alpha is None else alpha
    if rank < 1 or not 0 < abs(alpha) < 1e30 or (top is not None and top < 1):
        raise ValueError(
            f"rank={rank} must be at least 1, top={top} at least 1 block, alpha={alpha} not 0 but finite."
        )
    if _layers(network):
        raise ValueError("The network already carries an adapter; add_lora is called once.")
    names = _targets(network, targets)
    blocks = top and list(range(network.config.num_hidden_layers))[-top:]
    _inject(network, r=rank, lora_alpha=alpha, target_modules=names, layers_to_transform=blocks)
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    for name, parameter in network.named_parameters():
        if ".lora_A." in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / rank)
    return lora_parameters(network)


def _inject(network: nn.Module, **settings: Any) -> None:
    """Freeze the network and add an adapter (float32, trainable) with peft's settings."""
    from peft import LoraConfig, inject_adapter_in_model

    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # peft draws from the global state
        inject_adapter_in_model(
            LoraConfig(init_lora_weights="gaussian", **settings), network, adapter_name=ADAPTER
        )
    if hasattr(network, "_hf_peft_config_loaded"):
        network._hf_peft_config_loaded = True  # lets diffusers' own adapter methods see it
    for parameter in lora_parameters(network):
        parameter.data = parameter.data.float()  # half-precision steps of 1e-4 would vanish
        parameter.requires_grad_(True)


def _shape(layer: nn.Module | None) -> tuple[int, int] | None:
    """(numbers out, numbers in) of a layer that can be adapted, None of any other."""
    weight = getattr(layer, "weight", None)
    if type(layer).__name__ == "Conv1D":  # GPT2's linear layer holds its matrix on its side
        return weight.shape[1], weight.shape[0]
    fits = isinstance(layer, nn.Linear | nn.Conv2d)
    return (len(weight), weight[0].numel()) if fits else None


def _targets(network: nn.Module, targets: Sequence[str] | None) -> list[str]:
    """Name endings of layers to adapt, each checked to occur in `network`."""
    kind, layers = type(network).__name__, dict(network.named_modules())
    found = {t: [n for n in layers if f".{n}".endswith(f".{t}")] for t in targets or TARGETS}
    if targets is None:
        found = {t: names for t, names in found.items() if names}
        if not found:
            raise ValueError(f"There is no default for {kind}; pass targets=['to_q', ...].")
    for target, names in found.items():
        if not names or not all(_shape(layers[name]) for name in names):
            raise ValueError(
                f"No layer of {kind} that ends in '{target}' is linear; see named_modules()."
            )
    return list(found)


def attention_inside(network: nn.Module, part: nn.Module) -> list[str]:
    """Names of the attention projections of `network` that lie inside `part`."""
    inside, endings = set(part.modules()), tuple(f".{t}" for t in TARGETS)
    return [n for n, m in network.named_modules() if m in inside and n.endswith(endings)]


@contextmanager
def reference(network: nn.Module) -> Iterator[nn.Module]:
    """Inside, `network` computes what it did before add_lora, bit for bit.

    Gradient flags stay as they are. Raises ValueError without an adapter, because a fully
    fine-tuned network has no earlier weights to return to.
    """
    layers = _layers(network)
    if not layers:
        raise ValueError(
            "The reference is the network with its adapter off, and there is no adapter; call "
            "add_lora first, or keep the reference's predictions yourself in a full fine-tune."
        )
    before = [layer.disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True  # enable_adapters() would also flip requires_grad
    try:
        yield network
    finally:
        for layer, flag in zip(layers, before):
            layer._disable_adapters = flag


def save_adapter(network: nn.Module, folder: str | Path) -> Path:
    """Write the adapter to folder/pytorch_lora_weights.safetensors and return that path.

    diffusers' format for its networks: pipe.load_lora_weights(folder) opens it for the pipeline classes
    that have this method (PixArt has none). Any other network's goes to adapter_model.safetensors with
    peft's adapter_config.json, which peft.PeftModel.from_pretrained(model, folder) opens. The file
    appears only when complete. Raises ValueError without an adapter.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    if not _layers(network):
        raise ValueError("There is no adapter to save; call add_lora first.")
    config, prefix, name = network.peft_config[ADAPTER], "base_model.model.", PEFT_FILE
    if any(base.__module__.startswith("diffusers.") for base in type(network).__mro__):
        prefix, name = ("unet." if "UNet" in type(network).__name__ else "transformer."), FILE
    state = get_peft_model_state_dict(network, adapter_name=ADAPTER)
    state = {prefix + key: value.detach().cpu().contiguous() for key, value in state.items()}
    meta = {key: getattr(config, key) for key in ("r", "rank_pattern", *_HONORED)}
    meta["target_modules"] = sorted(config.target_modules)
    meta = {prefix + key: value for key, value in meta.items() if value}
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name == PEFT_FILE:
        config.save_pretrained(folder)
    partial = path.with_suffix(".partial")
    save_file(state, partial, {"format": "pt", "lora_adapter_metadata": json.dumps(meta)})
    os.replace(partial, path)
    return path


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Adapter matrices by "layer.lora_A.weight", and the settings of the file or its folder."""
    from peft import LoraConfig
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {PREFIX.sub("", key): file.get_tensor(key) for key in file.keys()}
            meta = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
        sidecar = path.parent / "adapter_config.json"  # peft's own folders keep settings there
        if not meta and sidecar.is_file():
            meta = json.loads(sidecar.read_text(encoding="utf-8"))
        meta = {PREFIX.sub("", key): value for key, value in meta.items()}
        scale = {"use_rslora": False, "alpha_pattern": {}}
        scale |= {key: meta[key] for key in _HONORED if key in meta}
        for name in scale["alpha_pattern"]:
            re.compile(rf"(.*\.)?({name})$")  # as peft looks for it
        alphas = scale.get("lora_alpha", 1), *scale["alpha_pattern"].values()
        fits = [type(scale["use_rslora"]) is bool, *(0 < abs(x) < 1e30 for x in alphas)]
        fits += [x.float().isfinite().all() for x in state.values()]
    except Exception:  # a file, JSON, types or patterns: each raises its own kinds
        fits = [False]
    if not all(fits):
        raise ValueError(
            f"'{path}' or its settings are missing, truncated or wrong: it must be safetensors of finite "
            "matrices, use_rslora true or false, lora_alpha and the values of alpha_pattern (by names "
            "of layers) numbers other than 0."
        )
    plain = LoraConfig().to_dict()
    for key, value in meta.items():
        known = plain.get(key), "gaussian"  # drawn at first and trained since
        if value and key not in (*_HONORED, *_SILENT) and value not in known:
            raise ValueError(
                f"'{path}' was trained with {key}={value!r}, which is not supported; merge it into "
                "its network with peft."
            )
    return state, scale


def load_adapter(network: nn.Module, folder: str | Path) -> list[nn.Parameter]:
    """Load an adapter saved by save_adapter, diffusers or peft; return its parameters.

    folder: the folder or the .safetensors file. A network without an adapter gets one of the
    stored ranks, layers and scales; a network with one must match it. Raises ValueError, and
    changes nothing, if the file is unreadable, belongs to another network or was trained with
    settings that are not supported.
    """
    path = Path(folder)
    if path.is_dir():
        path = path / (FILE if (path / FILE).is_file() else PEFT_FILE)
    state, settings = _read(path)
    layers = sorted({key.rsplit(".lora_", 1)[0] for key in state})
    for layer in layers:
        _check_layer(network, layer, state, path)
    if not layers or len(state) > 2 * len(layers):
        raise ValueError(f"'{path}' holds more or less than LoRA matrices; merge it with peft.")
    ranks = {layer: len(state[f"{layer}.lora_A.weight"]) for layer in layers}
    rank = ranks[layers[0]]
    pattern = {layer: r for layer, r in ranks.items() if r != rank}
    if "lora_alpha" not in settings:  # as diffusers does with files from before it kept settings
        settings |= {"lora_alpha": rank, "alpha_pattern": pattern}
    if _layers(network):
        own = _matrices(network), vars(network.peft_config[ADAPTER])
        now = [{k: m.shape for k, m in own[0].items()}, {k: own[1][k] for k in settings}]
        if now != [{k: m.shape for k, m in state.items()}, settings]:
            raise ValueError(
                f"'{path}' has other layers, another rank or another scale than the network's "
                "adapter; load it into a network without an adapter."
            )
    else:
        _inject(network, r=rank, rank_pattern=pattern, target_modules=layers, **settings)
    with torch.no_grad():
        for key, parameter in _matrices(network).items():
            parameter.copy_(state[key])
    return lora_parameters(network)


def _matrices(network: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's matrices by "layer.lora_A.weight"."""
    named = network.named_parameters()
    return {n.replace(f".{ADAPTER}.", "."): p for n, p in named if ".lora_" in n}


def _check_layer(network: nn.Module, layer: str, state: dict[str, Tensor], path: Path) -> None:
    """Raise unless the file has two matrices for the layer, and the network a layer that they fit."""
    a, b = (state.get(f"{layer}.lora_{side}.weight") for side in "AB")
    own = dict(network.named_modules()).get(layer)
    shape = _shape(getattr(own, "base_layer", own))
    whole = a is not None and b is not None and b[0].numel() == len(a)
    if not whole or shape != (len(b), a[0].numel()):
        raise ValueError(
            f"'{path}' adapts '{layer}', which {type(network).__name__} does not have in this shape; "
            "load it into the network it was trained on."
        )
