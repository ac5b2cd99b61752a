"""A text policy that writes in a closed vocabulary: a small window model, or a real language model whose
tokens are read back as words. Rewards and judges of short texts then see word ids either way."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tokens import TokenBatch, generate, load_language_model, pad_left, pad_right, token_logprobs

PAD, END, BLANK = 0, 1, 2  # the first three names of every vocabulary, as in worlds.reviews


class WindowLM(nn.Module):
    """The next word from the last `window` ones (Bengio et al. 2003), with the interface of
    transformers' causal models: ids Long[B, L] -> logits [B, L, words]. Id 0 is padding."""

    def __init__(
        self, words: int, generator: torch.Generator, width: int = 64, window: int = 3
    ) -> None:
        super().__init__()
        draw = partial(torch.randn, generator=generator)
        self.window = window
        self.place = nn.Parameter(0.1 * draw(window, words, width))
        self.out = nn.Parameter(0.1 * draw(words, width))
        self.bias = nn.Parameter(torch.zeros(words))

    def forward(
        self,
        ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Tensor | None = None,
        use_cache: bool = False,
    ) -> SimpleNamespace:
        """past_key_values are the last `window` ids; attention_mask and position_ids change nothing."""
        n = ids.shape[1]
        seen = ids if past_key_values is None else torch.cat([past_key_values, ids], 1)
        wide = F.pad(seen, (self.window, 0))
        end = wide.shape[1]
        hidden = sum(table[wide[:, end - n - k : end - k]] for k, table in enumerate(self.place))
        return SimpleNamespace(
            logits=hidden.tanh() @ self.out.T + self.bias, past_key_values=seen[:, -self.window :]
        )


@dataclass(frozen=True)
class Writer:
    """model: the policy; names: words by id, beginning with pad, end and blank; tokenizer: None where
    token ids are word ids; end, pad: token ids."""

    model: nn.Module
    names: tuple[str, ...]
    tokenizer: Any = None
    end: int = END
    pad: int = PAD
    number: dict[str, int] = field(default_factory=dict, repr=False)


def make_writer(
    names: Sequence[str], generator: torch.Generator, path: str | Path = "", device: str = "cpu"
) -> Writer:
    """An untrained WindowLM over `names`, or the language model at `path` (folder or hub id)."""
    if not path:
        return Writer(WindowLM(len(names), generator).to(device), tuple(names))
    model, tokenizer = load_language_model(path, device)
    end = tokenizer.eos_token_id
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return Writer(model, tuple(names), tokenizer, end, pad, {w: i for i, w in enumerate(names)})


def encode(writer: Writer, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Token ids of rows of word ids, each behind a start token (the end token)."""
    if writer.tokenizer is None:
        return [[writer.end, *row] for row in rows]
    lines = [" ".join(writer.names[w] for w in row) for row in rows]
    return [
        [writer.end, *writer.tokenizer(line, add_special_tokens=False).input_ids] for line in lines
    ]


def whole_texts(writer: Writer, rows: Sequence[Sequence[int]]) -> TokenBatch:
    """Rows of word ids as answers to the start token, the end token included, on the model's device;
    without log-probs (0)."""
    found = pad_right([row + [writer.end] for row in encode(writer, rows)], writer.pad)
    device = next(writer.model.parameters()).device
    ids, real = (t.to(device) for t in found)
    return TokenBatch(ids, real, torch.zeros(ids[:, 1:].shape, device=device), 1.0)


def prompts(
    writer: Writer, rows: Sequence[Sequence[int]], copies: int = 1
) -> tuple[Tensor, Tensor]:
    """(ids Long[B, P], real Bool[B, P]) of rows of word ids, each `copies` times, neighbors."""
    ids, real = pad_left(encode(writer, rows), writer.pad)
    device = next(writer.model.parameters()).device
    return tuple(t.repeat_interleave(copies, 0).to(device) for t in (ids, real))


def chat(writer: Writer, texts: Sequence[str], system: str) -> tuple[Tensor, Tensor]:
    """(ids Long[B, P], real Bool[B, P]) of a user's texts behind a system text, by the chat template of
    the writer's tokenizer, ready for the answer."""
    said = [
        [{"role": "system", "content": system}, {"role": "user", "content": text}] for text in texts
    ]
    rows = writer.tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True)
    ids, real = pad_left(rows.input_ids, writer.pad)
    device = next(writer.model.parameters()).device
    return ids.to(device), real.to(device)


def words_of(writer: Writer, batch: TokenBatch) -> Tensor:
    """Word ids Long[B, L] on the CPU of prompts and answers; words outside the names are blanks."""
    if writer.tokenizer is None:
        return batch.ids.cpu()
    lines = writer.tokenizer.batch_decode(batch.ids, skip_special_tokens=True)
    found = [re.findall(r"[a-z]+(?:'[a-z]+)*|[^\sa-z]", line.lower()) for line in lines]
    rows = [[writer.number.get(word, BLANK) for word in words] + [END] for words in found]
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def as_text(writer: Writer, words: Tensor) -> list[str]:
    """Rows of word ids Long[B, L] as readable lines, without padding, end and blanks."""
    return [" ".join(writer.names[w] for w in row if w > BLANK) for row in words.tolist()]


def surprise(writer: Writer, batch: TokenBatch) -> Tensor:
    """Mean negative log-likelihood per token (scalar) of the batch's answers under the writer's model;
    blanks of a window model's vocabulary are left out."""
    mask = batch.mask
    if writer.tokenizer is None:
        mask = mask & (batch.answers != BLANK)
    logs = torch.where(mask, token_logprobs(writer.model, batch), 0.0)
    return -logs.sum() / mask.sum()


def learn(
    writer: Writer,
    rows: Sequence[Sequence[int]],
    steps: int,
    rate: float,
    generator: torch.Generator,
    batch: int = 64,
) -> None:
    """Maximum likelihood on random rows of word ids, AdamW with a one-cycle rate.

    A window model takes all rows and never learns to write a blank; a real one, which would, is given
    the rows without.
    """
    if steps < 3:
        raise ValueError(f"steps must be at least 3, for a way up and one down, got {steps}")
    usable = [row for row in rows if writer.tokenizer is None or BLANK not in row]
    corpus = whole_texts(writer, usable)
    optimizer = torch.optim.AdamW(writer.model.parameters(), rate, (0.9, 0.98), weight_decay=0.3)
    slow = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, steps, pct_start=max(0.1, 2 / steps)
    )
    for _ in range(steps):
        some = torch.randint(len(corpus.ids), (batch,), generator=generator).to(corpus.ids.device)
        optimizer.zero_grad()
        surprise(writer, corpus.index(some)).backward()
        optimizer.step()
        slow.step()


def imitate(
    writer: Writer,
    optimizer: torch.optim.Optimizer,
    batch: TokenBatch,
    steps: int,
    chunk: int = 256,
) -> None:
    """`steps` optimizer steps of maximum likelihood on the batch's answers, at temperature 1 whatever
    they were drawn at; the loss is the mean over all tokens, whatever the chunk."""
    batch, total = replace(batch, temperature=1.0), batch.mask.sum()
    for _ in range(steps):
        optimizer.zero_grad()
        for rows in torch.arange(len(batch.ids), device=batch.ids.device).split(chunk):
            (-token_logprobs(writer.model, batch.index(rows)).sum() / total).backward()
        optimizer.step()


def write(
    writer: Writer,
    rows: Sequence[Sequence[int]],
    copies: int,
    new: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    chunk: int = 256,
    model: nn.Module | None = None,
) -> tuple[TokenBatch, Tensor]:
    """(batch, words Long[B, L]): `copies` answers of up to `new` tokens to each of the rows of word ids,
    neighbors, by the writer's model or another one; the log-probs are left at 0."""
    ids, real = prompts(writer, rows, copies)
    model, ends = model or writer.model, (writer.end, writer.pad)
    batch = generate(model, ids, new, generator, temperature, *ends, real, score=False)
    return batch, words_of(writer, batch)


@torch.no_grad()
def log_probs(
    writer: Writer, batch: TokenBatch, chunk: int = 256, model: nn.Module | None = None
) -> Tensor:
    """Log-probs [B, T] of the answers at temperature 1 under the writer's model or another one, without
    a graph."""
    batch = replace(batch, temperature=1.0)
    parts = torch.arange(len(batch.ids), device=batch.ids.device).split(chunk)
    return torch.cat([token_logprobs(model or writer.model, batch.index(rows)) for rows in parts])
