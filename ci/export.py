"""Teaching copies made from the one committed notebook: student, solutions, slides.

Cell tags: `stub` (the method's core: whole in the notebook, without its body in the student copy),
`exercise` (a function that only the reader writes, a question), `check` (`wb.check` of a stub or an
exercise, kept in every copy), `solution` (of notebooks that still hold their answers).
"""

import argparse
import ast
import copy
import inspect
import re
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from ci.lint import source, tags
from rlgenkit.commands.committed import normalize, text_of
from rlgenkit.commands.pages import slides
from rlgenkit.commands.places import BUILD, ROOT, ended, find, read, series

FOLDED_SOLUTION = re.compile(r"<details>\s*<summary>\s*solution\b.*?</details>\s*", re.S | re.I)


def student(nb: dict) -> dict:
    """Without answers and outputs: solutions go, the bodies of stubs too; questions and checks stay."""
    out = copy.deepcopy(nb)
    cells, old = [], out["cells"]
    for cell, after in zip(old, [*old[1:], {}]):
        if "solution" in tags(cell):
            continue
        if cell["cell_type"] == "markdown":
            cell["source"] = without_solutions(source(cell), "solution" in tags(after))
            if not cell["source"].strip():
                continue
        else:
            cell["outputs"], cell["execution_count"] = [], None
            if "stub" in tags(cell):
                cell["source"] = without_bodies(source(cell))
        cells.append(cell)
    out["cells"] = cells
    out["metadata"].pop("rlgenkit", None)
    return out


def answers_aside(nb: dict, stem: str) -> dict[str, str]:
    """Move the cells that hold references and answers to files that the cell then runs; changes `nb`.

    Returns file name -> code. Notebooks whose answers stand in notebooks/checks have none.
    """
    files = {}
    for i, cell in enumerate(nb["cells"]):
        code = source(cell)
        if "check" in tags(cell) or ("exercise" in tags(cell) and "wb.predict(" in code):
            name = f"answers/{stem[:2]}_{i}.py"
            files[name] = code + "\n"
            cell["source"] = f"%run -i {name}"
    return files


def without_solutions(text: str, before_solution: bool) -> str:
    """Markdown without folded solutions, and without the paragraph that announces a solution where
    its cell came next; what it proposes beyond ("Then go further ...") stays."""
    text = FOLDED_SOLUTION.sub("", text)
    if not before_solution:
        return text
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.lstrip("*_ ").startswith(("The solution", "Solution")):
            paragraph = "".join(paragraph.partition("Then go further")[1:])
        kept += [paragraph] if paragraph.strip() else []
    return "\n\n".join(kept)


def without_bodies(code: str) -> str:
    """Code with every function reduced to its first line, its docstring and NotImplementedError."""
    lines = code.splitlines()
    functions = [n for n in ast.parse(code).body if isinstance(n, ast.FunctionDef)]
    for function in reversed(functions):  # from the end, so that line numbers stay right
        first, last = function.body[0], function.end_lineno
        while last < len(lines) and re.match(r"\s+#", lines[last]):
            last += 1  # comments behind the last statement
        if ast.get_docstring(function) is not None:
            start, head = first.end_lineno, []
        else:
            start, head = first.lineno - 1, [lines[first.lineno - 1][: first.col_offset].rstrip()]
        lines[start:last] = [*filter(None, head), "    raise NotImplementedError"]
    return "\n".join(lines)


def solutions(nb: dict, answers: Mapping[str, str] | None = None) -> dict:
    """Everything, each solution under a heading of its own so that nobody reads it by accident.

    answers: number of an exercise or a question -> what to show below the cell that asks for it.
    """
    out = copy.deepcopy(nb)
    cells = []
    for cell in out["cells"]:
        if "solution" in tags(cell) and not (cells and "solution" in tags(cells[-1])):
            cells.append(note(cell, "sol", "**Solution**"))
        cells.append(cell)
        if cell["cell_type"] == "code":
            found = [answers[n] for n in asked(source(cell)) if n in (answers or {})]
            cells += [note(cell, "sol", "\n\n".join(found))] if found else []
    out["cells"] = cells
    return out


def note(cell: dict, word: str, text: str) -> dict:
    """A markdown cell whose id follows from that of `cell`."""
    return {
        "cell_type": "markdown",
        "id": f"{cell['id'][:60]}-{word}",
        "metadata": {},
        "source": text,
    }


def asked(code: str) -> list[str]:
    """Numbers of the exercises and questions that a cell asks for: wb.check("01.2", ...)."""
    return re.findall(r"wb\.(?:check|predict)\(\s*[\"']([^\"']+)[\"']\s*[,)]", code)


def answers_of(stem: str) -> dict[str, str]:
    """Number -> answer as markdown, from the checks file of a notebook; empty where it has none."""
    from rlgenkit.workbook.exercises import checks_file, load_checks

    if not checks_file(stem).is_file():
        return {}
    found, lines = load_checks(stem), {}
    for number, exercise in found["EXERCISES"].items():
        code = textwrap.dedent(inspect.getsource(exercise.reference)).strip()
        lines[number] = f"**Solution of {number}**\n```python\n{code}\n```"
    for number, quiz in found["QUIZZES"].items():
        lines[number] = f"**Answer of {number}**: {quiz.options[quiz.answer]}. {quiz.why}"
    return lines


def write_copies(notebooks: list[Path], kind: str) -> list[Path]:
    """Write build/KIND/NN_slug.ipynb (or .slides.html); returns the paths."""
    from rlgenkit.workbook.exercises import checks_file

    folder = BUILD / kind
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for path in notebooks:
        nb, target = read(path), folder / path.name
        if kind == "slides":
            target = target.with_suffix(".slides.html")
            text = slides(nb)
        else:
            changed = student(nb) if kind == "student" else solutions(nb, answers_of(path.stem))
            if kind == "student" and not checks_file(path.stem).is_file():
                for name, code in answers_aside(changed, path.stem).items():
                    (folder / name).parent.mkdir(exist_ok=True)
                    (folder / name).write_text(code, encoding="utf-8")
            text = text_of(normalize(changed))
        target.write_text(text, encoding="utf-8")
        made.append(target)
    return made


def main(argv: list[str]) -> int:
    """Write the copies of the named notebooks, or of all."""
    ask = argparse.ArgumentParser(prog="rlgenkit", description=__doc__.splitlines()[0])
    ask.add_argument("kind", choices=("student", "solutions", "slides"))
    ask.add_argument("notebooks", nargs="*", help="01, 01_ddpo or a path; all without one")
    args = ask.parse_args(argv)
    for path in write_copies([find(n) for n in args.notebooks] or series(), args.kind):
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(ended(main, sys.argv[1:]))
