"""Claims as data: what a notebook will judge, the verdicts, and the schema of results.json.

The rows stand in notebooks/claims/<notebook>.toml before anything runs; `judge` compares what a
run measured with its row.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .intervals import (
    ENOUGH,
    Interval,
    binomial_interval,
    cluster_interval,
    interval,
    prediction_interval,
)
from .provenance import ROOT

FOLDER = ROOT / "notebooks" / "claims"
RESULTS, STUDIES = ROOT / "data" / "results", ROOT / "data" / "studies"
SCALES = ("exact", "microworld", "embedded", "human data", "real model")
VERDICTS = (
    "supported",
    "not supported",
    "inconclusive",
    "not judged",
    "not testable at this scale",
    "not measured",
)
JUDGED = ("measure", "threshold", "direction", "interval", "scale")  # keys of a judged row


@dataclass(frozen=True)
class Row:
    """One table of the TOML: a judged row, a check (an assertion) or an untestable claim.

    paper: what the paper says; statement: the sentence that is judged; measure: how one value
    comes about; needs: what the reader must supply for the row to be measured at all.
    """

    id: str
    statement: str
    paper: str = ""
    measure: str = ""
    threshold: float | None = None
    direction: str = ""
    unit: str = ""
    interval: str = ""
    scale: str = ""
    sham: str = ""
    control: str = ""
    needs: str = ""
    untestable: str = ""
    note: str = ""
    primary: bool = False
    ours: bool = False
    check: bool = False


@dataclass(frozen=True)
class Rival:
    """The same row on a sham or control arm."""

    arm: str
    value: float
    interval: tuple[float, float]
    n: int
    verdict: str


@dataclass(frozen=True)
class Claim:
    """A row with what was measured: `value` with its 95 % `interval` of `kind`, and the verdict.

    values: one per seed or item, empty where an interval was handed over.  n: seeds or clusters.
    """

    id: str
    primary: bool
    ours: bool
    paper: str
    statement: str
    measure: str
    threshold: float | None
    direction: str
    unit: str
    kind: str
    scale: str
    values: tuple[float, ...]
    value: float | None
    interval: tuple[float, float] | None
    n: int
    verdict: str
    note: str
    sham: Rival | None = None
    control: Rival | None = None

    def _repr_markdown_(self) -> str:
        return claims_table([self])


# --- rows


def load_rows(notebook: str) -> dict[str, Row]:
    """Rows of notebooks/claims/<notebook>.toml by id; none where there is no such file.

    ValueError with one sentence for the first fault.
    """
    content = _content(notebook)
    if content is None:
        return {}
    try:
        tables = tomllib.loads(content.decode("utf-8"))
    except ValueError as error:  # bad TOML or bad UTF-8
        raise ValueError(f"claims/{notebook}.toml cannot be read: {error}") from None
    for id, table in tables.items():
        if problem := _problem(table):
            raise ValueError(f"claims/{notebook}.toml, [{id}]: {problem}")
    return {id: Row(id=id, **table) for id, table in tables.items()}


def rows_digest(notebook: str) -> str | None:
    """SHA-256 of the claims file, or None where there is none."""
    content = _content(notebook)
    return None if content is None else hashlib.sha256(content).hexdigest()


def _content(notebook: str) -> bytes | None:
    path = FOLDER / f"{notebook}.toml"
    return path.read_bytes() if path.is_file() else None


def _problem(table: Any) -> str:
    """What is wrong with one table of the file, "" where nothing is."""
    if not isinstance(table, dict):
        return "this must be a table, [ID] with its keys below"
    known = {f.name: type(f.default) for f in fields(Row) if f.name != "id"}
    known |= {"statement": str, "threshold": float}
    for key, value in table.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0)
            return f"unknown key {key!r}, the nearest is {close[0]!r}"
        if not _is(value, known[key]):
            return f"{key} must be {_WORDS[known[key]]}, not {value!r}"
    return _missing(table) or _contradiction(table)


_WORDS = {str: "text", bool: "true or false", float: "a finite number"}


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and math.isfinite(value)
    return isinstance(value, kind)


def _missing(table: Mapping[str, Any]) -> str:
    if table.get("check") or table.get("untestable"):
        need = ("statement",)
    else:
        need = ("statement", *JUDGED)
    if not (table.get("ours") or table.get("check")):
        need = ("paper", *need)
    gone = [key for key in need if table.get(key, "") == ""]
    if gone == ["paper"]:
        return "paper is missing; a statement of ours says ours = true"
    return f"{' and '.join(gone)} {'is' if len(gone) == 1 else 'are'} missing" if gone else ""


def _contradiction(table: Mapping[str, Any]) -> str:
    allowed = {"direction": (">=", "<="), "interval": ("t", "binomial", "cluster"), "scale": SCALES}
    for key, words in allowed.items():
        if table.get(key, words[0]) not in words:
            return f"{key} must be one of {', '.join(words)}, not {table[key]!r}"
    if table.get("sham") and table.get("control"):
        return "a row has a sham (a claim of gain) or a control (of no difference), not both"
    if table.get("check") or table.get("untestable"):
        both = table.get("check") and table.get("untestable")
        extra = [k for k in (*JUDGED[:-1], "sham", "control", "needs") if table.get(k)]
        if both or extra:
            kind = "a check" if table.get("check") else "an untestable row"
            return f"{'untestable' if both else extra[0]} does not belong to {kind}"
    return ""


# --- judging


def judge(
    row: Row,
    values: Sequence[float] | Interval,
    *,
    clusters: Any = None,
    sham: Any = None,
    control: Any = None,
    judged: bool = True,
    note: str = "",
) -> Claim:
    """Compare what was measured with its row.

    values, sham, control: one number per seed (cluster rows: per item, with clusters [N]), or an
    Interval.  judged: False where the profile judges nothing.  note: a sentence computed in the
    run.  ValueError for a row that takes no values, a sham or control that the TOML does not name
    (or names and did not get), values that are not finite or do not suit the row's interval.
    """
    _refuse(row, sham, control)
    found = _measured(row, values, clusters)
    word, why = _verdict(row, found, judged)
    arms = {
        "sham": _rival(row, row.sham, sham, clusters, judged),
        "control": _rival(row, row.control, control, clusters, judged),
    }
    if word == "supported":
        word, why = _beside(**arms)
    given = () if isinstance(values, Interval) else tuple(map(float, _flat(values)))
    edge = "All values are 0 or 1, so the interval is the exact binomial one"
    odd = edge if (row.interval, found.kind) == ("t", "binomial") else ""
    return replace(
        _unjudged(row, word, row.note, note, odd, why),
        values=given,
        value=float(found.value),
        kind=found.kind,
        interval=(float(found.low), float(found.high)),
        n=found.n,
        **arms,
    )


def untestable(row: Row) -> Claim:
    """The record of a claim of the paper that this scale cannot test, with its reason."""
    return _unjudged(row, "not testable at this scale", row.untestable, row.note)


def unmeasured(row: Row) -> Claim:
    """The record of a row whose `needs` the reader did not supply."""
    return _unjudged(row, "not measured", f"Needs {row.needs}", row.note)


def predictions(notebook: str, claims: Iterable[Claim]) -> dict[str, tuple[float, float, bool]]:
    """Claim id -> (low, high, inside): the study's 95 % prediction interval for a mean of as many
    seeds as this run has, and whether this run's mean lies in it.

    Empty without a committed study, or where the claims file changed since.
    """
    study, digest = _study(notebook), rows_digest(notebook)
    if digest is None or study.get("claims_sha256") != digest:
        return {}
    theirs = {
        c["id"]: c["values"] for c in study["claims"] if c["kind"] == "t" and len(c["values"]) > 1
    }
    found = {}
    for claim in claims:
        if claim.id in theirs and claim.kind == "t" and claim.n:
            _, low, high = prediction_interval(theirs[claim.id], claim.n)
            slack = 1e-12 * max(abs(low), abs(high))  # studies of equal values have no width
            found[claim.id] = (low, high, low - slack <= claim.value <= high + slack)
    return found


def _study(notebook: str) -> dict[str, Any]:
    """The committed results of a notebook's study, {} where there are none."""
    path = RESULTS / f"{notebook[:2]}.json"
    study = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return study if study.get("profile") == "study" else {}


def first_thresholds(notebook: str) -> dict[str, float]:
    """Row id -> threshold that its first committed study was held against."""
    path = STUDIES / notebook[:2] / "study.json"
    about = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    latest = {c["id"]: c["threshold"] for c in _study(notebook).get("claims", [])}
    return {k: v for k, v in {**latest, **about.get("thresholds", {})}.items() if v is not None}


def moved(notebook: str) -> dict[str, float]:
    """Row id -> first threshold, of the rows that have another one now and do not say so in note."""
    rows, first = load_rows(notebook), first_thresholds(notebook)
    return {
        id: old
        for id, old in first.items()
        if id in rows and rows[id].threshold != old and f"{old:g}" not in rows[id].note
    }


def _refuse(row: Row, sham: Any, control: Any) -> None:
    if row.check:
        raise ValueError(f"claim {row.id} is a check: use run.check, it gets no verdict")
    if row.untestable:
        raise ValueError(f"claim {row.id} is untestable in its claims file: it takes no values")
    for word, name, given in (("sham", row.sham, sham), ("control", row.control, control)):
        if given is not None and not name:
            raise ValueError(
                f"claim {row.id}: its claims file names no {word}, but values of one were given"
            )
        if given is None and name:
            raise ValueError(
                f"claim {row.id}: its claims file names the {word} {name!r}, whose "
                f"values are missing ({word}=...)"
            )


def _all_or_nothing(x: np.ndarray) -> bool:
    """Whether all values are 0 or 1: shares at their edge, whose spread Student's t cannot use."""
    return len(x) > 1 and set(x.tolist()) <= {0.0, 1.0}


def _measured(row: Row, values: Any, clusters: Any) -> Interval:
    """The interval of the row's kind; ValueError in words of the claim."""
    if isinstance(values, Interval):
        if values.kind != row.interval:
            raise ValueError(
                f"claim {row.id}: its claims file asks for the interval "
                f"{row.interval!r}, not {values.kind!r}"
            )
        if not np.isfinite([*values]).all() or np.ndim(values.value):
            raise ValueError(f"claim {row.id}: the interval must be three finite numbers")
        return values
    if (clusters is None) == (row.interval == "cluster"):
        raise ValueError(
            f'claim {row.id}: clusters= belong to rows with interval = "cluster", '
            f"this one says {row.interval!r}"
        )
    x = _flat(values)
    if not len(x) or not np.isfinite(x).all():
        raise ValueError(f"claim {row.id}: values must be finite numbers, not {values}")
    try:
        if row.interval == "cluster":
            return cluster_interval(x, clusters)
        if row.interval == "binomial" or _all_or_nothing(x):
            return binomial_interval(x)
        return interval(x)
    except ValueError as error:
        raise ValueError(f"claim {row.id}: {error}") from None


def _verdict(row: Row, found: Interval, judged: bool) -> tuple[str, str]:
    """(verdict, reason): supported if the whole interval passes, not supported if it all fails."""
    if not judged:
        return "not judged", "this profile judges nothing"
    if found.n < ENOUGH:
        unit = "cluster" if row.interval == "cluster" else "seed"
        return "not judged", f"{found.n} {unit}{'s' * (found.n > 1)}; a verdict needs {ENOUGH}"
    sign = 1 if row.direction == ">=" else -1
    slack = 1e-12 * abs(row.threshold)  # a mean of equal numbers may be off by one rounding
    passes = [sign * (end - row.threshold) >= -slack for end in (found.low, found.high)]
    return ("supported" if all(passes) else "inconclusive" if any(passes) else "not supported"), ""


def _rival(row: Row, arm: str, values: Any, clusters: Any, judged: bool) -> Rival | None:
    if values is None:
        return None
    found = _measured(row, values, clusters)
    word, _ = _verdict(row, found, judged)
    return Rival(arm, float(found.value), (float(found.low), float(found.high)), found.n, word)


def _beside(sham: Rival | None, control: Rival | None) -> tuple[str, str]:
    """(verdict, reason) of a claim that is supported by itself, beside its sham or control."""
    for word, rival in (("sham", sham), ("control", control)):
        if rival and rival.verdict == "not judged":
            return rival.verdict, f"the {word} has only n={rival.n}; a verdict needs {ENOUGH}"
    if sham and sham.verdict == "supported":
        return "inconclusive", f"the sham ({sham.arm}) passes too"
    if control and control.verdict != "not supported":
        return "inconclusive", f"the control ({control.arm}) is not told apart"
    return "supported", ""


def _unjudged(row: Row, verdict: str, *notes: str) -> Claim:
    """The claim of a row with nothing measured yet."""
    copied = {
        f.name: getattr(row, f.name)
        for f in fields(Claim)
        if f.name in Row.__dataclass_fields__
        and f.name not in ("interval", "note", "sham", "control")
    }
    return Claim(
        **copied,
        kind=row.interval,
        values=(),
        value=None,
        interval=None,
        n=0,
        verdict=verdict,
        note=sentences(*notes),
    )


def _flat(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float64).reshape(-1)


def sentences(*parts: str) -> str:
    """The parts that are not empty as sentences: first letter large, a full stop at the end."""
    said = [" ".join(part.split()) for part in parts if part.strip()]
    return " ".join(p[0].upper() + p[1:] + ("" if p[-1] in ".!?" else ".") for p in said)


# --- tables


def claims_table(
    claims: Sequence[Claim], predictions: Mapping[str, tuple[float, float, bool]] | None = None
) -> str:
    """Markdown table of claims with verdicts; primary rows are bold.

    predictions: as from `predictions`, adds the column "study".
    """
    rivals = "sham or control" if any(c.sham or c.control for c in claims) else ""
    study = "study" if predictions else ""
    header = [
        "claim",
        "the paper",
        "tested here",
        "measured (95 % interval)",
        rivals,
        study,
        "verdict",
    ]
    rows = []
    for c in claims:
        tested = _stated(c) + ("" if c.threshold is None else f" Passes if {_passes(c)}.")
        beside = [_rival_words(w, r, c) for w, r in (("sham", c.sham), ("control", c.control)) if r]
        cells = [
            _name(c),
            c.paper or "-",
            tested,
            _amount(c, c.value, c.interval, c.n),
            "".join(beside) or "-",
            _expected((predictions or {}).get(c.id)),
            f"**{c.verdict}**" + (f": {c.note}" if c.note else ""),
        ]
        rows.append([cell for cell, name in zip(cells, header) if name])
    return _table([name for name in header if name], rows)


def claims_preview(notebook: str) -> str:
    """Markdown of the claims file, as shown before the experiment: what will be judged."""
    every = load_rows(notebook).values()
    rows = [
        [
            _name(r),
            r.paper or "-",
            _stated(r),
            _passes(r),
            (r.sham and f"sham: {r.sham}") or (r.control and f"control: {r.control}") or "-",
            r.scale,
        ]
        for r in every
        if not r.check and not r.untestable
    ]
    parts = (
        [
            _table(
                ["claim", "the paper", "judged here", "passes if", "sham or control", "scale"], rows
            )
        ]
        if rows
        else []
    )
    if checks := [sentences(r.statement) for r in every if r.check]:
        parts.append("Checked in every run: " + " ".join(checks))
    if closed := [f"{r.id} ({r.untestable})" for r in every if r.untestable]:
        parts.append("Not testable at this scale: " + "; ".join(closed) + ".")
    return "\n\n".join(parts) or "There is no claims file for this notebook."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        header,
        ["---"] * len(header),
        *([" ".join(c.split()).replace("|", "\\|") for c in row] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _name(row: Row | Claim) -> str:
    return f"**{row.id}**" if row.primary else row.id


def _stated(row: Row | Claim) -> str:
    return ("*Ours:* " if row.ours else "") + sentences(row.statement)


def _passes(row: Row | Claim) -> str:
    if row.threshold is None:
        return "-"
    return f"{row.measure} {row.direction} {row.threshold:.4g}{_unit(row.unit)}"


def _amount(claim: Claim, value: float | None, ends: Any, n: int) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}{_unit(claim.unit)} ({ends[0]:.3g} to {ends[1]:.3g}, n={n})"


def _rival_words(word: str, rival: Rival, claim: Claim) -> str:
    amount = _amount(claim, rival.value, rival.interval, rival.n)
    return f"{word} ({rival.arm}): {amount}, {rival.verdict}"


def _expected(found: tuple[float, float, bool] | None) -> str:
    if found is None:
        return "-"
    low, high, inside = found
    return f"{'inside' if inside else 'outside'} {low:.3g} to {high:.3g}"


def _unit(unit: str) -> str:
    return f" {unit}" if unit else ""


# --- schema


def schema() -> dict[str, Any]:
    """JSON schema of results.json and data/results/NN.json."""
    return json.loads(Path(__file__).with_name("results.schema.json").read_text())


def validate(results: dict[str, Any]) -> None:
    """Raise ValueError naming the first place where `results` leaves the schema."""
    from fastjsonschema import JsonSchemaValueException

    try:
        _validator()(results)
    except JsonSchemaValueException as error:
        place = "/".join(map(str, error.path[1:])) or "the top level"
        raise ValueError(f"results do not fit the schema at {place}: {error.message}") from None


@cache
def _validator() -> Callable[[Any], Any]:
    import fastjsonschema

    return fastjsonschema.compile(schema())
