"""PTX instructions as steps: what each does to the registers and the memory of a program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from _ptx_meeting import atomic, copy_ahead, load_matrix, shuffle, store_matrix
from _ptx_memory import demand
from _ptx_operands import Mask, Step, addresses, computing, each, put, reader
from _ptx_ops import KINDS, UnknownOpcode, find
from _ptx_parse import Address, Code, Immediate, Instruction, Operand, Register

if TYPE_CHECKING:
    from _ptx_machine import Program

CONTROL = ("bra", "bra.uni", "ret", "exit", "bar.sync")
CACHE = ("ca", "cg")  # modifiers that change no value here


@functools.lru_cache(maxsize=64)
def decoded(code: Code) -> tuple[list[Step | None], list[int]]:
    """A step of each instruction, None where control may go elsewhere; and where that is next.

    Raises:
        UnknownOpcode: There is an instruction that nothing here executes.
    """
    steps = [_decode(instruction) for instruction in code.instructions]
    labels = set(code.labels.values())
    stops = [len(steps)] * (len(steps) + 1)
    for i in reversed(range(len(steps))):
        stops[i] = i if steps[i] is None else i + 1 if i + 1 in labels else stops[i + 1]
    return steps, stops


def _decode(instruction: Instruction) -> Step | None:
    opcode, operands, guard, text = instruction
    if opcode in CONTROL:
        if opcode == "bar.sync" and operands != (Immediate(0),):
            raise UnknownOpcode(text)
        return None
    make = MAKERS.get(opcode.partition(".")[0], _value)
    try:
        step = make(opcode, *operands)
    except (AssertionError, TypeError, ValueError, KeyError, IndexError):
        raise UnknownOpcode(text) from None
    return step if guard is None else functools.partial(_guarded, step, *guard)


def _guarded(step: Step, predicate: Register, wanted: bool, program: Program, mask: Mask) -> None:
    those = program.get(predicate, mask) == wanted
    those = those if mask is None else those & mask
    if those.all():
        step(program, None)
    elif those.any():
        step(program, those)


def _value(opcode: str, to: Operand, *sources: Operand) -> Step:
    function, _, takes = find(opcode)
    reads = [reader(*pair) for pair in zip(sources, takes, strict=True)]
    divides = opcode.startswith(("div.", "rem.")) and takes[0][0] != "f"

    def step(program: Program, mask: Mask) -> None:
        values = [read(program, mask) for read in reads]
        if divides:
            demand(each(reads[1], program, mask) != 0, "divides by 0", program.active(mask))
        result = function(*values)
        if not isinstance(to, list):
            put(program, to, result, mask)
            return
        for register, part in zip(to, result, strict=True):
            put(program, register, part, mask)

    return computing(step)


def _move(opcode: str, to: Operand, source: Operand) -> Step:
    """mov; from or to a vector it splits, or joins, the bits: the lowest first.

    Beside a part that has been written there may be one that has not, and still the whole counts as
    written: the compiler pads so.
    """
    _, kind = opcode.split(".")
    dtype = np.dtype(KINDS[kind])
    if isinstance(source, list):
        bits = int(kind[1:]) // len(source)
        assert all(isinstance(part, Register) and part.bits == bits for part in source)

        def join(program: Program, mask: Mask) -> None:
            program.lacking = ~np.any([program.has(part) for part in source], 0)
            values = [program.registers[part.slot].astype(dtype) for part in source]
            shifted = [value << dtype.type(bits * i) for i, value in enumerate(values)]
            put(program, to, np.bitwise_or.reduce(shifted), mask)

        return computing(join)
    read = reader(source, kind)
    if not isinstance(to, list):
        return computing(lambda program, mask: put(program, to, read(program, mask), mask))
    width = int(kind[1:]) // len(to)

    def split(program: Program, mask: Mask) -> None:
        whole = read(program, mask)
        for i, register in enumerate(to):
            part = (whole >> dtype.type(width * i)).astype(f"u{width // 8}")
            put(program, register, part, mask)

    return computing(split)


def _access(opcode: str) -> tuple[str, str, int]:
    """Space, kind, and how many values, of a load or a store."""
    _, space, *modifiers, kind = opcode.split(".")
    lengths = [int(one[1]) for one in modifiers if one in ("v2", "v4")]
    others = [one for one in modifiers if one not in ("v2", "v4")]
    space = space.removesuffix("::cta")
    if space not in ("global", "shared", "param") or not set(others) <= set(CACHE):
        raise ValueError(opcode)
    (count,) = lengths or [1]
    return space, kind, count


def _load(opcode: str, to: Operand, source: Operand) -> Step:
    space, kind, count = _access(opcode)
    registers = to if isinstance(to, list) else [to]
    dtype = np.dtype(KINDS[kind])
    raw = f"u{dtype.itemsize}"
    assert isinstance(source, Address)
    if space == "param":

        def parameter(program: Program, mask: Mask) -> None:
            bits = program.launch.parameters[str(source.base)] & ((1 << 8 * dtype.itemsize) - 1)
            put(program, to, np.array(bits, raw).view(dtype), mask)

        return parameter
    read = addresses(space, source)

    def step(program: Program, mask: Mask) -> None:
        active = program.active(mask)
        values = np.zeros((count, program.count), raw)
        for region, offsets, mine in program.find(space, each(read, program, mask), active):
            actor = program.actor(active[mine])
            values[:, active[mine]] = region.read(offsets, dtype.itemsize, count, actor).T
        for register, value in zip(registers, values, strict=True):
            put(program, register, value.view(dtype), mask)

    return step


def _store(opcode: str, target: Operand, source: Operand) -> Step:
    space, kind, count = _access(opcode)
    sources = source if isinstance(source, list) else [source]
    reads = [reader(one, "b" + kind[1:]) for one in sources]
    read = addresses(space, target)
    if len(reads) != count:
        raise ValueError(opcode)

    def step(program: Program, mask: Mask) -> None:
        active = program.active(mask)
        values = np.stack([each(one, program, mask) for one in reads], 1)
        for region, offsets, mine in program.find(space, each(read, program, mask), active):
            region.write(offsets, values[mine], program.actor(active[mine]))

    return step


MAKERS: dict[str, Callable[..., Step]] = {
    "mov": _move,
    "ld": _load,
    "st": _store,
    "shfl": shuffle,
    "atom": atomic,
    "cp": copy_ahead,
    "stmatrix": store_matrix,
    "ldmatrix": load_matrix,
}
