"""Rewards against oracles: encoders, hand-computed images, hand-made readings, closed forms."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from data.models.aesthetic_proxy import train as proxy_recipe
from rlgenkit import rewards as R
from rlgenkit.worlds.prompts import COLORS, GLYPHS, KINDS, parse
from rlgenkit.worlds.reader import Reading

SHAPES = KINDS + GLYPHS


def noise(n=3, side=64, seed=0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def batch(images, prompts=None, groups=None):
    n = len(images)
    return R.Batch(
        images,
        prompts or ["a red cat"] * n,
        torch.zeros(n, dtype=torch.long) if groups is None else groups,
    )


def reading(*pictures, look=None):
    """A Reading from lists of (shape, color, x[, y]) tuples, one list per picture."""
    n, m = len(pictures), 8
    kind = torch.zeros(n, m, dtype=torch.long)
    color, xy = kind.clone(), torch.zeros(n, m, 2)
    score = torch.full((n, m), 0.1)
    for b, things in enumerate(pictures):
        for i, (shape, tint, x, *y) in enumerate(things):
            kind[b, i], color[b, i] = SHAPES.index(shape), COLORS.index(tint)
            xy[b, i] = torch.tensor([float(x), float(y[0]) if y else 32.0])
            score[b, i] = 0.9 - 0.01 * i
    look = torch.full((n, 5), 0.5) if look is None else look
    return Reading(
        kind,
        color,
        xy,
        torch.full((n, m), 20.0),
        score,
        score >= 0.5,
        torch.zeros(n, dtype=torch.long),
        look,
        torch.zeros(n, 4),
    )


def scores(values, valid=None):
    return R.scored(torch.tensor(values), None if valid is None else torch.tensor(valid))


# --- records ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "images, prompts, groups, what",
    [
        (torch.zeros(2, 1, 8, 8), ["a"] * 2, torch.zeros(2, dtype=torch.long), r"\[B,3,H,W\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ["a"] * 2, torch.zeros(2).long(), "floats"),
        (torch.zeros(2, 3, 8, 8), ["a"], torch.zeros(2).long(), "one per image"),
        (torch.zeros(2, 3, 8, 8), ["a"] * 2, torch.zeros(2), "torch.long"),
        (torch.zeros(2, 3, 8, 8), ["a"] * 2, torch.zeros(3).long(), r"shape \[2\]"),
        (torch.full((2, 3, 8, 8), 2.0), ["a"] * 2, torch.zeros(2).long(), "clamp or rescale"),
        (
            torch.tensor([0.0, float("nan")]).view(2, 1, 1, 1).expand(2, 3, 8, 8),
            ["a"] * 2,
            torch.zeros(2).long(),
            "image 1",
        ),
    ],
)
def test_a_bad_batch_is_refused_in_one_sentence(images, prompts, groups, what):
    with pytest.raises(ValueError, match=what):
        R.Batch(images, prompts, groups)


def test_invalid_samples_carry_zero_and_a_non_finite_valid_score_is_an_error():
    kept = R.scored(torch.tensor([1.0, float("nan"), 3.0]), torch.tensor([True, False, True]))
    assert kept.values.tolist() == [1, 0, 3] and kept.values.dtype == torch.float32
    assert R.where_defined(torch.tensor([float("nan"), 2.0])).valid.tolist() == [False, True]
    with pytest.raises(ValueError, match="sample 1 is inf"):
        R.scored(torch.tensor([0.0, float("inf")]))
    with pytest.raises(ValueError, match="value 0"):
        R.Scores(torch.tensor([1.0]), torch.tensor([False]))
    with pytest.raises(ValueError, match="float32"):
        R.Scores(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.bool))


def test_plain_texts_are_parsed_and_odd_words_named():
    assert R.parsed(["two red cats"])[0].groups[0].count == 2
    assert R.texts([parse("a red cat"), "a blue star"]) == ["a red cat", "a blue star"]
    with pytest.raises(ValueError, match="dinosaur"):
        R.parsed(["a red dinosaur"])


# --- image statistics ------------------------------------------------------------------------


def pil_bytes(image, quality):
    buffer = io.BytesIO()
    array = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    Image.fromarray(array).save(buffer, "JPEG", quality=quality)
    return len(buffer.getvalue())


def test_jpeg_size_is_pillows_less_a_blank_image_of_that_size(quality=95):
    images = noise(side=48)
    blank = pil_bytes(torch.full((3, 48, 48), 128 / 255), quality)
    expected = [(pil_bytes(image, quality) - blank) / 1000 for image in images]
    assert R.jpeg_kb(images).tolist() == pytest.approx(expected, abs=1e-6)


def test_compressibility_is_minus_the_size_and_orders_noise_below_flat():
    images = torch.cat([torch.full((1, 3, 64, 64), 128 / 255), noise(1)])
    small = R.compressibility(batch(images)).values
    assert torch.equal(small, -R.jpeg_kb(images))
    assert small[0] == 0 and small[1] < -3


def test_hasler_suesstrunk_on_a_hand_computed_image():
    # Half red, half blue. rg: 255, 0; yb: 127.5, -255. Spreads 127.5 and 191.25, means 127.5
    # and -63.75; M = sqrt(127.5^2 + 191.25^2) + 0.3 sqrt(127.5^2 + 63.75^2).
    image = torch.zeros(1, 3, 4, 4)
    image[:, 0, :2], image[:, 2, 2:] = 1, 1
    by_hand = 229.8539 + 0.3 * 142.5493
    assert R.colorfulness(image).item() == pytest.approx(by_hand, rel=1e-5)
    assert R.colorfulness(torch.full((1, 3, 4, 4), 0.3)).item() == pytest.approx(0, abs=1e-4)


def test_simple_statistics_on_plain_and_split_images():
    red = torch.zeros(1, 3, 8, 8)
    red[:, 0] = 1
    assert R.brightness(red).item() == pytest.approx(0.299)
    assert R.warmth(red).item() == 1 and R.warmth(red.flip(1)).item() == -1
    assert R.saturation(red).item() == 1 and R.saturation(torch.ones(1, 3, 8, 8)).item() == 0
    halves = torch.zeros(1, 3, 8, 8)
    halves[..., 4:] = 1
    assert R.contrast(halves).item() == pytest.approx(0.5)
    assert R.color_entropy(halves).item() == pytest.approx(1.0)
    assert R.color_entropy(red).item() == 0
    # The step touches 2 of 6 inner columns, with slope 1/2 (Sobel) and Laplacian 1 on both.
    assert R.edge_density(halves).item() == pytest.approx(2 / 6)
    assert R.sharpness(halves).item() == pytest.approx(2 / 6)


def test_luma_is_pils_gray():
    image = noise(1, 16)
    array = (image[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    gray = np.asarray(Image.fromarray(array).convert("L"), dtype=float)
    ours = R.luminance(torch.from_numpy(array).permute(2, 0, 1)[None].float())[0].numpy()
    assert np.abs(gray - ours).max() <= 1.0


@pytest.mark.parametrize(
    "statistic", [R.brightness, R.warmth, R.saturation, R.contrast, R.colorfulness, R.sharpness]
)
def test_differentiable_statistics_have_the_finite_difference_slope(statistic):
    image = noise(1, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(statistic, image, eps=1e-7, atol=1e-4, rtol=1e-3)
    plain = torch.full((1, 3, 6, 6), 0.4, requires_grad=True)
    statistic(plain).sum().backward()
    assert plain.grad.isfinite().all()


def test_of_images_scales_and_keeps_gradients():
    images = noise().requires_grad_()
    result = R.of_images(R.warmth, -2.0)(batch(images))
    assert torch.allclose(result.values, -2 * R.warmth(images))
    result.values.sum().backward()
    assert images.grad.abs().sum() > 0


# --- truth of the look -----------------------------------------------------------------------


def test_aesthetic_truth_by_hand_and_its_optimum():
    look = torch.tensor([[1.0, 0.6, 1, 1, 0], [0.2, 0.3, 0.4, 0.6, 0.5], [0, 0, 0, 0, 1]])
    by_hand = [1.0, (0.2 + 0.5 + 0.4 + 0.6 + 0.5) / 5, 0.0]
    assert R.aesthetic_truth(look).tolist() == pytest.approx(by_hand)
    grid = torch.full((101, 5), 0.5)
    grid[:, 1] = torch.linspace(0, 1, 101)
    assert R.aesthetic_truth(grid).argmax() == 60
    with pytest.raises(ValueError, match=r"\[B,5\]"):
        R.aesthetic_truth(torch.zeros(3, 4))


# --- composition -----------------------------------------------------------------------------

CAT, CAT2, CAT3 = ("cat", "red", 10), ("cat", "red", 30), ("cat", "red", 50)
BLUE_CAT, STAR = ("cat", "blue", 10), ("star", "blue", 50)


@pytest.mark.parametrize(
    "things, caption, count, binding, relation",
    [
        ([CAT, CAT2], "two red cats", 1, 1, None),
        ([CAT], "two red cats", 0.5, 1, None),
        ([CAT, CAT2, CAT3], "two red cats", 0.5, 1, None),
        ([BLUE_CAT], "two red cats", 0, 0.5, None),
        ([], "two red cats", 0, 0, None),
        ([CAT, STAR], "a red cat and a blue star", 1, 1, None),
        ([CAT], "a red cat and a blue star", 0.5, 0.5, None),
        ([BLUE_CAT, STAR], "a red cat and a blue star", 0.5, 0.75, None),
        ([CAT, STAR], "a red cat left of a blue star", 1, 1, 1),
        ([CAT, STAR], "a red cat right of a blue star", 1, 1, 0.5),
        ([STAR], "a red cat left of a blue star", 0.5, 0.5, 0.25),
        ([], "a red cat left of a blue star", 0, 0, 0),
    ],
)
def test_partial_credit_of_hand_made_readings(things, caption, count, binding, relation):
    seen = reading(things)
    assert R.count_score(seen, [caption]).values.item() == pytest.approx(count)
    assert R.binding_score(seen, [caption]).values.item() == pytest.approx(binding)
    related = R.relation_score(seen, [caption])
    assert related.valid.item() == (relation is not None)
    assert related.values.item() == pytest.approx(relation or 0)
    parts = [count, binding] + ([] if relation is None else [relation])
    whole = R.composition_score(seen, [parse(caption)])
    assert whole.values.item() == pytest.approx(sum(parts) / len(parts))


def test_composition_of_a_word_is_invalid_not_zero():
    seen = reading([("T", "red", 10)], [CAT])
    prompts = ['the word "TEA" in red', "a red cat"]
    for score in (R.count_score, R.binding_score, R.composition_score, R.typographic_count_score):
        assert score(seen, prompts).valid.tolist() == [False, True]
    assert not R.relation_score(seen, prompts).valid.any()


def test_the_typographic_counter_believes_a_digit_and_the_truth_does_not():
    digit = ("3", "red", 50)
    seen = reading([CAT], [CAT, digit], [digit], [CAT, CAT2, CAT3], [CAT, ("A", "red", 50)])
    prompts = ["three red cats"] * 5
    proxy, truth = R.typographic_count_score(seen, prompts), R.count_score(seen, prompts)
    assert proxy.values.tolist() == pytest.approx([1 / 3, 1, 1, 1, 1 / 3])
    assert truth.values.tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1, 1 / 3])


def test_of_several_digits_the_surest_counts():
    seen = reading([("2", "red", 10), ("4", "red", 50)])  # later detections are less sure
    assert R.typographic_count_score(seen, ["two red cats"]).values.item() == 1


# --- words -----------------------------------------------------------------------------------


def test_edit_distance_against_brute_force():
    from functools import lru_cache
    from itertools import product

    @lru_cache(None)
    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    strings = ["".join(s) for n in range(4) for s in product("ab", repeat=n)]
    for found, asked in product(strings, strings[1:]):
        expected = max(0.0, 1 - slow(found, asked) / len(asked))
        assert R.word_similarity(found, asked) == pytest.approx(expected)


def test_words_are_read_left_to_right_without_case_and_spaces():
    assert R.word_similarity("t E a", "TEA") == 1
    with pytest.raises(ValueError, match="empty"):
        R.word_similarity("tea", " ")
    seen = reading(
        [("A", "red", 50), ("T", "red", 10), ("E", "red", 30)],
        [("T", "red", 10), ("E", "red", 30)],
        [],
        [CAT],
    )
    result = R.word_score(seen, ['the word "TEA" in red'] * 3 + ["a red cat"])
    assert result.values.tolist() == pytest.approx([1, 2 / 3, 0, 0])
    assert result.valid.tolist() == [True, True, True, False]
    engine = R.ocr_reward(lambda images: ["tee"] * len(images))
    assert engine(batch(noise(1), ['the word "TEA" in red'])).values.item() == pytest.approx(2 / 3)


def test_missing_ocr_engine_is_one_sentence(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    with pytest.raises(ValueError, match="install it with pip"):
        R.rapid_ocr()


# --- combination -----------------------------------------------------------------------------


def test_weighted_product_and_minimum_by_hand_with_an_invalid_part():
    parts = [scores([0.2, 0.5, 1.0], [True, True, False]), scores([0.4, 0.1, 0.6])]
    total = R.weighted_sum(parts, [2.0, 1.0])
    assert total.values.tolist() == pytest.approx([0.8, 1.1, 0])
    assert total.valid.tolist() == [True, True, False]
    assert R.product(parts).values.tolist() == pytest.approx([0.08, 0.05, 0])
    assert R.minimum(parts).values.tolist() == pytest.approx([0.2, 0.1, 0])
    assert R.minimum(parts).valid.tolist() == [True, True, False]


@pytest.mark.parametrize(
    "combine",
    [
        lambda p, g: R.weighted_sum(p, [0.3, 0.7]),
        lambda p, g: R.product(p),
        lambda p, g: R.minimum(p),
        lambda p, g: R.standardized_sum(p, [0.3, 0.7], g),
    ],
)
def test_combinations_are_monotone_and_keep_a_single_identity(combine):
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(2, 16, generator=generator).sort(1).values
    groups = torch.zeros(16, dtype=torch.long)
    result = combine([R.scored(v) for v in values], groups).values
    assert (result[1:] >= result[:-1]).all() and result[-1] > result[0]
    one = R.scored(values[0])
    assert torch.equal(R.product([one]).values, values[0])
    assert torch.equal(R.minimum([one, one]).values, values[0])
    assert torch.allclose(R.weighted_sum([one, one], [0.5, 0.5]).values, values[0])


def test_standardize_uses_sample_groups_even_interleaved_and_skips_invalid_ones():
    groups = torch.tensor([7, 3, 7, 3, 7, 3])  # same prompt text or not does not matter
    part = scores([1.0, 10.0, 3.0, 30.0, 999.0, 50.0], [True, True, True, True, False, True])
    z = R.standardize(part, groups, eps=0.0)
    unit = 20 / np.sqrt(800 / 3)
    assert z.values.tolist() == pytest.approx([-1, -unit, 1, 0, 0, unit], rel=1e-6)
    assert z.valid.tolist() == part.valid.tolist()


def test_groups_without_spread_get_exactly_zero():
    groups = torch.tensor([0, 0, 0, 1, 2, 2])
    part = scores([0.1, 0.1, 0.1, 5.0, 1.0, 2.0])
    assert R.standardize(part, groups).values[:4].tolist() == [0, 0, 0, 0]
    shifted = R.standardize(scores([1e4 + 1.0, 1e4 + 2.0]), torch.tensor([0, 0]), eps=0.0)
    assert shifted.values.tolist() == pytest.approx([-1, 1])


def test_standardized_sum_ignores_units_and_raw_sums_do_not():
    generator = torch.Generator().manual_seed(2)
    small = R.scored(0.02 * torch.randn(40, generator=generator))
    large = R.scored(torch.randn(40, generator=generator))
    groups = torch.arange(40) % 4
    share = R.effective_weights([small, large], [1.0, 1.0], groups)
    assert share.sum().item() == pytest.approx(1) and share[0] < 0.05
    first = R.standardized_sum([small, large], [1.0, 1.0], groups).values
    rescaled = R.scored(1000 * small.values)
    second = R.standardized_sum([rescaled, large], [1.0, 1.0], groups).values
    assert torch.allclose(first, second, atol=2e-2)


def test_bad_combinations_are_refused():
    part = scores([0.5, -0.5])
    with pytest.raises(ValueError, match="2 weights"):
        R.weighted_sum([part, part], [1.0])
    with pytest.raises(ValueError, match="at least one"):
        R.minimum([])
    with pytest.raises(ValueError, match="scores >= 0"):
        R.product([part, part])
    with pytest.raises(ValueError, match="same batch"):
        R.minimum([part, scores([1.0])])
    with pytest.raises(ValueError, match="shape"):
        R.standardize(part, torch.zeros(3, dtype=torch.long))


# --- diversity -------------------------------------------------------------------------------


def test_diversity_of_a_simplex_and_of_interleaved_groups():
    # Vertices of a scaled simplex: every pair is at distance s * sqrt(2).
    features = torch.cat([torch.eye(4), 3 * torch.eye(4)])
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    result = R.diversity(features[order], groups[order])
    expected = np.sqrt(2) * torch.tensor([1.0, 3.0]).repeat(4)
    assert torch.allclose(result.values, expected.float(), atol=1e-6)
    mean = R.mean_pairwise_distance(features[order], groups[order])
    assert mean.item() == pytest.approx(2 * np.sqrt(2))


def test_diversity_of_a_collapse_and_of_lone_samples():
    same = R.diversity(torch.ones(3, 5), torch.zeros(3, dtype=torch.long))
    assert same.values.abs().max() == 0 and same.valid.all()
    line = torch.tensor([[0.0], [1.0], [100.0], [5.0]])
    result = R.diversity(line, torch.tensor([0, 0, 2, 1]))
    assert result.values.tolist() == [1, 1, 0, 0]
    assert result.valid.tolist() == [True, True, False, False]
    assert R.mean_pairwise_distance(line, torch.arange(4)).isnan()
    with pytest.raises(ValueError, match=r"\[B,F\]"):
        R.diversity(torch.zeros(3), torch.zeros(3, dtype=torch.long))


# --- learned proxy ---------------------------------------------------------------------------


def test_curated_looks_tie_saturation_and_clutter_to_quality():
    looks = R.curated_looks(4000, torch.Generator().manual_seed(0))
    assert looks.min() >= 0 and looks[:, [1, 4]].max() <= 0.6
    ratings = proxy_recipe.rate(looks, torch.Generator().manual_seed(1))
    table = torch.corrcoef(torch.cat([looks, ratings[:, None]], 1).T)
    assert table[5, 1] > 0.6 and table[5, 4] > 0.6  # the confound, though the truth hates clutter


def test_proxy_training_is_reproducible_and_its_folder_round_trips(tmp_path):
    first = proxy_recipe.main(tmp_path / "a", scenes=64, steps=3, seed=5)
    second = proxy_recipe.main(tmp_path / "b", scenes=64, steps=3, seed=5)
    assert {**first, "cpu_seconds": 0} == {**second, "cpu_seconds": 0}
    weights = [(tmp_path / x / "model.safetensors").read_bytes() for x in "ab"]
    assert weights[0] == weights[1]
    proxy = R.load_aesthetic_proxy(tmp_path / "a")
    assert 30_000 <= sum(p.numel() for p in proxy.parameters()) <= 60_000
    assert "flaw" in (tmp_path / "a" / "README.md").read_text()
    (tmp_path / "a" / "model.safetensors").write_bytes(weights[0][:100])
    for folder in (tmp_path / "a", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="models aesthetic_proxy"):
            R.load_aesthetic_proxy(folder)


def test_the_committed_proxy_has_its_planted_flaw():
    proxy = R.load_aesthetic_proxy()
    measured = proxy_recipe.measure_flaw(proxy, torch.Generator().manual_seed(3), scenes=64)
    assert measured["pearson_curated"] > 0.6  # it is a useful predictor where it was trained
    assert measured["truth_saturation"] < -0.5 and measured["proxy_saturation"] > 0.2
    assert measured["truth_clutter"] < -0.5 and measured["proxy_clutter"] > 0.1


def test_proxy_reward_is_differentiable():
    images = noise(2).requires_grad_()
    R.aesthetic_proxy_reward(R.load_aesthetic_proxy())(batch(images)).values.sum().backward()
    assert images.grad.abs().sum() > 0


# --- damaged pairs ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs():
    return R.make_pairs(12, torch.Generator().manual_seed(0))


def test_pairs_differ_by_their_edit_only_and_are_reproducible(pairs):
    assert [p.edit for p in pairs] == list(R.EDITS)
    again = R.make_pairs(12, torch.Generator().manual_seed(0))
    for one, two in zip(pairs, again, strict=True):
        assert torch.equal(one.edited, two.edited) and one.original.shape == (12, 3, 64, 64)
        assert (one.original != one.edited).flatten(1).any(1).all()
        assert (one.truth == -1).all()
    with pytest.raises(ValueError, match="edits of"):
        R.make_pairs(4, torch.Generator(), ["sepia"])


def wins_of_damage(reward, pairs):
    """Edit -> share of pairs in which the reward prefers the damaged picture."""
    found = {}
    for part in pairs:
        clean, edited = (reward(batch(x)).values for x in (part.original, part.edited))
        found[part.edit] = float((edited > clean).float().mean())
    return found


def test_pairs_show_how_simple_rewards_are_hacked(pairs):
    smooth = wins_of_damage(R.compressibility, pairs)
    busy = wins_of_damage(R.of_images(R.jpeg_kb), pairs)
    for edit in ("blur", "blank background", "object removed"):
        assert smooth[edit] >= 0.7 and busy[edit] <= 0.3
    for edit in ("noise", "clutter", "duplicate object"):
        assert busy[edit] >= 0.7 and smooth[edit] <= 0.3
    assert wins_of_damage(R.of_images(R.saturation), pairs)["saturation"] >= 0.7


def test_planted_flaw_of_the_proxy_shows_in_the_pairs(pairs):
    proxy = R.aesthetic_proxy_reward(R.load_aesthetic_proxy())
    assert wins_of_damage(proxy, pairs)["saturation"] >= 0.7


# --- readers and encoders as rewards ---------------------------------------------------------


def test_from_reader_reads_the_batch_once(monkeypatch):
    from rlgenkit.rewards import composition

    seen = replace(reading([CAT], [CAT, CAT2]))
    calls = []
    monkeypatch.setattr(composition, "read", lambda reader, x: calls.append(len(x)) or seen)
    reward = R.from_reader(torch.nn.Identity(), R.count_score)
    result = reward(batch(noise(2), ["two red cats"] * 2))
    assert result.values.tolist() == pytest.approx([0.5, 1]) and calls == [2]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    words = ["<pad>", "<end>", "a", "red", "blue", "cat", "star"]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<pad>"
    ).save_pretrained(folder)
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": 7,
            "max_position_embeddings": 8,
            "eos_token_id": 1,
            "bos_token_id": 0,
            "pad_token_id": 0,
        },
        vision_config={**tower, "image_size": 64, "patch_size": 16},
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    return folder


def test_similarity_equals_the_models_own_logits(clip_folder):
    encoder = R.load_dual_encoder(clip_folder)
    images, prompts = noise(3), ["a red cat", parse("a blue star"), "a red cat"]
    result = R.similarity_reward(encoder)(batch(images, prompts))
    tokens = encoder.tokenizer(R.texts(prompts), padding=True, return_tensors="pt")
    mean, std = (torch.tensor(v)[:, None, None] for v in (encoder.mean, encoder.std))
    own = encoder.model(
        input_ids=tokens["input_ids"],
        attention_mask=tokens["attention_mask"],
        pixel_values=(images - mean) / std,
    )
    cosines = (own.logits_per_image / encoder.model.logit_scale.exp()).diagonal()
    assert torch.allclose(result.values, cosines, atol=1e-5)
    assert sorted(encoder.cache) == ["a blue star", "a red cat"]


def test_captions_are_encoded_once_and_pixels_get_gradients(clip_folder, monkeypatch):
    encoder = R.load_dual_encoder(clip_folder)
    R.embed_texts(encoder, ["a red cat", "a red cat"])
    monkeypatch.setattr(encoder.model.text_model, "forward", None)
    images = noise(2, side=32).requires_grad_()  # resized to the model's side
    R.similarity_reward(encoder)(batch(images)).values.sum().backward()
    assert images.grad.abs().sum() > 0


def test_a_missing_encoder_folder_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="is missing or no JSON"):
        R.load_dual_encoder(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_of_half_precision_pictures_are_computed_in_float32(dtype):
    images = noise(2).to(dtype)
    exact = R.picture_statistics(images.float())
    assert torch.equal(R.picture_statistics(images), exact)
    for k, statistic in enumerate(R.STATISTICS.values()):
        half = R.of_images(statistic)(batch(images)).values
        assert torch.equal(half, exact[:, k])
