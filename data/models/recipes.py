"""What the training scripts of the embedded models share: a resumable loop and its schedule, and the
way a pipeline is written."""

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlgenkit.models.folders import COMPONENTS, quiet

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "data" / "models"
OPTIONAL = {  # what diffusers lists in the index for these classes and sampling does not need
    "StableDiffusionPipeline": ("safety_checker", "feature_extractor", "image_encoder"),
    "LatentConsistencyModelPipeline": ("safety_checker", "feature_extractor", "image_encoder"),
    "StableDiffusionXLPipeline": ("feature_extractor", "image_encoder"),
    "StableDiffusion3Pipeline": ("feature_extractor", "image_encoder"),
    "FluxPipeline": ("feature_extractor", "image_encoder"),
    "PixArtAlphaPipeline": (),
    "PixArtSigmaPipeline": (),
}
WORK = ROOT / "build" / "models"  # checkpoints and logs of running trainings (not committed)


def cosine(step: int, steps: int, warmup: int = 50) -> float:
    """Learning-rate factor: linear warm-up, then a cosine down to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def optimizers_for(
    module: nn.Module, muon_lr: float, adam_lr: float, blocks: tuple[str, ...]
) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the named sub-modules, AdamW on the rest."""
    named = list(module.named_parameters())
    matrices = [
        p for n, p in named if p.ndim == 2 and n.split(".")[0] in blocks and min(p.shape) > 8
    ]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.0, momentum=0.95),
        torch.optim.AdamW(rest, lr=adam_lr, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Tensors of an optimizer's state, named "parameter.key"."""
    return {
        f"{i}.{k}": torch.as_tensor(v).clone()
        for i, state in optimizer.state_dict()["state"].items()
        for k, v in state.items()
        if v is not None
    }


def _unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _save(path: Path, tensors: dict[str, Tensor], step: int, seconds: float) -> None:
    """Write a checkpoint beside its place, then move it there, so that a crash keeps the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()},
        str(path) + ".part",
        metadata={"progress": json.dumps({"step": step, "seconds": seconds})},
    )
    os.replace(str(path) + ".part", path)


def _progress(path: Path) -> dict[str, float]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["progress"])


def fit(
    name: str,
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    steps: int,
    loss_at: Callable[[int], Tensor],
    ema: float = 0.998,
    every: int = 200,
) -> float:
    """Minimize loss_at(step) for `steps` steps; the module ends with its averaged weights.

    Resumes from build/models/<name>.safetensors. loss_at must draw its randomness from the step
    number, so that a resumed training equals an uninterrupted one. Returns the seconds it took.
    """
    path, rates = WORK / f"{name}.safetensors", [o.param_groups[0]["lr"] for o in optimizers]
    device = str(next(module.parameters()).device)
    average = {k: v.detach().clone() for k, v in module.state_dict().items()}
    start, seconds = 0, 0.0
    if path.exists():
        tensors = load_file(path, device)
        module.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        average = {k[4:]: v for k, v in tensors.items() if k.startswith("ema.")}
        for i, o in enumerate(optimizers):
            _unflatten(
                o, {k[len(f"o{i}.") :]: v for k, v in tensors.items() if k.startswith(f"o{i}.")}
            )
        start, seconds = int(_progress(path)["step"]), _progress(path)["seconds"]
    began = time.perf_counter()
    for step, loss in _descend(module, optimizers, rates, start, steps, loss_at):
        rate = min(ema, (step + 1) / (step + 10))
        new = module.state_dict()
        moving = [k for k, v in new.items() if v.is_floating_point()]
        torch._foreach_lerp_([average[k] for k in moving], [new[k] for k in moving], 1 - rate)
        if (step + 1) % every == 0 or step + 1 == steps:
            seconds, began = seconds + time.perf_counter() - began, time.perf_counter()
            state = {
                f"o{i}.{k}": v for i, o in enumerate(optimizers) for k, v in _flatten(o).items()
            }
            _save(
                path,
                {
                    **{f"model.{k}": v for k, v in module.state_dict().items()},
                    **state,
                    **{f"ema.{k}": v for k, v in average.items()},
                },
                step + 1,
                seconds,
            )
            print(f"{name} {step + 1}/{steps} loss {loss:.4f} {seconds:.0f} s", flush=True)
    module.load_state_dict(average)
    return seconds


def _descend(
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    rates: list[float],
    start: int,
    steps: int,
    loss_at: Callable[[int], Tensor],
) -> Iterator[tuple[int, float]]:
    """Take the optimizer steps, yielding (step, loss smoothed over about 50 steps)."""
    smooth = None
    for step in range(start, steps):
        loss = loss_at(step)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} at step {step}; the last checkpoint is kept"
            )
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer, rate in zip(optimizers, rates):
            for group in optimizer.param_groups:
                group["lr"] = rate * cosine(step, steps)
            optimizer.step()
        module.zero_grad(set_to_none=True)
        smooth = value if smooth is None else 0.98 * smooth + 0.02 * value
        yield step, smooth


def at_step(seed: int, step: int, device: str | torch.device = "cpu") -> torch.Generator:
    """The generator of one training step, on the device that trains."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + step)


def write_record(
    name: str,
    device: str | torch.device,
    further: bool,
    steps: int,
    batch: int,
    scenes: int,
    seconds: float,
) -> None:
    """Keep how a model was trained in data/models/<name>/training.json, one entry a run, for its card."""
    device, path = torch.device(device), MODELS / name / "training.json"
    runs = json.loads(path.read_text()) if further and path.exists() else []
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else "2 CPU cores"
    runs.append(
        {
            "further": further,
            "steps": steps,
            "batch": batch,
            "scenes": scenes,
            "seconds": seconds,
            "device": device.type,
            "hardware": hardware,
        }
    )
    path.write_text(json.dumps(runs, indent=1) + "\n")


def load_weights(name: str, **parts: nn.Module) -> None:
    """Load the weights of data/models/<name>/<part> into each module; keys that are not stored stay as built."""
    for part, module in parts.items():
        (file,) = (MODELS / name / part).glob("*.safetensors")
        wrong = module.load_state_dict(load_file(file), strict=False).unexpected_keys
        if wrong:
            raise ValueError(f"{file} holds {wrong[0]}, which the network lacks.")


def _complete_config(vae: nn.Module) -> None:
    """Give an AutoencoderDC the config keys by which diffusers pipelines ask for the scale."""
    blocks = vae.config.get("encoder_block_out_channels")
    if blocks and "block_out_channels" not in vae.config:
        vae.register_to_config(block_out_channels=list(blocks), shift_factor=0.0)


def _forget_origin(config: Path) -> None:
    """Drop the path that a component was loaded from: it names one machine."""
    content = json.loads(config.read_text(encoding="utf-8"))
    if content.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_components(name: str, parts: dict[str, Any], folder: Path, dtype: torch.dtype) -> None:
    """Write a pipeline folder; weights as safetensors in `dtype`, memory copies untouched."""
    import diffusers

    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"_class_name": name, "_diffusers_version": diffusers.__version__}
    for part in COMPONENTS[name]:
        value = parts.get(part)
        if value is None:
            index[part] = [None, None]
            continue
        if isinstance(value, nn.Module):
            # The plain Module.to: diffusers' own warns about an empty list of exceptions.
            module = nn.Module.to(copy.deepcopy(value), dtype)
            if part == "vae":
                _complete_config(module)
            with quiet():
                module.save_pretrained(folder / part, safe_serialization=True)
            _forget_origin(folder / part / "config.json")
        else:
            value.save_pretrained(folder / part)
        library = type(value).__module__.split(".")[0]
        class_name = type(value).__name__
        # Newer transformers call this class TokenizersBackend; the old name works in all.
        class_name = {"TokenizersBackend": "PreTrainedTokenizerFast"}.get(class_name, class_name)
        index[part] = [library, class_name]
    index.update({part: [None, None] for part in OPTIONAL[name]})
    if parts.get("force_zeros_for_empty_prompt") is not None:
        index["force_zeros_for_empty_prompt"] = parts["force_zeros_for_empty_prompt"]
    if "safety_checker" in OPTIONAL[name]:
        index["requires_safety_checker"] = False
    text = json.dumps(index, indent=2) + "\n"
    (folder / "model_index.json").write_text(text, encoding="utf-8")
