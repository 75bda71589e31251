"""The price and the cut of 53,940 diamonds, of which half of either label has been taken away.

The price is learned as its logarithm, in deviations from the mean: dollars squared would drown the
cross-entropy. The stones come in lots; every tenth lot lacks all its prices, and another tenth all
its cuts, so that a head has nothing to learn from there.

The table comes with plotnine. Run it with `python examples/diamonds.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from missing import MISSING, Batch, compare, make_model, standard

if TYPE_CHECKING:
    from pandas import DataFrame

SIZES = ("carat", "depth", "table", "x", "y", "z")
GRADES = ("color", "clarity")
CUTS = ("Fair", "Good", "Very Good", "Premium", "Ideal")
HELD_OUT = 0.2
KEPT = 0.5  # of either label
LOT, BARE = 512, 10  # stones a lot; every so many lots, one without any label of a head
EPOCHS, RATE = 6, 3e-3


def load() -> Batch:
    """All stones, with both labels."""
    from plotnine.data import diamonds

    return encode(diamonds)


def encode(table: DataFrame) -> Batch:
    """Sizes and log price in deviations from the mean; a flag a grade."""
    sizes = torch.tensor(table[list(SIZES)].to_numpy("float32"))
    flags = [
        (table[name] == value).to_numpy("float32")
        for name in GRADES
        for value in table[name].cat.categories
    ]
    price = torch.tensor(table[["price"]].to_numpy("float32"))
    cut = torch.tensor([CUTS.index(name) for name in table["cut"]])
    return Batch(
        torch.cat((standard(sizes), torch.tensor(np.stack(flags, 1))), 1),
        standard(price.log()),
        cut,
    )


def split(stones: Batch, seed: int) -> tuple[Batch, Batch]:
    """Stones to learn from, and those held out."""
    order = torch.randperm(len(stones.t), generator=torch.Generator().manual_seed(seed))
    held_out, learned = order.tensor_split([round(HELD_OUT * len(order))])
    return stones.take(learned), stones.take(held_out)


def remove_labels(stones: Batch, seed: int) -> Batch:
    """Without a price, without a cut: each for stones drawn at random, and for some lots whole."""
    random = torch.Generator().manual_seed(seed)
    n = len(stones.t)
    lot = torch.arange(n) // LOT % BARE
    no_price = (torch.rand(n, generator=random) >= KEPT) | (lot == 1)
    no_cut = (torch.rand(n, generator=random) >= KEPT) | (lot == 2)
    return stones._replace(
        y=stones.y.masked_fill(no_price[:, None], torch.nan),
        t=stones.t.masked_fill(no_cut, MISSING),
    )


def batches(stones: Batch, epochs: int, seed: int) -> list[Batch]:
    """A batch a lot, in another order each epoch."""
    random = torch.Generator().manual_seed(seed)
    lots = torch.arange(len(stones.t)).split(LOT)
    order = [torch.randperm(len(lots), generator=random).tolist() for _ in range(epochs)]
    return [stones.take(lots[i]) for epoch in order for i in epoch]


def main(epochs: int = EPOCHS) -> None:
    """Train in both ways from seed 0, and compare."""
    stones, held_out = split(load(), seed=0)
    stones = remove_labels(stones, seed=0)
    features = stones.x.shape[1]
    compare(
        lambda: make_model(0, features, len(CUTS)), batches(stones, epochs, seed=0), held_out, RATE
    )


if __name__ == "__main__":
    torch.set_num_threads(1)  # the tensors are small: more threads would wait for one another
    main()
