"""InstructEngine (notebook 34): its losses, filter, grammar and token world against oracles."""

import itertools
import math
import re
from types import FunctionType, SimpleNamespace

import pytest
import torch

from rlgenkit import models, optimizers as o, samplers as s, worlds
from tests.notebook_code import definitions

nb = definitions("34")
BETA = 0.7


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def table(seed=0, pairs=5):
    return torch.randn(2, 2, pairs, generator=generator(seed), dtype=torch.float64)


def by_hand(change, triples, beta=BETA):
    """Mean over triples of log(1 + exp(beta (winner - loser))), in plain loops."""
    rows = []
    for k in range(change.shape[2]):
        terms = [
            math.log(1 + math.exp(beta * (change[w][k] - change[x][k]).item())) for w, x in triples
        ]
        rows.append(sum(terms) / len(terms))
    return torch.tensor(rows, dtype=torch.float64)


IMAGE = (((0, 0), (1, 0)), ((1, 1), (0, 1)))  # (picture, text): winner, loser
TEXT = (((0, 0), (0, 1)), ((1, 1), (1, 0)))


@pytest.mark.parametrize(
    "name, triples",
    [
        ("cross_validation", IMAGE),
        ("single_triple", IMAGE[:1]),
        ("text_contrast", TEXT),
        ("all_four", IMAGE + TEXT),
    ],
)
def test_losses_by_hand(name, triples):
    change = table()
    torch.testing.assert_close(getattr(nb, name)(change, BETA), by_hand(change, triples))


def test_one_comparison_is_the_package_s_and_dpo_s():
    winner, loser = table()[0]
    mine = nb.pair_loss(winner, loser, BETA)
    torch.testing.assert_close(
        mine.float(), o.preference_denoising_terms(winner, loser, BETA), atol=1e-6, rtol=1e-5
    )
    zero = torch.zeros_like(winner)
    same = o.dpo_loss(-winner, -loser, zero, zero, BETA)
    torch.testing.assert_close(mine.mean(), same)


def slope(loss, change):
    change = change.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(loss(change, BETA).sum(), change)
    return found


def test_both_kinds_of_triples_have_one_gradient_at_the_start_and_part_later():
    zero = torch.zeros(2, 2, 3, dtype=torch.float64)
    first = slope(nb.cross_validation, zero)
    assert torch.equal(first, slope(nb.text_contrast, zero))
    wanted = BETA / 4 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(first, wanted[:, :, None].expand(2, 2, 3))
    assert not torch.allclose(slope(nb.cross_validation, table()), slope(nb.text_contrast, table()))


def test_invariances_and_the_pull_on_the_interaction():
    """A text's own shift leaves the image triples alone, a picture's own shift the text triples."""
    change, shift = table(), torch.tensor([3.0, -2.0], dtype=torch.float64)
    of_text, of_picture = shift[None, :, None], shift[:, None, None]
    for loss, silent, heard in (
        (nb.cross_validation, of_text, of_picture),
        (nb.text_contrast, of_picture, of_text),
    ):
        torch.testing.assert_close(loss(change + silent, BETA), loss(change, BETA))
        assert not torch.allclose(loss(change + heard, BETA), loss(change, BETA))
    easier = torch.zeros(2, 2, 1, dtype=torch.float64)
    easier[0] = -5.0  # picture 1, both texts
    pulls = []
    for loss in (nb.cross_validation, nb.text_contrast, nb.single_triple):
        g = slope(loss, easier)[..., 0]
        pulls.append((g[0, 0] + g[1, 1] - g[0, 1] - g[1, 0]).item())
    assert pulls[0] == pytest.approx(BETA) and pulls[1] == pytest.approx(BETA)
    assert pulls[2] == pytest.approx(2 * BETA / (1 + math.exp(5 * BETA)))


def test_imitation_has_the_gradient_of_the_denoising_loss():
    wanted = torch.zeros(2, 2, 5, dtype=torch.float64)
    wanted[0, 0] = wanted[1, 1] = 0.5
    assert torch.equal(slope(nb.imitation, table()), wanted)


def test_filter_keeps_one_of_sixteen_tables():
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4).T.reshape(2, 2, 16)
    kept = nb.accepted(every).nonzero()[:, 0].tolist()
    assert [every[:, :, k].tolist() for k in kept] == [[[1, 0], [0, 1]]]
    assert nb.everything(every).all()


def test_contrasts_differ_in_one_detail_and_may_be_trained_on():
    made = nb.sticker_contrasts(160, "train", generator(3))
    assert {x.theme for x in made} == set(nb.DETAILS)
    assert {(x.theme, x.detail) for x in made} == {
        (theme, detail) for theme, details in nb.DETAILS.items() for detail in details
    }
    for x in made:
        assert {worlds.split_of(x.first), worlds.split_of(x.second)} == {"train"}
        assert worlds.parse(x.second.text) == x.second and x.first.text != x.second.text
        pairs = list(zip(x.first.groups, x.second.groups, strict=True))
        fields = {
            f for a, b in pairs for f in ("kind", "color", "count") if vars(a)[f] != vars(b)[f]
        }
        for f in ("relation", "background", "word"):
            if vars(x.first)[f] != vars(x.second)[f]:
                fields.add(f)
        named = {"number": "count", "swap": "color", "place": "relation", "letters": "word"}
        expected = {named.get(x.detail, x.detail)}
        assert fields - {"kind"} == expected or fields == expected, x
        if x.detail == "place":
            assert nb.OPPOSITE[nb.OPPOSITE[x.first.relation]] == x.first.relation


def test_rewritten_exchanges_exactly_one_word():
    path = nb.human.DATA / "human" / "parti" / "prompts.csv"
    asked = nb.human.table(path, {"prompt": nb.human.text})["prompt"]
    hits = 0
    for text in asked:
        rule = nb.rewritten(text)
        if rule:
            hits += 1
            old, new = text.split(), rule[1].split()
            changed = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
            assert len(changed) == 1 and rule[0] in nb.SWAPS
            assert not re.search(r"\btwo\b", text) or rule[0] == "number"
    assert len(asked) == 1632 and hits == 477


@pytest.fixture(scope="module")
def policy():
    """The embedded model, all weights trained."""
    return models.image_policy(
        "data/models/epsilon",
        table=lambda x: s.ddim_table_from_scheduler(x, 2, eta=0.0),
    )


def cells_of(policy, *names, **values):
    """Functions of the notebook in one space, with the model and values that only a run has."""
    space = {**vars(nb), "seeded": generator, **values}
    if policy is not None:
        space["base"] = policy.model
        space["levels"] = policy.model.scheduler.alphas_cumprod.float()
        space["start_noise"] = lambda n, g: s.initial_noise(n, policy.model.latent_shape, g)
    for name in names:
        cell = getattr(nb, name)
        space[name] = FunctionType(cell.__code__, space, name, cell.__defaults__)
    return [space[name] for name in names]


def some_pairs(policy, count=4):
    """Pairs of two captions, drawn by the model."""
    words = [models.embed(policy.model, [x] * count) for x in ("a red cat", "a blue star")]
    noise = s.initial_noise(count, policy.model.latent_shape, generator(4))
    sides = []
    for side in words:
        with torch.no_grad():
            act = models.denoiser(policy.model, side)
            sides.append(s.rollout(act, policy.table, noise).final)
    return nb.Pairs(torch.stack(sides), words)


def arm(loss, cells, reference=True, either=False):
    return SimpleNamespace(loss=loss, cells=cells, reference=reference, either=either)


@pytest.fixture
def fresh():
    """A model of its own, for tests that train."""
    return models.image_policy(
        "data/models/epsilon",
        table=lambda x: s.ddim_table_from_scheduler(x, 2, eta=0.0),
    )


def test_errors_are_those_of_single_forwards(policy):
    (errors_of,) = cells_of(policy, "errors_of")
    latents = torch.randn(2, 3, *policy.model.latent_shape, generator=generator(1))
    texts = [["a red cat", "a blue star", "two red hearts"], ["a blue cat", "a red star", "a crab"]]
    texts[1][2] = "two blue hearts"
    pairs = nb.Pairs(latents, [models.embed(policy.model, x) for x in texts])
    time, noise = (
        torch.tensor([100, 500, 900]),
        torch.randn(latents[0].shape, generator=generator(2)),
    )
    cells, rows = nb.OWN + nb.CROSSED, torch.tensor([2, 0, 1])
    with torch.no_grad():
        found = nb.as_matrix(cells, errors_of(policy, cells, pairs, rows, time, noise))
        levels = policy.model.scheduler.alphas_cumprod
        for (i, j), k in itertools.product(cells, range(3)):
            row, level = rows[k].item(), levels[time[k]].float()
            noisy = level.sqrt() * latents[i, row] + (1 - level).sqrt() * noise[k]
            act = models.denoiser(policy.model, models.embed(policy.model, [texts[j][row]]))
            error = (act(noisy[None], time[k : k + 1]) - noise[k]).square().mean()
            assert found[i, j, k].item() == pytest.approx(error.item(), rel=1e-3)


def test_an_update_raises_the_interaction_and_leaves_the_reference_alone(policy):
    (errors_of,) = cells_of(policy, "errors_of")
    pairs = some_pairs(policy)
    time, cells, rows = torch.full((4,), 600), nb.OWN + nb.CROSSED, torch.arange(4)
    noise = s.initial_noise(4, policy.model.latent_shape, generator(4))
    look = lambda: nb.as_matrix(cells, errors_of(policy, cells, pairs, rows, time, noise))  # noqa: E731
    with torch.no_grad():
        before = look()
    optimizer = torch.optim.SGD(policy.parameters, 1e-5)
    loss = nb.cross_validation(look() - before, 100.0).mean()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-5)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        change = (look() - before).mean(2)
        with policy.reference():
            assert torch.allclose(look(), before, atol=1e-6)
    assert change[0, 1] + change[1, 0] > change[0, 0] + change[1, 1]


def test_a_drawn_side_exchanges_both_names_of_a_pair(policy):
    """Where side is 1 the errors are those of the pair turned around."""
    (errors_of,) = cells_of(policy, "errors_of")
    pairs, rows, side = some_pairs(policy), torch.arange(4), torch.tensor([0, 1, 1, 0])
    turned = nb.Pairs(pairs.latents.flip(0), pairs.words[::-1])
    time, noise = torch.full((4,), 400), torch.randn(pairs.latents[0].shape, generator=generator(2))
    cells = ((0, 0), (1, 0))
    with torch.no_grad():
        found = errors_of(policy, cells, pairs, rows, time, noise, side)
        as_is = errors_of(policy, cells, pairs, rows, time, noise)
        around = errors_of(policy, cells, turned, rows, time, noise)
    torch.testing.assert_close(found, torch.where(side == 1, around, as_is))
    assert not torch.allclose(around, as_is)


def test_changes_are_taken_against_the_frozen_model(fresh):
    errors_of, changes_of = cells_of(fresh, "errors_of", "changes_of")
    pairs, rows, cells = some_pairs(fresh), torch.arange(4), nb.OWN + nb.CROSSED
    hero = arm(nb.cross_validation, cells)
    with torch.no_grad():
        assert changes_of(fresh, hero, pairs, rows, generator(1)).abs().max() == 0
        nb.shake(fresh, 0.05, 3)
        change = changes_of(fresh, hero, pairs, rows, generator(1))
        plain = changes_of(
            fresh, arm(nb.imitation, cells, reference=False), pairs, rows, generator(1)
        )
        with fresh.reference():
            before = changes_of(
                fresh, arm(nb.imitation, cells, reference=False), pairs, rows, generator(1)
            )
    assert change.abs().max() > 1e-4
    torch.testing.assert_close(change, plain - before)


@pytest.mark.parametrize("either", [False, True])
def test_learning_follows_the_labels(fresh, either):
    """The interaction rises with right labels; with exchanged pictures it falls."""
    p = SimpleNamespace(batch=4, micro=2, beta=100.0)
    errors_of, changes_of, learn = cells_of(fresh, "errors_of", "changes_of", "learn", p=p)
    pairs, cells, rows = some_pairs(fresh), nb.OWN + nb.CROSSED, torch.arange(4)
    loss, used = (nb.single_triple, ((0, 0), (1, 0))) if either else (nb.cross_validation, cells)
    start = [x.detach().clone() for x in fresh.parameters]
    gained = []
    for labels in (pairs, nb.Pairs(pairs.latents.flip(0), pairs.words)):
        with torch.no_grad():
            for weight, first in zip(fresh.parameters, start, strict=True):
                weight.copy_(first)
        optimizer = torch.optim.SGD(fresh.parameters, 1e-2)
        for k in range(3):
            seen = learn(fresh, optimizer, arm(loss, used, either=either), labels, generator(k))
            if k == 0:
                assert seen["loss"].mean().item() == pytest.approx(math.log(2), abs=1e-5)
                assert (seen["accuracy"] == 0.5).all()
        with torch.no_grad():
            table = changes_of(fresh, arm(loss, cells), pairs, rows, generator(9)).mean(2)
        gained.append((table[0, 1] + table[1, 0] - table[0, 0] - table[1, 1]).item())
    assert gained[0] > 1e-4 and gained[1] < -1e-4


@pytest.mark.parametrize("wrong", [0.0, 1.0])
def test_the_annotator_s_winner_is_the_picture_that_is_liked_more(wrong):
    """Latents hold how much their picture is liked; equal pictures get no label."""
    liked, others = torch.tensor([1.0, 0, 1, 0, 1]), torch.tensor([0.0, 1, 1, 0, 0])
    fill = lambda x: x[:, None, None, None].expand(-1, 1, 2, 2)  # noqa: E731
    texts = [["a", "b", "c", "d", "e"], ["v", "w", "x", "y", "z"]]
    made = {"texts": texts, "latents": torch.stack([fill(liked)] * 2), "liked": liked}
    (same_prompt_pairs,) = cells_of(
        None,
        "same_prompt_pairs",
        WRONG=wrong,
        p=SimpleNamespace(pairs=9),
        engine=lambda seed: made,
        as_prompt=str,
        start_noise=lambda n, g: None,
        render=lambda policy, asked, noise: (fill(others), asked),
        untrained=None,
        liking=lambda pictures, asked: others,
        pairs_from=lambda latents, asked: (latents[:, :, 0, 0, 0], asked),
    )
    (winner, loser), asked = same_prompt_pairs(1)
    assert asked == [["a", "b", "e"]] * 2
    assert (winner - loser).tolist() == ([1.0, 1, 1] if wrong == 0 else [-1.0, -1, -1])


@pytest.mark.parametrize("count", [8, 9])
def test_the_sham_exchanges_the_pictures_of_exactly_half(count):
    pairs = nb.Pairs(torch.randn(2, count, 1, 2, 2, generator=generator()), ["first", "second"])
    (swapped_pairs,) = cells_of(None, "swapped_pairs", engine_pairs=lambda seed: pairs)
    sham = swapped_pairs(3)
    moved = (sham.latents != pairs.latents).flatten(2).any(2)
    assert moved[0].sum() == count // 2 and torch.equal(moved[0], moved[1])
    assert torch.equal(sham.latents[:, moved[0]], pairs.latents[:, moved[0]].flip(0))
    assert sham.words == pairs.words


def test_token_world_learns_from_right_labels_alone():
    """Every arm gains from right labels; the annotator who is always wrong teaches the reverse."""
    p = SimpleNamespace(toys=3, toy_updates=20, seed=0)
    every = torch.cartesian_prod(*[torch.arange(6)] * 3)
    names = ("toy_painter", "toy_accuracy", "toy_draw", "toy_texts", "toy_engine")
    names += ("toy_same_prompt", "toy_learn")
    painter, accuracy, _, _, engine, same_prompt, learn = cells_of(None, *names, p=p, ALL=every)
    start = painter(4.7, generator(1))
    weight, texts, images = engine(start, 600, generator(2), count=40)
    assert weight.min() == 1 and torch.equal(texts, images)
    assert ((texts[0] != texts[1]).sum(-1) == 1).all() and not nb.unseen(texts).any()
    arms = {
        "cross": dict(loss=nb.cross_validation, lr=0.05, beta=0.5),
        "either": dict(loss=nb.single_triple, lr=0.05, beta=0.5, either=True),
        "text": dict(loss=nb.all_four, lr=0.05, beta=0.5),
        "sft": dict(loss=nb.imitation, lr=0.05, beta=0.0),
    }
    for how in arms.values():
        assert (accuracy(learn(start, (weight, texts, images), **how)) > accuracy(start)).all()
    turned = learn(start, (weight, texts, images.flip(0)), **arms["cross"])
    assert (accuracy(turned) < accuracy(start)).all()
    how, gains = dict(loss=nb.single_triple, lr=0.02, beta=0.5), []
    for wrong in (0.0, 1.0):
        pairs = same_prompt(start, 600, generator(3), 200, wrong)
        gains.append((accuracy(learn(start, pairs, **how)) - accuracy(start)).mean().item())
    assert gains[0] > 0.02 and gains[1] < -0.02


def test_pairs_of_pictures_are_counted_by_prompt():
    """Against plain loops over ordered pairs."""
    prompts = torch.tensor([0, 0, 1, 1, 1])
    scores = torch.tensor([0.1, 0.3, 0.3, 0.3, 0.0], dtype=torch.float64)
    truth = torch.tensor([1.0, 2, 2, 1, 3], dtype=torch.float64)
    (credit_by_prompt,) = cells_of(None, "credit_by_prompt", rated={"prompt": prompts})
    credit, number = torch.zeros(2, 2), torch.zeros(2, 2)
    for i, j in itertools.product(range(5), repeat=2):
        gap, ahead = (truth[i] - truth[j]).item(), (scores[i] - scores[j]).item()
        if gap:
            number[prompts[i], prompts[j]] += 1
            credit[prompts[i], prompts[j]] += 0.5 if ahead == 0 else float(ahead * gap > 0)
    found = credit_by_prompt(scores, truth)
    torch.testing.assert_close(found[0], credit.double())
    torch.testing.assert_close(found[1], number.double())


def test_token_world_is_exact():
    """Probabilities sum to one, frequencies of draws agree, and accuracy is theirs."""
    weights = torch.randn(1, 3, 3, 6, 6, generator=generator(5))
    asked = torch.tensor([[[1, 4, 2]]])
    every = torch.cartesian_prod(*[torch.arange(6)] * 3)[None]
    total = nb.toy_log_prob(weights, asked.expand(1, 216, 3), every).exp()
    assert total.sum().item() == pytest.approx(1.0, abs=1e-5)
    drawn, _ = nb.toy_draw(weights, asked.expand(1, 20_000, 3), generator(6))
    code = drawn[0] @ torch.tensor([36, 6, 1])
    share = code.bincount(minlength=216) / 20_000
    assert (share - total[0]).abs().max() < 0.012
    again, noise = nb.toy_draw(weights, asked, generator(7))
    assert torch.equal(nb.toy_draw(weights, asked, generator(8), noise)[0], again)
    held = nb.unseen(every)
    assert 0.15 < held.float().mean() < 0.25


def test_people_s_ratings_are_whole():
    rated = nb.load_tifa()
    assert len(rated["prompt"]) == 800 and rated["prompt"].bincount().tolist() == [5] * 160
    assert rated["dsg_mplug"].isnan().sum() == 5
    five = torch.stack([rated[f"rater_{k}"] for k in range(1, 6)], 1)
    assert (~five.isnan()).sum() == 3995 and five.nanmean(1).min() >= 1
    with pytest.raises(ValueError, match="missing|is missing"):
        nb.load_tifa(nb.human.DATA / "human" / "nothing")


def test_a_filter_keeps_half_and_counts_the_border_in_part():
    good = torch.tensor([1.0, 0, 1, 0, 1, 1], dtype=torch.float64)
    assert nb.kept_share(torch.tensor([6.0, 5, 4, 3, 2, 1]), good) == pytest.approx(2 / 3)
    assert nb.kept_share(torch.ones(6), good) == pytest.approx(good.mean().item())
    tied = torch.tensor([9.0, 9, 5, 5, 5, 1])  # one of three on the border is kept
    assert nb.kept_share(tied, good) == pytest.approx((1 + 2 / 3) / 3)
