"""LoRA (Hu et al. 2021, eq. 3: h = W x + alpha/r B A x) on a policy's network, by peft.

The base weights stay frozen and shared: the reference policy is the same network with its
adapters switched off, never a copy.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
PEFT_FILE = "adapter_model.safetensors"  # the name that peft looks for
ADAPTER = "default"
_IMAGE = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT_STREAM = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
TARGETS = {  # attention projections; joint-attention networks have a text stream of their own
    "UNet2DConditionModel": _IMAGE,
    "PixArtTransformer2DModel": _IMAGE,
    "SD3Transformer2DModel": _IMAGE + _TEXT_STREAM,
    "FluxTransformer2DModel": _IMAGE + _TEXT_STREAM,
    "ForCausalLM": ("q_proj", "k_proj", "v_proj", "o_proj"),  # Llama, Qwen, Mistral and their like
}


def _layers(network: nn.Module) -> list[nn.Module]:
    """The adapted layers of `network` in module order, empty without adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


def lora_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The adapter's matrices A and B of every adapted layer, in module order."""
    return [p for name, p in network.named_parameters() if ".lora_" in name]


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
    the attention projections of the class). A ~ N(0, 1/r^2) drawn on the CPU from `generator`
    (or a seed), B = 0, so the network's output is unchanged at first. The global random state is
    not touched. top: only the last `top` blocks of a language model, so that gradients need not reach
    those below (None: all). Raises ValueError for a bad rank, unknown targets or a second adapter.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1.")
    if _layers(network):
        raise ValueError("The network already carries an adapter; add_lora is called once.")
    if top is not None and top < 1:
        raise ValueError(f"top={top} must be at least 1 block.")
    targets = _targets(network, targets)
    blocks = None if top is None else network.config.num_hidden_layers
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        target_modules=targets,
        init_lora_weights="gaussian",
        layers_to_transform=None if top is None else list(range(max(blocks - top, 0), blocks)),
    )
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # peft draws from the global state
        inject_adapter_in_model(config, network, adapter_name=ADAPTER)
    if hasattr(network, "_hf_peft_config_loaded"):
        network._hf_peft_config_loaded = True  # lets diffusers' own adapter methods see it
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    named = [(name, p) for name, p in network.named_parameters() if ".lora_" in name]
    return [_draw(name, parameter, rank, generator) for name, parameter in named]


def _draw(
    name: str, parameter: nn.Parameter, rank: int, generator: torch.Generator
) -> nn.Parameter:
    """One adapter matrix made float32 and trainable; A [r, in] redrawn from `generator`."""
    parameter.data = parameter.data.float()  # half-precision steps of 1e-4 would vanish
    if ".lora_A." in name:
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / rank)
    return parameter.requires_grad_(True)


def _targets(network: nn.Module, targets: Sequence[str] | None) -> list[str]:
    """Name endings of layers to adapt, each checked to occur in `network`."""
    kind = type(network).__name__
    if targets is None and kind.endswith("ForCausalLM"):
        targets = TARGETS["ForCausalLM"]
    if targets is None:
        if kind not in TARGETS:
            raise ValueError(f"There is no default for {kind}; pass targets=['to_q', ...].")
        names = [name for name, _ in network.named_modules()]
        return [t for t in TARGETS[kind] if any(name.endswith("." + t) for name in names)]
    names = [name for name, _ in network.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in names):
            raise ValueError(f"No layer of {kind} ends in '{target}'; see named_modules().")
    return list(targets)


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


def _prefix(network: nn.Module) -> str:
    """What stands before each key: peft's own, or the component's name in a pipeline of diffusers."""
    if type(network).__name__.endswith("ForCausalLM"):
        return "base_model.model"
    return "unet" if type(network).__name__.startswith("UNet") else "transformer"


def save_adapter(network: nn.Module, folder: str | Path) -> Path:
    """Write the adapter to folder/pytorch_lora_weights.safetensors and return that path.

    diffusers' format: pipe.load_lora_weights(folder) opens it for the pipeline classes that have
    this method (PixArt has none). A language model's goes to adapter_model.safetensors with peft's
    adapter_config.json, which peft.PeftModel.from_pretrained(model, folder) opens. The file appears
    only when complete. Raises ValueError without an adapter.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    if not _layers(network):
        raise ValueError("There is no adapter to save; call add_lora first.")
    config, prefix = network.peft_config[ADAPTER], _prefix(network)
    state = get_peft_model_state_dict(network, adapter_name=ADAPTER)
    state = {f"{prefix}.{key}": value.detach().cpu().contiguous() for key, value in state.items()}
    meta = {"r": config.r, "lora_alpha": config.lora_alpha}
    meta["target_modules"] = sorted(config.target_modules)
    meta = {f"{prefix}.{key}": value for key, value in meta.items()}
    own = prefix == "base_model.model"
    path = Path(folder) / (PEFT_FILE if own else FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    if own:
        config.save_pretrained(folder)
    partial = path.with_suffix(".partial")
    save_file(state, partial, {"format": "pt", "lora_adapter_metadata": json.dumps(meta)})
    os.replace(partial, path)
    return path


def _read(path: Path) -> tuple[dict[str, Tensor], float | None]:
    """Adapter matrices by "layer.lora_A.weight", and alpha if the file or its folder tells."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}
            meta = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except (SafetensorError, OSError, ValueError):
        raise ValueError(f"'{path}' is missing, truncated or not a safetensors file.") from None
    sidecar = path.parent / "adapter_config.json"  # peft's own folders keep alpha there
    if not meta and sidecar.is_file():
        meta = json.loads(sidecar.read_text(encoding="utf-8"))
    alphas = [value for key, value in meta.items() if key.split(".")[-1] == "lora_alpha"]
    for prefix in ("transformer.", "unet.", "base_model.model."):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    if not state or not all(".lora_A." in key or ".lora_B." in key for key in state):
        raise ValueError(f"'{path}' holds no LoRA matrices in peft's or diffusers' naming.")
    return state, alphas[0] if alphas else None


def load_adapter(network: nn.Module, folder: str | Path) -> list[nn.Parameter]:
    """Load an adapter saved by save_adapter, diffusers or peft; return its parameters.

    folder: the folder or the .safetensors file. A network without an adapter gets one of the
    stored rank and layers; a network with one must match it. Raises ValueError if the file is
    unreadable or belongs to another network.
    """
    path = Path(folder)
    if path.is_dir():
        path = path / (FILE if (path / FILE).is_file() else PEFT_FILE)
    state, alpha = _read(path)
    layers = sorted({key.rsplit(".lora_", 1)[0] for key in state})
    rank = next(value.shape[0] for key, value in state.items() if ".lora_A." in key)
    names = {name for name, _ in network.named_modules()}
    strangers = [layer for layer in layers if layer not in names]
    if strangers:
        raise ValueError(
            f"'{path}' adapts '{strangers[0]}', which {type(network).__name__} does not have; "
            "load it into the network it was trained on."
        )
    if not _layers(network):
        add_lora(network, rank, alpha, targets=layers)
    elif alpha not in (None, network.peft_config[ADAPTER].lora_alpha):
        raise ValueError(
            f"'{path}' was trained with alpha {alpha}, the network's adapter has "
            f"{network.peft_config[ADAPTER].lora_alpha}; load it into a network without an adapter."
        )
    _copy_into(network, state, path)
    return lora_parameters(network)


@torch.no_grad()
def _copy_into(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Copy matrices into the adapter; names and shapes must match exactly."""
    own = {
        name.replace(f".{ADAPTER}.", "."): parameter
        for name, parameter in network.named_parameters()
        if ".lora_" in name
    }
    same = own.keys() == state.keys()
    if not same or any(own[key].shape != state[key].shape for key in own):
        raise ValueError(
            f"'{path}' has other layers or another rank than the network's adapter; load it into "
            "a network without an adapter."
        )
    for key, parameter in own.items():
        parameter.copy_(state[key])
