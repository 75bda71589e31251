"""Runs a kernel's PTX, program by program, all threads of a program at once.

A register is an array (threads,) of bits. Each thread has a place of its own in the code: of those
that stand apart, the ones furthest behind go on. `bar.sync` lets nobody pass before all are there.
Programs one after another, or several at once by chance; the warps of a program abreast, or each
alone from barrier to barrier, by chance too.

What was not written may be moved and computed with, as compilers do for threads that take no part;
what comes of it was not written either. It may be no address, lane or condition, and not stored.
Half of what `mov` joins may be of it, and then goes for written: see `_ptx_steps`.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from _ptx_memory import Actor, Apart, Array, Memory, Misuse, Region, demand
from _ptx_operands import LANES, SHARED, Mask
from _ptx_parse import Code, Register
from _ptx_steps import decoded

POISON = 0xA5A5A5A5A5A5A5A5  # what a register holds before it is written


class Launch:
    """A kernel, its arguments and its grid."""

    def __init__(
        self,
        code: Code,
        parameters: list[int],
        programs: int,
        shared: int,
        memory: Memory,
        warps: random.Random | None = None,
    ) -> None:
        """What Triton would give a driver.

        Args:
            code: The kernel.
            parameters: The bits of each.
            programs: Of the grid.
            shared: Bytes of a program.
            memory: Of the arguments.
            warps: Draws which warp goes first; None: all abreast.
        """
        self.code, self.programs, self.shared, self.memory = code, programs, shared, memory
        names = [name for name, _ in code.parameters]
        self.parameters = dict(zip(names, parameters, strict=True))
        self.steps, self.stops = decoded(code)
        self.warps = warps

    def program(self, number: int) -> Iterator[None]:
        """One program, from the beginning to the end."""
        return Program(self, number).run()


def run(launch: Launch, order: Iterable[int] | None = None) -> None:
    """All programs, one after another."""
    for number in range(launch.programs) if order is None else order:
        for _ in launch.program(number):
            pass


def together(streams: list[list[Launch]], draw: random.Random, most: int = 3) -> None:
    """Streams side by side: of each, up to `most` programs of one launch, by chance.

    Args:
        streams: Launches of which each begins when the one before it has ended.
        draw: Whose turn it is.
        most: Programs of a stream at once.
    """
    left = [_turns(stream, draw, most) for stream in streams]
    while left:
        stream = draw.choice(left)
        if next(stream, stream) is stream:
            left.remove(stream)


def _turns(stream: list[Launch], draw: random.Random, most: int) -> Iterator[None]:
    for launch in stream:
        waiting = list(range(launch.programs))
        draw.shuffle(waiting)
        running: list[Iterator[None]] = []
        while waiting or running:
            while waiting and len(running) < most:
                running.append(launch.program(waiting.pop()))
            program = draw.choice(running)
            if next(program, program) is program:
                running.remove(program)
            yield


class Program:
    """The threads of one program of a launch."""

    def __init__(self, launch: Launch, number: int) -> None:
        self.launch, self.number, code = launch, number, launch.code
        self.count = code.threads
        self.registers = [
            np.full(self.count, POISON >> (64 - bits), "?" if bits == 1 else f"u{bits // 8}")
            for _, bits, _ in code.registers
        ]
        self.known = bytearray(len(self.registers))  # whether all threads have written it
        self.written: dict[int, Array] = {}  # else which of them
        # Of a step that computes: which threads have read what was not written; else None.
        self.lacking: Array | None = None
        self.threads = np.arange(self.count)
        raw = np.zeros(launch.shared + -launch.shared % 16, "u1")
        self.shared = Region(raw, launch.shared, written=np.zeros(len(raw), bool), private=True)
        self.interval, self.acquired = 0, False
        self.batch = 0  # the first of the threads that are going on
        # By batch: groups of cp.async that are under way; the open one is the last.
        self.copies: dict[int, list[list[Callable[[], None]]]] = defaultdict(lambda: [[]])

    # --- registers ---

    def get(self, register: Register, mask: Mask) -> Array:
        if self.known[register.slot]:
            return self.registers[register.slot]
        if self.lacking is None:
            active, told = self.active(mask), f"reads {register.name}, which was not written"
            demand(self.has(register)[active], told, active)
        else:
            self.lacking |= ~self.has(register)
        return self.registers[register.slot]

    def has(self, register: Register) -> Array:
        """Which threads have written it."""
        if self.known[register.slot]:
            return np.ones(self.count, bool)
        return self.written.get(register.slot, np.zeros(self.count, bool))

    def put(self, register: Register, value: Array, mask: Mask) -> None:
        slot = register.slot
        if self.lacking is not None and self.lacking.any():
            everyone = np.ones(self.count, bool) if mask is None else mask
            np.copyto(self.registers[slot], value, where=everyone)
            self.written[slot] = np.where(everyone, ~self.lacking, self.has(register))
            self.known[slot] = int(self.written[slot].all())
            return
        if mask is None:
            self.registers[slot][:] = value
            self.known[slot] = 1
            return
        np.copyto(self.registers[slot], value, where=mask)
        if not self.known[slot]:
            self.written[slot] = self.written.get(slot, False) | mask
            self.known[slot] = int(self.written[slot].all())

    # --- control ---

    def run(self) -> Iterator[None]:
        """Yields where other programs may come between."""
        batches = self._batches(0)
        waiting: dict[int, Array] = {}  # whose next instruction is a barrier, by its place
        while batches or waiting:
            if not batches:
                batches = self._batches(self._released(waiting))
                waiting.clear()
            threads = batches.pop()
            self.batch = int(threads.argmax())
            going = {self.place: threads}  # by the next instruction
            apart: dict[int, tuple[Array, Apart]] = {}  # who wait there for the rest of their warps
            while going:
                first = min(going)
                threads = going.pop(first)
                try:
                    stop = self._straight(first, threads)
                except Apart as lacking:
                    if lacking.place in apart:
                        going[lacking.place] = threads | apart.pop(lacking.place)[0]
                    else:
                        apart[lacking.place] = threads, lacking
                    continue
                for at_barrier, place, those in self._control(stop, threads):
                    if those.any():
                        there = waiting if at_barrier else going
                        there[place] = there.get(place, False) | those
            if apart:
                place, (_, lacking) = apart.popitem()
                raise self._fault(place, lacking.what, lacking.thread)
                yield

    def _batches(self, place: int) -> list[Array]:
        """All threads, which stand at one place, in parts that go on one after another."""
        self.place = place
        if self.launch.warps is None:
            return [np.ones(self.count, bool)]
        warps = list(range(self.count // LANES))
        self.launch.warps.shuffle(warps)
        return [self.threads // LANES == warp for warp in warps]

    def _straight(self, first: int, threads: Array) -> int:
        """Run to the next branch, barrier or label; where that is."""
        mask = None if threads.all() else threads
        steps, stop = self.launch.steps, self.launch.stops[first]
        try:
            with np.errstate(all="ignore"):
                for place in range(first, stop):
                    steps[place](self, mask)
        except Apart as lacking:
            lacking.place = place
            raise
        except Misuse as misuse:
            raise self._fault(place, misuse.what, misuse.thread) from None
        return stop

    def _control(self, place: int, threads: Array) -> list[tuple[bool, int, Array]]:
        """Where the threads that have come to a place go on, and whether a barrier is there."""
        instructions = self.launch.code.instructions
        if place == len(instructions):
            return []
        if self.launch.steps[place] is not None:
            return [(False, place, threads)]
        opcode, operands, guard, _ = instructions[place]
        taken = threads
        if guard is not None:
            try:
                taken = threads & (self.get(guard[0], threads) == guard[1])
            except Misuse as misuse:
                raise self._fault(place, misuse.what, misuse.thread) from None
        on = (False, place + 1, threads & ~taken)
        if opcode in ("ret", "exit"):
            return [on]
        if opcode == "bar.sync":
            return [on, (True, place, taken)]
        return [on, (False, self.launch.code.labels[str(operands[0])], taken)]

    def _released(self, waiting: dict[int, Array]) -> int:
        """Where all go on, who have reached one barrier; otherwise it is a fault."""
        place = min(waiting)
        if not waiting[place].all():
            missing = int(np.flatnonzero(~waiting[place])[0])
            raise self._fault(place, "a barrier that not every thread reaches", missing)
        self.interval += 1
        return place + 1

    def _fault(self, place: int, what: str, thread: int) -> Misuse:
        where = f"{self.launch.code.name}, program {self.number}, thread {thread}"
        return Misuse(f"{where}: {what}, at: {self.launch.code.instructions[place].text}", thread)

    # --- memory ---

    def active(self, mask: Mask) -> Array:
        return self.threads if mask is None else self.threads[mask]

    def actor(self, threads: Array) -> Actor:
        return Actor(threads, self.number, self.interval, self.acquired)

    def find(
        self, space: str, addresses: Array, threads: Array
    ) -> list[tuple[Region, Array, Array]]:
        """Regions, the offsets in each, and which of the accesses they are."""
        if space == "global":
            return self.launch.memory.find(addresses, threads)
        return [(self.shared, addresses.astype(int) - SHARED, np.arange(len(threads)))]
