"""Which kernel variants are in use, and the public calls that bring each of them about.

A variant is what Triton compiles apart: a kernel, its constexprs and its warps. `known` says which
ones exist. `Call` is one public call on tensors without memory; the launcher itself turns it into
launches, so nothing of its logic is copied here.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton.language as tl
from torch import Tensor

import fused_loss
from fused_loss.kernels import dispatch, triton_launch
from fused_loss.spec import class_axis

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}
SAMPLES = {"few": 100, "many": 1 << 17, "huge": 1 << 31}  # of which the last needs 64-bit scalars

Variant = tuple[str, tuple[tuple[str, Any], ...]]


@functools.cache
def _constexprs(function: Any) -> tuple[str, ...]:
    annotations = inspect.signature(function).parameters.values()
    return tuple(p.name for p in annotations if p.annotation is tl.constexpr)


def variant(kernel: Any, warps: int, arguments: dict[str, Any]) -> Variant:
    """The variant that a launch with these arguments runs."""
    values = [(name, arguments[name]) for name in _constexprs(kernel.fn)]
    return kernel.fn.__name__, (*values, ("warps", warps))


# --- what exists ----------------------------------------------------------------------------------


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


# --- public calls ---------------------------------------------------------------------------------


class Call(NamedTuple):
    """One call of `combined_loss`, `cross_entropy` or `mse_loss`, and its backward."""

    heads: str = "both"  # or "classification", "regression": one of them alone
    reduction: str = "mean"
    targets: str = "int64"  # a dtype of indices; "soft": the logits' dtype; "soft32"
    class_weight: str = ""  # "like" the logits, or "f32"
    smoothing: float = 0.0
    ignore_index: int = -100
    weights: str = "floats"
    grads: str = "rz"
    r_dtype: str = "f32"
    z_dtype: str = "f32"
    r_layout: str = "columns"
    layout: str = "rows"
    classes: int = 1000
    samples: str = "few"
    retained: bool = False

    def normal(self) -> Call:
        """The same call with every option that cannot matter, or is illegal, at its default."""
        default, changes = Call(), {}
        if self.heads == "regression":
            unused = ("targets", "class_weight", "smoothing", "ignore_index", "weights", "z_dtype")
            for name in (*unused, "layout", "classes"):
                changes[name] = getattr(default, name)
            changes["grads"] = self.grads.replace("z", "")
        elif self.heads == "classification":  # as PyTorch: two index dtypes, one float dtype
            for name in ("weights", "r_dtype", "r_layout"):
                changes[name] = getattr(default, name)
            changes["grads"] = self.grads.replace("r", "")
            changes["targets"] = {"int32": "int64", "soft32": "soft"}.get(
                self.targets, self.targets
            )
            changes["class_weight"] = self.class_weight and "like"
        if self.targets.startswith("soft"):
            changes["ignore_index"] = default.ignore_index
        if self.heads != "regression" and self.layout == "one":
            changes["samples"] = default.samples
        if not changes.get("grads", self.grads):
            changes["retained"] = False
        return self._replace(**changes)

    @property
    def vectors(self) -> bool:
        """Whether every access to logits, probabilities and gradient is to move 128 bits.

        Rows of a multiple of 16 classes, adjacent and dense, from an aligned address: Triton knows
        then that 16 bytes are aligned. Not for sums in float64: their tiles are so small that a
        thread may hold less than 16 bytes.
        """
        vectors = self.heads != "regression" and self.layout == "rows" and self.classes % 16 == 0
        return vectors and "f64" not in (self.z_dtype, self.r_dtype)

    def run(self) -> None:
        """Make the call on tensors without memory; the caller has replaced the launch."""
        r, y = self._regression()
        z, t = self._classification()
        weight = None
        if self.class_weight:
            dtype = self.z_dtype if self.class_weight == "like" else self.class_weight
            weight = _empty(self.classes, dtype=DTYPES[dtype])
        options = {
            "reduction": self.reduction,
            "ignore_index": self.ignore_index,
            "label_smoothing": self.smoothing,
        }
        with fused_loss.backend("triton"):
            if self.heads == "regression":
                loss = fused_loss.mse_loss(r, y, reduction=self.reduction)
            elif self.heads == "classification":
                loss = fused_loss.cross_entropy(z, t, weight, **options)
            else:
                weights = {"floats": {}, "alpha": {"alpha": _empty()}}.get(
                    self.weights, {"loss_weights": _empty(2)}
                )
                loss = fused_loss.combined_loss(
                    r, z, y, t, class_weight=weight, **options, **weights
                )
        if self.grads:
            loss.sum().backward(retain_graph=self.retained)

    def _regression(self) -> tuple[Tensor, Tensor]:
        n, dtype = SAMPLES[self.samples], DTYPES[self.r_dtype]
        shape = {"vector": (n,), "columns": (n, 16), "strided": (n, 2 * 16)}[self.r_layout]
        r, y = _empty(*shape, dtype=dtype), _empty(*shape, dtype=dtype)
        if self.r_layout == "strided":
            r, y = r[:, ::2], y[:, ::2]
        return r.requires_grad_("r" in self.grads), y

    def _classification(self) -> tuple[Tensor, Tensor]:
        n, c, dtype = SAMPLES[self.samples], self.classes, DTYPES[self.z_dtype]
        z = {
            "rows": lambda: _empty(n, c, dtype=dtype),
            "padded": lambda: _empty(n, c + 1, dtype=dtype)[:, 1:],
            "transposed": lambda: _empty(c, n, dtype=dtype).mT,
            "spatial": lambda: _empty(n, c, 8, 8, dtype=dtype),
            "one": lambda: _empty(c, dtype=dtype),
        }[self.layout]()
        z.requires_grad_("z" in self.grads)
        if self.targets.startswith("soft"):
            soft = torch.float32 if self.targets == "soft32" else dtype
            return z, torch.empty_like(z, dtype=soft, requires_grad=False)
        _, positions = class_axis(z)
        return z, _empty(*positions, dtype=getattr(torch, self.targets))


@contextmanager
def launches_go_to(launch: Callable[..., None]) -> Iterator[None]:
    """Replace the launch, and let tensors without a device be taken for tensors on a GPU."""
    with (
        mock.patch.object(triton_launch, "launch", launch),
        mock.patch.object(triton_launch, "_processors", return_value=132),
        mock.patch.object(dispatch, "_demand_triton"),
    ):
        yield


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


# --- sets of calls --------------------------------------------------------------------------------

SPACE: dict[str, tuple[Any, ...]] = {
    "heads": ("both", "classification", "regression"),
    "reduction": ("mean", "sum", "none"),
    "targets": ("int64", "int32", "uint8", "soft", "soft32"),
    "class_weight": ("", "like", "f32"),
    "smoothing": (0.0, 0.1),
    "ignore_index": (-100, 0, 1),
    "weights": ("floats", "alpha", "pair"),
    "grads": ("rz", "r", "z", ""),
    "r_dtype": tuple(DTYPES),
    "z_dtype": tuple(DTYPES),
    "r_layout": ("columns", "vector", "strided"),
    "layout": ("rows", "spatial", "one", "padded", "transposed"),
    # A few columns, many rows a tile, one row a tile, the longest block, block after block.
    "classes": (3, 32, 1000, 8192, 16384, 32000),
    "samples": tuple(SAMPLES),
    "retained": (False, True),
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


def every_option() -> list[Call]:
    """A call at least for each combination of options that the kernels tell apart."""
    space: dict[str, tuple[Any, ...]] = {
        **{name: SPACE[name] for name in ("heads", "reduction", "smoothing", "weights", "grads")},
        "targets": ("int64", "soft"),
        "class_weight": ("", "like"),
        "z_dtype": ("f32", "f16"),
        "r_layout": ("columns", "strided"),
        "layout": ("rows", "spatial"),
        "samples": ("few", "many"),
    }
    calls = (
        Call(**dict(zip(space, values, strict=True)))
        for values in itertools.product(*space.values())
    )
    return sorted(
        {
            call._replace(r_dtype=call.z_dtype).normal()
            for call in calls
            if call.layout == ("rows" if call.reduction != "none" else call.layout)
            and call.samples == ("few" if call.reduction != "mean" else call.samples)
        }
    )
