"""Language policies: a causal language model as a policy over its tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlgenkit.divergences import kl_k3
from rlgenkit.records import Rollout, Rows

from .tokens import (
    TokenBatch,
    generate,
    load_language_model,
    pad_left,
    token_entropies,
    token_logprobs,
)
from .trainable import Trainable, make_trainable

Prompts = Sequence[str] | Sequence[Sequence[int]] | Tensor


@dataclass(frozen=True, eq=False)
class TokenPath:
    """The tokens of prompts and answers; steps Long[T]: the place in the answer of every choice."""

    batch: TokenBatch
    steps: Tensor

    def rows(self, rows: Rows) -> TokenPath:
        """Some answers, as wide as all."""
        return replace(self, batch=self.batch.index(rows))

    def columns(self, steps: Tensor) -> TokenPath:
        """Some choices."""
        return replace(self, steps=self.steps[steps])


@dataclass(frozen=True, eq=False)
class LanguagePolicy:
    """A language model whose choices are the tokens of its answers; see language_policy."""

    model: nn.Module
    tokenizer: Any
    trained: Trainable
    end: int
    pad: int
    new: int = 64
    temperature: float = 1.0
    chunk: int = 64

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters."""
        return self.trained.parameters

    def reference(self) -> AbstractContextManager[None]:
        """Inside, the policy is what it was before training."""
        return self.trained.reference()

    @torch.no_grad()
    def sample(
        self,
        prompts: Prompts,
        generator: torch.Generator | None,
        copies: int = 1,
        temperature: float | None = None,
        score: bool = True,
    ) -> Rollout:
        """`copies` answers to every prompt, neighbors, each prompt a group of its own.

        Texts are answered by texts, rows of ids (Long[B, P] or lists) by ids Long[B, T], padded
        behind the end token. temperature 0 takes the likeliest token (None: the policy's own).
        Without `score` the log-probs are nan: faster, for what is only looked at.
        """
        ids, real = (x.repeat_interleave(copies, 0) for x in self._encode(prompts))
        heat = self.temperature if temperature is None else temperature
        batch = generate(self.model, ids, self.new, generator, heat, self.end, self.pad, real, None, False)
        path = TokenPath(batch, torch.arange(batch.log_probs.shape[1]))
        scores = torch.cat(self._over(path, token_logprobs)) if score else batch.log_probs + torch.nan
        repeated = [prompt for prompt in prompts for _ in range(copies)]
        return Rollout(
            prompts=torch.stack(repeated) if isinstance(prompts, Tensor) else repeated,
            groups=torch.arange(len(ids)) // copies,
            output=self._texts(batch) if isinstance(repeated[0], str) else batch.answers.cpu(),
            log_probs=scores.cpu(),
            mask=batch.mask.cpu(),
            path=path,
        )

    def log_probs(self, rollout: Rollout) -> Tensor:
        """Log-probs [B, T] of the stored tokens; bit-equal to the stored ones until it is trained."""
        return self.replay(rollout)[0]

    def divergence(self, rollout: Rollout) -> Tensor:
        """k3 of every token against the reference: [B, T], 0 off the mask."""
        return self.replay(rollout, divergence=True)[1]

    @torch.no_grad()
    def entropies(self, rollout: Rollout) -> Tensor:
        """Entropy in nats [B, T] of the distribution behind every token, 0 off the mask."""
        found = torch.cat(self._over(rollout.path, token_entropies))
        return found[:, rollout.path.steps].cpu()

    def choices_at_once(self, rows: int) -> int:
        """All tokens of a row come from one pass."""
        return 2**31

    def replay(self, rollout: Rollout, divergence: bool = False) -> tuple[Tensor, Tensor | None]:
        """(log_probs [B, T], divergence [B, T] or None) from one pass."""
        path = rollout.path
        now = torch.cat(self._over(path, token_logprobs))[:, path.steps]
        if not divergence:
            return now, None
        with torch.no_grad(), self.reference():
            before = torch.cat(self._over(path, token_logprobs))[:, path.steps]
        return now, torch.where(rollout.mask.to(now.device), kl_k3(now, before), 0.0)

    def _over(self, path: TokenPath, what: Any) -> list[Tensor]:
        """`what`(model, batch) [b, T] in chunks of rows; equal rows of a chunk are computed once."""
        found = []
        for rows in torch.arange(len(path.batch.ids)).split(self.chunk):
            batch = path.batch.index(rows)
            both = torch.cat([batch.ids, batch.real.long()], 1)
            kinds, back = both.unique(dim=0, return_inverse=True)
            if len(kinds) == len(rows):
                found.append(what(self.model, batch))
                continue
            first = torch.full((len(kinds),), len(rows), device=back.device)
            place = torch.arange(len(rows), device=back.device)
            first.scatter_reduce_(0, back, place, "amin")
            found.append(what(self.model, batch.index(first))[back])
        return found

    def _encode(self, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """(ids Long[B, P], real Bool[B, P]) on the model's device."""
        device = next(self.model.parameters()).device
        if isinstance(prompts, Tensor):
            return prompts.to(device), torch.ones_like(prompts, dtype=torch.bool, device=device)
        if len(prompts) and isinstance(prompts[0], str):
            prompts = self.tokenizer(list(prompts)).input_ids
        return tuple(x.to(device) for x in pad_left(prompts, self.pad))

    def _texts(self, batch: TokenBatch) -> list[str]:
        rows = [answer[mask] for answer, mask in zip(batch.answers, batch.mask)]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]


def language_policy(
    source: str | Path | tuple[nn.Module, Any] | LanguagePolicy,
    *,
    rank: int = 0,
    new: int | None = None,
    temperature: float | None = None,
    chunk: int | None = None,
    seed: int = 0,
    top: int | None = None,
    end: int | None = None,
    pad: int | None = None,
    device: str = "cpu",
) -> LanguagePolicy:
    """A policy that answers with up to `new` tokens (64), drawn at `temperature` (1).

    source: a folder, a hub id, "smollm2-135m-instruct", (model, tokenizer), or a policy, whose
    settings are kept where none is given; models in memory are copied. rank 0 trains the whole
    network (or the adapter that it carries), else a LoRA drawn from `seed`, in the `top` last blocks
    only. chunk: rows of one pass (64). end, pad: token ids, the tokenizer's own where left out.
    """
    kept = {}
    if isinstance(source, LanguagePolicy):
        kept = {name: getattr(source, name) for name in ("end", "pad", "new", "temperature", "chunk")}
        source = (source.model, source.tokenizer)
    if isinstance(source, tuple):
        model, tokenizer = copy.deepcopy(source[0]), source[1]
    else:
        model, tokenizer = load_language_model(source, device)
    given = {"end": end, "pad": pad, "new": new, "temperature": temperature, "chunk": chunk}
    kept |= {name: value for name, value in given.items() if value is not None}
    if "end" not in kept:
        kept["end"] = tokenizer.eos_token_id
    if "pad" not in kept:
        pad = getattr(tokenizer, "pad_token_id", None)
        kept["pad"] = kept["end"] if pad is None else pad
    return LanguagePolicy(model, tokenizer, make_trainable(model, rank, seed, top=top), **kept)
