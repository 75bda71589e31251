"""The Palmer penguins with the rows that most examples drop: mass or sex unknown.

Body mass is the regression, sex the classification. Of the 344 birds 2 were not weighed and of 11
the sex is unknown; every other bird has both. In every second epoch the birds without a label come
in batches of their own, in which a head has nothing to learn from.

Run it with `python examples/penguins_missing.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from missing import MISSING, Batch, compare, make_model, standard

if TYPE_CHECKING:
    from pandas import DataFrame

MEASURES = ("bill_length_mm", "bill_depth_mm", "flipper_length_mm")
FLAGS = {"species": ("Adelie", "Chinstrap", "Gentoo"), "island": ("Biscoe", "Dream", "Torgersen")}
SEXES = ("female", "male")
HELD_OUT = 66  # birds
EPOCHS, BATCH, RATE = 40, 16, 3e-3


def load() -> Batch:
    """All 344 birds."""
    from palmerpenguins import load_penguins

    return encode(load_penguins())


def encode(table: DataFrame) -> Batch:
    """Measures and masses in deviations from the mean; an unknown measure counts as the mean."""
    measures = torch.tensor(table[list(MEASURES)].to_numpy("float32"))
    flags = [table[name] == value for name, values in FLAGS.items() for value in values]
    mass = torch.tensor(table[["body_mass_g"]].to_numpy("float32"))
    sex = [SEXES.index(name) if name in SEXES else MISSING for name in table["sex"]]
    return Batch(
        torch.cat((standard(measures).nan_to_num(), torch.tensor(np.stack(flags, 1)).float()), 1),
        standard(mass),
        torch.tensor(sex),
    )


def split(birds: Batch, seed: int) -> tuple[Batch, Batch]:
    """Birds to learn from, and HELD_OUT others of which everything is known."""
    whole = ~birds.y.isnan().any(1) & (birds.t != MISSING)
    order = torch.randperm(len(birds.t), generator=torch.Generator().manual_seed(seed))
    held_out = torch.zeros_like(whole)
    held_out[order[whole[order]][:HELD_OUT]] = True
    return birds.take(~held_out), birds.take(held_out)


def batches(birds: Batch, epochs: int, seed: int) -> list[Batch]:
    """Shuffled anew in each epoch; in every second the birds without a label come apart."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for epoch in range(epochs):
        order = torch.randperm(len(birds.t), generator=random)
        parts = [order]
        if epoch % 2:
            weighed = ~birds.y[order, 0].isnan()
            sexed = birds.t[order] != MISSING
            parts = [order[~weighed], order[weighed & ~sexed], order[weighed & sexed]]
        found += [birds.take(rows) for part in parts for rows in part.split(BATCH)]
    return found


def main(epochs: int = EPOCHS) -> None:
    """Train in both ways from seed 0, and compare."""
    birds, held_out = split(load(), seed=0)
    features = birds.x.shape[1]
    compare(
        lambda: make_model(0, features, len(SEXES)), batches(birds, epochs, seed=0), held_out, RATE
    )


if __name__ == "__main__":
    torch.set_num_threads(1)  # the tensors are small: more threads would wait for one another
    main()
