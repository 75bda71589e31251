import sys
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from fused_loss.demo_data import SPECIES
from fused_loss.demo_figure import HEADS, MARKS, draw
from fused_loss.demo_model import Epoch, Scores


def history(epochs):
    """Losses over many orders of magnitude, different for each part and head."""
    decay = 10.0 ** (-5 * np.arange(epochs) / epochs)
    return [
        Epoch(Scores(0.9, 300.0, 1.0, 0.8 * x, 0.7 * x), Scores(0.9, 300.0, 1.0, 0.6 * x, 0.5 * x))
        for x in decay.tolist()
    ]


def figure(epochs=40, birds=30):
    """Species in turn; one bird of the first is taken for one of the last."""
    mass = np.linspace(2700.0, 6300.0, birds)
    species = np.arange(birds) % 3
    guessed = species.copy()
    guessed[0] = 2
    return draw(history(epochs), mass, mass[::-1] + 50, species, guessed), mass, species


def test_the_curves_are_the_losses():
    drawn, _, _ = figure()
    lines = drawn.axes[0].get_lines()
    told = {line.get_label(): line for line in lines}
    assert len(told) == len(lines) == 4
    for (head, name, color), part in ((h, p) for h in HEADS for p in ("train", "held_out")):
        line = told[f"{name}, {'training' if part == 'train' else 'held-out'}"]
        assert line.get_xdata()[0] == 1
        assert list(line.get_ydata()) == [getattr(getattr(e, part), head) for e in history(40)]
        assert to_hex(line.get_color()).upper() == color
    assert len({(line.get_linestyle(), to_hex(line.get_color())) for line in lines}) == 4
    assert drawn.axes[0].get_yscale() == "log"


def test_the_points_are_the_birds_and_the_line_is_the_identity():
    drawn, mass, species = figure()
    axes = drawn.axes[1]
    assert [points.get_label() for points in axes.collections] == list(SPECIES)
    for index, points in enumerate(axes.collections):
        expected = np.stack([mass, mass[::-1] + 50], 1)[species == index]
        np.testing.assert_array_equal(points.get_offsets(), expected)
    line = axes.get_lines()[0]
    np.testing.assert_array_equal(line.get_xdata(), line.get_ydata())
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_xlim()[0] < mass.min()
    assert axes.get_xlim()[1] > mass.max() + 50
    rmse = np.sqrt(np.mean((mass[::-1] + 50 - mass) ** 2))
    assert axes.get_title() == f"Body mass of 30 held-out birds: RMSE {rmse:.0f} g"


def test_the_matrix_counts_rows_true_columns_predicted():
    drawn, _, _ = figure()
    axes = drawn.axes[2]
    counts = {tuple(map(int, text.get_position())): int(text.get_text()) for text in axes.texts}
    expected = np.diag([9, 10, 10])
    expected[0, 2] = 1
    assert {(c, r): count for (r, c), count in np.ndenumerate(expected)} == counts
    np.testing.assert_array_equal(axes.images[0].get_array(), expected)
    assert axes.get_title() == "Species: 29 of 30 right"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


@pytest.mark.parametrize("epochs", [1, 2, 60, 3000])
def test_nothing_overlaps_or_is_cut_off(epochs):
    drawn, _, _ = figure(epochs)
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    renderer = canvas.get_renderer()
    panels = [axes.get_tightbbox(renderer) for axes in drawn.axes]
    for left, right in pairwise(panels):
        assert left.x1 < right.x0
    for panel in panels:
        assert drawn.bbox.contains(panel.x0, panel.y0)
        assert drawn.bbox.contains(panel.x1, panel.y1)
    for axes in drawn.axes[:2]:
        legend = axes.get_legend().get_window_extent(renderer)
        for part in (axes.patch, axes.xaxis.label):
            assert not legend.overlaps(part.get_window_extent(renderer))
    for axes in drawn.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = [label.get_window_extent(renderer) for label in axis.get_ticklabels()]
            shown = [box for box in labels if box.width]
            assert len(shown) >= 2
            assert not any(first.overlaps(second) for first, second in pairwise(shown))


def test_it_needs_no_display_and_no_pyplot(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # its import fails
    monkeypatch.setenv("MPLBACKEND", "TkAgg")
    figure()[0].savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_species_differ_in_colour_and_in_shape():
    colors, shapes = zip(*MARKS, strict=True)
    assert len(set(colors)) == len(set(shapes)) == len(SPECIES)
