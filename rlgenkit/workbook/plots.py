"""The plots of the series.  Each returns a Picture: a figure and alt text made from its data.

Curves are arrays [S, T] (seeds, steps); images are [B, 3, H, W] in [0, 1].  No plot codes
anything by color alone: lines differ in dash, points in marker, bars in hatching, signs in a sign.
"""

from __future__ import annotations

import math
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
    figure, axes = new_figure(width=5.2, height=2.9)
    ax = axes[0, 0]
    words = _lines(ax, series, x, over)
    ax.set(xlabel=xlabel, ylabel=ylabel, **{f"{name}scale": "log" for name in log})
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
    rows = -(-len(pixels) // columns)
    columns = min(columns, len(pixels))
    titles = [_fold(label) for label in labels]
    figure, axes = new_figure(rows, columns, 0.95 * columns, _height(titles) * rows)
    _tiles(axes.flat, pixels, titles)
    words = "; ".join(f"{n} x {x}" if n > 1 else x for x, n in Counter(labels).items())
    return Picture(figure, f"Grid of {len(pixels)} images, {columns} to a row: {words}.")


@styled
def strip(images: Array, prompts: Sequence[str], steps: Sequence[Any]) -> Picture:
    """Denoising strip: images [P, N, 3, H, W], one row per prompt, one column per step shown."""
    p, n = len(images), len(images[0])
    pixels = np.stack([_pixels(row) for row in images])
    figure, axes = new_figure(p, n, 0.9 * n + 1.1, 0.98 * p + 0.1)
    _tiles(axes.flat, pixels.reshape(p * n, *pixels.shape[2:]), [])
    for ax, step in zip(axes[0], steps):
        ax.set_title(str(step), fontsize=8)
    for ax, prompt in zip(axes[:, 0], prompts):
        ax.set_ylabel(_fold(prompt), rotation=0, ha="right", va="center", fontsize=7.5)
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
    titles = [_fold(labels[i]) for i in order]
    figure, axes = new_figure(2, len(order), 0.95 * len(order) + 0.4, _height(titles) + 1.15)
    _tiles(axes[0], _pixels(before)[order], titles)
    _tiles(axes[1], _pixels(after)[order], [f"{gains[i]:+.2f}" for i in order])
    axes[0, 0].set_ylabel("before", fontsize=8)
    axes[1, 0].set_ylabel("after", fontsize=8)
    return Picture(
        figure,
        f"{len(order)} pairs before (top) and after (bottom) training, sorted "
        f"by gain: best {gains.max():+.2f} ({labels[order[0]]}), median "
        f"{np.median(gains):+.2f}, worst {gains.min():+.2f} ({labels[order[-1]]}); "
        f"{int((gains > 0).sum())} gained.",
    )


@styled
def ridge(rewards: Array, steps: Sequence[Any], xlabel: str = "reward") -> Picture:
    """Histograms of rewards [T, B], one ridge per row, oldest on top."""
    rows = [_array(row) for row in rewards]
    edges = np.linspace(min(r.min() for r in rows), max(r.max() for r in rows) + 1e-9, 31)
    figure, axes = new_figure(width=5.2, height=1.0 + 0.3 * len(rows))
    ax = axes[0, 0]
    for k, row in enumerate(rows):
        share = np.histogram(row, edges)[0] / len(row)
        top = 1.6 * share / max(share.max(), 1e-9) - k
        ax.fill_between(
            (edges[1:] + edges[:-1]) / 2, -k, top, color=PALETTE[0], alpha=0.45, zorder=k + 2
        )
        ax.plot([row.mean()] * 2, [-k, -k + 0.7], "-", color=PALETTE[1], zorder=k + 3)
    ax.set(
        xlabel=xlabel,
        yticks=[-k for k in range(len(rows))],
        yticklabels=list(map(str, steps)),
        ylabel="step",
    )
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
    figure, axes = new_figure(width=1.6 + cell * x.shape[1], height=0.9 + 0.33 * x.shape[0])
    ax, limit = axes[0, 0], max(np.abs(x).max(), 1e-9)
    scale = {"cmap": "PuOr", "vmin": -limit, "vmax": limit} if signed else {"cmap": "cividis"}
    image = ax.imshow(x, aspect="auto", **scale)
    middle = image.norm.vmin + 0.5 * (image.norm.vmax - image.norm.vmin)
    for (i, j), v in np.ndenumerate(x):
        dark = abs(v) > 0.6 * limit if signed else v < middle
        ax.text(
            j,
            i,
            _cell(v, signed),
            ha="center",
            va="center",
            fontsize=7,
            color="white" if dark else "black",
        )
    ax.set(
        xticks=range(len(columns)),
        xticklabels=names,
        yticks=range(len(rows)),
        yticklabels=rows,
        xlabel=xlabel,
        ylabel=ylabel,
    )
    ax.grid(False)
    (i, j), (k, m) = (np.unravel_index(f(x), x.shape) for f in (np.argmax, np.argmin))
    size = [
        f"{n} {word}" + (f" ({name})" if name else "")
        for n, word, name in zip(x.shape, ("rows", "columns"), (ylabel, xlabel))
    ]
    return Picture(
        figure,
        f"Matrix of {size[0]} and {size[1]}, mean {x.mean():.3g}; largest {x[i, j]:.3g} "
        f"at {rows[i]}, {columns[j]}; smallest {x[k, m]:.3g} at {rows[k]}, "
        f"{columns[m]}.",
    )


def advantage_map(advantages: Array, prompts: Sequence[str]) -> Picture:
    """Signed heat map of advantages [prompts, samples]."""
    x = _array(advantages)
    names = [str(i + 1) for i in range(x.shape[1])]
    picture = heat_map(x, list(prompts), names, "sample", "prompt", signed=True)
    return Picture(picture.figure, f"Advantages: {(x > 0).mean():.0%} positive. {picture.alt}")


@styled
def frontier(
    points: Mapping[str, tuple[Array, Array]],
    xlabel: str,
    ylabel: str,
    larger_x_is_better: bool = False,
) -> Picture:
    """Trade-off curves, label -> (x [K], y [K]) in order; larger y is better.  Points that no
    other beats in both (the Pareto front) are ringed."""
    figure, axes = new_figure(width=5.2, height=3.0)
    ax, sign = axes[0, 0], 1 if larger_x_is_better else -1
    labels = np.array([name for name, (x, _) in points.items() for _ in _array(x)])
    xy = np.concatenate([np.stack([_array(x), _array(y)], 1) for x, y in points.values()])
    gain = xy * [sign, 1]
    worse = (gain[None] >= gain[:, None]).all(2) & (gain[None] > gain[:, None]).any(2)
    best = ~worse.any(axis=1)
    for k, (name, (x, y)) in enumerate(points.items()):
        ax.plot(
            _array(x),
            _array(y),
            marker=MARKERS[k % 7],
            ls=LINES[k % 7],
            label=name,
            color=PALETTE[k % 7],
        )
    ax.plot(*xy[best].T, "o", ms=10, mfc="none", mec="black", ls="", label="Pareto front")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    _legend(figure, ax)
    words = "; ".join(
        f"{name}: {xlabel} {_span(x)}, {ylabel} {_span(y)}, {int(n)} on the front"
        for name, (x, y) in points.items()
        for n in [best[labels == name].sum()]
    )
    return Picture(figure, f"{ylabel} against {xlabel}. {words}.")


@styled
def bars(values: Mapping[str, Array], ylabel: str, threshold: float | None = None) -> Picture:
    """Bars of means over seeds; values: label -> [S].

    Each value is a dot beside its bar, unless a bar has more than DOTS of them.  From five values
    on the bar has its 95 % interval (Student's t).
    """
    figure, axes = new_figure(width=max(3.2, 1.0 + 0.9 * len(values)), height=2.7)
    ax, words = axes[0, 0], []
    for k, (name, seeds) in enumerate(values.items()):
        seeds = _array(seeds).reshape(-1)
        mean, low, high = interval(seeds)
        ax.bar(k, mean, color=BARS[k % 7], alpha=0.75, hatch=HATCHES[k % 7], edgecolor="white")
        if len(seeds) >= ENOUGH:
            ax.errorbar(k, mean, [[mean - low], [high - mean]], color="black", capsize=4)
        if len(seeds) <= DOTS:
            ax.plot(np.full(len(seeds), k + 0.15), seeds, ".", color="black", ms=4, ls="")
        words.append(f"{name} {mean:.3g} ({_around(seeds, low, high)}n={len(seeds)})")
    if threshold is not None:
        ax.axhline(threshold, color="black", ls=":")
        words.append(f"dotted threshold {threshold:.3g}")
    ax.set(xticks=range(len(values)), xticklabels=[_fold(n, 12) for n in values], ylabel=ylabel)
    ax.grid(False, axis="x")
    return Picture(figure, f"Bars of {ylabel}, means: " + "; ".join(words) + ".")


@styled
def scatter(points: Mapping[str, tuple[Array, Array]], xlabel: str, ylabel: str) -> Picture:
    """Points, label -> (x [N], y [N]), with the rank correlation of each group."""
    from scipy.stats import spearmanr

    figure, axes = new_figure(width=4.2, height=3.2)
    words = []
    for k, (name, (x, y)) in enumerate(points.items()):
        x, y = _array(x).reshape(-1), _array(y).reshape(-1)
        axes[0, 0].plot(x, y, MARKERS[k % 7], color=PALETTE[k % 7], alpha=0.6, label=name, ls="")
        flat = len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0
        rank = "undefined" if flat else f"{spearmanr(x, y).statistic:.2f}"
        words.append(f"{name}: {len(x)} points, rank correlation {rank}")
    axes[0, 0].set(xlabel=xlabel, ylabel=ylabel)
    if len(points) > 1:
        _legend_below(figure, axes[0, 0])  # inside it would cover points
    return Picture(figure, f"{ylabel} against {xlabel}. " + "; ".join(words) + ".")


def _lines(ax: Axes, series: Mapping[str, Array], x: Array | None, over: str = "seeds") -> str:
    """Draw mean lines with bands and return their trends in words."""
    words, most = [], max(np.atleast_2d(_array(y)).shape[0] for y in series.values())
    for k, (name, values) in enumerate(series.items()):
        y = np.atleast_2d(_array(values))
        place = np.arange(y.shape[1]) if x is None else _array(x)
        used = np.isfinite(y).all(axis=0)  # metrics that are logged every few steps have gaps
        y, place = y[:, used], place[used]
        color, mean = PALETTE[k % 7], y.mean(axis=0)
        ax.plot(place, mean, color=color, ls=LINES[k % 7], label=name)
        words.append(f"{name} {_trend(mean, place)}{_band(ax, place, y, color, over)}")
    if (np.mod(place, 1) == 0).all():  # there is no step 2.5
        ax.xaxis.set_major_locator(ticker.MaxNLocator("auto", integer=True))
    seeds = f" (mean of {most} {over})" if most > 1 else ""
    return "; ".join(words) + seeds + "."


def _band(ax: Axes, place: np.ndarray, y: np.ndarray, color: str, over: str) -> str:
    """Draw around the mean of y [S, T] what its rows allow and return the last step in words: a
    band of 95 % intervals, or each row where they are too few (two have a band nine times their
    own spread)."""
    if len(y) >= ENOUGH:
        _, low, high = interval(y)
        ax.fill_between(place, low, high, color=color, alpha=0.18, lw=0)
        return f" (interval {low[-1]:.3g} to {high[-1]:.3g})"
    if len(y) > 1:
        ax.plot(place, y.T, "-", color=color, alpha=0.45, lw=0.6)
        return f" (single {over} {_span(y[:, -1])})"
    return ""


def _around(values: np.ndarray, low: float, high: float) -> str:
    """The interval of a bar in words, or the range of its values where they are too few."""
    if len(values) >= ENOUGH:
        return f"95 % interval {low:.3g} to {high:.3g}, "
    return f"values {_span(values)}, " if len(values) > 1 else ""


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
    inches = [0.6 + 0.07 * len(name) for name in labels]
    for rows in range(1, len(labels) + 1):  # a legend fills its columns one by one
        if (
            sum(max(inches[k : k + rows]) for k in range(0, len(labels), rows))
            < figure.get_figwidth()
        ):
            break
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)
    figure.legend(handles, labels, loc="outside lower center", ncols=math.ceil(len(labels) / rows))


def _cell(value: float, signed: bool) -> str:
    """Two digits, but 100 as 100 (`.2g` says 1e+02), and no sign where nothing is left."""
    if signed:
        return "0.0" if round(value, 1) == 0 else f"{value:+.1f}"
    return f"{value:.2g}" if abs(value) < 99.5 else f"{value:.0f}"


def _height(titles: Sequence[str]) -> float:
    """Inches of a row of tiles: the picture, and its title of one or more lines."""
    return 1.08 + 0.15 * max(title.count("\n") + 1 for title in titles)


def _trend(y: np.ndarray, x: Sequence[Any]) -> str:
    """A curve [T] in words: rises, falls, stays, or turns at a peak or a low."""
    span = np.ptp(y)
    y = np.where(np.abs(y) < 1e-3 * span, 0.0, y)  # rounding errors read as zero
    first, last = y[0], y[-1]
    if span <= 0.02 * max(np.abs(y).max(), 1e-9):
        return f"stays near {y.mean():.3g}"
    top, low = int(np.argmax(y)), int(np.argmin(y))
    for turn, verbs in ((top, ("rises", "peak", "falls")), (low, ("falls", "low", "rises"))):
        if min(abs(y[turn] - first), abs(y[turn] - last)) > 0.25 * span:
            return (
                f"{verbs[0]} from {first:.3g} to a {verbs[1]} of {y[turn]:.3g} at "
                f"{_short(x[turn])}, "
                f"then {verbs[2]} to {last:.3g}"
            )
    return f"{'rises' if last > first else 'falls'} from {first:.3g} to {last:.3g}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _tiles(axes: Any, pixels: np.ndarray, titles: Sequence[str]) -> None:
    """Draw pixels [B, H, W, 3] on the axes; left-over axes are hidden."""
    for k, ax in enumerate(axes):
        ax.set(xticks=[], yticks=[], frame_on=False)
        ax.grid(False)
        if k < len(pixels):
            ax.imshow(pixels[k], interpolation="nearest", vmin=0, vmax=1)
        if k < len(titles):
            ax.set_title(titles[k], fontsize=7)


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
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
