"""The instructions of PTX in which threads meet: shuffles, atomics, cp.async, stmatrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from _ptx_memory import Apart, Array, demand
from _ptx_operands import LANES, SHARED, Mask, Step, addresses, computing, each, put, reader
from _ptx_parse import Immediate, Operand

if TYPE_CHECKING:
    from _ptx_machine import Program


def _whole_warps(program: Program, mask: Mask) -> None:
    """All threads of a warp are there, or none, as an instruction of the whole warp wants."""
    if mask is not None:
        warps = mask.reshape(-1, LANES)
        apart = warps.any(1) & ~warps.all(1)
        if apart.any():
            missing = int(np.flatnonzero(apart.repeat(LANES) & ~mask)[0])
            raise Apart("its warp acts as one, and it is not there", missing)


def shuffle(opcode: str, to: Operand, source: Operand, by: Operand, *rest: Operand) -> Step:
    """shfl.sync: the value of the lane of a number, or of a number that differs by these bits."""
    of_lane = {"shfl.sync.bfly.b32": np.bitwise_xor, "shfl.sync.idx.b32": lambda _, lane: lane}[
        opcode
    ]
    if rest != (Immediate(LANES - 1), Immediate(-1)):
        raise ValueError(opcode)
    read, number = reader(source, "b32"), reader(by, "u32")

    def step(program: Program, mask: Mask) -> None:
        lanes = program.threads % LANES
        partner = (
            program.threads - lanes + of_lane(lanes, number(program, mask).astype(int)) % LANES
        )
        _whole_warps(program, mask)

        def exchange(program: Program, mask: Mask) -> None:
            value = np.broadcast_to(read(program, mask), program.count)[partner]
            assert program.lacking is not None
            program.lacking = program.lacking[partner]
            put(program, to, value, mask)

        computing(exchange)(program, mask)

    return step


def atomic(opcode: str, to: Operand, target: Operand, source: Operand) -> Step:
    """One thread after another; acquiring, the program sees what the others have published."""
    order = {f"atom.global.gpu.{how}.add.u32": how for how in ("relaxed", "acq_rel")}[opcode]
    address, read = addresses("global", target), reader(source, "u32")

    def step(program: Program, mask: Mask) -> None:
        active = program.active(mask)
        amounts = each(read, program, mask)
        before = np.zeros(program.count, "u4")
        program.acquired |= order == "acq_rel"
        for region, offsets, mine in program.find("global", each(address, program, mask), active):
            words = region.checked(offsets, 4, program.actor(active[mine]))
            for offset, i in zip(offsets // 4, mine, strict=True):
                before[active[i]] = words[offset]
                words[offset] += amounts[i]
        put(program, to, before, mask)

    return step


def copy_ahead(opcode: str, *operands: Any) -> Step:
    """cp.async: what it writes is nobody's until its group has been waited for."""
    if opcode == "cp.async.commit_group":
        return _counting(lambda program: program.copies[program.batch].append([]))
    if opcode == "cp.async.wait_group":
        left = operands[0].value
        return _counting(lambda program: _finish(program, left))
    if opcode not in ("cp.async.ca.shared.global", "cp.async.cg.shared.global"):
        raise ValueError(opcode)
    to, source, size, *rest = operands
    reads = addresses("shared", to), addresses("global", source)
    (length,) = (reader(one, "u32") for one in rest or [size])

    def step(program: Program, mask: Mask) -> None:
        active = program.active(mask)
        at, origins = (each(read, program, mask) for read in reads)
        lengths = each(length, program, mask)
        demand((lengths == 0) | (lengths == size.value), "copies a part of its size", active)
        reading = np.flatnonzero(lengths)
        sources = program.launch.memory.find(origins[reading], active[reading])

        def fetched() -> Array:
            values = np.zeros((len(active), size.value // 4), "u4")
            for region, offsets, mine in sources:
                actor = program.actor(active[reading][mine])
                values[reading[mine]] = region.read(offsets, 4, values.shape[1], actor)
            return values

        _begin(program, at.astype(int) - SHARED, fetched, active)

    return step


def _begin(program: Program, at: Array, fetched: Callable[[], Array], active: Array) -> None:
    """Until they arrive there is nothing to rely on, and what they come from must not change."""
    shared, values = program.shared, fetched()
    bytes_ = at[:, None] + np.arange(4 * values.shape[1])
    shared.write(at, np.full_like(values, 0xAAAAAAAA), program.actor(active))
    shared.awaited[bytes_] = True

    def arrive() -> None:
        same = fetched() == values
        demand(same, "race: what cp.async copies has changed meanwhile", active)
        shared.awaited[bytes_] = False
        shared.write(at, values, program.actor(active))

    program.copies[program.batch][-1].append(arrive)


def _finish(program: Program, left: int) -> None:
    groups = program.copies[program.batch]
    while len(groups) - 1 > left:
        for arrive in groups.pop(0):
            arrive()


def _counting(act: Callable[[Program], None]) -> Step:
    """A step of all threads that go on together, whose groups of cp.async are counted as one's."""

    def step(program: Program, mask: Mask) -> None:
        active = program.active(mask)
        whole = len(active) == (program.count if program.launch.warps is None else LANES)
        demand(np.full(len(active), whole), "only some threads count a group", active)
        act(program)

    return step


class _Matrices:
    """What ldmatrix and stmatrix move: matrices of 8 rows of 8 16-bit elements.

    Lane 8·k + i of a warp gives the address of row i of matrix k. Of each matrix lane 4·i + j holds
    the elements 2·j and 2·j + 1 of row i, or under .trans of column i.
    """

    def __init__(self, opcode: str, address: Operand) -> None:
        _, *modifiers, shape, number, space, kind = opcode.replace(".trans", "").split(".")
        if (modifiers, shape, space, kind) != (["sync", "aligned"], "m8n8", "shared", "b16"):
            raise ValueError(opcode)
        self.number = {"x1": 1, "x2": 2, "x4": 4}[number]
        self.turned, self.read = ".trans" in opcode, addresses("shared", address)

    def places(self, program: Program, mask: Mask) -> Array:
        """Offsets in shared memory, (2 · number, active threads)."""
        _whole_warps(program, mask)
        active, found = program.active(mask), []
        rows = np.broadcast_to(self.read(program, mask), program.count)
        for matrix, half in np.ndindex(self.number, 2):
            row, column = program.threads % LANES // 4, 2 * (program.threads % 4) + half
            row, column = (column, row) if self.turned else (row, column)
            holder = program.threads // LANES * LANES + 8 * matrix + row
            start = rows[holder].astype(int) - SHARED
            demand(start[active] % 16 == 0, "misaligned: a row of 16 bytes", active)
            found.append((start + 2 * column)[active])
        return np.stack(found)


def store_matrix(opcode: str, target: Operand, source: list[Operand]) -> Step:
    """stmatrix."""
    matrices = _Matrices(opcode, target)
    reads = [reader(register, "b32") for register in source]
    if len(reads) != matrices.number:
        raise ValueError(opcode)

    def step(program: Program, mask: Mask) -> None:
        actor = program.actor(program.active(mask))
        words = np.stack([each(read, program, mask) for read in reads]).astype("u4")
        for i, at in enumerate(matrices.places(program, mask)):
            half = (words[i // 2] >> np.uint32(16 * (i % 2))).astype("u2")
            program.shared.write(at, half[:, None], actor)

    return step


def load_matrix(opcode: str, to: list[Operand], source: Operand) -> Step:
    """ldmatrix."""
    matrices = _Matrices(opcode, source)
    if len(to) != matrices.number:
        raise ValueError(opcode)

    def step(program: Program, mask: Mask) -> None:
        active = program.active(mask)
        actor = program.actor(active)
        halves = [program.shared.read(at, 2, 1, actor) for at in matrices.places(program, mask)]
        for register, low, high in zip(to, halves[::2], halves[1::2], strict=True):
            values = np.zeros(program.count, "u4")
            values[active] = (low | high.astype("u4") << np.uint32(16))[:, 0]
            put(program, register, values, mask)

    return step
