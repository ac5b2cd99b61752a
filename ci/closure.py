"""Which files of the package a notebook reaches, and one key over all that decides its outcome.

`python -m ci.closure NB` prints the files. Imports are read from the syntax trees, never executed:
those of the notebook's code cells, then those of the files found, imports inside functions too.
Through a lazy room only the submodules count whose names are used.
"""

import ast
import hashlib
import json
import platform
import re
import sys
from functools import lru_cache
from pathlib import Path

from rlgenkit.commands.committed import code_form
from rlgenkit.commands.places import ROOT, find, read

NAME = re.compile(r"rlgenkit(\.\w+)*")
# What starts a notebook and what blocks its network; the rest of `commands` decides no number.
RUNNER = ("rlgenkit/commands/execute.py", "rlgenkit/commands/run.py", "ci/offline/sitecustomize.py")
PINS = ("data/manifest.json", "requirements.lock")


@lru_cache(maxsize=None)
def module_file(name: str) -> Path | None:
    """The file of the module with this dotted name, or None where there is no such module."""
    base = ROOT.joinpath(*name.split("."))
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


@lru_cache(maxsize=None)
def tree_of(path: Path) -> ast.Module:
    """Syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=None)
def lazy_names(package: str) -> dict[str, str]:
    """name -> submodule of a lazy room, read from its `__init__`; empty for any other module."""
    path = module_file(package)
    for node in ast.walk(tree_of(path)) if path and path.stem == "__init__" else ():
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "lazy":
            table = ast.literal_eval(node.args[1])
            return {name: module for module, line in table.items() for name in line.split()}
    return {}


def resolve(name: str) -> set[str]:
    """Modules that importing or using the dotted `name` loads, outermost first.

    "rlgenkit.rewards.spearman" is an attribute of a lazy room: its submodule comes instead. A lazy
    room alone loads nothing; followed by "*" it loads everything.
    """
    pieces, found = name.split("."), set()
    for i in range(1, len(pieces) + 1):
        module = ".".join(pieces[:i])
        if module_file(module) is None:
            break
        found.add(module)
        table, rest = lazy_names(module), pieces[i:]
        if table and rest:
            wanted = table.values() if rest[0] == "*" else {table.get(rest[0])} - {None}
            found |= {f"{module}.{submodule}" for submodule in wanted}
    return {m for m in found if not lazy_names(m)}


def dotted(node) -> str:
    """ "a.b.c" for names and chains of attributes, else ""."""
    if isinstance(node, ast.Name):
        return node.id
    stem = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return stem and f"{stem}.{node.attr}"


def imports(tree: ast.AST, package: list[str]) -> tuple[set[str], dict[str, str]]:
    """Dotted names that a tree imports, and alias -> dotted name for what it binds.

    package: where relative imports start, e.g. ["rlgenkit", "models"].
    """
    names, bound = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for a in node.names:
                names.add(a.name)
                bound[a.asname or a.name.split(".")[0]] = (
                    a.name if a.asname else a.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *filter(None, [node.module])])
            for a in node.names:
                names.add(f"{stem}.{a.name}")
                bound[a.asname or a.name] = f"{stem}.{a.name}"
        elif isinstance(node, ast.Constant) and NAME.fullmatch(str(node.value)):
            names.add(node.value)  # import_module("rlgenkit.x"), python -m rlgenkit.x
    own = {alias: name for alias, name in bound.items() if NAME.fullmatch(name)}
    return {n for n in names if NAME.match(n)}, own


SCOPES = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.Lambda,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)


def local_names(scope: ast.AST) -> set[str]:
    """Names that a function, lambda or comprehension binds for itself."""
    names, todo = set(), list(ast.iter_child_nodes(scope))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        todo += [] if isinstance(node, SCOPES) else ast.iter_child_nodes(node)
    return names


def used(node: ast.AST, bound: dict[str, str]) -> set[str]:
    """Dotted names behind the aliases: `R.x` is "rlgenkit.rewards.x"; a room that is handed on
    whole, as in `vars(R)`, is "rlgenkit.rewards.*"."""
    if isinstance(node, SCOPES):
        bound = {alias: name for alias, name in bound.items() if alias not in local_names(node)}
    head, _, rest = dotted(node).partition(".")
    if head:
        return {f"{bound[head]}.{rest or '*'}"} if head in bound else set()
    return set().union(*(used(child, bound) for child in ast.iter_child_nodes(node)))


def modules(tree: ast.AST, package: list[str]) -> set[str]:
    """Modules of rlgenkit that a tree loads itself."""
    names, bound = imports(tree, package)
    return set().union(*map(resolve, names | used(tree, bound)))


@lru_cache(maxsize=None)
def loads(module: str) -> frozenset[str]:
    """Modules of rlgenkit that the file of `module` loads itself."""
    path = module_file(module)
    pieces = module.split(".")
    return frozenset(modules(tree_of(path), pieces if path.stem == "__init__" else pieces[:-1]))


def cell_tree(notebook: dict) -> ast.Module:
    """The code cells as one tree; lines with magics are left out."""
    body = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            lines = "".join(cell["source"]).splitlines()
            text = "\n".join("" if r.lstrip()[:1] in ("%", "!") else r for r in lines)
            body += ast.parse(text).body
    return ast.Module(body, [])


def closure(notebook: Path) -> list[Path]:
    """Files of rlgenkit that the notebook's code reaches, sorted."""
    todo, seen = modules(cell_tree(read(notebook)), []), set()
    while todo:
        module = todo.pop()
        seen.add(module)
        todo |= loads(module) - seen
    return sorted(module_file(m) for m in seen)


def inputs(notebook: Path) -> list[Path]:
    """The closure and what decides every run: workbook, runner, pins, claims and checks."""
    slug = re.sub(r"^\d*_", "", notebook.stem)
    claims = notebook.parent.joinpath("claims").glob(f"*{notebook.stem}.toml")
    checks = notebook.parent / "checks" / f"{slug}.py"
    workbook = [p for p in (ROOT / "rlgenkit" / "workbook").iterdir() if p.is_file()]
    fixed = [ROOT / name for name in RUNNER + PINS]
    found = {*closure(notebook), *claims, checks, *workbook, *fixed}
    return sorted(p for p in found if p.is_file())


def key(notebook: Path, *parts: str, machine: bool = True) -> str:
    """16 hexadecimal digits over code cells, `inputs` and `parts`: equal keys, equal outcomes.

    Layout and comments of the cells do not count. machine=False leaves out the version of Python,
    for records that are committed.
    """
    cells = [code_form(c) for c in read(notebook)["cells"] if c["cell_type"] == "code"]
    total = hashlib.sha256(json.dumps([cells, parts]).encode())
    total.update(platform.python_version().encode() if machine else b"")
    for path in inputs(notebook):
        name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
        total.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(argument, key(find(argument)))
        print(*[p.relative_to(ROOT) for p in closure(find(argument))], sep="\n")
