"""Numbers of the notebooks that are reported and not gated: `python -m rlgenkit check --table`."""

import ast
import io
import re
import statistics
import tokenize
from pathlib import Path

from ci.lint import is_new, prose, source, tags
from rlgenkit.commands import committed

SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
SHORT_FORMS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda, ast.IfExp)
COLUMNS = (
    "notebook",
    "shape",
    "code cells",
    "lines median",
    "lines p90",
    "lines max",
    "tokens",
    "short forms per 100 lines",
    "nested",
    "one-letter names %",
    "docstrings %",
    "words per sentence",
    "words per code line",
    "cells that print",
    "figures",
    "stubs",
    "exercises",
)


def measure(path: Path) -> dict[str, str]:
    """One row of the table, by column."""
    cells = committed.read(path)["cells"]
    code = [c for c in cells if c["cell_type"] == "code" and source(c).strip()]
    texts = [source(c) for c in code]
    lengths = sorted(len(t.splitlines()) for t in texts) or [0]
    lines = sum(1 for t in texts for row in t.splitlines() if row.strip())
    tree = ast.Module([node for t in texts for node in parsed(t).body], [])
    short = [n for n in ast.walk(tree) if isinstance(n, SHORT_FORMS)]
    nested = [
        n for n in short if any(isinstance(m, SHORT_FORMS) for m in ast.walk(n) if m is not n)
    ]
    names = [
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    ]
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    words, sentences = spoken(cells)
    values = (
        path.stem,
        "new" if is_new(path) else "old",
        len(code),
        f"{statistics.median(lengths):g}",
        lengths[int(0.9 * (len(lengths) - 1))],
        lengths[-1],
        sum(map(tokens, texts)),
        f"{100 * len(short) / max(lines, 1):.0f}",
        len(nested),
        percent(sum(len(n) == 1 for n in names), len(names)),
        percent(sum(ast.get_docstring(f) is not None for f in functions), len(functions)),
        f"{words / max(sentences, 1):.0f}",
        f"{words / max(lines, 1):.1f}",
        sum("print(" in t for t in texts),
        sum("image/png" in o.get("data", {}) for c in code for o in c["outputs"]),
        sum("stub" in tags(c) for c in code),
        sum("exercise" in tags(c) for c in cells),
    )
    return dict(zip(COLUMNS, map(str, values)))


def parsed(text: str) -> ast.Module:
    """Syntax tree of a cell; an empty one where it holds magics."""
    try:
        return ast.parse(text)
    except SyntaxError:
        return ast.Module([], [])


def tokens(text: str) -> int:
    """Tokens of a cell that say something."""
    try:
        found = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError):
        return 0
    return sum(t.type not in SILENT for t in found)


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
    """Aligned rows, a line per notebook; long column names on lines of their own above."""
    rows = [measure(path) for path in paths]
    heads = [f"{k:2}  {name}" for k, name in enumerate(COLUMNS, 1)]
    cells = [
        [str(k) for k in range(1, len(COLUMNS) + 1)],
        *([row[c] for c in COLUMNS] for row in rows),
    ]
    widths = [max(len(row[k]) for row in cells) for k in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.rjust(w) if k else cell.ljust(w) for k, (cell, w) in enumerate(zip(row, widths))
        )
        for row in cells
    ]
    return "\n".join([*heads, "", *lines])
