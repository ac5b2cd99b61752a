"""Which cells of a notebook nbval replays: `python -m ci.replay [NB ...]` writes their tags anew.

A cell that ends in seconds and reads nothing that training made is run again by
`pytest --nbval-lax`; where its text came out as committed, it is tagged `nbval-check-output`, so
that it is compared from now on. What trains, takes long or reads such a cell is tagged
`nbval-skip`. `python -m ci.replay --test` replays the whole series; so does tests/test_replay.py.
"""

import argparse
import ast
import os
import re
import subprocess
import symtable
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ci import kernels
from ci.series import offline
from rlgenkit.commands.committed import text_of
from rlgenkit.commands.places import ROOT, TEMPLATE, ended, find, read, series

CHECK, SKIP = "nbval-check-output", "nbval-skip"
RULES = ROOT / "ci" / "replay.cfg"  # what nbval rounds before it compares
CELL_S, NOTEBOOK_S = 3.0, 4.0  # what a cell, and a notebook without its imports, may take
CHEAP_S = 0.1  # a cell that takes less is replayed though no compared one needs it
TRAINS = re.compile(r"\brun\.(?!paths|result)\w+")  # what trains, restores or judges
EDGE = 1e-4  # relative change of a printed number that must not change its rounded form


@dataclass
class Cell:
    """A code cell that was run: its index, what it defines, what it reads, seconds, and whether
    its text was the committed one."""

    index: int
    made: set[str]
    read: set[str]
    seconds: float
    same: bool


def names_of(source: str) -> tuple[set[str], set[str]]:
    """Global names that a cell makes or changes, and those that it or its functions read."""
    table, tree = symtable.symtable(source, "cell", "exec"), ast.parse(source)
    own = table.get_symbols()
    made = {s.get_name() for s in own if s.is_assigned() or s.is_imported() or s.is_namespace()}
    for node in ast.walk(tree):  # x[0] = ..., x.y = ...
        if isinstance(node, (ast.Subscript, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            made |= {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
    used = {s.get_name() for s in own if s.is_referenced()}
    for inner in scopes(table):
        used |= {s.get_name() for s in inner.get_symbols() if s.is_global() and s.is_referenced()}
    return made, used


def scopes(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    """All scopes within one."""
    for child in table.get_children():
        yield child
        yield from scopes(child)


def parts(source: str) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """Statements of a cell: those that define functions and classes, and the others."""
    body = ast.parse(source).body
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [n for n in body if isinstance(n, kinds)], [n for n in body if not isinstance(n, kinds)]


def trains(statements: list[ast.stmt]) -> bool:
    """Whether they ask the run for something."""
    return any(TRAINS.search(ast.unparse(n)) for n in statements)


def rounded(text: str) -> str:
    """A text with the replacements of ci/replay.cfg, as nbval makes them."""
    rules = re.findall(r"^regex: (.*)$\n^replace: (.*)$", RULES.read_text("utf-8"), flags=re.M)
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def is_firm(text: str) -> bool:
    """Whether the rounded text stays when its numbers change a little."""

    def moved(factor: float) -> str:
        def change(number: re.Match) -> str:
            return f"{float(number[0]) * factor:.{len(number[1])}f}"

        return re.sub(r"\d+\.(\d{3,})(?![\de])", change, text)

    return rounded(moved(1 - EDGE)) == rounded(text) == rounded(moved(1 + EDGE))


def texts(cell: dict) -> list[str]:
    """The texts of a cell's outputs that nbval compares, streams joined."""
    found = {}
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":
            name = output["name"]
            found[name] = found.get(name, "") + "".join(output["text"])
        else:
            for kind, value in output.get("data", {}).items():
                if kind.startswith("text/"):
                    name = f"{len(found)} {kind}"
                    found[name] = "".join(value)
    return [f"{name}: {text}" for name, text in found.items()]


def agree(cell: dict, committed: dict) -> bool:
    """Whether there is text, the same as committed when rounded, and far from a rounding's edge."""
    new, old = texts(cell), texts(committed)
    return (
        bool(new) and list(map(rounded, new)) == list(map(rounded, old)) and all(map(is_firm, old))
    )


def run_quick(notebook: Path) -> list[Cell]:
    """Run the cells that are quick and do not train, in one kernel; those that ended well."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    committed = read(notebook)["cells"]
    nb = nbformat.read(notebook, as_version=4)
    client = NotebookClient(nb, timeout=30, interrupt_on_timeout=True, kernel_name="python3")
    done, missing = [], set()  # missing: names that only a longer run has
    with client.setup_kernel():
        for i, cell in enumerate(nb.cells):
            if cell.cell_type != "code" or not cell.source.strip():
                continue
            made, used = names_of(cell.source)
            functions, rest = parts(cell.source)
            if rest and (used & missing or trains(rest)):
                missing |= made
                continue
            start = time.monotonic()
            try:
                client.execute_cell(cell, i)
            except (CellExecutionError, CellTimeoutError):
                missing |= made
                continue
            took = time.monotonic() - start
            client.timeout = 6 if done else 30
            if took > CELL_S and "import " not in cell.source:
                missing |= made
                continue
            missing -= made
            if not rest and (used & missing or trains(functions)):
                missing |= made
            missing |= {f.name for f in functions if trains([f])}
            done.append(Cell(i, made, used, took, agree(cell, committed[i])))
    return done


def needed(cells: list[Cell]) -> list[Cell]:
    """Those whose text is compared, what they read, and what costs next to nothing."""
    kept, names = [], set()
    for cell in reversed(cells):
        if cell.same or cell.made & names or cell.seconds < CHEAP_S:
            kept, names = [cell, *kept], names | cell.read
    return kept


def without(cells: list[Cell], one: Cell) -> list[Cell]:
    """What is left when one cell goes, with it all that read it and all that nothing needs now."""
    lost, kept = set(), []
    for cell in cells:
        if cell is one or cell.read & lost:
            lost |= cell.made
        else:
            lost -= cell.made
            kept.append(cell)
    return needed(kept)


def affordable(cells: list[Cell]) -> list[Cell]:
    """Cells that take NOTEBOOK_S in all: those go first that save most per compared cell."""
    cells = needed(cells)
    while (over := sum(c.seconds for c in cells) - NOTEBOOK_S) > 0:

        def worth(left: list[Cell]) -> float:
            gone = [c for c in cells if c not in left]
            return min(over, sum(c.seconds for c in gone)) / (1 + sum(c.same for c in gone))

        cells = max((without(cells, c) for c in cells if c.seconds >= CHEAP_S), key=worth)
    return cells


def tags_of(notebook: Path) -> dict[int, str]:
    """Index -> tag of each code cell that has one."""
    kept = {cell.index: cell for cell in affordable(run_quick(notebook))}
    found = {}
    for i, cell in enumerate(read(notebook)["cells"]):
        if cell["cell_type"] == "code" and i not in kept:
            found[i] = SKIP
        elif i in kept and kept[i].same:
            found[i] = CHECK
    return found


def write(notebook: Path, found: Mapping[int, str]) -> None:
    """Write these tags into the notebook, in place of those that it has."""
    nb = read(notebook)
    for i, cell in enumerate(nb["cells"]):
        old = cell["metadata"].get("tags", [])
        new = [tag for tag in old if tag not in (CHECK, SKIP)]
        new += [found[i]] if i in found else []
        if new != old:
            cell["metadata"]["tags"] = new
    notebook.write_text(text_of(nb), encoding="utf-8")


def tagged(notebook: Path) -> dict[int, str]:
    """Index -> tag that nbval reads, of the notebook's cells."""
    cells = enumerate(read(notebook)["cells"])
    ours = ((i, set(cell["metadata"].get("tags", [])) & {CHECK, SKIP}) for i, cell in cells)
    return {i: tag for i, both in ours for tag in both}


def replay(notebooks: list[Path], env: Mapping[str, str]) -> subprocess.CompletedProcess:
    """nbval over these notebooks, in a process of its own with this environment."""
    options = ["--nbval-lax", f"--nbval-sanitize-with={RULES}", "--nbval-cell-timeout=60"]
    plain = ["-q", "--color=no", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", *options, *plain]
    return subprocess.run(
        [*command, *map(str, notebooks)], env=env, cwd=ROOT, capture_output=True, text=True
    )


def drop_failed(notebook: Path, report: str) -> bool:
    """Take the tags of cells that failed when nbval ran them once more; whether any did.

    A text that differed is compared no more; the first cell that raised an error is skipped."""
    name = re.escape(notebook.name)
    failed = re.findall(rf"^_+ \S*{name}::Cell (\d+) _+\n.*\nCell \d+: (.+)", report, flags=re.M)
    codes = [i for i, c in enumerate(read(notebook)["cells"]) if c["cell_type"] == "code"]
    differ = [codes[int(number)] for number, why in failed if why == "Cell outputs differ"]
    found = {i: word for i, word in tagged(notebook).items() if i not in differ}
    errors = [codes[int(number)] for number, why in failed if why != "Cell outputs differ"]
    if failed:
        write(notebook, found | {i: SKIP for i in errors[:1]})
    return bool(failed)


def summary(notebook: Path) -> str:
    """How many of a notebook's cells are replayed and compared."""
    found = [*tagged(notebook).values()]
    codes = sum(c["cell_type"] == "code" for c in read(notebook)["cells"])
    run = codes - found.count(SKIP)
    return f"{notebook.stem:24} {codes} cells, {run} replayed, {found.count(CHECK)} compared"


def tag(notebooks: list[Path]) -> None:
    """Tag from a run on one thread, then replay on two and drop what does not come out again."""
    with kernels.started(OMP_NUM_THREADS="1", PYTHONHASHSEED="1") as env:
        os.environ["JUPYTER_PATH"] = env["JUPYTER_PATH"]
        for notebook in notebooks:
            write(notebook, tags_of(notebook))
    with kernels.started(OMP_NUM_THREADS="2", PYTHONHASHSEED="2") as env:
        left = notebooks
        while left:
            report = replay(left, env).stdout
            left = [notebook for notebook in left if drop_failed(notebook, report)]
    for notebook in notebooks:
        print(summary(notebook))


def main(argv: list[str]) -> int:
    """Tags anew of the notebooks named, or of all."""
    ask = argparse.ArgumentParser(prog="ci.replay", description=__doc__.splitlines()[0])
    ask.add_argument("notebooks", nargs="*")
    ask.add_argument("--test", action="store_true", help="replay instead of writing tags")
    args = ask.parse_args(argv)
    notebooks = [find(name) for name in args.notebooks] or [*series(), TEMPLATE]
    if not args.test:
        tag(notebooks)
        return 0
    with kernels.started(**offline()) as env:
        done = replay(notebooks, env)
    print(done.stdout)
    return done.returncode


if __name__ == "__main__":
    sys.exit(ended(main, sys.argv[1:]))
