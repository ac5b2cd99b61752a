"""Read model folders through one gate, for the command line and the notebook alike.

Only whole safetensors, only classes of diffusers and transformers, no code from a folder, no pickle,
no weight drawn at random; a committed file must be the one that data/manifest.json names. The hub
is asked only for an id of the form owner/name that is no local folder.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
# Network and number of text encoders of the pipelines that are supported.
_PIPELINES = {
    "StableDiffusionPipeline": ("unet", 1),
    "LatentConsistencyModelPipeline": ("unet", 1),
    "StableDiffusionXLPipeline": ("unet", 2),
    "StableDiffusion3Pipeline": ("transformer", 3),
    "FluxPipeline": ("transformer", 2),
    "PixArtAlphaPipeline": ("transformer", 1),
    "PixArtSigmaPipeline": ("transformer", 1),
}
# Components that take part in text-to-image sampling, in the pipeline's own order.
COMPONENTS = {
    name: (network, "vae", "scheduler")
    + tuple(f"{k}{i}" for i in ("", "_2", "_3")[:n] for k in ("text_encoder", "tokenizer"))
    for name, (network, n) in _PIPELINES.items()
}
# What may stand in each place of a model index; all others are networks of diffusers.
_BASES = {
    "text": ("transformers", "PreTrainedModel"),
    "tokenizer": ("transformers", "PreTrainedTokenizerBase"),
    "scheduler": ("diffusers", "SchedulerMixin"),
}
_READ = re.compile(r".*(\.safetensors|config\.json|tokenizer\.json|_index\.json|\.jinja)")


def _json(path: Path, sentence: str) -> dict[str, Any]:
    """The object in a JSON file, or a ValueError with the path and the sentence."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"'{path}' {sentence}")
    return found


@lru_cache(maxsize=None)
def _sha256(path: Path, size: int, changed: int) -> str:
    """Digest of a file, computed again when its size or time changes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_committed(folder: Path) -> None:
    """Raise where a file that is read from `folder`, one of data/models, is not that of the manifest."""
    folder, manifest = folder.resolve(), ROOT / "data" / "manifest.json"
    if not folder.is_relative_to(ROOT / "data") or not manifest.is_file():
        return
    inside = f"{folder.relative_to(ROOT).as_posix()}/"
    for row in _json(manifest, "is no manifest; restore it with git.")["files"]:
        name, path = row["path"], ROOT / row["path"]
        if not name.startswith(inside) or not _READ.fullmatch(name):
            continue
        known = path.stat() if path.is_file() else None
        if known is None or _sha256(path, known.st_size, known.st_mtime_ns) != row["sha256"]:
            raise ValueError(
                f"{name} is not the file that data/manifest.json names; restore it with "
                f"git checkout -- {name}, or run python -m rlgenkit manifest if you trained it anew."
            )


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a pipeline folder of a known class."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise ValueError(
            f"'{folder}' is not a pipeline folder (no model_index.json); pass the folder that "
            "a diffusers pipeline's save_pretrained wrote."
        )
    index = _json(path, "is not a readable model index; restore it or save the pipeline again.")
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in COMPONENTS:
        raise ValueError(
            f"'{folder}' holds a {name}, which is not supported; use one of "
            f"{', '.join(sorted(COMPONENTS))}."
        )
    return index


def _component(folder: Path, entry: Any) -> type:
    """The class that the index names for the component in `folder`."""
    library, base = _BASES.get(folder.name.split("_")[0], ("diffusers", "ModelMixin"))
    module = import_module(library)
    named = isinstance(entry, list) and entry[:-1] == [library]
    cls = named and getattr(module, str(entry[-1]), None)
    if not isinstance(cls, type) or not issubclass(cls, getattr(module, base)):
        raise ValueError(
            f"'{folder.parent}' wants {entry} as '{folder.name}'; only a {base} that this version "
            f"of {library} has can stand there (no remote code), so replace that component."
        )
    return cls


def check_pipeline(folder: Path) -> tuple[dict[str, Any], dict[str, type | None]]:
    """(index, class of every component, None where there is none) of a pipeline that can be read.

    The gate: raises ValueError or FileNotFoundError, one sentence, before any weight is read.
    """
    index = read_index(folder)
    names = COMPONENTS[index["_class_name"]]
    # Network, VAE and scheduler must be there; an index may say that it has none of the others.
    known = [p for p in names if p in names[:3] or index.get(p) not in (None, [None, None])]
    missing = [part for part in known if not (folder / part).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"'{folder}' lacks {', '.join(missing)}: the folders are missing; copy or download the "
            "whole pipeline."
        )
    for part in known:
        if not part.startswith(("scheduler", "tokenizer")):
            check_model(folder / part)
    check_committed(folder)
    classes = {part: _component(folder / part, index.get(part)) for part in known}
    return index, dict.fromkeys(names) | classes


def check_model(folder: Path) -> None:
    """Raise unless `folder` holds whole safetensors weights (headers and lengths only) of the name
    that the loaders read, and a config that asks for no code from elsewhere."""
    from safetensors import SafetensorError, safe_open

    config = _json(folder / "config.json", "is missing or no JSON object; copy or save it again.")
    # Precision variants (model.fp16.safetensors) lie beside the weights and are never loaded.
    name = f"{'diffusion_pytorch_' * ('_class_name' in config)}model.safetensors"
    files = set(folder.glob(name))
    for index in folder.glob(f"{name}.index.json"):
        shards = _json(index, "is not a readable list of shards; copy it again.").get("weight_map")
        shards = shards.values() if isinstance(shards, dict) else ["weight_map"]
        files |= {folder / Path(str(shard)).name for shard in shards}
    if not files:
        raise ValueError(
            f"'{folder}' lacks {name}: no pickled weights (.bin) and no precision variants are read; "
            "save the model again with save_pretrained(..., safe_serialization=True)."
        )
    for file in sorted(files):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError):
            raise ValueError(
                f"'{file}' is missing, truncated or not a safetensors file; copy or train it again."
            ) from None
    # Any other name is one of the hub, from which transformers would fetch a kernel and run it.
    kernel = r'attn_implementation": (?!"eager"|"sdpa"|null)'
    if (folder / "adapter_config.json").exists() or re.search(kernel, json.dumps(config)):
        raise ValueError(
            f"'{folder}' names an adapter or an attention kernel that would be fetched from elsewhere; "
            "remove adapter_config.json, and attn_implementation from config.json."
        )
    check_committed(folder)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no notices of the libraries; what matters is raised."""
    from transformers.utils import logging as bars

    shown, level = bars.is_progress_bar_enabled(), logging.root.manager.disable
    logging.disable(logging.WARNING)
    bars.disable_progress_bar()
    try:
        yield
    finally:
        logging.disable(level)
        if shown:
            bars.enable_progress_bar()


def read_part(cls: type, folder: Path, what: str = "", **options: Any) -> Any:
    """cls.from_pretrained(folder), local files only, no code; any failure is one ValueError sentence."""
    if not cls.__module__.startswith("diffusers"):
        options["trust_remote_code"] = False
    try:
        with quiet():
            return cls.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # each class raises its own kinds; all mean an unusable folder
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "trust_remote_code" in str(error):
            reason = "it brings code of its own, which is never run"
        spelled = (folder / "tokenizer.json").exists() or not list(folder.glob("*.model"))
        if not spelled and find_spec("sentencepiece") is None:
            reason = "its tokenizer is a sentencepiece file; pip install sentencepiece protobuf"
        raise ValueError(
            f"'{folder}' cannot be read as {what or cls.__name__} ({reason}); check the folder, or "
            "save or copy it again."
        ) from error


def read_network(
    cls: type,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    what: str = "",
    spare: tuple[str, ...] = (),
    **options: Any,
) -> nn.Module:
    """A network in eval mode from its folder; no weight may be missing but those of `spare` parts."""
    options = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True} | options
    module, info = read_part(cls, folder, what, **options)
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(spare))
    if missing:
        raise ValueError(
            f"'{folder}' lacks {len(missing)} weights of {type(module).__name__} (first: "
            f"{missing[0]}); save the model again."
        )
    return module.eval()


def read_components(folder: Path, dtype: torch.dtype) -> tuple[str, dict[str, Any]]:
    """Pipeline class name and its components by name (None where the index says null), frozen.

    The VAE is read in float32 whatever `dtype` is, because half-precision decoders overflow.
    Raises ValueError or FileNotFoundError with the path and the fix.
    """
    index, classes = check_pipeline(folder)
    parts: dict[str, Any] = dict.fromkeys(classes)
    for part, cls in classes.items():
        if cls is not None and issubclass(cls, nn.Module):
            wide = torch.float32 if part == "vae" else dtype
            parts[part] = read_network(cls, folder / part, wide).requires_grad_(False)
        elif cls is not None:
            parts[part] = read_part(cls, folder / part)
    if index["_class_name"] == "StableDiffusionXLPipeline":
        parts["force_zeros_for_empty_prompt"] = index.get("force_zeros_for_empty_prompt", True)
    return index["_class_name"], parts


def resolve_folder(path_or_hub_id: str | Path, pipeline: bool = True) -> Path:
    """The local folder of a model; an id owner/name that is no folder is fetched from the hub.

    A relative path counts from the working directory, else from the root of the checkout, so that
    "data/models/flow" means the same in a notebook and on the command line.
    """
    for folder in (Path(path_or_hub_id).expanduser(), ROOT / str(path_or_hub_id)):
        if folder.is_dir():
            return folder
    words = str(path_or_hub_id).split("/")
    if len(words) != 2 or not all(words) or words[0] in (".", "..", "~"):
        raise FileNotFoundError(
            f"There is no model folder '{path_or_hub_id}'; check the path, or pass a hub id of "
            "the form owner/name."
        )
    return _fetch(str(path_or_hub_id), pipeline)


def _fetch(hub_id: str, pipeline: bool) -> Path:
    """Download what is read of a hub model, weights as safetensors only; returns the local folder."""
    from huggingface_hub import hf_hub_download, snapshot_download

    kinds = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
    others = ["*.fp16*", "*.bf16*", "*non_ema*", "*flax*", "*openvino*", "consolidated*"]

    def ask(download, *args, **options) -> Path:
        try:
            return Path(download(hub_id, *args, **options))
        except Exception as error:  # the hub client raises many kinds; all mean the same here
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise FileNotFoundError(
                f"There is no local folder '{hub_id}' and the hub did not give it ({reason}); "
                "check the name, the network and the access rights."
            ) from error

    if not pipeline:
        return ask(snapshot_download, allow_patterns=kinds, ignore_patterns=[*others, "*/*"])
    name = read_index(ask(hf_hub_download, "model_index.json").parent)["_class_name"]
    allowed = [f"{part}/{kind}" for part in COMPONENTS[name] for kind in kinds]
    allowed.append("model_index.json")
    return ask(snapshot_download, allow_patterns=allowed, ignore_patterns=others)
