"""A text policy that writes in a closed vocabulary: a small model of word ids, or a real language model
whose tokens are read back as words. Rewards and judges of short texts then see word ids either way."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .tokens import TokenBatch, generate, load_language_model, pad_left, pad_right, token_logprobs

PAD, END, BLANK = 0, 1, 2  # the first three names of every vocabulary


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
    names: Sequence[str], generator: torch.Generator, path: str | Path, device: str = "cpu"
) -> Writer:
    """The language model at `path` (folder or hub id), read back in the vocabulary `names`."""
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
