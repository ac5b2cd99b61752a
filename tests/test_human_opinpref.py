"""The OpinPref pack: shape, anchors, and clear sentences for what is wrong."""

import json

import pytest
import torch

from rlgenkit import rewards as R
from rlgenkit.worlds import ASPECTS, load_opinpref, load_preference_pairs
from data.human.opinpref.make import make_opinpref
from rlgenkit.worlds.opinpref import OPINPREF


def row(choice=1, **changes):
    made = {
        "split": "train",
        "annotator": 0,
        "choice": choice,
        "recipes": [0, 8],
        "aspects": [[1.0] * 7, [2.0] * 7],
        "first": "good",
        "second": "bad",
    }
    return json.dumps(made | changes)


def folder(tmp_path, *rows):
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path


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


@pytest.mark.parametrize(
    "rows, what",
    [
        ((row(), "{torn"), "cannot be read"),
        ((row(), row(3)), "cannot be read"),
        ((row(), row(1)), "same side"),
        ((row(), row(2, aspects=[[1.0] * 6, [2.0] * 6])), "cannot be read"),
        ((row(aspects=[[1.0] * 6] * 2), row(2, aspects=[[1.0] * 6] * 2)), "7 aspect"),
        ((row(), row(2, aspects=[[9.0] * 7, [2.0] * 7])), "0..5"),
        (("",), "cannot be read"),
    ],
)
def test_malformed_files_are_refused_in_one_sentence(tmp_path, rows, what):
    with pytest.raises(ValueError, match=what) as caught:
        load_opinpref(folder(tmp_path, *rows))
    assert "\n" not in str(caught.value)


def test_a_missing_pack_says_how_to_get_it_back(tmp_path):
    with pytest.raises(ValueError, match="git checkout"):
        load_opinpref(tmp_path)


def test_own_preference_pairs_are_read_and_checked(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"chosen": "a", "rejected": "b"}\n{"chosen": "c", "rejected": "d"}\n')
    assert load_preference_pairs(path) == [("a", "b"), ("c", "d")]
    for bad in (
        '{"chosen": "a"}',
        "[1]",
        "{",
        '{"chosen": "a", "rejected": "a"}',
        '{"chosen": "", "rejected": "a"}',
        '{"chosen": 1, "rejected": "a"}',
    ):
        path.write_text('{"chosen": "a", "rejected": "b"}\n' + bad + "\n")
        with pytest.raises(ValueError, match="line 2 of pairs.jsonl"):
            load_preference_pairs(path)
    path.write_text("")
    with pytest.raises(ValueError, match="no pairs"):
        load_preference_pairs(path)
    with pytest.raises(ValueError, match="no file"):
        load_preference_pairs(tmp_path / "nowhere.jsonl")
