"""Typed text to checked parameters: everything that can be refused before any work is refused here."""

import ast
import re
from pathlib import Path
from typing import Any

from .places import InputError

MOST_RUNS = 1000  # of a sweep, and so values of an axis


def split_values(text: str) -> list[str]:
    """'a,b' -> [a, b]; '0..4' -> [0, 1, 2, 3, 4]; mixed forms such as '0..2,9' work too."""
    values = []
    for part in text.split(","):
        if span := re.fullmatch(r"\s*(-?\d{1,999})\.\.(-?\d{1,999})\s*", part):
            first, last = int(span[1]), int(span[2])
            if last < first:
                raise InputError(f"The range {part.strip()} runs backwards; write {last}..{first}.")
            if last - first >= MOST_RUNS - len(values):
                raise InputError(
                    f"{text.strip()[:80]} holds more than {MOST_RUNS} values; name fewer."
                )
            values += [str(i) for i in range(first, last + 1)]
        elif part.strip():
            values.append(part.strip())
    if not values:
        raise InputError(f"{text!r} holds no value; write for example 0..4 or 0.1,0.2.")
    return values


def typed(text: str, kind: str) -> Any:
    """What the text means for a parameter declared as `kind`; a text that does not fit stays one,
    so that the check of the workbook can name it.  None stands for the preset; a text parameter
    becomes the text None by 'None', in quotes of its own."""
    if text == "None":
        return None
    if kind == "str":
        return "None" if text in ("'None'", '"None"') else text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text) if kind == "float" else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text


def checked_parameters(notebook: Path, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Overrides of a run from (name, text) pairs, checked as the notebook itself would check them.

    Folders and files become absolute paths.  Raises InputError, one sentence, before any kernel
    starts.
    """
    from rlgenkit.workbook.parameters import check_overrides, declared
    from rlgenkit.workbook.places import places

    overrides = {}
    try:
        declaration = declared(notebook)
        for name, text in pairs:
            if name in overrides:
                raise InputError(f"Parameter {name} is given twice.")
            overrides[name] = typed(text, declaration.types.get(name, "str"))
        values = check_overrides(declaration, overrides)
        values |= places(declaration, values, overrides)
    except ValueError as error:
        raise InputError(str(error)) from None
    return {
        name: values[name] if declaration.types[name] == "str" and value else value
        for name, value in overrides.items()
    }
