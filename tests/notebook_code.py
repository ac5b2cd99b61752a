"""What a notebook's cells define, for tests of the functions that live there."""

import ast
import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def _stands_alone(node: ast.stmt) -> bool:
    """Imports, functions, classes, and names of literals: what runs without the cells before."""
    if isinstance(node, ast.Assign):
        try:
            ast.literal_eval(node.value)
        except ValueError:
            return False
        return True
    return isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))


@cache
def definitions(number: str) -> SimpleNamespace:
    """Functions, classes, imports and literals of notebook `number` ("50"); nothing else runs.

    A function that reads a name which only a run gives (p, run) fails when it is called.
    """
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    found: dict = {"__name__": f"notebook_{number}"}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code" or "parameters" in cell["metadata"].get("tags", []):
            continue
        for node in ast.parse("".join(cell["source"])).body:
            if _stands_alone(node):
                with suppress(NameError):  # a default value that only a run gives
                    exec(compile(ast.Module([node], []), str(path), "exec"), found)
    return SimpleNamespace(**found)
