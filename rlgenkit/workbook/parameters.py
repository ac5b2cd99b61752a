"""Notebook parameters: literals in the cell tagged `parameters`, presets per profile, checks.

Presets are a table, a row per parameter (see `read_table`), or dictionaries.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import io
import json
import math
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMON = {"profile": "str", "seed": "int", "n_seeds": "int", "device": "str", "out_dir": "str"}
COMMON_SEEDS = {"quick": 1, "default": 3, "study": 8, "full": 3}
COMMON_RANGES: dict[str, Any] = {"seed": (0, 2**31 - 1), "n_seeds": (1, 1000)}
TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}
Ranges = Mapping[str, tuple | list]


class ParameterError(ValueError):
    """A parameter that cannot be used; the message is one sentence with the remedy in it."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the sentence, without the way to it."""
        return [f"ParameterError: {self}"]


@dataclass(frozen=True)
class Parameters:
    """Resolved parameters of one run, read as attributes: `p.steps`, `p.seeds`, `p.device`."""

    notebook: str
    values: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        # Only reached for names that are no field; dunder look-ups must fail in the usual way.
        if name.startswith("__") or name not in self.values:
            raise AttributeError(f"there is no parameter `{name}`{_nearest(name, self.values)}")
        return self.values[name]

    def reached(self, name: str | None = None) -> Any:
        """What a phase that reads `p.name`, or all of `p`, depends on."""
        if name is not None:
            return self.values.get(name)
        return {k: v for k, v in self.values.items() if k != "out_dir"}

    def fingerprint(self) -> str:
        """8 hexadecimal digits that change with any value except the output folder."""
        text = json.dumps({k: v for k, v in self.values.items() if k != "out_dir"}, sort_keys=True)
        return hashlib.sha256(f"{self.notebook} {text}".encode()).hexdigest()[:8]

    def __repr__(self) -> str:  # without the folder: outputs hold no paths of the machine
        return ", ".join(f"{k}={v!r}" for k, v in self.values.items() if k != "out_dir")

    def _repr_markdown_(self) -> str:
        rows = [f"| `{k}` | {v} |" for k, v in self.values.items() if k not in ("out_dir", "seed")]
        return "\n".join(["| parameter | value |", "|---|---|", *rows])


@dataclass(frozen=True)
class Declaration:
    """What a notebook declares: type, default and help by name; presets and ranges if literal."""

    types: dict[str, str]
    defaults: dict[str, Any]
    help: dict[str, str]
    presets: dict[str, dict[str, Any]]
    ranges: dict[str, Any]


def parameters(
    namespace: dict[str, Any],
    notebook: str,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    ranges: Ranges | None = None,
    table: str = "",
) -> Parameters:
    """Check the parameters in `namespace` (a notebook's `globals()`) and fill None from presets.

    notebook: file stem, "01_ddpo".  table: presets and ranges as `read_table` takes them; a name
    in it that is no parameter is a constant of the profile.  Or presets: {"quick": {...}, ...},
    all with the same names, and ranges: (low, high), closed, None = open end; a list, or a tuple
    that is not two numbers, holds the allowed choices.  Raises ParameterError before any work.
    """
    types = _types_in(namespace)
    if table:
        presets, ranges = read_table(table, types)
        _same_names(types, presets)
    if not presets:
        raise ParameterError("wb.parameters needs the presets of each profile, best as a table")
    for name in _injected(namespace, types):
        if name not in types:
            raise ParameterError(_unknown(name, types))
    given = {name: namespace[name] for name in types}
    namespace["_rlgenkit_figures"] = {"notebook": notebook.split("_")[0]}  # read by wb.show
    namespace["_rlgenkit_notebook"] = notebook  # read by wb.check and wb.predict
    return Parameters(notebook, resolve(types, given, presets, ranges or {}))


def read_table(
    text: str,
    types: Mapping[str, str],
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """(presets by profile, ranges) of a table, whose columns two spaces or more keep apart:

                    quick  default  study  full   range
        model       flow   flow     flow   flow   folder or hub id
        iterations  2      40       40     3000   1..100000
        kind        a      b        b      b      a | b

    The first line names the profiles and may end with `range`: low..high with open ends, choices
    between bars, or words that are not checked.  types: declared types, by which cells are read.
    """
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    header, *rows = [re.split(r"\s{2,}|\t", line) for line in lines if line]
    profiles, presets, ranges = [x for x in header if x != "range"], {}, {}
    presets = {profile: {} for profile in profiles}
    if header != [*profiles, "range"][: len(header)] or not profiles:
        raise ParameterError(
            "the table starts with a line of profiles, `quick  default  ...  range`"
        )
    for name, *cells in rows:
        if not len(profiles) <= len(cells) <= len(header):
            raise ParameterError(
                f"row `{name}` of the table has {len(cells)} cells for {len(profiles)} profiles: "
                "keep columns apart by two spaces or more"
            )
        if name in presets[profiles[0]]:
            raise ParameterError(f"the table has two rows `{name}`")
        kind = types.get(name, "").removesuffix(" | None")
        for profile, cell in zip(profiles, cells):
            presets[profile][name] = _literal(cell, kind)
        if len(cells) > len(profiles):
            ranges[name] = _span(cells[-1], kind)
    return presets, ranges


def _same_names(types: Mapping[str, str], presets: Mapping[str, Mapping]) -> None:
    """Every own parameter has a row of the table; a name that has none is mistyped."""
    rows = next(iter(presets.values()))
    for name in types:
        if name not in COMMON and name not in rows:
            raise ParameterError(
                f"the parameters cell names `{name}`, which has no row in the table"
                + _nearest(name, rows)
            )


def _literal(text: str, kind: str) -> Any:
    """A cell as its declared type wants it; what is no literal is a text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    if kind == "str":
        return value if isinstance(value, str) else text
    return float(value) if kind == "float" and type(value) is int else value


def _span(text: str, kind: str) -> tuple | list | str:
    """`1..8`, `0..` or `a | b` as a range; words as they are."""
    if "|" in text:
        return [_literal(part.strip(), kind) for part in text.split("|")]
    low, dots, high = text.partition("..")
    ends = [_literal(end, "") if end else None for end in (low.strip(), high.strip())]
    numbers = all(end is None or type(end) in (int, float) for end in ends)
    return tuple(ends) if dots and numbers else text


def resolve(
    types: Mapping[str, str],
    given: Mapping[str, Any],
    presets: Mapping[str, Mapping[str, Any]],
    ranges: Ranges,
) -> dict[str, Any]:
    """Values of all parameters and preset constants, checked; adds `seeds`.  Pure."""
    for name in COMMON:
        if name not in types:
            raise ParameterError(f"the parameters cell lacks `{name}: {COMMON[name]}`, add it")
    given = {name: _typed(name, given[name], types[name]) for name in types}
    profile = given["profile"]
    if profile not in presets:
        near = _nearest(str(profile), presets)
        raise ParameterError(f"unknown profile `{profile}`{near}; choose {_words(presets)}")
    _check_presets(types, presets, ranges)
    preset = {"n_seeds": COMMON_SEEDS.get(profile, 3), **presets[profile]}
    values = {**preset, **{k: v for k, v in given.items() if v is not None or k not in preset}}
    for name, value in values.items():
        if value is None and name not in preset and name != "out_dir":
            raise ParameterError(f"`{name}` is None and profile `{profile}` has no preset for it")
        _in_range(name, value, {**COMMON_RANGES, **ranges}.get(name))
    values["device"] = _device(values["device"])
    values["seeds"] = list(range(values["seed"], values["seed"] + values["n_seeds"]))
    return {name: values[name] for name in [*types, *sorted(set(values) - set(types))]}


def declared(path: str | Path) -> Declaration:
    """Read a notebook's parameters from its syntax, without running it."""
    cells = [
        cell
        for cell in json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    marked = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    rows = _annotated("".join(marked[0]["source"])) if marked else {}
    if not rows:
        raise ParameterError(f"{Path(path).name} has no cell tagged `parameters` with parameters")
    types = {name: kind for name, (kind, _, _) in rows.items()}
    calls: dict[str, Any] = {}
    for source in ["".join(cell["source"]) for cell in cells]:
        if ".parameters(" in source:
            calls.update(_literal_keywords(source, "parameters"))
    presets, ranges = calls.get("presets", {}), calls.get("ranges", {})
    if "table" in calls:
        presets, ranges = read_table(calls["table"], types)
    return Declaration(
        types=types,
        defaults={name: value for name, (_, value, _) in rows.items()},
        help={name: words for name, (_, _, words) in rows.items()},
        presets=presets,
        ranges=ranges,
    )


def _annotated(source: str) -> dict[str, tuple[str, Any, str]]:
    """name -> (annotation, value, comment) of the lines `name: type = literal  # help`."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    rows = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                raise ParameterError(
                    f"`{node.target.id}` must be a literal in the parameters "
                    f"cell, not {ast.unparse(node.value)}"
                ) from None
            help = comments.get(node.end_lineno, "")
            rows[node.target.id] = ast.unparse(node.annotation), value, help
    return rows


def words_of_range(allowed: Any) -> str:
    """A range as a table of presets has it: "1..100", "a | b", "" for none."""
    if allowed is None:
        return ""
    if (
        isinstance(allowed, tuple)
        and len(allowed) == 2
        and not any(isinstance(end, str) for end in allowed)
    ):
        return "..".join("" if end is None else str(end) for end in allowed)
    return allowed if isinstance(allowed, str) else " | ".join(map(str, allowed))


def check_overrides(declaration: Declaration, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Check overrides of a run before any work, with the sentences the notebook itself would use.

    Returns the resolved values (only type-checked when the presets are no literal).
    """
    for name in overrides:
        if name not in declaration.types:
            raise ParameterError(_unknown(name, declaration.types))
    given = {**declaration.defaults, **overrides}
    if declaration.presets:
        return resolve(declaration.types, given, declaration.presets, declaration.ranges)
    return {name: _typed(name, given[name], kind) for name, kind in declaration.types.items()}


def _typed(name: str, value: Any, kind: str) -> Any:
    """The value as its declared type; None passes (it stands for the preset)."""
    base, _, inner = kind.partition("[")
    if base not in TYPES:
        raise ParameterError(f"`{name}` is declared as {kind}; use one of {_words(TYPES)}")
    if value is None:
        return None
    if base == "float" and type(value) is int:
        return float(value)
    if type(value) is not TYPES[base]:
        article = "an" if base == "int" else "a"
        raise ParameterError(
            f"`{name}` must be {article} {base}, but it is {value!r} ({type(value).__name__})"
        )
    if base == "float" and not math.isfinite(value):
        raise ParameterError(f"`{name}` must be a finite number, but it is {value}")
    if base == "list" and inner:
        return [_typed(f"{name}[{i}]", v, inner[:-1]) for i, v in enumerate(value)]
    return value


def _in_range(name: str, value: Any, allowed: tuple | list | str | None) -> None:
    if allowed is None or value is None or isinstance(allowed, str):  # words are not checked
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            _in_range(f"{name}[{index}]", item, allowed)
        return
    ends = [end for end in allowed if end is None or type(end) in (int, float)]
    if isinstance(allowed, tuple) and len(allowed) == 2 and len(ends) == 2:
        low, high = allowed
        if (low is not None and value < low) or (high is not None and value > high):
            span = f"at least {low}" if high is None else f"at most {high}"
            span = span if low is None or high is None else f"between {low} and {high}"
            raise ParameterError(f"`{name}` must be {span}, but it is {value}")
    elif value not in allowed:
        near = _nearest(str(value), [str(item) for item in allowed])
        raise ParameterError(f"`{name}` must be {_words(allowed)}, but it is {value!r}{near}")


def _check_presets(types: Mapping, presets: Mapping[str, Mapping], ranges: Ranges) -> None:
    """The author's side: every profile sets the same names, with fitting types and ranges."""
    names = [set(preset) for preset in presets.values()]
    if odd := set.union(*names) - set.intersection(*names):
        raise ParameterError(f"the presets differ in {_words(sorted(odd))}; set it in each profile")
    for preset in presets.values():
        for name, value in preset.items():
            _in_range(
                name, _typed(name, value, types[name]) if name in types else value, ranges.get(name)
            )
    known = set(types) | set.union(*names)
    for name in ranges:
        if name not in known:
            own = [typed for typed in types if typed not in ranges and typed not in COMMON]
            if mistyped := difflib.get_close_matches(name, own, 1, 0.6):
                raise ParameterError(f"the parameters cell names `{mistyped[0]}`; write `{name}`")
            raise ParameterError(
                f"`ranges` names `{name}`, which is no parameter" + _nearest(name, known)
            )


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    count = {"cpu": 1, "cuda": torch.cuda.device_count()}.get(kind)
    count = int(torch.backends.mps.is_available()) if kind == "mps" else count
    if count is None:
        near = _nearest(name, ["auto", "cpu", "cuda", "mps"])
        raise ParameterError(f"unknown device `{name}`{near}; choose auto, cpu, cuda or mps")
    if index and not index.isdigit() or int(index or 0) >= count:
        raise ParameterError(f"device `{name}` is not there; use device='auto' or device='cpu'")
    return name


def _cells(namespace: Mapping[str, Any]) -> list[ast.Module]:
    """Syntax trees of the cells run so far, oldest first; cells with magics are left out."""
    trees = []
    for source in namespace.get("In", []):
        try:
            trees.append((source, ast.parse(source)))
        except SyntaxError:
            continue
    return trees


def _types_in(namespace: Mapping[str, Any]) -> dict[str, str]:
    """Name -> annotation of the newest parameters cell (the one that annotates `profile`)."""
    for _, tree in reversed(_cells(namespace)):
        types = {
            node.target.id: ast.unparse(node.annotation)
            for node in tree.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        if "profile" in types:
            for node in tree.body:
                if isinstance(node, ast.Assign):
                    text = ast.unparse(node.targets[0])
                    raise ParameterError(
                        f"the parameters cell sets `{text}` without its type, which "
                        f"would be ignored: write `{text}: type = ...`"
                    )
            return types
    notes = namespace.get("__annotations__", {})
    return {k: getattr(v, "__name__", str(v)) for k, v in notes.items()}


def _injected(namespace: Mapping[str, Any], types: Iterable[str]) -> list[str]:
    """Names that papermill injected: assigned in its "# Parameters" cell, or, outside a kernel,
    every other literal in the namespace."""
    if "In" not in namespace:
        literal = (bool, int, float, str, list, tuple, dict)
        return [k for k, v in namespace.items() if k[0] != "_" and isinstance(v, literal)]
    for source, tree in reversed(_cells(namespace)):
        if source.startswith("# Parameters"):
            return [
                t.id
                for node in tree.body
                if isinstance(node, ast.Assign)
                for t in node.targets
                if isinstance(t, ast.Name)
            ]
    return []


def _literal_keywords(source: str, function: str) -> dict[str, Any]:
    """The literal keyword arguments of the first call of `...function(...)` in `source`."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a cell with magics
        return {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == function:
            wanted = ("presets", "ranges", "table")
            pairs = [(k.arg, k.value) for k in node.keywords if k.arg in wanted]
            try:
                return {name: ast.literal_eval(value) for name, value in pairs}
            except ValueError:
                return {}
    return {}


def _unknown(name: str, known: Iterable[str]) -> str:
    return f"unknown parameter `{name}`{_nearest(name, known)}; this notebook has {_words(known)}"


def _nearest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f" (did you mean `{match[0]}`?)" if match else ""


def _words(names: Iterable[Any]) -> str:
    words = [str(name) for name in names]
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
