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
import os
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .provenance import ROOT

COMMON = {"profile": "str", "seed": "int", "n_seeds": "int", "device": "str", "out_dir": "str"}
COMMON_SEEDS = {"quick": 1, "default": 3, "study": 8, "full": 3}
COMMON_RANGES: dict[str, Any] = {"seed": (0, 2**31 - 1), "n_seeds": (1, 1000)}
TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}
# A text parameter names a folder or a file if its name, help and words of range read like this.
PLACE = re.compile(r"folder|hub id|^(\w+_)?(model|encoder|file):")
Row = tuple[str, Any, str]  # of a parameters cell: type, value, help
Ranges = Mapping[str, tuple | list | str]
OPEN = (-math.inf, math.inf)


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
    if not found.presets:
        raise ParameterError("wb.parameters needs the presets of each profile, best as a table")
    injected = _injected(namespace)
    if "In" not in namespace:  # outside a kernel every literal is a parameter
        literal = (bool, int, float, str, list, tuple, dict)
        injected = [k for k, v in namespace.items() if k[0] != "_" and isinstance(v, literal)]
    values = resolve(found, {name: namespace.get(name) for name in [*found.types, *injected]})
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
                    + _nearest(name, constants)
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
    return ends if dots and _is_span(ends) else text


def _is_span(allowed: Any) -> bool:
    """Whether a range is (low, high), with None for an open end."""
    ends = [x for x in allowed if x is None or type(x) in (int, float)] if allowed else []
    return isinstance(allowed, tuple) and len(allowed) == len(ends) == 2


def check_overrides(declaration: Declaration, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Check overrides of a run before any work, with the sentences the notebook itself would use.

    Returns the resolved values (only type-checked when the presets are no literal).
    """
    given = {**declaration.defaults, **overrides}
    if declaration.presets:
        return resolve(declaration, given)
    return _all_typed(declaration.types, given)


def resolve(declaration: Declaration, given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of all parameters and preset constants, checked; adds `seeds`.  Pure."""
    types, presets = declaration.types, declaration.presets
    threads()
    for name in COMMON:
        if name not in types:
            raise ParameterError(f"the parameters cell lacks `{name}: {COMMON[name]}`, add it")
    given = _all_typed(types, given)
    profile = given["profile"]
    if profile not in presets:
        near = _nearest(str(profile), presets)
        raise ParameterError(f"unknown profile `{profile}`{near}; choose {_words(presets)}")
    ranges = {**COMMON_RANGES, **declaration.ranges}
    _check_presets(types, presets, ranges)
    preset = {"n_seeds": COMMON_SEEDS.get(profile, 3), **presets[profile]}
    values = {**preset, **{k: v for k, v in given.items() if v is not None or k not in preset}}
    for name, value in values.items():
        if value is None and name not in preset and name != "out_dir":
            raise ParameterError(f"`{name}` is None and profile `{profile}` has no preset for it")
        _in_range(name, value, ranges.get(name))
    values["device"] = _device(values["device"])
    values["out_dir"] = values["out_dir"] and os.path.expanduser(values["out_dir"])
    values["seeds"] = list(range(values["seed"], values["seed"] + values["n_seeds"]))
    return {name: values[name] for name in [*types, *sorted(set(values) - set(types))]}


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
        inside = place == (ROOT / value).resolve() and name not in given
        found[name] = value if place is None or inside else str(place)
    if found.get("judge") in ("", "none") and _other_pictures(values["model"], first):
        raise ParameterError(
            f"`judge` is needed for the pictures of '{values['model']}', which are no sticker "
            "scenes: name the folder of a CLIP model"
        )
    return found


def _place(name: str, value: str, words: str) -> Path | None:
    """Where `value` is, checked; None for a hub id and for a name that the help holds."""
    path = os.path.expanduser(value)
    here = [base / path for base in (Path(), ROOT) if (base / path).exists()]
    if here:
        if re.search("model|encoder|CLIP", words):
            _check_model(name, here[0], words)
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
    """The folder holds whole safetensors weights, a pipeline in each part that has some."""
    from rlgenkit.models.folders import COMPONENTS, check_weights, read_index

    try:
        if "pipeline" not in words and not (folder / "model_index.json").is_file():
            return check_weights(folder)
        index = read_index(folder)
        for part in COMPONENTS[index["_class_name"]]:
            if (index.get(part) or [None])[0] and not re.search("scheduler|tokenizer", part):
                check_weights(folder / part)
    except (ValueError, FileNotFoundError) as error:
        raise ParameterError(f"`{name}`: {error}") from None


def _other_pictures(model: str, presets: Iterable[Mapping[str, Any]]) -> bool:
    """Whether `model` is no preset of a laptop's profile and has no latents of sticker scenes."""
    if model in [preset.get("model") for preset in presets]:
        return False
    config = Path(os.path.expanduser(model)) / "vae" / "config.json"
    text = config.read_text(encoding="utf-8") if config.is_file() else "{}"
    return json.loads(text).get("latent_channels") != 8


def words_of_range(allowed: Any) -> str:
    """A range as a table of presets has it: "1..100", "a | b", "" for none."""
    if _is_span(allowed):
        return "..".join("" if end is None else str(end) for end in allowed)
    return allowed if isinstance(allowed, str) else " | ".join(map(str, allowed or ()))


def _all_typed(types: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, Any]:
    for name in given:
        if name not in types:
            raise ParameterError(
                f"unknown parameter `{name}`{_nearest(name, types)}; "
                f"this notebook has {_words(types)}"
            )
    return {name: _typed(name, given[name], kind) for name, kind in types.items()}


def _typed(name: str, value: Any, kind: str) -> Any:
    """The value as its declared type; None passes (it stands for the preset)."""
    base, _, inner = kind.partition("[")
    if base not in TYPES:
        raise ParameterError(f"`{name}` is declared as {kind}; use one of {_words(TYPES)}")
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
        return [_typed(f"{name}[{i}]", v, inner[:-1]) for i, v in enumerate(value)]
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


def _in_range(name: str, value: Any, allowed: tuple | list | str | None) -> None:
    if allowed is None or value is None or isinstance(allowed, str):  # words are not checked
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            _in_range(f"{name}[{index}]", item, allowed)
    elif not _is_span(allowed):
        if value not in allowed:
            near = _nearest(str(value), [str(item) for item in allowed])
            raise ParameterError(f"`{name}` must be {_words(allowed)}, but it is {value!r}{near}")
    else:
        low, high = (infinity if end is None else end for end, infinity in zip(allowed, OPEN))
        if isinstance(value, str) or not low <= value <= high:
            span = f"between {low} and {high}"
            span = f"at least {low}" if allowed[1] is None else span
            span = f"at most {high}" if allowed[0] is None else span
            raise ParameterError(f"`{name}` must be {span}, but it is {value!r}")


def _check_presets(types: Mapping, presets: Mapping[str, Mapping], ranges: Ranges) -> None:
    """The author's side: every profile sets the same names, with fitting types and ranges; what
    has a range is a parameter."""
    names = [set(preset) for preset in presets.values()]
    if odd := set.union(*names) - set.intersection(*names):
        raise ParameterError(f"the presets differ in {_words(sorted(odd))}; set it in each profile")
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
            value = _typed(name, value, types[name]) if name in types else value
            _in_range(name, value, ranges.get(name))


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, index = name.partition(":")
    count = {"cpu": 1, "cuda": torch.cuda.device_count()}.get(kind)
    count = int(torch.backends.mps.is_available()) if kind == "mps" else count
    if count is None:
        near = _nearest(name, ["auto", "cpu", "cuda", "mps"])
        raise ParameterError(f"unknown device `{name}`{near}; choose auto, cpu, cuda or mps")
    if colon and not re.fullmatch("[0-9]+", index) or int(index or 0) >= count:
        raise ParameterError(f"device `{name}` is not there; use device='auto' or device='cpu'")
    return name


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


def threads() -> int:
    """CPU threads of a run: OMP_NUM_THREADS, or 2 where it is not set."""
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip() or "2"
    if not re.fullmatch("[0-9]+", text) or not int(text):
        raise ParameterError(f"OMP_NUM_THREADS is '{text}': set it to 1 or more, or unset it")
    return int(text)


def _nearest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f" (did you mean `{match[0]}`?)" if match else ""


def _words(names: Iterable[Any]) -> str:
    words = [str(name) for name in names]
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
