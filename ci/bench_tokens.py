"""Tokens beside transformers and TRL, and a study by two processes beside one.

A GPT-2 of 4 layers and width 256 with random weights stands for both sides, in one process on one
thread: weights do not change the cost. Both draw at temperature 1 from the whole vocabulary, on
prompts of one length, eight answers each.
"""

import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from rlgenkit import models, optimizers
from rlgenkit.commands.places import ROOT

PROMPTS, COPIES, BEFORE, NEW, RATE = 8, 8, 32, 64, 1e-4
STUDIES = (100, 4000)  # updates of the template's study: its own, and as long as other studies
VOCABULARIES = {1024: 5, 50257: 2}  # a small one and GPT-2's, and timings of each


def tokenizer(words: int) -> Any:
    """A tokenizer of `words` tokens: padding, end and numbered words."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<end>", *(f"w{k}" for k in range(words - 2))]
    inner = Tokenizer(WordLevel({name: k for k, name in enumerate(names)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )


def network(words: int, width: int = 256, layers: int = 4) -> torch.nn.Module:
    """GPT-2 without dropout, in eval mode."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=words, n_embd=width, n_layer=layers, n_head=4, n_positions=256, bos_token_id=None,
        eos_token_id=1, pad_token_id=0, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def prompts(words: int) -> list[str]:
    """PROMPTS texts of BEFORE words."""
    rows = torch.randint(words - 2, (PROMPTS, BEFORE), generator=torch.Generator().manual_seed(1))
    return [" ".join(f"w{k}" for k in row) for row in rows.tolist()]


def reward(completions: list[str], **_: Any) -> list[float]:
    """How many of the words have an even last digit; TRL passes more than the texts."""
    return [sum(word[-1] in "02468" for word in text.split()) / NEW for text in completions]


def our_step(
    policy: models.LanguagePolicy, optimizer: torch.optim.Optimizer, texts: list[str], draw: Any
) -> None:
    """Draw, score, one update on the policy's own draws: the ratio is 1, so that the clipped loss
    has REINFORCE's gradient and no log-probs need be stored."""
    rollout = policy.sample(texts, draw, copies=COPIES, score=False)
    scores = torch.tensor(reward(rollout.output))
    advantages = optimizers.group_advantages(scores, rollout.groups)
    optimizers.policy_update(policy, optimizer, rollout, optimizers.reinforce(advantages))


def trl_trainer(model: torch.nn.Module, words: int, steps: int, folder: str, callback: Any) -> Any:
    """TRL's GRPO trainer on the CPU with the same batch, groups, lengths, rate and loss."""
    import trl
    from datasets import Dataset

    config = trl.GRPOConfig(
        output_dir=folder, use_cpu=True, bf16=False, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, gradient_checkpointing=False,
        activation_checkpointing=False, learning_rate=RATE, lr_scheduler_type="constant",
        per_device_train_batch_size=PROMPTS * COPIES, num_generations=COPIES, max_steps=steps,
        max_completion_length=NEW, beta=0.0, seed=0,
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": text} for text in prompts(words)])
    return trl.GRPOTrainer(
        model, reward, config, train_dataset=rows, processing_class=tokenizer(words),
        callbacks=[callback],
    )  # fmt: skip


def between(rivals: dict[str, Callable], spent: dict[str, list[float]]) -> Any:
    """A callback that times TRL's own steps and, behind each, the rivals once in turn."""
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            spent.setdefault("TRL, a step", []).append(time.process_time() - self.start)
            for name, call in rivals.items():
                start = time.process_time()
                call()
                spent.setdefault(name, []).append(time.process_time() - start)

    return Turns()


def tokens(words: int, repeats: int, **size: int) -> dict:
    """CPU seconds of generation and of a GRPO step, ours and the rivals', and their ratios."""
    for name in ("trl", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    model, reader, texts = network(words, **size), tokenizer(words), prompts(words)
    policy = models.language_policy((model, reader), new=NEW, chunk=PROMPTS * COPIES)
    own = models.language_policy(policy)
    optimizer = optimizers.make_optimizer(own.parameters, RATE, weight_decay=0.0)
    draw, ids = torch.Generator().manual_seed(0), torch.tensor(reader(texts).input_ids)
    many = ids.repeat_interleave(COPIES, 0)
    rivals = {
        "transformers, generate": lambda: model.generate(
            many, attention_mask=torch.ones_like(many), do_sample=True, top_k=0,
            max_new_tokens=NEW, pad_token_id=0,
        ),
        "ours, sample": lambda: policy.sample(texts, draw, copies=COPIES, score=False),
        "ours, sample with log-probs": lambda: policy.sample(texts, draw, copies=COPIES),
        "ours, a step": lambda: our_step(own, optimizer, texts, draw),
    }  # fmt: skip
    spent: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        peer = network(words, **size)
        trl_trainer(peer, words, repeats + 1, folder, between(rivals, spent)).train()
    return compared(spent)


def compared(spent: dict[str, list[float]]) -> dict:
    """Medians of the seconds (the first round warms up) and of the ratios to the rival."""
    kept = {name: values[1:] for name, values in spent.items()}
    against = {name: "TRL, a step" if "step" in name else "transformers, generate" for name in kept}
    return {
        name: {
            "seconds": round(statistics.median(values), 3),
            "ratio": round(
                statistics.median(a / b for a, b in zip(values, kept[against[name]])), 3
            ),
        }
        for name, values in kept.items()
    }


def study(steps: int, repeats: int = 1) -> dict:
    """Wall seconds of the template's study with `steps` updates by one process and by two, in turn,
    and their ratio."""
    spent: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for jobs, seconds in spent.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [
                    sys.executable,
                    "-m",
                    "rlgenkit",
                    "run",
                    "_template",
                    "--profile",
                    "study",
                ]
                command += [
                    "--jobs",
                    str(jobs),
                    "--out",
                    f"{folder}/run",
                    "-p",
                    "steps",
                    str(steps),
                ]
                start = time.perf_counter()
                subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
                seconds.append(time.perf_counter() - start)
    one, two = (statistics.median(seconds) for seconds in spent.values())
    ratio = statistics.median(a / b for a, b in zip(*spent.values()))
    return {"one process": round(one, 1), "two processes": round(two, 1), "ratio": round(ratio, 2)}
