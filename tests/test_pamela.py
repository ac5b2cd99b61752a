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
    p.rounds, p.variants, p.axes_penalty, p.penalty, p.rank = 3, 20, 1, 1, 3
    p.attribute_penalty, p.probe_penalty = 1.0, 1.0
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


def test_ranks_are_those_of_spearman():
    scores = torch.randint(0, 9, (2, 50, 5), generator=seeded(4)).float()
    people = torch.randint(1, 6, (50, 5), generator=seeded(5)).float()
    assert np.array_equal(NB.ranks_of(scores)[1, :, 2], rankdata(scores[1, :, 2].numpy()))
    theirs = [spearmanr(s[:, r], people[:, r]).statistic for s in scores for r in range(5)]
    found = NB.mean_srocc(NB.ranks_of(scores), NB.ranks_of(people), torch.arange(50))
    assert found == pytest.approx(np.mean(theirs))


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
    attributes = side[:, None].expand(-1, 3)
    world = SimpleNamespace(x=x, words=words, kind=kind, ratings=ratings, train=train, new=new)
    world.attributes = attributes
    return world, side


def touched(world):
    """The same world with other ratings of new users, and of unseen pictures."""
    ratings = world.ratings.clone()
    ratings[:, world.new] = 6 - ratings[:, world.new]
    ratings[~world.train] = 6 - ratings[~world.train]
    return SimpleNamespace(**{**vars(world), "ratings": ratings})


def test_training_reads_known_users_on_training_pictures_alone(told):
    world, side = world_of_two_tastes()
    told.p.steps = 5
    one = NB.train_network(world, world.ratings, side[:, None], 0).state_dict()
    other = touched(world)
    two = NB.train_network(other, other.ratings, side[:, None], 0).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_axes_attributes_and_probe_read_known_users_on_training_pictures_alone(told):
    world, _ = world_of_two_tastes()
    base = torch.zeros(world.ratings.shape)
    one, axes = NB.offsets_of(world, base, 0)
    two, same = NB.offsets_of(touched(world), base, 0)
    assert torch.equal(axes, same)
    assert torch.equal(one["attributes"], two["attributes"])
    assert torch.equal(NB.linear_probe(world), NB.linear_probe(touched(world)))
    assert not torch.equal(one["20 ratings"], two["20 ratings"])  # new users' ratings do count
    ratings = world.ratings.clone()
    ratings[~world.train] = 1.0
    third, _ = NB.offsets_of(SimpleNamespace(**{**vars(world), "ratings": ratings}), base, 0)
    assert all(torch.equal(one[arm], third[arm]) for arm in one)
    assert not one["0 ratings"].any()


def test_attributes_that_tell_everything_give_the_taste(told):
    world, side = world_of_two_tastes()
    offsets, _ = NB.offsets_of(world, torch.zeros(world.ratings.shape), 0)
    said = world.ratings[~world.train][:, world.new]
    assert NB.user_srocc(offsets["attributes"][~world.train], said) > 0.8
    columns = torch.stack([side, torch.zeros_like(side), torch.zeros_like(side)], 1)
    known = (world.ratings - 3).where(world.train[:, None], torch.nan)
    weights = NB.told_weights(world.x, known, world.new, columns)
    assert torch.equal(weights[:, 0], weights[:, 2]) and weights[0, 1] > 0 > weights[0, 0]


def test_the_other_searcher_is_somebody_else(told, monkeypatch):
    scope = NB.shelf_scores.__globals__
    silent = lambda prompts: (torch.zeros(1, 4), torch.zeros(1, dtype=torch.long))  # noqa: E731
    monkeypatch.setitem(scope, "texts_of", silent)
    network = NB.new_network((6, 4), (1,), 0).state_dict()
    kept = {"axes": torch.eye(6)[:, :3], "population": network, "biased population": network}
    kept["own"], kept["mixed"] = torch.randn(2, 3, 5, generator=seeded(20))
    found = NB.shelf_scores(kept, [None], torch.randn(1, 7, 6, generator=seeded(21)))
    assert torch.equal(found["other"][:, :, 1], found["self"][:, :, 0])
    assert torch.equal(found["permuted other"][:, :, 0], found["permuted self"][:, :, 4])
    assert not torch.equal(found["other"], found["self"])


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


def test_permuted_moves_the_first_k_values_of_a_user_alone():
    residual = torch.where(sparse(20, 4, 14).isnan(), torch.nan, torch.randn(20, 4))
    mixed = NB.permuted(residual, 6, seeded(0))
    assert torch.equal(mixed.isnan(), residual.isnan()) and not mixed.equal(residual)
    for u in range(4):
        rows = (~residual[:, u].isnan()).nonzero()[:, 0]
        first, rest = rows[:6], rows[6:]
        assert torch.equal(mixed[first, u].sort().values, residual[first, u].sort().values)
        assert torch.equal(mixed[rest, u], residual[rest, u])


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


# --- people


def test_answer_columns_are_standard(told):
    columns = NB.answer_columns(worlds.load_dsg())
    assert columns.shape == (800, 11) and columns.isfinite().all()
    torch.testing.assert_close(columns.mean(0), torch.zeros(11), atol=1e-5, rtol=0)


def test_a_planted_taste_has_the_size_that_was_asked_for():
    x, ratings = torch.randn(500, 6, generator=seeded(22)), torch.randn(500, 5) * 2
    taste = NB.planted(x, ratings, 0.5, seeded(0)) - ratings
    torch.testing.assert_close(taste.std(0), 0.5 * ratings.std(0))
    assert (x @ torch.linalg.lstsq(x, taste).solution - taste).abs().max() < 0.1  # linear in x


def test_own_ratings_of_both_kinds(tmp_path):
    long = tmp_path / "votes.csv"
    long.write_text("image_id=user_id=score=x\n7=a=3=0\n8=a=5=0\n7=b=1.5=0\n")
    expected = torch.tensor([[3.0, 1.5], [5.0, torch.nan]])  # items are rows
    torch.testing.assert_close(NB.read_ratings(long), expected, equal_nan=True)
    wide = tmp_path / "jester.csv"
    wide.write_text("2," + "1.5,-3," + ",".join(["99"] * 98) + "\n")
    found = NB.read_ratings(wide)
    assert found[:2, 0].tolist() == [1.5, -3.0] and found.isnan().sum() == 98


@pytest.mark.parametrize(
    "text",
    ["", "user,item\n1,2\n", "item,score\n1,2\n", "user,item,score\n1,2\n",
     "user,item,score\n1,2,good\n", "1,2,3\n4,5,6\n"],
)  # fmt: skip
def test_bad_files_get_one_sentence(tmp_path, text):
    path = tmp_path / "own.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match="columns user, item") as error:
        NB.read_ratings(path)
    assert len(str(error.value).splitlines()) == 1


def test_no_file_and_no_text_are_refused(tmp_path):
    (tmp_path / "x.rda").write_bytes(b"\xff\xfe\x00\x80" * 9)
    for path in (tmp_path, tmp_path / "x.rda", tmp_path / "none"):
        with pytest.raises(ValueError, match="columns user, item"):
            NB.read_ratings(path)
