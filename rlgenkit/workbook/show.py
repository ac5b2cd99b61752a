"""Figures with alt text and numbered captions, and the style of all plots."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from .progress import kernel

# Okabe and Ito's palette, order chosen so that neighbors also differ in lightness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "//", "..", "\\\\", "xx", "--", "oo")
STYLE = {
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "image.cmap": "cividis",
    "axes.prop_cycle": matplotlib.cycler(color=PALETTE) + matplotlib.cycler(linestyle=LINES),
}


class Picture(NamedTuple):
    """A figure and the alt text made from its data; `show` takes it as it is."""

    figure: Figure
    alt: str


@contextmanager
def style() -> Iterator[None]:
    """The series' look inside a `with` block; matplotlib's settings are as before afterwards."""
    with matplotlib.rc_context(STYLE):
        yield


def styled(draw: Callable[..., Picture]) -> Callable[..., Picture]:
    """Decorator: run a drawing function in the series' style."""

    @wraps(draw)
    def inside(*args: Any, **named: Any) -> Picture:
        with style():
            return draw(*args, **named)

    return inside


def new_figure(rows: int = 1, columns: int = 1, width: float = 7.2, height: float = 2.6):
    """(figure, axes [rows, columns]) in inches, free of pyplot's global list of figures."""
    with style():
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False)


def png(figure: Figure) -> bytes:
    """PNG with a palette of 256 colors: a third of the size, equal bytes for equal figures."""
    raw, small = io.BytesIO(), io.BytesIO()
    with style():
        figure.savefig(raw, format="png", dpi=STYLE["figure.dpi"], metadata={"Software": None})
    image = Image.open(raw).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(small, format="PNG", optimize=True)
    return small.getvalue()


def show(figure: Figure | Picture, alt: str = "", caption: str = "") -> None:
    """Display a figure with its alt text, then one line "Figure NN.k: caption", and close it.

    A Picture brings its own alt text, to which `alt` is added.  ValueError without alt text.
    """
    figure, alt = _parts(figure, alt)
    if not caption.strip():
        raise ValueError("show needs a caption: one sentence that says what the figure is")
    data = png(figure)
    _close(figure)
    label, file = _number(caption)
    shell = kernel()
    if shell is None:
        print(f"[{label}: {caption}] {alt}")
        return
    if run := shell.user_ns.get("_rlgenkit_run"):
        from .checkpoint import write_atomic

        write_atomic(run.folder / "figures" / f"{file}.png", data)
    from IPython.display import display

    display({"image/png": data, "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})
    markdown(f"*{label}: {caption}*")


def markdown(text: str) -> None:
    """Show markdown in a notebook, print it elsewhere."""
    if kernel() is None:
        print(text)
        return
    from IPython.display import display

    display({"text/markdown": text, "text/plain": text}, raw=True)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> None:
    """Show a table; floats with 3 significant digits.  rows: [R][len(header)]."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells, the header {len(header)}")
        cells = [f"{c:.3g}" if isinstance(c, float) else str(c).replace("|", "\\|") for c in row]
        lines.append("| " + " | ".join(cells) + " |")
    markdown("\n".join(lines) + (f"\n\n*{caption}*" if caption else ""))


def theory_table(rows: Sequence[tuple[str, str, str]]) -> None:
    """Show the symbol table of the equations: (symbol in LaTeX, meaning, name in the code)."""
    table(("symbol", "meaning", "in the code"), [(f"${s}$", m, f"`{n}`") for s, m, n in rows])


def _parts(figure: Figure | Picture, alt: str) -> tuple[Figure, str]:
    if isinstance(figure, Picture):
        figure, alt = figure.figure, f"{figure.alt} {alt}"
    if not alt.strip():
        raise ValueError("show needs alt text: say in words and numbers what the figure shows")
    return figure, " ".join(alt.split())


def _number(caption: str) -> tuple[str, str]:
    """("Figure 01.2", "figure_01_2").  The kernel's namespace keeps the numbers, by caption, so
    that a cell run again keeps its number and a restart begins anew."""
    shell = kernel()
    known = shell.user_ns.setdefault("_rlgenkit_figures", {}) if shell else {}
    numbers = known.setdefault("captions", {})
    k = numbers.setdefault(caption, len(numbers) + 1)
    name = f"{known['notebook']}.{k}" if "notebook" in known else str(k)
    return f"Figure {name}", f"figure_{name.replace('.', '_')}"


def _close(figure: Figure) -> None:
    """Take a figure made with pyplot off its list, or the kernel would show it a second time."""
    from matplotlib import pyplot

    if figure.number in pyplot.get_fignums() if hasattr(figure, "number") else False:
        pyplot.close(figure)
