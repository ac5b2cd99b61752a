"""Claims as data: what a notebook will judge, the verdicts, and the schema of results.json.

The rows stand in notebooks/claims/<notebook>.toml before anything runs; `judge` compares what a
run measured with its row.
"""

from __future__ import annotations

import difflib
import hashlib
import json
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
    verdict: str
    note: str
    values: tuple[float, ...] = ()
    value: float | None = None
    interval: tuple[float, float] | None = None
    n: int = 0
    sham: Rival | None = None
    control: Rival | None = None

    def _repr_markdown_(self) -> str:
        from .ledger import claims_table

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
    """What is wrong with one table of the file, "" where nothing is (see claims.schema.json)."""
    known = [f.name for f in fields(Row) if f.name != "id"]
    for key in table if isinstance(table, dict) else ():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0)
            return f"unknown key {key!r}, the nearest is {close[0]!r}"
    return _fault("claims", table)[1].replace("data.", "").replace("data must", "this must")


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
    arms = {"sham": sham, "control": control}
    _refuse(row, arms)
    found = _measured(row, values, clusters)
    word, why = _verdict(row, found, judged)
    rivals = {k: _rival(row, k, v, clusters, judged) for k, v in arms.items()}
    if word == "supported":
        word, why = _beside(**rivals)
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
        **rivals,
    )


def untestable(row: Row) -> Claim:
    """The record of a claim of the paper that this scale cannot test, with its reason."""
    return _unjudged(row, "not testable at this scale", row.untestable, row.note)


def unmeasured(row: Row) -> Claim:
    """The record of a row whose `needs` the reader did not supply."""
    return _unjudged(row, "not measured", f"Needs {row.needs}", row.note)


def complete(
    rows: Mapping[str, Row], judged: Mapping[str, Claim], checks: Iterable[str], full: bool
) -> list[Claim]:
    """Every row but the checks, in the order of the file: judged, untestable or not measured.

    full: the profile of other settings, where it is too late to refuse what is missing.
    """
    found, missing = [], []
    for id, row in rows.items():
        if id in judged:
            found.append(judged[id])
        elif row.untestable:
            found.append(untestable(row))
        elif row.needs or full and not row.check:
            found.append(unmeasured(replace(row, needs=row.needs or "settings of the study")))
        elif not full and id not in checks:
            missing.append(id)
    if missing:
        raise ValueError(
            f"rows {', '.join(missing)} of the claims were neither judged nor "
            "checked: call run.judge or run.check, or say what they need"
        )
    return found


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
        if id in rows and rows[id].threshold not in (None, old) and f"{old:g}" not in rows[id].note
    }


def _refuse(row: Row, arms: Mapping[str, Any]) -> None:
    if row.check or row.untestable:
        why = "a check: use run.check" if row.check else "untestable in its claims file"
        raise ValueError(f"claim {row.id} is {why}; it takes no values")
    for word, values in arms.items():
        name = getattr(row, word)
        if (values is None) == bool(name):
            here = f"the {word} {name!r}, whose values are missing ({word}=...)"
            here = here if name else f"no {word}, but values of one were given"
            raise ValueError(f"claim {row.id}: its claims file names {here}")


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
        # Shares at their edge, all 0 or 1, have no spread that Student's t could use.
        if row.interval == "binomial" or len(x) > 1 and set(x.tolist()) <= {0.0, 1.0}:
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


def _rival(row: Row, word: str, values: Any, clusters: Any, judged: bool) -> Rival | None:
    if values is None:
        return None
    found = _measured(row, values, clusters)
    ends = (float(found.low), float(found.high))
    verdict, _ = _verdict(row, found, judged)
    return Rival(getattr(row, word), float(found.value), ends, found.n, verdict)


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
    names = "id primary ours paper statement measure threshold direction unit scale".split()
    own = {name: getattr(row, name) for name in names}
    return Claim(**own, kind=row.interval, verdict=verdict, note=sentences(*notes))


def _flat(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float64).reshape(-1)


def sentences(*parts: str) -> str:
    """The parts that are not empty as sentences: first letter large, a full stop at the end."""
    said = [" ".join(part.split()) for part in parts if part.strip()]
    return " ".join(p[0].upper() + p[1:] + ("" if p[-1] in ".!?" else ".") for p in said)


# --- schema


def validate(results: dict[str, Any]) -> None:
    """Raise ValueError naming the first place where `results` leaves results.schema.json."""
    place, message = _fault("results", results)
    if message:
        raise ValueError(f"results do not fit the schema at {place}: {message}")


def _fault(name: str, content: Any) -> tuple[str, str]:
    """(place, what is wrong there) where `content` leaves <name>.schema.json; "" where it fits."""
    from fastjsonschema import JsonSchemaValueException

    try:
        _validator(name)(content)
    except JsonSchemaValueException as error:
        return "/".join(map(str, error.path[1:])) or "the top level", error.message
    return "", ""


@cache
def _validator(name: str) -> Callable[[Any], Any]:
    import fastjsonschema

    path = Path(__file__).with_name(f"{name}.schema.json")
    return fastjsonschema.compile(json.loads(path.read_text(encoding="utf-8")))
