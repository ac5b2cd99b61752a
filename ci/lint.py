"""Lint of the notebooks: what a reader would miss (anatomy, short cells, a purpose before each code
cell, alt text, declared parameters, links, exercises without their answers, clean committed runs).

A notebook has the new shape when notebooks/checks/<slug>.py holds its exercises; the others keep the
older list of headings until they are rewritten.
"""

import re
from pathlib import Path

from rlgenkit.commands import committed
from rlgenkit.commands.places import NOTEBOOKS, TEMPLATE

HEADINGS = (
    "The problem in one picture",
    "The idea on a toy",
    "Equations",
    "From scratch",
    "From the kit",
    "The experiment",
    "Look inside",
    "Ablation",
    "Claim versus measured",
    "What breaks",
    "Exercises",
    "Run it for real",
    "References and provenance",
)
TOUR_HEADINGS = ("References",)
# Numbers of notebooks that keep the older headings until they are rewritten; the list only shrinks.
OLD = set("10 11 12 15 16 17 19 22 50 51".split())
# Of the new shape: a title of each section, and words one of which its title holds.
SECTIONS = {
    "The problem in one picture": "problem",
    "Four samples by hand": "four samples|worked example|by hand",
    "Equations": "equations",
    "From scratch": "from scratch",
    "Predict first": "predict",
    "One seed": "one seed|one run",
    "The comparison": "compar|side by side",
    "Look inside": "look inside",
    "Ablation": "ablation|ingredient",
    "What held, what failed, and why": "held",
    "What breaks": "breaks",
    "Exercises": "exercises",
    "Run it for real": "run it for real",
    "References": "references",
}
COMMON = ("profile", "seed", "n_seeds", "device", "out_dir")
MAX_LINES, MAX_WIDTH, MAX_OWN_PARAMETERS = 40, 100, 8
NEW_LINES, NEW_WIDTH, NEW_EXERCISES = 30, 88, 3
FORBIDDEN = {
    r"^\s*[!%]+\s*(pip|conda)\b": "installs packages",
    r"\btorch\.load\(": "torch.load",
    r"\btrust_remote_code\b": "trust_remote_code",
    r"\bimport pickle\b": "pickle",
    r"\brich\.traceback\b": "rich.traceback hides errors",
}
ANSWERS = {
    r"(?i)<summary>\s*solution": "a folded solution",
    r"\bwb\.Check\(": "the reference of a check",
    r"\bwb\.predict\([^()]*,": "the answer of a question",
}


def tags(cell: dict) -> list[str]:
    """The cell's tags; empty where there are none."""
    return cell.get("metadata", {}).get("tags", [])


def source(cell: dict) -> str:
    """The cell's text, however the file stores it."""
    return "".join(cell["source"])


def is_new(path: Path) -> bool:
    """Whether the notebook has the new shape: its exercises stand in notebooks/checks."""
    return (NOTEBOOKS / "checks" / f"{path.stem.split('_', 1)[-1]}.py").is_file()


def lint(path: Path) -> list[str]:
    """Everything wrong with the notebook at `path`, a sentence each; empty when it is in order.

    Cells are counted from 1, markdown cells too, as `run` counts them.
    """
    nb = committed.read(path)
    cells, tour = nb["cells"], path.stem.startswith("00")
    if not is_new(path) and path.stem[:2] not in OLD:
        return [f"checks/{path.stem.split('_', 1)[-1]}.py is missing: its exercises stand there"]
    if is_new(path):
        found = headings(cells, TOUR_HEADINGS) if tour else sections(cells)
        found += code_cells(cells, NEW_LINES, NEW_WIDTH) + figures(cells, told=False)
        found += (
            parameters(path, cells) + table(path) + opening(cells) + links(cells) + exercises(cells)
        )
        found += leftovers(path, cells) + headline(path)
    else:
        found = headings(cells, TOUR_HEADINGS if tour else HEADINGS)
        found += code_cells(cells) + figures(cells) + parameters(path, cells)
        if path != TEMPLATE and not tour and not committed.is_draft(nb):
            found += sizes(cells)
    ids = [c.get("id") for c in cells]
    if None in ids or len(set(ids)) != len(ids):
        found.append("cell ids are missing or not unique")
    return found


def leftovers(path: Path, cells: list[dict]) -> list[str]:
    """Paragraphs and names of the template that a copy still holds."""
    if path.stem == TEMPLATE.stem:
        return []
    theirs = set(paragraphs(committed.read(TEMPLATE)["cells"]))
    found = [
        f"still says what the template says: {x[:60]!r}" for x in paragraphs(cells) if x in theirs
    ]
    code = "\n".join(source(c) for c in cells if c["cell_type"] == "code")
    if "99_template" in code or re.search(r"[\"']99\.\w+[\"']", code) and path.stem[:2] != "99":
        found.append(f"its code names 99_template or an exercise of 99; write {path.stem}")
    return found


def headline(path: Path) -> list[str]:
    """The claims have a primary row, and each has an arm on which it must not hold."""
    from rlgenkit.workbook.claims import load_rows

    rows = load_rows(path.stem).values()
    primary = [row for row in rows if row.primary]
    if not primary and not all(row.check or row.ours for row in rows):
        return ["its claims have no primary row"]
    return [
        f"primary claim {row.id} names neither a sham nor a control"
        for row in primary
        if not (row.sham or row.control or row.untestable)
    ]


def paragraphs(cells: list[dict]) -> list[str]:
    """Paragraphs of the prose that say something of their own: titles, and eight words or more."""
    parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", prose(cells)))
    return [x for x in parts if x.startswith("# ") or len(x.split()) >= 8]


def prose(cells: list[dict]) -> str:
    """All markdown of the notebook, without fenced code."""
    texts = [source(c) for c in cells if c["cell_type"] == "markdown"]
    return re.sub(r"```.*?```", "", "\n\n".join(texts), flags=re.S)


def title_rows(cells: list[dict]) -> tuple[list[str], list[str]]:
    """(what is wrong with the levels of the headings, titles of level 2 without their numbers)."""
    rows = re.findall(r"^(#+)\s+(.+?)\s*$", prose(cells), flags=re.M)
    found = []
    if [level for level, _ in rows].count("#") != 1 or not rows or rows[0][0] != "#":
        found.append("needs exactly one H1 title, and first")
    for (a, _), (b, title) in zip(rows, rows[1:]):
        if len(b) > len(a) + 1:
            found.append(f"heading {title!r} skips a level")
    return found, [re.sub(r"^\d+\.?\s+", "", t) for level, t in rows if level == "##"]


def sections(cells: list[dict]) -> list[str]:
    """The sections of the new shape, in their order; others may stand between them."""
    found, titles = title_rows(cells)
    rest = [title.lower() for title in titles]
    for name, words in SECTIONS.items():
        hits = [k for k, title in enumerate(rest) if re.search(words, title)]
        if hits:
            rest = rest[hits[0] + 1 :]
        elif any(re.search(words, title.lower()) for title in titles):
            found.append(f"section like '## {name}' is out of order")
        else:
            found.append(f"section like '## {name}' is missing")
    return found


def headings(cells: list[dict], wanted: tuple[str, ...]) -> list[str]:
    """One H1 first, the fixed `## N. Title` headings in order, no level skipped."""
    found, titles = title_rows(cells)
    position = -1
    for name in wanted:
        hits = [i for i, t in enumerate(titles) if t.lower().startswith(name.lower())]
        if not hits:
            found.append(f"heading '## {name}' is missing")
        elif hits[0] < position:
            found.append(f"heading '## {name}' is out of order")
        else:
            position = hits[0]
    return found


def code_cells(
    cells: list[dict], max_lines: int = MAX_LINES, max_width: int = MAX_WIDTH
) -> list[str]:
    """Length, width, purpose sentence before each, forbidden calls, stderr and errors in outputs."""
    found = []
    for i, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            continue
        where, lines = f"cell {i + 1}", source(cell).splitlines()
        # The table of the profiles is data and must stand in one piece.
        limit = MAX_LINES if "wb.parameters(" in source(cell) else max_lines
        if len(lines) > limit:
            found.append(f"{where}: {len(lines)} lines, more than {limit}")
        if (width := max(map(len, lines), default=0)) > max_width:
            found.append(f"{where}: a line of {width} characters, more than {max_width}")
        if words_said(cells[i - 1] if i else {}) < 4:
            found.append(f"{where}: no sentence of purpose before it")
        found += [
            f"{where}: {why}"
            for rule, why in FORBIDDEN.items()
            if re.search(rule, source(cell), flags=re.M)
        ]
        for output in cell["outputs"]:
            if output.get("name") == "stderr":
                found.append(f"{where}: stderr in its output")
            if output["output_type"] == "error":
                found.append(f"{where}: ended with {output['ename']}")
    return found


def words_said(cell: dict, before_heading: bool = False) -> int:
    """Words of a markdown cell without headings and tags; 0 for any other cell."""
    if cell.get("cell_type") != "markdown":
        return 0
    text = re.split(r"^#", source(cell), flags=re.M)[0] if before_heading else source(cell)
    return len(re.sub(r"^#.*$|<[^>]+>", "", text, flags=re.M).split())


def figures(cells: list[dict], told: bool = True) -> list[str]:
    """Every committed figure has alt text, and the reader is told what it shows.

    told: in a cell that says "What you should see"; else in any sentence after the figure.
    """
    found = []
    for i, cell in enumerate(cells):
        if cell["cell_type"] == "markdown":
            found += [
                f"cell {i + 1}: image without alt text"
                for alt in re.findall(r"!\[(.*?)\]\(", source(cell))
                if len(alt.split()) < 2
            ]
            continue
        shown = [o for o in cell["outputs"] if {"image/png", "image/jpeg"} & set(o.get("data", {}))]
        for output in shown:
            meta = output.get("metadata", {})
            alts = [m.get("alt", "") for m in meta.values() if isinstance(m, dict)]
            if not any(len(a.split()) >= 3 for a in alts):
                found.append(
                    f"cell {i + 1}: figure without alt text; use workbook.show(fig, alt=...)"
                )
        after = cells[i + 1] if i + 1 < len(cells) else {}
        if shown and told and "you should see" not in "".join(after.get("source", "")).lower():
            found.append(f"cell {i + 1}: the cell after a figure says 'What you should see'")
        if shown and not told and words_said(after, before_heading=True) < 6:
            found.append(f"cell {i + 1}: no sentence after the figure says what it shows")
    return found


def parameters(path: Path, cells: list[dict]) -> list[str]:
    """One parameters cell that papermill can inspect: typed, with help, the common names in it."""
    from papermill import inspect_notebook

    marked = [c for c in cells if "parameters" in tags(c)]
    if len(marked) != 1:
        return [f"needs exactly one cell tagged 'parameters', has {len(marked)}"]
    rows = [r for r in source(marked[0]).splitlines() if r.strip() and not r.startswith("#")]
    seen = inspect_notebook(str(path))
    found = [
        f"parameters cell: one literal per line, `name: type = value  # help`: {r!r}"
        for r in rows
        if not re.match(r"\w+: [^=]+ = [^=]+  # \S", r)
    ]
    if len(seen) != len(rows):
        found.append(f"papermill sees {len(seen)} of {len(rows)} parameters")
    found += [f"parameter {n} has no help" for n, v in seen.items() if not v["help"].strip()]
    found += [f"parameter {n} is missing" for n in COMMON if n not in seen]
    own = [n for n in seen if n not in COMMON]
    if len(own) > MAX_OWN_PARAMETERS:
        found.append(f"{len(own)} own parameters, more than {MAX_OWN_PARAMETERS}")
    return found


def sizes(cells: list[dict]) -> list[str]:
    """At least 6 figures in an executed notebook, at least 3 exercises."""
    code = [c for c in cells if c["cell_type"] == "code"]
    shown = sum(any("image/png" in o.get("data", {}) for o in c["outputs"]) for c in code)
    executed = any(c.get("execution_count") for c in code)
    exercises = sum("exercise" in tags(c) for c in cells)
    found = []
    if executed and shown < 6:
        found.append(f"{shown} figures, fewer than 6")
    if exercises < 3:
        found.append(f"{exercises} cells tagged 'exercise', fewer than 3")
    return found


def table(path: Path) -> list[str]:
    """Every own parameter has a row in the table of presets, and None in the parameters cell."""
    from rlgenkit.workbook.parameters import declared

    try:
        found = declared(path)
    except ValueError as error:
        return [str(error)]
    rows = next(iter(found.presets.values()), {})
    own = [name for name in found.types if name not in COMMON]
    return [
        f"parameter {name} has no row in the table of presets" for name in own if name not in rows
    ] + [
        f"parameter {name} must be None: its values stand in the table"
        for name in own
        if name in rows and found.defaults[name] is not None
    ]


def opening(cells: list[dict]) -> list[str]:
    """Learning goals as a list before the first section; at least one diagram with alt text."""
    text, found = prose(cells), []
    first = re.split(r"^## ", text, flags=re.M)[0]
    goals = first.lower().partition("learning goals")[2]
    if len(re.findall(r"^\s*(?:[-*]|\d\.)\s+\S", goals, flags=re.M)) < 2:
        found.append("no **Learning goals** with a list of at least two before the first section")
    if re.search(r"<svg\b", re.sub(r'"[^"]*"', "", text)):
        found.append(
            'JupyterLab leaves out <svg>: write <img alt="..." src="data:image/svg+xml;utf8,...">'
        )
    diagrams = re.findall(r'<img\s+alt="([^"]*)"\s+src="data:image/svg\+xml([^"]*)"', text)
    if not diagrams:
        found.append("no diagram: an <img> with alt and an SVG as its src")
    found += [f"diagram without alt text: {alt!r}" for alt, _ in diagrams if len(alt.split()) < 5]
    return found + [
        "a diagram with # or a blank line in its SVG"
        for _, svg in diagrams
        if "#" in svg or "\n\n" in svg
    ]


def links(cells: list[dict]) -> list[str]:
    """A web link at least (to the paper), other notebooks as links, no relative link into nowhere."""
    text = re.sub(r'"data:[^"]*"', "", prose(cells))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    found = (
        []
        if any(t.startswith("https://") for t in targets)
        else ["no web link, not even to the paper"]
    )
    for target in targets:
        local = target.split("#")[0]
        if local and not re.match(r"\w+:", local) and not (NOTEBOOKS / local).exists():
            found.append(f"the link to {target} leads nowhere")
    loose = re.findall(r"`(\d\d_[a-z]\w+)`", re.sub(r"\[[^\]]*\]\([^)]*\)", "", text))
    return found + [f"notebook {name} is named without a link" for name in sorted(set(loose))]


def exercises(cells: list[dict]) -> list[str]:
    """At least three stubs and exercises with a check, and no answer in the notebook."""
    code = [(i, c, source(c)) for i, c in enumerate(cells, 1) if c["cell_type"] == "code"]
    whole = "\n".join(text for _, _, text in code)
    found = [
        f"cell {i}: holds {what}"
        for i, c in enumerate(cells, 1)
        for rule, what in ANSWERS.items()
        if re.search(rule, source(c))
    ]
    found += [
        f"cell {i}: a cell tagged 'solution'; answers stand in notebooks/checks"
        for i, c, _ in code
        if "solution" in tags(c)
    ]
    checked = re.findall(r"\bwb\.check\([^,]+,\s*(\w+)\)", whole)
    if len(set(checked)) < NEW_EXERCISES:
        found.append(f"{len(set(checked))} functions with a check, fewer than {NEW_EXERCISES}")
    for i, cell, text in code:
        names = re.findall(r"^def (\w+)", text, flags=re.M) if "stub" in tags(cell) else []
        found += [f"cell {i}: stub {name} has no wb.check" for name in names if name not in checked]
        if "stub" in tags(cell) and text.count('"""') < 2 * len(names):
            found.append(f"cell {i}: a stub needs a docstring, it is all that a student sees")
    return found
