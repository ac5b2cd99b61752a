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
FORMAT = {"nbformat": 4, "nbformat_minor": 5}


class InputError(ValueError):
    """What the caller typed cannot be done; the message is one sentence that says what can."""


def series() -> list[Path]:
    """The numbered notebooks `NN_slug.ipynb`, in order; the template is not one of them."""
    return sorted(p for p in NOTEBOOKS.glob("*.ipynb") if re.match(r"\d\d_", p.name))


def nearest(name: str, known: list[str], shown: list[str] | None = None) -> str:
    """', did you mean X?' where one of `known` is close to `name`, else a list of `known`."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(shown or known) or 'none'}"


def read(path: Path) -> dict:
    """A notebook file as nested dicts; InputError where it is none, or older than format 4.5."""
    from nbformat.validator import iter_validate

    try:
        nb = json.loads(Path(path).read_text(encoding="utf-8"))
        whole = nb["cells"] and not any(iter_validate({**FORMAT, **nb}, version=4, version_minor=5))
        for part in (nb, *nb["cells"]):  # what the format leaves open
            for name in ("rlgenkit", "slideshow"):
                whole = whole and isinstance(part["metadata"].get(name, {}), dict)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise InputError(
            f"{Path(path).name} is no notebook of format 4.5 (JSON, cells that have ids); "
            "open and save it in JupyterLab once."
        )
    return nb


def find(name: str) -> Path:
    """Notebook by number ('01'), stem ('01_ddpo') or path. InputError names the nearest."""
    path = Path(name)
    if path.suffix != ".ipynb":
        stems = {p.stem: p for p in [*series(), TEMPLATE] if p.is_file()}
        hits = [s for s in stems if s == name or s.split("_")[0] == name]
        if not (hits and name):
            numbers = sorted(number for s in stems if (number := s.split("_")[0]))
            near = nearest(name, list(stems), numbers)
            raise InputError(f"There is no notebook {name[:80]!r}; {near}")
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
