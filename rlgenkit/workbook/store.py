"""Where the phases of a run are kept: one file a phase and key, and the record of a study."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from . import checkpoint
from .values import ParameterError
from .provenance import ROOT

KEPT_VERSIONS = 6  # of one phase: values that a reader goes back and forth between
SHARED = "RLGENKIT_PHASES"  # folder of phases that the processes of one study share
REDRAW = "RLGENKIT_REDRAW"  # folder of a study's record, to draw its figures without training


class Store:
    """Files KIND/NAME.KEY.safetensors below a folder; processes that share it wait for each other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, kind: str, name: str, key: str) -> Path:
        """The file of one phase; names are words joined by /."""
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name) or ".." in name:
            raise ValueError(f"name {name!r} must be words of letters, digits, _ . - joined by /")
        return self.folder / kind / f"{name}.{key}.safetensors"

    def load(self, kind: str, name: str, key: str) -> dict[str, Any] | None:
        """What was saved under this key; None when nothing was, when the file is damaged, or when
        it drew from a global generator that now begins elsewhere."""
        if not key:
            return None
        path, odd = self.path(kind, name, key), ""
        try:
            stored = checkpoint.load(path)
            if all(not x or x[0] == now[0] for x, now in zip(stored["rng"], checkpoint.begun())):
                return stored
            odd = "the global generators begin elsewhere"
        except checkpoint.Damaged as error:
            odd = error
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            if self._versions(path):
                odd = "code or values changed since it was saved"
        if odd:
            print(f"{name}: {odd}, starting it again")
        return None

    def save(self, kind: str, name: str, key: str, content: dict[str, Any]) -> None:
        """Save under this key, "" for nothing to be saved; of the older versions a few are kept."""
        path = self.path(kind, name, key)
        if key:
            checkpoint.save(path, content)
        for old in self._versions(path)[KEPT_VERSIONS:]:
            old.unlink(missing_ok=True)

    @contextmanager
    def lock(self, kind: str, name: str, key: str) -> Iterator[None]:
        """Hold one phase, so that of several processes one computes it and the others read it."""
        path = self.path(kind, name, "lock").with_suffix("")
        with _file_lock(path) if key else nullcontext():
            yield

    def _versions(self, path: Path) -> list[Path]:
        """All versions of the phase of `path`, newest first."""
        stem = re.escape(path.name.rsplit(".", 2)[0])
        rule = re.compile(stem + r"\.[0-9a-f]{32}\.safetensors")
        folder = path.parent
        found = [p for p in folder.iterdir() if rule.fullmatch(p.name)] if folder.is_dir() else []
        return sorted(found, key=lambda p: -p.stat().st_mtime_ns)


def _file_lock(path: Path, seconds: float = -1) -> Any:
    """A lock between processes that this process may take again, taken within `seconds`."""
    from filelock import FileLock, Timeout

    lock = FileLock(str(path), thread_local=False, is_singleton=True)
    with checkpoint.told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return lock.acquire(timeout=seconds)
        except Timeout:
            raise ParameterError(
                f"another process works in the run folder {path.parent.name}: wait until it"
                " has ended, stop it, or name another out_dir"
            ) from None


def hold(folder: Path) -> Any:
    """Lock a run folder for as long as this process lives; one sentence if another one holds it."""
    return _file_lock(folder / "run.lock", 0)


class Record:
    """The committed record of a study, data/studies/NN: metrics and small results, no weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about = self._read("study.json", _json)

    @cached_property
    def _phases(self) -> dict[str, list[dict]]:
        found: dict[str, list[dict]] = {}
        for line in self._read("metrics.jsonl", self._parsed):
            found.setdefault(line["phase"], []).append(line)
        return found

    @cached_property
    def _results(self) -> dict[str, Any]:
        return self._read("results.safetensors", checkpoint.load)

    def _parsed(self, path: Path) -> list[dict]:
        data = path.read_bytes()
        if self.about.get("metrics_sha256") not in (None, hashlib.sha256(data).hexdigest()):
            raise ValueError("another checksum")
        return [json.loads(line) for line in data.decode().splitlines()]

    def _read(self, name: str, parse: Callable[[Path], Any]) -> Any:
        try:
            return parse(self.folder / name)
        except (OSError, ValueError) as error:
            raise ParameterError(
                f"{name} of the study's record {self.folder.name} is missing or damaged: restore"
                " it, or run the study itself"
            ) from error

    def lines(self, name: str) -> list[dict]:
        """Logged lines of one phase; KeyError when the study has no such phase."""
        if name not in self._phases:
            raise KeyError(f"the study's record holds no phase {name}")
        return self._phases[name]

    def result(self, name: str) -> Any:
        """A recorded result; KeyError when it was too large for the record or never computed."""
        if name not in self._results:
            raise KeyError(f"the study's record holds no result {name}: run the study itself")
        return self._results[name]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def study_record(notebook: str) -> Record:
    """The committed record of a notebook's study; KeyError where there is none."""
    folder = ROOT / "data" / "studies" / notebook.split("_")[0]
    if not (folder / "study.json").is_file():
        raise KeyError(f"there is no study of {notebook} in data/studies yet")
    return Record(folder)


def write_record(
    folder: Path,
    lines: list[dict],
    results: dict[str, Any],
    about: dict[str, Any],
    limit: int = 1_000_000,
) -> list[str]:
    """Write a study's record of at most `limit` bytes; returns the results left out as too large.

    The largest results go first; metrics always stay.
    """
    text = "".join(json.dumps(line) + "\n" for line in lines)
    sizes = {name: len(checkpoint.packed(value)) for name, value in results.items()}
    left, total = [], len(text) + sum(sizes.values()) + 20_000
    for name in sorted(sizes, key=lambda k: -sizes[k]):
        if total > limit:
            left.append(name)
            total -= sizes[name]
    kept = {name: value for name, value in results.items() if name not in left}
    about = {**about, "left_out": sorted(left)}
    about["metrics_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    checkpoint.write_atomic(folder / "metrics.jsonl", text.encode())
    checkpoint.save(folder / "results.safetensors", kept)
    about = json.dumps(about, indent=1, sort_keys=True) + "\n"
    checkpoint.write_atomic(folder / "study.json", about.encode())
    return sorted(left)


def environment(phases: Path | None = None, record: Path | None = None) -> dict[str, str]:
    """Environment of a process that shares a study's phases, or draws from its record."""
    given = {SHARED: phases, REDRAW: record}
    return {name: str(path) for name, path in given.items() if path is not None}


def opened(folder: Path) -> tuple[Store, Record | None]:
    """The store and record of a run in `folder`, as the environment says."""
    shared, record = os.environ.get(SHARED), os.environ.get(REDRAW)
    return Store(Path(shared) if shared else folder), Record(Path(record)) if record else None
