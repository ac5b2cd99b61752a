"""Exercises that check themselves: the reference is compared on random inputs, known mistakes
are recognized and answered with their hint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .progress import headless
from .show import markdown

Function = Callable[..., Any]


@dataclass(frozen=True)
class Outcome:
    """Result of a check; a stub is "not yet", which is no failure."""

    status: Literal["pass", "wrong", "not yet"]
    message: str


@dataclass(frozen=True)
class Check:
    """An exercise.  inputs(generator) -> list of arguments; tensors among them that require
    gradients have their gradients compared as well, which finds a missing detach.

    wrong: hint -> a function with the mistake that the hint is about.  A mistake that the inputs
    cannot tell from the reference raises ValueError at once.
    """

    reference: Function
    inputs: Callable[[torch.Generator], Sequence[Any]]
    wrong: Mapping[str, Function] = field(default_factory=dict)
    tolerance: float = 1e-5
    trials: int = 3

    def __post_init__(self) -> None:
        right = self._answers(self.reference)
        for hint, function in self.wrong.items():
            if self._same(self._answers(function), right):
                raise ValueError(f"the inputs do not tell the mistake {hint!r} from the reference")

    def __call__(self, student: Function) -> None:
        """Print whether the student's function passes, or a hint."""
        print(self.outcome(student).message)

    def outcome(self, student: Function) -> Outcome:
        """Compare on `trials` random inputs; never raises for what the student's code does."""
        right = self._answers(self.reference)
        try:
            answers = self._answers(student)
        except NotImplementedError:
            return Outcome("not yet", "not yet: fill in the function and run this cell again")
        except Exception as error:  # whatever it is, it is the student's to see, not a crash
            return Outcome("wrong", f"your function raised {type(error).__name__}: {error}")
        if any(None in answer for answer in map(_kinds, answers)):
            return Outcome("not yet", "not yet: the function returns None")
        if self._same(answers, right):
            return Outcome("pass", f"correct on {self.trials} random inputs")
        for hint, function in self.wrong.items():
            if self._same(answers, self._answers(function)):
                return Outcome("wrong", f"not quite: {hint}")
        return Outcome("wrong", self._difference(answers[0], right[0]))

    def _answers(self, function: Function) -> list[list[Any]]:
        """Per trial the outputs of `function`, then the gradients of its inputs."""
        return [_outputs(function, self.inputs(torch.Generator().manual_seed(k)), k)
                for k in range(self.trials)]

    def _same(self, a: list[list[Any]], b: list[list[Any]]) -> bool:
        return all(len(x) == len(y) and all(self._close(p, q) for p, q in zip(x, y))
                   for x, y in zip(a, b))

    def _close(self, a: Any, b: Any) -> bool:
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            return bool(type(a) is type(b) and a == b)
        return a.shape == b.shape and torch.allclose(
            a.double(), b.double(), rtol=self.tolerance, atol=self.tolerance, equal_nan=True)

    def _difference(self, mine: list[Any], right: list[Any]) -> str:
        shapes = [list(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in mine]
        wanted = [list(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in right]
        if shapes != wanted:
            return f"not quite: the shapes are {shapes}, expected {wanted}"
        for a, b in zip(mine, right):
            if not self._close(a, b):
                if not isinstance(a, Tensor):
                    return f"not quite: {a!r}, expected {b!r}"
                a, b = a.double().flatten(), b.double().flatten()
                k = int((a - b).abs().nan_to_num(float("inf")).argmax())
                return f"not quite: entry {k} is {a[k].item():.4g}, expected {b[k].item():.4g}"
        return "not quite: it differs on some of the random inputs"


def check(number: str, student: Function, exercise: Check) -> None:
    """Print the outcome of exercise `number`, "01.2"; a stub gets "not yet"."""
    print(f"Exercise {number}: {exercise.outcome(student).message}")


def predict(question: str, options: Sequence[str], answer: int, why: str) -> dict[str, int]:
    """Predict, then run: ask, keep the guess, tell the answer.  answer: index into options.

    Returns a dict that holds "guess" once the reader clicked.  Without a front end the question
    and, folded away, the answer are shown.
    """
    if not 0 <= answer < len(options):
        raise ValueError(f"answer {answer} is no index into {len(options)} options")
    guess: dict[str, int] = {}
    lines = [f"**Predict first.** {question}", "", *(f"- {option}" for option in options)]
    if headless():
        folded = f"<details><summary>Answer</summary>\n\n**{options[answer]}**. {why}\n\n</details>"
        markdown("\n".join([*lines, "", folded]))
        return guess
    import ipywidgets
    from IPython.display import display

    reply = ipywidgets.HTML()
    choice = ipywidgets.RadioButtons(options=list(options), index=None)

    def answered(change: dict[str, Any]) -> None:
        guess["guess"] = change["new"]
        word = "Right" if change["new"] == answer else f"It is: {options[answer]}"
        reply.value = f"<b>{word}.</b> {why}"

    choice.observe(answered, names="index")
    display(ipywidgets.VBox([ipywidgets.HTML(f"<b>Predict first.</b> {question}"), choice, reply]))
    return guess


def _outputs(function: Function, arguments: Sequence[Any], seed: int) -> list[Any]:
    """Flat outputs, then gradients of a fixed random mix of them, zeros where none flows."""
    arguments = [a.detach().clone().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a
                 for a in arguments]
    result = function(*arguments)
    outputs = list(result) if isinstance(result, (tuple, list)) else [result]
    leaves = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    live = [o for o in outputs if isinstance(o, Tensor) and o.requires_grad]
    gradients = [torch.zeros_like(leaf) for leaf in leaves]
    if leaves and live:
        mix = torch.Generator().manual_seed(1000 + seed)
        total = sum((o * torch.randn(o.shape, generator=mix, dtype=o.dtype)).sum() for o in live)
        found = torch.autograd.grad(total, leaves, allow_unused=True)
        gradients = [z if g is None else g for g, z in zip(found, gradients)]
    # A float and a tensor without axes are the same answer.
    plain = [torch.as_tensor(float(o)) if isinstance(o, (float, int)) else
             o.detach() if isinstance(o, Tensor) else o for o in outputs]
    return [*plain, *gradients]


def _kinds(answer: list[Any]) -> list[Any]:
    return [None if value is None else type(value) for value in answer]
