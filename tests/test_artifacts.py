"""Artifacts: known damage, a meter that is exact on hand-made readings, a guard that learns."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rlgenkit import worlds
from rlgenkit.rewards import artifacts
from rlgenkit.worlds import Reading, Scene, Sticker, render
from tests.notebook_code import definitions

notebook = definitions("37")
guard = notebook.taught
ALL = artifacts.ARTIFACTS

LOOK = (0.9, 0.6, 1.0, 1.0, 0.0)  # exact palette colors, no speckles
SCENE = Scene((Sticker("heart", "red", 24.0, 40.0, 28.0),), "sky", LOOK)
PAIR = Scene(
    (Sticker("cat", "black", 16.0, 16.0, 24.0), Sticker("star", "blue", 48.0, 48.0, 24.0)),
    "white",
    LOOK,
)


def seeded(k: int) -> torch.Generator:
    return torch.Generator().manual_seed(k)


def reading_of(scene: Scene, spare: int = 2) -> Reading:
    """What a perfect reader says about one scene, with `spare` detections that are not valid."""
    n = len(scene.stickers)
    pad = n + spare
    kind, color = torch.zeros(1, pad, dtype=torch.long), torch.zeros(1, pad, dtype=torch.long)
    xy, size = torch.full((1, pad, 2), 32.0), torch.full((1, pad), 30.0)
    for k, s in enumerate(scene.stickers):
        kind[0, k], color[0, k] = worlds.SHAPES.index(s.kind), worlds.COLORS.index(s.color)
        xy[0, k], size[0, k] = torch.tensor([s.x, s.y]), s.size
    valid = torch.arange(pad)[None] < n
    return Reading(
        kind,
        color,
        xy,
        size,
        valid.float(),
        valid,
        torch.zeros(1, dtype=torch.long),
        torch.tensor([scene.look]),
        torch.zeros(1, 4),
    )


@pytest.fixture(scope="module")
def small():
    reader = worlds.load_reader(worlds.REWARD_READER)
    given = {"small": reader, "p": SimpleNamespace(device="cpu", lessons=300)}
    guard.__globals__.update(given)
    return reader


def scenes_of(n: int, generator: torch.Generator) -> list[Scene]:
    return worlds.sample_scenes(notebook.captions(n, generator, "train"), generator)


@pytest.mark.parametrize("name", artifacts.ARTIFACTS)
def test_damage_is_reproducible_local_and_visible(name):
    clean = render([SCENE])
    first, again = (artifacts.damage([SCENE], name, seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    changed = (first - clean).abs().amax(1)[0] > 0.02
    assert 15 <= changed.sum() <= 600, name
    rows, columns = changed.nonzero().unbind(1)
    reach = {"floating": 1.3, "doubled": 1.0, "fused": 1.0}.get(name, 0.6) * 28 + 1
    assert (columns + 0.5 - 24).abs().max() <= reach and (rows + 0.5 - 40).abs().max() <= reach


def test_damage_stays_on_the_canvas():
    corners = [
        replace(SCENE, stickers=(Sticker("ball", "blue", x, y, 28.0),))
        for x in (16.0, 32.0, 48.0)
        for y in (16.0, 32.0, 48.0)
    ]
    for name in artifacts.ARTIFACTS:
        gap = artifacts.damage(corners, name, seeded(0)) - render(corners)
        changed = gap.abs().amax(1) > 0.02
        assert (changed.flatten(1).sum(1) >= 15).all(), name


def test_erased_leaves_the_empty_scene_on_one_side_and_the_sticker_on_the_other():
    clean, empty = render([SCENE]), render([replace(SCENE, stickers=())])
    broken = artifacts.damage([SCENE], "erased", seeded(5))
    sticker = (clean - empty).abs().amax(1)[0] > 0.02
    gone = ((broken - clean).abs().amax(1)[0] > 0.02) & sticker
    assert torch.equal(broken[0][:, gone], empty[0][:, gone])
    assert 0.3 < gone.sum() / sticker.sum() < 0.7
    rows, columns = (m.float() for m in sticker.nonzero().unbind(1))
    side = gone[sticker].float()
    # A line through the center tells the two sides apart: least squares finds it.
    design = torch.stack([columns + 0.5 - 24, rows + 0.5 - 40, torch.ones_like(rows)], 1)
    fit = design @ torch.linalg.lstsq(design, side[:, None]).solution
    assert ((fit[:, 0] > 0.5) == side.bool()).float().mean() > 0.9


def test_only_one_sticker_of_a_scene_is_broken():
    clean = render([PAIR])
    for name in ("erased", "smeared", "deformed", "cut"):
        changed = (artifacts.damage([PAIR], name, seeded(0)) - clean).abs().amax(1)[0] > 0.02
        upper, lower = changed[:32, :32].any(), changed[32:, 32:].any()
        assert bool(upper) != bool(lower), name


def test_doubled_adds_pixels_of_the_same_color_and_fused_of_another_kind():
    empty = render([replace(SCENE, stickers=())])
    for name in ("doubled", "fused"):
        broken = artifacts.damage([SCENE], name, seeded(2))
        drawn = (broken - empty).abs().amax(1)[0] > 0.05
        own = (render([SCENE]) - empty).abs().amax(1)[0] > 0.05
        assert drawn.sum() > 1.1 * own.sum() and bool(drawn[own].float().mean() > 0.98)


def test_the_second_sticker_is_of_the_same_kind_or_of_another():
    for k in range(8):
        twin, stranger = (
            artifacts._second(SCENE, 0, other, seeded(k)).stickers[0] for other in (False, True)
        )
        assert twin.kind == "heart" and stranger.kind in set(worlds.KINDS) - {"heart"}
        assert twin.color == stranger.color == "red" and twin.size == 28.0
        for near in (twin, stranger):
            reach = ((near.x - 24) ** 2 + (near.y - 40) ** 2) ** 0.5 / 28
            assert 0.3 <= reach <= 0.45


def test_bad_damage_is_refused_in_one_sentence():
    for call in (
        lambda: artifacts.damage([SCENE], "burnt", seeded(0)),
        lambda: artifacts.damage([replace(SCENE, stickers=())], "cut", seeded(0)),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_scene_read_rightly_is_explained_completely():
    for scene in (SCENE, PAIR):
        picture, coverage = artifacts.explained(render([scene]), reading_of(scene))
        assert (picture - render([scene])).abs().max() < 0.03
        assert coverage.max() <= 1.0 + 1e-5
        assert artifacts.unexplained(render([scene]), reading_of(scene)) == 0


def test_explained_is_the_least_squares_solution():
    image = render([PAIR]) * 0.8 + 0.1 * torch.rand(1, 3, 64, 64, generator=seeded(1))
    picture, coverage = artifacts.explained(image, reading_of(PAIR))
    masks = artifacts._sticker_masks(reading_of(PAIR))[0, :2]
    free = 1 - masks.sum(0)
    ramp = torch.linspace(-1, 1, 64)[:, None]
    design = torch.stack([*masks, free, free * ramp]).flatten(1).T.double()
    target = image[0].flatten(1).T.double()
    brute = (design @ torch.linalg.lstsq(design, target).solution).T.view(3, 64, 64)
    torch.testing.assert_close(picture[0].double(), brute.clamp(0, 1), atol=1e-3, rtol=0)
    torch.testing.assert_close(coverage[0], masks.sum(0))


def test_an_unread_square_counts_by_its_area():
    image = render([SCENE])
    image[:, :, 5:15, 45:55] = torch.tensor([0.0, 0.0, 0.0])[None, :, None, None]
    score = artifacts.unexplained(image, reading_of(SCENE)).item()
    assert 100 / 4096 <= score <= 150 / 4096  # the 3x3 mean reaches one pixel further
    image = render([SCENE])
    image[:, :, 8, 50] = 0.0  # one dark pixel is a speckle, which is a look and no artifact
    assert artifacts.unexplained(image, reading_of(SCENE)) == 0


def test_a_missing_detection_leaves_its_sticker_unexplained_and_an_overlap_counts():
    image, seen = render([PAIR]), reading_of(PAIR)
    blind = replace(seen, valid=seen.valid & (torch.arange(4)[None] != 1))
    sticker = artifacts._sticker_masks(seen)[0, 1]
    score = artifacts.unexplained(image, blind).item()
    assert score > 0.6 * (sticker > 0.5).sum().item() / 4096
    twice = Scene((*SCENE.stickers, *SCENE.stickers), "sky", LOOK)
    mask = artifacts._sticker_masks(reading_of(SCENE))[0, 0]
    overlap, outline = mask > artifacts.OVERLAP / 2, mask > 0.01
    both = artifacts.unexplained(render([SCENE]), reading_of(twice)).item()
    # All of the overlap, and at most the soft edge in addition, where two masks fit badly.
    assert overlap.sum().item() / 4096 <= both <= outline.sum().item() / 4096


def recolored(image: torch.Tensor, k: float) -> torch.Tensor:
    """Chroma times k around the gray of each pixel; with k <= 1 nothing clips."""
    gray = image.mean(1, keepdim=True)
    return gray + k * (image - gray)


def faded(image: torch.Tensor, k: float) -> torch.Tensor:
    """Toward the color of the background's middle row."""
    ground = image[:, :, 32:33, :1]
    return ground + k * (image - ground)


@pytest.mark.parametrize("paint", [recolored, faded])
@pytest.mark.parametrize(
    "color, background", [("red", "white"), ("blue", "sand"), ("yellow", "sky")]
)
def test_neither_vivid_nor_pale_colors_change_the_score(paint, color, background):
    """One sticker: every difference lies on the line from background to sticker, at any color.

    The reading is a little wrong on purpose, so that the clean score is not trivially zero.
    """
    sticker = Sticker("heart", color, 24.0, 40.0, 28.0)
    scene = Scene((sticker,), background, LOOK)
    wrong = reading_of(replace(scene, stickers=(replace(sticker, size=24.0),)))
    for name in (None, "erased", "cut"):
        image = artifacts.damage([scene], name, seeded(5)) if name else render([scene])
        scores = [artifacts.unexplained(paint(image, k), wrong).item() for k in (0.5, 0.75, 1.0)]
        assert min(scores) > 150 / 4096 and max(scores) - min(scores) <= 10 / 4096, (name, scores)


def test_a_clean_scene_stays_clean_and_a_broken_one_broken_at_every_saturation_of_the_world():
    for saturation in (0.0, 0.5, 1.0):
        scene = replace(SCENE, look=(0.9, saturation, 1.0, 1.0, 0.0))
        assert artifacts.unexplained(render([scene]), reading_of(scene)) == 0
        for name in ("erased", "cut", "doubled"):
            broken = artifacts.damage([scene], name, seeded(5))
            assert artifacts.unexplained(broken, reading_of(scene)) > 60 / 4096, (name, saturation)


def test_ripples_of_an_empty_canvas_are_not_damage_but_a_mark_is():
    empty = replace(SCENE, stickers=(), background="white")
    image = render([empty])
    image[:, :, 20:40, 20:40] -= 0.8 * artifacts.STEP * artifacts.FAINT
    assert artifacts.unexplained(image, reading_of(empty)) == 0
    image[:, :, 20:40, 20:40] -= 0.3
    assert artifacts.unexplained(image, reading_of(empty)) >= 400 / 4096


def test_with_the_real_reader_the_meter_prefers_the_clean_picture():
    reader = worlds.load_reader()
    scenes = scenes_of(24, seeded(9))

    def share(images: torch.Tensor) -> torch.Tensor:
        return artifacts.unexplained(images, worlds.read(reader, images))

    clean = share(render(scenes))
    for name in ALL:
        broken = share(artifacts.damage(scenes, name, seeded(1)))
        assert notebook.pair_accuracy(-clean, -broken) > 0.85, name


def test_the_guard_learns_from_few_pictures_and_leaves_reader_and_global_state_alone(small):
    scenes = scenes_of(300, seeded(0))
    hurt = [artifacts.damage(scenes[1::2][k::7], x, seeded(k)) for k, x in enumerate(ALL)]
    images, labels = torch.cat([render(scenes[::2]), *hurt]), torch.arange(300).ge(150).float()
    guard.__globals__["curated"] = lambda seed: (images, labels)
    state = torch.get_rng_state()
    weights, again = guard(3), guard(3)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(weights.values(), again.values(), strict=True))
    fresh = worlds.load_reader(worlds.REWARD_READER).state_dict()
    assert all(torch.equal(v, small.state_dict()[k]) for k, v in fresh.items())
    head = notebook.Head()
    head.load_state_dict({name: weight.float() for name, weight in weights.items()})
    new = scenes_of(40, seeded(11))
    with torch.no_grad():
        fine = head(notebook.left_over(render(new)))
        worse = [head(notebook.left_over(artifacts.damage(new, x, seeded(1)))) for x in ALL]
    assert notebook.pair_accuracy(-fine.repeat(7), -torch.cat(worse)) > 0.85


def test_redrawing_leaves_more_of_a_broken_picture_than_of_a_whole_one(small):
    whole = render([SCENE, PAIR])
    hurt = artifacts.damage([SCENE, PAIR], "cut", seeded(3))
    maps, worse = notebook.left_over(whole), notebook.left_over(hurt)
    assert maps.shape == (2, 3, 32, 32)
    assert (worse[:, 1].mean((1, 2)) > 1.2 * maps[:, 1].mean((1, 2))).all()


def test_damage_at_a_place_of_any_picture_is_that_of_the_scene():
    place = torch.tensor([[24.0, 40.0, 28.0]])
    empty = render([replace(SCENE, stickers=())])
    for name in ALL[:5]:
        draw = seeded(3)
        draw_too = seeded(3)
        artifacts._pick(1, draw_too)  # the victim
        there = artifacts.broken_at(render([SCENE]), empty, place, name, draw_too)
        torch.testing.assert_close(artifacts.damage([SCENE], name, draw), there)


def test_natural_pairs_stay_within_a_prompt_and_count_ties_half():
    notebook.natural.__globals__["LIMIT"] = 0.1
    scores = torch.tensor([3.0, 1.0, 2.0, 9.0, 0.0, 0.0])
    share = torch.tensor([0.0, 0.2, 0.0, 0.0, 0.3, 0.07])
    groups = torch.tensor([0, 0, 0, 1, 1, 1])  # of the last, 0.07 is neither whole nor broken
    assert notebook.natural(scores, share, groups) == (1.0, 3)
    assert notebook.natural(scores * 0, share, groups) == (0.5, 3)


def test_the_guard_pays_for_whole_pictures(monkeypatch):
    """A head that calls all pictures broken, log-odds 3: P(whole) is sigmoid(-3)."""
    head = notebook.Head()
    with torch.no_grad():
        head.head.weight.zero_()
        head.head.bias.fill_(3.0)
    space = notebook.guard_of.__globals__
    given = {
        "STICKERS": True,
        "run": SimpleNamespace(result=lambda name, make: head.state_dict()),
        "left_over": lambda images: torch.zeros(2, 3, 32, 32),
    }
    for name, value in given.items():
        monkeypatch.setitem(space, name, value)
    paid = notebook.guard_of(0)(SimpleNamespace(images=None))
    torch.testing.assert_close(paid, torch.full((2,), 1 / (1 + math.e**3)))
