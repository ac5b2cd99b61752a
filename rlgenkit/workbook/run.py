"""The record of one run: folder, metrics, phases that resume, cached results, claims, checks."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import checkpoint, claims
from .fingerprint import (
    Reach,
    Unhashable,
    generator_state,
    loop_frames,
    set_generator_state,
)
from .parameters import ParameterError, Parameters
from .progress import Progress, kernel
from .provenance import ROOT, provenance, versions
from .store import hold, opened, study_record, write_record

RESERVED = ("phase", "step")  # keys of a line of metrics that a metric cannot be called


class NonFiniteError(FloatingPointError):
    """A logged value is nan or infinite; the message names step, value, sample and checkpoint."""


def start(p: Parameters, title: str = "", paper: Mapping[str, Any] | None = None) -> Run:
    """Open and lock the run folder of `p` and set the CPU threads (2, or OMP_NUM_THREADS).

    paper: {"title", "year", "arxiv"}.  Without `p.out_dir` the folder is
    runs/<notebook>/<profile>-<fingerprint>, so other parameters get another folder; a named
    out_dir that holds a run with other parameters, or in which another process works, is refused.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2").split(",")[0]))
    folder = Path(p.out_dir or Path("runs") / p.notebook / f"{p.profile}-{p.fingerprint()}")
    mine = {"notebook": p.notebook, **{k: v for k, v in p.values.items() if k != "out_dir"}}
    lock, record = hold(folder), folder / "run.json"
    if record.exists() and (odd := _differs(record, json.loads(_json(mine)))):
        raise ParameterError(f"`out_dir` {folder.name} {odd}: name another out_dir or delete it")
    checkpoint.write_atomic(record, _json(mine))
    run = Run(p, folder, title, dict(paper or {"title": "", "year": 0, "arxiv": ""}))
    run.lock = lock
    if shell := kernel():
        shell.user_ns["_rlgenkit_run"] = run  # wb.show stores its pictures in the run's folder
    return run


def _differs(record: Path, mine: dict[str, Any]) -> str:
    """How the run whose run.json is `record` differs from this one; empty if it does not."""
    try:
        theirs = dict(json.loads(record.read_text(encoding="utf-8")))
    except ValueError:
        return "has a damaged run.json"
    odd = [k for k in {**theirs, **mine} if theirs.get(k) != mine.get(k)]
    return (
        f"holds a run with {odd[0]}={theirs.get(odd[0])!r}, not {mine.get(odd[0])!r}" if odd else ""
    )


class Run:
    """One run of one notebook; made by `start`."""

    def __init__(self, p: Parameters, folder: Path, title: str, paper: dict[str, Any]) -> None:
        self.parameters, self.folder, self.title, self.paper = p, folder, title, paper
        self.rows = claims.load_rows(p.notebook)
        self.claims: dict[str, claims.Claim] = {}
        self.checks: dict[str, str] = {}
        self.numbers: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.computed: list[str] = []  # phases and results that were not restored
        self.results_kept: dict[str, Any] = {}
        self.lock: Any = None
        self._about: dict[str, Any] = {}  # of the study's record, known once it is finished
        self._store, self._record = opened(folder)
        self._lines: dict[str, list[dict[str, Any]]] = {}
        self._stack: list[str] = []  # names of the loops that run now, outermost first
        self._left: dict[str, tuple[Mapping, dict]] = {}  # loops that were left in the middle
        self._log = folder / "metrics.jsonl"
        self._log.write_text("")

    def steps(
        self,
        n: int,
        name: str,
        state: Mapping[str, Any] | None = None,
        every: int = 0,
        seconds: float = 60.0,
    ) -> Iterator[int]:
        """Yield 0..n-1 as phase `name`, saving `state` every `seconds` (and `every` steps).

        state: name -> module, optimizer, generator, tensor, list, dict or whatever has
        state_dict(); restored in place.  A finished phase is restored and yields nothing.  It starts
        afresh when n changed, the state that it starts from, or code or values that the loop reaches
        (see rlgenkit.workbook.fingerprint).  An interrupted loop goes on from its last checkpoint.
        """
        if self._record:
            self._put_lines(name, self._record.lines(name))
            Progress(name, n, n).close(f"{n} steps{self._change(name)} (recorded)")
            return
        state = state or {}
        self._roll_back(name)
        entry = checkpoint.storable(self._get_state(state, []))
        frame = sys._getframe(1)
        key, reach = self._key(name, [n, entry["state"]], *loop_frames(frame))
        drawn = reach.generators
        del frame
        with self._store.lock("phases", name) if key else nullcontext():
            stored = self._store.load("phases", name, key) if key else None
            first, spent = self._restored(name, state, drawn, stored)
            progress, begin = Progress(name, n, first), time.monotonic()
            saved = begin
            self._stack.append(name)
            self._left[name] = (state, entry)
            try:
                for step in range(first, n):
                    yield step
                    now = time.monotonic()
                    due = step + 1 == n or every and (step + 1) % every == 0
                    if key and (due or now - saved >= seconds):
                        self._save(
                            name,
                            key,
                            step + 1,
                            n,
                            spent + now - begin,
                            self._get_state(state, drawn),
                        )
                        saved = time.monotonic()
                    progress.update(step + 1, self._latest(name))
            finally:  # also after a break or an error in the loop
                self._stack = [x for x in self._stack if x != name]
            self._left.pop(name, None)
        if first < n or n == 0:
            self.computed.append(name)
        self.seconds[name] = round(spent + (time.monotonic() - begin if first < n else 0), 2)
        progress.close(f"{n} steps{self._change(name)}{' (restored)' if first == n > 0 else ''}")

    def log(self, step: int, samples: Mapping[str, Tensor] | None = None, **values: Any) -> None:
        """Record one line of metrics.  Tensors [B] are averaged; nan or inf stops the run.

        samples: name -> [B] tensors kept whole (4 digits), for reward ridges and the like.
        """
        if odd := [k for k in [*values, *(samples or {})] if k in RESERVED]:
            raise ValueError(f"a metric cannot be called `{odd[0]}`: choose another name")
        line: dict[str, Any] = {"phase": self._stack[-1] if self._stack else "", "step": int(step)}
        for name, value in values.items():
            line[name] = self._finite(step, name, value).mean().item()
        for name, value in (samples or {}).items():
            kept = self._finite(step, name, value).flatten().tolist()
            line[name] = [float(f"{v:.4g}") for v in kept]
        self._lines.setdefault(line["phase"], []).append(line)
        self._write_log([line])

    def metrics(self, name: str) -> dict[str, np.ndarray]:
        """Logged values of phase `name`: "step" [T] and each metric [T] (nan where not logged) or,
        for samples of equal number, [T, B]."""
        if name not in self._lines:
            raise KeyError(f"nothing was logged in phase {name}")
        return _columns(self._lines[name])

    def curves(self, name: str, seeds: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Metrics of the phases "<name>/seed<k>" stacked over seeds: each [S, T]."""
        seeds = self.parameters.seeds if seeds is None else seeds
        runs = [self.metrics(f"{name}/seed{seed}") for seed in seeds]
        lengths = {seed: len(run["step"]) for seed, run in zip(seeds, runs)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the seeds of {name} logged unequal numbers of steps: {lengths}")
        return {k: np.stack([run[k] for run in runs]) for k in runs[0]}

    def result(self, name: str, fn: Callable[[], Any], state: Mapping[str, Any] | None = None):
        """fn()'s result (numbers, strings, tensors, arrays, lists, dicts), computed once per run.

        What comes back is what was stored, also the first time.  It is computed again when code or
        values that fn reaches changed.  Generators that fn reaches go on as if it had just run,
        weights that it reaches are left as they were.  state: further generators that fn draws from.
        """
        if self._record:
            return self._record.result(name)
        state = state or {}
        entry = {k: checkpoint.snapshot(v) for k, v in state.items()}
        key, reach = self._key(name, [fn, entry])
        with self._store.lock("cache", name) if key else nullcontext():
            stored = self._store.load("cache", name, key) if key else None
            if stored is None:
                begin = time.monotonic()
                with _weights_kept(reach.trainable):
                    stored = self._computed(name, key, fn, state, reach.generators)
                self.seconds[name] = round(time.monotonic() - begin, 2)
            else:
                self._set_state(state, reach.generators, stored)
                for phase, rows in json.loads(stored["lines"]).items():
                    self._put_lines(phase, rows)  # of the loops that ran inside
        self.results_kept[name] = stored["value"]
        if self._about:  # what comes after finish() belongs to the record too
            self._write_record()
        return stored["value"]

    def number(self, name: str, value: float | str | list[float]) -> None:
        """Put a named number into results.json without judging it."""
        self.numbers[name] = np.asarray(value).tolist()

    def judge(
        self,
        id: str,
        values: Any,
        *,
        sham: Any = None,
        control: Any = None,
        clusters: Any = None,
        note: str = "",
    ) -> claims.Claim:
        """Judge row `id` of the notebook's claims: one value per seed (per item with clusters), or
        an Interval.  Quick runs and fewer than five seeds get no verdict.

        sham, control: the same measure on the arm that the row names; see claims.judge.
        """
        self.claims[id] = claims.judge(
            self._row(id),
            values,
            clusters=clusters,
            sham=sham,
            control=control,
            note=note,
            judged=self.parameters.profile != "quick",
        )
        return self.claims[id]

    def check(self, id: str, passed: Any) -> None:
        """Assert what row `id` says holds by construction, and record that it does.

        At the profile full, days of work on a reader's own model, a check that fails is told and
        left out of the record instead.
        """
        row = self._row(id)
        if not row.check:
            raise ValueError(f"claim {id} is no check: use run.judge")
        if not passed and self.parameters.profile == "full":
            print(f"check {id} does not hold in this run: {row.statement}")
            return
        assert bool(passed), f"check {id} failed: {row.statement}"
        self.checks[id] = row.statement

    def results(self) -> dict[str, Any]:
        """The content of results.json, checked against the schema; holds no times."""
        p = self.parameters
        given = {k: v for k, v in p.values.items() if k not in ("out_dir", "seeds")}
        content = {
            "schema": 2,
            "notebook": p.notebook,
            "title": self.title,
            "paper": self.paper,
            "profile": p.profile,
            "seeds": p.seeds,
            "parameters": given,
            "claims_sha256": claims.rows_digest(p.notebook),
            "claims": [asdict(claim) for claim in self._all_claims()],
            "checks": [{"id": id, "statement": text} for id, text in self.checks.items()],
            "numbers": self.numbers,
            "provenance": provenance(p.device),
        }
        content = json.loads(_json(content))
        claims.validate(content)
        return content

    def finish(self) -> None:
        """Write results.json and the times, show the claims and the provenance."""
        from .show import markdown

        content, every = self.results(), self._all_claims()
        checkpoint.write_atomic(self.folder / "results.json", _json(content))
        checkpoint.write_atomic(self.folder / "timings.json", _json(self.seconds))
        checkpoint.write_atomic(self.folder / "computed.json", _json(sorted(self.computed)))
        if self.parameters.profile == "study" and not self._record:
            kept = ("notebook", "profile", "seeds", "parameters", "claims_sha256")
            used = {"versions": content["provenance"]["versions"]}
            self._about = {k: content[k] for k in kept} | used
            self._write_record()
        source = content["provenance"]
        used = ", ".join(f"{k} {v}" for k, v in source["versions"].items())
        data = (source["data"]["manifest_sha256"] or "no manifest")[:12]
        study = claims.predictions(self.parameters.notebook, every)
        if every:
            markdown(claims.claims_table(every, study))
        if self.checks:
            markdown(f"Checks that hold by construction: {', '.join(self.checks)}.")
        markdown(
            f"Profile {self.parameters.profile}, seeds {self.parameters.seeds}, commit "
            f"{source['commit']}, data {data}, {source['device']}, {source['threads']} "
            f"threads; {used}."
        )

    def save_figure(self, figure: Any, name: str) -> Path:
        """Write a figure to figures/<name>.png in the run's folder."""
        from .show import png

        path = self.folder / "figures" / f"{name}.png"
        checkpoint.write_atomic(path, png(figure))
        return path

    def _write_record(self) -> None:
        """record/ in the run folder, what data/studies/NN will be: all metrics, small results."""
        lines = [line for rows in self._lines.values() for line in rows]
        write_record(self.folder / "record", lines, self.results_kept, self._about)

    def recorded(self, name: str, seeds: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Curves of an arm that only the study trained, from data/studies/NN: each [S, T].

        seeds: None for all of the study.  KeyError when there is no study, or no such arm in it.
        """
        record = self._record or study_record(self.parameters.notebook)
        seeds = record.about["seeds"] if seeds is None else seeds
        runs = [_columns(record.lines(f"{name}/seed{seed}")) for seed in seeds]
        return {k: np.stack([run[k] for run in runs]) for k in runs[0]}

    def _row(self, id: str) -> claims.Row:
        if id not in self.rows:
            raise ValueError(f"notebooks/claims/{self.parameters.notebook}.toml has no row {id}")
        return self.rows[id]

    def _all_claims(self) -> list[claims.Claim]:
        """Every row but the checks, in the order of the file: judged, untestable or not measured."""
        found, missing = [], []
        for id, row in self.rows.items():
            if id in self.claims:
                found.append(self.claims[id])
            elif row.untestable:
                found.append(claims.untestable(row))
            elif row.needs:
                found.append(claims.unmeasured(row))
            elif row.check and (id in self.checks or self.parameters.profile == "full"):
                continue
            elif self.parameters.profile == "full":  # other settings, and too late to refuse
                found.append(claims.unmeasured(replace(row, needs="settings of the study")))
            else:
                missing.append(id)
        if missing:
            raise ValueError(
                f"rows {', '.join(missing)} of the claims were neither judged nor "
                "checked: call run.judge or run.check, or say what they need"
            )
        return found

    def _key(self, name: str, values: list, *frames: Any) -> tuple[str, Reach]:
        """(hash of all that a phase depends on, "" if there is none; what it reaches)."""
        reach = Reach((Run,))
        try:
            reach.feed([_libraries(), *values], name)
            for frame in frames:
                reach.frame(frame)
        except Unhashable as error:
            print(f"{name}: {error}, so this phase is computed anew each time")
            return "", Reach()
        return reach.digest(), reach

    def _restored(self, name: str, state: Mapping, drawn: list, stored: dict | None) -> tuple:
        """(steps done, seconds spent) of what was stored, put back into place."""
        if stored is None:
            self._put_lines(name, [])
            return 0, 0.0
        self._put_lines(name, json.loads(stored["lines"]))
        self._set_state(state, drawn, stored)
        return stored["done"], stored["seconds"]

    def _save(self, name: str, key: str, done: int, n: int, spent: float, content: dict) -> None:
        lines = json.dumps(self._lines.get(name, []))
        self._store.save(
            "phases", name, key, {"done": done, "n": n, "seconds": spent, "lines": lines, **content}
        )

    def _computed(self, name: str, key: str, fn: Callable, state: Mapping, drawn: list) -> dict:
        """Run fn and store its value, if it can be stored, with the generators it left behind."""
        known = set(self._lines)
        value = fn()
        self.computed.append(name)
        lines = {k: rows for k, rows in self._lines.items() if k not in known}
        try:
            stored = {
                "value": checkpoint.storable(value),
                "lines": json.dumps(lines),
                **self._get_state(state, drawn),
            }
        except TypeError as error:
            print(f"{name}: {error}; it is computed anew each time")
            return {"value": value}
        if key:
            self._store.save("cache", name, key, stored)
        return stored

    def _roll_back(self, name: str) -> None:
        """Undo what an unfinished loop of this name did, so that it goes on from its checkpoint."""
        if name in self._left:
            state, entry = self._left.pop(name)
            self._stack = [x for x in self._stack if x != name]
            self._set_state(state, [], entry)

    def _get_state(self, state: Mapping[str, Any], drawn: list) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        kind, keys, *rest = np.random.get_state()
        return {
            "state": {k: checkpoint.snapshot(v) for k, v in state.items()},
            "drawn": [generator_state(g) for g in drawn],
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": cuda,
                "python": random.getstate(),
                "numpy": (kind, keys, *rest),
            },
        }

    def _set_state(self, state: Mapping[str, Any], drawn: list, stored: dict[str, Any]) -> None:
        if set(state) != set(stored["state"]):
            raise ValueError(
                f"the checkpoint holds {sorted(stored['state'])}, the notebook passes "
                f"{sorted(state)}: delete the run folder or use another out_dir"
            )
        for name, thing in state.items():
            checkpoint.restore(thing, stored["state"][name])
        for generator, kept in zip(drawn, stored["drawn"]):
            set_generator_state(generator, kept)
        rng = stored["rng"]
        torch.set_rng_state(rng["cpu"])
        random.setstate(rng["python"])
        np.random.set_state(rng["numpy"])
        if len(rng["cuda"]) == torch.cuda.device_count() > 0:
            torch.cuda.set_rng_state_all(rng["cuda"])

    def _finite(self, step: int, name: str, value: Any) -> Tensor:
        tensor = torch.as_tensor(value).detach().to("cpu", torch.float64)
        bad = (~torch.isfinite(tensor)).flatten().nonzero()
        if len(bad):
            phase = self._stack[-1] if self._stack else ""
            what = tensor.flatten()[bad[0]].item()
            raise NonFiniteError(
                f"{name} is {what} at step {step} of {phase or 'the run'}, "
                f"sample {int(bad[0])}; {self._last_good(phase)}"
            )
        return tensor

    def _last_good(self, phase: str) -> str:
        """Words on the newest checkpoint of a phase."""
        folder = self._store.folder / "phases"
        files = sorted(folder.glob(f"{phase}.*.safetensors"), key=lambda p: p.stat().st_mtime_ns)
        if not phase or not files:
            return "no checkpoint was saved yet"
        done = checkpoint.load(files[-1])["done"]
        return (
            f"the last good checkpoint is {files[-1].relative_to(self.folder)}, after {done} steps"
        )

    def _put_lines(self, name: str, lines: list[dict[str, Any]]) -> None:
        """The lines of a phase as they were when it was saved."""
        self._lines[name] = list(lines)
        self._write_log(lines)

    def _write_log(self, lines: list[dict[str, Any]]) -> None:
        """metrics.jsonl is for people to watch; nothing here reads it."""
        with open(self._log, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))

    def _latest(self, name: str) -> str:
        lines = self._lines.get(name)
        line = lines[-1] if lines else {}
        shown = [f"{k} {v:.3g}" for k, v in line.items() if isinstance(v, float)]
        return ", ".join(shown[:4])

    def _change(self, name: str) -> str:
        """First and last value of the metric logged first: "; reward 0.31 to 0.88"."""
        rows = self._lines.get(name, [])
        keys = [k for k, v in rows[0].items() if isinstance(v, float)] if rows else []
        values = [x[keys[0]] for x in rows if keys[0] in x] if keys else []
        return f"; {keys[0]} {values[0]:.3g} to {values[-1]:.3g}" if values else ""


@contextmanager
def _weights_kept(weights: Sequence[Tensor]) -> Iterator[None]:
    """Put trainable weights back that the body changed: what follows a result then finds the same
    weights whether it was computed or restored."""
    kept = [(weight, weight._version, weight.detach().clone()) for weight in weights]
    yield
    with torch.no_grad():
        for weight, version, before in kept:
            if weight._version != version:
                weight.copy_(before)


def _columns(lines: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Lines of one phase as columns; lines of the same step are one row."""
    rows: dict[int, dict] = {}
    for line in lines:
        rows.setdefault(line["step"], {}).update(line)
    names = dict.fromkeys(k for row in rows.values() for k in row if k != "phase")
    return {k: np.array([row.get(k, np.nan) for row in rows.values()]) for k in names}


def _libraries() -> list[str]:
    """What every phase depends on: interpreter, numerical libraries, the files below data/."""
    manifest = ROOT / "data" / "manifest.json"
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else ""
    return [platform.python_version(), digest, json.dumps(versions(), sort_keys=True)]


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
