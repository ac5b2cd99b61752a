"""Typed text to checked parameters: everything that can be refused before any work is refused here."""

import ast
import re
from pathlib import Path
from typing import Any

from .places import InputError

MODEL_PARAMETERS = ("model", "policy", "base")


def split_values(text: str) -> list[str]:
    """'a,b' -> [a, b]; '0..4' -> [0, 1, 2, 3, 4]; mixed forms such as '0..2,9' work too."""
    values = []
    for part in text.split(","):
        if span := re.fullmatch(r"\s*(-?\d+)\.\.(-?\d+)\s*", part):
            first, last = int(span[1]), int(span[2])
            if last < first:
                raise InputError(f"The range {part.strip()} runs backwards; write {last}..{first}.")
            values += [str(i) for i in range(first, last + 1)]
        elif part.strip():
            values.append(part.strip())
    if not values:
        raise InputError(f"{text!r} holds no value; write for example 0..4 or 0.1,0.2.")
    return values


def typed(text: str, kind: str) -> Any:
    """What the text means for a parameter declared as `kind`; a text that does not fit stays one,
    so that the check of the workbook can name it."""
    if text in ("None", "null"):
        return None
    if kind == "str":
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        if kind == "float":
            return float(text)
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def checked_parameters(notebook: Path, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Overrides of a run from (name, text) pairs, checked as the notebook itself would check them.

    Raises InputError, one sentence, before any kernel starts.
    """
    from rlgenkit.workbook.parameters import check_overrides, declared

    try:
        declaration = declared(notebook)
    except ValueError as error:
        raise InputError(str(error)) from None
    overrides = {}
    for name, text in pairs:
        if name in overrides:
            raise InputError(f"Parameter {name} is given twice.")
        overrides[name] = typed(text, declaration.types.get(name, "str").removesuffix(" | None"))
    try:
        check_overrides(declaration, overrides)
        for name in MODEL_PARAMETERS:
            if isinstance(overrides.get(name), str):
                overrides[name] = checked_model(overrides[name])
    except (ValueError, FileNotFoundError) as error:
        raise InputError(str(error)) from None
    return overrides


def checked_model(name: str) -> str:
    """Absolute path of a local pipeline folder whose files are whole; a hub id comes back as it is."""
    folder = Path(name).expanduser()
    if not folder.is_dir() and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return name  # owner/name: only the run itself asks the hub
    from rlgenkit.models.folders import COMPONENTS, check_weights, read_index, resolve_folder

    folder = resolve_folder(name).resolve()
    index = read_index(folder)
    for part in COMPONENTS[index["_class_name"]]:
        library, kind = index.get(part) or (None, None)
        if library and ("scheduler" not in part and "tokenizer" not in part):
            check_weights(folder / part)
    return str(folder)
