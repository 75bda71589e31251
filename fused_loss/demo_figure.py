"""The demo's picture: losses over epochs, predicted against true mass, and the confusion matrix.

Drawn through matplotlib's objects alone: no display, and no state shared with other figures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from fused_loss.demo_data import SPECIES
from fused_loss.demo_model import Epoch

# Okabe & Ito (2008): told apart with any colour vision; dashes and markers tell them apart in grey.
HEADS = (
    ("regression", "mass", "#0072B2"),
    ("classification", "species", "#D55E00"),
)
PARTS = (("train", "training", "-", 0.45), ("held_out", "held-out", "--", 1.0))
MARKS = (("#E69F00", "o"), ("#CC79A7", "^"), ("#009E73", "s"))
DPI = 150


def draw(
    history: Sequence[Epoch],
    mass: np.ndarray,
    predicted_mass: np.ndarray,
    species: np.ndarray,
    predicted_species: np.ndarray,
) -> Figure:
    """The three panels.

    Args:
        history: One entry an epoch.
        mass: (N,) in g, of the held-out birds.
        predicted_mass: (N,) in g.
        species: (N,) indices into SPECIES.
        predicted_species: (N,) indices into SPECIES.
    """
    figure = Figure(figsize=(15, 5.7), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    losses, masses, classes = figure.subplots(1, 3)
    _losses(losses, history)
    _masses(masses, mass, predicted_mass, species)
    _confusion(classes, species, predicted_species)
    for axes in (losses, masses):
        # Below the axes, where no curve or point can be.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    return figure


def _losses(axes: Axes, history: Sequence[Epoch]) -> None:
    """Both components of both parts; logarithmic, as they shrink by orders of magnitude."""
    epochs = range(1, len(history) + 1)
    for head, head_name, color in HEADS:
        for part, part_name, style, opacity in PARTS:
            axes.plot(
                epochs,
                [getattr(getattr(epoch, part), head) for epoch in history],
                style,
                color=color,
                alpha=opacity,
                linewidth=1.8,
                marker="o" if len(history) == 1 else None,
                label=f"{head_name}, {part_name}",
            )
    axes.set_yscale("log")
    axes.update_datalim([(0, 0.1), (2, 1)])  # a decade at least, and whole epochs
    axes.autoscale_view()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(
        title="Loss components",
        xlabel="epoch",
        ylabel="mass: squared error (σ²), species: cross-entropy (nats)",
        box_aspect=1,
    )


def _masses(axes: Axes, mass: np.ndarray, predicted: np.ndarray, species: np.ndarray) -> None:
    """A perfect model has every bird on the line."""
    for index, (name, (color, marker)) in enumerate(zip(SPECIES, MARKS, strict=True)):
        own = species == index
        axes.scatter(
            mass[own], predicted[own], s=34, c=color, marker=marker, alpha=0.85, lw=0, label=name
        )
    both = np.concatenate([mass, predicted])
    margin = 0.05 * np.ptp(both) + 1
    ends = (both.min() - margin, both.max() + margin)
    axes.plot(ends, ends, color="0.4", linewidth=1.2, zorder=0.9, label="predicted = measured")
    rmse = np.sqrt(np.mean((predicted - mass) ** 2))
    axes.set(
        title=f"Body mass of {len(mass)} held-out birds: RMSE {rmse:.0f} g",
        xlabel="measured (g)",
        ylabel="predicted by onnxruntime (g)",
        xlim=ends,
        ylim=ends,
        aspect="equal",
    )


def _confusion(axes: Axes, species: np.ndarray, predicted: np.ndarray) -> None:
    counts = np.zeros((len(SPECIES), len(SPECIES)), dtype=int)
    np.add.at(counts, (species, predicted), 1)
    axes.imshow(counts, cmap="Blues", vmin=0)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if count > counts.max() / 2 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=15)
    places = range(len(SPECIES))
    axes.set_xticks(places, SPECIES)
    axes.set_yticks(places, SPECIES)
    axes.tick_params(length=0)
    axes.set(
        title=f"Species: {np.trace(counts)} of {counts.sum()} right",
        xlabel="predicted",
        ylabel="true",
    )
