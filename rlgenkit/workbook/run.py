"""The record of one run: folder, metrics, phases that resume, cached results, claims, checks."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import checkpoint, claims
from .fingerprint import Reach, loop_frames
from .ledger import claims_table
from .metrics import Metrics, NonFiniteError, columns
from .parameters import Parameters
from .progress import Progress, kernel
from .provenance import ROOT, libraries, provenance
from .store import hold, opened, study_record, write_record
from .values import ParameterError


SAVED_S = 60  # seconds between two checkpoints of a loop


def start(p: Parameters, title: str = "", paper: Mapping[str, Any] | None = None) -> Run:
    """Open and lock the run folder of `p` and set the CPU threads (2, or OMP_NUM_THREADS).

    paper: {"title", "year", "arxiv"}.  Without `p.out_dir` the folder is
    runs/<notebook>/<profile>-<fingerprint> of the checkout (elsewhere, of the working folder), so
    other parameters get another folder; a named out_dir that holds a run with other parameters, or
    in which another process works, is refused.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    torch.set_num_threads(int(threads if threads.isdecimal() and len(threads) < 4 else 0) or 2)
    for seed in (torch.manual_seed, random.seed, np.random.seed):  # what draws can resume
        seed(p.values.get("seed", 0))
    # It says of every picture model that torchvision is missing, which nothing here needs.
    logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)
    runs = (ROOT if Path.cwd().is_relative_to(ROOT) else Path()) / "runs"
    folder = runs / p.notebook / f"{p.profile}-{p.fingerprint()}"
    folder = Path(p.out_dir).expanduser() if p.out_dir else folder
    file, _, source = os.environ.get("RLGENKIT_SOURCE", "").partition(" ")
    if file and file[0] != "_" and file != p.notebook:
        raise ParameterError(f'this is {file}.ipynb: write wb.parameters(..., notebook="{file}")')
    mine = json.loads(_json({"notebook": p.notebook, **p.reached()}))
    lock, record = hold(folder), folder / "run.json"
    if record.exists() and (odd := _differs(record, mine)):
        raise ParameterError(
            f"run.json in `out_dir` {folder.name} {odd}: name another out_dir or delete it"
        )
    checkpoint.write_atomic(record, _json(mine))
    run = Run(p, folder, title, dict(paper or {"title": "", "year": 0, "arxiv": ""}))
    run.lock, run.source = lock, source or None
    if shell := kernel():
        shell.user_ns["_rlgenkit_run"] = run  # wb.show stores its pictures in the run's folder
        shell.set_custom_exc((KeyboardInterrupt,), _interrupted)
    return run


def _differs(record: Path, mine: dict[str, Any]) -> str:
    """How the run whose run.json is `record` differs from this one; empty if it does not."""
    try:
        theirs = dict(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        return "is damaged"
    odd = [k for k in {**theirs, **mine} if theirs.get(k) != mine.get(k)]
    return odd and f"is of a run with {odd[0]}={theirs.get(odd[0])!r}, not {mine.get(odd[0])!r}"


def _interrupted(shell: Any, kind: type, error: Any, trace: Any, tb_offset: Any = None) -> None:
    """What a kernel shows when a person stops a cell: one sentence instead of torch's frames."""
    error._render_traceback_ = lambda: ["Interrupted: run this cell again to resume."]
    shell.showtraceback((kind, error, trace))


class Run:
    """One run of one notebook; made by `start`."""

    def __init__(self, p: Parameters, folder: Path, title: str, paper: dict[str, Any]) -> None:
        self.parameters, self.folder, self.title, self.paper = p, folder, title, paper
        self.rows = claims.load_rows(p.notebook)
        for id, old in claims.moved(p.notebook).items():
            note = f"The threshold was {old:g} when this was first studied"
            self.rows[id] = replace(self.rows[id], note=claims.sentences(self.rows[id].note, note))
        self.claims: dict[str, claims.Claim] = {}
        self.checks: dict[str, str] = {}
        self.numbers: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.computed: list[str] = []  # phases and results that were not restored
        self.results_kept: dict[str, Any] = {}
        self.lock: Any = None
        self.source: str | None = None  # hash of the notebook's cells, where a command runs it
        self._about: dict[str, Any] = {}  # of the study's record, known once it is finished
        self._store, self._record = opened(folder)
        self._keys: dict[str, str] = {}  # of the phases and results that ran in no other one
        self._stack: dict[str, list] = {}  # what runs now, outermost first: generators at its start
        self._left: dict[str, tuple[Mapping, dict]] = {}  # loops that were left in the middle
        self._metrics = Metrics(folder / "metrics.jsonl")

    def steps(
        self, n: int, name: str, state: Mapping[str, Any] | None = None, every: int = 0
    ) -> Iterator[int]:
        """Yield 0..n-1 as phase `name`, saving `state` every minute (and `every` steps).

        state: name -> module, optimizer, generator, tensor, list, dict or whatever has
        state_dict(); restored in place.  A finished phase is restored and yields nothing.  It starts
        afresh when n changed, the state that it starts from, or code or values that the loop reaches
        (see rlgenkit.workbook.fingerprint).  An interrupted loop goes on from its last checkpoint.
        """
        if self._record:
            self._metrics.put(name, self._record.lines(name))
            Progress(name, n, n).close(f"{n} steps{self._metrics.change(name)} (recorded)")
            return
        state = state or {}
        self._roll_back(name)
        entry = checkpoint.storable(checkpoint.states(state, [], [("", "")] * 99))
        key, reach = self._key(name, [n, entry["state"]], *loop_frames(sys._getframe(1)))
        with self._store.lock("phases", name, key), self._inside(name) as rng:
            first, spent = self._restored(name, key, state, reach.generators)
            progress, begin = Progress(name, n, first), time.monotonic() - spent
            saved = time.monotonic()
            self._left[name] = (state, entry)
            for step in range(first, n):
                yield step
                done, now = step + 1, time.monotonic()
                if done == n or every and done % every == 0 or now - saved >= SAVED_S:
                    content = {"done": done, "n": n, "seconds": now - begin}
                    content["lines"] = json.dumps(self._metrics.lines.get(name, []))
                    content |= checkpoint.states(state, reach.generators, rng)
                    self._store.save("phases", name, key, content)
                    saved, spent = time.monotonic(), now - begin
                progress.update(done, self._metrics.latest(name))
            self._left.pop(name, None)
        if first < n or n == 0:
            self.computed.append(name)
        self.seconds[name] = round(spent, 2)
        progress.close(f"{n} steps{self._metrics.change(name)}")

    def log(self, step: int, samples: Mapping[str, Tensor] | None = None, **values: Any) -> None:
        """Record one line of metrics.  Tensors [B] are averaged; nan or inf stops the run.

        samples: name -> [B] tensors kept whole (4 digits), for reward ridges and the like.
        """
        phase = next(reversed(self._stack), "")
        try:
            self._metrics.add(phase, step, values, samples or {})
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}; {self._last_good(phase)}") from None

    def metrics(self, name: str) -> dict[str, np.ndarray]:
        """Logged values of phase `name`: "step" [T], each metric [T] and each sample [T, B], nan
        where not logged."""
        return {k: x[0] for k, x in self._metrics.columns(name).items()}

    def curves(self, name: str, seeds: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Metrics of the phases "<name>/seed<k>" stacked over seeds: each [S, T], nan where a seed
        logged nothing, for example because it stopped early."""
        seeds = self.parameters.seeds if seeds is None else seeds
        return self._metrics.columns(*(f"{name}/seed{seed}" for seed in seeds))

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
        with self._store.lock("cache", name, key), self._inside(name):
            stored = self._store.load("cache", name, key)
            if stored is None:
                stored = self._computed(name, key, fn, state, reach)
            else:
                checkpoint.restore_states(state, reach.generators, stored)
                for phase, rows in json.loads(stored["lines"]).items():
                    self._metrics.put(phase, rows)  # of what was logged inside
        if "state" in stored:  # not what cannot be stored
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
        ValueError where a study gives more values than it has seeds and they are no items.
        """
        row, p = self._row(id), self.parameters
        given = {"clusters": clusters, "sham": sham, "control": control, "note": note}
        found = claims.judge(row, values, **given, judged=p.profile != "quick")
        over_seeds = row.interval == "t" and row.scale != "microworld"  # which has its own
        if p.profile == "study" and over_seeds and found.n > len(p.seeds):
            raise ValueError(f"claim {id} has {found.n} values for {len(p.seeds)} seeds")
        self.claims[id] = found
        return found

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
            "claims": [asdict(claim) for claim in self._every()],
            "checks": [{"id": id, "statement": text} for id, text in self.checks.items()],
            "numbers": self.numbers,
            "provenance": self._provenance(),
        }
        content = json.loads(_json(content))
        claims.validate(content)
        return content

    def _provenance(self) -> dict[str, Any]:
        """What computed the phases: hashes of the notebook's cells, where a command ran it, and of all
        that the phases reach (code, settings, weights, data); as recorded, where drawn again."""
        if self._record and "provenance" in self._record.about:
            return self._record.about["provenance"]
        code = {"notebook": self.source, "phases": hashlib.sha256(_json(self._keys)).hexdigest()}
        return provenance(self.parameters.device, code)

    def finish(self) -> None:
        """Write results.json and the times, show the claims and the provenance."""
        from .show import markdown

        content, every, p = self.results(), self._every(), self.parameters
        source = content["provenance"]
        if p.profile == "study" and not self._record:
            kept = ("notebook", "profile", "seeds", "parameters", "claims_sha256", "provenance")
            now = {id: row.threshold for id, row in self.rows.items()}
            first = {"thresholds": {**now, **claims.first_thresholds(p.notebook)}}
            self._about = {k: content[k] for k in kept} | first
            self._write_record()
        files = {"timings": self.seconds, "computed": sorted(self.computed), "results": content}
        for name, data in files.items():
            checkpoint.write_atomic(self.folder / f"{name}.json", _json(data))
        used = ", ".join(f"{k} {v}" for k, v in source["versions"].items())
        data = (source["data"]["manifest_sha256"] or "no manifest")[:12]
        code = source.get("code", {}).get("phases", "")[:12]
        if every:
            markdown(claims_table(every, claims.predictions(p.notebook, every)))
        if self.checks:
            markdown(f"Checks that hold by construction: {', '.join(self.checks)}.")
        folder = self.folder.resolve()
        folder = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder.name
        markdown(
            f"Profile {p.profile}, seeds {p.seeds}, folder {folder}, code {code}, commit "
            f"{source['commit']}, data {data}, {source['device']}, {source['threads']} "
            f"threads; {used}."
        )

    def _write_record(self) -> None:
        """record/ in the run folder, what data/studies/NN will be: all metrics, small results."""
        lines = [line for rows in self._metrics.lines.values() for line in rows]
        write_record(self.folder / "record", lines, self.results_kept, self._about)

    def recorded(self, name: str, seeds: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Curves of an arm that only the study trained, from data/studies/NN: each [S, T].

        seeds: None for all of the study.  KeyError when there is no study, or no such arm in it.
        """
        record = self._record or study_record(self.parameters.notebook)
        seeds = record.about["seeds"] if seeds is None else seeds
        return columns([record.lines(f"{name}/seed{seed}") for seed in seeds])

    def _row(self, id: str) -> claims.Row:
        if id not in self.rows:
            raise ValueError(f"notebooks/claims/{self.parameters.notebook}.toml has no row {id}")
        return self.rows[id]

    def _every(self) -> list[claims.Claim]:
        full = self.parameters.profile == "full"
        return claims.complete(self.rows, self.claims, self.checks, full)

    def _key(self, name: str, values: list, *frames: Any) -> tuple[str, Reach]:
        """(hash of all that a phase depends on, "" if there is none; what it reaches)."""
        reach = Reach((Run,), self._keys)
        try:
            reach.feed([libraries(), torch.get_default_dtype(), *values], name)
            for frame in frames:
                reach.frame(frame)
            key = reach.digest()
        except Exception as error:  # Unhashable, or a library's own: sparse, huge, deep
            print(f"{name}: {error}, so this phase is computed anew each time")
            key, reach = "", Reach()
        if not self._stack:
            self._keys[name] = key
        return key, reach

    @contextmanager
    def _inside(self, name: str) -> Iterator[list[str]]:
        """What is logged and drawn meanwhile belongs to `name`, also after a break or an error."""
        begin = self._stack[name] = checkpoint.begun()
        try:
            yield begin
        finally:
            self._stack.pop(name, None)
            if not self._stack:  # phases that read its curves depend on what it drew from
                self._keys[name] += "".join(b[0] for b in begin if b not in checkpoint.begun())

    def _restored(self, name: str, key: str, state: Mapping, drawn: list) -> tuple[int, float]:
        """(steps done, seconds spent) of what was stored, put back into place."""
        stored = self._store.load("phases", name, key)
        self._metrics.put(name, json.loads(stored["lines"]) if stored else [])
        if not stored:
            return 0, 0.0
        checkpoint.restore_states(state, drawn, stored)
        return stored["done"], stored["seconds"]

    def _computed(self, name: str, key: str, fn: Callable, state: Mapping, reach: Reach) -> dict:
        """Run fn and store its value, if it can be stored, with the generators it left behind."""
        begin, rng = time.monotonic(), self._stack[name]
        self._metrics.lines.pop(name, None)
        before = dict(self._metrics.lines)
        with checkpoint.weights_kept(reach.trainable):
            value = fn()
        self.computed.append(name)
        self.seconds[name] = round(time.monotonic() - begin, 2)
        lines = {k: rows for k, rows in self._metrics.lines.items() if rows is not before.get(k)}
        try:
            stored = {"value": checkpoint.storable(value), "lines": json.dumps(lines)}
            stored |= checkpoint.states(state, reach.generators, rng)
            self._store.save("cache", name, key, stored)
        except ParameterError:  # the disk is full
            raise
        except Exception as error:  # each library has errors of its own for what it cannot store
            print(f"{name} cannot be stored, so it is computed anew each time: {error}")
            return {"value": value}
        return stored

    def _roll_back(self, name: str) -> None:
        """Undo what an unfinished loop of this name did, so that it goes on from its checkpoint."""
        if name in self._left:
            state, entry = self._left.pop(name)
            self._stack.pop(name, None)
            checkpoint.restore_states(state, [], entry)

    def _last_good(self, phase: str) -> str:
        """Words on the newest checkpoint of a phase."""
        files = [*(self._store.folder / "phases").glob(f"{phase}.*.safetensors")]
        if not phase or not files:
            return "no checkpoint was saved yet"
        newest = max(files, key=os.path.getmtime)
        done = checkpoint.load(newest)["done"]
        return f"the last good checkpoint is {newest.relative_to(self.folder)}, after {done} steps"


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
