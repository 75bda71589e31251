"""What the eager backend works on at a time: parts of a call's tensors that fit the cache.

PyTorch's softmax of a row shorter than a vector register takes an element at a time. So many such
rows are seen as one sample of many positions, (N, C) -> (1, C, N), and a tile of them goes through
a buffer with a row a class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_loss.spec import LossTensors

BLOCK_ELEMENTS = 1 << 20  # 4 MiB of float32: fewer blocks are fewer operators, and L3 is near
SCRATCH_SHARE = 20  # of the elements of a tensor, a block that needs a buffer of its own takes one
SCRATCH_LEAST = 1 << 19  # but no fewer than these
VECTOR_BYTES = {"AVX512": 64}.get(torch.backends.cpu.get_cpu_capability(), 32)
MANY_ROWS = 128  # fewer are not worth the two copies
FEW_CLASSES = 32


class Tile(NamedTuple):
    """A part of a tensor (N, C, d1, ...) with whole positions: some samples, or a part of one."""

    samples: slice
    along: slice | None  # of the longest of d1, d2, ...; None: all
    axis: int = 0  # which one that is


def tiles(shape: Sequence[int], elements: int) -> list[Tile]:
    """(N, C, d1, ...) in tiles of about so many elements."""
    samples, *rest = shape
    size = math.prod(rest)  # of a sample
    if samples * size <= elements:
        return [Tile(slice(None), None)]
    if size <= elements or len(rest) < 2:
        rows = max(1, elements // size)
        return [Tile(slice(n, n + rows), None) for n in range(0, samples, rows)]
    length = max(rest[1:])
    axis = rest.index(length, 1) - 1
    step = max(1, elements * length // size)
    parts = [slice(d, d + step) for d in range(0, length, step)]
    return [Tile(slice(n, n + 1), part, axis) for n in range(samples) for part in parts]


def cut(values: Any, tile: Tile, d1: int = 1) -> Any:
    """What lies in a tile: of a tensor whose d1 is that dimension, or spreads over it.

    Numbers, 0-d tensors and None are the same everywhere.
    """
    if not isinstance(values, Tensor) or not values.dim():
        return values
    values, axis = values[tile.samples], d1 + tile.axis
    if tile.along is None or values.shape[axis] == 1:
        return values
    return values[(slice(None),) * axis + (tile.along,)]


def tile_elements(numel: int, small: bool) -> int:
    """How many elements a tile has at most, of so many; `small`: it needs a buffer of its own."""
    if not small:
        return BLOCK_ELEMENTS
    return min(BLOCK_ELEMENTS, max(SCRATCH_LEAST, numel // SCRATCH_SHARE))


def move(source: Tensor, target: Tensor) -> Tensor:
    """target <- source, both (n, C, d1, ...); returns the target.

    From rows of few classes to a row a class, or back, `copy_` takes C elements at a time, and
    `stack` as many as there are.
    """
    if source.dim() == 3 and len(source) == 1 and 1 < source.shape[1] < FEW_CLASSES:
        if source.stride(1) == 1 and target.is_contiguous():
            torch.stack(source[0].unbind(), out=target[0])
            return target
        if target.stride(1) == 1 and source.is_contiguous():
            torch.stack(source[0].unbind(), 1, out=target[0].t())
            return target
    return target.copy_(source)


def adjacent(view: Any) -> Any:
    """A turned tile with a row a class; None as it is."""
    if view is None:
        return None
    return move(view, torch.empty(view.shape, dtype=view.dtype, device=view.device))


def _block_elements() -> int:
    return min(BLOCK_ELEMENTS, SCRATCH_LEAST) // 2  # a buffer for its errors, or two


def fits_a_block(tensor: Tensor) -> bool:
    """Whether `blocks` leaves it whole."""
    return tensor.numel() <= _block_elements()


def blocks(first: Tensor, *rest: Any) -> Iterator[tuple[Any, ...]]:
    """`first` in blocks along dimension 0, with the same rows of the rest.

    Numbers, 0-d tensors and None go along as they are.
    """
    if fits_a_block(first):
        yield first, *rest
        return
    rows = max(1, _block_elements() * first.shape[0] // first.numel())
    for start in range(0, first.shape[0], rows):
        block = slice(start, start + rows)
        parts = (t[block] if isinstance(t, Tensor) and t.dim() else t for t in rest)
        yield first[block], *parts


class View(NamedTuple):
    """The classification tensors of a call, or of a tile: (N, C, d1, ...) and (N, d1, ...)."""

    logits: Tensor  # (N, C, d1, ...)
    gradient: Tensor | None  # (N, C, d1, ...): where it goes
    mask: Tensor | None  # (N, C, d1, ...)
    targets: Tensor  # indices (N, d1, ...), or probabilities (N, C, d1, ...)
    weight: Tensor | None  # (N, d1, ...)

    def tile(self, tile: Tile) -> View:
        """The part of each that lies in a tile."""
        if tile.along is None:
            return View(*(None if view is None else view[tile.samples] for view in self))  # type: ignore[arg-type]
        logits, gradient, mask = (cut(view, tile, 2) for view in self[:3])
        targets = cut(self.targets, tile, 2 if self.probabilities else 1)
        return View(logits, gradient, mask, targets, cut(self.weight, tile))

    @property
    def probabilities(self) -> bool:
        """Whether the targets are probabilities."""
        return self.targets.is_floating_point()


def short_rows(logits: Tensor, dtype: torch.dtype) -> bool:
    """Whether these are many rows, each shorter than a vector register holds of this dtype."""
    if not logits.is_cpu or logits.dim() != 2:
        return False
    rows, classes = logits.shape
    return rows >= MANY_ROWS and 1 < classes < VECTOR_BYTES // dtype.itemsize


def view_of(tensors: LossTensors, gradient: Tensor | None, turned: bool) -> View:
    """Logits (C,) as (1, C); those that are `turned` as (1, C, N); all others as they are."""
    z, t = tensors.classification_output, tensors.classification_targets
    assert z is not None
    assert t is not None
    view = View(z, gradient, tensors.class_mask, t, tensors.classification_weight)
    if z.dim() > 1 and not turned:
        return view
    by_class = [True, True, True, view.probabilities, False]
    return View(*(_as_sample(v, turned and c) for v, c in zip(view, by_class, strict=True)))


def _as_sample(view: Tensor | None, turned: bool) -> Any:
    """(*) as (1, *), transposed where it is turned."""
    if view is None:
        return None
    return (view.t() if turned else view)[None]
