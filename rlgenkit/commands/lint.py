"""Lint of the notebooks: the anatomy that every notebook of the series keeps (DESIGN: fixed headings,
short cells, a purpose before each code cell, alt text, declared parameters, clean committed runs)."""

import re
from pathlib import Path

from . import committed
from .places import TEMPLATE

HEADINGS = ("The problem in one picture", "The idea on a toy", "Equations", "From scratch",
            "From the kit", "The experiment", "Look inside", "Ablation", "Claim versus measured",
            "What breaks", "Exercises", "Run it for real", "References and provenance")
TOUR_HEADINGS = ("References and provenance",)
COMMON = ("profile", "seed", "n_seeds", "device", "out_dir")
MAX_LINES, MAX_WIDTH, MAX_OWN_PARAMETERS = 40, 100, 8
FORBIDDEN = {r"^\s*[!%]+\s*(pip|conda)\b": "installs packages", r"\btorch\.load\(": "torch.load",
             r"\btrust_remote_code\b": "trust_remote_code", r"\bimport pickle\b": "pickle",
             r"\brich\.traceback\b": "rich.traceback hides errors"}


def tags(cell: dict) -> list[str]:
    """The cell's tags; empty where there are none."""
    return cell.get("metadata", {}).get("tags", [])


def source(cell: dict) -> str:
    """The cell's text, however the file stores it."""
    return "".join(cell["source"])


def lint(path: Path) -> list[str]:
    """Everything wrong with the notebook at `path`, a sentence each; empty when it is in order."""
    nb = committed.read(path)
    cells = nb["cells"]
    found = headings(cells, TOUR_HEADINGS if path.stem.startswith("00") else HEADINGS)
    found += code_cells(cells) + figures(cells) + parameters(path, cells)
    if path != TEMPLATE and not path.stem.startswith("00") and not committed.is_draft(nb):
        found += sizes(cells)
    ids = [c.get("id") for c in cells]
    if None in ids or len(set(ids)) != len(ids):
        found.append("cell ids are missing or not unique")
    return found


def headings(cells: list[dict], wanted: tuple[str, ...]) -> list[str]:
    """One H1 first, the fixed `## N. Title` headings in order, no level skipped."""
    rows = []
    for cell in cells:
        if cell["cell_type"] == "markdown":
            text = re.sub(r"```.*?```", "", source(cell), flags=re.S)
            rows += re.findall(r"^(#+)\s+(.+?)\s*$", text, flags=re.M)
    found = []
    if [level for level, _ in rows].count("#") != 1 or not rows or rows[0][0] != "#":
        found.append("needs exactly one H1 title, and first")
    for (a, _), (b, title) in zip(rows, rows[1:]):
        if len(b) > len(a) + 1:
            found.append(f"heading {title!r} skips a level")
    titles = [re.sub(r"^\d+\.?\s+", "", t) for level, t in rows if level == "##"]
    position = -1
    for name in wanted:
        hits = [i for i, t in enumerate(titles) if t.lower().startswith(name.lower())]
        if not hits:
            found.append(f"heading '## {name}' is missing")
        elif hits[0] < position:
            found.append(f"heading '## {name}' is out of order")
        else:
            position = hits[0]
    return found


def code_cells(cells: list[dict]) -> list[str]:
    """Length, width, purpose sentence before each, forbidden calls, stderr and errors in outputs."""
    found = []
    for i, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            continue
        where, lines = f"cell {i + 1}", source(cell).splitlines()
        if len(lines) > MAX_LINES:
            found.append(f"{where}: {len(lines)} lines, more than {MAX_LINES}")
        if (width := max(map(len, lines), default=0)) > MAX_WIDTH:
            found.append(f"{where}: a line of {width} characters, more than {MAX_WIDTH}")
        before = source(cells[i - 1]) if i and cells[i - 1]["cell_type"] == "markdown" else ""
        prose = re.sub(r"^#.*$|<[^>]+>", "", before, flags=re.M)
        if len(prose.split()) < 4:
            found.append(f"{where}: no sentence of purpose before it")
        found += [f"{where}: {why}" for rule, why in FORBIDDEN.items()
                  if re.search(rule, source(cell), flags=re.M)]
        for output in cell["outputs"]:
            if output.get("name") == "stderr":
                found.append(f"{where}: stderr in its output")
            if output["output_type"] == "error":
                found.append(f"{where}: ended with {output['ename']}")
    return found


def figures(cells: list[dict]) -> list[str]:
    """Every committed figure has alt text, and the reader is told what to see."""
    found = []
    for i, cell in enumerate(cells):
        if cell["cell_type"] == "markdown":
            found += [f"cell {i + 1}: image without alt text"
                      for alt in re.findall(r"!\[(.*?)\]\(", source(cell)) if len(alt.split()) < 2]
            continue
        shown = [o for o in cell["outputs"] if {"image/png", "image/jpeg"} & set(o.get("data", {}))]
        for output in shown:
            meta = output.get("metadata", {})
            alts = [m.get("alt", "") for m in meta.values() if isinstance(m, dict)]
            if not any(len(a.split()) >= 3 for a in alts):
                found.append(f"cell {i + 1}: figure without alt text; use workbook.show(fig, alt=...)")
        after = source(cells[i + 1]) if i + 1 < len(cells) else ""
        if shown and "you should see" not in after.lower():
            found.append(f"cell {i + 1}: the cell after a figure says 'What you should see'")
    return found


def parameters(path: Path, cells: list[dict]) -> list[str]:
    """One parameters cell that papermill can inspect: typed, with help, the common names in it."""
    from papermill import inspect_notebook

    marked = [c for c in cells if "parameters" in tags(c)]
    if len(marked) != 1:
        return [f"needs exactly one cell tagged 'parameters', has {len(marked)}"]
    rows = [r for r in source(marked[0]).splitlines() if r.strip() and not r.startswith("#")]
    seen = inspect_notebook(str(path))
    found = [f"parameters cell: one literal per line, `name: type = value  # help`: {r!r}"
             for r in rows if not re.match(r"\w+: [^=]+ = [^=]+  # \S", r)]
    if len(seen) != len(rows):
        found.append(f"papermill sees {len(seen)} of {len(rows)} parameters")
    found += [f"parameter {n} has no help" for n, v in seen.items() if not v["help"].strip()]
    found += [f"parameter {n} is missing" for n in COMMON if n not in seen]
    own = [n for n in seen if n not in COMMON]
    if len(own) > MAX_OWN_PARAMETERS:
        found.append(f"{len(own)} own parameters, more than {MAX_OWN_PARAMETERS}")
    return found


def sizes(cells: list[dict]) -> list[str]:
    """At least 6 figures in an executed notebook, at least 3 exercises."""
    code = [c for c in cells if c["cell_type"] == "code"]
    shown = sum(any("image/png" in o.get("data", {}) for o in c["outputs"]) for c in code)
    executed = any(c.get("execution_count") for c in code)
    exercises = sum("exercise" in tags(c) for c in cells)
    found = []
    if executed and shown < 6:
        found.append(f"{shown} figures, fewer than 6")
    if exercises < 3:
        found.append(f"{exercises} cells tagged 'exercise', fewer than 3")
    return found
