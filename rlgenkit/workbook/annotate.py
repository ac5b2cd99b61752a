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
from .show import Picture, bundle, markdown, number_of, show
from .widgets import Labels, Panel

Pairs = tuple[Tensor, Tensor, Sequence[str]]
"""Left and right pictures [P, 3, H, W] in [0, 1] and what was asked for, P texts."""


@dataclass
class Annotation:
    """Rounds of labeled pairs and the pictures between them; `learn` goes from one to the next.

    draw() -> Pairs of the present model; annotator(left, right) -> labels [P] of the simulated person;
    train(labels [P]) updates the model on the pairs drawn last; look() -> pictures [M, 3, H, W] from
    fixed noises. Labels are 1 left, -1 right, 0 tie; `now` holds this round's, in 0..1.
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
        self.pairs = left.cpu(), right.cpu(), list(asked)
        self.simulated.append(self.annotator(left, right).detach().cpu().float())
        self.now = Labels((self.simulated[-1] + 1) / 2)

    @property
    def done(self) -> bool:
        return len(self.labels) == self.rounds

    def learn(self) -> bool:
        """Train on the labels of the round, look at the model, draw the next pairs if any."""
        if not self.now.complete or self.done:
            raise ValueError("there are pairs without an answer in this round")
        labels = 2 * self.now.values() - 1
        self.train(labels)
        self.labels.append(labels)
        self.clicks += len(self.now.clicked)
        self.pictures.append(self.look().detach().cpu())
        if not self.done:
            self._next()
        return not self.done

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
    if not headless():
        _asked(session, caption, question)
        return session
    while not session.done:
        session.now.leave()
        session.learn()
    print(f"{sum(map(len, session.labels))} pairs labeled by the simulated annotator")
    show(session.picture(), caption=caption)
    return session


def _asked(session: Annotation, caption: str, question: str) -> Panel:
    """Show the figure, an output that each round replaces, and the buttons."""
    from IPython.display import display

    data, extra = bundle(session.picture())
    figure = display(data, metadata=extra, raw=True, display_id=True)
    markdown(f"*{number_of(caption)[0]}: {caption}*")

    def words() -> str:
        if session.done:
            return (
                f"done: {session.clicks} labels by you, {session.agreement():.0%} of all labels "
                "equal the simulated annotator's"
            )
        at, asked = len(session.now.answers), session.pairs[2]
        return (
            f"round {len(session.labels) + 1} of {session.rounds}, pair {at + 1} of {len(asked)}, "
            f"asked for: {asked[at]}. {question}"
        )

    def learn() -> bool:
        more = session.learn()
        data, extra = bundle(session.picture())
        figure.update(data, metadata=extra, raw=True)
        return more

    return Panel(lambda: (session.now, *session.pairs[:2]), words, learn)
