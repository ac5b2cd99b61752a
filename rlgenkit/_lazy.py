"""Rooms that load a submodule only when one of its names is used (PEP 562)."""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec


def lazy(package: str, names: dict[str, str]) -> tuple[Callable, Callable, list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of `package`.

    names: submodule -> its public names, separated by blanks; "" shows the submodule itself.
    ci/closure.py reads the table as a literal, so it must be one. No name may be that of its
    submodule: importing the submodule would hide it.
    """
    home = {name: module for module, line in names.items() for name in line.split()}
    public = sorted([*home, *(module for module, line in names.items() if not line)])

    def get(name: str):
        if name in home:
            value = getattr(import_module(f"{package}.{home[name]}"), name)
        elif name[:1] != "_" and find_spec(f"{package}.{name}"):
            return import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)  # the next use finds it at once
        return value

    return get, lambda: public, public
