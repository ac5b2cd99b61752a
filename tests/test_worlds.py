"""Sticker scenes, their grammar, the truth meter and the simulated annotators against known answers."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from rlgenkit.worlds import looks
from rlgenkit.worlds.scenes import BALANCE_RANGE, GRID, hue_errors
from rlgenkit.worlds import (
    COLORS,
    KINDS,
    SHAPES,
    WORDS,
    Group,
    Reading,
    Scene,
    Sticker,
    balance_of,
    caption,
    check,
    cyclic_probability,
    edit_distance,
    parse,
    prefer,
    preference_probability,
    rate,
    render,
    sample_prompts,
    sample_scenes,
    split_of,
    with_look,
    words,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(*stickers: Sticker, look=(1.0, 0.7, 1.0, 1.0, 0.0), background: str = "white") -> Scene:
    return Scene(stickers, background, look)


def test_every_caption_parses_back_to_its_record():
    for prompt in sample_prompts(400, generator=generator()):
        assert parse(prompt.text) == prompt


def test_captions_outside_the_grammar_name_the_word():
    with pytest.raises(ValueError, match="'dog' is not in the vocabulary"):
        parse("a red dog")
    with pytest.raises(ValueError, match="order of words"):
        parse("red a cat")


def test_splits_do_not_share_captions_or_pairs():
    drawn = {
        s: sample_prompts(300, split=s, generator=generator(1))
        for s in ("train", "test", "heldout")
    }
    for name, prompts in drawn.items():
        assert {split_of(p) for p in prompts} == {name}
    seen = {(g.kind, g.color) for p in drawn["train"] for g in p.groups}
    assert all(any((g.kind, g.color) not in seen for g in p.groups) for p in drawn["heldout"])
    assert not {p.text for p in drawn["train"]} & {p.text for p in drawn["test"]}


def test_held_out_words_are_refused():
    with pytest.raises(ValueError, match="split='test'"):
        sample_prompts(1, split="heldout", category="word", generator=generator())


def test_scenes_fulfill_their_prompts_exactly():
    prompts = sample_prompts(200, generator=generator(2))
    for prompt, scene in zip(prompts, sample_scenes(prompts, generator(3))):
        if prompt.word is not None:
            assert "".join(s.kind for s in sorted(scene.stickers, key=lambda s: s.x)) == prompt.word
            continue
        for group in prompt.groups:
            assert (
                sum((s.kind, s.color) == (group.kind, group.color) for s in scene.stickers)
                == group.count
            )
        if prompt.relation:
            a, b = scene.stickers[:2]
            gap = {
                "left of": b.x - a.x,
                "right of": a.x - b.x,
                "above": b.y - a.y,
                "below": a.y - b.y,
            }
            assert gap[prompt.relation] >= 13.9
        for a, b in itertools.combinations(scene.stickers, 2):
            assert math.dist((a.x, a.y), (b.x, b.y)) >= 0.99 * (a.size + b.size) / 2
        assert all(
            s.size / 2 <= min(s.x, s.y) and max(s.x, s.y) <= 64 - s.size / 2 for s in scene.stickers
        )


def test_same_generator_same_pixels():
    prompts = sample_prompts(8, generator=generator(4))
    first, second = (render(sample_scenes(prompts, generator(5))) for _ in range(2))
    assert torch.equal(first, second)


def test_rendered_ball_has_the_right_area_place_and_color():
    image = render([plain(Sticker("ball", "blue", 20.0, 40.0, 24.0))])[0]
    empty = render([plain()])[0]
    changed = (image - empty).abs().sum(0)
    weight = changed / changed.max()
    area = weight.sum().item()
    assert area == pytest.approx(math.pi * (24 * 62 / 64 / 2) ** 2, rel=0.05)
    rows, columns = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    assert (weight * columns).sum().item() / area == pytest.approx(20, abs=0.2)
    assert (weight * rows).sum().item() / area == pytest.approx(40, abs=0.2)
    assert image[:, 40, 20].argmax() == 2


@pytest.mark.parametrize(
    "name,measure",
    [
        ("contrast", lambda x, e: (x - e).abs().sum()),
        ("saturation", lambda x, e: (x.amax(0) - x.amin(0)).mean()),
        (
            "clutter",
            lambda x, e: (
                (x - x.median(2, keepdim=True).values).abs()[:, :20].gt(0.05).float().mean()
            ),
        ),
    ],
)
def test_each_look_moves_its_own_measure(name, measure):
    scene = plain(Sticker("star", "red", 32.0, 40.0, 26.0), background="mint")
    values = []
    for level in (0.0, 0.5, 1.0):
        low = with_look(scene, name, level)
        values.append(
            float(measure(render([low])[0], render([Scene((), low.background, low.look)])[0]))
        )
    assert values[0] < values[1] < values[2]


def test_harmony_is_the_distance_from_the_palette_color():
    scene = plain(Sticker("ball", "red", 32.0, 32.0, 30.0), look=(1, 0.7333, 1, 1, 0))
    pure = render([scene])[0][:, 32, 32]
    distance = [
        (render([with_look(scene, "harmony", h)])[0][:, 32, 32] - pure).norm().item()
        for h in (1.0, 0.5, 0.0)
    ]
    assert distance[0] == 0 < distance[1] < distance[2]


def test_balance_by_hand():
    assert balance_of((Sticker("cat", "red", 32, 32, 20),)) == 1
    assert balance_of((Sticker("cat", "red", 42, 32, 20),)) == pytest.approx(0.5)
    weights = (Sticker("cat", "red", 22, 32, 10), Sticker("cat", "red", 42, 32, 20))
    assert balance_of(weights) == pytest.approx(1 - (-10 * 100 + 10 * 400) / 500 / 20)
    assert balance_of(()) == 0


def test_balance_is_met_when_the_canvas_allows_it():
    prompts = [parse("a red cat")] * 50
    for target in (0.3, 1.0):
        looks = torch.full((50, 5), target)
        balances = torch.tensor([s.look[3] for s in sample_scenes(prompts, generator(6), looks)])
        assert (balances - target).abs().median() <= GRID / 2 / BALANCE_RANGE  # half a grid step


def reading(stickers: list[tuple[str, str, float, float]], background: int = 0) -> Reading:
    """A hand-made reading of one picture."""
    kind = torch.tensor([[SHAPES.index(k) for k, *_ in stickers]]).reshape(1, -1)
    color = torch.tensor([[COLORS.index(c) for _, c, *_ in stickers]]).reshape(1, -1)
    xy = torch.tensor([[(x, y) for *_, x, y in stickers]]).reshape(1, -1, 2)
    shape = kind.shape
    return Reading(
        kind.long(),
        color.long(),
        xy.float(),
        torch.full(shape, 20.0),
        torch.ones(shape),
        torch.ones(shape, dtype=torch.bool),
        torch.tensor([background]),
        torch.zeros(1, 5),
        torch.zeros(1, 4),
    )


CAT, STAR = ("cat", "red", 20.0, 20.0), ("star", "blue", 44.0, 22.0)


@pytest.mark.parametrize(
    "text,seen,expected",
    [
        ("a red cat", [CAT], {"kind_color": 1, "count": 1, "correct": 1, "partial": 1}),
        ("a red cat", [CAT, STAR], {"kind_color": 1, "count": 1, "correct": 0}),
        ("a red cat", [STAR], {"kind_color": 0, "count": 0, "correct": 0, "partial": 0}),
        ("three red cats", [CAT, CAT], {"kind_color": 1, "count": 2 / 3, "correct": 0}),
        ("two red cats", [CAT] * 5, {"count": 0}),
        ("a red cat left of a blue star", [CAT, STAR], {"relation": 1, "correct": 1, "partial": 1}),
        (
            "a red cat right of a blue star",
            [CAT, STAR],
            {"relation": 0, "correct": 0, "partial": 2 / 3},
        ),
        ("a red cat above a blue star", [CAT, STAR], {"relation": 0}),  # only 2 px apart
        (
            "a red cat and a blue star",
            [("cat", "blue", 1, 1), ("star", "red", 9, 9)],
            {"kind_color": 0},
        ),
        ("a red cat on a sky background", [CAT], {"background": 0, "correct": 0, "partial": 2 / 3}),
        (
            'the word "TEA" in red',
            [("A", "red", 50, 9), ("T", "red", 10, 9), ("E", "red", 30, 9)],
            {"word": 1, "correct": 1},
        ),
        (
            'the word "TEA" in red',
            [("T", "red", 10, 9), ("E", "red", 30, 9)],
            {"word": 2 / 3, "correct": 0},
        ),
    ],
)
def test_check_against_hand_made_readings(text, seen, expected):
    result = check(reading(seen), [parse(text)])
    for name, value in expected.items():
        assert result[name].item() == pytest.approx(value), name


def test_check_marks_what_was_not_asked_as_nan():
    result = check(reading([CAT]), [parse("a red cat")])
    assert all(torch.isnan(result[n]).all() for n in ("relation", "background", "word"))


def brute_edit_distance(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(
        brute_edit_distance(a[1:], b) + 1,
        brute_edit_distance(a, b[1:]) + 1,
        brute_edit_distance(a[1:], b[1:]) + (a[0] != b[0]),
    )


def test_edit_distance_against_brute_force():
    for a, b in itertools.product(WORDS[:8] + ("", "YESSIT"), repeat=2):
        assert edit_distance(a, b) == brute_edit_distance(a, b)


def test_glyphs_are_read_from_left_to_right():
    assert words(reading([("A", "red", 50, 9), ("cat", "red", 5, 5), ("T", "red", 10, 9)])) == [
        "TA"
    ]


def test_annotators_in_closed_form():
    gap = torch.tensor([0.0, 1.0, -2.0])
    expected = torch.sigmoid(gap / 0.5) * 0.8 + 0.1
    assert torch.allclose(preference_probability(gap, torch.zeros(3), 0.5, 0.1), expected)
    assert preference_probability(gap, torch.zeros(3), 0.0).tolist() == [0.5, 1.0, 0.0]
    votes = prefer(torch.full((20000,), 0.3), torch.zeros(20000), generator(7), temperature=0.5)
    assert votes.float().mean().item() == pytest.approx(1 / (1 + math.exp(-0.6)), abs=0.01)


def test_side_bias_shifts_the_indifference_point():
    votes = prefer(torch.zeros(20000), torch.zeros(20000), generator(8), side_bias=1.0)
    assert votes.float().mean().item() == pytest.approx(1 / (1 + math.exp(-1)), abs=0.01)


def test_ratings_use_the_scale_and_follow_utility():
    utility = torch.linspace(0, 1, 1000)
    assert rate(utility, generator(9), noise=0.0).bincount().tolist()[1:] == [200] * 5
    lenient = rate(utility, generator(9), noise=0.0, leniency=0.2).float().mean()
    assert lenient > 3.5


def test_cyclic_annotators_have_no_utility():
    pairs = torch.tensor([(0, 1), (1, 2), (2, 0)])
    assert (cyclic_probability(pairs[:, 0], pairs[:, 1]) > 0.5).all()
    both = cyclic_probability(pairs[:, 0], pairs[:, 1]) + cyclic_probability(
        pairs[:, 1], pairs[:, 0]
    )
    assert torch.allclose(both, torch.ones(3))


def test_relation_captions_keep_their_order():
    prompt = caption((Group("cat", "red"), Group("star", "blue", 2)), relation="above")
    assert prompt.text == "a red cat above two blue stars" and parse(prompt.text) == prompt
    assert KINDS[0] == "cat"


def detections(scenes: list[Scene]) -> tuple[torch.Tensor, ...]:
    """Padded color, xy, size and valid tensors of the true stickers."""
    color, xy = torch.zeros(len(scenes), 4, dtype=torch.long), torch.zeros(len(scenes), 4, 2)
    size, valid = torch.ones(len(scenes), 4), torch.zeros(len(scenes), 4, dtype=torch.bool)
    for row, scene in enumerate(scenes):
        for m, s in enumerate(scene.stickers):
            color[row, m], size[row, m], valid[row, m] = COLORS.index(s.color), s.size, True
            xy[row, m] = torch.tensor((s.x, s.y))
    return color, xy, size, valid


def test_measured_looks_follow_the_controls():
    prompts = [
        p for p in sample_prompts(300, generator=generator(10)) if p.groups[0].color != "black"
    ]
    scenes = sample_scenes(prompts, generator(11))
    true, images = torch.tensor([s.look for s in scenes]), render(scenes)
    color, xy, size, valid = detections(scenes)
    free = ~(looks.inside_boxes(xy, size, pad=2.5) & valid[..., None, None]).any(1)
    harmony = looks.harmony(images, free, color, xy, size, valid, true[:, 0])
    clutter = looks.clutter(images, free)
    assert torch.allclose(looks.balance(xy, size, valid), true[:, 3], atol=1e-5)
    for measured, column, error in ((harmony, 2, 0.1), (clutter, 4, 0.15)):
        assert torch.corrcoef(torch.stack([measured, true[:, column]]))[0, 1] > 0.75
        assert (measured - true[:, column]).abs().mean() < error


def test_clutter_is_the_share_of_pixels_off_their_median():
    images = render(sample_scenes(sample_prompts(6, generator=generator(14)), generator(15)))
    free = torch.rand(6, 64, 64, generator=generator(16)) < 0.7
    gray = images.mean(1).numpy()
    bump = np.abs(gray - ndimage.median_filter(gray, size=(1, 5, 5), mode="mirror")) > looks.SPECKLE
    share = torch.tensor([b[f].mean() for b, f in zip(bump, free.numpy())])
    a, b, c = looks.CLUTTER_FIT
    share = share.clamp_max(-b / (2 * c))
    expected = (a + b * share + c * share**2).clamp(0, 1)
    assert torch.allclose(looks.clutter(images, free), expected.float(), atol=1e-6)


def test_hue_errors_average_to_the_control():
    scenes = sample_scenes(sample_prompts(50, generator=generator(12)), generator(13))
    stickers = torch.tensor([len(s.stickers) for s in scenes])
    harmony = 1 - hue_errors(scenes).sum(1) / stickers
    assert torch.allclose(harmony, torch.tensor([s.look[2] for s in scenes]), atol=1e-5)
