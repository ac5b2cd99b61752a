"""Read pipeline folders (model_index.json and one folder per component).

Only safetensors, only classes of diffusers and transformers, no remote code, no pickle. The
hub is asked only for an id of the form owner/name that is no local folder.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
# Components that take part in text-to-image sampling, in the pipeline's own order.
COMPONENTS = {
    "StableDiffusionPipeline": ("unet", "vae", "scheduler", "text_encoder", "tokenizer"),
    "LatentConsistencyModelPipeline": ("unet", "vae", "scheduler", "text_encoder", "tokenizer"),
    "StableDiffusionXLPipeline": (
        "unet", "vae", "scheduler", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2",
    ),
    "StableDiffusion3Pipeline": (
        "transformer", "vae", "scheduler", "text_encoder", "tokenizer",
        "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3",
    ),
    "FluxPipeline": (
        "transformer", "vae", "scheduler", "text_encoder", "tokenizer",
        "text_encoder_2", "tokenizer_2",
    ),
    "PixArtAlphaPipeline": ("transformer", "vae", "scheduler", "text_encoder", "tokenizer"),
}  # fmt: skip
LIBRARIES = ("diffusers", "transformers")


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a pipeline folder, checked: known class, allowed libraries only."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise ValueError(
            f"'{folder}' is not a pipeline folder (no model_index.json); pass the folder that "
            "a diffusers pipeline's save_pretrained wrote."
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        name = index["_class_name"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"'{path}' is not a readable model index; restore the file or save the pipeline again."
        ) from None
    if name not in COMPONENTS:
        raise ValueError(
            f"'{folder}' holds a {name}, which is not supported; use one of "
            f"{', '.join(sorted(COMPONENTS))}."
        )
    for part in COMPONENTS[name]:
        entry = index.get(part) or [None, None]
        if entry[0] is not None and entry[0] not in LIBRARIES:
            raise ValueError(
                f"'{folder}' wants '{part}' from '{entry[0]}'; only diffusers and transformers "
                "classes are loaded (no remote code), so replace that component."
            )
    return index


def check_weights(folder: Path) -> None:
    """Raise unless `folder` holds complete safetensors weights (headers and lengths only)."""
    from safetensors import SafetensorError, safe_open

    if not folder.is_dir():
        raise FileNotFoundError(
            f"The component folder '{folder}' is missing; copy or download the whole pipeline."
        )
    # Precision variants (model.fp16.safetensors) lie beside the weights and are never loaded.
    files = sorted(folder.glob("*.safetensors"))
    for index in folder.glob("*.safetensors.index.json"):
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files += [folder / name for name in sorted(names) if folder / name not in files]
    if not files:
        found = "only pickled weights (.bin)" if list(folder.glob("*.bin")) else "no weights"
        raise ValueError(
            f"'{folder}' holds {found}; convert them to safetensors with "
            "save_pretrained(..., safe_serialization=True)."
        )
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError):
            raise ValueError(
                f"'{file}' is missing, truncated or not a safetensors file; copy or train it again."
            ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers, no notice of diffusers about our own config keys."""
    from transformers.utils import logging as bars

    logger = logging.getLogger("diffusers.configuration_utils")
    shown = bars.is_progress_bar_enabled()

    def keep(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return "latents_mean" not in text and "block_out_channels" not in text

    logger.addFilter(keep)
    bars.disable_progress_bar()
    try:
        yield
    finally:
        logger.removeFilter(keep)
        if shown:
            bars.enable_progress_bar()


def _open(cls: type, folder: Path, **options: Any) -> Any:
    """cls.from_pretrained(folder), local files only; any failure is one ValueError sentence."""
    try:
        with quiet():
            return cls.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # each class raises its own kinds; all mean an unusable folder
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"'{folder}' cannot be read as {cls.__name__} ({reason}); save or copy it again."
        ) from error


def _read_module(cls: type, folder: Path, dtype: torch.dtype) -> nn.Module:
    """A network from its folder: frozen, in eval mode; no weight may be missing."""
    check_weights(folder)
    key = "torch_dtype" if cls.__module__.startswith("diffusers") else "dtype"
    options = {key: dtype, "use_safetensors": True, "output_loading_info": True}
    module, info = _open(cls, folder, **options)
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(
            f"'{folder}' lacks {len(missing)} weights of {cls.__name__} (first: {missing[0]}); "
            "save the component again."
        )
    return module.eval().requires_grad_(False)


def _read_part(folder: Path, library: str, class_name: str, dtype: torch.dtype) -> Any:
    """One component (network, tokenizer or scheduler) by the class that the index names."""
    cls = getattr(import_module(library), class_name, None)
    if not hasattr(cls, "from_pretrained"):
        raise ValueError(
            f"'{folder}' should be a '{class_name}', which {library} does not have; install a "
            f"{library} version that does."
        )
    if not folder.is_dir():
        raise FileNotFoundError(
            f"The component folder '{folder}' is missing; copy or download the whole pipeline."
        )
    return _read_module(cls, folder, dtype) if issubclass(cls, nn.Module) else _open(cls, folder)


def read_components(folder: Path, dtype: torch.dtype) -> tuple[str, dict[str, Any]]:
    """Pipeline class name and its components by name (None where the index says null).

    The VAE is read in float32 whatever `dtype` is, because half-precision decoders overflow.
    Raises ValueError or FileNotFoundError with the path and the fix.
    """
    index = read_index(folder)
    name, parts = index["_class_name"], {}
    for part in COMPONENTS[name]:
        library, class_name = index.get(part) or (None, None)
        part_dtype = torch.float32 if part == "vae" else dtype
        known = library is not None
        parts[part] = _read_part(folder / part, library, class_name, part_dtype) if known else None
    if name == "StableDiffusionXLPipeline":
        parts["force_zeros_for_empty_prompt"] = index.get("force_zeros_for_empty_prompt", True)
    return name, parts


def places(path_or_hub_id: str | Path) -> tuple[Path, Path]:
    """Where a folder of this name may lie: the path as given, and within the checkout."""
    return Path(path_or_hub_id).expanduser(), ROOT / str(path_or_hub_id)


def resolve_folder(path_or_hub_id: str | Path) -> Path:
    """The local folder of a model; an id owner/name that is no folder is fetched from the hub.

    A relative path counts from the working directory, else from the root of the checkout, so that
    "data/models/flow" means the same in a notebook and on the command line.
    """
    for folder in places(path_or_hub_id):
        if folder.is_dir():
            return folder
    words = str(path_or_hub_id).split("/")
    if len(words) != 2 or not all(words) or words[0] in (".", "..", "~"):
        raise FileNotFoundError(
            f"There is no model folder '{path_or_hub_id}'; check the path, or pass a hub id of "
            "the form owner/name."
        )
    return _fetch(str(path_or_hub_id))


def _fetch(hub_id: str) -> Path:
    """Download the safetensors components of a hub pipeline and return the local folder."""
    from huggingface_hub import hf_hub_download, snapshot_download

    kinds = ("*.json", "*.txt", "*.model", "*.safetensors")
    variants = ["*.fp16*", "*.bf16*", "*non_ema*", "*flax*", "*openvino*"]

    def ask(download, *args, **options) -> Path:
        try:
            return Path(download(hub_id, *args, **options))
        except Exception as error:  # the hub client raises many kinds; all mean the same here
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise FileNotFoundError(
                f"There is no local folder '{hub_id}' and the hub did not give it ({reason}); "
                "check the name, the network and the access rights."
            ) from error

    name = read_index(ask(hf_hub_download, "model_index.json").parent)["_class_name"]
    wanted = [f"{part}/{kind}" for part in COMPONENTS[name] for kind in kinds]
    return ask(
        snapshot_download,
        allow_patterns=["model_index.json", *wanted],
        ignore_patterns=variants,
    )


def local_or_hub(path_or_hub_id: str | Path) -> str | Path:
    """The folder meant, as a path or within the checkout, its weights checked; else the hub id as given."""
    for folder in places(path_or_hub_id):
        if folder.is_dir():
            check_weights(folder)
            return folder
    return path_or_hub_id
