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
from rlgenkit.workbook.exercises import load_checks

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
    six = (truth.where(number > 0, -99.0), -truth, None, number + 1)
    labels = {"one": row, "six": six, "kept": row, "at random": all_there, "all": all_there}
    told = NB.label_quality(labels, truth)
    for name in labels:
        assert told[name] == pytest.approx([1, -1]), name


def test_kept_and_random_labels_are_compared_where_both_exist():
    truth = torch.arange(6.0)
    one = torch.ones(6, dtype=torch.long)
    kept, drawn = one.clone(), one.clone()
    kept[0], drawn[5] = 0, 0
    left, right = truth.where(kept > 0, 99.0), -truth.where(drawn > 0, -99.0)
    labels = {"one": (truth, truth, None, one), "kept": (left, left, None, kept)}
    labels["at random"] = (right, right, None, drawn)
    told = NB.label_quality(labels, truth)
    assert told["at random"] == pytest.approx([-1, -1])
    for name in ("kept", "kept, beside random"):
        assert told[name] == pytest.approx([1, 1])
    some = (kept > 0) & (drawn > 0)
    strange = torch.where(some, truth, -truth)  # wrong where no random comment is
    labels["kept"] = (strange, strange, None, kept)
    told = NB.label_quality(labels, truth)
    assert told["kept, beside random"][0] == pytest.approx(1) and told["kept"][0] < 1


# --- critics


def test_fair_critics_feel_the_truth_and_biased_ones_love_color():
    looks = torch.rand(50, 5, generator=seeded(6))
    torch.testing.assert_close(NB.felt_terms(looks, 0.0).mean(1), rewards.aesthetic_truth(looks))
    biased = NB.felt_terms(looks, 1.0)
    torch.testing.assert_close(biased[:, 1], looks[:, 1])
    others = [0, 2, 3, 4]
    torch.testing.assert_close(biased[:, others], NB.felt_terms(looks, 0.0)[:, others])


def test_talk_decides_how_often_color_is_spoken_of(told):
    """Color's share among the aspects spoken of: 1/5 without talk, nearly all comments with it."""
    looks = torch.rand(300, 5, generator=seeded(6))
    words = NB.words_of(" ".join(t for aspect in NB.ASPECTS.values() for t in aspect))
    assert "palette" in words
    shares = []
    for talk in (0.0, 12.0):
        comments, _ = NB.critiques_of(looks, 3, 0.0, talk)
        shares.append(np.mean(["colors" in comment for comment in comments]))
    assert shares[0] == pytest.approx(0.4, abs=0.04)  # two of five aspects on average
    assert shares[1] > 0.8


def test_color_talkers_differ_in_taste_alone(told, monkeypatch):
    asked = []
    scope = NB.color_talkers.__globals__
    monkeypatch.setitem(scope, "corpus_of", lambda looks, seed, *knobs: asked.append(knobs))
    monkeypatch.setitem(scope, "choices", lambda corpus, count, seed: {"kept": None})
    monkeypatch.setitem(scope, "targets_of", lambda corpus, rows, count: count)
    told.color_talk = 7.0
    arms = NB.color_talkers(torch.zeros(3, 5), 1)
    assert dict(zip(arms, asked)) == {"biased critics": (1.0, 7.0), "fair, color talk": (0.0, 7.0)}


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


def test_arms_learn_the_labels_of_their_names(told, monkeypatch):
    """Shams get the same labels in another order; true looks have the hero's pictures."""
    monkeypatch.setitem(NB.train_arms.__globals__, "fit_linear", lambda x, y: (x[:, 0], y))
    truth, number = torch.arange(12.0), torch.tensor([0] + [2] * 11)
    x, first = truth[:, None], torch.tensor([0, 0] + [1] * 10)
    labels = {
        k: (truth + s, truth + s + 50, None, number)
        for k, s in (("kept", 100), ("all", 200), ("six", 300))
    }
    labels["one"] = (truth + 400, truth + 450, None, first)
    others = {
        k: (truth, truth + s, None, number)
        for k, s in (("biased critics", 500), ("fair, color talk", 600))
    }
    arms = NB.train_arms(x, truth, labels, others, 1)
    shift = {
        "critiques": 150,
        "unfiltered": 250,
        "biased critics": 500,
        "fair, color talk": 600,
        "plain means": 100,
        "six": 300,
        "one": 400,
        "true looks": 0,
    }
    for name, by in shift.items():
        start = 2 if name in ("six", "one") else 1
        assert arms[name][0].tolist() == truth[start:].tolist(), name
        assert (arms[name][1] - arms[name][0]).tolist() == [by] * (12 - start), name
    for sham, honest in (
        ("looks shuffled", "true looks"),
        ("critiques shuffled", "critiques"),
        ("one shuffled", "one"),
    ):
        assert arms[sham][0].tolist() == arms[honest][0].tolist()
        assert sorted(arms[sham][1].tolist()) == sorted(arms[honest][1].tolist())
        assert arms[sham][1].tolist() != arms[honest][1].tolist()
    assert len(arms) == len(shift) + 3


# --- measures


def test_agreement_by_hand(told):
    """The true look first, then each of its terms, with the sign of the scores."""
    looks = torch.rand(40, 5, generator=seeded(20))
    truth = rewards.aesthetic_truth(looks)
    terms = rewards.aesthetic_terms(looks)
    found = NB.agreement_with(terms[:, 3], looks, truth)
    expected = [spearmanr(terms[:, 3], c).statistic for c in (truth, *terms.T)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6) and found[4] == pytest.approx(1)


def test_picks_by_hand(told, monkeypatch):
    """Two pools of three: best of 1 is the mean, best of 2 weighs ranks 1/3 and 2/3."""
    told.pool = 3
    monkeypatch.setitem(NB.picks_of.__globals__, "NS", [1, 2])
    scores = torch.tensor([3.0, 1.0, 2.0, 10.0, 30.0, 20.0])
    truth = torch.tensor([0.9, 0.1, 0.3, 0.0, 0.6, 0.6])
    looks = torch.zeros(6, 5)
    looks[:, 1] = torch.tensor([0.2, 0.8, 0.5, 1.0, 0.0, 0.5])
    found = NB.picks_of(scores, looks, truth)
    by_hand = {
        "truth": [(1.3 / 3 + 1.2 / 3) / 2, ((2 * 0.9 + 0.3) / 3 + (2 * 0.6 + 0.6) / 3) / 2],
        "saturation": [0.5, ((2 * 0.2 + 0.5) / 3 + (2 * 0.0 + 0.5) / 3) / 2],
    }
    for name, values in by_hand.items():
        assert found[name].tolist() == pytest.approx(values, abs=1e-6), name
    assert found["reward"][0] == pytest.approx(0, abs=1e-6) and found["reward"][1] > 0.3
    # best of 1: distinct pairs of a pool are 0.3, 0.3, 0.6 and 0.5, 0.5, 1 apart in saturation
    assert found["diversity"][0].item() == pytest.approx((0.4 + 2 / 3) / 2)


def seeds_found():
    """What two seeds measured, made up: every number is its own."""
    names = ("critiques", "true looks", "one", "EMD head", "plain means")
    arms = {k: torch.tensor([0.1 * (i + 1), 0.0]) for i, k in enumerate(names)}
    labels = {
        "six": (0.9, 0),
        "one": (0.35, 0),
        "kept": (0.5, 0.53),
        "at random": (0.2, 0),
        "kept, beside random": (0.6, 0),
    }
    truth = {
        "fair, color talk": (0.5, 0.57, 0.7),
        "biased critics": (0.1, 0.2, 0.4),
        "critiques": (0.0, 9.0, 0.0),
    }
    picks = {k: {"truth": torch.tensor(v)} for k, v in truth.items()}
    return [{"arms": arms, "labels": labels, "picks": picks}] * 2


def test_rows_on_pictures_have_their_sign(monkeypatch):
    scope = NB.on_pictures.__globals__
    monkeypatch.setitem(scope, "found", seeds_found())
    monkeypatch.setitem(scope, "NS", [16, 64, 256])
    rows = {name: values.tolist() for name, values in NB.on_pictures().items()}
    by_hand = {
        "C4": 0.1,
        "C4-gap": 0.1,
        "N": 0.55,
        "N-model": -0.05,
        "I": 0.4,
        "S": 0.03,
        "H": -0.1,
        "E-bias": 0.37,
        "E-over": 0.3,
    }
    assert rows.keys() == by_hand.keys()
    for name, value in by_hand.items():
        assert rows[name] == pytest.approx([value] * 2, abs=1e-6), name


def test_a_seed_standardizes_by_training_pictures_and_keeps_its_arms_apart(told, monkeypatch):
    """A world whose features are the terms: fair critics teach the truth, biased ones color."""
    told.train, told.test, told.pool, told.requests, told.color_talk = 300, 80, 60, 1, 12.0
    told.head_steps = 2
    scope, firsts, whole = NB.one_seed.__globals__, [], NB.standardized

    def drawn(count, seed):
        looks = torch.rand(count, 5, generator=seeded(seed))
        extra = looks.repeat(1, 6)[:, : NB.EXTRA]
        table = torch.cat([rewards.aesthetic_terms(looks), looks[:, 1:2], extra], 1)
        return table, looks, rewards.aesthetic_truth(looks)

    def watched(train, *others):
        firsts.append((len(train), [len(other) for other in others]))
        return whole(train, *others)

    monkeypatch.setitem(scope, "draw_pictures", drawn)
    monkeypatch.setitem(scope, "standardized", watched)
    monkeypatch.setitem(scope, "network", None)
    monkeypatch.setitem(scope, "NS", [1, 16])
    found = NB.one_seed(3)
    assert firsts == [(300, [80, 60])]
    ranked = {name: float(values[0]) for name, values in found["arms"].items()}
    assert ranked["true looks"] > ranked["critiques"] > 0.9 > ranked["biased critics"] + 0.1
    assert ranked["fair, color talk"] > ranked["biased critics"] + 0.05
    pick = {name: curves["saturation"][1] for name, curves in found["picks"].items()}
    assert pick["biased critics"] > pick["fair, color talk"] + 0.1
    assert found["k"] in NB.STRENGTHS and 0.5 < found["kept"] <= 1


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


def ranks_of_people(monkeypatch, **values):
    """Ranks that a run leaves for averaging, length and mixing."""
    for name, value in values.items():
        monkeypatch.setitem(NB.averaging.__globals__, name, value)


def test_averaging_length_and_mixing_by_hand(monkeypatch):
    truth = torch.arange(8.0, dtype=torch.float64)
    half = torch.tensor([0.0, 2, 1, 3, 5, 4, 7, 6], dtype=torch.float64)
    rows = torch.arange(8)
    part = np.corrcoef(truth, half)[0, 1]
    ranks_of_people(
        monkeypatch, truth_ranks=truth, mean_ranks=truth, aspect_ranks=[half, -half, half]
    )
    assert NB.averaging(rows) == pytest.approx(1 - part / 3)
    ranks_of_people(monkeypatch, long=rows < 4, tone=half, value=torch.where(rows < 4, half, -half))
    assert NB.length(rows) == pytest.approx(2)
    ranks_of_people(monkeypatch, every=truth, fold_ranks=[(truth, half), (half, -half)])
    assert NB.mixing(rows) == pytest.approx((1 + part) / 2 - (part - part) / 2)


def test_folded_interval():
    both = NB.wb.clustered_interval(lambda rows: rows.double().mean().item(), np.arange(9))
    signed = NB.replace(both, value=-0.06, low=-0.16, high=0.05)
    assert tuple(NB.folded(signed)) == pytest.approx((0.06, 0, 0.16))
    assert tuple(NB.folded(NB.replace(signed, low=-0.16, high=-0.02))) == pytest.approx(
        (0.06, 0.02, 0.16)
    )
    assert tuple(NB.folded(NB.replace(signed, value=0.6, low=0.5, high=0.7))) == pytest.approx(
        (0.6, 0.5, 0.7)
    )


def test_checks_ask_for_the_guards():
    """20.1 without its guard, and 20.5 without its small number, do not pass."""
    exercises = load_checks("20_rpcd")["EXERCISES"]

    def shares(values):
        kinds = [sum(1 + abs(v) for v in values if np.sign(v) == k) for k in (-1, 0, 1)]
        return torch.tensor(kinds) / sum(kinds)

    def loss(predicted, target):
        return (predicted - target).cumsum(1).square().mean(1).sqrt().mean()

    for number, function in (("20.1", shares), ("20.5", loss)):
        found = exercises[number].outcome(function)
        assert found.status == "wrong", number
        assert "zero" in found.message or "exact" in found.message
