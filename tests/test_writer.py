"""Text policies over a closed vocabulary, and word scores, against loops and normal equations."""

from types import SimpleNamespace

import pytest
import torch
from scipy.stats import chisquare

from rlgenkit import models
from rlgenkit.models.tokens import _pick
from rlgenkit.models.writer import (
    BLANK,
    END,
    PAD,
    Writer,
    as_text,
    chat,
    encode,
    imitate,
    log_probs,
    make_writer,
    prompts,
    whole_texts,
    words_of,
    write,
)
from tests.notebook_code import definitions
from tests.tiny_pipelines import save_language_model

NAMES = ("<pad>", "<end>", "_", "good", "film", ".", "#", "a")
WindowLM = definitions("30").WindowLM


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def small_writer(seed=0):
    return Writer(WindowLM(len(NAMES), draw(seed)), NAMES)


def test_window_model_sees_the_last_words_only_and_the_cache_changes_nothing():
    model = WindowLM(8, draw(), window=3)
    ids = torch.randint(3, 8, (4, 9), generator=draw(1))
    with torch.no_grad():
        full = model(ids).logits
        k = 5
        first = model(ids[:, :k])
        second = model(ids[:, k:], past_key_values=first.past_key_values).logits
        torch.testing.assert_close(torch.cat([first.logits, second], 1), full)
        hidden = sum(model.place[j][ids[:, 6 - j]] for j in range(3)).tanh()  # by hand, place 6
        torch.testing.assert_close(full[:, 6], hidden @ model.out.T + model.bias)
        other = ids.clone()
        other[:, 7:] = 3  # the future
        other[:, :4] = 3  # what lies before the window
        torch.testing.assert_close(model(other).logits[:, 6], full[:, 6])


def test_replayed_log_probs_are_those_of_sampling():
    writer = small_writer()
    ids, real = prompts(writer, [[3], [4]], 3)
    assert ids[:, 1].tolist() == [3, 3, 3, 4, 4, 4] and (ids[:, 0] == END).all()
    batch = models.generate(writer.model, ids, 6, draw(2), 1.0, END, PAD, real)
    with torch.no_grad():
        assert torch.equal(models.token_logprobs(writer.model, batch), batch.log_probs)
        step = writer.model(batch.ids).logits.log_softmax(-1)
    for b in range(6):
        for t in range(batch.mask.shape[1]):
            if batch.mask[b, t]:
                token = batch.answers[b, t]
                torch.testing.assert_close(batch.log_probs[b, t], step[b, 1 + t, token])


def test_whole_texts_are_answers_to_the_start():
    writer = small_writer()
    batch = whole_texts(writer, [[3, 4], [5]])
    assert batch.ids.tolist() == [[END, 3, 4, END], [END, 5, END, PAD]]
    assert batch.width == 1 and batch.mask.tolist() == [[True] * 3, [True, True, False]]
    assert as_text(writer, batch.ids) == ["good film", "."]


def test_a_language_model_is_read_back_as_words(tmp_path):
    save_language_model("llama", tmp_path)
    writer = make_writer(NAMES, draw(), tmp_path)
    (row,) = encode(writer, [[3, 4, 6]])
    assert row[0] == writer.end == writer.pad
    assert writer.tokenizer.decode(row[1:]).replace(" ", "") == "goodfilm#"
    spaced = models.TokenBatch(
        torch.tensor([row]), torch.ones(1, len(row)).bool(), torch.zeros(1, 1), 1.0
    )
    writer.tokenizer.batch_decode = lambda ids, skip_special_tokens: ["Good film, a # x"]
    assert words_of(writer, spaced).tolist() == [[3, 4, BLANK, 7, 6, BLANK, END]]


def test_chat_prompts_follow_the_template_and_are_padded_on_the_left(tmp_path):
    save_language_model("llama", tmp_path)
    writer = make_writer(NAMES, draw(), tmp_path)
    writer.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}[answer]{% endif %}"
    )
    ids, real = chat(writer, ["good film", "a"], "be brief")
    for row, there, text in zip(ids, real, ("good film", "a")):
        line = f"[system] be brief [user] {text} [answer]"
        assert row[there].tolist() == writer.tokenizer(line, add_special_tokens=False).input_ids
        assert (row[~there] == writer.pad).all() and there[-1]
    assert real.sum(1).unique().numel() == 2


def test_word_scores_solve_the_normal_equations():
    notebook, gen = definitions("30"), draw(3)
    words = torch.randint(0, 8, (60, 7), generator=gen)
    words[words == 6] = 5  # word 6 never occurs
    ratings = torch.randn(60, generator=gen)
    pairs = notebook.frequent_pairs(words, 8, 4)
    X = torch.zeros(60, 12)
    for b, row in enumerate(words.tolist()):
        for w in row:
            X[b, w] += w > 2
        for code in zip(row, row[1:]):
            hit = (pairs == code[0] * 8 + code[1]).nonzero().flatten()
            X[b, 8 + hit] += 1
    assert torch.equal(notebook.counts(words, 8), X[:, :8])
    assert torch.equal(notebook.pair_counts(words, 8, pairs), X[:, 8:])
    weights, mean = notebook.ridge(X, ratings, 2.0)
    residual = ratings - ratings.mean() - X @ weights
    torch.testing.assert_close(X.T @ residual, 2.0 * weights, atol=1e-4, rtol=1e-4)
    assert mean == ratings.mean() and weights[6] == 0 and (weights[:3] == 0).all()
    assert notebook.frequent_pairs(torch.tensor([[3, 4, 3, 4, 5]]), 8, 1).tolist() == [3 * 8 + 4]


def test_surprise_leaves_blanks_out_and_learning_lowers_it(monkeypatch):
    notebook = definitions("30")
    scope = notebook.surprise.__globals__
    monkeypatch.setitem(scope, "SMALL", True)
    monkeypatch.setitem(scope, "p", SimpleNamespace(device="cpu"))
    model = WindowLM(len(NAMES), draw())
    batch = notebook.sentences([[3, BLANK, 5], [4, 4]])
    assert batch.ids.tolist() == [[END, 3, BLANK, 5, END], [END, 4, 4, END, PAD]]
    assert batch.width == 1 and batch.mask.tolist() == [[True] * 4, [True, True, True, False]]
    logs = model(batch.ids).logits.log_softmax(-1)
    counted = [(0, 0, 3), (0, 2, 5), (0, 3, END), (1, 0, 4), (1, 1, 4), (1, 2, END)]
    wanted = -sum(logs[place] for place in counted) / 6
    torch.testing.assert_close(notebook.surprise(model, batch), wanted)
    notebook.learn(model, batch, 60, 0.05, draw(1))
    assert notebook.surprise(model, batch) < 0.7
    assert models.token_logprobs(model, batch)[0, 1] < -4  # the blank became unlikely


def test_imitation_is_maximum_likelihood_whatever_the_chunk():
    ends = []
    for chunk in (2, 256):
        writer = small_writer()
        batch = models.generate(
            writer.model, *prompts(writer, [[3], [4], [5]])[:1], 5, draw(4), 0.5, END, PAD
        )
        optimizer = torch.optim.SGD(writer.model.parameters(), lr=0.1)
        before = [w.detach().clone() for w in writer.model.parameters()]
        imitate(writer, optimizer, batch, 1, chunk)
        ends.append([w.detach() for w in writer.model.parameters()])
    plain = models.TokenBatch(batch.ids, batch.real, batch.log_probs, 1.0)
    fresh = small_writer()
    loss = -models.token_logprobs(fresh.model, plain).sum() / plain.mask.sum()
    grads = torch.autograd.grad(loss, list(fresh.model.parameters()))
    for start, grad, one, two in zip(before, grads, *ends):
        torch.testing.assert_close(one, start - 0.1 * grad)
        torch.testing.assert_close(two, one)


def test_written_answers_stay_with_their_prompts():
    writer, other = small_writer(), small_writer(9)
    batch, words = write(writer, [[3], [4, 5]], 2, 4, draw(1), 0.7)
    assert words[:, :3].tolist() == [[PAD, END, 3]] * 2 + [[END, 4, 5]] * 2
    again, _ = write(other, [[3], [4, 5]], 2, 4, draw(1), 0.7, model=writer.model)
    assert torch.equal(again.ids, batch.ids)
    logs = log_probs(writer, batch, 3)
    plain = models.TokenBatch(batch.ids, batch.real, batch.log_probs, 1.0)
    torch.testing.assert_close(logs, models.token_logprobs(writer.model, plain).detach())
    assert not logs.requires_grad and not torch.allclose(
        logs, log_probs(writer, batch, 3, other.model)
    )


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_the_outermost_uniform_numbers_draw_tokens_that_have_a_chance(monkeypatch, uniform):
    never = float("-inf")
    logits = torch.tensor([[never, 0.0, never, 0.0, never], [never, never, 9.0, never, -90.0]])
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.full(shape, uniform))
    assert _pick(logits, 1.0, draw()).tolist() == [1 if uniform < 0.5 else 3, 2]


def test_chances_whose_rounded_sum_is_below_one_draw_no_token_beyond(monkeypatch):
    logits = torch.randn(64, 20_000, generator=draw(1))
    logits[:, -1] = float("-inf")
    sums = logits.softmax(-1).cumsum(-1)[:, -1]
    assert sums.min() < 1 - 2**-24 < sums.max()  # both kinds of rounding are among the rows
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.full(shape, 1 - 2**-24))
    assert _pick(logits, 1.0, draw()).max() < logits.shape[1] - 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_tokens_are_drawn_as_often_as_their_chances_say(temperature):
    tokens, draws = 40, 100_000
    logits = torch.randn(tokens, generator=draw(3))
    logits[[0, 7, 39]] = float("-inf")
    found = _pick(logits.expand(draws, -1), temperature, draw(5)).bincount(minlength=tokens)
    expected = draws * (logits.double() / temperature).softmax(0)
    real = expected > 0
    assert found[~real].sum() == 0 and expected[real].min() > 5
    assert chisquare(found[real].double(), expected[real]).pvalue > 1e-3


def test_a_row_without_a_distribution_is_refused():
    for bad, temperature in ((float("nan"), 1.0), (float("inf"), 1.0), (float("nan"), 0.0)):
        with pytest.raises(ValueError, match="not finite"):
            _pick(torch.tensor([[0.0, 1.0], [bad, 0.0]]), temperature, draw())
