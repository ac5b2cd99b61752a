"""Where things are in a checkout, and how a notebook is found by name."""

import difflib
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
RESULTS = ROOT / "data" / "results"
BUILD = ROOT / "build"
RUNS = ROOT / "runs"
TEMPLATE = NOTEBOOKS / "_template.ipynb"


class InputError(ValueError):
    """What the caller typed cannot be done; the message is one sentence that says what can."""


def series() -> list[Path]:
    """The numbered notebooks `NN_slug.ipynb`, in order; the template is not one of them."""
    return sorted(p for p in NOTEBOOKS.glob("*.ipynb") if re.match(r"\d\d_", p.name))


def nearest(name: str, known: list[str]) -> str:
    """', did you mean X?' where one of `known` is close to `name`, else a list of `known`."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known) or 'none'}"


def find(name: str) -> Path:
    """Notebook by number ('01'), stem ('01_ddpo') or path. InputError names the nearest."""
    path = Path(name)
    if path.suffix == ".ipynb":
        if path.is_file():
            return path.resolve()
        raise InputError(f"There is no notebook file {name}.")
    stems = {p.stem: p for p in [*series(), TEMPLATE] if p.is_file()}
    hits = [s for s in stems if s == name or s.split("_")[0] == name]
    if hits and name:
        return stems[hits[0]]
    raise InputError(f"There is no notebook {name!r}; {nearest(name, list(stems))}")
