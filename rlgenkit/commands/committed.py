"""The committed form of an executed notebook: clean, small, and tied to its sources.

A committed notebook is one clean run from top to bottom. `normalize` removes what belongs to the
machine and the moment (timestamps, local paths, widget state, stderr), keeps cell ids, and
`source_hash` ties the outputs to the code cells that made them.
"""

import ast
import hashlib
import io
import json
import re
import tokenize
from pathlib import Path

from .places import RESULTS, ROOT, read

MAX_BYTES = 650_000  # pictures keep their colors
HEADLINE_SEEDS = 8  # that a primary claim of a study rests on at least
MAX_TEXT = 20_000
KEPT_CELL_METADATA = ("tags", "slideshow", "jupyter", "alt")
WIDGET = "application/vnd.jupyter.widget-view+json"
# Joined from pieces so that this file itself holds no such path.
LOCAL_PATH = re.compile(
    r"(?:/" + "|/".join(["home", "Users", "root", "tmp", "work", "farm"]) + r")/[A-Za-z.][\w./-]*"
)


def source_hash(nb: dict) -> str:
    """SHA-256 over what the code cells say, in order; prose, layout and comments may change
    without a new run."""
    codes = [
        code_form(c)
        for c in nb["cells"]
        if c["cell_type"] == "code"
        and "injected-parameters" not in c.get("metadata", {}).get("tags", [])
    ]
    return hashlib.sha256(json.dumps(codes, ensure_ascii=False).encode()).hexdigest()


def code_form(cell: dict) -> list | str:
    """What a code cell says, without layout and comments; its text where it holds magics.

    The comments of the parameters cell count: they are the help that the notebook prints.
    """
    text = "".join(cell["source"])
    try:
        form = syntax(ast.parse(text))
    except SyntaxError:
        return text
    if "parameters" in cell.get("metadata", {}).get("tags", []):
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        form.append([t.string for t in tokens if t.type == tokenize.COMMENT])
    return form


def syntax(node) -> list | str:
    """A syntax tree as nested lists that are the same on every Python (`ast.dump` is not)."""
    if isinstance(node, list):
        return [syntax(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [
        [name, syntax(value)]
        for name, value in ast.iter_fields(node)
        if value is not None and value != []
    ]
    return [type(node).__name__, *fields]


def _clean_text(text: str) -> str:
    text = text.replace(f"{ROOT}/", "").replace(str(ROOT), ".")
    text = re.sub(r"0x[0-9a-f]{6,}", "0x...", text)
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "\n... (shortened)\n"


def _clean_output(output: dict, count: int) -> dict | None:
    """One output without machine traces, or None where nothing of it should stay."""
    if output["output_type"] == "stream":
        if output["name"] == "stderr":
            return None
        return {**output, "text": _clean_text("".join(output["text"]))}
    if output["output_type"] == "error":
        return output
    data = {k: v for k, v in output["data"].items() if k != WIDGET}
    if not data or (WIDGET in output["data"] and set(data) <= {"text/plain"}):
        return None
    for kind in data:
        if kind.startswith("text/") or kind == "image/svg+xml":
            data[kind] = _clean_text("".join(data[kind]))
    out = {**output, "data": data}
    out.pop("transient", None)
    if output["output_type"] == "execute_result":
        out["execution_count"] = count
    return out


def normalize(nb: dict) -> dict:
    """The committed form of notebook `nb` (nbformat 4.5 as plain dict); the input is unchanged.

    Idempotent. Source cells, their ids, tags and slide marks stay; the injected parameters cell goes.
    """
    cells, count = [], 0
    for cell in nb["cells"]:
        if "injected-parameters" in cell.get("metadata", {}).get("tags", []):
            continue
        meta = {k: v for k, v in cell.get("metadata", {}).items() if k in KEPT_CELL_METADATA}
        new = {**cell, "metadata": meta, "source": "".join(cell["source"])}
        if cell["cell_type"] == "code":
            ran = bool(new["source"].strip()) and cell.get("execution_count") is not None
            count += ran
            new["execution_count"] = count if ran else None
            cleaned = [_clean_output(o, count) for o in cell["outputs"]]
            new["outputs"] = [o for o in cleaned if o is not None]
        cells.append(new)
    meta = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    if "rlgenkit" in nb["metadata"]:
        meta["rlgenkit"] = nb["metadata"]["rlgenkit"]
    return {"cells": cells, "metadata": meta, "nbformat": 4, "nbformat_minor": 5}


def text_of(nb: dict) -> str:
    """The notebook as its file holds it: stable JSON, sorted keys, one trailing newline."""
    import nbformat

    node = nbformat.from_dict(nb)
    nbformat.validate(node)
    return nbformat.writes(node, version=4, sort_keys=True).rstrip("\n") + "\n"


def heading(nb: dict) -> str:
    """The H1 of a notebook; "" where it has none."""
    for cell in nb["cells"]:
        if hit := re.search(r"^# (.+)$", "".join(cell["source"]), flags=re.M):
            return hit[1].strip()
    return ""


def title(path: Path) -> str:
    """A notebook's H1 without its number."""
    return re.sub(r"^\d+\s*[.:·]?\s*", "", heading(read(path))) or path.stem


def said(nb: dict) -> list:
    """What a reader sees of each cell; editors write metadata and the order of keys as they like."""
    return [(c["id"], c["source"], c.get("outputs")) for c in nb["cells"]]


def problems(path: Path) -> list[str]:
    """What keeps the committed notebook at `path` from being normal and fresh; empty when fine."""
    import nbformat

    text, nb = path.read_text(encoding="utf-8"), read(path)
    found = []
    if said(nbformat.reads(text, as_version=4)) != said(normalize(nb)):
        found.append("not normalized: run python -m rlgenkit check --normalize")
    if len(text.encode()) > MAX_BYTES:
        found.append(f"{len(text.encode()) // 1000} KB, more than {MAX_BYTES // 1000} KB")
    if (hit := LOCAL_PATH.search(text)) is not None:
        found.append(f"holds a local path: {hit.group()}")
    return found + freshness(nb, path.stem) + judged_as_written(path.stem)


def judged_as_written(stem: str) -> list[str]:
    """Whether the committed results judge the claims file as it stands, its headline on 8 seeds."""
    from rlgenkit.workbook.claims import moved, rows_digest

    path = RESULTS / f"{stem.split('_')[0]}.json"
    if not path.is_file():
        return []
    if changed := moved(stem):
        return [
            f"claims/{stem}.toml, [{id}]: the threshold was {old:g} when this was first studied; "
            "put it back, or name it in note"
            for id, old in changed.items()
        ]
    results = json.loads(path.read_text(encoding="utf-8"))
    if results.get("claims_sha256") != rows_digest(stem):
        return [f"claims/{stem}.toml changed after its results: run {stem} again"]
    few = [c["id"] for c in results["claims"] if c["primary"] and 0 < c["n"] < HEADLINE_SEEDS]
    if results["profile"] == "study" and few:
        return [f"primary claims {', '.join(few)} rest on fewer than {HEADLINE_SEEDS} seeds"]
    return []


def is_draft(nb: dict) -> bool:
    """Whether the notebook was never executed: it has no official run yet, and the index says so."""
    return not any(c.get("execution_count") or c.get("outputs") for c in nb["cells"])


def freshness(nb: dict, stem: str) -> list[str]:
    """Whether the outputs belong to the sources: executed, 1..n, and with the sources' own hash."""
    if is_draft(nb):
        return []
    codes = [c for c in nb["cells"] if c["cell_type"] == "code" and "".join(c["source"]).strip()]
    counts = [c.get("execution_count") for c in codes]
    if counts != list(range(1, len(codes) + 1)):
        return [f"not a clean run: execution counts are not 1..{len(codes)}"]
    if nb["metadata"].get("rlgenkit", {}).get("source_hash") != source_hash(nb):
        return [f"outputs are older than the code: python -m rlgenkit run {stem} --commit"]
    return []
