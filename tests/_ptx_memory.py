"""Memory as the threads of a launch see it, and what may not be done to it.

Each tensor's storage has addresses far from all others', so that whatever leaves a tensor is seen.
What is remembered of each element: whether it belongs
to an argument, whether it has been written, and who touched it last and when.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray
APART = 40  # bits of an address within a storage
EPOCHS = 32  # bits that number the intervals between a program's barriers
SEVERAL = -1  # threads
LANES = 32


class Misuse(AssertionError):
    """What compute-sanitizer would report; `thread` is the first one that did it."""

    def __init__(self, what: str, thread: int) -> None:
        super().__init__(what)
        self.what, self.thread = what, thread


def demand(right: Array, what: str, threads: Array) -> None:
    """Raise for the first thread, of those that `threads` names, for which it is not so."""
    if not right.all():
        wrong = ~right if right.ndim == 1 else ~right.all(tuple(range(1, right.ndim)))
        raise Misuse(what, int(threads[np.flatnonzero(wrong)[0]]))


class Actor(NamedTuple):
    """The threads that make an access, and when."""

    threads: Array  # (n,) of their program
    program: int
    interval: int  # how many barriers the program has passed
    acquired: bool  # whether the program has seen what the others published

    @property
    def epoch(self) -> int:
        return (self.program << EPOCHS) + self.interval


class Region:
    """Bytes that belong together."""

    def __init__(
        self, raw: Array, granule: int = 1, valid: Array | None = None, written: Array | None = None
    ) -> None:
        """All that can be known of `raw`.

        Args:
            raw: (bytes,) uint8, a multiple of 16 from a multiple of 16.
            granule: Bytes of the smallest element.
            valid: (bytes,) whether a byte may be touched; none beyond. None: all.
            written: (bytes,) whether it has been; None: all. It is kept up to date.
        """
        self.words = {size: raw.view(f"u{size}") for size in (1, 2, 4, 8)}
        self.size = len(raw) if valid is None else len(valid)
        self.granule, self.valid, self.written = granule, valid, written
        count = -(-len(raw) // granule)
        self.awaited: Array | None = None  # (bytes,) what cp.async is about to write
        self.writer, self.reader = np.zeros(count, np.int32), np.zeros(count, np.int32)
        self.write_epoch, self.read_epoch = np.full((2, count), -1, np.int64)

    def read(self, at: Array, size: int, count: int, actor: Actor) -> Array:
        """`count` values of `size` bytes from each offset, (n, count)."""
        bytes_ = self._bytes(at, size * count, actor)
        if self.written is not None:
            demand(self.written[bytes_], "reads what nobody wrote", actor.threads)
        self._note_read(self._granules(at, size * count), actor)
        return self.words[size][self._places(at, size, count)]

    def write(self, at: Array, values: Array, actor: Actor) -> None:
        """Values (n, count) from each offset on."""
        size, count = values.dtype.itemsize, values.shape[1]
        self.claim(at, size * count, actor)
        places = self._places(at, size, count)
        self.words[size][places] = values
        same = self.words[size][places] == values
        demand(same, "race: two threads write different values at once", actor.threads)

    def claim(self, at: Array, width: int, actor: Actor) -> None:
        """Note that so many bytes from each offset on are being written."""
        bytes_ = self._bytes(at, width, actor)
        if self.written is not None:
            self.written[bytes_] = True
        granules = self._granules(at, width)
        me = actor.threads[:, None] + 1
        self._demand_alone(granules, self.writer, self.write_epoch, actor, "writes over a write")
        self._demand_alone(granules, self.reader, self.read_epoch, actor, "writes over a read")
        self.writer[granules] = me
        self.write_epoch[granules] = actor.epoch
        warps = (self.writer[granules] - 1) // LANES == (me - 1) // LANES
        demand(warps, "race: two warps write at once", actor.threads)

    def _bytes(self, at: Array, width: int, actor: Actor) -> Array:
        demand(at % width == 0, f"misaligned: {width} bytes at once", actor.threads)
        inside = (at >= 0) & (at + width <= self.size)
        demand(inside, "out of bounds: beyond the memory", actor.threads)
        bytes_ = at[:, None] + np.arange(width)
        if self.valid is not None:
            demand(self.valid[bytes_], "out of bounds: not of an argument", actor.threads)
        if self.awaited is not None:
            demand(~self.awaited[bytes_], "race: cp.async is under way", actor.threads)
        return bytes_

    def _granules(self, at: Array, width: int) -> Array:
        return (at // self.granule)[:, None] + np.arange(max(1, width // self.granule))

    def _places(self, at: Array, size: int, count: int) -> Array:
        return (at // size)[:, None] + np.arange(count)

    def _note_read(self, granules: Array, actor: Actor) -> None:
        self._demand_alone(granules, self.writer, self.write_epoch, actor, "reads a write")
        me = actor.threads[:, None] + 1
        others = self.reader[granules]
        shared = (self.read_epoch[granules] == actor.epoch) & (others != me)
        self.reader[granules] = me
        shared |= self.reader[granules] != me
        self.reader[granules[shared]] = SEVERAL
        self.read_epoch[granules] = actor.epoch

    def _demand_alone(
        self, granules: Array, who: Array, when: Array, actor: Actor, what: str
    ) -> None:
        """Nobody else has touched them since the program's last barrier; no other program ever.

        A program that has acquired may touch what the others have published.
        """
        before, epochs = who[granules], when[granules]
        other = epochs >> EPOCHS != actor.program
        if actor.acquired:
            other[:] = False
        clash = (before != 0) & (
            ((epochs == actor.epoch) & (before != actor.threads[:, None] + 1)) | other
        )
        demand(~clash, f"race: {what} of another thread", actor.threads)


class Memory:
    """The storages of a launch's arguments, each a region."""

    def __init__(self, tensors: Iterable[Tensor], written: dict[int, Array]) -> None:
        """Give each an address.

        Args:
            tensors: All arguments.
            written: By the address of a storage, which of its bytes have been written.
        """
        self.numbers: dict[int, int] = {}  # by the storages' addresses
        self.regions: list[Region] = []
        by_storage: dict[int, list[Tensor]] = {}
        for tensor in tensors:
            if tensor.numel():
                by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
        for start, views in by_storage.items():
            self.numbers[start] = len(self.regions) + 1
            self.regions.append(_region(start, views, written.get(start)))

    def address(self, tensor: Tensor | None) -> int:
        """Where the kernel finds a tensor; 0 if there is none."""
        if tensor is None or not tensor.numel():
            return 0
        start = tensor.untyped_storage().data_ptr()
        return (self.numbers[start] << APART) + tensor.data_ptr() - start

    def find(self, addresses: Array, threads: Array) -> list[tuple[Region, Array, Array]]:
        """Regions; the offsets in each, and which of the accesses they belong to."""
        numbers = (addresses >> np.uint64(APART)).astype(int)
        demand((numbers > 0) & (numbers <= len(self.regions)), "out of bounds: no memory", threads)
        offsets = (addresses & np.uint64((1 << APART) - 1)).astype(int)
        found = []
        for number in np.unique(numbers):
            mine = np.flatnonzero(numbers == number)
            found.append((self.regions[number - 1], offsets[mine], mine))
        return found


def _region(start: int, views: list[Tensor], written: Array | None) -> Region:
    assert start % 64 == 0, "PyTorch aligns what it allocates"
    size = views[0].untyped_storage().nbytes()
    raw = np.frombuffer((ctypes.c_uint8 * (size + -size % 16)).from_address(start), "u1")
    valid = np.zeros(size, bool)
    for view in views:
        itemsize = view.element_size()
        elements = torch.zeros(size // itemsize, dtype=torch.bool)
        elements.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(True)
        valid[: len(elements) * itemsize] |= np.repeat(elements.numpy(), itemsize)
    return Region(raw, min(view.element_size() for view in views), valid, written)
