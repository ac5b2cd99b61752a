"""The plots of the series.  Each returns a Picture: a figure and alt text made from its data.

Curves are arrays [S, T] (seeds, steps); images are [B, 3, H, W] in [0, 1].  No plot codes
anything by color alone: lines differ in dash, points in marker, bars in hatching, signs in a sign.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from .intervals import ENOUGH, interval
from .show import HATCHES, LINES, MARKERS, PALETTE, Picture, new_figure, styled

Array = Any  # a torch tensor or whatever numpy takes
DOTS = 20  # more values than this beside a bar are a smear, not information
# Black dots and intervals must stand out from their bar, so that no bar is black.
BARS = tuple("#999999" if color == "#000000" else color for color in PALETTE)


@styled
def three_curves(
    curves: Mapping[str, Mapping[str, Array]],
    metrics: Sequence[str] = ("reward", "truth", "diversity"),
    titles: Sequence[str] = ("optimized proxy", "truth", "diversity"),
    x: Array | None = None,
    xlabel: str = "step",
    over: str = "seeds",
) -> Picture:
    """Proxy, truth and diversity side by side; curves: method -> metric -> [S, T] (run.curves).

    over: what the S rows are, for the alt text.
    """
    figure, axes = new_figure(1, len(metrics), height=2.3 if len(curves) > 1 else 2.5)
    parts = []
    for ax, metric, title in zip(axes[0], metrics, titles):
        rows = {method: curve[metric] for method, curve in curves.items()}
        parts.append(f"{title}: " + _lines(ax, rows, x, over))
        ax.set(title=title, xlabel=xlabel)
    if len(curves) > 1:
        _legend_below(figure, axes[0, 0])
    return Picture(figure, f"{len(metrics)} panels over {xlabel}. " + " ".join(parts))


@styled
def lines(
    series: Mapping[str, Array],
    xlabel: str,
    ylabel: str,
    x: Array | None = None,
    log: str = "",
    over: str = "seeds",
) -> Picture:
    """One panel of curves with bands; series: label -> [S, T] or [T].  log: "", "x", "y", "xy".

    over: what the S rows are, for the alt text.
    """
    figure, ax = _panel(5.2, 2.9, xlabel, ylabel)
    words = _lines(ax, series, x, over)
    ax.set(**{f"{name}scale": "log" for name in log})
    for name in log:
        _log_ticks(getattr(ax, f"{name}axis"))
    _legend(figure, ax)
    return Picture(figure, f"Curves of {ylabel} over {xlabel}. {words}")


@styled
def image_grid(images: Array, labels: Sequence[str], columns: int = 8) -> Picture:
    """Images [B, 3, H, W] in rows of `columns`, each under its label."""
    pixels = _pixels(images)
    if len(labels) != len(pixels):
        raise ValueError(f"{len(pixels)} images need as many labels, got {len(labels)}")
    columns = min(columns, len(pixels))
    figure = _tiles(pixels, columns, [_fold(label) for label in labels])
    words = "; ".join(f"{n} of {x}" if n > 1 else x for x, n in Counter(labels).items())
    return Picture(figure, f"Grid of {len(pixels)} images, {columns} to a row: {words}.")


@styled
def strip(images: Array, prompts: Sequence[str], steps: Sequence[Any], what: str = "") -> Picture:
    """Denoising strip: images [P, N, 3, H, W], one row per prompt, one column per step shown.

    what: what the pictures are, for the alt text, where rows and columns are something else.
    """
    pixels = np.stack([_pixels(row) for row in images])
    p, n = pixels.shape[:2]
    figure = _tiles(pixels.reshape(p * n, *pixels.shape[2:]), n, list(map(str, steps)), prompts)
    if what:
        down, across = "; ".join(prompts), "; ".join(map(str, steps))
        return Picture(figure, f"{what}: rows {down}; columns {across}.")
    moves = np.abs(np.diff(pixels, axis=1)).mean(axis=(0, 2, 3, 4)) if n > 1 else np.zeros(1)
    return Picture(
        figure,
        f"Denoising of {p} prompts ({'; '.join(prompts)}) shown at {n} steps, "
        f"{steps[0]} to {steps[-1]}; the mean pixel change from column to column goes "
        f"from {moves[0]:.3f} to {moves[-1]:.3f}.",
    )


@styled
def before_after(before: Array, after: Array, gains: Array, labels: Sequence[str]) -> Picture:
    """Pairs from the same noise, sorted by reward gain.  before, after: [B, 3, H, W], gains [B]."""
    gains = _array(gains)
    order = np.argsort(-gains, kind="stable")
    titles = [_fold(labels[i]) for i in order] + [f"{gains[i]:+.2f}" for i in order]
    pixels = np.concatenate([_pixels(images)[order] for images in (before, after)])
    best, worst = (f"{gains[i]:+.2f} ({labels[i]})" for i in (order[0], order[-1]))
    return Picture(
        _tiles(pixels, len(order), titles, ("before", "after")),
        f"{len(order)} pairs before (top) and after (bottom) training, sorted by gain: best "
        f"{best}, median {np.median(gains):+.2f}, worst {worst}; {(gains > 0).sum()} gained.",
    )


@styled
def ridge(rewards: Array, steps: Sequence[Any], xlabel: str = "reward") -> Picture:
    """Histograms of rewards [T, B], one ridge per row, oldest on top."""
    rows = [_array(row) for row in rewards]
    edges = np.linspace(min(r.min() for r in rows), max(r.max() for r in rows) + 1e-9, 31)
    figure, ax = _panel(5.2, 1.0 + 0.3 * len(rows), xlabel, "step")
    for k, row in enumerate(rows):
        share = np.histogram(row, edges)[0] / len(row)
        top = 1.6 * share / max(share.max(), 1e-9) - k
        middle = (edges[1:] + edges[:-1]) / 2
        ax.fill_between(middle, -k, top, color=PALETTE[0], alpha=0.45, zorder=k + 2)
        ax.plot([row.mean()] * 2, [-k, -k + 0.7], "-", color=PALETTE[1], zorder=k + 3)
    ax.set(yticks=[-k for k in range(len(rows))], yticklabels=list(map(str, steps)))
    ends = [f"mean {r.mean():.3g}, spread {r.std():.2g}" for r in (rows[0], rows[-1])]
    return Picture(
        figure,
        f"Histograms of {xlabel} at {len(rows)} steps with their means marked: "
        f"step {steps[0]} {ends[0]}; step {steps[-1]} {ends[1]}.",
    )


@styled
def heat_map(
    values: Array,
    rows: Sequence[str],
    columns: Sequence[str],
    xlabel: str = "",
    ylabel: str = "",
    signed: bool = False,
) -> Picture:
    """Matrix [R, C] with its numbers written in.  signed: diverging scale around zero, + and -."""
    x = _array(values)
    names = [_fold(str(column), 11) for column in columns]
    cell = max(0.55, 0.085 * max(len(line) for name in names for line in name.split("\n")))
    figure, ax = _panel(1.6 + cell * x.shape[1], 0.9 + 0.33 * x.shape[0], xlabel, ylabel)
    limit = max(np.abs(x).max(), 1e-9)
    scale = {"cmap": "PuOr", "vmin": -limit, "vmax": limit} if signed else {"cmap": "cividis"}
    image = ax.imshow(x, aspect="auto", **scale)
    middle = image.norm.vmin + 0.5 * (image.norm.vmax - image.norm.vmin)
    for (i, j), v in np.ndenumerate(x):
        dark = abs(v) > 0.6 * limit if signed else v < middle
        look = {"ha": "center", "va": "center", "color": "white" if dark else "black"}
        ax.text(j, i, _cell(v, signed), fontsize=7, **look)
    ax.set(xticks=range(len(columns)), xticklabels=names, yticks=range(len(rows)), yticklabels=rows)
    ax.grid(False)
    size = [
        f"{n} {word}" + (f" ({name})" if name else "")
        for n, word, name in zip(x.shape, ("rows", "columns"), (ylabel, xlabel))
    ]
    top, low = (
        f"{x[at]:.3g} at {rows[at[0]]}, {columns[at[1]]}"
        for at in (np.unravel_index(f(x), x.shape) for f in (np.argmax, np.argmin))
    )
    return Picture(
        figure,
        f"Matrix of {size[0]} and {size[1]}, mean {x.mean():.3g}; largest {top}; smallest {low}.",
    )


@styled
def frontier(
    points: Mapping[str, tuple[Array, Array]],
    xlabel: str,
    ylabel: str,
    larger_x_is_better: bool = False,
) -> Picture:
    """Trade-off curves, label -> (x [K], y [K]) in order; larger y is better.  Points that no
    other beats in both (the Pareto front) are ringed."""
    figure, ax = _panel(5.2, 3.0, xlabel, ylabel)
    curves = {name: np.stack([_array(x), _array(y)], 1) for name, (x, y) in points.items()}
    xy = np.concatenate(list(curves.values()))
    gain = xy * [1 if larger_x_is_better else -1, 1]
    worse = (gain[None] >= gain[:, None]).all(2) & (gain[None] > gain[:, None]).any(2)
    best, words, at = ~worse.any(axis=1), [], 0
    for k, (name, curve) in enumerate(curves.items()):
        ax.plot(*curve.T, MARKERS[k % 7], ls=LINES[k % 7], label=name, color=PALETTE[k % 7])
        front, at = best[at : at + len(curve)].sum(), at + len(curve)
        ends = f"{xlabel} {_span(curve[:, 0])}, {ylabel} {_span(curve[:, 1])}"
        words.append(f"{name}: {ends}, {front} on the front")
    ax.plot(*xy[best].T, "o", ms=10, mfc="none", mec="black", ls="", label="Pareto front")
    _legend(figure, ax)
    return Picture(figure, f"{ylabel} against {xlabel}. {'; '.join(words)}.")


@styled
def bars(values: Mapping[str, Array], ylabel: str, threshold: float | None = None) -> Picture:
    """Bars of means over seeds; values: label -> [S].

    Each value is a dot beside its bar, unless a bar has more than DOTS of them.  From five values
    on the bar has its 95 % interval (Student's t).
    """
    figure, ax = _panel(max(3.2, 1.0 + 0.9 * len(values)), 2.7, "", ylabel)
    words = []
    for k, (name, seeds) in enumerate(values.items()):
        seeds = _array(seeds).reshape(-1)
        mean, low, high = interval(seeds)
        ax.bar(k, mean, color=BARS[k % 7], alpha=0.75, hatch=HATCHES[k % 7], edgecolor="white")
        around = f"values {_span(seeds)}, " if len(seeds) > 1 else ""
        if len(seeds) >= ENOUGH:
            ax.errorbar(k, mean, [[mean - low], [high - mean]], color="black", capsize=4)
            around = f"95 % interval {low:.3g} to {high:.3g}, "
        if len(seeds) <= DOTS:
            ax.plot(np.full(len(seeds), k + 0.15), seeds, ".", color="black", ms=4, ls="")
        words.append(f"{name} {mean:.3g} ({around}n={len(seeds)})")
    if threshold is not None:
        ax.axhline(threshold, color="black", ls=":")
        words.append(f"dotted threshold {threshold:.3g}")
    ax.set(xticks=range(len(values)), xticklabels=[_fold(n, 12) for n in values])
    ax.grid(False, axis="x")
    return Picture(figure, f"Bars of {ylabel}, means: " + "; ".join(words) + ".")


@styled
def scatter(points: Mapping[str, tuple[Array, Array]], xlabel: str, ylabel: str) -> Picture:
    """Points, label -> (x [N], y [N]), with the rank correlation of each group."""
    from scipy.stats import spearmanr

    figure, ax = _panel(4.2, 3.2, xlabel, ylabel)
    words = []
    for k, (name, (x, y)) in enumerate(points.items()):
        x, y = _array(x).reshape(-1), _array(y).reshape(-1)
        ax.plot(x, y, MARKERS[k % 7], color=PALETTE[k % 7], alpha=0.6, label=name, ls="")
        flat = len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0
        rank = "undefined" if flat else f"{spearmanr(x, y).statistic:.2f}"
        words.append(f"{name}: {len(x)} points, rank correlation {rank}")
    if len(points) > 1:
        _legend_below(figure, ax)  # inside it would cover points
    return Picture(figure, f"{ylabel} against {xlabel}. " + "; ".join(words) + ".")


def _panel(width: float, height: float, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure, axes = new_figure(width=width, height=height)
    axes[0, 0].set(xlabel=xlabel, ylabel=ylabel)
    return figure, axes[0, 0]


def _lines(ax: Axes, series: Mapping[str, Array], x: Array | None, over: str = "seeds") -> str:
    """Draw mean lines and what their rows allow around them, bands of 95 % intervals or, where they
    are too few (two have a band nine times their own spread), each row; returns trends in words."""
    words, most = [], 1
    for k, (name, values) in enumerate(series.items()):
        y, color, around = np.atleast_2d(_array(values)), PALETTE[k % 7], ""
        place = np.arange(y.shape[1]) if x is None else _array(x)
        used = np.isfinite(y).all(axis=0)  # metrics that are logged every few steps have gaps
        y, place, most = y[:, used], place[used], max(most, len(y))
        if not used.any():
            words.append(f"{name} has no {over} of one length")
            continue
        ax.plot(place, y.mean(axis=0), color=color, ls=LINES[k % 7], label=name)
        if len(y) >= ENOUGH:
            _, low, high = interval(y)
            ax.fill_between(place, low, high, color=color, alpha=0.18, lw=0)
            around = f" (interval {low[-1]:.3g} to {high[-1]:.3g})"
        elif len(y) > 1:
            ax.plot(place, y.T, "-", color=color, alpha=0.45, lw=0.6)
            around = f" (single {over} {_span(y[:, -1])})"
        words.append(f"{name} {_trend(y.mean(axis=0), place)}{around}")
    if (np.mod(place, 1) == 0).all():  # there is no step 2.5
        ax.xaxis.set_major_locator(ticker.MaxNLocator("auto", integer=True))
    seeds = f" (mean of {most} {over})" if most > 1 else ""
    return "; ".join(words) + seeds + "."


def _log_ticks(axis: Axis) -> None:
    """Plain labels at 1, 2, 5 of each decade, or round ones where this leaves too few.  By itself
    matplotlib labels every minor tick of a short range, and the labels collide."""
    low, high = axis.get_view_interval()
    if high < 1000 * low:  # more decades keep matplotlib's powers of ten
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=12))
        axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def _legend(figure: Figure, ax: Axes) -> None:
    """Up to three labels find a free corner; more of them stand below, off the data."""
    if len(ax.get_legend_handles_labels()[1]) > 3:
        _legend_below(figure, ax)
    else:
        ax.legend()


def _legend_below(figure: Figure, ax: Axes) -> None:
    """The labels of ax under the figure, in as few rows as its width allows."""
    handles, labels = ax.get_legend_handles_labels()
    inches = 0.6 + 0.07 * max(map(len, labels))
    columns = min(len(labels), max(int(figure.get_figwidth() / inches), 1))
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _cell(value: float, signed: bool) -> str:
    """Two digits, but 100 as 100 (`.2g` says 1e+02), and no sign where nothing is left."""
    if signed:
        return "0.0" if round(value, 1) == 0 else f"{value:+.1f}"
    return f"{value:.2g}" if abs(value) < 99.5 else f"{value:.0f}"


def _trend(y: np.ndarray, x: Sequence[Any]) -> str:
    """A curve [T] in words: rises, falls, stays, or turns at a peak or a low."""
    span = np.ptp(y)
    y = np.where(np.abs(y) < 1e-3 * span, 0.0, y)  # rounding errors read as zero
    first, last = y[0], y[-1]
    if span <= 0.02 * max(np.abs(y).max(), 1e-9):
        return f"stays near {y.mean():.3g}"
    for turn, (there, name, back) in (
        (np.argmax(y), ("rises", "peak", "falls")),
        (np.argmin(y), ("falls", "low", "rises")),
    ):
        if min(abs(y[turn] - first), abs(y[turn] - last)) > 0.25 * span:
            at = f"{x[turn]:.3g}" if isinstance(x[turn], float) else x[turn]
            ends = f"{there} from {first:.3g} to a {name} of {y[turn]:.3g} at {at}"
            return f"{ends}, then {back} to {last:.3g}"
    return f"{'rises' if last > first else 'falls'} from {first:.3g} to {last:.3g}"


def _tiles(
    pixels: np.ndarray, columns: int, titles: Sequence[str], sides: Sequence[str] = ()
) -> Figure:
    """Pixels [B, H, W, 3] in rows of `columns`, the first ones under titles, rows named by sides."""
    rows = -(-len(pixels) // columns)
    lines = [title.count("\n") + 1 for title in titles]
    tall = sum(max(lines[k : k + columns], default=0) for k in range(0, rows * columns, columns))
    width = 0.95 * columns + (1.1 if len(sides) else 0)
    figure, axes = new_figure(rows, columns, width, 1.05 * rows + 0.15 * tall)
    for k, ax in enumerate(axes.flat):
        ax.set(xticks=[], yticks=[], frame_on=False)
        ax.grid(False)
        if k < len(pixels):
            ax.imshow(pixels[k], interpolation="nearest", vmin=0, vmax=1)
        if k < len(titles):
            ax.set_title(titles[k], fontsize=7)
    for ax, name in zip(axes[:, 0], sides):
        ax.set_ylabel(_fold(name), rotation=0, ha="right", va="center", fontsize=7.5)
    return figure


def _pixels(images: Array) -> np.ndarray:
    """[B, 3, H, W] -> [B, H, W, 3] in 0..1."""
    x = _array(images)
    if x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"images must be [B, 3, H, W], got {list(x.shape)}")
    return np.clip(x, 0, 1).transpose(0, 2, 3, 1)


def _array(values: Array) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().to("cpu").float().numpy()
    return np.asarray(values, dtype=np.float64)


def _span(values: Array) -> str:
    x = _array(values)
    return f"{x.min():.3g} to {x.max():.3g}"


def _fold(text: str, width: int = 16) -> str:
    return "\n".join(textwrap.wrap(text, width))
