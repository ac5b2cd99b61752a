"""One value of a parameter: its type, its range, its device, in one sentence where it does not fit."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from typing import Any

TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}


class ParameterError(ValueError):
    """A parameter that cannot be used; the message is one sentence with the remedy in it."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the sentence, without the way to it."""
        return [f"ParameterError: {self}"]


def typed(name: str, value: Any, kind: str) -> Any:
    """The value as its declared type; None passes (it stands for the preset)."""
    base, _, inner = kind.partition("[")
    if base not in TYPES:
        raise ParameterError(f"`{name}` is declared as {kind}; use one of {words_of(TYPES)}")
    if value is None:
        return None
    if base == "float" and type(value) is int:
        value = float(value) if abs(value) < 10**308 else math.inf
    if type(value) is not TYPES[base]:
        article = "an" if base == "int" else "a"
        raise ParameterError(
            f"`{name}` must be {article} {base}, but it is {value!r} ({type(value).__name__})"
        )
    if base == "list" and inner:
        return [typed(f"{name}[{i}]", v, inner[:-1]) for i, v in enumerate(value)]
    _plain(name, value)
    return value


def _plain(name: str, value: Any) -> None:
    """Refuse what one of the ways into a notebook (text, JSON, YAML, syntax) would change."""
    if isinstance(value, (list, dict)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict) and not isinstance(key, str):
                raise ParameterError(
                    f"the keys of `{name}` must be texts: write '{key}', not {key}"
                )
            _plain(f"{name}[{key!r}]", item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ParameterError(f"`{name}` must be a finite number, but it is {value}")
    elif isinstance(value, str) and not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise ParameterError(f"`{name}` is no text in UTF-8: {value!r}")
    elif type(value) not in (type(None), bool, int, float, str):
        raise ParameterError(
            f"`{name}` must be made of numbers, texts, lists and dicts, but it holds {value!r}"
        )


def in_range(name: str, value: Any, allowed: tuple | list | str | None) -> None:
    """Refuse a value, or one in a list, that its range does not allow."""
    if allowed is None or value is None or isinstance(allowed, str):  # words are not checked
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            in_range(f"{name}[{index}]", item, allowed)
    elif not is_span(allowed):
        if value not in allowed:
            near = nearest(str(value), [str(item) for item in allowed])
            raise ParameterError(f"`{name}` must be {words_of(allowed)}, but it is {value!r}{near}")
    else:
        low, high = allowed
        below, above = -math.inf if low is None else low, math.inf if high is None else high
        if isinstance(value, str) or not below <= value <= above:
            span = f"at least {low}" if high is None else f"at most {high}"
            span = span if None in allowed else f"between {low} and {high}"
            raise ParameterError(f"`{name}` must be {span}, but it is {value!r}")


def device_of(name: str) -> str:
    """The device; "auto" is cuda where there is one."""
    import torch

    count = {"cpu": 1, "cuda": torch.cuda.device_count()}
    count["mps"] = int(torch.backends.mps.is_available())
    if name == "auto":
        return "cuda" if count["cuda"] else "cpu"
    parts = re.fullmatch("([a-z]+)(?::([0-9]+))?", name)
    if not parts or parts[1] not in count:
        near = nearest(name, ["auto", *count])
        raise ParameterError(f"unknown device `{name}`{near}; choose auto, cpu, cuda or mps")
    if int(parts[2] or 0) >= count[parts[1]]:
        raise ParameterError(f"device `{name}` is not there; use device='auto' or device='cpu'")
    return name


def is_span(allowed: Any) -> bool:
    """Whether a range is (low, high), with None for an open end."""
    ends = [x for x in allowed if x is None or type(x) in (int, float)] if allowed else []
    return isinstance(allowed, tuple) and len(allowed) == len(ends) == 2


def nearest(name: str, known: Iterable[str]) -> str:
    """Words " (did you mean `x`?)" where a known name is close."""
    match = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f" (did you mean `{match[0]}`?)" if match else ""


def words_of(names: Iterable[Any]) -> str:
    """As in "a, b or c"."""
    words = [str(name) for name in names]
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
