"""Intervals, claim rows and verdicts, each against an oracle; and what the intervals cover."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy import stats

from rlgenkit import workbook as wb
from rlgenkit.commands.places import ROOT
from rlgenkit.workbook import claims

# --- intervals


def test_t_interval_against_scipy_also_for_curves():
    x = np.random.default_rng(0).normal(size=(8, 3))
    theirs = stats.ttest_1samp(x, 0, axis=0).confidence_interval(0.95)
    found = wb.interval(x)
    np.testing.assert_allclose([*found], [x.mean(0), theirs.low, theirs.high])
    assert (found.n, found.kind) == (8, "t")
    value, low, high = wb.interval(x[:, 0])
    assert (low, high) == pytest.approx((theirs.low[0], theirs.high[0])) and type(low) is float
    assert [*wb.interval([0.4])] == [0.4, 0.4, 0.4]
    for bad in ([], [1.0, np.nan], 3.0):
        with pytest.raises(ValueError, match="at least one value, all finite"):
            wb.interval(bad)


@pytest.mark.parametrize("ones, n", [(0, 5), (3, 5), (8, 8), (1, 1), (17, 40)])
def test_binomial_interval_against_scipy(ones, n):
    theirs = stats.binomtest(ones, n).proportion_ci(0.95, "exact")
    found = wb.binomial_interval([1] * ones + [0] * (n - ones))
    assert [*found] == pytest.approx([ones / n, theirs.low, theirs.high])
    with pytest.raises(ValueError, match="zeros and ones"):
        wb.binomial_interval([0.5, 1])


def test_prediction_interval_is_student_t_of_the_difference_of_two_means():
    x = np.array([0.1, 0.4, 0.2, 0.5, 0.3])
    found = wb.prediction_interval(x, 2)
    error = np.sqrt(x.var(ddof=1) / 5 + x.var(ddof=1) / 2)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 4, x.mean(), error))
    with pytest.raises(ValueError, match="needs two values"):
        wb.prediction_interval([1.0], 2)


def test_few_clusters_of_equal_size_are_as_many_values():
    rng = np.random.default_rng(1)
    values, clusters = rng.normal(size=40), np.repeat(list("abcdefghij"), 4)
    theirs = wb.interval(values.reshape(10, 4).mean(1))
    for found in (
        wb.cluster_interval(values, clusters),
        wb.clustered_interval(lambda rows: values[rows].mean(), clusters),
    ):
        assert [*found] == pytest.approx([*theirs]) and (found.n, found.kind) == (10, "cluster")


def test_few_clusters_of_unequal_size_by_hand():
    values, clusters = np.array([1.0, 2.0, 6.0, 3.0]), np.array([0, 0, 1, 2])
    left = np.array([4.5, 2.0, 3.0])  # the mean without each cluster
    error = np.sqrt(2 / 3 * ((left - left.mean()) ** 2).sum())
    for found in (
        wb.cluster_interval(values, clusters),
        wb.clustered_interval(lambda rows: values[rows].mean(), torch.tensor(clusters)),
    ):
        assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 2, 3.0, error))


def test_many_clusters_are_resampled_as_a_whole():
    rng = np.random.default_rng(2)
    clusters = np.arange(400) // 4
    values = rng.normal(size=100)[clusters]  # four equal twins a cluster: a hundred observations
    mean = wb.cluster_interval(values, clusters)
    any_statistic = wb.clustered_interval(lambda rows: values[rows].mean(), clusters)
    assert [*mean] == pytest.approx([*any_statistic])  # the same draws
    assert (mean.high - mean.low) / 3.92 == pytest.approx(values.std() / 10, rel=0.1)
    assert mean == wb.cluster_interval(values, clusters)


def test_rows_choose_the_items_and_bad_clusters_are_told():
    values, clusters, rows = np.arange(8.0), np.arange(8) // 2, torch.tensor([0, 1, 4, 5])
    found = wb.clustered_interval(lambda rows: values[rows].mean(), clusters, rows)
    assert found.value == 2.5 and found.n == 2
    only = wb.clustered_interval(lambda rows: values[rows].mean(), np.zeros(8))
    assert only.low == only.value == only.high and only.n == 1
    with pytest.raises(ValueError, match="needs its cluster"):
        wb.cluster_interval(values, clusters[:4])
    with pytest.raises(ValueError, match="all finite"):
        wb.clustered_interval(lambda rows: float("nan"), clusters)


# --- what they cover


def covered(draw, n: int, runs: int = 20_000, mean: float = 0.0) -> tuple[float, float]:
    """(share of t intervals that hold `mean`, share that decide a gain or loss against it)."""
    _, low, high = wb.interval(draw((n, runs)))
    return float(((low <= mean) & (mean <= high)).mean()), float(
        ((low > mean) | (high < mean)).mean()
    )


@pytest.mark.parametrize("n", [5, 8, 10])
def test_t_intervals_cover_and_seldom_decide_on_nothing(n):
    rng = np.random.default_rng(n)
    share, wrong = covered(rng.standard_normal, n)
    skewed, odd = covered(rng.standard_exponential, n, mean=1.0)
    print(
        f"n={n}: covers {share:.1%} (normal), {skewed:.1%} (exponential); a zero effect gets a "
        f"verdict in {wrong:.1%} (normal), {odd:.1%} (exponential)"
    )
    assert 0.93 <= share <= 0.97 and wrong <= 0.07 and skewed >= 0.85


def test_ten_clusters_cover():
    rng, hits = np.random.default_rng(0), {"normal": 0, "exponential": 0}
    clusters, runs = np.repeat(np.arange(10), rng.integers(2, 7, size=10)), 2_000
    for name, draw, mean in (
        ("normal", rng.standard_normal, 0.0),
        ("exponential", rng.standard_exponential, 1.0),
    ):
        for _ in range(runs):
            values = draw(10)[clusters] + rng.normal(size=len(clusters))
            _, low, high = wb.cluster_interval(values, clusters)
            hits[name] += low <= mean <= high
    print({name: f"{count / runs:.1%}" for name, count in hits.items()})
    assert hits["normal"] >= 0.93 * runs and hits["exponential"] >= 0.85 * runs


def test_a_further_run_lies_in_the_prediction_interval():
    x = np.random.default_rng(0).standard_normal((10, 20_000))
    _, low, high = wb.prediction_interval(x[:8], 2)
    new = x[8:].mean(0)
    assert ((low <= new) & (new <= high)).mean() == pytest.approx(0.95, abs=0.01)


# --- verdicts

ROW = wb.Row(
    "C1",
    "Exact answers rise.",
    paper="From 0.63 to 0.95.",
    measure="after less before",
    threshold=0.5,
    direction=">=",
    interval="t",
    scale="embedded",
)
HIGH, LOW, WIDE = [0.6, 0.7, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.2, 0.1], [0.2, 0.9, 0.1, 0.8, 0.6]


@pytest.mark.parametrize(
    "values, direction, expected",
    [
        (HIGH, ">=", "supported"),
        (WIDE, ">=", "inconclusive"),
        (LOW, ">=", "not supported"),
        (LOW, "<=", "supported"),
        (HIGH, "<=", "not supported"),
        ([0.5] * 5, ">=", "supported"),
        (HIGH[:4], ">=", "not judged"),
    ],
)
def test_verdict_of_the_whole_interval(values, direction, expected):
    claim = wb.judge(replace(ROW, direction=direction), values)
    assert claim.verdict == expected
    assert list(claim.interval) == pytest.approx([*wb.interval(values)][1:])
    assert claim.value == pytest.approx(np.mean(values)) and claim.n == len(values)


def test_few_seeds_and_quick_runs_get_no_verdict():
    assert wb.judge(ROW, [0.9]).note == "1 seed; a verdict needs 5."
    few = wb.judge(replace(ROW, note="the threshold is ours"), HIGH[:2], note="One sentence.")
    assert few.note == "The threshold is ours. One sentence. 2 seeds; a verdict needs 5."
    quick = wb.judge(ROW, HIGH, judged=False)
    assert (quick.verdict, quick.note) == ("not judged", "This profile judges nothing.")


def test_a_sham_that_passes_spoils_the_claim():
    row = replace(ROW, sham="permuted rewards")
    fine = wb.judge(row, HIGH, sham=LOW)
    assert fine.verdict == "supported" and fine.sham.verdict == "not supported"
    spoilt = wb.judge(row, HIGH, sham=HIGH)
    assert spoilt.verdict == "inconclusive"
    assert spoilt.note == "The sham (permuted rewards) passes too."
    assert wb.judge(row, LOW, sham=HIGH).verdict == "not supported"
    few = wb.judge(row, HIGH, sham=LOW[:2])
    assert (few.verdict, few.note) == ("not judged", "The sham has only n=2; a verdict needs 5.")


def test_a_claim_of_no_difference_needs_a_difference_that_the_test_finds():
    row = replace(ROW, direction="<=", control="a broken reward")
    fine = wb.judge(row, LOW, control=HIGH)
    assert fine.verdict == "supported" and fine.control.verdict == "not supported"
    for control in (LOW, WIDE):
        blunt = wb.judge(row, LOW, control=control)
        assert blunt.verdict == "inconclusive" and "is not told apart" in blunt.note
    assert wb.judge(row, HIGH, control=LOW).verdict == "not supported"


def test_shares_and_clusters_have_their_own_intervals():
    share = wb.judge(replace(ROW, interval="binomial"), [1] * 8)
    assert share.verdict == "supported" and share.interval == pytest.approx((0.6306, 1), abs=1e-4)
    assert wb.judge(replace(ROW, interval="binomial"), [1] * 5).verdict == "inconclusive"
    row, clusters = replace(ROW, interval="cluster"), np.arange(20) // 4
    values = np.repeat(HIGH, 4)
    told = wb.judge(row, torch.tensor(values), clusters=clusters)
    ready = wb.judge(row, wb.clustered_interval(lambda rows: values[rows].mean(), clusters))
    assert told.verdict == ready.verdict == "supported" and (told.n, len(told.values)) == (5, 20)
    assert ready.values == () and ready.interval == pytest.approx(told.interval)
    assert (
        wb.judge(row, values[:16], clusters=clusters[:16]).note == "4 clusters; a verdict needs 5."
    )


@pytest.mark.parametrize(
    "changes, values, named, words",
    [
        ({"check": True}, HIGH, {}, "is a check"),
        ({"untestable": "no engine"}, HIGH, {}, "takes no values"),
        ({}, HIGH, {"sham": LOW}, "names no sham"),
        ({"sham": "permuted"}, HIGH, {}, "names the sham 'permuted'"),
        ({"control": "broken"}, HIGH, {}, "names the control 'broken'"),
        ({}, [0.1, np.nan], {}, "must be finite numbers"),
        ({}, [], {}, "must be finite numbers"),
        ({"interval": "binomial"}, HIGH, {}, "zeros and ones"),
        ({}, HIGH, {"clusters": [1, 2, 3, 4, 5]}, "clusters="),
        ({"interval": "cluster"}, HIGH, {}, "clusters="),
        (
            {"interval": "cluster"},
            wb.interval(HIGH),
            {},
            "asks for the interval 'cluster', not 't'",
        ),
        ({}, wb.interval(np.ones((5, 2))), {}, "three finite numbers"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_sentence(changes, values, named, words):
    with pytest.raises(ValueError, match=words) as error:
        wb.judge(replace(ROW, **changes), values, **named)
    assert "C1" in str(error.value) and "\n" not in str(error.value)


def test_equal_shares_of_few_seeds_pass_since_nothing_is_judged():
    assert wb.judge(ROW, [0.0, 0.0]).verdict == "not judged"
    assert wb.judge(ROW, [0.0, 1.0], judged=False).verdict == "not judged"


# --- the file

GOOD = """
[C1]
primary = true
paper = "GenEval rises."
statement = "Exact answers rise."
measure = "after less before"
threshold = 0.15
direction = ">="
interval = "t"
sham = "permuted"
scale = "embedded"
[INV-a]
check = true
statement = "Ratios are 1."
scale = "exact"
[C7]
untestable = "no physics engine here"
paper = "Robots walk."
statement = "Robots walk."
[C4]
needs = "human_labels"
ours = true
statement = "People agree | mostly"
measure = "share of pairs"
threshold = 1
direction = "<="
unit = "points"
interval = "binomial"
control = "shuffled"
scale = "human data"
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "FOLDER", tmp_path)
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    return lambda text: (tmp_path / "01_x.toml").write_text(text, encoding="utf-8")


def test_rows_come_from_the_file(written):
    assert wb.load_rows("01_x") == {} and wb.rows_digest("01_x") is None
    assert "no claims file" in wb.claims_preview("01_x")
    written(GOOD)
    rows = wb.load_rows("01_x")
    assert list(rows) == ["C1", "INV-a", "C7", "C4"] and rows["C1"].primary and rows["C4"].ours
    assert len(wb.rows_digest("01_x")) == 64
    shown = wb.claims_preview("01_x")
    assert (
        "| **C1** | GenEval rises. | Exact answers rise. | after less before >= 0.15 | sham: permuted"
        in shown
    )
    assert (
        "*Ours:* People agree \\| mostly. | share of pairs <= 1 points | control: shuffled" in shown
    )
    assert "Checked in every run: Ratios are 1." in shown
    assert "Not testable at this scale: C7 (no physics engine here)." in shown
    assert wb.untestable(rows["C7"]).note == "No physics engine here."
    left = wb.unmeasured(rows["C4"])
    assert (left.verdict, left.note) == ("not measured", "Needs human_labels.")
    assert (left.threshold, left.kind, left.n) == (1, "binomial", 0)


@pytest.mark.parametrize(
    "old, new, words",
    [
        (
            "threshold = 0.15",
            "treshold = 0.15",
            r"\[C1\]: unknown key 'treshold', the nearest is 'threshold'",
        ),
        ("threshold = 0.15", "", r"this must contain \['threshold'\] prop"),
        (
            'measure = "after less before"\nthreshold = 0.15',
            "",
            r"this must contain \['measure', 'threshold'\] properties",
        ),
        ("threshold = 0.15", "threshold = inf", "threshold must be smaller than"),
        ("threshold = 0.15", "threshold = true", "threshold must be number"),
        ('paper = "GenEval rises."', "", r"this must contain \['paper'\]"),
        ('direction = ">="', 'direction = ">"', r"direction must be one of \['>=', '<='\]"),
        (
            'interval = "t"',
            'interval = "bootstrap"',
            r"interval must be one of \['t', 'binomial', 'cluster'\]",
        ),
        ('scale = "embedded"', 'scale = "small"', r"scale must be one of \['exact'"),
        ('sham = "permuted"', 'sham = "permuted"\ncontrol = "x"', "control must not be there"),
        ("primary = true", 'primary = "yes"', "primary must be boolean"),
        ("check = true", "check = true\nthreshold = 1.0", "threshold must not be there"),
        ("check = true", 'check = true\nuntestable = "x"', "untestable must not be there"),
        ("[C7]", "[C1]", "cannot be read"),
        ("[C1]", "stray = 1\n[C1]", "this must be object"),
    ],
)
def test_faults_of_the_file_are_told_in_one_sentence(written, old, new, words):
    assert old in GOOD
    written(GOOD.replace(old, new, 1))
    with pytest.raises(ValueError, match=words) as error:
        wb.load_rows("01_x")
    assert str(error.value).startswith("claims/01_x.toml") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks" / "claims").glob("*.toml")), ids=lambda path: path.stem
)
def test_claims_files_of_the_series(path):
    rows = wb.load_rows(path.stem)
    assert (
        rows and (ROOT / "notebooks" / f"{path.stem}.ipynb").is_file() or path.stem == "99_template"
    )
    assert sum(row.primary for row in rows.values()) <= 3


# --- results and tables


def results(*found: wb.Claim, **changes) -> dict:
    content = {
        "schema": 2,
        "notebook": "01_x",
        "title": "X",
        "profile": "study",
        "seeds": [0, 1],
        "paper": {"title": "T", "year": 2020, "arxiv": "1"},
        "parameters": {},
        "numbers": {},
        "claims": [asdict(claim) for claim in found],
        "claims_sha256": wb.rows_digest("01_x"),
        "checks": [{"id": "INV-a", "statement": "Ratios are 1."}],
        "provenance": {"commit": None, "versions": {}, "data": {}, "device": "cpu", "threads": 2},
    }
    return json.loads(json.dumps({**content, **changes}))


def test_every_kind_of_claim_fits_the_schema_and_odd_ones_do_not(written):
    written(GOOD)
    rows = wb.load_rows("01_x")
    judged = wb.judge(rows["C1"], HIGH, sham=LOW)
    good = results(judged, wb.untestable(rows["C7"]), wb.unmeasured(rows["C4"]))
    wb.validate(good)
    for key, value in {
        "schema": 1,
        "notebook": "x",
        "seeds": [],
        "profile": "toy",
        "claims_sha256": "abc",
        "checks": [{"id": "a"}],
    }.items():
        with pytest.raises(ValueError, match=f"schema at {key}"):
            wb.validate({**good, key: value})
    good["claims"][0]["sham"]["verdict"] = "maybe"
    with pytest.raises(ValueError, match="schema at claims/0/sham"):
        wb.validate(good)


def test_table_of_claims_shows_shams_and_the_study():
    row = replace(ROW, primary=True, unit="points", paper="up | 2x", sham="permuted")
    claim, other = wb.judge(row, HIGH, sham=LOW), wb.judge(replace(ROW, id="C2", ours=True), LOW)
    table = wb.claims_table([claim, other], {"C1": (0.5, 0.9, True)})
    assert (
        "| claim | the paper | tested here | measured (95 % interval) | sham or control | study"
        in table
    )
    assert (
        "| **C1** | up \\| 2x | Exact answers rise. Passes if after less before >= 0.5 points. |"
        in table
    )
    assert "| 0.68 points (0.576 to 0.784, n=5) | sham (permuted): 0.18 points" in table
    assert "not supported | inside 0.5 to 0.9 | **supported** |" in table
    assert (
        "| C2 |" in table and "*Ours:* Exact" in table and "| - | - | **not supported** |" in table
    )
    assert "sham" not in wb.claims_table([other]) and "study" not in wb.claims_table([other])


def test_a_default_run_is_held_against_the_study_of_the_same_rows(written, tmp_path):
    written(GOOD.replace('sham = "permuted"\n', ""))
    row = wb.load_rows("01_x")["C1"]
    mine = [wb.judge(row, [0.7, 0.6]), wb.judge(replace(row, id="C9"), [0.7, 0.6])]
    target = tmp_path / "01.json"
    assert wb.predictions("01_x", mine) == {}
    target.write_text(json.dumps(results(wb.judge(row, HIGH))))
    assert wb.predictions("01_x", mine) == {"C1": (*[*wb.prediction_interval(HIGH, 2)][1:], True)}
    assert not wb.predictions("01_x", [wb.judge(row, [2.0, 2.1])])["C1"][2]
    target.write_text(json.dumps(results(wb.judge(row, HIGH), profile="default")))
    assert wb.predictions("01_x", mine) == {}
    target.write_text(json.dumps(results(wb.judge(row, HIGH), claims_sha256="0" * 64)))
    assert wb.predictions("01_x", mine) == {}


def test_shares_at_their_edge_get_the_exact_interval():
    row = replace(ROW, threshold=0.4)
    ones = claims.judge(row, [1.0] * 8)
    assert ones.kind == "binomial" and "exact binomial" in ones.note
    assert ones.interval == pytest.approx((0.6306, 1.0), abs=1e-4)
    assert claims.judge(row, [1.0, 1.0, 1.0, 1.0, 0.75]).kind == "t"


def test_a_threshold_that_moved_after_its_study_is_told(written, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "STUDIES", tmp_path)
    text = GOOD.replace('sham = "permuted"\n', "")
    written(text)
    assert claims.moved("01_x") == {}  # no study yet
    judged = wb.judge(wb.load_rows("01_x")["C1"], HIGH)
    (tmp_path / "01.json").write_text(json.dumps(results(judged)))
    assert claims.moved("01_x") == {}
    written(text.replace("threshold = 0.15", "threshold = 0.05"))
    assert claims.moved("01_x") == {"C1": 0.15}
    later = wb.judge(wb.load_rows("01_x")["C1"], HIGH)  # a study of the moved row is committed
    (tmp_path / "01.json").write_text(json.dumps(results(later)))
    (tmp_path / "01").mkdir()
    (tmp_path / "01" / "study.json").write_text(json.dumps({"thresholds": {"C1": 0.15, "U": None}}))
    assert claims.moved("01_x") == {"C1": 0.15}
    folder = str(tmp_path / "run")
    p = wb.Parameters("01_x", {"profile": "study", "seeds": [*range(5)], "out_dir": folder})
    said = wb.start(p).judge("C1", HIGH)
    assert said.note == "The threshold was 0.15 when this was first studied."
    written(text.replace("threshold = 0.15", 'threshold = 0.05\nnote = "Once 0.15, a typo"'))
    assert claims.moved("01_x") == {}
