"""Image policies: a denoising network with a sampler, as a policy over the sampler's steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlgenkit import samplers
from rlgenkit.divergences import anchor_terms, anchor_weights
from rlgenkit.records import Rollout, Rows
from rlgenkit.samplers import StepTable, Trajectory
from rlgenkit.worlds import Prompt

from .conditioning import Conditioning, embed
from .denoisers import denoiser
from .latents import decode
from .policy import Policy, load_policy
from .trainable import Trainable, make_trainable


@dataclass(frozen=True, eq=False)
class ImagePath:
    """The states of B pictures. steps Long[T]: the step of the table behind every choice; width
    Long[B]: the rows of the forward that drew each picture."""

    trajectory: Trajectory
    steps: Tensor
    width: Tensor

    def rows(self, rows: Rows) -> ImagePath:
        """Some pictures."""
        path = self.trajectory
        some = replace(
            path,
            latents=path.latents[:, rows],
            log_probs=path.log_probs[:, rows],
            final=path.final[rows],
        )
        return replace(self, trajectory=some, width=self.width[rows])

    def columns(self, steps: Tensor) -> ImagePath:
        """Some choices."""
        return replace(self, steps=self.steps[steps])


@dataclass(frozen=True, eq=False)
class ImagePolicy:
    """A text-to-image model whose choices are the stochastic steps of `table`; see image_policy."""

    model: Policy
    table: StepTable
    trained: Trainable
    guidance: float = 1.0
    chunk: int = 64
    anchor: str = "mean_dt"
    reduction: str = "mean"

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
        prompts: Sequence[str | Prompt],
        generator: torch.Generator,
        copies: int = 1,
        window: Iterable[int] | None = None,
    ) -> Rollout:
        """`copies` pictures of every prompt, neighbors, each prompt a group of its own.

        Output float32 [B, 3, H, W] in 0..1. window: the steps that stay stochastic (None: all).
        """
        prompts = [prompt for prompt in prompts for _ in range(copies)]
        cond, table = embed(self.model, _texts(prompts)), samplers.windowed(self.table, window)
        parts, images = [], []
        for rows in torch.arange(len(prompts)).split(self.chunk):
            noise = samplers.initial_noise(len(rows), self.model.latent_shape, generator)
            act = self._denoiser(cond.index(rows))
            parts.append(
                samplers.rollout(
                    act, table, noise.to(self.model.device), generator, reduction=self.reduction
                )
            )
            images.append(decode(self.model, parts[-1].final).cpu())
        path, acts = _joined(parts), torch.zeros(len(table), dtype=torch.bool)
        acts[samplers.acting_steps(table)] = True
        width = torch.cat([torch.full((len(x.final),), len(x.final)) for x in parts])
        return Rollout(
            prompts=prompts,
            groups=torch.arange(len(prompts)) // copies,
            output=torch.cat(images),
            log_probs=path.log_probs.T.cpu().contiguous(),
            mask=acts.repeat(len(prompts), 1),
            path=ImagePath(path, torch.arange(len(table)), width),
        )

    def log_probs(self, rollout: Rollout) -> Tensor:
        """Log-probs [B, T] of the stored choices; bit-equal to the stored ones until it is trained."""
        return self.replay(rollout)[0]

    def divergence(self, rollout: Rollout) -> Tensor:
        """How far each step's mean lies from the reference's, in the form of `anchor`: [B, T]."""
        return self.replay(rollout, divergence=True)[1]

    def choices_at_once(self, rows: int) -> int:
        """How many steps of so many rows one graph holds."""
        return max(1, self.chunk // rows)

    def replay(self, rollout: Rollout, divergence: bool = False) -> tuple[Tensor, Tensor | None]:
        """(log_probs [B, T], divergence [B, T] or None) from one pass; deterministic steps give 0."""
        cond, found = embed(self.model, _texts(rollout.prompts)), []
        for rows in torch.arange(len(rollout)).split(self.chunk):
            path, act = rollout.path.rows(rows), self._denoiser(cond.index(rows))
            # Alone the rows of one draw give the same bits; others may go through several steps at once.
            alone = bool((path.width == len(rows)).all())
            each = 1 if alone else self.choices_at_once(len(rows))
            parts = [self._steps(act, path, s, divergence) for s in _runs(path, each)]
            found.append([torch.cat(x).T for x in zip(*parts)])
        log_probs, penalty = (torch.cat(x) for x in zip(*found))
        return log_probs, penalty if divergence else None

    def _steps(
        self, act: samplers.Denoiser, path: ImagePath, steps: Tensor, divergence: bool
    ) -> tuple[Tensor, Tensor]:
        """(log_probs [k, b], divergence [k, b]) of steps that are stochastic all or not at all."""
        table, zero = path.trajectory.table, path.trajectory.log_probs[steps]
        if table.rows[int(steps[0])][2] == 0:
            return torch.zeros_like(zero), torch.zeros_like(zero)
        again = lambda: samplers.replay(  # noqa: E731
            act, path.trajectory, steps, together=True, reduction=self.reduction
        )
        log_probs, means = again()
        if not divergence:
            return log_probs, torch.zeros_like(zero)
        with torch.no_grad(), self.reference():
            _, reference = again()
        size = means[0, 0].numel()
        weights = anchor_weights(self.anchor, table.std, table.dt, table.b, size)
        return log_probs, anchor_terms(means, reference, weights[steps])

    def _denoiser(self, cond: Conditioning) -> samplers.Denoiser:
        return denoiser(self.model, cond, self.guidance)


def _runs(path: ImagePath, most: int) -> list[Tensor]:
    """The steps in runs of at most `most` that are all stochastic or all deterministic."""
    noisy = path.trajectory.table.stochastic[path.steps]
    cuts = (noisy[1:] != noisy[:-1]).nonzero().flatten() + 1
    return [run for part in path.steps.tensor_split(cuts) for run in part.split(most)]


def _texts(prompts: Sequence[str | Prompt]) -> list[str]:
    return [getattr(prompt, "text", prompt) for prompt in prompts]


def _joined(parts: Sequence[Trajectory]) -> Trajectory:
    """One trajectory of all rows."""
    if len(parts) == 1:
        return parts[0]
    axes = {"latents": 1, "log_probs": 1, "final": 0}
    whole = {k: torch.cat([getattr(x, k) for x in parts], axis) for k, axis in axes.items()}
    return replace(parts[0], **whole)


def image_policy(
    source: str | Path | Policy | ImagePolicy,
    *,
    table: StepTable | Callable[[Any], StepTable],
    rank: int = 0,
    guidance: float = 1.0,
    chunk: int = 64,
    anchor: str | None = None,
    reduction: str = "mean",
    seed: int = 0,
    device: str = "cpu",
) -> ImagePolicy:
    """A policy over the steps of `table`, a StepTable or a function of the model's scheduler.

    source: a folder, a hub id, or a model in memory, whose network is then copied. rank 0 trains the
    whole network (or the adapter that it carries), else a LoRA drawn from `seed`. chunk: rows of one
    forward. reduction of log-probs over latent numbers: "mean" or "sum". anchor: form of the
    divergence (see `anchor_weights`; None: the exact KL in the unit of the reduction).
    """
    if isinstance(source, ImagePolicy):
        source = source.model
    if isinstance(source, Policy):
        model = replace(source, network=copy.deepcopy(source.network))
    else:
        model = load_policy(source, device)
    if not isinstance(table, StepTable):
        table = table(model.scheduler)
    trained = make_trainable(model.network, rank, seed)
    anchor = anchor or ("exact" if reduction == "sum" else "mean_dt")
    return ImagePolicy(model, table, trained, guidance, chunk, anchor, reduction)
