"""Which kernel variants exist: what Triton compiles apart, for the calls that the package takes.

A variant is a kernel with its constexprs and its warps. The ahead-of-time tests hold this to what
the launcher does, and the guard in conftest.py holds every launch of every test to this.
"""

from __future__ import annotations

import functools
import itertools
import random
from typing import Any

import triton.language as tl

from fused_loss.bench.ahead import Variant
from fused_loss.kernels import triton_table

UNITS = (0, 1, 2, 4, 8, 16)
DRAWS = 6000  # combinations, to see which pairs of values exist
_SWITCH = (False, True)
_KINDS = ("number", "tensor", "own", "counted")
_OPTIONS = {
    "WEIGHTS": ("scalars", "alpha", "pair"),
    **dict.fromkeys(("HAS_REGRESSION", "HAS_CLASSIFICATION", "GRAD_R", "GRAD_Z"), _SWITCH),
    **dict.fromkeys(("SOFT", "HAS_WEIGHT", "HAS_MASK", "SMOOTH", "INPLACE", "DEFERRED"), _SWITCH),
    **dict.fromkeys(("HAS_POSITION_WEIGHT", "HAS_ELEMENT_WEIGHT", "IGNORE_NAN"), _SWITCH),
}
_OF_KERNEL = {
    "reduce_kernel": {
        "R_DENOMINATOR": _KINDS,
        "Z_DENOMINATOR": _KINDS,
        "FLAT": _SWITCH,
        "SPLIT": (0, triton_table.SPLIT_MOST),
    },
    "per_sample_kernel": {"ONE_POSITION": _SWITCH},
}
OF_REGRESSION = ("GRAD_R", "HAS_ELEMENT_WEIGHT", "IGNORE_NAN")
OF_CLASSIFICATION = (
    "GRAD_Z", "SOFT", "HAS_WEIGHT", "HAS_MASK", "SMOOTH", "HAS_POSITION_WEIGHT", "INPLACE",
)  # fmt: skip
OF_COMBINED = ("HAS_MASK", "HAS_POSITION_WEIGHT", "HAS_ELEMENT_WEIGHT", "IGNORE_NAN", "INPLACE")


@functools.cache
def known(key: Variant) -> bool:
    """Whether some public call brings this variant about."""
    kernel, pairs = key
    c = dict(pairs)
    if kernel == "scale_kernel":
        return (c["BLOCK"], c["warps"]) == (triton_table.SCALE_BLOCK, 4)
    if kernel == "count_kernel":
        return c["warps"] == 4 and _count_known(c)
    if kernel == "slices_kernel":
        tile = _split_tile(_values(c), _itemsize(c))
        return (c["BLOCK_C"], c["warps"]) == (tile.block_c, tile.warps) and c["UNIT"] in UNITS
    return _options_known(kernel, c) and _tiling_known(kernel, c)


def _count_known(c: dict[str, Any]) -> bool:
    """Only what decides a denominator, of those heads that have to be counted."""
    of_r, of_z = c["HAS_ELEMENT_WEIGHT"] or c["IGNORE_NAN"], not c["SOFT"]
    of_z = of_z or (c["HAS_POSITION_WEIGHT"] and not c["HAS_WEIGHT"])
    return all(
        (
            c["COUNT_R"] or c["COUNT_Z"],
            of_r == c["COUNT_R"],
            of_z or not c["COUNT_Z"],
            c["COUNT_Z"] or not (c["SOFT"] or c["HAS_WEIGHT"] or c["HAS_POSITION_WEIGHT"]),
            c["COUNT_R"] or not c["FLAT"],
        )
    )


def _options_known(kernel: str, c: dict[str, Any]) -> bool:
    r, z = c["HAS_REGRESSION"], c["HAS_CLASSIFICATION"]
    both = r and z
    gradient = c["GRAD_R"] or c["GRAD_Z"]
    # A head alone is cross_entropy's or mse_loss's, or the only one whose gradient has waited.
    combined = both or c["DEFERRED"]
    rules = [
        r or z,
        combined or c["WEIGHTS"] == "scalars",
        combined or not any(c[name] for name in OF_COMBINED),
        z or not any(c[name] for name in OF_CLASSIFICATION),
        r or not any(c[name] for name in OF_REGRESSION),
        c["GRAD_Z"] or not c["INPLACE"],
        gradient or not c["DEFERRED"],
        not c["DEFERRED"] or (r == c["GRAD_R"] and z == c["GRAD_Z"]),
    ]
    if kernel == "reduce_kernel":
        uncounted_r = not (c["HAS_ELEMENT_WEIGHT"] or c["IGNORE_NAN"])
        uncounted_z = c["SOFT"] and not c["HAS_POSITION_WEIGHT"]
        rules += [
            r or not c["FLAT"],
            z or not c["SPLIT"],
            not c["SPLIT"] or c["Z_DENOMINATOR"] != "counted",  # few rows: never that many labels
            _denominator_known(c["R_DENOMINATOR"], r, combined, c["GRAD_R"], uncounted_r),
            _denominator_known(c["Z_DENOMINATOR"], z, combined, c["GRAD_Z"], uncounted_z),
        ]
    else:  # a gradient a sample always waits; the heads alone have no sample of many positions
        rules += [
            c["DEFERRED"] == gradient,
            c["ONE_POSITION"] or (z and combined),
        ]
    return all(rules)


def _denominator_known(kind: str, there: bool, combined: bool, grad: bool, uncounted: bool) -> bool:
    if kind == "number":
        return True
    if kind == "tensor":
        return there and combined
    return there and not uncounted and (grad or kind == "own")


def _tiling_known(kernel: str, c: dict[str, Any]) -> bool:
    rows = c["ROWS"]
    tile = triton_table.Tile(rows, c["BLOCK_C"], c["ONE_BLOCK"], c["warps"])
    block_m = tile.elements
    if kernel == "reduce_kernel":
        rest = (c["BLOCK_M"], c["STAGES"]) == (block_m, tile.stages)
    else:
        block_m = block_m * 2 // _itemsize(c)
        rest = c["SAMPLES"] == (rows if c["ONE_POSITION"] else 1)
        rest = rest and c["BLOCK_D"] == max(1, block_m // c["SAMPLES"])
    tiles = _tiles(c["HAS_CLASSIFICATION"], _values(c), _itemsize(c))
    if kernel == "reduce_kernel" and c["SPLIT"]:
        tiles = frozenset([_split_tile(_values(c), _itemsize(c))])
    if kernel == "per_sample_kernel" and not c["HAS_CLASSIFICATION"]:
        tiles = frozenset(tile._replace(rows=block_m) for tile in tiles)
    units = UNITS if c["HAS_CLASSIFICATION"] else (1,)
    return rest and c["UNIT"] in units and (rows, c["BLOCK_C"], c["ONE_BLOCK"], c["warps"]) in tiles


def _values(c: dict[str, Any]) -> int:
    return 1 + (c["SOFT"] or c["HAS_WEIGHT"] or c["SMOOTH"]) + c["HAS_MASK"]


def _itemsize(c: dict[str, Any]) -> int:
    return 8 if c["ACC"] == tl.float64 else 4


@functools.cache
def _split_tile(values: int, itemsize: int) -> triton_table.Tile:
    """Of a long row that several programs share."""
    split = triton_table.slices(triton_table.SPLIT_FROM, True, values, itemsize, 1, 132)
    assert split is not None
    return split.tile


@functools.cache
def _tiles(present: bool, values: int, itemsize: int) -> frozenset[triton_table.Tile]:
    """The launch table: a tile for each power of two of classes, and two for what is longer."""
    if not present:
        return frozenset([triton_table.tile(1, True, 1, itemsize)])
    lengths = [1 << k for k in range(triton_table.BLOCK_MAX.bit_length() + 1)]
    lengths.append(lengths[-1] + 1)  # as its classes are no multiple of 8
    return frozenset(
        triton_table.tile(classes, adjacent, values, itemsize)
        for classes, adjacent in itertools.product(lengths, (True, False))
    )


def names(kernel: str) -> tuple[str, ...]:
    """The constexprs of `reduce_kernel` or `per_sample_kernel` that are options, not tiling."""
    return (*_OPTIONS, *_OF_KERNEL[kernel])


def option_pairs(kernel: str) -> set[frozenset[tuple[str, Any]]]:
    """Every two values of options that occur together in some combination that exists."""
    draw = random.Random(0)
    values = {**_OPTIONS, **_OF_KERNEL[kernel]}
    found: set[frozenset[tuple[str, Any]]] = set()
    for _ in range(DRAWS):
        c = _mended(kernel, {name: draw.choice(known) for name, known in values.items()})
        if _options_known(kernel, c):
            found.update(map(frozenset, itertools.combinations(c.items(), 2)))
    return found


def _mended(kernel: str, c: dict[str, Any]) -> dict[str, Any]:
    """The combination without what an absent head, or one alone, cannot have."""
    off = () if c["HAS_CLASSIFICATION"] else OF_CLASSIFICATION
    off += () if c["HAS_REGRESSION"] else OF_REGRESSION
    if not c["DEFERRED"] and not (c["HAS_CLASSIFICATION"] and c["HAS_REGRESSION"]):
        off += OF_COMBINED
        c = c | {"WEIGHTS": "scalars"}
    if c["DEFERRED"]:
        c = c | {"GRAD_R": c["HAS_REGRESSION"], "GRAD_Z": c["HAS_CLASSIFICATION"]}
    elif kernel == "per_sample_kernel":
        off += ("GRAD_R", "GRAD_Z", "INPLACE")
    if kernel == "reduce_kernel" and not c["HAS_CLASSIFICATION"]:
        off += ("SPLIT",)
    return c | dict.fromkeys(off, False)
