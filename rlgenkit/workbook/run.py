"""The record of one run: folder, metrics, phases that resume, cached results, claims."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import checkpoint
from .claims import Claim, claims_table, make_claim, validate
from .parameters import ParameterError, Parameters
from .progress import Progress, kernel
from .provenance import ROOT, provenance


class NonFiniteError(FloatingPointError):
    """A logged value is nan or infinite; the message names step, value, sample and checkpoint."""


def start(p: Parameters, title: str = "", paper: Mapping[str, Any] | None = None) -> Run:
    """Open the run folder of `p` and set the CPU threads (2, or OMP_NUM_THREADS).

    paper: {"title", "year", "arxiv"}.  Without `p.out_dir` the folder is
    runs/<notebook>/<profile>-<fingerprint>, so other parameters get another folder; a named
    out_dir that holds a run with other parameters is refused.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2").split(",")[0]))
    folder = Path(p.out_dir or Path("runs") / p.notebook / f"{p.profile}-{p.fingerprint()}")
    mine = {"notebook": p.notebook, **{k: v for k, v in p.values.items() if k != "out_dir"}}
    record = folder / "run.json"
    if record.exists():
        theirs = json.loads(record.read_text())
        odd = [k for k in {**theirs, **mine} if theirs.get(k) != mine.get(k)]
        if odd:
            raise ParameterError(f"`out_dir` {folder.name} holds a run with {odd[0]}="
                                 f"{theirs.get(odd[0])!r}, not {mine.get(odd[0])!r}: name another "
                                 "out_dir or delete it")
    checkpoint.write_atomic(record, _json(mine))
    run = Run(p, folder, title, dict(paper or {"title": "", "year": 0, "arxiv": ""}))
    run._drop_metrics("", 0)  # lines logged outside phases come again
    if shell := kernel():
        shell.user_ns["_rlgenkit_run"] = run  # wb.show stores its pictures in the run's folder
    return run


class Run:
    """One run of one notebook; made by `start`."""

    def __init__(self, p: Parameters, folder: Path, title: str, paper: dict[str, Any]) -> None:
        self.parameters, self.folder, self.title, self.paper = p, folder, title, paper
        self.claims: dict[str, Claim] = {}
        self.numbers: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self._base = base_hash()
        self._phase = ""
        self._last: dict[str, Any] = {}
        # Once a phase was started afresh, files of later ones may rest on its old weights: only
        # those written since then count.
        self._redo = False
        self._written: set[Path] = set()

    def steps(
        self, n: int, name: str, state: Mapping[str, Any] | None = None, every: int = 0,
        seconds: float = 60.0,
    ) -> Iterator[int]:
        """Yield 0..n-1 as phase `name`, saving `state` every `seconds` (and `every` steps).

        state: name -> module, optimizer, generator, tensor, list, dict or whatever has
        state_dict(); restored in place.  A finished phase is restored and yields nothing.  A
        phase starts afresh if n changed, or the code of the cell, of the notebook's functions that
        it uses, or of rlgenkit, or the models in data/.
        """
        path, code = self._path("phases", name), code_hash(self._base)
        first, spent = self._restore(path, name, state or {}, n, code)
        progress, begin = Progress(name, n, first), time.monotonic()
        saved = begin
        try:
            for step in range(first, n):
                self._phase = name
                yield step
                now = time.monotonic()
                regular = every and (step + 1) % every == 0
                if step + 1 == n or regular or now - saved >= seconds:
                    self._save(path, state or {}, step + 1, n, code, spent + now - begin)
                    saved = time.monotonic()
                progress.update(step + 1, self._latest(name))
        finally:  # also after a break or an error in the loop
            self._phase = ""
        self.seconds[name] = round(spent + (time.monotonic() - begin if first < n else 0), 2)
        progress.close(f"{n} steps{self._change(name)}{' (restored)' if first == n > 0 else ''}")

    def log(self, step: int, samples: Mapping[str, Tensor] | None = None, **values: Any) -> None:
        """Append one line to metrics.jsonl.  Tensors [B] are averaged; nan or inf stops the run.

        samples: name -> [B] tensors kept whole (4 digits), for reward ridges and the like.
        """
        line: dict[str, Any] = {"phase": self._phase, "step": int(step)}
        for name, value in values.items():
            line[name] = self._finite(step, name, value).mean().item()
        for name, value in (samples or {}).items():
            kept = self._finite(step, name, value).flatten().tolist()
            line[name] = [float(f"{v:.4g}") for v in kept]
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._last = line

    def metrics(self, name: str) -> dict[str, np.ndarray]:
        """Logged values of phase `name`: "step" [T] and each metric [T] (nan where not logged) or,
        for samples of equal number, [T, B]."""
        rows: dict[int, dict] = {}
        for line in self._lines():
            if line["phase"] == name:
                rows.setdefault(line["step"], {}).update(line)
        names = dict.fromkeys(k for row in rows.values() for k in row if k != "phase")
        if not rows:
            raise KeyError(f"nothing was logged in phase {name}")
        return {k: np.array([row.get(k, np.nan) for row in rows.values()]) for k in names}

    def curves(self, name: str, seeds: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Metrics of the phases "<name>/seed<k>" stacked over seeds: each [S, T]."""
        seeds = self.parameters.seeds if seeds is None else seeds
        runs = [self.metrics(f"{name}/seed{seed}") for seed in seeds]
        return {k: np.stack([run[k] for run in runs]) for k in runs[0]}

    def result(self, name: str, fn: Callable[[], Any], state: Mapping[str, Any] | None = None):
        """fn()'s result (numbers, strings, tensors, arrays, lists, dicts), computed once per run.

        state: generators that fn draws from, so that a resumed run goes on with the same draws.
        """
        path, code = self._path("cache", name), code_hash(self._base)
        stored = self._stored(path)
        if stored and stored["code"] == code:
            self._set_state(state or {}, stored)
            return stored["value"]
        begin = time.monotonic()
        value = fn()
        self.seconds[name] = round(time.monotonic() - begin, 2)
        checkpoint.save(path, {"code": code, "value": value, **self._get_state(state or {})})
        self._written.add(path)
        return value

    def number(self, name: str, value: float | str | list[float]) -> None:
        """Put a named number into results.json without judging it."""
        self.numbers[name] = np.asarray(value).tolist()

    def claim(
        self, id: str, *, paper: str, statement: str, values: Sequence[float], threshold: float,
        direction: str, unit: str = "", note: str = "",
    ) -> Claim:
        """Judge one claim.  values: one per seed (or per item).  Quick runs are not judged."""
        judge = self.parameters.profile != "quick"
        self.claims[id] = make_claim(id, paper, statement, values, threshold, direction, unit, note,
                                     judge)
        return self.claims[id]

    def untestable(self, id: str, paper: str, why: str) -> Claim:
        """Record a claim of the paper that this scale cannot test, with the reason."""
        self.claims[id] = Claim(id, paper, "", (), None, "", "", None, None, 0,
                                "not testable at this scale", why)
        return self.claims[id]

    def results(self) -> dict[str, Any]:
        """The content of results.json, checked against the schema; holds no times."""
        p = self.parameters
        given = {k: v for k, v in p.values.items() if k not in ("out_dir", "seeds")}
        content = {
            "schema": 1, "notebook": p.notebook, "title": self.title, "paper": self.paper,
            "profile": p.profile, "seeds": p.seeds, "parameters": given,
            "claims": [asdict(claim) for claim in self.claims.values()],
            "numbers": self.numbers, "provenance": provenance(p.device),
        }
        content = json.loads(_json(content))
        validate(content)
        return content

    def finish(self) -> None:
        """Write results.json and timings.json, show the claims and the provenance."""
        from .show import markdown

        content = self.results()
        checkpoint.write_atomic(self.folder / "results.json", _json(content))
        checkpoint.write_atomic(self.folder / "timings.json", _json(self.seconds))
        source = content["provenance"]
        versions = ", ".join(f"{k} {v}" for k, v in source["versions"].items())
        data = (source["data"]["manifest_sha256"] or "no manifest")[:12]
        markdown(claims_table(list(self.claims.values())))
        markdown(f"Profile {self.parameters.profile}, seeds {self.parameters.seeds}, commit "
                 f"{source['commit']}, data {data}, {source['device']}, {source['threads']} "
                 f"threads; {versions}.")

    def save_figure(self, figure: Any, name: str) -> Path:
        """Write a figure to figures/<name>.png in the run's folder."""
        from .show import png

        path = self.folder / "figures" / f"{name}.png"
        checkpoint.write_atomic(path, png(figure))
        return path

    def _path(self, kind: str, name: str) -> Path:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name) or ".." in name:
            raise ValueError(f"name {name!r} must be words of letters, digits, _ . - joined by /")
        return self.folder / kind / f"{name}.safetensors"

    def _stored(self, path: Path) -> dict[str, Any] | None:
        usable = path.exists() and (not self._redo or path in self._written)
        return checkpoint.load(path) if usable else None

    def _restore(self, path: Path, name: str, state: Mapping, n: int, code: str) -> tuple:
        """(steps done, seconds spent); drops metrics that the checkpoint does not cover."""
        stored = self._stored(path)
        if stored and (stored["n"], stored["code"]) != (n, code):
            print(f"{name}: code or data changed since this phase was saved, starting it again")
            stored, self._redo = None, True
            self._written.clear()
        done = stored["done"] if stored else 0
        self._drop_metrics(name, done)
        if stored:
            self._set_state(state, stored)
        return done, stored["seconds"] if stored else 0.0

    def _save(self, path: Path, state: Mapping, done: int, n: int, code: str, spent: float) -> None:
        log = self.folder / "metrics.jsonl"
        if log.exists():  # the lines must be on disk before a checkpoint that relies on them
            with open(log, "a") as file:
                os.fsync(file.fileno())
        checkpoint.save(path, {"done": done, "n": n, "code": code, "seconds": spent,
                               **self._get_state(state)})
        self._written.add(path)

    def _get_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"state": {k: checkpoint.snapshot(v) for k, v in state.items()},
                "rng": {"cpu": torch.get_rng_state(), "cuda": cuda}}

    def _set_state(self, state: Mapping[str, Any], stored: dict[str, Any]) -> None:
        if set(state) != set(stored["state"]):
            raise ValueError(f"the checkpoint holds {sorted(stored['state'])}, the notebook passes "
                             f"{sorted(state)}: delete the run folder or use another out_dir")
        for name, thing in state.items():
            checkpoint.restore(thing, stored["state"][name])
        torch.set_rng_state(stored["rng"]["cpu"])
        if len(stored["rng"]["cuda"]) == torch.cuda.device_count() > 0:
            torch.cuda.set_rng_state_all(stored["rng"]["cuda"])

    def _finite(self, step: int, name: str, value: Any) -> Tensor:
        tensor = torch.as_tensor(value).detach().to("cpu", torch.float64)
        bad = (~torch.isfinite(tensor)).flatten().nonzero()
        if len(bad):
            path = self._path("phases", self._phase) if self._phase else Path("-")
            good = "no checkpoint was saved yet"
            if path.exists():
                good = (f"the last good checkpoint is {path.relative_to(self.folder)}, after "
                        f"{checkpoint.load(path)['done']} steps")
            what = tensor.flatten()[bad[0]].item()
            raise NonFiniteError(f"{name} is {what} at step {step} of {self._phase or 'the run'}, "
                                 f"sample {int(bad[0])}; {good}")
        return tensor

    def _lines(self) -> list[dict[str, Any]]:
        """Parsed lines of metrics.jsonl; a line torn by a crash is left out."""
        log = self.folder / "metrics.jsonl"
        lines = log.read_text(encoding="utf-8").split("\n") if log.exists() else []
        parsed = []
        for line in lines[:-1]:
            try:
                parsed.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return parsed

    def _drop_metrics(self, name: str, done: int) -> None:
        """Rewrite metrics.jsonl without the lines of `name` from step `done` on."""
        log = self.folder / "metrics.jsonl"
        keep = [x for x in self._lines() if x["phase"] != name or x["step"] < done]
        data = "".join(json.dumps(line) + "\n" for line in keep).encode()
        if log.exists() and log.read_bytes() != data:
            checkpoint.write_atomic(log, data)

    def _latest(self, name: str) -> str:
        line = self._last if self._last.get("phase") == name else {}
        shown = [f"{k} {v:.3g}" for k, v in line.items() if isinstance(v, float)]
        return ", ".join(shown[:4])

    def _change(self, name: str) -> str:
        """First and last value of the metric logged first: "; reward 0.31 to 0.88"."""
        rows = [x for x in self._lines() if x["phase"] == name]
        keys = [k for k, v in rows[0].items() if isinstance(v, float)] if rows else []
        values = [x[keys[0]] for x in rows if keys[0] in x] if keys else []
        return f"; {keys[0]} {values[0]:.3g} to {values[-1]:.3g}" if values else ""


def base_hash() -> str:
    """Hash of rlgenkit's own code and of size and time of the model files in data/."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "rlgenkit").rglob("*.py")):
        if path.parent.name not in ("workbook", "commands"):
            digest.update(path.read_bytes())
    for path in sorted((ROOT / "data").rglob("*.safetensors")):
        stat = path.stat()
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def code_hash(base: str) -> str:
    """Hash of `base`, the running cell and the notebook's own functions that it reaches.

    Comments and layout do not count.  Values do not either: what a phase depends on belongs into
    the parameters, or into its code.
    """
    main = vars(sys.modules["__main__"])
    todo, seen, parts = list(main.get("In", [])[-1:]), set(), [base]
    while todo:
        try:
            tree = ast.parse(textwrap.dedent(todo.pop()))
        except SyntaxError:  # a cell with magics
            continue
        parts.append(ast.unparse(tree))
        for node in ast.walk(tree):
            thing = main.get(node.id) if isinstance(node, ast.Name) else None
            own = isinstance(thing, (FunctionType, type)) and thing.__module__ == "__main__"
            if own and node.id not in seen:
                seen.add(node.id)
                try:
                    todo.append(inspect.getsource(thing))
                except (OSError, TypeError):
                    continue
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
