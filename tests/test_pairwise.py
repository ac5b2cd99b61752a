"""Pairwise losses, voters and sentence heads, each against an oracle."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rlgenkit import rewards as R
from tests.notebook_code import definitions
from tests.fake_device import far, far_device

secrets, opinions, personal = map(definitions, ("12", "15", "17"))


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def pairs(n=300, d=5, seed=0, dtype=torch.float64):
    g = gen(seed)
    true = torch.randn(d, generator=g, dtype=dtype)
    x = torch.randn(n, d, generator=g, dtype=dtype)
    return x, (torch.rand(n, generator=g) < torch.sigmoid(x @ true)).to(dtype), true


# --- the loss ----------------------------------------------------------------------------------


def test_pairwise_ce_by_hand():
    delta = torch.tensor([0.0, 2.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(R.pairwise_ce(delta), torch.log1p(torch.exp(-delta)))
    assert R.pairwise_ce(delta[:1]).item() == pytest.approx(math.log(2))
    # A margin moves the curve to the right, smoothing mixes both answers.
    torch.testing.assert_close(R.pairwise_ce(delta, margin=0.5), R.pairwise_ce(delta - 0.5))
    mixed = 0.7 * R.pairwise_ce(delta) + 0.3 * R.pairwise_ce(-delta)
    torch.testing.assert_close(R.pairwise_ce(delta, smoothing=0.3), mixed)
    torch.testing.assert_close(R.pairwise_ce(delta, target=0.7), mixed)


def test_the_minimum_lies_where_the_target_says():
    for target, margin, alpha in (
        (0.8, 0.0, 0.0),
        (1.0, 0.0, 0.2),
        (0.5, 0.0, 0.0),
        (0.9, 1.5, 0.1),
    ):
        delta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        goal = (1 - alpha) * target + alpha * (1 - target)
        best = torch.tensor(
            [math.log(goal / (1 - goal)) + margin], dtype=torch.float64, requires_grad=True
        )
        (slope,) = torch.autograd.grad(R.pairwise_ce(best, target, margin, alpha).sum(), best)
        assert abs(slope.item()) < 1e-12
        (slope,) = torch.autograd.grad(R.pairwise_ce(delta, target, margin, alpha).sum(), delta)
        assert slope.item() * (0 - best.item()) >= 0


def test_no_gradient_goes_into_margin_or_target():
    delta, margin = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    R.pairwise_ce(delta, margin=margin).sum().backward()
    assert margin.grad is None and delta.grad is not None


def test_it_is_the_bradley_terry_loss():
    first, second = torch.randn(2, 40, generator=gen())
    votes = torch.rand(40, generator=gen(1))
    torch.testing.assert_close(
        R.pairwise_ce(first - second, votes).mean(), R.bradley_terry_loss(first, second, votes)
    )


@pytest.mark.parametrize(
    "named, what",
    [
        ({"target": 1.2}, "targets"),
        ({"smoothing": 0.6}, "flip"),
        ({"smoothing": -0.1}, "smoothing"),
    ],
)
def test_impossible_labels_are_refused(named, what):
    with pytest.raises(ValueError, match=what):
        R.pairwise_ce(torch.zeros(2), **named)


# --- rewards that are distributions ------------------------------------------------------------


def test_normal_rewards_win_as_often_as_their_draws():
    first = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-2.0, 1.0]], dtype=torch.float64)
    second = torch.tensor([[0.0, math.log(3)], [0.5, -1.0], [1.0, 0.0]], dtype=torch.float64)
    noise = torch.randn(2, 400_000, 3, generator=gen(), dtype=torch.float64)
    draws = [r[:, 0] + (r[:, 1] / 2).exp() * e for r, e in zip((first, second), noise)]
    chance = personal.normal_log_win(first, second).exp()
    torch.testing.assert_close(chance, (draws[0] > draws[1]).double().mean(0), rtol=0, atol=3e-3)
    # By hand: variances 1 and 3 make a spread of 2, so the first wins with Phi(1/2).
    assert chance[0].item() == pytest.approx(0.5 * (1 + math.erf(0.5 / math.sqrt(2))), abs=1e-9)
    torch.testing.assert_close(
        chance + personal.normal_log_win(second, first).exp(), torch.ones(3).double()
    )


def test_atoms_win_as_often_as_a_double_sum_says():
    first, second = torch.randn(2, 4, 6, generator=gen(), dtype=torch.float64)
    p, q = first.softmax(-1), second.softmax(-1)
    each = [
        [
            sum(
                float(p[b, i] * q[b, j]) * (1.0 if i > j else 0.5 if i == j else 0.0)
                for i in range(6)
                for j in range(6)
            )
        ]
        for b in range(4)
    ]
    chance = personal.atoms_log_win(first, second).exp()
    torch.testing.assert_close(chance[:, None], torch.tensor(each, dtype=torch.float64))
    torch.testing.assert_close(
        chance + personal.atoms_log_win(second, first).exp(), torch.ones(4).double()
    )
    sure = 50 * torch.eye(6).double()  # one value each: the larger one wins
    assert personal.atoms_log_win(sure[3], sure[1]).exp() > 0.999
    assert personal.atoms_log_win(sure[2], sure[2]).exp().item() == pytest.approx(0.5)


def test_the_spread_of_a_crowd_is_recovered_up_to_scale():
    """Endless answers of people whose tastes are normal: means and spreads are found again."""
    true = torch.tensor([[0.0, 0.0], [1.0, -1.0], [-0.5, 1.5], [2.0, 0.5]], dtype=torch.float64)
    i, j = torch.triu_indices(4, 4, 1)
    answers = personal.normal_log_win(true[i], true[j]).exp()
    found = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [found],
        max_iter=500,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def loss():
        optimizer.zero_grad()
        yes, no = (
            personal.normal_log_win(found[i], found[j]),
            personal.normal_log_win(found[j], found[i]),
        )
        value = -(answers * yes + (1 - answers) * no).sum()
        value.backward()
        return value

    optimizer.step(loss)
    mean, spread = found[:, 0].detach(), (found[:, 1].detach() / 2).exp()
    scale = mean[1] - mean[0]  # the truth has 1 here
    assert bool(((spread / scale - (true[:, 1] / 2).exp()).abs() < 0.05).all())
    assert bool((((mean - mean[0]) / scale - true[:, 0]).abs() < 0.02).all())


@pytest.mark.parametrize("win", [personal.normal_log_win, personal.atoms_log_win])
def test_win_chances_have_gradients_in_the_far_tail(win):
    first = torch.tensor([-30.0, 0.0], requires_grad=True)
    win(first, torch.tensor([30.0, 0.0])).backward()
    assert first.grad.isfinite().all()


# --- linear fits -------------------------------------------------------------------------------


def by_lbfgs(x, y, precision):
    """The same minimum by another solver (scipy), from the formula and nothing of the kit."""
    from scipy.optimize import minimize

    x, y = x.numpy(), y.numpy()

    def loss(w):
        z = x @ w
        slope = x.T @ (1 / (1 + np.exp(-z)) - y) + precision * w
        return (np.logaddexp(0, z) - y * z).sum() + precision / 2 * w @ w, slope

    return torch.tensor(
        minimize(loss, np.zeros(x.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    )


def test_batched_fits_equal_the_single_fit():
    x, y, _ = pairs()
    w = R.fit_linear_pairs(torch.stack([x, x[:, [1, 0, 2, 3, 4]]]), torch.stack([y, y]), 3.0)
    alone = R.fit_bradley_terry(x, torch.zeros_like(x), y, ridge=3.0 / len(x))
    torch.testing.assert_close(alone, by_lbfgs(x, y, 3.0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(w[0], alone, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(w[1], alone[[1, 0, 2, 3, 4]], rtol=1e-6, atol=1e-8)
    weighted = R.fit_linear_pairs(x, y, 3.0, weights=(torch.arange(300) < 100).double())
    torch.testing.assert_close(weighted, R.fit_linear_pairs(x[:100], y[:100], 3.0))


def test_separable_pairs_stay_finite():
    x, _, true = pairs(20)
    w = R.fit_linear_pairs(100 * x, (x @ true > 0).double(), 1e-3, steps=40)
    assert w.isfinite().all() and bool((((x @ w) > 0) == (x @ true > 0)).all())


def test_evidence_is_the_integral_in_one_dimension():
    x, y, _ = pairs(30, 1, seed=3)
    grid = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    fit = (-R.pairwise_ce(x * grid, y[:, None])).sum(0)
    precisions = (0.1, 1.0, 10.0, 100.0)
    exact = [torch.logsumexp(fit - p / 2 * grid**2 + math.log(p) / 2, 0) for p in precisions]
    fit = opinions.fit_by_evidence(x, y, precisions)
    assert float(fit.precision) == pytest.approx(precisions[int(torch.stack(exact).argmax())])


def test_standard_errors_are_those_of_repeated_samples():
    g, true = gen(2), torch.tensor([0.7, -0.4], dtype=torch.float64)
    x = torch.randn(60, 400, 2, generator=g, dtype=torch.float64)
    y = (torch.rand(60, 400, generator=g) < torch.sigmoid(x @ true)).double()
    fit = opinions.fit_by_evidence(x, y, (0.01,))
    torch.testing.assert_close(fit.weights.std(0), fit.std.mean(0), rtol=0.35, atol=0)


def test_verdicts_by_hand():
    found = R.verdicts(torch.tensor([0.0, 1.0, -1.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 0.5]))
    assert found.tolist() == [0.5, 1.0, 0.0, 0.5]


def test_evidence_prefers_a_strong_prior_for_noise_and_a_weak_one_for_signal():
    x, y, true = pairs(200, 10, seed=5)
    coin = (torch.rand(200, generator=gen(9)) < 0.5).double()
    weak, strong = (
        opinions.fit_by_evidence(x, t).precision for t in ((x @ (3 * true) > 0).double(), coin)
    )
    assert weak < strong


@pytest.mark.parametrize(
    "call",
    [
        lambda: R.fit_linear_pairs(torch.zeros(3, 2), torch.zeros(4)),
        lambda: R.fit_linear_pairs(torch.zeros(3, 2), torch.zeros(3), precision=0.0),
        lambda: R.fit_linear_pairs(torch.zeros(0, 2), torch.zeros(0)),
        lambda: R.fit_linear_pairs(torch.full((3, 2), float("inf")), torch.zeros(3)),
        lambda: opinions.fit_by_evidence(torch.zeros(0, 2), torch.zeros(0)),
        lambda: opinions.fit_by_evidence(torch.zeros(3, 2), torch.full((3,), 2.0)),
        lambda: R.train_voters(
            R.new_voters(2, 3, 0, gen()),
            torch.ones(4, 3),
            torch.zeros(4, 3),
            gen(),
            rows=torch.zeros(2, 0, dtype=torch.long),
        ),
        lambda: R.fit_bradley_terry(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(4)),
        lambda: R.fit_bradley_terry(
            torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3), ridge=0.0
        ),
        lambda: R.fit_bradley_terry(torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0)),
        lambda: R.fit_bradley_terry(
            torch.full((3, 2), float("nan")), torch.zeros(3, 2), torch.ones(3)
        ),
        lambda: R.fit_bradley_terry(
            1e4 * torch.eye(2), torch.zeros(2, 2), torch.tensor([0.0, 1]), 1e-9, 2
        ),
        lambda: R.bradley_terry_loss(torch.zeros(3), torch.zeros(3), torch.zeros(2)),
        lambda: R.bradley_terry_loss(torch.zeros(2), torch.zeros(2), torch.tensor([0.0, 2.0])),
        lambda: R.new_voters(0, 3, 4, gen()),
        lambda: R.train_voters(
            R.new_voters(2, 3, 0, gen()), torch.zeros(0, 3), torch.zeros(0, 3), gen()
        ),
        lambda: R.train_voters(
            R.new_voters(2, 3, 0, gen()), torch.zeros(4, 3), torch.full((4, 3), float("nan")), gen()
        ),
        lambda: R.embed_sentences(None, []),
        lambda: R.principal_axes(torch.zeros(10, 4), 3),
        lambda: R.principal_axes(torch.zeros(3, 4), 3),
        lambda: R.load_sentence_encoder("./nowhere"),
    ],
)
def test_bad_input_is_one_sentence(call):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        call()
    assert "\n" not in str(caught.value)


# --- voters ------------------------------------------------------------------------------------


def test_an_ensemble_equals_models_trained_alone():
    x, y, _ = pairs(24, 3, dtype=torch.float32)
    chosen, rejected = x.clone(), torch.zeros_like(x)
    both = R.new_voters(2, 3, 4, gen(1))
    alone = R.Voters(*(w.detach()[1:].clone().requires_grad_() for w in both.parameters()))
    for voters in (both, alone):  # one batch: the order does not matter
        R.train_voters(voters, chosen, rejected, gen(2), epochs=3, batch=24)
    torch.testing.assert_close(both.scores(x)[1:], alone.scores(x))
    assert not torch.allclose(both.scores(x)[0], alone.scores(x)[0])


def test_voters_learn_and_report_a_falling_loss():
    x, _, true = pairs(512, 4, dtype=torch.float32)
    chosen = torch.where((x @ true > 0)[:, None], x, -x) / 2
    voters = R.new_voters(3, 4, 0, gen(1))
    losses = R.train_voters(voters, chosen, -chosen, gen(), epochs=8, lr=0.05)
    assert losses[0] < math.log(2) + 0.05 and losses[-1] < 0.6 * losses[0]
    gap = voters.scores(chosen) - voters.scores(-chosen)
    assert (gap > 0).float().mean() > 0.95


def test_rows_leave_pairs_out():
    x, _, true = pairs(64, 3, dtype=torch.float32)
    x[:32] = float(0)  # what a voter sees is silent, what it does not see would teach
    voters = R.new_voters(1, 3, 0, gen())
    R.train_voters(voters, x, -x, gen(), epochs=2, rows=torch.arange(32)[None])
    assert voters.w_out.abs().max() == 0


def test_vote_by_hand():
    strength = secrets.vote(torch.tensor([[1.0, -1.0], [3.0, -2.0], [2.0, 9.0]]))
    torch.testing.assert_close(strength.mean, torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(strength.std, torch.tensor([(2 / 3) ** 0.5, (74 / 3) ** 0.5]))
    counted = torch.tensor([[True, True], [True, True], [True, False]])
    assert (
        secrets.vote(torch.tensor([[1.0, -1.0], [3.0, -2.0], [2.0, 9.0]]), counted).mean[1] == -1.5
    )


def test_folds_cover_every_pair_equally_and_nobody_votes_on_what_it_learned():
    rows, left_out = secrets.fold_rows(47, 10, 5, gen())
    assert left_out.sum(0).tolist() == [2] * 47
    for own, out in zip(rows, left_out):
        assert len(set(own.tolist())) == rows.shape[1] and not out[own].any()


def test_out_of_fold_votes_find_flips_that_long_training_hides():
    x, _, true = pairs(300, 20, dtype=torch.float32)
    flipped = torch.rand(300, generator=gen(4)) < 0.25
    x = torch.where(((x @ true > 0) ^ flipped)[:, None], x, -x) / 2
    rows, left_out = secrets.fold_rows(300, 4, 2, gen())
    seen, unseen = (R.new_voters(4, 20, 32, gen(1)) for _ in range(2))
    R.train_voters(seen, x, -x, gen(), epochs=25, lr=0.03, batch=64)
    R.train_voters(unseen, x, -x, gen(), epochs=25, lr=0.03, batch=64, rows=rows)
    gaps = [(v.scores(x) - v.scores(-x)).detach() for v in (seen, unseen)]
    inside, outside = secrets.vote(gaps[0]).mean, secrets.vote(gaps[1], left_out).mean

    def auc(score):
        return float((score[flipped][:, None] < score[~flipped][None]).float().mean())

    assert auc(outside) > auc(inside) + 0.03


def test_treatment_flips_only_negative_strength():
    strength = torch.tensor([-2.0, -1.0, 0.5, 3.0])
    found = secrets.treat(strength, flip_share=0.25, smoothing=0.3, margin=True)
    assert found.flip.tolist() == [True, False, False, False]
    torch.testing.assert_close(found.margin, torch.tensor([2.0, 0.0, 0.5, 3.0]))
    torch.testing.assert_close(found.smoothing, torch.tensor([0.0, 0.3, 0.0, 0.0]))
    assert secrets.treat(strength, flip_share=1.0).flip.tolist() == [True, True, False, False]


# --- sentences ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random BERT of one layer in an ordinary folder, as a user's own encoder would be."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "cable", "works", "."]
    tokenizer = BertTokenizer(vocab={w: i for i, w in enumerate(words)})
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return R.load_sentence_encoder(folder)


def test_embeddings_do_not_depend_on_the_batch(tiny):
    texts = ["good cable", "bad", "cable works . good good cable", "bad"]
    one = torch.stack([R.embed_sentences(tiny, [t])[0] for t in texts])
    tiny.cache.clear()
    torch.testing.assert_close(R.embed_sentences(tiny, texts), one, atol=2e-3, rtol=0)
    torch.testing.assert_close(one.norm(dim=1), torch.ones(4), atol=2e-3, rtol=0)
    hidden, mask = torch.randn(1, 3, 2), torch.tensor([[1, 1, 0]])
    from rlgenkit.rewards.sentences import _mean_of_tokens

    torch.testing.assert_close(_mean_of_tokens(hidden, mask), hidden[:, :2].mean(1))


def test_a_text_is_encoded_once_and_kept_on_disk(tiny, tmp_path, monkeypatch):
    from rlgenkit.rewards import sentences

    asked = []
    real = sentences._encode
    monkeypatch.setattr(sentences, "_encode", lambda e, part: asked.extend(part) or real(e, part))
    tiny.cache.clear()
    first = R.embed_sentences(tiny, ["good", "bad", "good"], folder=tmp_path)
    assert sorted(asked) == ["bad", "good"]
    tiny.cache.clear()
    again = R.embed_sentences(tiny, ["bad", "good", "good"], folder=tmp_path)
    assert sorted(asked) == ["bad", "good"]
    torch.testing.assert_close(again, first[[1, 0, 2]], rtol=0, atol=0)


def test_a_head_on_principal_axes_is_linear_and_centered(tiny):
    x = torch.randn(50, 6, generator=gen()) * torch.tensor([9.0, 5.0, 1.0, 1.0, 1.0, 1.0])
    center, basis = R.principal_axes(x, 2)
    scores = (x.double() - center) @ basis
    torch.testing.assert_close(
        scores.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-6, rtol=0
    )
    assert scores.square().mean() == pytest.approx(1.0)
    assert abs(F.normalize(basis[:, 0], dim=0)[0]) > 0.9
    flat = R.embed_sentences(tiny, ["good", "bad", "cable", "works good"])
    torch.testing.assert_close(R.embed_sentences(tiny, ["bad", "good"]), flat[[1, 0]])


def test_fits_are_the_same_on_a_device_without_float64():
    x, y, _ = pairs(dtype=torch.float32)
    fitted = R.fit_linear_pairs(x, y, 3.0), R.fit_bradley_terry(x, 0 * x, y)
    said = R.verdicts(x[:, 0], y)
    with far_device():
        assert torch.equal(R.fit_linear_pairs(far(x), far(y), 3.0), fitted[0])
        assert torch.equal(R.fit_bradley_terry(far(x), far(0 * x), far(y)), fitted[1])
        assert torch.equal(R.verdicts(far(x[:, 0]), far(y)), said)
