"""Exercises that check themselves, and questions to answer before an experiment.

References, known mistakes, hints and answers stand in notebooks/checks/<slug>.py, so that the
notebook holds none of them: there `wb.check("01.2", clipped_terms)` and `wb.predict("01.q1")`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .diagnosis import Answer, difference, same
from .progress import headless, kernel
from .provenance import ROOT
from .show import markdown, safe

FOLDER = ROOT / "notebooks" / "checks"
MAX_DIFFICULTY = 5
Function = Callable[..., Any]


class Outcome(NamedTuple):
    """Result of a check: "pass", "wrong", or "not yet" for a stub, which is no failure."""

    status: str
    message: str


@dataclass(frozen=True)
class Exercise:
    """A function to write.  inputs(generator) -> list of arguments; tensors among them that require
    gradients have their gradients compared as well, which finds a missing detach.

    wrong: hint -> a function with the mistake that the hint is about.  A mistake that the inputs
    cannot tell from the reference raises ValueError at once.  hints: shown folded, one after the
    other.  difficulty: 1 to 5.
    """

    reference: Function
    inputs: Callable[[torch.Generator], Sequence[Any]]
    wrong: Mapping[str, Function] = field(default_factory=dict)
    tolerance: float = 1e-5
    trials: int = 3
    hints: Sequence[str] = ()
    minutes: int = 0
    difficulty: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.difficulty <= MAX_DIFFICULTY:
            raise ValueError(f"difficulty is 1 to {MAX_DIFFICULTY}, not {self.difficulty}")
        right = self._answers(self.reference)
        for hint, function in self.wrong.items():
            if same(self._answers(function), right, self.tolerance):
                raise ValueError(f"the inputs do not tell the mistake {hint!r} from the reference")

    def outcome(self, student: Function) -> Outcome:
        """Compare on `trials` random inputs; never raises for what the student's code does."""
        if student is self.reference:
            return Outcome("wrong", "this is the reference itself: write a function of your own")
        right = self._answers(self.reference)
        try:
            answers = self._answers(student)
        except NotImplementedError:
            return Outcome("not yet", "not yet: fill in the function and run this cell again")
        except Exception as error:  # whatever it is, it is the student's to see, not a crash
            return Outcome("wrong", f"your function raised {type(error).__name__}: {error}")
        if any(value is None for answer in answers for value in answer.outputs):
            return Outcome("not yet", "not yet: the function returns None")
        if same(answers, right, self.tolerance):
            return Outcome("pass", f"correct on {self.trials} random inputs")
        for hint, function in self.wrong.items():
            if same(answers, self._answers(function), self.tolerance):
                return Outcome("wrong", f"not quite: {hint}")
        return Outcome("wrong", f"not quite: {difference(answers, right, self.tolerance)}")

    def _answers(self, function: Function) -> list[Answer]:
        return [
            _answer(function, self.inputs(torch.Generator().manual_seed(k)), k)
            for k in range(self.trials)
        ]


Check = Exercise  # as notebooks call it that still hold their references themselves


@dataclass(frozen=True)
class Quiz:
    """A question to answer before the experiment.  answer: index into options; why: one or two
    sentences, shown after the guess; holds(seed): whether the answer is right at that seed, for the
    test that asks many."""

    question: str
    options: Sequence[str]
    answer: int
    why: str
    holds: Callable[[int], bool] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.answer < len(self.options):
            raise ValueError(f"answer {self.answer} is no index into {len(self.options)} options")


def check(number: str, student: Function, exercise: Exercise | None = None) -> None:
    """Print the outcome of exercise `number`, "01.2"; a stub gets "not yet", with folded hints.

    Without `exercise` it comes from notebooks/checks/<slug>.py of the notebook that is running.
    """
    if exercise is None:
        exercise = _entry("EXERCISES", number, sys._getframe(1).f_globals)
        outcome = exercise.outcome(student)
    else:  # a notebook that holds its reference itself shows it as the solution, too
        outcome = exercise.outcome(lambda *arguments: student(*arguments))
    about = f"{exercise.minutes} minutes" if exercise.minutes else ""
    if exercise.difficulty:
        about += f", difficulty {exercise.difficulty} of {MAX_DIFFICULTY}"
    print(f"Exercise {number}{about and f' ({about})'}: {outcome.message}")
    if outcome.status != "pass" and exercise.hints and kernel() is not None:
        hints = (_folded(f"Hint {k}", hint) for k, hint in enumerate(exercise.hints, 1))
        markdown("\n\n".join(hints), html=True)


def predict(
    question: str,
    options: Sequence[str] = (),
    answer: int = -1,
    why: str = "",
) -> dict[str, int]:
    """Predict, then run: ask, keep the guess, tell the answer.

    question: the quiz's number, "01.q1", in notebooks/checks/<slug>.py of the notebook that is
    running; or the question itself, with options, the index of the answer, and why.  Returns a
    dict that holds "guess" once the reader clicked.  The question and its options stay readable in
    a saved notebook; without a front end the answer follows, folded away.
    """
    if options:
        quiz = Quiz(question, options, answer, why)
    else:
        quiz = _entry("QUIZZES", question, sys._getframe(1).f_globals)
    lines = [f"**Predict first.** {quiz.question}", "", *(f"- {x}" for x in quiz.options)]
    text = safe("\n".join(lines))
    if not headless():
        return _ask(quiz, text)
    answered = _folded("Answer", f"**{quiz.options[quiz.answer]}**. {quiz.why}")
    markdown(f"{text}\n\n{answered}", html=True)
    return {}


def _ask(quiz: Quiz, text: str) -> dict[str, int]:
    """Buttons for a guess over their static twin, which learns the guess and the answer."""
    import ipywidgets
    from IPython.display import display

    guess: dict[str, int] = {}
    choice = ipywidgets.RadioButtons(options=list(quiz.options), index=None, description="My guess")
    display(choice)
    twin = display({"text/markdown": text, "text/plain": text}, raw=True, display_id=True)

    def answered(change: dict[str, Any]) -> None:
        guess["guess"] = change["new"]
        right = change["new"] == quiz.answer
        verdict = "Right." if right else f"It is: {quiz.options[quiz.answer]}."
        guessed = f"My guess: {quiz.options[change['new']]}. **{verdict}** {quiz.why}"
        said = f"{text}\n\n{safe(guessed)}"
        twin.update({"text/markdown": said, "text/plain": said}, raw=True)

    choice.observe(answered, names="index")
    return guess


def _folded(summary: str, text: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{safe(text)}\n\n</details>"


def checks_file(notebook: str) -> Path:
    """Where exercises of the notebook with this stem stand: "01_ddpo" -> checks/ddpo.py."""
    return FOLDER / f"{notebook.split('_', 1)[-1]}.py"


def load_checks(notebook: str) -> dict[str, Mapping[str, Any]]:
    """{"EXERCISES": number -> Exercise, "QUIZZES": number -> Quiz} of a notebook's checks file.

    FileNotFoundError with one sentence where there is none.
    """
    path = checks_file(notebook)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no notebooks/checks/{path.name}, which would hold the "
            f"exercises of {notebook}"
        )
    return _run_checks(path, path.stat().st_mtime_ns)


@cache
def _run_checks(path: Path, changed: int) -> dict[str, Mapping[str, Any]]:
    """Run the file; once as long as it stays as it is."""
    spec = importlib.util.spec_from_file_location(f"checks_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {kind: getattr(module, kind, {}) for kind in ("EXERCISES", "QUIZZES")}


def _entry(kind: str, number: str, namespace: Mapping[str, Any]) -> Any:
    """Exercise or quiz `number` of the notebook whose namespace this is."""
    notebook = namespace.get("_rlgenkit_notebook")
    if notebook is None:
        raise ValueError("run the cell with wb.parameters first: it says whose exercises these are")
    entries = load_checks(notebook)[kind]
    if number not in entries:
        word = "exercise" if kind == "EXERCISES" else "quiz"
        raise ValueError(
            f"notebooks/checks/{checks_file(notebook).name} has no {word} {number}; "
            f"it has {', '.join(entries) or 'none'}"
        )
    return entries[number]


def _answer(function: Function, arguments: Sequence[Any], seed: int) -> Answer:
    """Flat outputs, and gradients of a fixed random mix of them, zeros where none flows."""
    leaves, fresh = [], []
    for a in arguments:
        if isinstance(a, Tensor):
            wanted, a = a.requires_grad, a.detach().clone()
            leaves += [a.requires_grad_()] if wanted else []
        fresh.append(a)
    result = function(*fresh)
    outputs = list(result) if isinstance(result, (tuple, list)) else [result]
    live = [o for o in outputs if isinstance(o, Tensor) and o.requires_grad]
    gradients = [torch.zeros_like(leaf) for leaf in leaves]
    if leaves and live:
        mix = torch.Generator().manual_seed(1000 + seed)
        total = sum((o * torch.randn(o.shape, generator=mix, dtype=o.dtype)).sum() for o in live)
        found = torch.autograd.grad(total, leaves, allow_unused=True)
        gradients = [z if g is None else g for g, z in zip(found, gradients)]
    plain = []  # a float and a tensor without axes are the same answer
    for o in outputs:
        o = torch.as_tensor(float(o)) if isinstance(o, (float, int)) else o
        plain.append(o.detach() if isinstance(o, Tensor) else o)
    sizes = {n for a in arguments if isinstance(a, Tensor) for n in (*a.shape, a.numel())}
    return Answer(plain, gradients, sizes - {0, 1})
