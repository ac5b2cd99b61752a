"""What is said of scenes by plain checks, the packed training loss, and answers with their log-probs."""

import json
import re

import numpy as np
import pytest
import torch

from rlgenkit.models import vision_language as V
from data.models.vision_language import questions as Q
from data.models.vision_language import train as training
from data.models.recipes import MODELS
from rlgenkit.optimizers.tokens import token_policy_loss
from rlgenkit.worlds import LOOKS, parse, render, sample_prompts, sample_scenes
from rlgenkit.worlds.prompts import COLORS, KINDS, NUMBERS


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def some_scenes(n, seed=0, category=None):
    generator = gen(seed)
    return sample_scenes(sample_prompts(n, category=category, generator=generator), generator)


@pytest.fixture(scope="module")
def processor():
    return training.build_processor()


@pytest.fixture(scope="module")
def model():
    """An untrained model with larger weights, so that its answers differ between pictures."""
    torch.manual_seed(3)
    model = training.build().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.mul_(3.0)
    return model


# ---- what is said of scenes


def test_every_word_is_in_the_vocabulary(processor):
    words = {w: i for i, w in enumerate(Q.vocabulary())}
    assert len(words) == len(Q.vocabulary()) <= 256  # ids are kept as bytes
    rng = np.random.default_rng(0)
    for scene in some_scenes(200):
        pairs = Q.lesson(scene, rng.random(), rng)
        assert len(pairs) == 11
        ids, parts, learned = training.pack(words, pairs)
        assert len(ids) == training.TEXT_TOKENS and max(parts) == 11  # none was left out
        for request, answer in pairs:
            text = f"{request} : {answer}"
            own = processor.tokenizer(text).input_ids
            assert own == training.encode(words, text) and training.IMAGE not in own
            assert processor.tokenizer.decode(own) == text and words["<unk>"] not in own


def test_captions_say_what_is_there():
    unclear = 0
    for scene in some_scenes(400, 1):
        prompt = Q.caption_of(scene)
        assert parse(prompt.text) == prompt and prompt.background == scene.background
        if prompt.word:
            assert prompt.word == "".join(s.kind for s in scene.stickers)
            continue
        things = sorted((s.kind, s.color) for s in scene.stickers)
        assert things == sorted((g.kind, g.color) for g in prompt.groups for _ in range(g.count))
        if prompt.relation:
            a, b = (
                next(s for s in scene.stickers if (s.kind, s.color) == (g.kind, g.color))
                for g in prompt.groups
            )
            along, across = (
                (b.x - a.x, b.y - a.y) if prompt.relation == "left of" else (b.y - a.y, b.x - a.x)
            )
            assert along >= 14 and abs(across) <= 0.7 * along
        elif len(scene.stickers) == len(prompt.groups) == 2:  # askew: neither beside nor above
            gaps = sorted(abs(np.subtract(*[(s.x, s.y) for s in scene.stickers])))
            assert gaps[1] < 14 or gaps[0] > 0.7 * gaps[1]
            unclear += 1
    assert unclear > 5


def test_a_stated_relation_is_never_lost():
    generator = gen(2)
    prompts = sample_prompts(100, category="relation", generator=generator)
    turned = {"right of": "left of", "below": "above"}
    for prompt, scene in zip(prompts, sample_scenes(prompts, generator)):
        said = Q.caption_of(scene)
        groups = prompt.groups[::-1] if prompt.relation in turned else prompt.groups
        assert (
            said.relation == turned.get(prompt.relation, prompt.relation) and said.groups == groups
        )


def true_answer(question, scene):
    """The answer worked out from the question's own words."""
    if match := re.fullmatch(r"is the background (\w+) \?", question):
        return match[1] == scene.background
    if match := re.fullmatch(r'does it say "(\w+)" \?', question):
        return match[1] == "".join(s.kind for s in scene.stickers)
    if match := re.fullmatch(r"is the (\w+) (low|medium|high) \?", question):
        value = scene.look[LOOKS.index(match[1])]
        return match[2] == ("low" if value < 0.35 else "medium" if value < 0.65 else "high")
    if match := re.fullmatch(r"(?:is|are) there (\w+) (\w+) (\w+?)s? \?", question):
        count = sum(s.color == match[2] and s.kind == match[3] for s in scene.stickers)
        return count == NUMBERS.index(match[1]) + 1
    asked, own = (
        parse(re.fullmatch(r"does the picture show (.+) \?", question)[1]),
        Q.caption_of(scene),
    )
    return asked == own


@pytest.mark.parametrize("ask", Q.ASKED, ids=lambda f: f.__name__)
def test_answers_are_true_and_balanced(ask):
    rng, answers = np.random.default_rng(3), []
    for scene in some_scenes(300, 3):
        question, answer = ask(scene, rng)
        assert answer == ("yes" if true_answer(question, scene) else "no"), question
        answers.append(answer == "yes")
    assert 0.42 < np.mean(answers) < 0.58


def test_reasons_agree_with_the_look():
    for scene in some_scenes(100, 4):
        for name, value in zip(LOOKS, scene.look):
            assert Q.thought(scene, name).startswith(f"{name}: {Q.level(value)} because ")
        if Q.level(scene.look[3]) != "high":
            area = np.array([s.size**2 for s in scene.stickers])
            off = (np.array([(s.x, s.y) for s in scene.stickers]) * area[:, None]).sum(
                0
            ) / area.sum() - 32
            side = Q.thought(scene, "balance").split()[-1]
            assert {"left": -off[0], "right": off[0], "up": -off[1], "down": off[1]}[
                side
            ] == np.abs(off).max()
    assert [Q.level(v) for v in (0.0, 0.349, 0.35, 0.649, 0.65, 1.0)] == ["low"] * 2 + [
        "medium"
    ] * 2 + ["high"] * 2
    assert Q.answer("x", 0.625) == "<think> x </think> <answer> score: 0.62 </answer>"


# ---- the packed loss


def test_packed_texts_cost_what_they_cost_alone(model, processor):
    scenes, rng = some_scenes(3, 5), np.random.default_rng(5)
    words = {w: i for i, w in enumerate(Q.vocabulary())}
    pairs = [Q.lesson(s, 0.4, rng) for s in scenes]
    rows = [training.pack(words, p) for p in pairs]
    ids, parts, learned = (torch.tensor([r[k] for r in rows]) for k in range(3))
    images = (render(scenes) * 255).round() / 255
    packed = training.loss(model, images, ids, parts, learned)
    total, tokens = 0.0, 0
    for k in range(11):
        views = V.make_views(model, processor, images, [p[k][0] for p in pairs])
        batch = V.given_answers(processor, views, [p[k][1] for p in pairs])
        total += -V.answer_logprobs(model, views, batch).sum()
        tokens += int(batch.mask.sum())
    torch.testing.assert_close(packed, total / tokens, rtol=1e-4, atol=1e-4)


# ---- answers


REQUESTS = ("describe the picture", "is there a red cat ?", "score the contrast")


def answers(model, processor, group=3, seed=0, new=9):
    """Answers of an untrained model; those that hold an <image> token, which a plain pass refuses, are redrawn."""
    views, generator = (
        V.make_views(model, processor, render(some_scenes(3, 6)), REQUESTS),
        gen(seed),
    )
    while True:
        batch = V.answer_views(model, views, new, generator, 1.0, training.END, training.PAD, group)
        if not (batch.answers == training.IMAGE).any():
            return views, batch


def plain_logprobs(model, views, batch):
    """One full pass without a cache; the positions of left-padded rows are their own."""
    group = len(batch.ids) // len(views)
    out = model(
        input_ids=batch.ids,
        attention_mask=batch.real.long(),
        use_cache=False,
        position_ids=(batch.real.long().cumsum(1) - 1).clamp(min=0),
        pixel_values=views.inputs["pixel_values"].repeat_interleave(group, 0),
    )
    steps = out.logits[:, batch.width - 1 : -1].log_softmax(-1)
    return torch.where(batch.mask, steps.gather(2, batch.answers[..., None])[..., 0], 0.0)


def test_replay_gives_the_same_bits_and_the_same_as_a_plain_pass(model, processor):
    views, batch = answers(model, processor)
    assert batch.ids.shape[0] == 9 and not batch.real[:, :2].all() and batch.mask.any(1).all()
    again = V.answer_logprobs(model, views, batch)
    assert torch.equal(again.detach(), batch.log_probs)
    torch.testing.assert_close(again, plain_logprobs(model, views, batch), rtol=1e-4, atol=1e-4)
    assert torch.equal(batch.log_probs == 0, ~batch.mask)


def test_gradients_pass_through_the_shared_request(model, processor):
    views, batch = answers(model, processor)
    weights = torch.randn(batch.log_probs.shape, generator=gen(1))
    found = []
    for function in (V.answer_logprobs, plain_logprobs):
        model.zero_grad()
        (function(model, views, batch) * weights).sum().backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    assert found[0].keys() == found[1].keys()
    assert any("vision_tower" in n for n in found[0])
    for name, grad in found[0].items():
        torch.testing.assert_close(
            grad, found[1][name], rtol=1e-3, atol=1e-3 * grad.abs().max().item() + 1e-6
        )


def test_the_first_update_has_ratio_one(model, processor):
    views, batch = answers(model, processor)
    now = V.answer_logprobs(model, views, batch)
    assert torch.equal((now - batch.log_probs).exp(), torch.ones_like(now))
    advantages = torch.linspace(-1, 1, 9)
    loss = token_policy_loss(now, batch.log_probs, advantages, batch.mask, 0.2, "sequence")
    expected = -advantages.mean()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)


def test_same_seed_same_answers_and_each_view_its_own(model, processor):
    views, one = answers(model, processor, seed=1)
    _, two = answers(model, processor, seed=1)
    _, other = answers(model, processor, seed=2)
    assert torch.equal(one.ids, two.ids) and torch.equal(one.log_probs, two.log_probs)
    assert not torch.equal(one.ids, other.ids)
    greedy = V.answer_views(model, views, 9, gen(), 0.0, training.END, training.PAD)
    for i in range(3):  # padding and neighbors change nothing
        alone = V.make_views(model, processor, render(some_scenes(3, 6))[i : i + 1], REQUESTS[i])
        single = V.answer_views(model, alone, 9, gen(), 0.0, training.END, training.PAD)
        assert V.answer_texts(processor, single) == V.answer_texts(processor, greedy)[i : i + 1]
        width = single.log_probs.shape[1]
        torch.testing.assert_close(
            single.log_probs[0], greedy.log_probs[i, :width], rtol=1e-4, atol=1e-4
        )


def test_an_answer_stops_behind_its_end_token(model, processor):
    views = V.make_views(model, processor, render(some_scenes(3, 6)), REQUESTS)
    free = V.answer_views(model, views, 8, gen(), 0.0, training.END, training.PAD)
    end = int(free.answers[0, 2])
    batch = V.answer_views(model, views, 8, gen(), 0.0, end, training.PAD)
    for row, mask, wild, logp in zip(batch.answers, batch.mask, free.answers, batch.log_probs):
        hits = (wild == end).nonzero()
        length = int(hits[0]) + 1 if len(hits) else 8
        assert mask.tolist() == [t < length for t in range(len(row))]
        assert torch.equal(row[:length], wild[:length]) and (row[length:] == training.PAD).all()
        assert (logp[length:] == 0).all()
    assert batch.mask[0].sum() <= 3


def test_tokens_are_drawn_as_often_as_the_model_says(model, processor):
    views = V.make_views(model, processor, render(some_scenes(1, 7)), REQUESTS[1])
    batch = V.answer_views(model, views, 1, gen(3), 1.0, training.END, training.PAD, 20_000)
    shares = batch.answers[:, 0].bincount(minlength=len(Q.vocabulary())) / 20_000
    chances = V.answer_distributions(model, views, batch.index(torch.arange(1)))[0, 0].exp()
    assert (shares - chances).abs().max() < 0.015


def test_frozen_views_give_the_same_answers_and_no_gradient_to_the_picture(model, processor):
    views = V.make_views(model, processor, render(some_scenes(3, 6)), REQUESTS[0])
    frozen = V.freeze_views(model, views, words=4, chunk=2)
    assert set(frozen.inputs) == {"keys", "values"} and frozen.inputs["keys"].shape[3] == 64
    one, two = (
        V.answer_views(model, v, 6, gen(4), 1.0, training.END, training.PAD, 3)
        for v in (views, frozen)
    )
    assert torch.equal(one.ids, two.ids)
    torch.testing.assert_close(two.log_probs, one.log_probs, rtol=1e-4, atol=1e-4)
    now = V.answer_logprobs(model, frozen, two)
    assert torch.equal(now.detach(), two.log_probs)  # ratio 1
    now.sum().backward()
    got = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    model.zero_grad(set_to_none=True)
    assert "lm_head.weight" in got and not any("vision_tower" in n or "projector" in n for n in got)
    sub = V.answer_logprobs(
        model, frozen.index(torch.tensor([2, 0])), two.index(torch.tensor([6, 7, 8, 0, 1, 2]))
    )
    torch.testing.assert_close(sub, one.log_probs[[6, 7, 8, 0, 1, 2]], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="equal length"):
        V.freeze_views(model, answers(model, processor)[0])


def test_given_answers_are_read_back(model, processor):
    views, _ = answers(model, processor)
    texts = ["yes", Q.answer("contrast: high", 0.5), "a red cat"]
    batch = V.given_answers(processor, views, texts)
    assert V.answer_texts(processor, batch) == texts
    assert batch.answers[batch.mask].tolist().count(training.END) == 3
    expected = plain_logprobs(model, views, batch)
    torch.testing.assert_close(
        V.answer_logprobs(model, views, batch), expected, rtol=1e-4, atol=1e-4
    )


def test_probability_of_yes_is_the_two_way_share(model, processor):
    views = V.make_views(model, processor, render(some_scenes(2, 8)), REQUESTS[1])
    logits = model(input_ids=views.ids, attention_mask=views.real.long(), **views.inputs).logits[
        :, -1
    ]
    yes, no = (logits[:, Q.vocabulary().index(w)].exp() for w in ("yes", "no"))
    torch.testing.assert_close(
        V.yes_probability(model, processor, views), yes / (yes + no), rtol=1e-4, atol=1e-5
    )


def test_bad_input_is_told(model, processor):
    images = render(some_scenes(2, 9))
    with pytest.raises(ValueError, match="requests need as many images"):
        V.make_views(model, processor, images, ["one"])
    views, batch = answers(model, processor)
    with pytest.raises(ValueError, match="in their order"):
        V.answer_logprobs(model, views.index(torch.tensor([1, 0, 2])), batch)
    with pytest.raises(ValueError, match="do not fit"):
        V.given_answers(processor, views, ["yes", "no"])
    with pytest.raises(ValueError, match="group >= 1"):
        V.answer_views(model, views, 3, gen(), 1.0, training.END, training.PAD, 0)
    with pytest.raises(ValueError, match="cannot be read as a vision-language model"):
        V.load_vision_language(MODELS / "arithmetic")


# ---- the committed model


@pytest.mark.skipif(
    not (MODELS / "vision_language").is_dir(), reason="the model is not trained yet"
)
def test_committed_model_is_as_good_as_its_card_says():
    model, processor = V.load_vision_language()
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert sum(f.stat().st_size for f in (MODELS / "vision_language").rglob("*")) <= 12e6
    told = json.loads((MODELS / "vision_language" / "quality.json").read_text())["quality"]["test"]
    found = training.quality(model, processor, "test", 9, 100)
    for name, value in found.items():
        assert abs(value - float(told[name].split()[0])) < 0.12, name
    assert {c for c in COLORS} & set(Q.vocabulary()) and set(KINDS) <= set(Q.vocabulary())
