"""The launch table: how many elements a program takes, and of which shape.

No figure here has been measured on hardware yet. What is compiled for sm_90 spills nothing.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import triton

TILE = 2048  # elements of logits a program holds: 16 a thread at 4 warps
WIDE = 1024  # of them at least: 8 a thread, 16 bytes of a 16-bit type
STRIDED_TILE = 1024  # the same where classes are not adjacent in memory: an address an element
STRIDED_BLOCK = 64  # and the columns of its blocks
MOST_ROWS = 128  # of a tile: one a thread, since each holds a dozen addresses and sums
BLOCK_MAX = 16384  # columns of float32 that are kept in registers, at 16 warps
STREAM_BLOCK = 8192  # columns a block of a longer row
BLOCK_M = 2048  # elements of the regression head a program takes at a time
SCALE_BLOCK = 4096  # elements of a gradient that are scaled at a time
COUNT_BOUND = 1 << 14  # positions whose labels each program counts itself: 128 KiB of int64
COUNT_CHUNK = 1 << 13  # positions a program of the counting kernel


class Tile(NamedTuple):
    """The tiling of the logits: ROWS × BLOCK_C at a time, by `warps` warps."""

    rows: int
    block_c: int
    one_block: bool
    warps: int


@functools.lru_cache(maxsize=1024)
def tile(classes: int, adjacent: bool, values: int, itemsize: int) -> Tile:
    """The tiling for rows of this length.

    Args:
        classes: C.
        adjacent: Whether the classes of a row are adjacent in memory.
        values: What is kept a class: its logit, and its target or weight, and its mask, as needed.
        itemsize: Bytes of a value in registers, 4 or 8.
    """
    width = triton.next_power_of_2(values) * itemsize // 4  # registers an element, in float32s
    room = width * (itemsize // 4) ** 2  # float64 takes the most for its arithmetic
    longest = BLOCK_MAX // room if adjacent else STRIDED_BLOCK
    block = triton.next_power_of_2(classes)
    block_c = block if block <= longest else min(longest, STREAM_BLOCK // room)
    held = (TILE if adjacent else STRIDED_TILE) // room
    if adjacent and itemsize == 4:
        held = max(held, WIDE)
    rows = min(MOST_ROWS, max(1, held // block_c))
    warps = min(16, max(4, block_c * width // 1024))
    return Tile(rows, block_c, block <= longest, warps)
