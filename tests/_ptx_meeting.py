"""The instructions of PTX in which threads meet: shuffles, atomics, cp.async, stmatrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from _ptx_memory import Array, demand
from _ptx_operands import LANES, SHARED, Mask, Step, addresses, each, put, reader
from _ptx_parse import Immediate, Operand

if TYPE_CHECKING:
    from _ptx_machine import Program


def _all_there(needed: Array, program: Program, mask: Mask) -> None:
    """Each active thread meets with a thread of its warp."""
    if mask is not None:
        active = program.active(mask)
        demand(mask[needed[active]], "meets a thread that is not there", active)


def shuffle(opcode: str, to: Operand, source: Operand, by: Operand, *rest: Operand) -> Step:
    """shfl.sync.bfly: the value of the lane whose number differs by these bits."""
    if opcode != "shfl.sync.bfly.b32" or rest != (Immediate(LANES - 1), Immediate(-1)):
        raise ValueError(opcode)
    read, distance = reader(source, "b32"), reader(by, "u32")

    def step(program: Program, mask: Mask) -> None:
        partner = program.threads ^ distance(program, mask).astype(int)
        _all_there(partner, program, mask)
        put(program, to, np.broadcast_to(read(program, mask), program.count)[partner], mask)

    return step


def atomic(opcode: str, to: Operand, target: Operand, source: Operand) -> Step:
    """One thread after another; from here on the program sees what others have published."""
    if opcode != "atom.global.gpu.acq_rel.add.u32":
        raise ValueError(opcode)
    address, read = addresses("global", target), reader(source, "u32")

    def step(program: Program, mask: Mask) -> None:
        active = program.active(mask)
        amounts = each(read, program, mask)
        before = np.zeros(program.count, "u4")
        program.acquired = True
        for region, offsets, mine in program.find("global", each(address, program, mask), active):
            for offset, i in zip(offsets, mine, strict=True):
                where, actor = np.array([offset]), program.actor(active[i : i + 1])
                found = region.read(where, 4, 1, actor)
                before[active[i]] = found[0, 0]
                region.write(where, found + amounts[i], actor)
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
        values = np.zeros((len(active), size.value // 4), "u4")
        reading = np.flatnonzero(lengths)
        sources = program.launch.memory.find(origins[reading], active[reading])
        for region, offsets, mine in sources:
            actor = program.actor(active[reading][mine])
            values[reading[mine]] = region.read(offsets, 4, values.shape[1], actor)
        _begin(program, at.astype(int) - SHARED, values, active)

    return step


def _begin(program: Program, at: Array, values: Array, active: Array) -> None:
    """Until they arrive there is nothing to rely on."""
    shared, width = program.shared, 4 * values.shape[1]
    bytes_ = at[:, None] + np.arange(width)
    shared.write(at, np.full_like(values, 0xAAAAAAAA), program.actor(active))
    shared.awaited[bytes_] = True

    def arrive() -> None:
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


def store_matrix(opcode: str, target: Operand, source: Operand) -> Step:
    """stmatrix: lane 4·i + j of a warp writes 4 bytes to row i, whose address lane i holds."""
    if opcode != "stmatrix.sync.aligned.m8n8.x1.shared.b16":
        raise ValueError(opcode)
    (register,) = source  # type: ignore[misc]
    rows, read = addresses("shared", target), reader(register, "b32")

    def step(program: Program, mask: Mask) -> None:
        lanes = program.threads % LANES
        holder = program.threads - lanes + lanes // 4
        _all_there(holder, program, mask)
        active = program.active(mask)
        starts = rows(program, mask)[holder[active]].astype(int) - SHARED
        demand(starts % 16 == 0, "misaligned: a row of 16 bytes", active)
        at = starts + 4 * (active % LANES % 4)
        program.shared.write(at, each(read, program, mask)[:, None], program.actor(active))

    return step
