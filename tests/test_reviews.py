"""The film review sentences: what is committed, how it is made, and which ratings belong to them."""

import torch

from data.human.vader.make_reviews import LONGEST, SHORTEST, WORDS, blanked, make_reviews, split
from rlgenkit.worlds import load_vader
from rlgenkit.worlds.human import BATCH, VADER
from tests.notebook_code import definitions

PAD, END, BLANK = 0, 1, 2
load_sentences = definitions("30").load_sentences


def test_committed_sentences_fit_their_ratings():
    vocabulary, ids, ratings = load_sentences()
    assert len(vocabulary) == WORDS + 3 and len(set(vocabulary)) == WORDS + 3
    length = (ids > 2).sum(1) + (ids == BLANK).sum(1)
    assert SHORTEST <= length.min() and length.max() <= LONGEST
    assert ((ids == END).sum(1) == 1).all()  # and padding behind it only
    assert ((ids == PAD).sum(1) == ids.shape[1] - 1 - length).all()
    assert torch.corrcoef(ratings.T)[0, 1] > 0.95  # two halves of the raters agree
    for word, sign in (("dull", -1), ("wonderful", 1)):  # texts and ratings are not shifted
        rows = (ids == vocabulary.index(word)).any(1)
        assert sign * ratings[rows].mean() > 0.7


def made(tmp_path, count=BATCH):
    lines = [f"{k}\t0.5\t{'Alpha' if k % 2 else 'beta'}, it's a #1 film {k}." for k in range(count)]
    lines[3] = "3\t1\tshort one"
    lines[4] = "4\t1\t" + "long " * 40
    (tmp_path / "movieReviewSnippets_GroundTruth.txt").write_text(
        "\n".join(lines + ["x\t0\ttorn batch a b c"])
    )
    sessions = "\n".join(["batch,ratings"] + [f"0,{' '.join([str(r)] * BATCH)}" for r in (1, 4, 2)])
    (tmp_path / "sessions.csv").write_text(sessions + "\n")
    make_reviews(tmp_path, tmp_path)
    return load_sentences(tmp_path)


def test_sentences_keep_their_items_and_raters_are_halved(tmp_path):
    vocabulary, ids, ratings = made(tmp_path)
    assert len(ids) == BATCH - 2  # too short, too long; the torn batch is left out
    words = [" ".join(vocabulary[i] for i in row if i > END) for row in ids[:2].tolist()]
    assert words == ["beta , it's a film .", "alpha , it's a film ."]
    assert ratings.unique(dim=0).tolist() == [[1.5, 4.0]]  # people 0 and 2, person 1


def test_ratings_are_means_over_the_right_people():
    found = load_sentences()[2]
    ratings, batch = load_vader()
    first = ratings[batch == 0]
    rows = [
        int(line.split(",")[0])
        for line in (VADER / "reviews.csv").read_text(encoding="utf-8").splitlines()[1:20]
    ]
    for k, item in enumerate(rows):
        if item < BATCH:
            torch.testing.assert_close(
                found[k], torch.stack([first[::2, item].mean(), first[1::2, item].mean()])
            )


def test_rare_words_become_blanks():
    rows = [["a", "b", "b"], ["a", "c", "b"]]
    assert blanked(rows, 1) == [["_", "b", "b"], ["_", "_", "b"]]
    assert blanked(rows, 2) == [["a", "b", "b"], ["a", "_", "b"]]
    assert split("It's 3 O'Clock -- NOW!") == ["it's", "o'clock", "now", "!"]
