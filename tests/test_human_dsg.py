"""The DSG pack: published agreement of checklists with people, the score by hand, how it is made."""

import json
from itertools import combinations

import pytest
import torch

from data.human.dsg.make import FILES, make_dsg
from rlgenkit import rewards as R
from rlgenkit.worlds import dsg_scores, load_dsg
from rlgenkit.worlds.dsg import DSG, GENERATORS


def test_committed_images_questions_and_answers_are_whole():
    images = load_dsg()
    assert images.ratings.shape == (800, 5) and int(images.ratings.isnan().sum()) == 5
    known = images.ratings[~images.ratings.isnan()]
    assert known.min() == 1 and known.max() == 5 and torch.equal(known, known.round())
    each = images.prompt * 5 + images.generator
    assert sorted(each.tolist()) == list(range(800)) and len(set(images.texts)) == 160
    asked = images.kind >= 0
    assert asked.sum(1).tolist() == [len(texts) for texts in images.questions]
    assert [int((images.kind == k).sum()) for k in range(3)] == [404, 281, 236]
    assert images.parents.shape == (160, 15, 15) and images.answers.shape == (800, 3, 15)
    assert not (images.parents & ~asked[:, None]).any()
    unread = images.answers.isnan() & asked[images.prompt][:, None]
    assert unread.sum((0, 2)).tolist() == [14, 0, 21]
    assert images.answers[~asked[images.prompt][:, None].expand(-1, 3, -1)].isnan().all()
    bear = images.questions[2]
    assert bear[2] == "Is the bear walking across the forest?" and "bear" in images.texts[2]
    assert images.parents[2, 2].nonzero().flatten().tolist() == [0, 3]


def test_agreement_with_people_is_the_measured_one():
    """Recomputed elsewhere from the origin's files: 0.566, 0.457, 0.435; people among them 0.70."""
    images = load_dsg()
    scores, people = dsg_scores(images), images.ratings.nanmean(1)
    known = ~scores[:, 0].isnan()
    assert int(known.sum()) == 795 and scores[known].min() >= 0 and scores[known].max() <= 1
    found = [R.spearman(scores[known, k], people[known]) for k in range(3)]
    assert found == pytest.approx([0.566, 0.457, 0.435], abs=5e-4)
    assert R.spearman(scores[known].mean(1), people[known]) == pytest.approx(0.593, abs=5e-4)
    among = []
    for pair in combinations(range(5), 2):
        two = images.ratings[:, pair]
        two = two[~two.isnan().any(1)]
        among.append(R.spearman(two[:, 0], two[:, 1]))
    assert sum(among) / 10 == pytest.approx(0.698, abs=5e-4)


def test_no_worker_is_named():
    for path in DSG.glob("*.csv"):
        assert "4375840905" not in path.read_text(encoding="utf-8")
    assert "Apache License" in (DSG / "LICENSE").read_text()


@pytest.fixture
def made(tmp_path):
    """A folder made from two small origins: one prompt with a chain 1 <- 2 <- 3, one without."""
    likert = ["dsg_prompt_split,t2i_model,item_id,source_id,worker_id,question,answer"]
    for worker, answer in ((77, 5), (12, 3), (900, 1)):
        for item in (0, 1):
            likert.append(f"tifa160,mini-dalle,tifa160_{item},text_{item},{worker},How?,{answer}")
    likert.append("other,mini-dalle,other_0,x,55,How?,1")
    (tmp_path / "tifa160-likert-anns.csv").write_text("\n".join(likert))
    replies = {"pali": "yes yes yes", "mplug": "no yes yes", "instructblip": "yes NO 1000"}
    for name, file in FILES.items():
        rows = [
            "dsg_prompt_split,qg_model,t2i_model,item_id,question,question_id,dependency_id,answer"
        ]
        for model in GENERATORS:
            for k, reply in enumerate(replies[name].split(), 1):
                above = {1: "0", 2: '"1, outside"', 3: '"2,3"'}[k]
                rows.append(f"tifa160,dsg,{model},tifa160_0,Q{k}?,{k},{above},{reply}")
        (tmp_path / file).write_text("\n".join(rows))
    rows = {str(k): {"text_id": f"text_{k}", "text": f"prompt {k}"} for k in (0, 1)}
    (tmp_path / "human_annotations_with_scores.json").write_text(json.dumps(rows))
    (tmp_path / "LICENSE").write_text("Apache")
    make_dsg(tmp_path, tmp_path, tmp_path / "made")
    return tmp_path / "made"


def test_make_keeps_people_apart_and_parents_as_numbers(made):
    images = load_dsg(made)
    assert images.texts == ("prompt 0", "prompt 1") and (made / "LICENSE").read_text() == "Apache"
    people = torch.tensor([3.0, 5.0, 1.0])  # in the order of the identifiers as texts
    assert torch.equal(images.ratings[:, :3], people.expand(2, 3))
    assert images.ratings[:, 3:].isnan().all()
    assert images.parents[0].nonzero().tolist() == [[1, 0], [2, 1]]
    assert images.kind.tolist() == [[0, 1, 1], [-1, -1, -1]] and images.questions[1] == ()
    said = images.answers[0].nan_to_num(nan=-1).tolist()
    assert said == [[1, 1, 1], [0, 1, 1], [1, 0, -1]]


def test_a_question_counts_only_with_its_parents(made):
    """By hand: mplug's no to the first blocks the second, whose own yes lets the third count."""
    scores = dsg_scores(load_dsg(made))
    torch.testing.assert_close(scores[0], torch.tensor([1.0, 1 / 3, 1 / 3]))
    assert scores[1].isnan().all()
