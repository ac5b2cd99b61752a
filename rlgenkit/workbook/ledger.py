"""Claims in words: what will be judged, and what was measured beside it, as markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .claims import Claim, Rival, Row, load_rows, sentences
from .show import table_text


def claims_table(
    claims: Sequence[Claim], predictions: Mapping[str, tuple[float, float, bool]] | None = None
) -> str:
    """Markdown table of claims with verdicts; primary rows are bold.

    predictions: as from `predictions`, adds the column "study".
    """
    every = predictions or {}
    columns = {
        "claim": [_name(c) for c in claims],
        "the paper": [c.paper or "-" for c in claims],
        "tested here": [_stated(c) + _passes(c, " Passes if {}.") for c in claims],
        "measured (95 % interval)": [_amount(c, c) for c in claims],
        "sham or control": [_beside_words(c) for c in claims],
        "study": [_expected(*every[c.id]) if c.id in every else "-" for c in claims],
        "verdict": [f"**{c.verdict}**" + (c.note and f": {c.note}") for c in claims],
    }
    for name in ("sham or control", "study"):
        if not set(columns[name]) - {"-"}:
            del columns[name]
    return table_text([*columns], [*zip(*columns.values())])


def claims_preview(notebook: str) -> str:
    """Markdown of the claims file, as shown before the experiment: what will be judged."""
    every = load_rows(notebook).values()
    rows = [
        [
            _name(r),
            r.paper or "-",
            _stated(r),
            _passes(r, "{}"),
            (r.sham and f"sham: {r.sham}") or (r.control and f"control: {r.control}") or "-",
            r.scale,
        ]
        for r in every
        if not r.check and not r.untestable
    ]
    header = ["claim", "the paper", "judged here", "passes if", "sham or control", "scale"]
    parts = [table_text(header, rows)] if rows else []
    if checks := [sentences(r.statement) for r in every if r.check]:
        parts.append("Checked in every run: " + " ".join(checks))
    if closed := [f"{r.id} ({r.untestable})" for r in every if r.untestable]:
        parts.append("Not testable at this scale: " + "; ".join(closed) + ".")
    return "\n\n".join(parts) or "There is no claims file for this notebook."


def _name(row: Row | Claim) -> str:
    return f"**{row.id}**" if row.primary else row.id


def _stated(row: Row | Claim) -> str:
    return ("*Ours:* " if row.ours else "") + sentences(row.statement)


def _passes(row: Row | Claim, words: str) -> str:
    if row.threshold is None:
        return ""
    return words.format(f"{row.measure} {row.direction} {row.threshold:.4g} {row.unit}".strip())


def _amount(claim: Claim, found: Claim | Rival) -> str:
    if found.value is None:
        return "-"
    low, high = found.interval
    value = f"{found.value:.3g} {claim.unit}".strip()
    return f"{value} ({low:.3g} to {high:.3g}, n={found.n})"


def _beside_words(claim: Claim) -> str:
    for word in ("sham", "control"):
        if rival := getattr(claim, word):
            return f"{word} ({rival.arm}): {_amount(claim, rival)}, {rival.verdict}"
    return "-"


def _expected(low: float, high: float, inside: bool) -> str:
    return f"{'inside' if inside else 'outside'} {low:.3g} to {high:.3g}"
