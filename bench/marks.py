"""How a provider looks in every plot, and the panels of dots that most plots are made of.

The colours are Okabe & Ito's (2008), told apart with any colour vision; markers tell providers
apart in grey. A provider replayed as a CUDA graph has the provider's look, hollow and dashed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fused_loss.bench.stored import GRAPH

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#777777"

LOOKS = {
    "eager": (BLACK, "s"),
    "eager-float32": (GREY, "D"),
    "compile": (ORANGE, "^"),
    "compile-autotune": (ORANGE, "v"),
    "fused-auto": (BLUE, "o"),
    "fused-auto-inplace": (BLUE, "D"),
    "fused-triton": (VERMILION, "o"),
    "liger": (GREEN, "P"),
    "quack": (PURPLE, "X"),
    "flag-gems": (SKY, "*"),
    "aot": (GREEN, "v"),
    "onnx-unoptimised": (SKY, "o"),
    "onnx": (BLUE, "o"),
    "onnx-bound": (VERMILION, "D"),
    "copy": (GREY, "|"),
    "model-alone": (GREY, "x"),
}
STRANGER = (GREY, "h")
DPI = 100
# what a logarithmic axis may span (high / low), and the ticks in each of its powers of ten
STEPS: tuple[tuple[float, tuple[float, ...]], ...] = (
    (4, (1, 1.2, 1.5, 2, 3, 5, 7)),
    (12, (1, 1.5, 2, 3, 5, 7)),
    (60, (1, 2, 5)),
    (1000, (1, 3)),
    (float("inf"), (1,)),
)


class Dot(NamedTuple):
    """A value and its spread, in a row of a panel."""

    row: int
    value: float
    low: float
    high: float


class Panel(NamedTuple):
    """One part of a figure: dots by the label of their series."""

    title: str
    unit: str  # of the horizontal axis, with what is measured
    series: Mapping[str, Sequence[Dot]]


def look(provider: str) -> dict[str, Any]:
    """What `Axes.plot` takes for a provider."""
    color, marker = LOOKS.get(provider.removesuffix(GRAPH), STRANGER)
    return style(color, marker, hollow=provider.endswith(GRAPH))


def in_order(providers: Iterable[str]) -> list[str]:
    """Each once, as `LOOKS` has them; a CUDA graph beside what it replays, strangers at the end."""
    order = list(LOOKS)

    def place(provider: str) -> tuple[int, str]:
        base = provider.removesuffix(GRAPH)
        return order.index(base) if base in order else len(order), provider

    return sorted(set(providers), key=place)


def style(color: str, marker: str, hollow: bool = False) -> dict[str, Any]:
    """What `Axes.plot` takes for a series."""
    return {
        "color": color,
        "marker": marker,
        "markersize": 8 if marker in "*|" else 5,
        "markerfacecolor": "white" if hollow else color,
        "linestyle": (0, (4, 2)) if hollow else "-",
    }


def dots(
    title: str,
    names: Sequence[str],
    panels: Sequence[Panel],
    styles: Mapping[str, dict[str, Any]],
) -> tuple[Figure, list[Axes]]:
    """Panels side by side with a row a name, and in it a dot a series: none hides another.

    Args:
        title: Of the figure.
        names: Of the rows, which all panels share.
        panels: At least one.
        styles: By series, in the order of their dots from top to bottom.
    """
    height = 1.6 + len(names) * (0.15 + 0.09 * len(styles))
    figure = Figure(figsize=(2.6 + 3.2 * len(panels), height), dpi=DPI, layout="constrained")
    figure.suptitle(title)
    drawn = list(figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0])
    for axes, panel in zip(drawn, panels, strict=True):
        for index, (label, look) in enumerate(styles.items()):
            shift = ((index + 0.5) / len(styles) - 0.5) * 0.8
            _series(axes, panel.series.get(label, ()), shift, look)
        axes.set(title=panel.title, xlabel=panel.unit, xscale="log")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        for row in range(1, len(names)):
            axes.axhline(row - 0.5, color="0.85", linewidth=0.8, zorder=0)
        axes.tick_params(axis="y", length=0)
        tidy(axes, "x")
    plain(drawn[0].xaxis)  # the others share it
    legend(figure, styles)
    return figure, drawn


def _series(axes: Axes, series: Sequence[Dot], shift: float, look: dict[str, Any]) -> None:
    places = [dot.row + shift for dot in series]
    lows, highs = [dot.low for dot in series], [dot.high for dot in series]
    axes.hlines(places, lows, highs, color=look["color"], linewidth=1.3, alpha=0.55)
    axes.plot([dot.value for dot in series], places, **{**look, "linestyle": "none"})


def plain(axis: Axis) -> None:
    """Ticks of a logarithmic axis as people write numbers: the fewer, the more it spans."""
    low, high = sorted(axis.get_view_interval())
    if high / low < 2:
        axis.set_major_locator(MaxNLocator(4))
    else:
        between = next(steps for most, steps in STEPS if high / low < most)
        axis.set_major_locator(LogLocator(subs=between, numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(NullLocator())


def tidy(axes: Axes, lines: str) -> None:
    """Only the lines that help to read a value: on "x", "y" or "both"."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=lines, which="major", color="0.88")  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def legend(figure: Figure, styles: Mapping[str, dict[str, Any]]) -> None:
    """One legend for all panels, below them, in as many columns as fit."""
    entry = 0.6 + 0.075 * max(map(len, styles))  # inches of a handle and of its label
    figure.legend(
        [Line2D([], [], **style) for style in styles.values()],
        list(styles),
        loc="outside lower center",
        ncols=max(1, min(len(styles), int(figure.get_figwidth() / entry))),
        frameon=False,
        fontsize=9,
    )
