"""The PCCD pack: the published agreement of sentiment with scores, the aspects' names, no text."""

import numpy as np
import pytest
import torch

from data.human.pccd.make import FIRST, NUMBERED, make_pccd
from rlgenkit import rewards as R
from rlgenkit.worlds import load_pccd
from rlgenkit.worlds.pccd import ASPECTS, PCCD, SHARES


def test_committed_critiques_are_whole():
    data = load_pccd()
    assert data.scores.shape == data.vader.shape == data.words.shape == (1271, 7)
    assert int(data.test.sum()) == 848 and len(data.reviewer.unique()) == 188
    assert len(data.categories) == 27 and data.category.max() == 26
    scores = data.scores[~data.scores.isnan()]
    assert scores.min() == 1 and scores.max() == 10 and torch.equal(scores, scores.round())
    assert torch.equal(data.shares.isnan(), ~data.test[:, None].expand(-1, 3))
    torch.testing.assert_close(data.shares[data.test].sum(1), torch.ones(848), atol=3e-4, rtol=0)
    away = (data.scores.nanmean(1) - data.overall).abs()
    assert away.max() < 0.3 and int((away > 0.051).sum()) == 2
    assert data.embeddings.shape == (1271, 384)
    torch.testing.assert_close(data.embeddings.norm(dim=1), torch.ones(1271), atol=1e-3, rtol=0)


def test_sentiment_follows_the_scores_as_measured():
    """Recomputed elsewhere: 0.630 for the publication's shares on the test part, VADER 0.371."""
    data = load_pccd()
    sentiment = data.shares[:, 2] + 0.5 * data.shares[:, 1]
    found = R.spearman(sentiment[data.test], data.overall[data.test])
    assert found == pytest.approx(0.630, abs=1e-3)
    lexicon = R.spearman(data.vader.nanmean(1)[data.test], data.overall[data.test])
    assert lexicon == pytest.approx(0.371, abs=1e-3)


def test_scores_and_sentiments_of_an_aspect_stand_in_one_column():
    """Missing together, and each sentiment agrees with its own aspect's score; names are right."""
    data = load_pccd()
    assert torch.equal(data.scores.isnan(), data.vader.isnan())
    assert torch.equal(data.vader.isnan(), data.words == 0)
    for k in range(1, 7):  # the general impression follows all
        found = []
        for j in range(1, 7):
            both = ~(data.vader[:, k].isnan() | data.scores[:, j].isnan())
            found.append(R.spearman(data.vader[both, k], data.scores[both, j]))
        assert max(found) == found[k - 1], ASPECTS[k]


def test_embeddings_belong_to_their_rows():
    """A ridge on them predicts held-out scores; on shuffled rows it does not."""
    data = load_pccd()
    x, y = data.embeddings.double(), data.overall.double()
    fit, test = ~data.test, data.test

    def held_out(rows):
        target = y[fit] - y[fit].mean()
        gram = x[rows].T @ x[rows] + torch.eye(x.shape[1], dtype=x.dtype)
        return R.spearman(x[test] @ torch.linalg.solve(gram, x[rows].T @ target), y[test])

    rows = fit.nonzero().flatten()
    shuffled = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    assert held_out(rows) > 0.35 > 0.2 > abs(held_out(shuffled))


def test_no_text_is_kept():
    header, *lines = (PCCD / "critiques.csv").read_text(encoding="utf-8").splitlines()
    assert "title" not in header and max(map(len, lines)) < 300
    assert "Attribution 4.0" in (PCCD / "LICENSE").read_text()


def test_make_names_the_aspects(tmp_path):
    shares = [f"roberta_{name}" for name in SHARES]
    derived = [f"{group}_{aspect}" for group in ("words", "vader") for aspect in ASPECTS[::-1]]
    header = ["row", *FIRST, *NUMBERED[::-1], *derived, *shares]
    values = [0, "validation", "x", 4, 5.5, *range(7, 0, -1), *range(6, -1, -1)]
    values += [k / 10 for k in range(6, -1, -1)] + [""] * 3
    rows = [header, values, [1, "test", "w", 5, 6, *[""] * 7, *[0] * 7, *[""] * 7, 0.1, 0.2, 0.7]]
    (tmp_path / "pccd.csv").write_text("\n".join(",".join(map(str, row)) for row in rows))
    np.save(tmp_path / "critiques_minilm.npy", np.eye(2, 3, dtype=np.float16))
    (tmp_path / "LICENSE").write_text("CC BY")
    make_pccd(tmp_path, tmp_path / "made")
    data = load_pccd(tmp_path / "made")
    assert data.scores[0].tolist() == [1, 2, 3, 4, 5, 6, 7] and data.scores[1].isnan().all()
    assert data.words[0].tolist() == [0, 1, 2, 3, 4, 5, 6] and data.test.tolist() == [False, True]
    torch.testing.assert_close(data.vader[0], torch.arange(7) / 10)
    assert data.categories == ("w", "x") and data.category.tolist() == [1, 0]
    torch.testing.assert_close(data.shares[1], torch.tensor([0.1, 0.2, 0.7]))
    assert torch.equal(data.embeddings, torch.eye(2, 3)) and data.reviewer.tolist() == [4, 5]
    assert (tmp_path / "made" / "LICENSE").read_text() == "CC BY"
