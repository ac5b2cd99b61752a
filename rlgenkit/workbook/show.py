"""Figures with alt text and numbered captions, and the style of all plots."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from .progress import kernel

# Okabe and Ito's palette, order chosen so that neighbors also differ in lightness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "//", "..", "\\\\", "xx", "--", "oo")
GRAY = "#767676"  # reads on white (4.5 : 1) as well as on a dark theme (4.2 : 1)
STYLE = {
    "figure.dpi": 100,
    "figure.facecolor": "none",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GRAY
    ),
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.edgecolor": "none",
    "legend.framealpha": 1.0,
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
    """PNG on a transparent ground, equal bytes for equal figures.  Colors are rounded, which halves
    the file: of pictures to within 2 levels of 255, of plots to within 4.  Of a plot with few
    colors (antialiased edges are rare ones) the 256 most frequent stay, which halves it again."""
    for ax in figure.axes:
        if ax.has_data() and not ax.images and not ax.get_frame_on():
            ax.set_frame_on(True)  # black lines need their white ground in a dark theme
            ax.spines[:].set_visible(False)
    raw, small = io.BytesIO(), io.BytesIO()
    with style():
        figure.savefig(raw, format="png", dpi=STYLE["figure.dpi"], metadata={"Software": None})
    image = Image.open(raw).convert("RGBA")
    step = 4 if any(ax.images for ax in figure.axes) else 8
    image = image.point([min((v + step // 2) // step * step, 255) for v in range(256)] * 4)
    (image if step == 4 else _with_palette(image)).save(small, format="PNG", optimize=True)
    return small.getvalue()


def _with_palette(image: Image.Image) -> Image.Image:
    """RGBA image -> its 256 most frequent colors, the rest as the nearest of them; the image itself
    if it has more than 2500 colors."""
    words = np.asarray(image).view(np.uint32).ravel()
    words, index, count = np.unique(words, return_inverse=True, return_counts=True)
    colors = words.view(np.uint8).reshape(-1, 4)
    if len(colors) > 2500:
        return image
    kept = colors[np.argsort(-count, kind="stable")[:256]]
    distance = ((colors[:, None].astype(int) - kept) ** 2).sum(-1)
    nearest = distance.argmin(1).astype(np.uint8)
    small = Image.fromarray(nearest[index].reshape(image.height, image.width))
    small.putpalette(kept.tobytes(), "RGBA")
    return small


def show(figure: Figure | Picture, alt: str = "", caption: str = "") -> None:
    """Display a figure with its alt text, then one line "Figure NN.k: caption", and close it.

    A Picture brings its own alt text, to which `alt` is added.  ValueError without alt text.
    """
    if isinstance(figure, Picture):
        figure, alt = figure.figure, f"{figure.alt} {alt}"
    if not alt.strip():
        raise ValueError("show needs alt text: say in words and numbers what the figure shows")
    if not caption.strip():
        raise ValueError("show needs a caption: one sentence that says what the figure is")
    data, extra = bundle(Picture(figure, alt))
    label, file = number_of(caption)
    shell = kernel()
    if shell is None:
        print(f"[{label}: {caption}] {data['text/plain']}")
        return
    if run := shell.user_ns.get("_rlgenkit_run"):
        from .checkpoint import write_atomic

        write_atomic(run.folder / "figures" / f"{file}.png", data["image/png"])
    from IPython.display import display

    display(data, raw=True, metadata=extra)
    markdown(f"*{label}: {caption}*")


def bundle(picture: Picture) -> tuple[dict[str, Any], dict[str, Any]]:
    """(data, metadata) of a picture as a notebook's output, with its alt text; closes the figure."""
    data, alt = png(picture.figure), spoken(picture.alt)
    if hasattr(picture.figure, "number"):  # made with pyplot: the kernel would show it once more
        from matplotlib import pyplot

        pyplot.close(picture.figure)
    return {"image/png": data, "text/plain": alt}, {"image/png": {"alt": alt}}


def spoken(text: str) -> str:
    """Text as one reads it aloud: printed lists and dicts without brackets, quotes and types."""
    text = re.sub(r"\b(?:np\.\w+|tensor)\(([^()]*)\)", r"\1", " ".join(text.split()))
    text = re.sub(r"\d+\.\d{6,}(?:e[+-]\d+)?", lambda m: f"{float(m[0]):.3g}", text)
    return re.sub(r"[\[\]{}]|(?<!\w)'|'(?=[:,\]}])", "", text)


def safe(text: str) -> str:
    """Markdown of which nothing that a data file or a model said can act: a blank takes tags,
    pictures and links apart, unless they lead to https, http or a file."""
    link = r"\](?=[(:]\s*(?!https?://)[^)\s]*[:&])"
    return re.sub(rf"(<(?=[A-Za-z/!?])|!(?=\[)|{link})", r"\1 ", text)


def markdown(text: str, html: bool = False) -> None:
    """Show markdown in a notebook, print it elsewhere.  html: its tags are ours and stay."""
    text = text if html else safe(text)
    if kernel() is None:
        print(text)
        return
    from IPython.display import display

    display({"text/markdown": text, "text/plain": text}, raw=True)


def table_text(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in markdown, safe as it is; floats with 3 significant digits.  rows: [R][C]."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells, the header {len(header)}")
        cells = [f"{c:.3g}" if isinstance(c, float) else " ".join(str(c).split()) for c in row]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return safe("\n".join(lines))


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> None:
    """Show a table; floats with 3 significant digits.  rows: [R][len(header)]."""
    markdown(table_text(header, rows) + (f"\n\n*{caption}*" if caption else ""))


def theory_table(rows: Sequence[tuple[str, str, str]]) -> None:
    """Show the symbol table of the equations: (symbol in LaTeX, meaning, name in the code)."""
    table(("symbol", "meaning", "in the code"), [(f"${s}$", m, f"`{n}`") for s, m, n in rows])


def number_of(caption: str) -> tuple[str, str]:
    """("Figure 01.2", "figure_01_2").  The kernel's namespace keeps the numbers, by caption, so
    that a cell run again keeps its number and a restart begins anew."""
    shell = kernel()
    known = shell.user_ns.setdefault("_rlgenkit_figures", {}) if shell else {}
    numbers = known.setdefault("captions", {})
    k = numbers.setdefault(caption, len(numbers) + 1)
    name = f"{known['notebook']}.{k}" if "notebook" in known else str(k)
    return f"Figure {name}", f"figure_{name.replace('.', '_')}"
