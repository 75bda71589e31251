from itertools import pairwise

import pytest
from matplotlib.figure import Figure

from fused_loss.bench.marks import LOOKS, Dot, Panel, dots, in_order, look, plain
from fused_loss.bench.providers import PROVIDERS
from fused_loss.bench.runtimes import RUNTIMES


def test_every_provider_is_told_apart():
    assert {name.removesuffix("-graph") for name in (*PROVIDERS, *RUNTIMES)} == set(LOOKS)
    for names in (PROVIDERS, RUNTIMES):  # no plot has both
        looks = [look(name) for name in names]
        assert len({(k["color"], k["marker"], k["markerfacecolor"]) for k in looks}) == len(looks)


def test_the_order_is_that_of_the_looks():
    names = ["stranger", "copy", "compile", "eager-graph", "eager", "compile", "fused-auto"]
    assert in_order(names) == [
        *("eager", "eager-graph", "compile", "fused-auto", "copy", "stranger")
    ]


@pytest.mark.parametrize("ends", [(0.99, 1.01), (0.2, 0.29), (0.7, 3), (0.001, 0.0042), (1, 1e6)])
def test_an_axis_always_has_numbers(ends: tuple[float, float]):
    axes = Figure().subplots()
    axes.set_xscale("log")
    axes.set_xlim(*ends)
    plain(axes.xaxis)
    inside = [tick for tick in axes.get_xticks() if ends[0] <= tick <= ends[1]]
    assert 2 <= len(inside) <= 10
    words = axes.xaxis.get_major_formatter().format_ticks(inside)
    assert len(set(words)) == len(words)


def test_no_dot_hides_another():
    names = [f"case {row}" for row in range(3)]
    series = {name: [Dot(row, 1.0, 0.9, 1.1) for row in range(3)] for name in PROVIDERS}
    styles = {name: look(name) for name in PROVIDERS}
    figure, (axes,) = dots("title", names, [Panel("panel", "unit", series)], styles)
    figure.canvas.draw()
    places = sorted(
        axes.transData.transform((1.0, y))[1]
        for line in axes.lines
        for y in line.get_ydata()
        if len(line.get_xdata()) == 3
    )
    assert len(places) == 3 * len(PROVIDERS)
    pixels = 5 / 72 * figure.dpi * 0.75  # of a marker, which may touch the next
    assert min(b - a for a, b in pairwise(places)) > pixels
