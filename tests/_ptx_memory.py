"""Memory as the threads of a launch see it, and what may not be done to it.

Each tensor's storage has addresses far from all others', so that whatever leaves a tensor is seen.
What is remembered of each element: whether it belongs to an argument, whether it has been written,
and who touched it last and when.
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


class Misuse(AssertionError):
    """What compute-sanitizer would report; `thread` is the first one that did it."""

    def __init__(self, what: str, thread: int) -> None:
        super().__init__(what)
        self.what, self.thread = what, thread


class Apart(Misuse):
    """A warp acts as one, and not all of its threads have come: it waits while others may."""

    place = -1  # of the instruction


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
        self,
        raw: Array,
        size: int,
        granule: int = 1,
        valid: Array | None = None,
        written: Array | None = None,
        private: bool = False,
    ) -> None:
        """All that can be known of some memory.

        Args:
            raw: (bytes,) uint8, a multiple of 16 from a multiple of 16.
            size: How many of them there are to touch.
            granule: Bytes of which one is never touched without the others.
            valid: (size,) whether a byte may be touched; None: all.
            written: (size,) whether it has been; None: all. It is kept up to date.
            private: Whether it is shared memory, of one program.
        """
        self.words = {n: raw.view(f"u{n}") for n in (1, 2, 4, 8)}
        self.size, self.granule, self.valid, self.written = size, granule, valid, written
        self.private = private
        self.awaited = np.zeros(len(raw) if private else 0, bool)  # by cp.async
        count = -(-len(raw) // granule)
        self.writer, self.reader = np.zeros((2, count), np.int32)  # threads from 1 on
        self.write_epoch, self.read_epoch = np.full((2, count), -1, np.int64)

    def read(self, at: Array, size: int, count: int, actor: Actor) -> Array:
        """`count` values of `size` bytes from each offset, (n, count)."""
        touched = self._touched(at, size * count, actor)
        if self.written is not None:
            demand(self.written[touched], "reads what nobody wrote", actor.threads)
        granules = self._granules(at, size * count)
        clash = self._by_another(granules, self.writer, self.write_epoch, actor, self.private)
        demand(~clash, "race: reads what another thread writes", actor.threads)
        me = actor.threads[:, None] + 1
        several = (self.read_epoch[granules] == actor.epoch) & (self.reader[granules] != me)
        self.reader[granules] = me
        several |= self.reader[granules] != me
        self.reader[granules[several]] = SEVERAL
        self.read_epoch[granules] = actor.epoch
        return self.words[size][(at // size)[:, None] + np.arange(count)]

    def checked(self, at: Array, size: int, actor: Actor) -> Array:
        """All values of `size` bytes; those at the offsets are for an atomic to read and write."""
        touched = self._touched(at, size, actor)
        if self.written is not None:
            demand(self.written[touched], "reads what nobody wrote", actor.threads)
        return self.words[size]

    def write(self, at: Array, values: Array, actor: Actor) -> None:
        """Values (n, count) from each offset on.

        Several threads may write the same value: those that hold the same element.
        """
        size, count = values.dtype.itemsize, values.shape[1]
        touched, granules = self._touched(at, size * count, actor), self._granules(at, size * count)
        places = (at // size)[:, None] + np.arange(count)
        clash = self._by_another(granules, self.reader, self.read_epoch, actor, self.private)
        demand(~clash, "race: writes what another thread reads", actor.threads)
        other = np.repeat(self.words[size][places] != values, granules.shape[1] // count, 1)
        clash = self._by_another(granules, self.writer, self.write_epoch, actor, True) & other
        demand(~clash, "race: writes what another thread writes", actor.threads)
        self.words[size][places] = values
        same = self.words[size][places] == values
        demand(same, "race: writes what another thread writes", actor.threads)
        self.writer[granules] = actor.threads[:, None] + 1
        self.write_epoch[granules] = actor.epoch
        if self.written is not None:
            self.written[touched] = True

    def _touched(self, at: Array, width: int, actor: Actor) -> Array:
        """(n, width) bytes, all of which may be touched."""
        demand(at % width == 0, f"misaligned: {width} bytes at once", actor.threads)
        inside = (at >= 0) & (at + width <= self.size)
        demand(inside, "out of bounds: beyond the memory", actor.threads)
        bytes_ = at[:, None] + np.arange(width)
        if self.valid is not None:
            demand(self.valid[bytes_], "out of bounds: not of an argument", actor.threads)
        if self.private:
            demand(~self.awaited[bytes_], "race: cp.async is under way", actor.threads)
        return bytes_

    def _granules(self, at: Array, width: int) -> Array:
        assert width >= self.granule, "a part of an element"
        return (at // self.granule)[:, None] + np.arange(width // self.granule)

    def _by_another(
        self, granules: Array, who: Array, when: Array, actor: Actor, within: bool
    ) -> Array:
        """Where another program did it, and this one has not acquired what others publish.

        And, `within` a program, where another thread did since the last barrier. Not so for what
        is read in global memory: threads that hold the same element read it each, and one of them
        may write over it. What the others then read nobody uses, as running each warp alone shows.
        """
        before, epochs = who[granules], when[granules]
        elsewhere = (epochs >> EPOCHS != actor.program) & (not actor.acquired)
        here = (epochs == actor.epoch) & (before != actor.threads[:, None] + 1) & within
        return (before != 0) & (here | elsewhere)


class Memory:
    """The storages of a launch's arguments, each a region."""

    def __init__(self, tensors: Iterable[Tensor], written: dict[int, Array]) -> None:
        """Give each an address.

        Args:
            tensors: All arguments.
            written: By the address of a storage, which of its bytes have been written.
        """
        self.tensors = [tensor for tensor in tensors if tensor.numel()]  # which live as long
        self.numbers: dict[int, int] = {}  # by the storages' addresses
        self.regions: list[Region] = []
        by_storage: dict[int, list[Tensor]] = {}
        for tensor in self.tensors:
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
    granule = min(4, *(view.element_size() for view in views))
    return Region(raw, size, granule, valid, written)
