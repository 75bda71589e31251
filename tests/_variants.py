"""Which kernel variants exist: what Triton compiles apart, for the calls that the package takes.

A variant is a kernel with its constexprs and its warps. The ahead-of-time tests hold this to what
the launcher does, and the guard in conftest.py holds every launch of every test to this.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import triton.language as tl

from fused_loss.kernels import triton_launch

Variant = tuple[str, tuple[tuple[str, Any], ...]]

_OPTIONS = (
    "HAS_REGRESSION",
    "HAS_CLASSIFICATION",
    "SOFT",
    "HAS_WEIGHT",
    "SMOOTH",
    "GRAD_R",
    "GRAD_Z",
    "DEFERRED",
)
_REDUCE_OPTIONS = ("MEAN", "COUNTED", "FLAT")


@functools.cache
def _constexprs(function: Any) -> tuple[str, ...]:
    annotations = inspect.signature(function).parameters.values()
    return tuple(p.name for p in annotations if p.annotation is tl.constexpr)


def variant(kernel: Any, warps: int, arguments: dict[str, Any]) -> Variant:
    """The variant that a launch with these arguments runs."""
    values = [(name, arguments[name]) for name in _constexprs(kernel.fn)]
    return kernel.fn.__name__, (*values, ("warps", warps))


@functools.cache
def known(key: Variant) -> bool:
    """Whether some public call brings this variant about."""
    kernel, pairs = key
    c = dict(pairs)
    if kernel == "scale_kernel":
        return (c["BLOCK"], c["warps"]) == (triton_launch.SCALE_BLOCK, 4)
    if kernel == "count_kernel":
        return c["warps"] == 4
    return _options_known(kernel, c) and _tiling_known(kernel, c)


def _options_known(kernel: str, c: dict[str, Any]) -> bool:
    r, z = c["HAS_REGRESSION"], c["HAS_CLASSIFICATION"]
    gradient = c["GRAD_R"] or c["GRAD_Z"]
    rules = [
        r or z,
        c["WEIGHTS"] == "scalars" or (c["WEIGHTS"] in ("alpha", "pair") and r and z),
        z or not (c["SOFT"] or c["HAS_WEIGHT"] or c["SMOOTH"] or c["GRAD_Z"]),
        r or not c["GRAD_R"],
        gradient or not c["DEFERRED"],
    ]
    if kernel == "reduce_kernel":
        rules += [
            r or not c["FLAT"],
            (c["MEAN"] and c["GRAD_Z"] and not c["SOFT"]) or not c["COUNTED"],
        ]
    else:  # a gradient a sample always waits; the heads alone have no sample of many positions
        rules += [c["DEFERRED"] == gradient, c["ONE_POSITION"] or (r and z)]
    return all(rules)


def _tiling_known(kernel: str, c: dict[str, Any]) -> bool:
    block_m, rows = triton_launch.BLOCK_M, c["ROWS"]
    if kernel == "reduce_kernel":
        rest = c["BLOCK_M"] == block_m
    else:
        rest = c["SAMPLES"] == (rows if c["ONE_POSITION"] else 1)
        rest = rest and c["BLOCK_D"] == max(1, block_m // c["SAMPLES"])
    plain = not (c["SOFT"] or c["HAS_WEIGHT"] or c["SMOOTH"])
    tiles = _tiles(c["HAS_CLASSIFICATION"], plain, 8 if c["ACC"] == tl.float64 else 4)
    if kernel == "per_sample_kernel" and not c["HAS_CLASSIFICATION"]:
        tiles = frozenset(tile._replace(rows=block_m) for tile in tiles)
    return rest and (rows, c["BLOCK_C"], c["ONE_BLOCK"], c["warps"]) in tiles


@functools.cache
def _tiles(present: bool, plain: bool, itemsize: int) -> frozenset[triton_launch.Tile]:
    """The launch table: a tile for each power of two of classes, and one for what is longer."""
    if not present:
        return frozenset([triton_launch.tile(1, True, True, itemsize)])
    lengths = [1 << k for k in range(triton_launch.BLOCK_MAX.bit_length() + 1)]
    return frozenset(
        triton_launch.tile(classes, adjacent, plain, itemsize)
        for classes, adjacent in itertools.product(lengths, (True, False))
    )


def options(kernel: str) -> Iterator[frozenset[tuple[str, Any]]]:
    """Every combination of options of `reduce_kernel` or `per_sample_kernel` that exists."""
    flags = _OPTIONS + (_REDUCE_OPTIONS if kernel == "reduce_kernel" else ("ONE_POSITION",))
    for weights, *values in itertools.product(
        ("scalars", "alpha", "pair"), *[(False, True)] * len(flags)
    ):
        c = {"WEIGHTS": weights, **dict(zip(flags, values, strict=True))}
        if _options_known(kernel, c):
            yield frozenset(c.items())
