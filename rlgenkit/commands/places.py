"""Where things are in a checkout, and how a notebook is found by name."""

import difflib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
RESULTS = ROOT / "data" / "results"
BUILD = ROOT / "build"
RUNS = ROOT / "runs"
TEMPLATE = NOTEBOOKS / "_template.ipynb"
TEXT, LINES = (str, list), list  # kinds of a notebook: a text or its lines, and lines alone


class InputError(ValueError):
    """What the caller typed cannot be done; the message is one sentence that says what can."""


def series() -> list[Path]:
    """The numbered notebooks `NN_slug.ipynb`, in order; the template is not one of them."""
    return sorted(p for p in NOTEBOOKS.glob("*.ipynb") if re.match(r"\d\d_", p.name))


def nearest(name: str, known: list[str]) -> str:
    """', did you mean X?' where one of `known` is close to `name`, else a list of `known`."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known) or 'none'}"


def read(path: Path) -> dict:
    """A notebook file as nested dicts; InputError where it is none, or older than format 4.5."""
    try:
        nb = json.loads(Path(path).read_text(encoding="utf-8"))
        whole = bool(nb["cells"]) and _holds({"rlgenkit": {}, **nb["metadata"]}, rlgenkit=dict)
        whole &= all(map(_whole_cell, nb["cells"]))
    except (ValueError, LookupError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise InputError(
            f"{Path(path).name} is no notebook of format 4.5 (JSON, cells that have ids); "
            "open and save it in JupyterLab once."
        )
    return nb


def _holds(part: dict, **kinds: type | tuple) -> bool:
    """Whether a part of a notebook holds values of these kinds; its lists of text, only texts."""
    texts = [x for name, kind in kinds.items() if kind in (TEXT, LINES) for x in part[name]]
    return all(isinstance(part[k], v) for k, v in kinds.items()) and all(
        isinstance(x, str) for x in texts
    )


def _whole_cell(cell: dict) -> bool:
    """Whether the parts of a cell that are read anywhere are of their kinds."""
    marks = {"tags": [], "slideshow": {}, **cell["metadata"]}
    whole = _holds(cell, cell_type=str, id=str, source=TEXT)
    whole &= _holds(marks, tags=LINES, slideshow=dict)
    for output in cell["outputs"] if cell["cell_type"] == "code" else ():
        empty = {"data": {}, "metadata": {}, "text": "", "traceback": []}
        whole &= _holds({**empty, **output}, output_type=str, data=dict, metadata=dict)
        whole &= _holds({**empty, **output}, text=TEXT, traceback=LINES)
        shown = {k: TEXT for k in output.get("data", ()) if k.startswith(("text/", "image/"))}
        whole &= _holds(output.get("data", {}), **shown)
    return whole


def find(name: str) -> Path:
    """Notebook by number ('01'), stem ('01_ddpo') or path. InputError names the nearest."""
    path = Path(name)
    if path.suffix != ".ipynb":
        stems = {p.stem: p for p in [*series(), TEMPLATE] if p.is_file()}
        hits = [s for s in stems if s == name or s.split("_")[0] == name]
        if not (hits and name):
            raise InputError(f"There is no notebook {name[:80]!r}; {nearest(name, list(stems))}")
        path = stems[hits[0]]
    elif not path.is_file():
        raise InputError(f"There is no notebook file {name}.")
    read(path)
    return path.resolve()


def ended(command: Callable[..., int], *arguments) -> int:
    """Exit code of a command; where it cannot do what was asked, one sentence on stderr and 2."""
    try:
        return command(*arguments)
    except InputError as error:
        print(error, file=sys.stderr)
    except BrokenPipeError:  # whoever reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        print(f"{str(error.filename)[:200]}: {error.strerror}.", file=sys.stderr)
    return 2
