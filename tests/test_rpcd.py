"""Notebook 20 (RPCD): sentiment, informativeness, shrunk means, models and statistics."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from notebook_code import definitions
from rlgenkit import rewards

NB = definitions("20")
TEXTS = [
    "the composition is perfect but the contrast is weak",
    "the colors are not dull and the balance is very good",
    "slightly dull but never ugly",
    "I really like the idea but the contrast is weak and the shapes are lost",
    "nice one",
    "no words here without a feeling",
]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def told(monkeypatch):
    """What only a run gives: constants of the profile, and random generators."""
    scope = NB.one_seed.__globals__
    p = SimpleNamespace(empty=0.0, noise=0.0, polite=0.0, color_talk=4.0, min_info=3.0)
    p.head_lr, p.head_steps = 0.05, 200
    monkeypatch.setitem(scope, "p", p)
    monkeypatch.setitem(scope, "seeded", seeded)
    return p


# --- words


def test_rules_by_hand():
    by_hand = {
        "very good": [0, 2.293],
        "very bad": [0, -2.793],
        "not a good": [0, 0, 2 * -0.74],
        "not one of the good": [0, 0, 0, 0, 2],  # three words before, no more
        "good but bad": [1, 0, -3.75],
        "plain": [0],
    }
    for text, values in by_hand.items():
        assert NB.valences(NB.words_of(text)) == pytest.approx(values)


def test_shares_are_those_of_vader_with_our_words():
    """Known solution: vaderSentiment, where it is installed, with its word list replaced."""
    vader = pytest.importorskip("vaderSentiment.vaderSentiment")
    judge = vader.SentimentIntensityAnalyzer()
    judge.lexicon = dict(NB.VALENCE)
    for text in TEXTS:
        theirs = judge.polarity_scores(text)
        ours = NB.shares_of(NB.valences(NB.words_of(text)))
        both = [theirs[k] for k in ("neg", "neu", "pos")]
        assert ours.tolist() == pytest.approx(both, abs=6e-4), text


def test_shares_sum_to_one_and_nothing_is_nothing():
    for text in TEXTS:
        assert NB.shares_of(NB.valences(NB.words_of(text))).sum() == pytest.approx(1)
    assert NB.shares_of([]).tolist() == [0, 0, 0]
    assert NB.shares_of([2.0, -2.0, 0.0]).tolist() == pytest.approx([3 / 7, 1 / 7, 3 / 7])


def test_polarity_is_the_number_of_nima():
    """(3 - sum_k k p_k) / 2 over positive, neutral, negative, as in the authors' code."""
    shares = torch.rand(9, 3, generator=seeded(0)).softmax(1)
    theirs = (3 - shares.flip(1) @ torch.tensor([1.0, 2.0, 3.0])) / 2
    torch.testing.assert_close(NB.polarity(shares), theirs)


def test_information_is_the_logarithm_of_the_product():
    comments = [(["a", "a", "b"], ["a b"]), (["b"], []), (["c"], ["a b", "b c"]), ([], [])]
    nouns, pairs = {"a": 2 / 5, "b": 2 / 5, "c": 1 / 5}, {"a b": 2 / 3, "b c": 1 / 3}
    for (own, two), found in zip(comments, NB.information(comments).tolist()):
        product = math.prod(nouns[u] for u in own) * math.prod(pairs[u] for u in two)
        assert found == pytest.approx(-0.5 * math.log(product), abs=1e-6)


def test_units_and_jargon():
    nouns, pairs = NB.units_of(NB.words_of("the strong contrast and a great score"))
    assert nouns == ["contrast", "score"] and pairs == ["strong contrast", "great score"]
    assert NB.JARGON <= NB.NOUNS | NB.OTHERS | {"congrats", "thanks", "luck"}


def test_every_word_of_the_critics_is_known():
    """A feeling that no critic can voice, or an aspect without a scale, would be a slip."""
    spoken = " ".join([*itertools.chain(*NB.ASPECTS.values()), *NB.EMPTY, *NB.POLITE])
    used = set(NB.words_of(spoken))
    assert len(set(NB.VALENCE) & used) > 25
    for poor, fair, good in NB.ASPECTS.values():
        low, middle, high = (
            NB.polarity(NB.shares_of(NB.valences(NB.words_of(t)))[None]).item()
            for t in (poor, fair, good)
        )
        assert low < middle < high


# --- labels


def test_means_by_picture_and_shrinking():
    values, owner = torch.rand(20, generator=seeded(1)), torch.arange(20) % 6
    means, number = NB.mean_by(values, owner, 7)
    for k in range(6):
        assert means[k] == pytest.approx(values[owner == k].mean().item())
    assert number.tolist() == [4, 4, 3, 3, 3, 3, 0]
    soft = NB.shrunk(means, number, values.mean(), 2.0)
    extra = torch.cat([values[owner == 0], values.mean().repeat(2)])  # two more comments
    assert soft[0] == pytest.approx(extra.mean().item()) and soft[6] == values.mean()
    torch.testing.assert_close(NB.shrunk(means, number, values.mean(), 0.0)[:6], means[:6])


def test_best_strength_finds_the_ratio_of_variances():
    """The best k is noise variance over variance between pictures: here 4, and 0 without noise."""
    generator, owner = seeded(2), torch.arange(3000).repeat_interleave(3)
    truth = torch.randn(3000, generator=generator)
    noise = torch.randn(9000, generator=generator)
    assert NB.best_strength(truth[owner] + 2 * noise, owner, 3000) == 4.0
    assert NB.best_strength(truth[owner] + 0.01 * noise, owner, 3000) == 0.0


def test_targets_of_chosen_comments():
    shares = torch.rand(12, 3, generator=seeded(3)).softmax(1)
    owner, chosen = torch.arange(12) // 3, torch.arange(12) < 9
    corpus = NB.Corpus(shares, owner, torch.arange(12) % 3, chosen)
    plain, soft, parts, number = NB.targets_of(corpus, chosen, 4)
    assert number.tolist() == [3, 3, 3, 0]
    assert plain[1] == pytest.approx(NB.polarity(shares[3:6]).mean().item())
    center = NB.polarity(shares[:9]).mean()
    assert plain[3] == pytest.approx(center.item()) and soft[3] == pytest.approx(center.item())
    torch.testing.assert_close(parts[2], shares[6:9].mean(0))
    k = NB.best_strength(NB.polarity(shares[:9]), owner[:9], 4)
    torch.testing.assert_close(soft[:3], (3 * plain[:3] + k * center) / (3 + k))


def test_choices_of_comments(told):
    count = 500
    owner = torch.arange(count).repeat_interleave(6)
    kept = torch.rand(6 * count, generator=seeded(4)) < 0.7
    corpus = NB.Corpus(torch.rand(6 * count, 3), owner, torch.arange(6 * count) % 6, kept)
    chosen = NB.choices(corpus, count, 5)
    assert (chosen["kept"] == chosen["all"] & kept).all()
    assert chosen["at random"].sum() == chosen["kept"].sum()
    assert not (chosen["at random"] & ~chosen["all"]).any()
    assert (chosen["one"] == kept & (corpus.place == 0)).all() and (chosen["six"] == kept).all()
    numbers = torch.bincount(owner[chosen["all"]], minlength=count)
    shares = torch.bincount(numbers, minlength=7)[1:] / count
    assert numbers.min() == 1 and (shares - torch.tensor(NB.HOW_MANY)).abs().max() < 0.07
    assert sum(NB.HOW_MANY) == pytest.approx(1)


def test_six_and_one_are_measured_on_the_same_pictures():
    """Two pictures without a first comment would ruin both; they count for neither."""
    truth = torch.arange(8.0)
    number = torch.tensor([2, 1, 0, 1, 1, 0, 1, 1])
    means = truth.where(number > 0, 99.0)
    row, all_there = (means, -means, None, number), (truth, -truth, None, number + 1)
    told = NB.label_quality({"one": row, "six": all_there, "kept": row}, truth)
    assert told["one"] == told["six"] == pytest.approx([1, -1])
    assert told["kept"][0] < 1


# --- critics


def test_fair_critics_feel_the_truth_and_biased_ones_love_color():
    looks = torch.rand(50, 5, generator=seeded(6))
    torch.testing.assert_close(NB.felt_terms(looks, 0.0).mean(1), rewards.aesthetic_truth(looks))
    biased = NB.felt_terms(looks, 1.0)
    torch.testing.assert_close(biased[:, 1], looks[:, 1])
    others = [0, 2, 3, 4]
    torch.testing.assert_close(biased[:, others], NB.felt_terms(looks, 0.0)[:, others])


def test_critics_without_noise_praise_what_is_good(told):
    looks = torch.tensor([[1.0, 0.6, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    comments, owner = NB.critiques_of(looks, 1)
    shares = torch.stack([NB.shares_of(NB.valences(NB.words_of(c))) for c in comments])
    scores = NB.polarity(shares)
    assert scores[owner == 0].min() > scores[owner == 1].max()
    assert comments == NB.critiques_of(looks, 1)[0] != NB.critiques_of(looks, 2)[0]
    told.empty = 1.0
    assert set(NB.critiques_of(looks, 1)[0]) <= set(NB.EMPTY)


# --- models


def test_emd_loss():
    target = torch.tensor([[1.0, 0.0, 0.0]])
    far, near = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    assert NB.emd_loss(far, target).item() == pytest.approx(math.sqrt(2 / 3))
    assert NB.emd_loss(near, target).item() == pytest.approx(math.sqrt(1 / 3))
    assert NB.emd_loss(target, target).item() < 1e-5
    both = NB.emd_loss(torch.cat([far, near]), target.expand(2, 3)).item()
    assert both == pytest.approx((math.sqrt(2 / 3) + math.sqrt(1 / 3)) / 2)


def test_ridge_is_least_squares_with_more_rows():
    """sqrt(n k) I below x, zeros below y: the textbook form of the penalty."""
    x, y = torch.randn(40, 6, generator=seeded(7)), torch.randn(40, generator=seeded(8))
    for penalty in (0.01, 1.0):
        more = torch.cat([x, math.sqrt(40 * penalty) * torch.eye(6)])
        best = torch.linalg.lstsq(more, torch.cat([y, torch.zeros(6)])[:, None]).solution[:, 0]
        (found,) = NB.ridge(x.T @ x, x.T @ y, (penalty,), 40)
        torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-5)


def test_the_penalty_of_the_linear_model_is_chosen_in_folds():
    x, y = torch.randn(60, 8, generator=seeded(9)), torch.randn(60, generator=seeded(10))
    y = y + 3 * x[:, 0]
    errors = []
    for penalty in NB.PENALTIES:
        error = 0.0
        for fold in range(5):
            out = torch.arange(60) % 5 == fold
            rest, target = x[~out], (y - y.mean())[~out]
            (w,) = NB.ridge(rest.T @ rest, rest.T @ target, (penalty,), len(rest))
            error += (x[out] @ w - (y - y.mean())[out]).square().sum().item()
        errors.append(error)
    best = NB.PENALTIES[int(np.argmin(errors))]
    (expected,) = NB.ridge(x.T @ x, x.T @ (y - y.mean()), (best,), 60)
    torch.testing.assert_close(NB.fit_linear(x, y), expected)


def test_the_head_learns_shares(told):
    x = torch.randn(200, 3, generator=seeded(11))
    shares = (x @ torch.randn(3, 3, generator=seeded(12))).softmax(1)
    head = NB.fit_head(x, shares)
    guess = NB.polarity(NB.head_shares(head, x)[0])
    assert spearmanr(guess, NB.polarity(shares)).statistic > 0.98
    by_hand = (x @ head[0, :-1] + head[0, -1]).softmax(1)
    torch.testing.assert_close(NB.head_shares(head, x)[0], by_hand)
    together = NB.train_heads(x, shares, (1e-4, 1e-1))
    alone = NB.train_heads(x, shares, (1e-1,))
    torch.testing.assert_close(together[1], alone[0])  # trained at once, each for itself


def test_shams_see_the_same_labels_in_another_order(told, monkeypatch):
    """Each arm is fitted on the labels of its name, and both shams on permuted ones."""
    seen = []
    monkeypatch.setitem(
        NB.train_arms.__globals__, "fit_linear", lambda x, y: seen.append((x, y)) or y
    )
    x, truth = torch.randn(12, 2), torch.arange(12.0)
    number = torch.tensor([0] + [2] * 11)
    row = (truth + 100, truth + 200, None, number)
    names = ("kept", "all", "six", "one")
    arms = NB.train_arms(
        x, truth, dict.fromkeys(names, row), {"kept": (truth, truth + 300, None, number)}, 1
    )
    assert arms["critiques"].tolist() == (truth[1:] + 200).tolist()
    assert arms["biased critics"].tolist() == (truth[1:] + 300).tolist()
    assert arms["one"].tolist() == arms["plain means"].tolist() == (truth[1:] + 100).tolist()
    for sham, honest in (("looks shuffled", "true looks"), ("critiques shuffled", "critiques")):
        assert sorted(arms[sham].tolist()) == sorted(arms[honest].tolist())
        assert arms[sham].tolist() != arms[honest].tolist()


# --- people


def test_ordered_share_by_loops():
    generator = seeded(13)
    scores = torch.randint(4, (30,), generator=generator).float()
    truth = torch.randint(5, (30,), generator=generator).float()
    groups = torch.randint(6, (30,), generator=generator)
    groups[0] = 99  # alone
    found = NB.ordered_share(scores, truth, groups)
    for i in range(30):
        hits = [
            0.5 + 0.5 * np.sign(scores[i] - scores[j]) * np.sign(truth[i] - truth[j])
            for j in range(30)
            if groups[j] == groups[i] and truth[j] != truth[i]
        ]
        assert found[i].isnan() if not hits else found[i] == pytest.approx(np.mean(hits))


def test_shuffled_within_keeps_each_group():
    values, groups = torch.arange(40.0), torch.arange(40) % 7
    mixed = NB.shuffled_within(values, groups, seeded(14))
    assert mixed.tolist() != values.tolist()
    for g in range(7):
        assert sorted(mixed[groups == g].tolist()) == values[groups == g].tolist()


def test_srcc_interval_has_the_rank_correlation_inside():
    a = torch.randn(300, generator=seeded(15))
    b = a + torch.randn(300, generator=seeded(16))
    value, low, high = NB.srcc_interval(a, b, torch.arange(300) // 3)
    assert low < value < high and value == pytest.approx(spearmanr(a, b).statistic)


def test_a_critique_never_predicts_itself(told, monkeypatch):
    """Scores of a fold do not change with that fold's own truth; folds keep people together."""
    people = SimpleNamespace(embeddings=torch.randn(50, 4, generator=seeded(17)))
    people.overall = torch.randn(50, generator=seeded(18))
    monkeypatch.setitem(NB.embedding_scores.__globals__, "people", people)
    reviewer = torch.arange(50) // 4
    fold = NB.folds(reviewer, 1)
    assert all(len(fold[reviewer == r].unique()) == 1 for r in range(13))
    before = NB.embedding_scores(fold)
    people.overall = people.overall.clone()
    people.overall[fold == 2] += 100
    after = NB.embedding_scores(fold)
    torch.testing.assert_close(after[fold == 2], before[fold == 2])
    assert not torch.allclose(after[fold == 1], before[fold == 1])
