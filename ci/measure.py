"""Numbers of the notebooks that are reported and not gated: `python -m rlgenkit check --table`."""

import ast
import re
from pathlib import Path

from ci.lint import prose, source
from rlgenkit.commands.experiment import aligned
from rlgenkit.commands.places import read

SHORT_FORMS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda, ast.IfExp)


def measure(path: Path) -> dict[str, str]:
    """One row of the table, by column."""
    cells = read(path)["cells"]
    code = [c for c in cells if c["cell_type"] == "code" and source(c).strip()]
    lengths = sorted(len(source(c).splitlines()) for c in code) or [0]
    lines = sum(1 for c in code for row in source(c).splitlines() if row.strip())
    nodes = [*ast.walk(ast.Module([n for c in code for n in parsed(source(c))], []))]
    short = [n for n in nodes if isinstance(n, SHORT_FORMS)]
    inner = [m for n in short for m in ast.walk(n) if m is not n and isinstance(m, SHORT_FORMS)]
    stored = [n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef)]
    words, sentences = spoken(cells)
    values = {
        "notebook": path.stem,
        "code cells": len(code),
        "lines p90": lengths[int(0.9 * (len(lengths) - 1))],
        "lines max": lengths[-1],
        "short forms / 100 lines": percent(len(short), lines),
        "nested": len(inner),
        "one-letter names %": percent(sum(len(n) == 1 for n in stored), len(stored)),
        "docstrings %": percent(sum(map(bool, map(ast.get_docstring, functions))), len(functions)),
        "words / sentence": f"{words / max(sentences, 1):.0f}",
        "figures": sum("image/png" in o.get("data", {}) for c in code for o in c["outputs"]),
    }
    return {name: str(value) for name, value in values.items()}


def parsed(text: str) -> list[ast.stmt]:
    """Statements of a cell; none where it holds magics."""
    try:
        return ast.parse(text).body
    except SyntaxError:
        return []


def spoken(cells: list[dict]) -> tuple[int, int]:
    """(words, sentences) of the prose: without headings, tables, formulas, tags and code."""
    text = re.sub(r"\$\$.*?\$\$|<[^>]*>", "", prose(cells), flags=re.S)
    text = re.sub(r"^\s*(?:#|\|).*$", "", text, flags=re.M)
    text = re.sub(r"\$[^$]*\$|`[^`]*`|\]\([^)]*\)", " x ", text)
    parts = re.split(r"[.!?:;](?:\s|$)|\n\s*\n|^\s*[-*] ", text, flags=re.M)
    counts = [len(re.findall(r"\w[\w'’-]*", part)) for part in parts]
    return sum(counts), sum(n > 2 for n in counts)


def percent(part: int, whole: int) -> str:
    """A share as a whole number, "-" of nothing."""
    return f"{100 * part / whole:.0f}" if whole else "-"


def table(paths: list[Path]) -> str:
    """Aligned rows, a line per notebook."""
    rows = [measure(path) for path in paths]
    return aligned([list(rows[0]), *(list(row.values()) for row in rows)])
