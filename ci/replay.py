"""Which cells of a notebook nbval replays: `python -m ci.replay [NB ...]` writes their tags anew.

A cell that ends in seconds and reads nothing that training made is run again by
`pytest --nbval-lax`; where its text came out as committed, it is tagged `nbval-check-output`, so
that it is compared from now on. All others are tagged `nbval-skip`. `python -m ci.replay --test`
replays the whole series; so does tests/test_replay.py.
"""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rlgenkit.commands.committed import text_of
from rlgenkit.commands.places import ROOT, TEMPLATE, find, series

from . import warm

CHECK, SKIP = "nbval-check-output", "nbval-skip"
RULES = ROOT / "ci" / "replay.cfg"  # what nbval rounds before it compares
CELL_S, NOTEBOOK_S = 3.0, 6.0  # longest cell, and longest sum, beyond imports and the start
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


def copied(notebook: Path, folder: Path) -> Path:
    """A copy in `folder`/notebooks, beside a link to data, whose run folder is in `folder` too, so
    that no run of a reader is touched."""
    (folder / "notebooks").mkdir(exist_ok=True)
    if not (folder / "data").exists():
        (folder / "data").symlink_to(ROOT / "data")
    nb = json.loads(notebook.read_text(encoding="utf-8"))
    place = repr(str(folder / notebook.stem))
    for cell in nb["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            cell["source"] = [
                re.sub(r"^out_dir: str = None", lambda _: f"out_dir: str = {place}", line)
                for line in cell["source"]
            ]
    copy = folder / "notebooks" / notebook.name
    copy.write_text(text_of(nb), encoding="utf-8")
    return copy


def tags_of(notebook: Path, threads: int) -> dict[int, str]:
    """The tag of each code cell that has one, from a run of what is quick."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    tags, costly, spent = {}, set(), 0.0
    with tempfile.TemporaryDirectory() as name:
        copy = copied(notebook, Path(name))
        committed, nb = (nbformat.read(copy, as_version=4) for _ in range(2))
        client = NotebookClient(nb, timeout=60, interrupt_on_timeout=True, kernel_name=warm.NAME)
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": str(threads)}
        with client.setup_kernel(cwd=str(copy.parent), env=env):
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
                if (
                    took > CELL_S
                    and "import " not in cell.source
                    and "wb.start(" not in cell.source
                ):
                    tags[i], costly = SKIP, costly | made
                    continue
                spent += took
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
    """Tag one notebook; one line on what came out.  Compared is what came out twice as committed,
    with one thread and with two."""
    nb = json.loads(notebook.read_text(encoding="utf-8"))
    first, second = (tags_of(notebook, threads) for threads in (1, 2))
    found = {i: tag for i, tag in first.items() if tag == SKIP or second.get(i) == CHECK}
    found |= {i: SKIP for i, tag in second.items() if tag == SKIP}
    for i, cell in enumerate(nb["cells"]):
        old = cell["metadata"].get("tags", [])
        tags = [tag for tag in old if tag not in (CHECK, SKIP)] + ([found[i]] if i in found else [])
        if tags != old:  # the file's layout stays
            cell["metadata"]["tags"] = tags
    notebook.write_text(text_of(nb), encoding="utf-8")
    words = [*found.values()]
    cells = sum(c["cell_type"] == "code" for c in nb["cells"])
    run = cells - words.count(SKIP)
    return f"{notebook.stem:24} {cells} code cells, {run} replayed, {words.count(CHECK)} compared"


def replay(copies: list[Path]) -> subprocess.CompletedProcess:
    """nbval over these copies in a process of its own, on warm kernels."""
    options = ["--nbval-lax", f"--nbval-sanitize-with={RULES}", "--nbval-kernel-name", warm.NAME]
    quiet = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--noconftest",
        "--rootdir",
        str(ROOT),
    ]
    command = [sys.executable, "-m", "pytest", *options, *quiet, *map(str, copies)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)


def main() -> int:
    """Tags anew of the notebooks named, or of all."""
    parser = argparse.ArgumentParser(prog="ci.replay", description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*")
    parser.add_argument("--test", action="store_true", help="replay instead of writing tags")
    args = parser.parse_args()
    notebooks = [find(name) for name in args.notebooks] or [*series(), TEMPLATE]
    with tempfile.TemporaryDirectory() as name, warm.kernels(Path(name)) as env:
        os.environ.update(env)
        if args.test:
            done = replay([copied(notebook, Path(name)) for notebook in notebooks])
            print(done.stdout[-4000:], done.stderr[-2000:])
            return done.returncode
        for notebook in notebooks:
            print(write(notebook), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
