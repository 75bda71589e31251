"""The Palmer penguins as tensors: what is measured on a bird, its body mass, its species.

Horst, Hill & Gorman (2020), https://allisonhorst.github.io/palmerpenguins. The year of the visit is
left out: it says nothing about a bird that comes tomorrow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pandas import DataFrame

MEASURES = ("bill_length_mm", "bill_depth_mm", "flipper_length_mm")
CATEGORIES = {"island": ("Biscoe", "Dream", "Torgersen"), "sex": ("female", "male")}
COLUMNS = (*MEASURES, *(value for values in CATEGORIES.values() for value in values))
SPECIES = ("Adelie", "Chinstrap", "Gentoo")
TARGETS = ("species", "body_mass_g")
HELD_OUT = 0.2


class Rows(NamedTuple):
    """One row a bird."""

    inputs: Tensor  # (N, 8) as COLUMNS: mm, NaN where not measured; then 0 or 1
    mass: Tensor  # (N, 1) in g
    species: Tensor  # (N,) indices into SPECIES


class Parts(NamedTuple):
    """Disjoint rows."""

    train: Rows
    held_out: Rows


def load() -> Rows:
    """The 342 birds of the package that were weighed."""
    from palmerpenguins import load_penguins

    return encode(load_penguins())


def encode(table: DataFrame) -> Rows:
    """Tensors of a table with the columns of `load_penguins`.

    A row without a species or a mass is dropped. A missing measure stays NaN, for the model to fill
    with what it has learned; of an unknown island or sex, every column is 0.
    """
    known = table.dropna(subset=list(TARGETS))
    measures = known[list(MEASURES)].to_numpy("float32")
    flags = [
        (known[name] == value).fillna(False).to_numpy("float32")
        for name, values in CATEGORIES.items()
        for value in values
    ]
    return Rows(
        torch.from_numpy(np.column_stack([measures, *flags])),
        torch.from_numpy(known[["body_mass_g"]].to_numpy("float32").copy()),
        torch.tensor([SPECIES.index(name) for name in known["species"]]),
    )


def split(rows: Rows, seed: int) -> Parts:
    """Hold out the same share of each species, chosen by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(rows.species), dtype=torch.bool)
    for index in range(len(SPECIES)):
        birds = (rows.species == index).nonzero().flatten()
        order = torch.randperm(len(birds), generator=generator)
        held_out[birds[order[: round(HELD_OUT * len(birds))]]] = True
    return Parts(*(Rows(*(tensor[mask] for tensor in rows)) for mask in (~held_out, held_out)))
