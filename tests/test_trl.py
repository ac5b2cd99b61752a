"""Losses and gradients against TRL's trainers (an independent implementation), in memory and offline."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlgenkit import models
from rlgenkit import optimizers as O
from rlgenkit.models.tokens import TokenBatch
from tests.tiny_pipelines import word_tokenizer

trl = pytest.importorskip("trl", reason="the comparison needs the extra `dev` (trl)")

PROMPTS = [[3, 4, 5], [8], [9, 10], [2, 3, 4, 6]]
CLIP = (0.1, 0.3)


def small(seed):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=14,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
    ).eval()


@pytest.fixture(scope="module")
def policies():
    """(old policy, which sampled; new policy, a step away; answers to four prompts, three each)."""
    old = small(3)
    new = copy.deepcopy(old)
    with torch.no_grad():
        for weight in new.parameters():
            weight += 0.02 * torch.randn(
                weight.shape, generator=torch.Generator().manual_seed(weight.numel())
            )
    ids, real = models.pad_left([row for row in PROMPTS for _ in range(3)], 0)
    batch = models.generate(old, ids, 7, torch.Generator().manual_seed(1), 1.0, 1, 0, real)
    assert len(set(batch.mask.sum(1).tolist())) > 1  # of unequal length
    return old, new, batch


def options(folder):
    return dict(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to=[],
        activation_checkpointing=False,
    )


def rows_and_tokenizer():
    """What the trainers ask for; the losses below are called on batches of our own."""
    from datasets import Dataset

    tokenizer = word_tokenizer()
    tokenizer.eos_token = "<unk>"
    rows = [{"prompt": "a red", "chosen": "blue cat", "rejected": "cloud"}] * 4
    return {"train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}


def same_gradients(ours, theirs, model, other):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    mine = torch.autograd.grad(ours, list(model.parameters()))
    peer = torch.autograd.grad(theirs, list(other.parameters()))
    assert max(g.abs().max() for g in mine) > 1e-3
    for a, b in zip(mine, peer):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_dpo_equals_trl(policies, tmp_path, beta):
    old, new, _ = policies
    peer = copy.deepcopy(new)
    config = trl.DPOConfig(**options(tmp_path), beta=beta)
    trainer = trl.DPOTrainer(peer, copy.deepcopy(old), config, **rows_and_tokenizer())
    peer.eval()
    answers = ([[4, 6, 1], [7, 1]], [[5, 1], [9, 9, 3, 1]])  # chosen, rejected, to the same prompts
    rows = [
        {"prompt_ids": PROMPTS[i], "chosen_ids": answers[0][i], "rejected_ids": answers[1][i]}
        for i in range(2)
    ]
    theirs = trainer.compute_loss(peer, trainer.data_collator(rows))
    sums = []
    for model in (new, old):
        for side in answers:
            alone = [
                TokenBatch(
                    torch.tensor([p + a]),
                    torch.ones(1, len(p + a), dtype=torch.bool),
                    torch.zeros(1, len(a)),
                    1.0,
                )
                for p, a in zip(PROMPTS, side)
            ]
            sums.append(torch.cat([models.token_logprobs(model, one).sum(1) for one in alone]))
    ours = O.dpo_loss(sums[0], sums[1], sums[2].detach(), sums[3].detach(), beta)
    same_gradients(ours, theirs, new, peer)


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize(
    "kind, average",
    [("grpo", "sequence"), ("bnpo", "token"), ("dapo", "token"), ("dr_grpo", "constant")],
)
def test_grpo_equals_trl(policies, tmp_path, kind, average, beta):
    old, new, batch = policies
    peer, reference = copy.deepcopy(new), small(5)
    config = trl.GRPOConfig(
        **options(tmp_path),
        loss_type=kind,
        epsilon=CLIP[0],
        epsilon_high=CLIP[1],
        max_completion_length=9,
        num_generations=2,
        per_device_train_batch_size=2,
        use_bias_correction_kl=False,
    )
    trainer = trl.GRPOTrainer(
        peer, lambda completions, **_: [0.0] * len(completions), config, **rows_and_tokenizer()
    )
    trainer.beta = beta  # as a setting, TRL would look for the reference on the hub
    peer.eval()
    reward = torch.randn(12, generator=torch.Generator().manual_seed(2))
    advantages = O.group_advantages(reward, torch.arange(4).repeat_interleave(3))
    with torch.no_grad():
        anchor = models.token_logprobs(reference, batch)
    theirs = trainer.compute_loss(
        peer,
        {
            "prompt_ids": batch.ids[:, : batch.width],
            "prompt_mask": batch.real[:, : batch.width].long(),
            "completion_ids": batch.answers,
            "completion_mask": batch.mask.long(),
            "advantages": advantages,
            "old_per_token_logps": batch.log_probs,
            "ref_per_token_logps": anchor,
            "num_items_in_batch": batch.mask.sum(),
        },
    )
    now = models.token_logprobs(new, batch)
    ratio = (now - batch.log_probs).exp()[batch.mask]
    assert (ratio < 1 - CLIP[0]).any() and (ratio > 1 + CLIP[1]).any()  # both bounds are at work
    ours = O.token_policy_loss(now, batch.log_probs, advantages, batch.mask, CLIP, average, 9)
    ours = ours + beta * O.masked_mean(O.kl_k3(now, anchor), batch.mask, average, 9)
    same_gradients(ours, theirs, new, peer)
