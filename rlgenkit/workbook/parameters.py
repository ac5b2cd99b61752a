"""Notebook parameters: literals in the cell tagged `parameters`, presets per profile, checks.

Presets are a table, a row per parameter (see `read_table`), or dictionaries.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import io
import json
import os
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .values import ParameterError, device_of, in_range, is_span, nearest, typed, words_of

COMMON = {"profile": "str", "seed": "int", "n_seeds": "int", "device": "str", "out_dir": "str"}
COMMON_SEEDS = {"quick": 1, "default": 3, "study": 8, "full": 3}
COMMON_RANGES: dict[str, Any] = {"seed": (0, 2**31 - 1), "n_seeds": (1, 1000)}
Row = tuple[str, Any, str]  # of a parameters cell: type, value, help
Ranges = Mapping[str, tuple | list | str]


@dataclass(frozen=True)
class Parameters:
    """Resolved parameters of one run, read as attributes: `p.steps`, `p.seeds`, `p.device`."""

    notebook: str
    values: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        # Only reached for names that are no field; dunder look-ups must fail in the usual way.
        if name.startswith("__") or name not in self.values:
            raise AttributeError(f"there is no parameter `{name}`{nearest(name, self.values)}")
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
        from .show import table_text

        rows = [(f"`{k}`", v) for k, v in self.values.items() if k not in ("out_dir", "seed")]
        return table_text(("parameter", "value"), rows)


@dataclass(frozen=True)
class Declaration:
    """What a notebook declares: type, default and help by name; presets and ranges if literal."""

    types: dict[str, str]
    defaults: dict[str, Any]
    help: dict[str, str]
    presets: Mapping[str, Mapping[str, Any]]
    ranges: Ranges


def parameters(
    namespace: dict[str, Any],
    notebook: str,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    ranges: Mapping[str, tuple | list] | None = None,
    table: str = "",
) -> Parameters:
    """Check the parameters in `namespace` (a notebook's `globals()`) and fill None from presets.

    notebook: file stem, "01_ddpo".  table: presets and ranges as `read_table` takes them; a name
    in it that is no parameter is a constant of the profile.  Or presets: {"quick": {...}, ...},
    all with the same names, and ranges: (low, high), closed, None = open end; a list, or a tuple
    that is not two numbers, holds the allowed choices.  Raises ParameterError before any work.
    """
    found = _declaration(_cell_of(namespace), presets or {}, ranges or {}, table)
    injected = _injected(namespace)
    values = resolve(found, {name: namespace.get(name) for name in [*found.types, *injected]})
    from .places import places

    values |= places(found, values, injected)
    namespace["_rlgenkit_figures"] = {"notebook": notebook.split("_")[0]}  # read by wb.show
    namespace["_rlgenkit_notebook"] = notebook  # read by wb.check and wb.predict
    return Parameters(notebook, values)


def declared(path: str | Path) -> Declaration:
    """Read a notebook's parameters from its syntax, without running it."""
    cells = [
        (cell["metadata"].get("tags", []), "".join(cell["source"]))
        for cell in json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    marked = [source for tags, source in cells if "parameters" in tags]
    rows = _annotated(marked[0]) if marked else {}
    if not rows:
        raise ParameterError(f"{Path(path).name} has no cell tagged `parameters` with parameters")
    call: dict[str, Any] = {}
    for _, source in cells:
        if ".parameters(" in source:
            call |= _literal_keywords(source, ("presets", "ranges", "table"))
    return _declaration(
        rows, call.get("presets", {}), call.get("ranges", {}), call.get("table", "")
    )


def _declaration(rows: Mapping[str, Row], presets: Mapping, ranges: Ranges, table: str):
    """The Declaration of a parameters cell and of what wb.parameters is called with."""
    types, defaults, help = ({name: row[k] for name, row in rows.items()} for k in range(3))
    if table:
        presets, ranges = read_table(table, types)
        constants = next(iter(presets.values()))
        for name in types:
            if name not in COMMON and name not in constants:
                raise ParameterError(
                    f"the parameters cell names `{name}`, which has no row in the table"
                    + nearest(name, constants)
                )
    return Declaration(types, defaults, help, presets, ranges)


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
    ends = tuple(_literal(end.strip(), "") if end.strip() else None for end in (low, high))
    return ends if dots and is_span(ends) else text


def words_of_range(allowed: Any) -> str:
    """A range as a table of presets has it: "1..100", "a | b", "" for none."""
    if is_span(allowed):
        return "..".join("" if end is None else str(end) for end in allowed)
    return allowed if isinstance(allowed, str) else " | ".join(map(str, allowed or ()))


def check_overrides(declaration: Declaration, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Check overrides of a run before any work, with the sentences the notebook itself would use;
    returns the resolved values."""
    return resolve(declaration, {**declaration.defaults, **overrides})


def resolve(declaration: Declaration, given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of all parameters and preset constants, checked; adds `seeds`.  Pure."""
    types, presets = declaration.types, declaration.presets
    if not presets:
        raise ParameterError("wb.parameters needs the presets of each profile, best as a table")
    for name in COMMON:
        if name not in types:
            raise ParameterError(f"the parameters cell lacks `{name}: {COMMON[name]}`, add it")
    for name in given:
        if name not in types:
            known = f"this notebook has {words_of(types)}"
            raise ParameterError(f"unknown parameter `{name}`{nearest(name, types)}; {known}")
    given = {name: typed(name, given[name], kind) for name, kind in types.items()}
    profile = given["profile"]
    if profile not in presets:
        near = nearest(str(profile), presets)
        raise ParameterError(f"unknown profile `{profile}`{near}; choose {words_of(presets)}")
    ranges = {**COMMON_RANGES, **declaration.ranges}
    _check_presets(types, presets, ranges)
    preset = {"n_seeds": COMMON_SEEDS.get(profile, 3), **presets[profile]}
    values = {**preset, **{k: v for k, v in given.items() if v is not None or k not in preset}}
    for name, value in values.items():
        if value is None and name not in preset and name != "out_dir":
            raise ParameterError(f"`{name}` is None and profile `{profile}` has no preset for it")
        in_range(name, value, ranges.get(name))
    values["device"] = device_of(values["device"])
    if "\0" in (values["out_dir"] or ""):
        raise ParameterError("`out_dir` holds a NUL character, which no folder can; take it out")
    values["out_dir"] = values["out_dir"] and os.path.expanduser(values["out_dir"])
    values["seeds"] = list(range(values["seed"], values["seed"] + values["n_seeds"]))
    return {name: values[name] for name in [*types, *sorted(set(values) - set(types))]}


def _check_presets(types: Mapping, presets: Mapping[str, Mapping], ranges: Ranges) -> None:
    """The author's side: every profile sets the same names, with fitting types and ranges; what
    has a range is a parameter."""
    names = [set(preset) for preset in presets.values()]
    if odd := set.union(*names) - set.intersection(*names):
        raise ParameterError(
            f"the presets differ in {words_of(sorted(odd))}; set it in each profile"
        )
    for name in ranges:
        if name not in types:
            own = [x for x in types if x not in ranges and x not in COMMON]
            if mistyped := difflib.get_close_matches(name, own, 1, 0.6):
                raise ParameterError(f"the parameters cell names `{mistyped[0]}`; write `{name}`")
            raise ParameterError(
                f"the parameters cell lacks `{name}`, which has a range: "
                f"add the line `{name}: type = None`"
            )
    for preset in presets.values():
        for name, value in preset.items():
            value = typed(name, value, types[name]) if name in types else value
            in_range(name, value, ranges.get(name))


def _cells(namespace: Mapping[str, Any]) -> list[tuple[str, ast.Module]]:
    """Text and syntax of the cells run so far, newest first; those with magics are left out."""
    cells = []
    for source in reversed(namespace.get("In", [])):
        try:
            cells.append((source, ast.parse(source)))
        except SyntaxError:
            continue
    return cells


def _cell_of(namespace: Mapping[str, Any]) -> dict[str, Row]:
    """Rows of the newest parameters cell (the one that annotates `profile`)."""
    for source, tree in _cells(namespace):
        if any(isinstance(x, ast.AnnAssign) and _target(x) == "profile" for x in tree.body):
            return _annotated(source)
    notes = namespace.get("__annotations__", {})
    return {k: (getattr(v, "__name__", str(v)), None, "") for k, v in notes.items()}


def _injected(namespace: Mapping[str, Any]) -> list[str]:
    """Names that papermill injected: assigned in the newest "# Parameters" cell."""
    for source, tree in _cells(namespace):
        if source.startswith("# Parameters"):
            return [_target(node) for node in tree.body if isinstance(node, ast.Assign)]
    return []


def _target(node: ast.AST) -> str:
    """What a statement assigns to, as it is written; "" if it assigns nothing."""
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return ast.unparse(targets[0]) if targets[0] else ""


def _annotated(source: str) -> dict[str, Row]:
    """name -> (annotation, value, comment) of the lines `name: type = literal  # help`, which are
    all that a parameters cell may hold."""
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise ParameterError(f"the parameters cell is no Python: {error}") from None
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    rows = {}
    for node in body:
        name = _target(node)
        if not isinstance(node, ast.AnnAssign) or not node.value:
            raise ParameterError(
                f"the parameters cell holds `{ast.unparse(node).splitlines()[0]}`, which would be "
                f"ignored: write `{name or 'name'}: type = value`"
            )
        try:
            value = ast.literal_eval(node.value)
        except ValueError:
            raise ParameterError(
                f"`{name}` must be a literal in the parameters cell, not {ast.unparse(node.value)}"
            ) from None
        rows[name] = ast.unparse(node.annotation), value, comments.get(node.end_lineno, "")
    return rows


def _literal_keywords(source: str, wanted: tuple[str, ...]) -> dict[str, Any]:
    """The literal keyword arguments of the call of `...parameters(...)` in `source`."""
    try:
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "parameters":
                pairs = [(k.arg, k.value) for k in node.keywords if k.arg in wanted]
                return {name: ast.literal_eval(value) for name, value in pairs}
    except (SyntaxError, ValueError):  # a cell with magics, or computed presets
        pass
    return {}
