"""Parameters that name a folder, a file or a hub id: found and looked into before any work."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .parameters import COMMON, Declaration, words_of_range
from .provenance import ROOT
from .values import ParameterError

# A text parameter names a place if its name, help and words of range read like this.
PLACE = re.compile(r"folder|hub id|^(\w+_)?(model|encoder|file):")


def places(
    declaration: Declaration, values: Mapping[str, Any], given: Iterable[str]
) -> dict[str, str]:
    """Parameter -> the place that it names, for those that name a folder, a file or a hub id.

    What is there becomes an absolute path, unless it stands so in the notebook, and models are
    looked into; what the quick or default profile has is a name of the notebook's own, such as
    "embedded".  ParameterError where nothing is there.  given: names set from outside.
    """
    found, first = {}, [declaration.presets.get(name, {}) for name in ("quick", "default")]
    for name, kind in declaration.types.items():
        allowed = declaration.ranges.get(name)
        words = f"{name}: {declaration.help.get(name, '')}; {words_of_range(allowed)}"
        if kind != "str" or name in COMMON or isinstance(allowed, list) or not PLACE.search(words):
            continue
        value = values.get(name) or ""
        own = ["", "none", *(preset.get(name) for preset in first)]
        place = None if value in own else _place(name, value, words)
        shipped = place == (ROOT / value).resolve() and not Path(value).is_absolute()
        if place is None or shipped and name not in given:
            found[name] = value
            continue
        found[name] = str(place)
        if re.search("model|encoder|CLIP", words):
            _check_model(name, place, words)
    if found.get("judge") in ("", "none") and _other_pictures(values["model"], first):
        raise ParameterError(
            f"`judge` is needed for the pictures of '{values['model']}', which are no sticker "
            "scenes: name the folder of a CLIP model"
        )
    return found


def _place(name: str, value: str, words: str) -> Path | None:
    """Where `value` is; None for a hub id and for a name that the help holds."""
    path = os.path.expanduser(value)
    here = [base / path for base in (Path(), ROOT) if (base / path).exists()]
    if here:
        return here[0].resolve()
    if "prefix" in words and list(Path(path).parent.glob(Path(path).name + "*")):
        return Path(path).resolve()
    only_here = "hub" not in words and re.search("folder|file", words)
    hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", value) and not only_here
    if hub_id or value in re.split(r"[,;:]? ", words):
        return None
    raise ParameterError(
        f"`{name}` is '{value}', and there is no such folder or file; check the path"
        + ("" if only_here else " or name a hub id, owner/name")
    )


def _check_model(name: str, folder: Path, words: str) -> None:
    """The gate of models, for those that the notebook does not bring along."""
    from rlgenkit.models.folders import check_model, check_pipeline

    whole = "pipeline" in words or (folder / "model_index.json").is_file()
    try:
        check_pipeline(folder) if whole else check_model(folder)
    except (ValueError, FileNotFoundError) as error:
        raise ParameterError(f"`{name}`: {error}") from None


def _other_pictures(model: str, presets: Iterable[Mapping[str, Any]]) -> bool:
    """Whether `model` is no preset of a laptop's profile and has no latents of sticker scenes."""
    if model in [preset.get("model") for preset in presets]:
        return False
    config = Path(os.path.expanduser(model)) / "vae" / "config.json"
    text = config.read_text(encoding="utf-8") if config.is_file() else "{}"
    return json.loads(text).get("latent_channels") != 8
