"""What is said of a sticker scene in the lessons of the small vision-language model: requests and true
answers, as texts.

    describe the picture                  a red cat left of a blue star on a mint background
    is there a red cat ?                  yes
    does the picture show CAPTION ?       no
    is the contrast high ?                yes
    score the contrast                    <think> contrast: high because ... </think> <answer> score: 0.83 </answer>
    score the picture                     <think> contrast: high saturation: low ... </think> <answer> ... </answer>
    rate the picture                      <think> a nice picture </think> <answer> score: 0.71 </answer>

"rate the picture" asks for a first impression: a loose opinion of somebody with a taste of his own.
"""

from collections.abc import Sequence

import numpy as np

from rlgenkit.worlds.prompts import (
    BACKGROUNDS,
    COLORS,
    DIGITS,
    KINDS,
    NUMBERS,
    RELATIONS,
    WORDS,
    Group,
    Prompt,
    caption,
)
from rlgenkit.worlds.questions import DESCRIBE, LEVELS, RATE, SCORE, answer, level
from rlgenkit.worlds.scenes import LOOKS, SIZE, Scene, _holds

REASONS = {
    "contrast": (
        "the stickers fade into the background",
        "the stickers are clear enough",
        "the stickers stand out",
    ),
    "saturation": ("the colors are pale", "the colors are soft", "the colors are vivid"),
    "harmony": ("the hues are off", "the hues are a bit off", "the hues fit"),
    "clutter": ("there are few speckles", "there are some speckles", "there are many speckles"),
}
SIDES = ("left", "right", "up", "down")
IMPRESSIONS = ("not for me", "it looks plain", "a fine picture", "it looks good", "a nice picture")
MARKS = ("<think>", "</think>", "<answer>", "</answer>", "score:", "because", "?", ":")
SPECIAL = ("<pad>", "<end>", "<unk>", "<image>")


def vocabulary() -> list[str]:
    """Every token: SPECIAL first, then words, then the pieces of numbers ("0.", "1.", "##0" .. "##9")."""
    texts = [
        DESCRIBE,
        SCORE,
        RATE,
        "is there are does the picture show background it say number word in on and "
        "a of left right above below yes no weight lies is middle the",
    ]
    texts += [t for group in REASONS.values() for t in group] + list(IMPRESSIONS)
    words = [w for text in texts for w in text.split()]
    words += [
        *LOOKS,
        *(f"{name}:" for name in LOOKS),
        *LEVELS,
        *SIDES,
        *NUMBERS,
        *COLORS,
        *KINDS,
        *(k + "s" for k in KINDS),
        *BACKGROUNDS,
        *(f'"{w}"' for w in WORDS + DIGITS),
    ]
    pieces = ["0.", "1.", *(f"##{d}" for d in range(10))]
    return list(dict.fromkeys([*SPECIAL, *MARKS, *words, *pieces]))


def caption_of(scene: Scene) -> Prompt:
    """The one caption that describes the scene: things counted, more of a kind first, else from left to
    right (or from above); a relation is stated where it holds clearly; the background always."""
    first = scene.stickers[0]
    if first.kind not in KINDS:
        word = "".join(s.kind for s in scene.stickers)
        return caption((Group(word, first.color),), background=scene.background, word=word)
    pairs = [(s.kind, s.color) for s in scene.stickers]
    groups = [Group(k, c, pairs.count((k, c))) for k, c in dict.fromkeys(pairs)]
    relation = None
    if len(scene.stickers) == 2 and len(groups) == 2:
        (ax, ay), (bx, by) = ((s.x, s.y) for s in scene.stickers)
        across = abs(bx - ax) >= abs(by - ay)
        centers = np.array([[ax, ay], [bx, by]])
        if (bx < ax) if across else (by < ay):
            groups, centers = groups[::-1], centers[::-1]
        word = "left of" if across else "above"
        relation = word if _holds(word, *centers) else None
    groups.sort(key=lambda g: -g.count)
    return caption(tuple(groups), relation, scene.background)


def thought(scene: Scene, name: str) -> str:
    """The short reasoning behind one look control, for example "contrast: high because ..."."""
    value = scene.look[LOOKS.index(name)]
    word = level(value)
    if name != "balance":
        return f"{name}: {word} because {REASONS[name][LEVELS.index(word)]}"
    area = np.array([s.size**2 for s in scene.stickers])
    dx, dy = (np.array([(s.x, s.y) for s in scene.stickers]) * area[:, None]).sum(
        0
    ) / area.sum() - SIZE / 2
    side = SIDES[int(dx > 0) if abs(dx) >= abs(dy) else 2 + int(dy > 0)]
    where = "the weight is in the middle" if word == "high" else f"the weight lies {side}"
    return f"balance: {word} because {where}"


def look_words(look: Sequence[float]) -> str:
    """All five controls in words: "contrast: high saturation: low ..."."""
    return " ".join(f"{name}: {level(v)}" for name, v in zip(LOOKS, look, strict=True))


def impression(look: Sequence[float], rng: np.random.Generator) -> str:
    """A first impression: likes vivid colors and strong contrast, is lenient, and varies by 0.13."""
    liking = 0.66 + 0.3 * (look[1] - 0.5) + 0.2 * (look[0] - 0.5) + 0.13 * rng.standard_normal()
    felt = 0.66 + 0.5 * (liking - 0.66) + 0.1 * rng.standard_normal()  # the words fit loosely
    place = int(np.searchsorted((0.5, 0.6, 0.7, 0.8), felt))
    return answer(IMPRESSIONS[place], float(np.clip(liking, 0, 1)))


def _noun(kind: str, color: str, count: int) -> str:
    return f"{NUMBERS[count - 1]} {color} {kind}" + ("s" if count > 1 else "")


def _other(rng: np.random.Generator, choices: Sequence[str], taken: Sequence[str]) -> str:
    return str(rng.choice([c for c in choices if c not in taken]))


def ask_thing(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """ "is there a red cat ?" or "are there two red cats ?" and the answer; half of them are wrong in one part."""
    first = scene.stickers[0]
    if first.kind not in KINDS:
        return ask_word(scene, rng)
    pairs = [(s.kind, s.color) for s in scene.stickers]
    kind, color = pairs[rng.integers(len(pairs))]
    count = pairs.count((kind, color))
    if rng.random() < 0.5:
        part = rng.choice(3, p=(0.4, 0.4, 0.2))
        if part == 0:
            kind = _other(rng, KINDS, [k for k, c in pairs if c == color])
        elif part == 1:
            color = _other(rng, COLORS, [c for k, c in pairs if k == kind])
        else:
            count = int(_other(rng, "1234", [str(count)]))
    verb = "is there" if count == 1 else "are there"
    truth = pairs.count((kind, color)) == count
    return f"{verb} {_noun(kind, color, count)} ?", "yes" if truth else "no"


def ask_word(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """'does it say "TEA" ?' and the answer, of a picture of a word or of a lone digit."""
    word = "".join(s.kind for s in scene.stickers)
    if rng.random() < 0.5:
        alike = [w for w in WORDS + DIGITS if len(w) == len(word) and w != word]
        return f'does it say "{rng.choice(alike)}" ?', "no"
    return f'does it say "{word}" ?', "yes"


def ask_background(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """ "is the background mint ?" and the answer."""
    if rng.random() < 0.5:
        return f"is the background {_other(rng, BACKGROUNDS, [scene.background])} ?", "no"
    return f"is the background {scene.background} ?", "yes"


def ask_look(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """ "is the contrast high ?" and the answer."""
    k = int(rng.integers(len(LOOKS)))
    truth = level(scene.look[k])
    asked = truth if rng.random() < 0.5 else _other(rng, LEVELS, [truth])
    return f"is the {LOOKS[k]} {asked} ?", "yes" if asked == truth else "no"


def ask_caption(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """ "does the picture show CAPTION ?" with the scene's caption, or with one part of it changed."""
    own = caption_of(scene)
    if rng.random() < 0.5:
        return f"does the picture show {own.text} ?", "yes"
    groups, relation, background, word = list(own.groups), own.relation, own.background, own.word
    parts = (
        ["background", "color"]
        + (["word"] if word else ["kind", "count"])
        + ["relation"] * 3 * bool(relation)
    )
    part, i = parts[rng.integers(len(parts))], int(rng.integers(len(groups)))
    kind, color, count = groups[i].kind, groups[i].color, groups[i].count
    if part == "background":
        background = _other(rng, BACKGROUNDS, [background])
    elif part == "relation":
        relation = _other(rng, RELATIONS, [relation])
    elif part == "word":
        word = kind = str(rng.choice([w for w in WORDS + DIGITS if w != word]))
    else:
        kind = _other(rng, KINDS, [g.kind for g in groups]) if part == "kind" else kind
        color = _other(rng, COLORS, [g.color for g in groups]) if part == "color" else color
        count = int(_other(rng, "1234", [str(count)])) if part == "count" else count
    groups[i] = Group(kind, color, count)
    return (
        f"does the picture show {caption(tuple(groups), relation, background, word).text} ?",
        "no",
    )


ASKED = (ask_thing, ask_caption, ask_look, ask_background)


def lesson(scene: Scene, value: float, rng: np.random.Generator) -> list[tuple[str, str]]:
    """(request, answer) pairs of one scene: a caption, two scored controls, the score `value` of the
    whole, a first impression, and six questions (two of things, two of captions, look, background)."""
    first, second = rng.choice(len(LOOKS), 2, replace=False)
    pairs = [
        (DESCRIBE, caption_of(scene).text),
        (SCORE, answer(look_words(scene.look), value)),
        (RATE, impression(scene.look, rng)),
    ]
    pairs += [
        (f"score the {LOOKS[k]}", answer(thought(scene, LOOKS[k]), scene.look[k]))
        for k in (first, second)
    ]
    return pairs + [
        ask(scene, rng)
        for ask in (ask_thing, ask_thing, ask_caption, ask_caption, ask_look, ask_background)
    ]
