"""The caption votes and rating sessions of real people: what is committed, and how it is made."""

import csv
import json

import pytest
import torch

from rlgenkit import worlds
from data.human.captions.make import make_captions
from data.human.vader.make import make_vader
from rlgenkit.worlds.human import BATCH, CONTESTS


@pytest.mark.parametrize("contest", CONTESTS)
def test_committed_votes_are_unbiased_and_sparse(contest):
    data = worlds.load_captions(contest)
    seen = data.votes.sum(1)
    assert len(data.texts) == len(set(data.texts)) == len(seen) > 3900
    assert seen.min() > 0.6 * seen.float().mean()  # equal exposure
    assert 0.03 < float(data.votes[:, 2].sum() / seen.sum()) < 0.07
    if data.adaptive is not None:  # the bandit shows the funny ones more
        shown = data.adaptive.sum(1).float()
        assert shown.max() > 4 * shown.mean()
        assert data.adaptive[:, 2].sum() / shown.sum() > data.votes[:, 2].sum() / seen.sum()


def test_committed_sessions_hold_whole_batches():
    ratings, batch = worlds.load_vader()
    assert ratings.shape == (6619, BATCH) and ratings.abs().max() == 4
    people = batch.bincount()
    assert len(people) == 353 and people.min() >= 15
    # a session is one person: their leniency on odd sentences predicts it on even ones
    mean = torch.zeros(353, BATCH).index_add(0, batch, ratings) / people[:, None]
    own = ratings - mean[batch]
    halves = torch.stack([own[:, ::2].mean(1), own[:, 1::2].mean(1)])
    assert torch.corrcoef(halves)[0, 1] > 0.8


def test_captions_are_made_from_the_origins_files(tmp_path):
    for contest in CONTESTS:
        for kind in ("Random",) if contest == 540 else ("RoundRobin", "LilUCB"):
            with open(tmp_path / f"{contest}_summary_{kind}.csv", "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["rank", "funny", "somewhat_funny", "unfunny", "caption"])
                writer.writerows(
                    [[1, 3, 2, 1, "b, said I"], [2, 0, 1, 4 + (kind == "LilUCB"), "a"]]
                )
    (tmp_path / "LICENSE.txt").write_text("CC BY 4.0")
    made = tmp_path / "made"
    make_captions(tmp_path, made)
    data = worlds.load_captions(514, made)
    assert data.texts == ("a", "b, said I") and data.votes.tolist() == [[4, 1, 0], [1, 2, 3]]
    assert data.adaptive.tolist() == [[5, 1, 0], [1, 2, 3]]
    assert worlds.load_captions(540, made).adaptive is None
    assert (made / "LICENSE").read_text() == "CC BY 4.0"


def test_sessions_are_columns_of_the_origins_rows(tmp_path):
    rows = [[i % 9 - 4, 4 - i % 9] for i in range(BATCH)] + [[0, 0]] * 15  # a torn last batch
    lines = [f"{i}\t0\t1\t{json.dumps(row)}" for i, row in enumerate(rows)]
    name = "movieReviewSnippets_anonDataRatings.txt"
    (tmp_path / name).write_text("\n".join(lines))
    (tmp_path / "LICENSE").write_text("MIT")
    make_vader(tmp_path, tmp_path / "made")
    ratings, batch = worlds.load_vader(tmp_path / "made")
    assert batch.tolist() == [0, 0] and ratings.shape == (2, BATCH)
    assert torch.equal(ratings[0], -ratings[1]) and ratings[0, 8] == 4


def test_unknown_contests_are_named():
    with pytest.raises(ValueError, match="no contest 1; choose"):
        worlds.load_captions(1)
