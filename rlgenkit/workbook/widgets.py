"""Widgets for people, with static twins for every reader who has no live kernel."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .progress import headless
from .show import Picture, png, show


def explore(
    fn: Callable[..., Picture],
    caption: str,
    twins: Sequence[Mapping[str, Any]] = (),
    **sliders: Sequence[Any],
) -> None:
    """Sliders over the listed values (the first is the default) redraw fn(**values).

    The static twin - the figure at the defaults, or at each setting in `twins` - always follows,
    and without a front end it is all there is: no widget state reaches the file.
    """
    for name, values in sliders.items():
        if isinstance(values, str) or not len(values):
            raise ValueError(f"slider `{name}` needs a list of values, the first is its default")
    default = {name: values[0] for name, values in sliders.items()}
    for setting in twins or [default]:
        words = ", ".join(f"{k} = {v}" for k, v in {**default, **setting}.items())
        show(fn(**{**default, **setting}), caption=f"{caption} ({words})")
    if headless():
        return
    import ipywidgets
    from IPython.display import display

    controls = {
        name: ipywidgets.SelectionSlider(
            options=list(values), description=name, continuous_update=False
        )
        for name, values in sliders.items()
    }

    def redraw(**values: Any) -> None:
        picture = fn(**values)
        display(
            {"image/png": png(picture.figure), "text/plain": picture.alt},
            raw=True,
            metadata={"image/png": {"alt": picture.alt}},
        )

    display(ipywidgets.VBox([*controls.values(), ipywidgets.interactive_output(redraw, controls)]))


@dataclass
class Labels:
    """Preferences between pairs: what a person clicked, the simulated annotator's for the rest."""

    simulated: Tensor
    clicked: dict[int, float] = field(default_factory=dict)

    def values(self) -> Tensor:
        """[B] in 0..1: 1 = first image preferred, 0 = second, 0.5 = tie."""
        labels = self.simulated.clone()
        for index, value in self.clicked.items():
            labels[index] = value
        return labels

    def agreement(self) -> float:
        """Share of the clicked pairs where person and annotator agree; nan without clicks."""
        same = [abs(self.simulated[i].item() - v) < 0.5 for i, v in self.clicked.items()]
        return sum(same) / len(same) if same else float("nan")


def label_pairs(
    images_a: Tensor, images_b: Tensor, annotate: Callable[[Tensor, Tensor], Tensor]
) -> Labels:
    """Ask a person which image of each pair is better; without a person, the annotator answers.

    images: [B, 3, H, W] in [0, 1].  annotate(images_a, images_b) -> [B] in 0..1.  Returns at once:
    clicks are filled in while the reader goes on, `values()` reads them when they are needed.
    """
    if images_a.shape != images_b.shape:
        raise ValueError(f"pairs differ in shape: {list(images_a.shape)}, {list(images_b.shape)}")
    labels = Labels(annotate(images_a, images_b).to("cpu", torch.float32))
    if headless():
        print(f"{len(images_a)} pairs labeled by the simulated annotator")
    else:
        _clicker(labels, images_a, images_b)
    return labels


def _clicker(labels: Labels, images_a: Tensor, images_b: Tensor) -> None:
    import ipywidgets
    from IPython.display import display

    pair = [ipywidgets.Image(format="png", width=192) for _ in range(2)]
    line, queue = ipywidgets.Label(), itertools.count()
    buttons = [ipywidgets.Button(description=d) for d in ("first", "second", "tie", "skip")]
    state = {"index": -1}

    def advance() -> None:
        state["index"] = index = next(queue)
        done = index >= len(images_a)
        for button in buttons:
            button.disabled = done
        line.value = (
            f"done, {len(labels.clicked)} of {len(images_a)} labeled by you"
            if done
            else f"pair {index + 1} of {len(images_a)}: which one is better?"
        )
        for widget, images in zip(pair, (images_a, images_b)):
            widget.value = b"" if done else _small_png(images[index])

    def click(button: Any) -> None:
        if button.description != "skip":
            value = {"first": 1.0, "second": 0.0, "tie": 0.5}[button.description]
            labels.clicked[state["index"]] = value
        advance()

    for button in buttons:
        button.on_click(click)
    advance()
    display(ipywidgets.VBox([line, ipywidgets.HBox(pair), ipywidgets.HBox(buttons)]))


def _small_png(image: Tensor) -> bytes:
    import io

    from PIL import Image

    array = (image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return file.getvalue()
