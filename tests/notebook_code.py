"""What a notebook's cells define, for tests of the functions that live there."""

import ast
import builtins
import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def _stands_alone(node: ast.stmt, known: set) -> bool:
    """Imports, functions, classes and constants: what runs without the cells before.

    A constant is a literal, or made of built-in functions and CONSTANTS alone.
    """
    if isinstance(node, ast.Assign):
        names = [n for n in ast.walk(node.value) if isinstance(n, ast.Name)]
        own = {n.id for n in names if isinstance(n.ctx, ast.Store)}  # of a comprehension
        return all(n.id in own | known or hasattr(builtins, n.id) for n in names)
    return isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))


@cache
def definitions(number: str) -> SimpleNamespace:
    """Functions, classes, imports and constants of notebook `number` ("50"); nothing else runs.

    A function that reads a name which only a run gives (p, run) fails when it is called.
    """
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    found: dict = {"__name__": f"notebook_{number}"}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code" or "parameters" in cell["metadata"].get("tags", []):
            continue
        for node in ast.parse("".join(cell["source"])).body:
            constants = {name for name in found if name.isupper()}
            if _stands_alone(node, constants):
                with suppress(NameError, LookupError):  # what only a run gives
                    exec(compile(ast.Module([node], []), str(path), "exec"), found)
    return SimpleNamespace(**found)
