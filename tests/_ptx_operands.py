"""Operands of PTX as arrays with an element a thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from _ptx_memory import Array
from _ptx_ops import KINDS
from _ptx_parse import Immediate, Operand, Register

if TYPE_CHECKING:
    from _ptx_machine import Program

SHARED = 1 << 12  # where a program's shared memory begins
LANES = 32
Mask = Any  # (threads,) bool, or None: all of them
Step = Callable[["Program", Mask], None]
Read = Callable[["Program", Mask], Array]

SPECIAL: dict[str, Callable[[Program], Any]] = {
    "%tid.x": lambda program: program.threads,
    "%ntid.x": lambda program: program.count,
    "%ctaid.x": lambda program: program.number,
    "%nctaid.x": lambda program: program.launch.programs,
    "global_smem": lambda program: SHARED,
}


def reader(operand: Operand, kind: str) -> Read:
    """An operand as an array of a kind, (threads,) or ().

    Of a register that is wider the lowest bits count.
    """
    dtype = np.dtype(KINDS[kind])
    raw = f"u{dtype.itemsize}"
    bits = 1 if kind == "pred" else 8 * dtype.itemsize
    if isinstance(operand, Immediate):
        constant = np.array(operand.value & ((1 << bits) - 1), raw).view(dtype)
        return lambda program, mask: constant
    if isinstance(operand, str):
        special = SPECIAL[operand]
        return lambda program, mask: np.asarray(special(program)).astype(dtype)
    assert isinstance(operand, Register)
    if operand.bits == bits:
        return lambda program, mask: program.get(operand, mask).view(dtype)
    if operand.bits < bits or bits == 1:
        raise ValueError(operand)
    return lambda program, mask: program.get(operand, mask).astype(raw).view(dtype)


def computing(step: Step) -> Step:
    """A step whose result counts as written where all that it reads is."""

    def compute(program: Program, mask: Mask) -> None:
        program.lacking = np.zeros(program.count, bool)
        try:
            step(program, mask)
        finally:
            program.lacking = None

    return compute


def each(read: Read, program: Program, mask: Mask) -> Array:
    """An operand of each active thread."""
    return np.broadcast_to(read(program, mask), program.count)[program.active(mask)]


def put(program: Program, register: Any, value: Array, mask: Mask) -> None:
    """The bits of a value; signed numbers go into a wider register with their sign."""
    if register is None:
        return
    if register.bits > 1:
        if register.bits > 8 * value.itemsize:
            value = value.astype(f"{value.dtype.kind}{register.bits // 8}")
        value = value.view(f"u{register.bits // 8}")
    program.put(register, value, mask)


def addresses(space: str, address: Any) -> Read:
    """Base and offset."""
    kind = "u64" if space == "global" else "u32"
    read = reader(address.base, kind)
    offset = np.array(address.offset).astype(KINDS[kind])
    return lambda program, mask: read(program, mask) + offset
