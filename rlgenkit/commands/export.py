"""Teaching copies made from the one committed notebook: student, solutions, slides (nbconvert).

Cell tags: `exercise` (the stub a student fills in), `solution` (its answer; never run by papermill
unless the notebook says so), `check` (the automatic check, kept in every copy).
"""

import copy
import json
from pathlib import Path

from .committed import normalize, read, text_of
from .lint import source, tags
from .places import BUILD


def student(nb: dict) -> dict:
    """Without solutions and outputs; exercises, hints and checks stay."""
    out = copy.deepcopy(nb)
    out["cells"] = [c for c in out["cells"] if "solution" not in tags(c)]
    for cell in out["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    out["metadata"].pop("rlgenkit", None)
    return out


def solutions(nb: dict) -> dict:
    """Everything, each solution under a heading of its own so that nobody reads it by accident."""
    out = copy.deepcopy(nb)
    cells = []
    for cell in out["cells"]:
        if "solution" in tags(cell) and not (cells and "solution" in tags(cells[-1])):
            cells.append({"cell_type": "markdown", "id": f"{cell['id'][:60]}-sol", "metadata": {},
                          "source": "**Solution**"})
        cells.append(cell)
    out["cells"] = cells
    return out


def write_copies(notebooks: list[Path], kind: str) -> list[Path]:
    """Write build/KIND/NN_slug.ipynb (or .slides.html); returns the paths."""
    folder = BUILD / kind
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for path in notebooks:
        nb = read(path)
        if kind == "slides":
            target = folder / f"{path.stem}.slides.html"
            target.write_text(slides(nb), encoding="utf-8")
        else:
            target = folder / path.name
            changed = student(nb) if kind == "student" else solutions(nb)
            target.write_text(text_of(normalize(changed)), encoding="utf-8")
        made.append(target)
    return made


def slides(nb: dict) -> str:
    """HTML slides: each level-2 heading starts a slide, long code and solutions stay out of sight."""
    import nbformat
    from nbconvert import SlidesExporter

    out = copy.deepcopy(nb)
    for cell in out["cells"]:
        starts = cell["cell_type"] == "markdown" and source(cell).lstrip().startswith(("# ", "## "))
        long = cell["cell_type"] == "code" and len(source(cell).splitlines()) > 15
        if "solution" in tags(cell) or (long and not cell["outputs"]):
            kind = "skip"
        else:
            kind = "slide" if starts else "fragment" if cell["cell_type"] == "code" else "-"
        cell["metadata"].setdefault("slideshow", {"slide_type": kind})
    body, _ = SlidesExporter().from_notebook_node(nbformat.reads(json.dumps(out), as_version=4))
    return body
