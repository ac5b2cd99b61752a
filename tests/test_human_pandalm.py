"""The PandaLM pack: people's published wins between models, empty answers, how it is made."""

import json

import pytest
import torch

from data.human.pandalm.make import make_pandalm
from rlgenkit.worlds import load_pandalm
from rlgenkit.worlds.pandalm import GENERATORS, PANDALM


def test_committed_pairs_are_whole():
    pairs = load_pandalm()
    assert len(pairs.instructions) == len(pairs.inputs) == len(pairs.texts) == 999
    assert pairs.labels.shape == (999, 3) and pairs.labels.unique().tolist() == [0, 0.5, 1]
    assert pairs.generator.shape == (999, 2) and pairs.generator.max() == 4
    assert (pairs.generator[:, 0] != pairs.generator[:, 1]).all()
    sizes = pairs.task.bincount()
    assert len(sizes) == 170 and sizes.max() == 10  # at most each two of five models
    assert [sum(not pair[k] for pair in pairs.texts) for k in (0, 1)] == [29, 25]
    assert sum(not text for text in pairs.inputs) == 167 and pairs.instructions.count("") == 1
    among = [(0, 1), (0, 2), (1, 2)]
    same = [(pairs.labels[:, a] == pairs.labels[:, b]).double().mean() for a, b in among]
    assert [float(s) for s in same] == pytest.approx([0.913, 0.929, 0.918], abs=1e-3)
    assert "Apache License" in (PANDALM / "LICENSE").read_text()


def test_wins_of_llama_are_the_published_ones():
    """(wins, losses, ties) of LLaMA-7B by majority, in the table of the origin's page: names and
    answers stand in the same order."""
    pairs = load_pandalm()
    won = pairs.labels.median(1).values
    llama = GENERATORS.index("llama-7b")
    for other, known in (("bloom-7b", (72, 28, 11)), ("cerebras-gpt-6.7B", (80, 24, 6))):
        first = torch.tensor([llama, GENERATORS.index(other)])
        rows = (pairs.generator.sort().values == first.sort().values).all(1)
        own = torch.where(pairs.generator[:, 0] == llama, won, 1 - won)[rows]
        assert tuple(int((own == value).sum()) for value in (1, 0, 0.5)) == known, other


def test_make_keeps_empty_answers_and_texts_that_read_as_values(tmp_path):
    row = {"idx": 0, "motivation_app": "App", "cmp_key": "opt-7b_llama-7b", "instruction": " "}
    row |= {"input": "", "response1": True, "response2": "", "annotator1": 0}
    rows = [row | {"annotator2": 1, "annotator3": 2}] * 2 + [
        row | {"instruction": "do", "annotator2": 2, "annotator3": 2}
    ]
    (tmp_path / "testset-v1.json").write_text(json.dumps(rows))
    (tmp_path / "LICENSE").write_text("Apache")
    make_pandalm(tmp_path, tmp_path / "made")
    assert "App" not in (tmp_path / "made" / "pairs.jsonl").read_text()
    pairs = load_pandalm(tmp_path / "made")
    assert pairs.texts[0] == ("True", "") and pairs.instructions == ("", "", "do")
    assert pairs.labels.tolist() == [[0.5, 1, 0], [0.5, 1, 0], [0.5, 0, 0]]
    assert pairs.task.tolist() == [0, 0, 1]
    assert [pairs.generators[k] for k in pairs.generator[0].tolist()] == ["opt-7b", "llama-7b"]


@pytest.mark.parametrize("value", [None, 7, True, [], {}])
@pytest.mark.parametrize("column", ["instruction", "input", "first", "second"])
def test_what_is_no_text_is_refused(column, value, tmp_path):
    row = json.loads((PANDALM / "pairs.jsonl").read_text(encoding="utf-8").split("\n")[0])
    (tmp_path / "pairs.jsonl").write_text(json.dumps({**row, column: value}))
    with pytest.raises(ValueError, match=f"line 1: column {column}"):
        load_pandalm(tmp_path)
