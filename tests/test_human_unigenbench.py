"""The UniGenBench pack: prompts, their themes and the criteria each of them is tested by."""

import csv
import json

import pytest

from data.human.unigenbench.make import make_unigenbench
from rlgenkit.worlds import load_unigenbench
from rlgenkit.worlds.unigenbench import UNIGENBENCH


def test_committed_prompts_are_whole():
    data = load_unigenbench()
    assert len(set(data.texts)) == 600 and len(data.criteria) == 27 and len(data.subjects) == 5
    assert data.tested.shape == (600, 27) and int(data.tested.sum()) == 1813
    assert data.tested.sum(1).bincount().tolist() == [0, 65, 154, 159, 147, 75]
    assert data.tested[:, data.criteria.index("Style")].sum() == 250
    sizes = dict(zip(data.themes, data.theme.bincount().tolist()))
    assert sizes["Art"] == 157 and sizes["Creative Divergence"] == 70 and len(sizes) == 5
    assert data.subject.bincount().min() == 60
    for row, points in zip(data.tested, data.points):
        assert row.nonzero().flatten().tolist() == sorted(k for k, _ in points)
    assert sum(not words for points in data.points for _, words in points) == 1
    first = [(data.criteria[k], words) for k, words in data.points[0]]
    assert first[1] == ("World Knowledge", "Egyptian pyramids")
    assert all(words in data.texts[0] for _, words in first)
    assert "CC BY 4.0" in (UNIGENBENCH / "LICENSE").read_text(encoding="utf-8")


def test_make_keeps_the_order_of_the_points(tmp_path):
    about = {"Primary Categories": "Art", "Secondary Categories": "Other", "Subjects": "Scene"}
    about |= {"Testpoints": ["Style", "Action"], "Testpoint Description": ["oil ", "run, fast"]}
    with open(tmp_path / "test_prompts_en.csv", "w", newline="") as file:
        rows = [["index", "prompt_en", "sub_dims_en"], [0, " a run, in oil", json.dumps(about)]]
        csv.writer(file).writerows(rows)
    (tmp_path / "LICENSE.txt").write_text("CC BY")
    make_unigenbench(tmp_path, tmp_path / "made")
    data = load_unigenbench(tmp_path / "made")
    assert data.texts == ("a run, in oil",) and data.criteria == ("Action", "Style")
    assert data.points == (((1, "oil"), (0, "run, fast")),) and data.themes == ("Art",)
    assert (tmp_path / "made" / "LICENSE").read_text() == "CC BY"


@pytest.mark.parametrize(
    "points",
    [[["Style"]], [["Style", 1]], [["", "x"]], [["Style", "x"], ["Style", "y"]], ["Style"], [None]],
)
def test_points_that_are_no_pairs_of_texts_are_refused(points, tmp_path):
    row = {"prompt": "a", "theme": "Art", "subject": "Scene", "points": points}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match="line 1: column points needs"):
        load_unigenbench(tmp_path)
