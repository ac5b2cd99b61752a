"""Widgets for people, with static twins for every reader who has no live kernel."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .progress import headless, kernel
from .show import Picture, bundle, show

ANSWERS = {"left": 1.0, "right": 0.0, "tie": 0.5}
KEYS = {name[0]: name for name in (*ANSWERS, "undo")}
REST = "leave the rest to the annotator"


def explore(
    fn: Callable[..., Picture],
    caption: str,
    twins: Sequence[Mapping[str, Any]] = (),
    **sliders: Sequence[Any],
) -> None:
    """Sliders over the listed values, or (label, value) pairs, redraw fn(**values).

    The first value is the default; numbers are put in order.  The static twin - the figure at the
    defaults, or at each setting in `twins` - always follows, and without a front end it is all
    there is: no widget state reaches the file.
    """
    options, default = {}, {}
    for name, values in sliders.items():
        if isinstance(values, str) or not len(values):
            raise ValueError(f"slider `{name}` needs a list of values, the first is its default")
        paired = all(isinstance(x, (tuple, list)) and len(x) == 2 for x in values)
        rows = [tuple(x) if paired else (x, x) for x in values]
        default[name] = rows[0][1]
        numbers = all(type(value) in (int, float) for _, value in rows)
        options[name] = sorted(rows, key=lambda row: row[1]) if numbers else rows
    for setting in twins or [default]:
        chosen = {**default, **setting}
        told = [
            f"{name} = {next((label for label, x in options[name] if x is value), value)}"
            for name, value in chosen.items()
        ]
        show(fn(**chosen), caption=f"{caption} ({', '.join(told)})")
    if not headless():
        _sliders(fn, options, default)


def _sliders(fn: Callable[..., Picture], options: Mapping[str, list], default: Mapping) -> None:
    """A slider per name, with a menu that names its value: a slider alone tells screen readers the
    number of the place only."""
    import ipywidgets
    from IPython.display import display

    lines, controls = [], {}
    for name, rows in options.items():
        first = next(k for k, (_, value) in enumerate(rows) if value is default[name])
        same = {"options": [(str(label), k) for k, (label, _) in enumerate(rows)], "value": first}
        menu = ipywidgets.Dropdown(description=name, **same)
        controls[name] = ipywidgets.SelectionSlider(readout=False, continuous_update=False, **same)
        ipywidgets.link((menu, "value"), (controls[name], "value"))
        lines.append(ipywidgets.HBox([menu, controls[name]]))

    def redraw(**places: int) -> None:
        data, extra = bundle(fn(**{name: options[name][k][1] for name, k in places.items()}))
        display(data, raw=True, metadata=extra)

    display(ipywidgets.VBox([*lines, ipywidgets.interactive_output(redraw, controls)]))


@dataclass
class Labels:
    """Preferences between pairs: what a person answered, the simulated annotator's for the rest.

    simulated: [B] in 0..1, 1 = first image preferred, 0 = second, 0.5 = tie.  answers: a person's,
    of the first pairs; None where one is left to the annotator.
    """

    simulated: Tensor
    answers: list[float | None] = field(default_factory=list)

    @property
    def clicked(self) -> dict[int, float]:
        """Pair -> a person's answer."""
        return {k: value for k, value in enumerate(self.answers) if value is not None}

    @property
    def complete(self) -> bool:
        return len(self.answers) == len(self.simulated)

    def leave(self) -> None:
        """Let the annotator answer the rest."""
        self.answers += [None] * (len(self.simulated) - len(self.answers))

    def values(self) -> Tensor:
        """[B] in 0..1."""
        labels = self.simulated.clone()
        for index, value in self.clicked.items():
            labels[index] = value
        return labels

    def agreement(self) -> float:
        """Share of the clicked pairs where person and annotator agree; nan without clicks."""
        same = [abs(self.simulated[i].item() - v) < 0.5 for i, v in self.clicked.items()]
        return sum(same) / len(same) if same else float("nan")


def label_pairs(
    images_a: Tensor,
    images_b: Tensor,
    annotate: Callable[[Tensor, Tensor], Tensor],
    then: Callable[[Labels], Any] | None = None,
) -> Labels:
    """Ask a person which image of each pair is better; without a person, the annotator answers.

    images: [B, 3, H, W] in [0, 1].  annotate(images_a, images_b) -> [B] in 0..1.  Returns at once:
    clicks are filled in while the reader goes on, `values()` reads them when they are needed, and
    then(labels) shows what came of them after the last one.
    """
    if images_a.shape != images_b.shape:
        raise ValueError(f"pairs differ in shape: {list(images_a.shape)}, {list(images_b.shape)}")
    labels = Labels(annotate(images_a, images_b).to("cpu", torch.float32))
    if headless():
        print(f"{len(images_a)} pairs labeled by the simulated annotator")
        return labels
    import ipywidgets
    from IPython.display import display

    shown = ipywidgets.Output()

    def words() -> str:
        at, clicked = len(labels.answers), len(labels.clicked)
        if not labels.complete:
            return f"pair {at + 1} of {len(images_a)}: which one is better?"
        return f"done: {clicked} of {at} labeled by you" + (
            f", {labels.agreement():.0%} of them as by the simulated annotator" if clicked else ""
        )

    def end() -> bool:
        with shown:
            then and then(labels)
        return False

    Panel(lambda: (labels, images_a, images_b), words, end)
    display(shown)
    return labels


class Panel:
    """Buttons and keys that fill in the Labels of one round after another.

    now() -> the labels of this round and both sides of its pairs.  words() -> the line above the
    pair; a text output below keeps it in a saved notebook.  then() is called when all pairs are
    answered and tells whether another round follows.  Answers are kept in the run's folder and
    found there when the same pairs are asked again.
    """

    def __init__(
        self,
        now: Callable[[], tuple[Labels, Tensor, Tensor]],
        words: Callable[[], str],
        then: Callable[[], bool],
    ) -> None:
        import ipywidgets as w
        from IPython.display import display

        self.now, self.words, self.then, self.twin = now, words, then, None
        self.line, self.pair = w.Label(), w.HBox([w.Image(format="png", width=192) for _ in "ab"])
        self.keys = w.Text(placeholder=f"or type {', '.join(KEYS)} here", description="keys")
        self.buttons = {name: w.Button(description=name) for name in (*KEYS.values(), REST)}
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self.press(name))
        self.keys.observe(self.typed, "value")
        display(w.VBox([self.line, self.pair, w.HBox([*self.buttons.values()]), self.keys]))
        self.twin = display({"text/plain": words()}, raw=True, display_id=True)
        self.press("")

    def press(self, name: str) -> None:
        """Do what a button says; "" looks for answers of an earlier session."""
        labels = self.now()[0]
        try:
            if name in ANSWERS:
                labels.answers.append(ANSWERS[name])
            elif name == REST:
                labels.leave()
            elif name == "undo":
                labels.answers.pop()
            if name:
                _kept(*self.now(), write=True)
            more = True
            while more and _kept(*self.now()).complete:
                self.refresh("working with your labels ...")
                more = self.then()
            self.refresh()
        except Exception as error:  # a callback's error would vanish in the log of the kernel
            self.refresh(f"stopped: {type(error).__name__}: {error}")
            raise

    def typed(self, change: Mapping[str, Any]) -> None:
        """A key in the text field is a button."""
        name = KEYS.get(change["new"][-1:].lower())
        self.keys.value = ""
        if name and not self.buttons[name].disabled:
            self.press(name)

    def refresh(self, note: str = "") -> None:
        """Show the next pair, or `note` while nothing can be answered."""
        labels, *sides = self.now()
        at, busy = len(labels.answers), labels.complete or bool(note)
        for widget in (*self.buttons.values(), self.keys):
            widget.disabled = busy
        self.buttons["undo"].disabled = busy or not at
        self.pair.layout.display = "none" if labels.complete else None
        for image, side in zip(self.pair.children, sides if not labels.complete else ()):
            image.value = _small_png(side[at])
        self.line.value = note or self.words()
        self.twin.update({"text/plain": self.line.value}, raw=True)


def _kept(labels: Labels, left: Tensor, right: Tensor, write: bool = False) -> Labels:
    """The labels, with the answers of an earlier session where there are none yet: a file in the
    run's folder, named after the pictures, holds them.  write: keep those of now."""
    run = getattr(kernel(), "user_ns", {}).get("_rlgenkit_run")
    if run is None:
        return labels
    seen = torch.cat([left, right]).detach().cpu().float().numpy().tobytes()
    path = run.folder / "labels" / f"{hashlib.sha256(seen).hexdigest()[:16]}.json"
    if write:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(labels.answers), encoding="utf-8")
    elif path.is_file() and not labels.answers:
        labels.answers[:] = json.loads(path.read_text(encoding="utf-8"))[: len(left)]
    return labels


def _small_png(image: Tensor) -> bytes:
    array = (image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return file.getvalue()
