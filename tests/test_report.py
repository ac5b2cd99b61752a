"""The pages that are made from results: sentences with their numbers, old results, the index."""

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
OLD = {
    **STUDY,
    "schema": 1,
    "notebook": "02_flow_grpo",
    "profile": "default",
    "claims": [
        {
            "id": "A",
            "paper": "p",
            "statement": "gain, less loss",
            "values": [1, 2],
            "threshold": 1.0,
            "direction": ">=",
            "unit": "x",
            "value": 1.5,
            "interval": [1.0, 2.0],
            "n": 2,
            "verdict": "supported",
            "note": "",
        },
        {
            "id": "B",
            "paper": "q",
            "statement": "",
            "values": [],
            "threshold": None,
            "direction": "",
            "unit": "",
            "value": None,
            "interval": None,
            "n": 0,
            "verdict": "not testable at this scale",
            "note": "too large",
        },
    ],
}
del OLD["checks"]


@pytest.fixture
def page(monkeypatch):
    monkeypatch.setattr(report, "results", lambda: [STUDY, OLD])
    return report.reproducibility()


def test_ledger_tells_each_row_in_sentences(page):
    assert (
        "- **C1 (primary): supported.** Exact answers rise. The paper: GenEval rises from 0.63 "
        "to 0.95. After less before: 0.212 points over 8 seeds (95 % interval 0.171 to 0.25, "
        "Student's t); the row passes with 0.15 points or more. The sham (permuted rewards): "
        "0.01 points over 8 seeds (95 % interval -0.02 to 0.04, Student's t), not supported. "
        "The rate is ours.\n"
    ) in page
    assert (
        "- **C2 (ours): not judged.** Exact answers rise. After less before: 0.212 over 1 "
        "seed; the row passes with 0.15 or less. The rate is ours.\n"
    ) in page
    assert (
        "- **C3: not testable at this scale.** Exact answers rise. The paper: Robots walk. No "
        "physics engine here.\n"
    ) in page
    assert page.index("**C1 (primary)") < page.index("**C2 (ours)")
    assert "3 rows: 1 supported, 1 not judged, 1 not testable at this scale." in page
    assert "`python -m rlgenkit run 01_ddpo --profile study --jobs 2`" in page
    assert "on a processor" in page and "25 min" in page
    assert "Checks that held in the run: INV, *Ratios are 1*." in page


def test_ledger_gives_old_results_no_verdict(page):
    assert (
        "- **A: not judged.** Gain, less loss. Measured: 1.5 x, mean of 2; the row passes with "
        "1 x or more.\n"
    ) in page
    assert "- **B: not testable at this scale.** The paper: Q. Too large.\n" in page
    assert "Notebooks 02 ran before these rules" in page and "[1, 2]" not in page


def test_index_has_a_line_for_each_notebook(page):
    text = "Head\n<!-- begin:index -->STALE<!-- end:index -->\nTail\n"
    made = report.readme(text)
    assert "STALE" not in made and made.startswith("Head") and made.endswith("Tail\n")
    assert report.readme(made) == made
    assert made.count("\n| [") == len(series())
    assert "[T \\| U](https://arxiv.org/abs/2001.1) (2020)" in made
    assert "| Exact answers rise. **Supported**: 0.212 [0.171, 0.25] over 8. | 25 min |" in made
    assert "| Not yet a study. | 25 min |" in made
    assert "| draft, no official run yet | - |" in made
    with pytest.raises(InputError, match="markers"):
        report.readme("no markers")


@pytest.mark.parametrize("seconds, words", [(23, "23 s"), (244, "4 min"), (9000, "2.5 h")])
def test_times_are_those_of_a_reader(seconds, words):
    assert report.duration(seconds) == words
