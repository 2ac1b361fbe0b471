"""Plots of runs: each an SVG that takes its colours from the page, and the same as a PNG."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from prismfl.report.look import INK, LINE, OUTSIDE, SERIES, style_variables
from prismfl.report.runs import WAYS, Curve, Run
from prismfl.run.progress import sized

_WIDE, _HIGH = 5.2, 2.6  # inches
_MOST_WRITTEN = (30, 12)  # rows and columns of a table whose numbers can be read
_MANY_POINTS = 40  # from here on, points have no marks of their own
_STYLE: Any = {
    "svg.fonttype": "none",  # the page's font, and small files
    "svg.hashsalt": "prismfl",  # the same runs give the same bytes
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@dataclass(frozen=True)
class Plot:
    """A finished plot: name of its file, title, what it shows, a note of caution, SVG text, and PNG bytes."""

    name: str
    title: str
    about: str
    note: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Line:
    """A curve as it is drawn: its label in the legend, its colour and its dashes."""

    curve: Curve
    label: str
    colour: str
    style: str = "-"


@dataclass(frozen=True)
class Chart:
    """Curves over rounds that share an axis.

    low: where the axis begins, None to fit the curves; show: how the axis writes values.
    """

    name: str
    title: str
    about: str
    lines: Sequence[Line]
    note: str = ""
    low: float | None = 0.0
    show: Callable[[float], str] | None = None


# Figures of the log that all runs share an axis for: title, and what it shows.
FIGURES = {
    "loss": ("Loss", "Clients' mean squared distance of matched moments, as the search saw it."),
    "distance": (
        "Distance",
        "Fréchet distance to held-back images in the judge's features (fid_judge); the last is the finished model's.",
    ),
    "local_divergence": (
        "Local divergence Δ",
        "Mean normalised Hamming distance of a client's mask from a mask of the global θ it began with: the mean of "
        "|M - θ| over the entries sent. A client with no news has 2θ(1 - θ) on average.",
    ),
    "flips": (
        "Flips",
        "Share of entries sent in which a client's mask differs from the one that it would have drawn with no news: "
        "the local divergence without the noise of drawing.",
    ),
    "theta_variance": ("Mean θ(1 - θ)", "0.25 where nothing is decided, 0 where all weights are kept or dropped."),
    "mask_entropy": ("Bits a mask, given θ alone", "Bits a parameter that a mask takes without shared draws."),
    "density": ("Density", "Share of kept entries among the clients' masks."),
    "lambda": ("λ", "Share of the old θ in the new one (MADA); 0 where the new average replaces it."),
}


def charts(runs: Sequence[Run]) -> list[Chart]:
    """All charts over rounds that these runs have anything to show in, in the page's order.

    What never changes (λ without MADA), or was measured once (the distance, by default), is a closing figure alone.
    """
    shared = []
    for key, (title, about) in FIGURES.items():
        curves = [run.distance() if key == "distance" else run.curve(key) for run in runs]
        lines = [Line(curve, run.name, colour) for curve, run, colour in zip(curves, runs, SERIES, strict=False)]
        note = OUTSIDE if key == "distance" and any(run.private for run in runs) else ""
        if any(len(set(curve.values)) > 1 for curve in curves):
            shared.append(Chart(key, title, about, _drawn(lines), note, low=None if key == "density" else 0.0))
    return shared


def traffic_charts(runs: Sequence[Run]) -> list[Chart]:
    """Bytes a round and bytes in all, both ways."""
    each, summed = list[Line](), list[Line]()
    for index, run in enumerate(runs):
        for place, (way, told) in enumerate(WAYS.items()):
            curve = run.curve(f"{way}_bytes")
            look = (told, SERIES[place], "-")
            if len(runs) > 1:
                look = ("", SERIES[index], "--") if place else (run.name, SERIES[index], "-")
            each.append(Line(curve, *look))
            summed.append(Line(Curve(curve.rounds, tuple(np.cumsum(curve.values).tolist())), *look))
    about = "Whole frames." + ("" if len(runs) == 1 else " Solid: up, clients to server. Dashed: down.")
    found = [
        Chart("bytes", "Bytes a round", about, _drawn(each), show=sized),
        Chart("bytes-total", "Bytes so far", about, _drawn(summed), show=sized),
    ]
    return [chart for chart in found if chart.lines]


def _drawn(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line.curve.rounds]


@rc_context(_STYLE)
def draw(chart: Chart) -> Plot:
    """A chart as a plot."""
    figure, axes = _axes()
    for line in chart.lines:
        axes.plot(
            *(line.curve.rounds, line.curve.values),
            color=line.colour,
            linestyle=line.style,
            linewidth=1.5,
            label=f" {line.label}" if line.label else None,  # the space: matplotlib hides labels that begin with _
            marker="o" if len(line.curve.rounds) < _MANY_POINTS else "",
            markersize=2.8,
        )
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("rounds done", fontsize=8)
    if (show := chart.show) is not None:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value) if value >= 0 else ""))
    if chart.low is not None:
        top = max(value for line in chart.lines for value in line.curve.values)
        top = top if top > 0 else 1
        axes.set_ylim(chart.low - 0.02 * top, 1.06 * top)
    if sum(bool(line.label) for line in chart.lines) > 1:
        axes.legend(loc="best")
    return _plot(figure, chart.name, chart.title, chart.about, chart.note)


@rc_context(_STYLE)
def label_bars(run: Run, name: str) -> Plot | None:
    """Labels among samples by a classifier of real images, where an evaluation has them."""
    evaluation = run.evaluation or {}
    shares = evaluation.get("class_shares")
    if not (isinstance(shares, list) and shares and all(type(share) in (int, float) for share in shares)):
        return None
    given = evaluation.get("class_names")
    classes = given if isinstance(given, list) and len(given) == len(shares) else range(len(shares))
    figure, axes = _axes()
    axes.bar(range(len(shares)), shares, color=SERIES[0], width=0.7)
    axes.axhline(1 / len(shares), color=INK, linewidth=0.8, linestyle=":")
    _name_ticks(axes, [str(one) for one in classes])
    axes.grid(visible=False, axis="x")
    about = "Share of samples that a classifier of real images gives each label; dotted: equal shares."
    return _plot(figure, name, "Labels of samples", about, OUTSIDE if run.private else "")


@rc_context(_STYLE)
def client_labels(run: Run, name: str) -> Plot | None:
    """Labels at the simulated clients as a table of tints; never of a run with ε."""
    if run.labels is None or run.private:
        return None
    classes, counts = run.labels[0], np.array(run.labels[1], np.int64)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = _axes(high=_high_of(len(shares)))
    _tinted(axes, shares, (0, max(shares.max(), 0.01)))
    shown = f"shares of the client's images, the darkest {shares.max():.2f}"
    if counts.shape[0] <= _MOST_WRITTEN[0] and counts.shape[1] <= _MOST_WRITTEN[1]:
        _write_counts(axes, counts, shares > 0.6 * shares.max())
        shown = "numbers of images, tinted by their share of the client's"
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _name_ticks(axes, classes)
    axes.set_ylabel("client")
    told = "known in simulation alone: no server of a real federation sees this"
    return _plot(figure, name, "Labels of clients (simulation)", f"Rows are clients, columns labels: {shown}; {told}.")


def _write_counts(axes: Axes, counts: NDArray[np.int64], dark: NDArray[np.bool_]) -> None:
    """Each number in its place of a table, white where the tint is dark."""
    size = 8 if counts.max() < 1000 else 6.5
    for (row, column), count in np.ndenumerate(counts):
        colour = "#ffffff" if dark[row, column] else INK
        axes.text(column, row, str(count), color=colour, fontsize=size, ha="center", va="center")


@rc_context(_STYLE)
def layer_table(run: Run, name: str, of: str = "") -> Plot | None:
    """What share of each layer's weights is kept, round by round, as a table of tints.

    of: the run's name, where several share a page.
    """
    layers, done = run.layers(), [line["round"] + 1 for line in run.rounds]
    if not layers:
        return None
    curves = [run.curve(f"theta_by_layer.{layer}") for layer in layers]
    found = [dict(zip(curve.rounds, curve.values, strict=True)) for curve in curves]
    means = np.array([[one.get(after, np.nan) for after in done] for one in found])
    figure, axes = _axes(_high_of(len(layers)), left=1.0, right=0.5)
    low, high = np.nanmin(means), np.nanmax(means)
    _tinted(axes, means, (low, max(high, low + 0.01)), (done[0] - 0.5, done[-1] + 0.5))
    axes.set_yticks(range(len(layers)), [_short(layer) for layer in layers], fontsize=7.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("rounds done", fontsize=8)
    for row, mean in enumerate(means[:, -1]):
        axes.annotate(f"{mean:.2f}", (1, row), (4, 0), ("axes fraction", "data"), "offset points", va="center", size=8)
    about = "Mean θ of each layer after each round, the first layer on top; numbers: after the last."
    return _plot(figure, name, "Share of weights kept, by layer" + f": {of}" * bool(of), about)


def _high_of(rows: int) -> float:
    """Inches of a table of so many rows, its axis included."""
    return min(6.0, max(_HIGH, 0.6 + 0.17 * rows))


def _tinted(
    axes: Axes,
    values: NDArray[np.float64],
    limits: tuple[float, float],
    columns: tuple[float, float] | None = None,
) -> None:
    """Values `[rows, columns]` as tints between two limits; columns: where the axis has them."""
    # From nothing to the first series' colour: it reads on a light page as on a dark one.
    tint = LinearSegmentedColormap.from_list("tint", [(*to_rgb(SERIES[0]), 0.04), (*to_rgb(SERIES[0]), 1.0)])
    extent = (*(columns or (-0.5, values.shape[1] - 0.5)), len(values) - 0.5, -0.5)
    ways: Any = {"vmin": limits[0], "vmax": limits[1], "aspect": "auto", "interpolation": "nearest"}
    axes.imshow(values, cmap=tint, extent=extent, **ways)
    axes.grid(visible=False)


def _axes(high: float = _HIGH, left: float = 0.62, right: float = 0.16) -> tuple[Figure, Axes]:
    """Axes in a figure with so many inches around them: fixed margins, for fitting them takes long."""
    figure = Figure(figsize=(_WIDE, high))
    return figure, figure.add_axes((left / _WIDE, 0.48 / high, 1 - (left + right) / _WIDE, 1 - 0.6 / high))


def _name_ticks(axes: Axes, names: Sequence[str]) -> None:
    """Names under an axis of classes, as far as they fit."""
    step = -(-len(names) // 20)
    shown = [_short(name) for name in names[::step]]
    slanted = max(map(len, shown)) * len(shown) > 50
    axes.set_xticks(range(0, len(names), step), shown, fontsize=7 if slanted else 9)
    if slanted:
        axes.tick_params(axis="x", labelrotation=35)


def _short(name: str) -> str:
    return name if len(name) <= 13 else name[:12] + "…"


def _plot(figure: Figure, name: str, title: str, about: str, note: str = "") -> Plot:
    vector, pixels = io.StringIO(), io.BytesIO()
    with warnings.catch_warnings():
        # A name in letters that matplotlib's font lacks: the page's font has them, and the PNG shows boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(vector, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        figure.savefig(pixels, format="png", dpi=144, facecolor="white", metadata={"Software": None})
    return Plot(name, title, about, note, _inline(vector.getvalue(), name), pixels.getvalue())


def _inline(svg: str, name: str) -> str:
    """An SVG to stand in a page: names of its own, and the page's colours and font.

    matplotlib escapes what it writes, labels included; the tests try names that would break out.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    for variable, colour in style_variables().items():
        body = body.replace(colour, f"var(--{variable})")
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    opening = rf'<svg \1 role="img" aria-labelledby="title-{name}">'
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', opening, body)
