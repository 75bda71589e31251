"""The launch table: how many elements a program takes, and of which shape.

No figure here has been measured on hardware yet. What is compiled for sm_90 spills nothing.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import triton

TILE = 2048  # elements of logits a program holds: 16 a thread at 4 warps
WIDE = 1024  # of them at least: 8 a thread, 16 bytes of a 16-bit type
STRIDED_BLOCK = 64  # columns a block where classes are not adjacent in memory
MOST_ROWS = 128  # of a tile: one a thread, since each holds a dozen addresses and sums
BLOCK_MAX = 16384  # columns of float32 that are kept in registers, at 16 warps
PIPELINED_FROM = 2048  # columns of a row from which the next one is read ahead, by cp.async
STREAM_BLOCK = 8192  # columns a block of a longer row
RESIDENT = 32  # warps that each head starts a multiprocessor; registers let 16 to 32 of them stay
BLOCK_M = 512  # elements of the regression head a warp takes at a time, half of it from 8 warps
SCALE_BLOCK = 4096  # elements of a gradient that are scaled at a time
SCALE_RESIDENT = 8  # programs a multiprocessor
COUNT_BOUND = 1 << 14  # positions whose labels each program counts itself: 128 KiB of int64
COUNT_READS = 1 << 21  # labels that all programs together read for that, from L2: 16 MiB of int64
COUNT_CHUNK = 1 << 13  # positions a program of the counting kernel
SPLIT = True  # few long rows: several programs a row, at the price of a launch. Not measured
SPLIT_FROM = 32000  # columns of such a row at least
SPLIT_BLOCK = 1024  # of them at a time: 8 a thread at 4 warps, 16 bytes of a 16-bit type
SPLIT_MOST = 256  # programs a row


class Tile(NamedTuple):
    """The tiling of the logits: ROWS × BLOCK_C at a time, by `warps` warps."""

    rows: int
    block_c: int
    one_block: bool
    warps: int

    @property
    def stages(self) -> int:
        """Rows in flight a program: the one it works on, and the one that is read meanwhile."""
        return 2 if self.one_block and self.block_c >= PIPELINED_FROM else 1

    @property
    def elements(self) -> int:
        """Of the regression head that a program takes at a time: 16 a thread, or 8."""
        return BLOCK_M * min(self.warps, max(4, self.warps // 2))

    @property
    def programs(self) -> int:
        """That each head starts a multiprocessor, at the most."""
        return max(1, RESIDENT // self.warps)


class Slices(NamedTuple):
    """A row split over `number` programs, `columns` each, whole blocks; the last may have fewer."""

    number: int
    columns: int
    tile: Tile


@functools.lru_cache(maxsize=1024)
def tile(classes: int, adjacent: bool, values: int, itemsize: int) -> Tile:
    """The tiling for rows of this length.

    Args:
        classes: C.
        adjacent: Whether the classes of a row are adjacent in memory.
        values: What is kept a class: its logit, and its target or weight, and its mask, as needed.
        itemsize: Bytes of a value in registers, 4 or 8.
    """
    width, room = _registers(values, itemsize)
    longest = BLOCK_MAX // room if adjacent else STRIDED_BLOCK
    if adjacent and classes % 8:  # kept an element at a time: the longest would spill
        longest //= 2
    block = triton.next_power_of_2(classes)
    block_c = block if block <= longest else min(longest, STREAM_BLOCK // room)
    held = TILE // room
    if adjacent and itemsize == 4:
        held = max(held, WIDE)
    rows = min(MOST_ROWS, max(1, held // block_c))
    warps = min(16, max(4, block_c * width // 1024))
    if adjacent and rows == 2:  # a program each: what is done once a row is done by fewer threads
        rows, warps = 1, 2
    if adjacent and block > longest and classes % 8 and block_c > 512 * warps:
        block_c //= 2  # an address and a mask for each element, or ends beside the body
    return Tile(rows, block_c, block <= longest, warps)


@functools.lru_cache(maxsize=1024)
def slices(
    classes: int, adjacent: bool, values: int, itemsize: int, positions: int, processors: int
) -> Slices | None:
    """How rows of this length are split; None where a program a row keeps the device busy.

    Args:
        classes: C.
        adjacent: As `tile` takes it, and the next two.
        values: What is kept a class.
        itemsize: Bytes of a value in registers.
        positions: How many rows.
        processors: Of the device.
    """
    few = 0 < positions < processors
    if not (SPLIT and few and adjacent and classes >= SPLIT_FROM):
        return None
    _, room = _registers(values, itemsize)
    block_c = min(SPLIT_BLOCK, STREAM_BLOCK // room)
    resident = 8 * processors  # programs of 4 warps, as for every other tiling
    wanted = min(SPLIT_MOST, resident // positions, triton.cdiv(classes, block_c))
    columns = triton.cdiv(triton.cdiv(classes, wanted), block_c) * block_c
    return Slices(triton.cdiv(classes, columns), columns, Tile(1, block_c, False, 4))


def _registers(values: int, itemsize: int) -> tuple[int, int]:
    """Registers an element, in float32s: what is kept of it, and what its arithmetic takes."""
    width = triton.next_power_of_2(values) * itemsize // 4
    return width, width * (itemsize // 4) ** 2  # float64 takes the most for its arithmetic
