"""You are the annotator: a person clicks pairs, the model trains, and its pictures follow.

`annotate` asks for rounds of pairs. After the last click of a round a callback of the notebook
trains on the labels, and pictures from noises that stay the same show what became of the model. A
simulated annotator answers when nobody is there, and whatever a person leaves to it. The figure is an
ordinary output, so a saved notebook keeps it without any widget state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .plots import strip
from .progress import headless
from .show import Picture, markdown, png, show
from .show import _close, _number
from .widgets import _small_png

ANSWERS = {"left": 1.0, "right": -1.0, "tie": 0.0}

Pairs = tuple[Tensor, Tensor, Sequence[str]]
"""Left and right pictures [P, 3, H, W] in [0, 1] and what was asked for, P texts."""


@dataclass
class Annotation:
    """Rounds of labeled pairs and the pictures between them; advanced by `answer` and `learn`.

    draw() -> Pairs of the present model; annotator(left, right) -> labels [P] of the simulated person;
    train(labels [P]) updates the model on the pairs drawn last; look() -> pictures [M, 3, H, W] from
    fixed noises. Labels are 1 left, -1 right, 0 tie.
    """

    draw: Callable[[], Pairs]
    annotator: Callable[[Tensor, Tensor], Tensor]
    train: Callable[[Tensor], Any]
    look: Callable[[], Tensor]
    rounds: int
    titles: Sequence[str]
    labels: list[Tensor] = field(default_factory=list)
    simulated: list[Tensor] = field(default_factory=list)
    pictures: list[Tensor] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    clicks: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        self.pictures.append(self.look().detach().cpu())
        if len(self.pictures[0]) != len(self.titles):
            raise ValueError(
                f"{len(self.pictures[0])} pictures need as many titles, got {len(self.titles)}"
            )
        self._next()

    def _next(self) -> None:
        left, right, asked = self.draw()
        if left.shape != right.shape or len(left) != len(asked) or len(left) == 0:
            raise ValueError(
                f"draw() must return equally many pictures and texts, got "
                f"{list(left.shape)}, {list(right.shape)} and {len(asked)} texts"
            )
        self.pairs, self.answers = (left.cpu(), right.cpu(), list(asked)), []
        self.simulated.append(self.annotator(left, right).detach().cpu().float())

    @property
    def done(self) -> bool:
        return len(self.labels) == self.rounds

    @property
    def complete(self) -> bool:
        """All pairs of the round are answered; `learn` is next."""
        return len(self.answers) == len(self.pairs[0])

    def answer(self, label: float) -> None:
        """A person's label for the next pair."""
        if label not in (1.0, 0.0, -1.0):
            raise ValueError(f"a label is 1 (left), -1 (right) or 0 (tie), not {label}")
        if self.done or self.complete:
            raise ValueError("every pair of this round is answered: learn from them first")
        self.answers.append(float(label))
        self.clicks += 1

    def undo(self) -> None:
        """Take the last answer of this round back."""
        if self.answers:
            self.answers.pop()
            self.clicks -= 1

    def leave(self) -> None:
        """Let the simulated annotator answer the rest of the round."""
        self.answers += self.simulated[-1][len(self.answers) :].tolist()

    def learn(self) -> None:
        """Train on the labels of the round, look at the model, and draw the next pairs."""
        if not self.complete or self.done:
            raise ValueError("there are pairs without an answer in this round")
        labels = torch.tensor(self.answers)
        self.train(labels)
        self.labels.append(labels)
        self.pictures.append(self.look().detach().cpu())
        if not self.done:
            self._next()

    def agreement(self) -> float:
        """Share of all labels that equal the simulated annotator's; nan before the first round."""
        same = [a == b for a, b in zip(self.labels, self.simulated)]
        return torch.cat(same).float().mean().item() if same else float("nan")

    def picture(self) -> Picture:
        """The looks at the model so far: a row per title, a column per round."""
        heads = ["before", *(f"round {k + 1}" for k in range(len(self.pictures) - 1))]
        figure = strip(torch.stack(self.pictures, 1), self.titles, heads).figure
        moved = [(p - self.pictures[0]).abs().mean().item() for p in self.pictures]
        words = ", ".join(f"{h} {m:.3f}" for h, m in zip(heads[1:], moved[1:])) or "none yet"
        return Picture(
            figure,
            f"Pictures of the model from the same noises ({'; '.join(self.titles)}) "
            f"before and after each of {len(self.labels)} rounds of labels; mean change "
            f"of a pixel since the start: {words}.",
        )


def annotate(
    draw: Callable[[], Pairs],
    annotator: Callable[[Tensor, Tensor], Tensor],
    train: Callable[[Tensor], Any],
    look: Callable[[], Tensor],
    titles: Sequence[str],
    caption: str,
    rounds: int = 3,
    question: str = "Which one is better?",
) -> Annotation:
    """Ask a person for `rounds` rounds of labels and train on each; see `Annotation` for the callbacks.

    Without a person the simulated annotator answers everything and the call returns when all is done.
    With one it returns at once; the buttons do the rest, and the figure below them follows.
    """
    session = Annotation(draw, annotator, train, look, rounds, titles)
    if headless():
        while not session.done:
            session.leave()
            session.learn()
        print(f"{sum(map(len, session.labels))} pairs labeled by the simulated annotator")
        show(session.picture(), caption=caption)
    else:
        _panel(session, question, _figure(session.picture(), caption))
    return session


def _figure(picture: Picture, caption: str) -> Callable[[Picture], None]:
    """Show the picture as an output that can be replaced; returns the function that replaces it."""
    from IPython.display import display

    def bundle(new: Picture) -> tuple[dict, dict]:
        data = {"image/png": png(new.figure), "text/plain": new.alt}
        _close(new.figure)
        return data, {"image/png": {"alt": new.alt}}

    data, extra = bundle(picture)
    handle = display(data, metadata=extra, raw=True, display_id=True)
    markdown(f"*{_number(caption)[0]}: {caption}*")

    def replace(new: Picture) -> None:
        data, extra = bundle(new)
        if handle is not None:
            handle.update(data, metadata=extra, raw=True)

    return replace


def _panel(session: Annotation, question: str, replace: Callable[[Picture], None]) -> Any:
    """Show the buttons for a session; returns the box that holds them (children: line, pair, buttons)."""
    import ipywidgets
    from IPython.display import display

    images = [ipywidgets.Image(format="png", width=192) for _ in range(2)]
    line = ipywidgets.Label()
    buttons = {
        name: ipywidgets.Button(description=name)
        for name in (*ANSWERS, "undo", "leave the rest to the annotator")
    }

    def refresh(note: str = "") -> None:
        at, total = len(session.answers), len(session.pairs[0])
        busy = session.done or session.complete or bool(note)
        for button in buttons.values():
            button.disabled = busy
        buttons["undo"].disabled = busy or at == 0
        for image, side in zip(images, session.pairs[:2]):
            image.value = b"" if session.done or session.complete else _small_png(side[at])
        line.value = note or _words(session, question, at, total)

    def step(change: Callable[[], None]) -> None:
        try:
            change()
            if session.complete and not session.done:
                refresh("training on your labels ...")
                session.learn()
                replace(session.picture())
            refresh()
        except Exception as error:  # a callback's error would vanish in the log of the kernel
            refresh(f"stopped: {type(error).__name__}: {error}")
            raise

    for name, value in ANSWERS.items():
        buttons[name].on_click(lambda _, value=value: step(lambda: session.answer(value)))
    buttons["undo"].on_click(lambda _: step(session.undo))
    buttons["leave the rest to the annotator"].on_click(lambda _: step(session.leave))
    refresh()
    box = ipywidgets.VBox([line, ipywidgets.HBox(images), ipywidgets.HBox(list(buttons.values()))])
    display(box)
    return box


def _words(session: Annotation, question: str, at: int, total: int) -> str:
    if session.done:
        return (
            f"done: {session.clicks} labels by you, {session.agreement():.0%} of all labels equal "
            "the simulated annotator's"
        )
    return (
        f"round {len(session.labels) + 1} of {session.rounds}, pair {at + 1} of {total}, "
        f"asked for: {session.pairs[2][at]}. {question}"
    )
