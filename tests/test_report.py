"""The pages that are made from results: sentences with their numbers, the index."""

import re

import pytest

from ci import report
from rlgenkit.commands.places import InputError, series

CLAIM = {
    "id": "C1",
    "primary": True,
    "ours": False,
    "paper": "GenEval rises from 0.63 to 0.95",
    "statement": "exact answers rise",
    "measure": "after less before",
    "values": [0.2] * 8,
    "threshold": 0.15,
    "direction": ">=",
    "unit": "points",
    "kind": "t",
    "scale": "embedded",
    "value": 0.2123,
    "interval": [0.1711, 0.25],
    "n": 8,
    "verdict": "supported",
    "note": "the rate is ours",
    "control": None,
    "sham": {
        "arm": "permuted rewards",
        "value": 0.01,
        "interval": [-0.02, 0.04],
        "n": 8,
        "verdict": "not supported",
    },
}
OTHER = {
    **CLAIM,
    "id": "C2",
    "primary": False,
    "ours": True,
    "paper": "",
    "sham": None,
    "kind": "binomial",
    "unit": "",
    "direction": "<=",
    "verdict": "not judged",
    "n": 1,
}
CLOSED = {
    **OTHER,
    "id": "C3",
    "ours": False,
    "paper": "Robots walk.",
    "threshold": None,
    "direction": "",
    "kind": "",
    "value": None,
    "interval": None,
    "n": 0,
    "verdict": "not testable at this scale",
    "note": "No physics engine here.",
}
STUDY = {
    "schema": 2,
    "notebook": "01_ddpo",
    "title": "DDPO",
    "profile": "study",
    "seeds": [0, 1],
    "paper": {"title": "T | U", "year": 2020, "arxiv": "2001.1"},
    "claims": [OTHER, CLAIM, CLOSED],
    "checks": [{"id": "INV", "statement": "Ratios are 1."}],
    "provenance": {"versions": {"torch": "2"}, "device": "cpu"},
    "timing": {"seconds": 1500, "hardware": "a processor"},
}
DEFAULT = {**STUDY, "notebook": "02_flow_grpo", "profile": "default", "claims": []}


@pytest.fixture
def page(monkeypatch):
    monkeypatch.setattr(report, "results", lambda: [STUDY, DEFAULT])
    return report.reproducibility()


def test_ledger_tells_each_row_in_sentences(page):
    assert (
        "- **C1 (primary): supported.** Exact answers rise. The paper: GenEval rises from 0.63 "
        "to 0.95. We measure: after less before. It is 0.212 points over 8 seeds (95 % interval "
        "0.171 to 0.25, Student's t); the row passes with 0.15 points or more, and the verdict is "
        "supported. The sham (permuted rewards) has 0.01 points over 8 seeds (95 % interval -0.02 "
        "to 0.04, Student's t) and is not supported. The rate is ours.\n"
    ) in page
    assert (
        "- **C2 (ours): not judged.** Exact answers rise. We measure: after less before. It is "
        "0.212 over 1 seed; the row passes with 0.15 or less, and the verdict is not judged. The "
        "rate is ours.\n"
    ) in page
    assert (
        "- **C3: not testable at this scale.** Exact answers rise. The paper: Robots walk. No "
        "physics engine here.\n"
    ) in page
    assert page.index("**C1 (primary)") < page.index("**C2 (ours)")
    assert "- 1 primary rows: 1 supported." in page
    assert "- 2 other rows: 1 not judged, 1 not testable at this scale." in page
    assert "`python -m rlgenkit run 01_ddpo --profile study --jobs 2`" in page
    assert "on a processor" in page and "25 min" in page
    assert "Checks that held in the run: INV, *Ratios are 1*." in page


def test_every_row_of_the_page_is_made_of_whole_sentences():
    text = report.reproducibility()
    rows = re.findall(r"^- \*\*[^*]+: [a-z ]+\.\*\*(.*)$", text, flags=re.M)
    assert len(rows) == sum(len(r["claims"]) for r in report.results())
    for row in rows:
        assert row.endswith(".") and not re.search(
            r"[.?!:]\.(?!\d)|: -(\s|$)|\bNone\b|\bnan\b|  ", row
        ), row
        if "We measure" in row:
            assert re.search(
                r" over \d+ (seed|cluster).*; the row passes with .*the verdict is", row
            )
        else:
            assert "passes" not in row


def test_index_has_a_line_for_each_notebook(page):
    text = "Head\n<!-- begin:index -->STALE<!-- end:index -->\nTail\n"
    made = report.readme(text)
    assert "STALE" not in made and made.startswith("Head") and made.endswith("Tail\n")
    assert report.readme(made) == made
    assert made.count("\n| [") == len(series())
    assert "[T \\| U](https://arxiv.org/abs/2001.1) (2020)" in made
    assert "| Exact answers rise. **Supported**: 0.212 [0.171, 0.25] over 8. | 25 min |" in made
    assert "| an introduction, nothing is judged | 25 min |" in made
    assert "| draft, no official run yet | - |" in made
    with pytest.raises(InputError, match="markers"):
        report.readme("no markers")


@pytest.mark.parametrize("seconds, words", [(23, "23 s"), (244, "4 min"), (9000, "2.5 h")])
def test_times_are_those_of_a_reader(seconds, words):
    assert report.duration(seconds) == words
