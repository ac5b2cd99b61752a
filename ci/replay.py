"""Which cells of a notebook nbval replays: `python -m ci.replay [NB ...]` writes their tags anew.

A cell that ends in seconds and reads nothing that training made is run again by
`pytest --nbval-lax`; where its text came out as committed, it is tagged `nbval-check-output`, so
that it is compared from now on. All others are tagged `nbval-skip`. `python -m ci.replay --test`
replays the whole series; so does tests/test_replay.py.
"""

import argparse
import ast
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from rlgenkit.commands.committed import text_of
from rlgenkit.commands.places import NOTEBOOKS, ROOT, TEMPLATE, find, series

CHECK, SKIP = "nbval-check-output", "nbval-skip"
RULES = ROOT / "ci" / "replay.cfg"  # what nbval rounds before it compares
CELL_S, NOTEBOOK_S = 1.0, 2.5  # longest cell, and longest sum, beyond the first cell's imports
TRAINS = re.compile(r"\brun\.(?!paths)\w+")


def names_of(source: str) -> tuple[set[str], set[str]]:
    """Names that a cell defines at its top level, and all names that it reads."""
    tree = ast.parse(source)
    made = {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    made |= {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            made |= {(a.asname or a.name).split(".")[0] for a in node.names}
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return made, read


def text_outputs(cell: dict) -> list[str]:
    """The text of a cell's outputs, as nbval compares it: streams joined, numbers rounded."""
    stream, rest = "", []
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":
            stream += "".join(output["text"])
        else:
            data = {k: v for k, v in output.get("data", {}).items() if k.startswith("text/")}
            rest.append(json.dumps({k: rounded("".join(v)) for k, v in data.items()}))
    return [rounded(stream), *rest]


def rounded(text: str) -> str:
    """A text with the replacements of ci/replay.cfg."""
    rules = re.findall(r"regex: (.+)\nreplace: (.*)", RULES.read_text(encoding="utf-8"))
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text


def tags_of(notebook: Path) -> dict[int, str]:
    """The tag of each code cell that has one, from a run of what is quick."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    committed = nbformat.read(notebook, as_version=4)
    nb = nbformat.from_dict(json.loads(json.dumps(committed)))
    client = NotebookClient(nb, timeout=60, interrupt_on_timeout=True, kernel_name="python3")
    tags, costly, spent, first = {}, set(), 0.0, True
    with client.setup_kernel(cwd=str(NOTEBOOKS)):
        for i, cell in enumerate(nb.cells):
            if cell.cell_type != "code":
                continue
            made, read = names_of(cell.source)
            if read & costly or _trains(cell.source) or spent > NOTEBOOK_S:
                tags[i], costly = SKIP, costly | made
                continue
            start = time.monotonic()
            try:
                client.execute_cell(cell, i)
            except (CellExecutionError, CellTimeoutError):
                tags[i], costly = SKIP, costly | made
                continue
            took = time.monotonic() - start
            imports = "import " in cell.source
            client.timeout = 60 if first else 3 * CELL_S
            first = first and not imports
            if took > CELL_S and not imports and "wb.start(" not in cell.source:
                tags[i], costly = SKIP, costly | made
                continue
            spent += 0 if imports else took
            costly |= _training_functions(cell.source)
            same = text_outputs(cell) == text_outputs(committed.cells[i])
            if same and any(text_outputs(cell)):
                tags[i] = CHECK
    return tags


def _trains(source: str) -> bool:
    """Whether a cell asks the run for something outside of functions."""
    tree = ast.parse(source)
    body = [n for n in tree.body if not isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    return any(TRAINS.search(ast.unparse(n)) for n in body)


def _training_functions(source: str) -> set[str]:
    """Functions of a cell that ask the run for something: whoever calls them trains."""
    tree = ast.parse(source)
    return {
        n.name
        for n in tree.body
        if isinstance(n, ast.FunctionDef) and TRAINS.search(ast.unparse(n))
    }


def write(notebook: Path) -> str:
    """Tag one notebook; one line on what came out."""
    nb = json.loads(notebook.read_text(encoding="utf-8"))
    found = tags_of(notebook)
    for i, cell in enumerate(nb["cells"]):
        old = cell["metadata"].get("tags", [])
        kept = [tag for tag in old if tag not in (CHECK, SKIP)]
        if tags := kept + ([found[i]] if i in found else []):
            cell["metadata"]["tags"] = tags
        else:
            cell["metadata"].pop("tags", None)
    notebook.write_text(text_of(nb), encoding="utf-8")
    words = [*found.values()]
    cells = sum(c["cell_type"] == "code" for c in nb["cells"])
    run = cells - words.count(SKIP)
    return f"{notebook.stem:24} {cells} code cells, {run} replayed, {words.count(CHECK)} compared"


def replay(notebooks: list[Path], jobs: int = 1) -> subprocess.CompletedProcess:
    """nbval over these notebooks in a process of its own."""
    spread = ["-n", str(jobs), "--dist", "loadfile"] if jobs > 1 else ["-p", "no:xdist"]
    options = [
        "--nbval-lax",
        f"--nbval-sanitize-with={RULES}",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
    ]
    command = [sys.executable, "-m", "pytest", *options, *spread, *map(str, notebooks)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def main() -> int:
    """Tags anew of the notebooks named, or of all."""
    parser = argparse.ArgumentParser(prog="ci.replay", description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*")
    parser.add_argument("--test", action="store_true", help="replay instead of writing tags")
    args = parser.parse_args()
    notebooks = [find(name) for name in args.notebooks] or [*series(), TEMPLATE]
    if args.test:
        done = replay(notebooks, jobs=2)
        print(done.stdout[-4000:])
        return done.returncode
    for notebook in notebooks:
        print(write(notebook), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
