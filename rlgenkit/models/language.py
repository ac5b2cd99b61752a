"""Language policies: a causal model as a policy over its tokens, with or without pictures to see."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlgenkit.divergences import kl_k3
from rlgenkit.records import Rollout, Rows, picked

from .tokens import (
    TokenBatch,
    chosen,
    entropies,
    generate,
    load_language_model,
    pad_left,
    token_distributions,
)
from .trainable import Trainable, make_trainable
from .vision_language import (
    Views,
    answer_distributions,
    answer_texts,
    answer_views,
    load_vision_language,
    make_views,
)

Prompts = Sequence[str] | Sequence[Sequence[int]] | Sequence[tuple[Tensor, str]] | Tensor | Views
Measure = Callable[[Tensor, TokenBatch], Tensor]
"""fn(distributions [b, T, V], batch) -> [b, T]."""


@dataclass(frozen=True, eq=False)
class TokenPath:
    """The tokens of prompts and answers. steps Long[T]: the place in the answer of every choice;
    views: what was shown, and seen Long[B] which of them each answer is about; None for texts."""

    batch: TokenBatch
    steps: Tensor
    views: Views | None = None
    seen: Tensor | None = None

    def rows(self, rows: Rows) -> TokenPath:
        """Some answers, as wide as all."""
        seen = None if self.seen is None else self.seen[rows]
        return replace(self, batch=self.batch.index(rows), seen=seen)

    def columns(self, steps: Tensor) -> TokenPath:
        """Some choices."""
        return replace(self, steps=self.steps[steps])

    def over(self, model: nn.Module, chunk: int, what: Measure) -> Tensor:
        """what(distributions, batch) of all answers, [B, T] by `steps`, in passes of `chunk` rows."""
        one = _of_texts if self.views is None else _of_views
        parts = torch.arange(len(self.batch.ids)).split(chunk)
        return torch.cat([one(model, self.rows(rows), what) for rows in parts])[:, self.steps]


def _of_texts(model: nn.Module, path: TokenPath, what: Measure) -> Tensor:
    """Equal rows are computed once."""
    batch, length = path.batch, path.batch.ids.shape[1]
    kinds, back = torch.cat([batch.ids, batch.real.long()], 1).unique(dim=0, return_inverse=True)
    if len(kinds) == len(back):
        return what(token_distributions(model, batch), batch)
    ids, real = kinds[:, :length], kinds[:, length:].bool()
    few = replace(batch, ids=ids, real=real, log_probs=batch.log_probs[: len(kinds)])
    return what(token_distributions(model, few), few)[back]


def _of_views(model: nn.Module, path: TokenPath, what: Measure) -> Tensor:
    """The answers to a view share the pass over it where each view has as many, neighbors."""
    kinds, counts = path.seen.unique_consecutive(return_counts=True)
    even = len(kinds.unique()) == len(kinds) and bool((counts == counts[0]).all())
    views = path.views.index(kinds if even else path.seen)
    return what(answer_distributions(model, views, path.batch), path.batch)


@dataclass(frozen=True, eq=False)
class LanguagePolicy:
    """A language model whose choices are the tokens of its answers; see language_policy.

    processor: of a model that sees, else None.
    """

    model: nn.Module
    tokenizer: Any
    trained: Trainable
    end: int
    pad: int
    new: int = 64
    temperature: float = 1.0
    chunk: int = 64
    processor: Any = None

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
        behind the end token; pictures [3, H, W] with a request each, or `Views`, by texts.
        temperature 0 takes the likeliest token (None: the policy's own). Without `score` the
        log-probs are nan: faster, for what is only looked at.
        """
        heat = self.temperature if temperature is None else temperature
        path = self._answer(prompts, generator, copies, heat)
        batch = path.batch
        old = path.over(self.model, self.chunk, chosen) if score else batch.log_probs + torch.nan
        rows = torch.arange(len(prompts)).repeat_interleave(copies)
        ids = isinstance(prompts, Tensor) or path.views is None and not isinstance(prompts[0], str)
        return Rollout(
            prompts=picked(prompts, rows),
            groups=torch.arange(len(batch.ids)) // copies,
            output=batch.answers.cpu() if ids else answer_texts(self.tokenizer, batch),
            log_probs=old.cpu(),
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
        return rollout.path.over(self.model, self.chunk, entropies).cpu()

    def choices_at_once(self, rows: int) -> int:
        """All tokens of a row come from one pass."""
        return 2**31

    def replay(self, rollout: Rollout, divergence: bool = False) -> tuple[Tensor, Tensor | None]:
        """(log_probs [B, T], divergence [B, T] or None) from one pass."""
        now = rollout.path.over(self.model, self.chunk, chosen)
        if not divergence:
            return now, None
        with torch.no_grad(), self.reference():
            before = rollout.path.over(self.model, self.chunk, chosen)
        return now, torch.where(rollout.mask.to(now.device), kl_k3(now, before), 0.0)

    def _answer(
        self, prompts: Prompts, generator: torch.Generator | None, copies: int, heat: float
    ) -> TokenPath:
        """Draw `copies` answers to every prompt, all in one batch, without log-probs."""
        if isinstance(prompts, Views) or isinstance(prompts[0], tuple):
            views = prompts
            if not isinstance(prompts, Views):
                images, requests = zip(*prompts)
                views = make_views(self.model, self.processor, torch.stack(images), requests)
            batch = answer_views(
                self.model, views, self.new, generator, heat, self.end, self.pad, copies, False
            )
            seen = torch.arange(len(views)).repeat_interleave(copies)
            return TokenPath(batch, torch.arange(batch.log_probs.shape[1]), views, seen)
        ids, real = (x.repeat_interleave(copies, 0) for x in self._encode(prompts))
        batch = generate(
            self.model, ids, self.new, generator, heat, self.end, self.pad, real, score=False
        )
        return TokenPath(batch, torch.arange(batch.log_probs.shape[1]))

    def _encode(self, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """(ids Long[B, P], real Bool[B, P]) on the model's device."""
        device = next(self.model.parameters()).device
        if isinstance(prompts, Tensor):
            return prompts.to(device), torch.ones_like(prompts, dtype=torch.bool, device=device)
        if len(prompts) and isinstance(prompts[0], str):
            prompts = self.tokenizer(list(prompts)).input_ids
        return tuple(x.to(device) for x in pad_left(prompts, self.pad))


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
    given = {"end": end, "pad": pad, "new": new, "temperature": temperature, "chunk": chunk}
    model, tokenizer, kept = _found(source, load_language_model, device, given)
    trained = make_trainable(model, rank, seed, top=top)
    return LanguagePolicy(model, tokenizer, trained, **kept)


def vision_language_policy(
    source: str | Path | tuple[nn.Module, Any] | LanguagePolicy,
    *,
    rank: int = 0,
    new: int | None = None,
    temperature: float | None = None,
    chunk: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> LanguagePolicy:
    """A policy that answers requests about pictures, as `language_policy` does texts.

    source: a folder, a hub id, (model, processor), or a policy; models in memory are copied. rank 0
    trains the language side, never the eye: `freeze_views` may then be used on what it is shown.
    """
    given = {"new": new, "temperature": temperature, "chunk": chunk}
    model, processor, kept = _found(source, load_vision_language, device, given)
    kept["processor"] = processor
    speech = nn.ModuleList([model.model.language_model, model.lm_head])
    trained = make_trainable(model, rank, seed, speech)
    return LanguagePolicy(model, processor.tokenizer, trained, **kept)


SETTINGS = ("end", "pad", "new", "temperature", "chunk", "processor")


def _found(
    source: str | Path | tuple[nn.Module, Any] | LanguagePolicy,
    load: Callable[[str | Path, str], tuple[nn.Module, Any]],
    device: str,
    given: dict[str, Any],
) -> tuple[nn.Module, Any, dict[str, Any]]:
    """(model, tokenizer or processor, settings): loaded, or copied if in memory; settings not given
    are those of the policy that was copied, or the tokenizer's."""
    kept = {name: value for name, value in given.items() if value is not None}
    if isinstance(source, LanguagePolicy):
        kept = {name: getattr(source, name) for name in SETTINGS} | kept
        source = (source.model, source.processor or source.tokenizer)
    in_memory = isinstance(source, tuple)
    model, reader = source if in_memory else load(source, device)
    tokenizer = getattr(reader, "tokenizer", reader)
    if "end" not in kept:
        kept["end"] = tokenizer.eos_token_id
    if "pad" not in kept:
        pad = getattr(tokenizer, "pad_token_id", None)
        kept["pad"] = kept["end"] if pad is None else pad
    return copy.deepcopy(model) if in_memory else model, reader, kept
