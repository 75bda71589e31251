"""What the size of an error is measured by: the values of its own kind in the output.

One scale for a whole head is blind where the head holds values of two kinds. A mask writes -1e9
over illegal moves, and 64 eps of 1e9 is more than any logit; a column of grams stands beside a
column of shares. So each element is measured by the largest value of its tier and, leniently, of
its column.
"""

from __future__ import annotations

import numpy as np

# A tier is a narrow band of large values far above all others: what a mask writes.
GAP = 100.0
NARROW = 1.05
# Rounding errors of a column come from products whose sizes it shares with the other columns, so a
# column's scale may be this many times its own largest value, and at most the tier's.
COLUMN_FACTOR = 16.0


def tiers(truth: np.ndarray) -> np.ndarray:
    """0 for ordinary elements of any shape, 1, 2, ... for each band of sentinels, largest first."""
    size = np.abs(truth)
    tier = np.zeros(truth.shape, dtype=np.int64)
    known = np.sort(size[np.isfinite(size) & (size > 0)], axis=None)
    band = 0
    while (cut := _cut(known)) is not None:
        band += 1
        tier[(size >= known[cut]) & (tier == 0) & np.isfinite(size)] = band
        known = known[:cut]
    return tier


def _cut(known: np.ndarray) -> int | None:
    """Where the uppermost band begins in rising values, if it is one."""
    if known.size < 2:
        return None
    begin = int(np.searchsorted(known, known[-1] / NARROW))
    return begin if begin > 0 and known[begin] >= GAP * known[begin - 1] else None


def columns(truth: np.ndarray) -> np.ndarray:
    """The index along axis 1 of each element of (N, D, *); 0 for (N,)."""
    if truth.ndim < 2:
        return np.zeros(truth.shape, dtype=np.int64)
    shape = (1, truth.shape[1], *(1,) * (truth.ndim - 2))
    return np.broadcast_to(np.arange(truth.shape[1]).reshape(shape), truth.shape)
