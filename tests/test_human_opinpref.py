"""The OpinPref pack: shape, anchors, and how it is made."""

import json

import pytest
import torch

from rlgenkit import rewards as R
from rlgenkit.worlds import ASPECTS, load_opinpref
from data.human.opinpref.make import make_opinpref
from rlgenkit.worlds.opinpref import OPINPREF


def test_the_committed_choices_have_the_published_shape_and_numbers():
    human = load_opinpref()
    assert len(human.texts) == 940 and int(human.validation.sum()) == 140
    assert human.annotator.bincount().tolist() == [297, 293, 250, 100]
    assert human.aspects.shape == (940, 2, len(ASPECTS)) and human.embeddings.shape == (940, 2, 384)
    chosen = torch.where(human.first_wins[:, None].bool(), human.aspects[:, 0], human.aspects[:, 1])
    better = chosen.mean(-1) - human.aspects.mean((1, 2))
    right = (better > 1e-6).float() + 0.5 * (better.abs() <= 1e-6)
    assert float(right.mean()) == pytest.approx(0.738, abs=2e-3)
    words = torch.tensor([[float(len(t.split())) for t in pair] for pair in human.texts])
    gap = (words[:, 0] - words[:, 1]) * (2 * human.first_wins - 1)
    assert float((gap > 0).float().mean() + 0.5 * (gap == 0).float().mean()) == pytest.approx(
        0.738, abs=2e-3
    )


def test_no_annotator_is_named():
    text = (OPINPREF / "pairs.jsonl").read_text(encoding="utf-8").lower()
    assert not any(f'"{name}"' in text for name in ("swaroop", "raghava", "rupasai"))
    assert "MIT" in (OPINPREF / "LICENSE").read_text()


def test_committed_embeddings_are_those_of_the_encoder():
    human = load_opinpref()
    made = R.embed_sentences(R.load_sentence_encoder(), human.texts[0])
    torch.testing.assert_close(made, human.embeddings[0], atol=1e-3, rtol=0)


def test_make_keeps_the_order_of_aspects_by_name(tmp_path):
    scores = {name: float(k % 6) for k, name in enumerate(ASPECTS)}
    backward = dict(reversed(scores.items()))
    two = [
        {"index": "3", "summary-text": "a", "summary-score": scores},
        {"index": "4", "summary-text": "b", "summary-score": backward},
    ]
    pair = {"summary-one": two[0], "summary-two": two[1]}
    for name, choice in (("train", 1), ("valid", 2)):
        made = {
            "unique-id": "SECRET",
            "reviews": ["SECRET"],
            "source": "common",
            "preference-data": choice,
            "summary-pairs": pair,
        }
        (tmp_path / f"annotations-{name}.jsonl").write_text(json.dumps(made) + "\n")
    (tmp_path / "LICENSE").write_text("MIT")
    make_opinpref(tmp_path, tmp_path / "out")
    assert "SECRET" not in (tmp_path / "out" / "pairs.jsonl").read_text()
    found = load_opinpref(tmp_path / "out")
    assert torch.equal(found.aspects[0, 0], found.aspects[0, 1]) and found.embeddings is None
    assert found.first_wins.tolist() == [1, 0] and found.annotator.tolist() == [3, 3]
    assert found.validation.tolist() == [False, True]
