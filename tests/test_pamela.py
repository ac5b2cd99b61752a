"""Notebook 18 (PAMELA): the predictor, the ridge of a user, the measures, the search, own files."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import rankdata, spearmanr

from notebook_code import definitions
from rlgenkit import rewards, worlds

NB = definitions("18")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def told(monkeypatch):
    """What only a run gives: constants of the profile, tables made by torch, generators."""
    scope = NB.one_seed.__globals__
    p = SimpleNamespace(told=0.25, personal=2.0, noise=0.8, bias=2.0, width=16, dropout=0.0)
    p.lr, p.decay, p.steps, p.batch, p.asked = 0.01, 0.0, 60, 64, 1.0
    p.rounds, p.variants, p.axes_penalty, p.penalty, p.plain_penalty, p.rank = 3, 20, 1, 1, 1, 3
    traits = (*worlds.LOOKS, "stickers", "warm sky", "warm colors")
    population = torch.tensor([0.5, 0.2, 0.3, 0.4, -0.5, 0.2, 0.2, 0.3])
    styles = torch.cartesian_prod(*[torch.arange(size) for size in NB.SIZES])
    made = {"p": p, "seeded": seeded, "TRAITS": traits, "POPULATION": population, "STYLES": styles}
    for name, value in made.items():
        monkeypatch.setitem(scope, name, value)
    return SimpleNamespace(**made)


def sparse(rows, users, seed, share=0.7):
    generator = seeded(seed)
    ratings = torch.randint(1, 6, (rows, users), generator=generator).float()
    away = torch.rand(rows, users, generator=generator) > share
    return ratings.masked_fill(away, torch.nan)


# --- measures


def test_others_mean_by_brute_force():
    ratings = sparse(7, 5, 0)
    found = NB.others_mean(ratings)
    for i in range(7):
        for u in range(5):
            rest = [float(r) for v, r in enumerate(ratings[i]) if v != u and not r.isnan()]
            if rest:
                assert found[i, u] == pytest.approx(np.mean(rest))
            else:
                assert not found[i, u].isfinite()


def test_others_mean_gives_the_ceiling_of_the_package():
    ratings = torch.randn(40, 4, generator=seeded(1))
    ours = NB.user_srocc(NB.others_mean(ratings), ratings)
    assert ours == pytest.approx(rewards.leave_one_out_ceiling(ratings)[0], abs=1e-6)


def test_by_user_is_scipy_within_each_column():
    ratings, scores = sparse(30, 4, 2), torch.randn(30, 4, generator=seeded(3))
    ratings[:, 3] = 4.0  # a user who gives one rating has no order
    found = NB.by_user(scores, ratings, rewards.spearman)
    for u in range(3):
        seen = ~ratings[:, u].isnan()
        theirs = spearmanr(scores[seen, u].numpy(), ratings[seen, u].numpy()).statistic
        assert found[u] == pytest.approx(theirs, abs=1e-6)
    assert found[3].isnan()
    assert NB.user_srocc(scores, ratings) == pytest.approx(float(found[:3].mean()))


def test_pair_accuracy_by_brute_force_with_ties():
    scores = torch.tensor([0.3, 0.3, 0.1, 0.9])
    ratings = torch.tensor([3.0, 1.0, 1.0, 2.0])
    # pairs that the ratings order: 01 (tie of scores, one half), 02 right, 03 wrong, 13, 23 right
    assert NB.pair_accuracy(scores, ratings) == pytest.approx((0.5 + 1 + 0 + 1 + 1) / 5)


def test_ranks_are_those_of_spearman(monkeypatch):
    scores = torch.randint(0, 9, (2, 50, 5), generator=seeded(4)).float()
    people = torch.randint(1, 6, (50, 5), generator=seeded(5)).float()
    monkeypatch.setitem(NB.mean_srocc.__globals__, "said", NB.ranks_of(people))
    assert np.array_equal(NB.ranks_of(scores)[1, :, 2], rankdata(scores[1, :, 2].numpy()))
    theirs = [spearmanr(s[:, r], people[:, r]).statistic for s in scores for r in range(5)]
    found = NB.mean_srocc(NB.ranks_of(scores), torch.arange(50))
    assert found == pytest.approx(np.mean(theirs))


def test_ceiling_by_crowd_ends_at_leave_one_out():
    ratings = torch.randn(60, 4, generator=seeded(6)) + torch.randn(60, 1, generator=seeded(7))
    found = NB.ceiling_by_crowd(ratings)
    assert found[-1] == pytest.approx(rewards.leave_one_out_ceiling(ratings)[0])
    assert found[0] < found[1] < found[2]


# --- predictor


def test_loss_is_its_two_parts():
    score, rating = torch.tensor([0.5, -1.0, 0.2]), torch.tensor([1.0, 0.0, 0.5])
    other, level = torch.tensor([0.0, 0.3, -0.4]), torch.tensor([0.0, 1.0, 0.5])
    squares = [0.25 + 0.0, 1.0 + 0.49, 0.09 + 0.81]
    target = torch.tensor([1.0, 0.0])  # the third pair is a tie
    logits = (score - other)[:2] / NB.TAU
    pairs = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / 3
    found = NB.rating_loss(score, rating, other, level)
    assert found.item() == pytest.approx(np.mean(squares) / 2 + NB.LAMBDA * pairs.item())


def test_partners_are_ratings_of_the_same_user():
    owner = torch.tensor([0, 0, 0, 1, 3, 3])
    for seed in range(20):
        assert torch.equal(owner[NB.partners(owner, seeded(seed))], owner)
    drawn = torch.stack([NB.partners(owner, seeded(seed)) for seed in range(40)])
    assert drawn[:, 0].unique().tolist() == [0, 1, 2]


def test_scores_depend_on_the_user_token_alone(told):
    network = NB.new_network((6, 4), (3, 2), 0).eval()
    x, words = torch.randn(5, 6), torch.randn(5, 4)
    kind, user = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([[0, 1], [2, 0], [0, 1]])
    found = NB.scores_of(network, x, words, kind, user)
    assert torch.equal(found[:, 0], found[:, 2]) and not torch.equal(found[:, 0], found[:, 1])
    for u in range(3):
        alone = NB.predict(network, x, words, kind, user[u].expand(5, -1))
        torch.testing.assert_close(alone, found[:, u])


def world_of_two_tastes(users=24):
    """Half of the users like the first feature, half dislike it; the attribute tells."""
    generator = seeded(8)
    x = torch.randn(80, 5, generator=generator)
    side = torch.arange(users) % 2
    ratings = (3 + x[:, :1] * (2.0 * side - 1)).round().clamp(1, 5)
    train, new = torch.arange(80) < 60, torch.arange(users) >= users - 6
    words, kind = torch.zeros(80, 2), torch.zeros(80, dtype=torch.long)
    return SimpleNamespace(x=x, words=words, kind=kind, ratings=ratings, train=train, new=new), side


def test_attributes_help_where_they_tell_everything(told):
    world, side = world_of_two_tastes()
    found = {}
    for name, user in {"told": side[:, None], "not told": torch.zeros(24, 1).long()}.items():
        network = NB.train_network(world, world.ratings, user, 0)
        scores = NB.scores_of(network, world.x, world.words, world.kind, user)
        rows = ~world.train
        found[name] = NB.user_srocc(scores[rows][:, world.new], world.ratings[rows][:, world.new])
    assert found["told"] > 0.8 and abs(found["not told"]) < 0.5


# --- the ridge of a user


def test_ridge_is_least_squares_with_rows_for_the_penalty():
    x, r = torch.randn(9, 4, generator=seeded(9)), torch.randn(9, generator=seeded(10)) + 5
    more = torch.cat([x, 3.0**0.5 * torch.eye(4)])
    target = torch.cat([r - r.mean(), torch.zeros(4)])
    theirs = torch.linalg.lstsq(more, target[:, None]).solution[:, 0]
    torch.testing.assert_close(NB.ridge_offset(x, r, 3.0), theirs, atol=1e-5, rtol=1e-4)


def test_taste_axes_span_what_users_differ_in():
    generator = seeded(11)
    basis = torch.linalg.qr(torch.randn(20, 2, generator=generator)).Q  # [20, 2]
    weights = torch.randn(60, 2, generator=generator) * torch.tensor([3.0, 1.0])
    x = torch.randn(200, 20, generator=generator)
    residual = x @ basis @ weights.T + 5.0  # lenience is no taste
    axes = NB.taste_axes(x, residual, 1e-3, 2)
    inside = basis @ (basis.T @ axes)
    torch.testing.assert_close(inside, axes, atol=0.02, rtol=0.02)
    assert axes[:, 0].norm() == pytest.approx(3.0, rel=0.3)  # as far as users differ
    assert axes[:, 1].norm() == pytest.approx(1.0, rel=0.3)


def test_weights_use_the_first_k_ratings_and_none_without():
    residual = sparse(30, 3, 12) - 3
    x = torch.randn(30, 4, generator=seeded(13))
    assert not NB.personal_weights(x, residual, 0, 1.0).any()
    rows = (~residual[:, 1].isnan()).nonzero()[:6, 0]
    own = NB.ridge_offset(x[rows], residual[rows, 1], 1.0)
    torch.testing.assert_close(NB.personal_weights(x, residual, 6, 1.0)[:, 1], own)


def test_permuted_keeps_each_users_values_and_places():
    residual = sparse(20, 4, 14)
    mixed = NB.permuted(residual, seeded(0))
    assert torch.equal(mixed.isnan(), residual.isnan()) and not mixed.equal(residual)
    for u in range(4):
        seen = ~residual[:, u].isnan()
        assert torch.equal(mixed[seen, u].sort().values, residual[seen, u].sort().values)


def test_best_penalty_is_strong_without_a_person_and_weak_with_one():
    generator = seeded(15)
    x = torch.randn(300, 3, generator=generator)
    common = x[:, :1] + 0.5 * torch.randn(300, 4, generator=generator)
    rows = torch.arange(300)
    assert NB.best_penalty(x, common, rows, 40) >= 30.0
    own = common + x[:, 1:2] * torch.tensor([4.0, -4.0, 4.0, -4.0])
    assert NB.best_penalty(x, own, rows, 40) <= 10.0


# --- users


def test_crowd_has_the_variances_that_were_asked_for(told):
    told.p.told = 0.4
    shares, lengths = [], []
    for seed in range(40):
        attributes, tastes, bends, _ = NB.crowd(600, seeded(seed))
        lengths.append(float(tastes.square().sum(1).mean()))
        columns = [F.one_hot(attributes[:, k]).float() for k in range(3)]
        known = torch.cat(columns, 1)
        guess = known @ torch.linalg.lstsq(known, tastes, driver="gelsd").solution
        shares.append(float(guess.var(0).sum() / tastes.var(0).sum()))
        torch.testing.assert_close(bends.norm(dim=1), torch.ones(600))
    assert np.mean(lengths) == pytest.approx(2.0, rel=0.05)
    assert np.mean(shares) == pytest.approx(0.4, abs=0.05)


def test_utility_in_closed_form(told):
    phi, taste, bend = torch.zeros(2, 8), torch.zeros(1, 8), torch.zeros(1, 8)
    phi[0, 0], bend[0, 0], taste[0, 0] = 2.0, 1.0, 0.5
    size = told.POPULATION.norm()
    expected = 2 * (0.5 / size + 0.5) + NB.BEND * (4 - 1) / math.sqrt(2)
    found = NB.utility(phi, taste, bend)
    assert found[0, 0] == pytest.approx(expected.item())
    assert found[1, 0] == pytest.approx(-NB.BEND / math.sqrt(2))


def test_ratings_are_lenient_in_their_range_and_ordered_without_noise():
    worth = torch.randn(200, 2, generator=seeded(16))
    manner = torch.tensor([[0.0, 1.0], [1.0, 0.5]])
    found = NB.ratings_of(worth, manner, 0.0, seeded(0))
    assert set(found.unique().tolist()) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    assert found[:, 1].mean() > found[:, 0].mean() + 0.7 and found[:, 1].std() < found[:, 0].std()
    assert spearmanr(found[:, 0], worth[:, 0]).statistic > 0.9


# --- the search


def test_styles_have_numbers(told):
    assert torch.equal(NB.number_of(told.STYLES), torch.arange(len(told.STYLES)))
    assert len(told.STYLES) == 270


def test_variants_change_one_or_two_slots(told):
    best = told.STYLES[100]
    changed = (NB.variants(best, 2000, seeded(0)) != best).sum(1)
    assert changed.max() == 2 and (changed == 1).any()
    first = NB.variants(None, 3000, seeded(0))
    assert len(first.unique(dim=0)) == 270  # all styles can be drawn


def test_search_finds_the_best_with_budget_and_keeps_the_plain_prompt(told):
    score = torch.randn(270, generator=seeded(17))
    best = NB.prompt_search(score, -9.0, 1, 5000, seeded(0))
    assert NB.number_of(best[None])[0] == score.argmax()
    assert NB.prompt_search(score, 99.0, 3, 20, seeded(0)) is None
    smooth = -(told.STYLES - told.STYLES[77]).abs().sum(1).float()
    found = NB.prompt_search(smooth, -99.0, 6, 60, seeded(1))
    assert torch.equal(found, told.STYLES[77])  # greedy steps climb a single hill


def test_a_generated_scene_follows_its_style(told):
    prompt = worlds.parse("a red cat and a blue star")
    muted, vivid = torch.tensor([0, 0, 1, 0, 3]), torch.tensor([0, 2, 1, 0, 3])
    for seed in range(5):
        low, high = (NB.generate(prompt, style, seed) for style in (muted, vivid))
        assert low.look[1] < high.look[1] and low.look[0] == high.look[0]
        assert low.background == worlds.BACKGROUNDS[3] and low.stickers == high.stickers


def test_elo_of_two_is_the_logit(told):
    told.p.noise = 1.0
    gap = torch.tensor([0.7, 0.7])
    found = NB.elo({"a": gap, "b": torch.zeros(2)}, ("a", "b"))
    chance = 0.5 * (1 + math.erf(0.7 / 2))  # of N(0.7, 2)
    assert found[0] - found[1] == pytest.approx(400 * math.log10(chance / (1 - chance)), rel=0.02)
    assert found.mean() == pytest.approx(1000)


# --- people


def test_answer_columns_are_standard(told):
    columns = NB.answer_columns(worlds.load_dsg())
    assert columns.shape == (800, 11) and columns.isfinite().all()
    torch.testing.assert_close(columns.mean(0), torch.zeros(11), atol=1e-5, rtol=0)


def test_own_ratings_of_both_kinds(tmp_path):
    long = tmp_path / "votes.csv"
    long.write_text("image_id=user_id=score=x\n7=a=3=0\n8=a=5=0\n7=b=1.5=0\n")
    expected = torch.tensor([[3.0, 5.0], [1.5, torch.nan]])
    torch.testing.assert_close(NB.read_ratings(long), expected, equal_nan=True)
    wide = tmp_path / "jester.csv"
    wide.write_text("2," + "1.5,-3," + ",".join(["99"] * 98) + "\n")
    found = NB.read_ratings(wide)
    assert found[0, :2].tolist() == [1.5, -3.0] and found.isnan().sum() == 98


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "is empty"),
        ("user,item\n1,2\n", "column named score"),
        ("item,score\n1,2\n", "column named user"),
        ("user,item,score\n1,2\n", "line 2 of own.csv needs 3 cells"),
        ("user,item,score\n1,2,good\n", "line 2 of own.csv holds 'good', which is no number"),
        ("user,item,score\n1,2,nan\n", "no number"),
        ("1,2,3\n4,5,6\n", "needs columns user, item and score, or 100 columns"),
    ],
)
def test_bad_files_get_one_sentence(tmp_path, text, words):
    path = tmp_path / "own.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        NB.read_ratings(path)
    assert len(str(error.value).splitlines()) == 1


def test_no_file_and_no_text_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must name a file"):
        NB.read_ratings(tmp_path)
    (tmp_path / "x.rda").write_bytes(b"\xff\xfe\x00\x80" * 9)
    with pytest.raises(ValueError, match="is no text"):
        NB.read_ratings(tmp_path / "x.rda")


def test_people_curve_rises_with_ratings(told):
    generator = seeded(18)
    common, side = torch.randn(60, generator=generator), torch.randn(60, 2, generator=generator)
    tastes = torch.randn(120, 2, generator=generator)
    ratings = common + tastes @ side.T + 0.5 * torch.randn(120, 60, generator=generator)
    curve = NB.people_curve(ratings, (0, 5, 20), 0, rank=2)
    assert curve[0] < curve[5] < curve[20] and curve[20] > 0.8
    with pytest.raises(ValueError, match="too few ratings"):
        NB.people_curve(ratings[:, :20], (0, 20), 0)
