"""What a phase depends on: one hash over the code that it runs and the values that it reaches.

A phase is a function (`Run.result`) or a loop (`Run.steps`).  Hashed are its bytecode (comments and
layout do not count), the functions and classes of the notebook and of rlgenkit that it names, and
the values of the globals, arguments and closures that it reads: numbers, arrays, weights, states of
generators.  Of a module only the names used count, of the parameters only the ones read.  Libraries
count by version.  A value that cannot be hashed makes the phase `Unhashable`: it is then computed
anew, never shown stale.
"""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import importlib.util
import inspect
import itertools
import json
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from types import CellType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .checkpoint import GENERATORS, raw, snapshot

MAX_NODES = 300_000  # more objects than this are no parameters of a phase but somebody's library
PLAIN = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    type(Ellipsis),
    range,
    slice,
    enum.Enum,
    PurePath,
    re.Pattern,
    torch.dtype,
    torch.device,
    torch.Size,
    np.dtype,
    np.generic,
)
SKIPPED_IN_CLASSES = set(
    "__module__ __doc__ __dict__ __weakref__ __annotations__ __dataclass_fields__ __qualname__ "
    "__dataclass_params__ __match_args__ __firstlineno__ __static_attributes__ __hash__".split()
)
# Names by which code gets at what it does not name.
HIDDEN = set(
    "open read_text read_bytes load load_file loadtxt genfromtxt fromfile read_csv imread environ "
    "getenv eval exec globals vars import_module __import__ __globals__".split()
)
LIBRARY_FOLDERS = tuple({sysconfig.get_path(k) for k in ("stdlib", "purelib", "platlib")})


class Unhashable(TypeError):
    """A value that a phase reaches and that has no content to hash; the message names it."""


class Reach:
    """Feeds one hash with everything reached from what it is given.

    opaque: types that are passed over (the run record itself).  logged: keys of the phases before,
    which count where code reads their curves.  `generators` lists the random generators met on the
    way, in an order that equal code and values repeat.
    """

    def __init__(self, opaque: tuple[type, ...] = (), logged: Any = None) -> None:
        self.total = hashlib.blake2b(digest_size=16)
        self.opaque, self.logged = opaque, logged
        self.generators: list[Any] = []
        self.trainable: list[Tensor] = []  # weights met on the way that require a gradient
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # an id is only good while its object lives

    def digest(self) -> str:
        """Hexadecimal hash of everything fed so far."""
        return self.total.hexdigest()

    def feed(self, value: Any, where: str) -> None:
        """Feed one value; `where` names it in the sentence of Unhashable."""
        if isinstance(value, self.opaque):
            return
        if isinstance(value, PLAIN):
            self._note(type(value).__name__, repr(value))
            return
        if id(value) in self._seen:
            self._note("again", str(self._seen[id(value)]))
            return
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        if len(self._seen) > MAX_NODES:
            raise Unhashable(f"`{where}` reaches more than {MAX_NODES} objects")
        if not (self._feed_data(value, where) or self._feed_code(value, where)):
            self._feed_object(value, where)

    def frame(self, frame: FrameType) -> None:
        """Feed the code of a running loop with the arguments and globals that it reads."""
        code = frame.f_code
        self.code(code, frame.f_globals, frame.f_lasti)
        given = inspect.getargs(code)
        for name in [*given.args, given.varargs, given.varkw, *code.co_freevars]:
            if name in frame.f_locals and frame.f_locals is not frame.f_globals:
                self._note("argument", name)
                self.feed(frame.f_locals[name], name)

    def code(
        self, code: CodeType, space: Mapping[str, Any], start: int = -1, doc: str = ""
    ) -> None:
        """Feed a code object and what it reads from the globals `space`.

        start: offset from which a module's own statement runs; what it assigns before reading is
        its result, not what it depends on.
        """
        names, imports = _names(code)
        hidden = sorted(HIDDEN.intersection(code.co_names).difference(space))
        hidden += ["sys.modules"] * any("modules" in chain for chain in names.get("sys", ()))
        if hidden and not str(space.get("__name__")).startswith("rlgenkit."):
            raise Unhashable(f"it reads through `{hidden[0]}` what may change unseen")
        read = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        self.total.update(code.co_code + repr(read).encode())
        inner = [c for c in code.co_consts if isinstance(c, CodeType)]
        for constant in code.co_consts:
            if constant not in inner and not (doc and constant == doc):
                plain = sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant
                self._note("constant", repr(plain))
        if self.logged and {"curves", "metrics"} & set(code.co_names):
            self._note("logged", repr(sorted(self.logged.items())))
        written = _assigned_first(code, start) if start >= 0 else ()
        for name, chains in names.items():
            if name not in written:
                self._global(name, chains, space)
        for module, wanted in imports:
            self._import(module, wanted, space)
        for part in inner:
            self.code(part, space)

    def _note(self, kind: str, text: str) -> None:
        self.total.update(f"{kind} {len(text)} {text}\n".encode())

    def _global(self, name: str, chains: Iterable[tuple[str, ...]], space: Mapping) -> None:
        if name not in space:
            self._note("free", name)
            return
        self._note("global", name)
        for chain in sorted(chains):
            self._attribute(space[name], chain, name)

    def _attribute(self, value: Any, chain: tuple[str, ...], where: str) -> None:
        """Feed `value.a.b`, following names through own modules and the run's parameters only."""
        while chain and isinstance(value, ModuleType) and own(value):
            self._note("in", value.__name__)
            where, value, chain = f"{where}.{chain[0]}", getattr(value, chain[0], None), chain[1:]
        if chain and hasattr(type(value), "reached"):
            self._note("parameter", chain[0])
            self.feed(value.reached(chain[0]), f"{where}.{chain[0]}")
        else:
            self.feed(value, where)

    def _import(self, module: str, names: tuple[str, ...], space: Mapping) -> None:
        """An import inside a function: its names count when the module is one of our own."""
        try:
            full = importlib.util.resolve_name(module, space.get("__package__") or "")
        except ImportError:
            return
        found = sys.modules.get(full)
        if found is None and full.partition(".")[0] == "rlgenkit":
            found = importlib.import_module(full)
        if found is None or not own(found):
            self._note("library", full)
            return
        for name in names:
            self._attribute(found, (name,), full)
        if not names:
            self.feed(found, full)

    def _feed_data(self, value: Any, where: str) -> bool:
        """Containers, arrays, generators, modules of weights; False for anything else."""
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray) and value.dtype != object:
            self._note("array", f"{value.dtype} {value.shape}")
            self.total.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, tuple(GENERATORS)):
            self.generators.append(value)
            self.feed(snapshot(value), where)
        elif isinstance(value, (list, tuple, np.ndarray)):
            self._note(type(value).__name__, str(len(value)))
            for i, item in enumerate(value):
                self.feed(item, f"{where}[{i}]")
        elif isinstance(value, Mapping):
            self._note(type(value).__name__, str(len(value)))
            for key, item in value.items():
                self.feed(key, where)
                self.feed(item, f"{where}[{key!r}]")
        elif isinstance(value, (set, frozenset)):
            self.feed(sorted(value, key=repr), where)
        elif isinstance(value, nn.Module):
            self._module(value, where)
        else:
            return False
        return True

    def _tensor(self, value: Tensor) -> None:
        self._note("tensor", f"{value.dtype} {tuple(value.shape)} {value.requires_grad}")
        if value.requires_grad and value.is_leaf:
            self.trainable.append(value)
        self.total.update(raw(value))

    def _module(self, module: nn.Module, where: str) -> None:
        """Class, weights and plain settings (modes, scales) of a network and all its parts."""
        for name, part in module.named_modules():
            self._note("part", f"{name} {type(part).__module__}.{type(part).__qualname__}")
            if own(type(part)):
                self.feed(type(part), where)
            plain = {k: v for k, v in vars(part).items() if isinstance(v, (bool, int, float, str))}
            plain.pop("_output_capturing_hooks_installed", None)
            self._note("settings", repr(sorted(plain.items())))
            if own(type(part)):  # lists, tables and tensors that are no weights
                rest = [k for k in vars(part) if k[0] != "_" and k not in plain]
                for key in sorted(rest):
                    self.feed(getattr(part, key), f"{where}.{key}")
            hooks = [k for k in vars(part) if re.search("ward_.*hooks$", k)]
            kept = [[h for h in getattr(part, k).values() if not _records(h)] for k in hooks]
            self.feed(kept, f"{where}'s hook")
        weights = module.state_dict(keep_vars=True).items()
        for name, tensor in [*weights, *module.named_buffers()]:  # also those not in state_dict
            self._note("weight", name)
            if isinstance(tensor, Tensor):
                self._tensor(tensor)

    def _feed_code(self, value: Any, where: str) -> bool:
        """Functions, methods, classes, modules; False for anything else."""
        if isinstance(value, functools.partial):
            self.feed([value.func, value.args, value.keywords], where)
        elif isinstance(value, MethodType):
            self.feed([value.__func__, value.__self__], where)
        elif isinstance(value, FunctionType) and own(value):
            self.code(value.__code__, value.__globals__, doc=value.__doc__ or "")
            self.feed([value.__defaults__, value.__kwdefaults__], where)
            for cell in filter(CellType().__ne__, value.__closure__ or ()):
                self.feed(cell.cell_contents, where)  # empty ones are assigned later
        elif hasattr(value, "__wrapped__"):  # a library's decorator around a function
            self.feed(value.__wrapped__, where)
        elif isinstance(value, type):
            self._class(value, where)
        elif isinstance(value, ModuleType):
            self._note("module", value.__name__)
            for path in _own_files(value):
                self.total.update(path.read_bytes())
        elif callable(value) and hasattr(value, "__qualname__"):
            module = getattr(value, "__module__", None)
            self._note("library", f"{module}.{value.__qualname__}")
        else:
            return False
        return True

    def _class(self, kind: type, where: str) -> None:
        self._note("class", f"{kind.__module__}.{kind.__qualname__}")
        if not own(kind):
            return
        for base in kind.__bases__:
            self.feed(base, where)
        for name, member in sorted(vars(kind).items()):
            if (
                name in SKIPPED_IN_CLASSES
                or name.startswith("_abc_")
                or inspect.isdatadescriptor(member)
                and not isinstance(member, property)
            ):
                continue
            self._note("member", name)
            if isinstance(member, property):
                member = [member.fget, member.fset]
            elif isinstance(member, (staticmethod, classmethod)):
                member = member.__func__
            elif isinstance(member, functools.cached_property):
                member = member.func
            self.feed(member, f"{where}.{name}")

    def _feed_object(self, value: Any, where: str) -> None:
        """An instance: its class and its fields, or what its library says of its state."""
        kind = type(value)
        self.feed(kind, where)
        if hasattr(kind, "reached"):
            self.feed(value.reached(), where)
        elif hasattr(value, "backend_tokenizer"):  # its other fields change when it is called
            rules = json.loads(value.backend_tokenizer.to_str())
            self._note(
                "tokenizer",
                repr({k: v for k, v in rules.items() if k not in ("truncation", "padding")}),
            )
        elif hasattr(value, "save_config") and hasattr(value, "config"):  # schedulers, processors
            self.feed({k: v for k, v in value.config.items() if k[0] != "_"}, where)
        elif callable(getattr(value, "state_dict", None)):  # optimizers
            self.feed(value.state_dict(), where)
        elif callable(getattr(value, "tobytes", None)):  # pictures
            self._note("bytes", f"{getattr(value, 'size', '')} {getattr(value, 'mode', '')}")
            self.total.update(value.tobytes())
        else:
            self._fields(value, where)

    def _fields(self, value: Any, where: str) -> None:
        slots = [
            name
            for base in type(value).__mro__
            for name in np.atleast_1d(getattr(base, "__slots__", ())).tolist()
        ]
        if not hasattr(value, "__dict__") and not slots:
            raise Unhashable(f"`{where}` is a {type(value).__module__}.{type(value).__qualname__}")
        fields = {
            **{k: getattr(value, k) for k in slots if hasattr(value, k)},
            **getattr(value, "__dict__", {}),
        }
        # What is remembered on the way (compare=False) differs when an earlier phase is restored.
        declared = getattr(value, "__dataclass_fields__", {})
        for name, item in fields.items():
            if name not in declared or declared[name].compare:
                self._note("field", name)
                self.feed(item, f"{where}.{name}")


def _records(hook: Any) -> bool:
    """Whether transformers put this hook there, which it does at a model's first call that asks for
    hidden states: it keeps what passes and changes nothing."""
    return getattr(hook, "__module__", None) == "transformers.utils.output_capturing"


@functools.lru_cache(maxsize=None)
def _names(code: CodeType) -> tuple[dict[str, set[tuple[str, ...]]], list[tuple[str, tuple]]]:
    """(global name -> chains of attributes read after it, (module, names) of each import)."""
    names, imports = {}, []
    rows = [row for row in dis.get_instructions(code) if row.opname not in ("CACHE", "PUSH_NULL")]
    for i, row in enumerate(rows):
        if row.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            read = itertools.takewhile(
                lambda r: r.opname in ("LOAD_ATTR", "LOAD_METHOD"), rows[i + 1 : i + 5]
            )
            names.setdefault(row.argval, set()).add(tuple(r.argval for r in read))
        elif row.opname == "IMPORT_NAME":
            level, wanted = rows[i - 2].argval, rows[i - 1].argval
            imports.append(("." * level + row.argval, tuple(wanted or ())))
    return names, imports


def _assigned_first(code: CodeType, start: int) -> set[str]:
    """Names that a statement running from offset `start` on assigns before it reads them."""
    first: dict[str, str] = {}
    for row in dis.get_instructions(code):
        if row.offset > start and row.opname.endswith(("_NAME", "_GLOBAL")):
            first.setdefault(row.argval, row.opname)
    return {name for name, opname in first.items() if opname.startswith("STORE")}


def own(thing: Any) -> bool:
    """Whether a module, class or function is the notebook's, rlgenkit's or the reader's own."""
    name = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None)
    return _own_module(name or "builtins")


@functools.lru_cache(maxsize=None)
def _own_module(name: str) -> bool:
    if name in ("__main__", "__mp_main__") or name.partition(".")[0] == "rlgenkit":
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    return bool(file) and not file.startswith(LIBRARY_FOLDERS)


def _own_files(module: ModuleType) -> list[Path]:
    """The file of a module of our own; of a package all files, since any of them may be used."""
    if not own(module) or not module.__file__:
        return []
    file = Path(module.__file__)
    return sorted(file.parent.glob("*.py")) if hasattr(module, "__path__") else [file]


def loop_frames(frame: FrameType) -> Iterator[FrameType]:
    """The frame that runs a loop over `steps`; of a generator function its caller's too."""
    while frame is not None:
        yield frame
        if not frame.f_code.co_flags & inspect.CO_GENERATOR:
            return
        frame = frame.f_back
