"""Sets of calls that bring about every kernel variant."""

from __future__ import annotations

import itertools
import random
from typing import Any

from fused_loss.bench.calls import DTYPES, SAMPLES, Call

SPACE: dict[str, tuple[Any, ...]] = {
    "heads": ("both", "classification", "regression"),
    "reduction": ("mean", "sum", "none"),
    "targets": ("int64", "int32", "uint8", "soft", "soft32"),
    "class_weight": ("", "like", "f32"),
    "smoothing": (0.0, 0.1),
    "ignore_index": (-100, 0, 1),
    "weights": ("floats", "alpha", "pair"),
    "class_mask": ("", "rows", "classes"),
    "position_weight": (False, True),
    "element_weight": ("", "full", "sample"),
    "missing": (False, True),
    "normalizers": ("", "number", "tensor", "of r", "of z"),
    "inplace": (False, True),
    "grads": ("rz", "r", "z", ""),
    "r_dtype": tuple(DTYPES),
    "z_dtype": tuple(DTYPES),
    "r_layout": ("columns", "vector", "strided"),
    "layout": ("rows", "spatial", "one", "padded", "transposed"),
    # Of the launch table: tiles of many rows and of few, the longest row kept, a longer one.
    "classes": (3, 32, 1000, 16384, 32000),
    "samples": tuple(SAMPLES),
    "retained": (False, True),
}

# What changes most of a kernel.
MAIN: dict[str, tuple[Any, ...]] = {
    **SPACE,
    "heads": ("both", "classification"),
    "reduction": ("mean", "none"),
    "targets": ("int64", "soft"),
    "class_weight": ("", "like"),
    "ignore_index": (-100,),
    "weights": ("floats", "pair"),
    "class_mask": ("", "rows"),
    "element_weight": ("", "full"),
    "normalizers": ("", "tensor"),
    "grads": ("rz", ""),
    "r_dtype": ("f32", "f16"),
    "z_dtype": ("f32", "bf16"),
    "r_layout": ("columns", "strided"),
    "layout": ("rows", "spatial"),
    "classes": (3, 1000, 32000),
    "samples": ("few", "many"),
}


def samples(space: dict[str, tuple[Any, ...]], count: int, seed: int) -> list[Call]:
    """Calls drawn evenly from the space, in normal form."""
    draw = random.Random(seed)
    return [
        Call(**{name: draw.choice(values) for name, values in space.items()}).normal()
        for _ in range(count)
    ]


def pairs(call: Call) -> set[tuple[int, int, Any, Any]]:
    """Each pair of option values in the call."""
    return {(i, j, call[i], call[j]) for i, j in itertools.combinations(range(len(call)), 2)}


def pairwise(space: dict[str, tuple[Any, ...]], pool: int = 1500) -> list[Call]:
    """A small set of calls in which every pair of option values that can meet does meet."""
    left = {call: pairs(call) for call in samples(space, pool, seed=0)}
    chosen = []
    while left:
        best = max(left, key=lambda call: len(left[call]))
        covered = left.pop(best)
        chosen.append(best)
        left = {call: rest - covered for call, rest in left.items() if rest - covered}
    return chosen


def every_option(count: int = 1500) -> list[Call]:
    """So many calls, all different: a sweep over what the kernels tell apart."""
    distinct = dict.fromkeys(samples(SPACE, 2 * count, seed=2))
    return list(distinct)[:count]
