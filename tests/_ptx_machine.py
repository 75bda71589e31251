"""Runs a kernel's PTX, program by program, all threads of a program at once.

A register is an array (threads,) of bits. Each thread has a place of its own in the code: of those
that stand apart, the ones furthest behind go on. `bar.sync` lets nobody pass before all are there.
A program yields wherever another one may come between.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from _ptx_memory import LANES, Actor, Array, Memory, Misuse, Region, demand
from _ptx_ops import KINDS, UnknownOpcode, find
from _ptx_parse import Address, Code, Immediate, Instruction, Operand, Register

SHARED = 1 << 12  # where a program's shared memory begins

CACHE = {"ca", "cg", "relaxed", "volatile"}  # modifiers that change no value here
Mask = Any  # (threads,) bool, or None: all of them
Step = Callable[["Program", Mask], None]
Read = Callable[["Program", Mask], Array]


class Launch:
    """A kernel, its arguments and its grid."""

    def __init__(
        self, code: Code, parameters: list[int], programs: int, shared: int, memory: Memory
    ) -> None:
        """What Triton would give a driver.

        Args:
            code: The kernel.
            parameters: The bits of each.
            programs: Of the grid.
            shared: Bytes of a program.
            memory: Of the arguments.
        """
        assert len(parameters) == len(code.parameters), "parameters"
        self.code, self.programs, self.shared, self.memory = code, programs, shared, memory
        names = [name for name, _ in code.parameters]
        self.parameters = dict(zip(names, parameters, strict=True))
        self.steps, self.stops = decoded(code.instructions, tuple(sorted(code.labels.values())))

    def program(self, number: int) -> Iterator[None]:
        """One program, from the beginning to the end."""
        return Program(self, number).run()


def run(launch: Launch, order: Iterable[int] | None = None) -> None:
    """All programs, one after another."""
    for number in range(launch.programs) if order is None else order:
        for _ in launch.program(number):
            pass


def together(streams: list[list[Launch]], seed: int, most: int = 3) -> None:
    """Streams side by side: of each, up to `most` programs of one launch, by chance.

    Args:
        streams: Launches of which each begins when the one before it has ended.
        seed: Of the order, which is another one for each.
        most: Programs of a stream at once.
    """
    draw = random.Random(seed)
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
            np.zeros(self.count, "?" if bits == 1 else f"u{bits // 8}")
            for _, bits, _ in code.registers
        ]
        self.known = bytearray(len(self.registers))  # whether all threads have written it
        self.written: dict[int, Array] = {}  # else which of them
        self.threads = np.arange(self.count)
        raw = np.zeros(launch.shared + -launch.shared % 16, "u1")
        valid = np.arange(len(raw)) < launch.shared
        self.shared = Region(raw, 1, valid, np.zeros(len(raw), bool))
        self.shared.awaited = np.zeros(len(raw), bool)
        self.interval, self.acquired = 0, False
        self.copies: list[list[Callable[[], None]]] = [[]]  # groups of cp.async; the open one last

    # --- registers ---

    def get(self, register: Register, mask: Mask) -> Array:
        slot = register.slot
        if not self.known[slot]:
            written = self.written.get(slot, np.zeros(self.count, bool))
            active = self.active(mask)
            demand(written[active], f"reads {register.name}, which was not written", active)
        return self.registers[slot]

    def put(self, register: Register, value: Array, mask: Mask) -> None:
        slot = register.slot
        if mask is None:
            self.registers[slot][:] = value
            self.known[slot] = 1
            return
        np.copyto(self.registers[slot], value, where=mask)
        if not self.known[slot]:
            self.written[slot] = self.written.get(slot, False) | mask
            self.known[slot] = self.written[slot].all()

    # --- control ---

    def run(self) -> Iterator[None]:
        """Yields where other programs may come between."""
        going: dict[int, Array] = {0: np.ones(self.count, bool)}  # by the next instruction
        waiting: dict[int, Array] = {}  # the same, at a barrier
        while going or waiting:
            if not going:
                going = self._released(waiting)
                waiting.clear()
            first = min(going)
            threads = going.pop(first)
            stop = self._straight(first, threads)
            for into, place, those in self._control(stop, threads):
                if those.any():
                    there = waiting if into == "waiting" else going
                    there[place] = there.get(place, False) | those
            yield

    def _straight(self, first: int, threads: Array) -> int:
        """Run to the next branch, barrier or label; where that is."""
        mask = None if threads.all() else threads
        steps, stop = self.launch.steps, self.launch.stops[first]
        try:
            with np.errstate(all="ignore"):
                for place in range(first, stop):
                    steps[place](self, mask)
        except Misuse as misuse:
            raise self._fault(place, misuse.what, misuse.thread) from None
        return stop

    def _control(self, place: int, threads: Array) -> list[tuple[str, int, Array]]:
        """Where the threads that have come to a place go on."""
        instructions = self.launch.code.instructions
        if place == len(instructions):
            return []
        if self.launch.steps[place] is not None:
            return [("going", place, threads)]
        opcode, operands, guard, _ = instructions[place]
        taken = threads
        if guard is not None:
            try:
                taken = threads & (self.get(guard[0], threads) == guard[1])
            except Misuse as misuse:
                raise self._fault(place, misuse.what, misuse.thread) from None
        on = ("going", place + 1, threads & ~taken)
        if opcode in ("ret", "exit"):
            return [on]
        if opcode == "bar.sync":
            return [on, ("waiting", place, taken)]
        return [on, ("going", self.launch.code.labels[str(operands[0])], taken)]

    def _released(self, waiting: dict[int, Array]) -> dict[int, Array]:
        """All threads have reached one barrier, or it is a fault."""
        place = min(waiting)
        if not waiting[place].all():
            missing = int(np.flatnonzero(~waiting[place])[0])
            raise self._fault(place, "a barrier that not every thread reaches", missing)
        self.interval += 1
        return {place + 1: waiting[place]}

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


# --- instructions to steps ------------------------------------------------------------------------


CONTROL = ("bra", "bra.uni", "ret", "exit", "bar.sync")


def decoded(
    instructions: list[Instruction], labels: tuple[int, ...]
) -> tuple[list[Step | None], list[int]]:
    """A step of each, None where control may go elsewhere; and how far one goes on without that.

    Raises:
        UnknownOpcode: There is an instruction that nothing here executes.
    """
    steps = [_decode(instruction) for instruction in instructions]
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
    except (TypeError, ValueError, KeyError, IndexError):
        raise UnknownOpcode(text)
    return step if guard is None else _guarded(step, *guard)


def _guarded(step: Step, predicate: Register, wanted: bool) -> Step:
    def run(program: Program, mask: Mask) -> None:
        those = program.get(predicate, mask) == wanted
        those = those if mask is None else those & mask
        if those.all():
            step(program, None)
        elif those.any():
            step(program, those)

    return run


def _reader(operand: Operand, kind: str) -> Read:
    """An operand as an array of a kind, a thread or () each."""
    dtype = np.dtype(KINDS[kind])
    bits = 1 if kind == "pred" else 8 * dtype.itemsize
    if isinstance(operand, Immediate):
        constant = np.array(operand.value & ((1 << bits) - 1), f"u{dtype.itemsize}").view(dtype)
        return lambda program, mask: constant
    if isinstance(operand, str):
        special = SPECIAL[operand]
        return lambda program, mask: np.asarray(special(program)).astype(dtype)
    assert isinstance(operand, Register)
    register = operand
    if register.bits == bits:
        return lambda program, mask: program.get(register, mask).view(dtype)
    if register.bits < bits or bits == 1:
        raise ValueError(operand)
    raw = f"u{dtype.itemsize}"
    return lambda program, mask: program.get(register, mask).astype(raw).view(dtype)


SPECIAL: dict[str, Callable[[Program], Any]] = {
    "%tid.x": lambda program: program.threads,
    "%ntid.x": lambda program: program.count,
    "%ctaid.x": lambda program: program.number,
    "%nctaid.x": lambda program: program.launch.programs,
    "%laneid": lambda program: program.threads % LANES,
    "global_smem": lambda program: SHARED,
}


def _put(program: Program, register: Any, value: Array, mask: Mask) -> None:
    """Bits of a value; into a wider register signed numbers go with their sign."""
    if register is None:
        return
    value = np.asarray(value)
    if register.bits > max(8 * value.itemsize, 1) and value.dtype != bool:
        value = value.astype(f"{value.dtype.kind}{register.bits // 8}")
    if register.bits > 1:
        value = value.view(f"u{register.bits // 8}")
    program.put(register, value, mask)


def _value(opcode: str, to: Operand, *sources: Operand) -> Step:
    function, _, takes = find(opcode)
    reads = [_reader(*pair) for pair in zip(sources, takes, strict=True)]
    divides = opcode.startswith(("div.", "rem.")) and takes[0][0] != "f"

    def step(program: Program, mask: Mask) -> None:
        values = [read(program, mask) for read in reads]
        if divides:
            active = program.active(mask)
            divisor = np.broadcast_to(values[1], program.count)[active]
            demand(divisor != 0, "divides by 0", active)
        result = function(*values)
        if isinstance(to, list):
            for register, part in zip(to, result, strict=True):
                _put(program, register, part, mask)
        else:
            _put(program, to, result, mask)

    return step


def _move(opcode: str, to: Operand, source: Operand) -> Step:
    """mov; from or to a vector it splits, or joins, the bits: the lowest first."""
    _, kind = opcode.split(".")
    if isinstance(source, list):
        bits = int(kind[1:]) // len(source)
        parts = [_reader(part, f"b{bits}") for part in source]

        def join(program: Program, mask: Mask) -> None:
            dtype = np.dtype(KINDS[kind])
            values = [read(program, mask).astype(dtype) for read in parts]
            whole = sum(value << dtype.type(bits * i) for i, value in enumerate(values))
            _put(program, to, np.asarray(whole), mask)

        return join
    read = _reader(source, kind)
    if not isinstance(to, list):
        return lambda program, mask: _put(program, to, read(program, mask), mask)
    each = int(kind[1:]) // len(to)

    def split(program: Program, mask: Mask) -> None:
        whole = read(program, mask)
        for i, register in enumerate(to):
            part = (whole >> whole.dtype.type(each * i)).astype(f"u{each // 8}")
            _put(program, register, part, mask)

    return split


def _access(opcode: str) -> tuple[str, str, int]:
    """Space, kind, and how many values, of a load or a store."""
    _, space, *modifiers, kind = opcode.split(".")
    lengths = [int(one[1]) for one in modifiers if one in ("v2", "v4")]
    others = [one for one in modifiers if one not in ("v2", "v4")]
    space = space.removesuffix("::cta")
    if len(lengths) > 1 or space not in ("global", "shared", "param"):
        raise ValueError(opcode)
    if not all(one in CACHE or one.startswith(("L1::", "L2::")) for one in others):
        raise ValueError(opcode)
    return space, kind, lengths[0] if lengths else 1


def _addresses(space: str, address: Any) -> Read:
    base, offset = address
    kind = "u64" if space == "global" else "u32"
    read = _reader(base, kind)
    return lambda program, mask: read(program, mask) + np.array(offset).astype(KINDS[kind])


def _load(opcode: str, to: Operand, source: Operand) -> Step:
    space, kind, count = _access(opcode)
    registers = to if isinstance(to, list) else (to,)
    dtype = np.dtype(KINDS[kind])
    if len(registers) != count:
        raise ValueError(opcode)
    if space == "param":
        assert isinstance(source, Address)
        return _parameter(str(source.base), dtype, to)
    read = _addresses(space, source)

    def step(program: Program, mask: Mask) -> None:
        active = program.active(mask)
        addresses = np.broadcast_to(read(program, mask), program.count)[active]
        values = np.zeros((count, program.count), f"u{dtype.itemsize}")
        for region, offsets, mine in program.find(space, addresses, active):
            actor = program.actor(active[mine])
            values[:, active[mine]] = region.read(offsets, dtype.itemsize, count, actor).T
        for register, value in zip(registers, values, strict=True):
            _put(program, register, value.view(dtype), mask)

    return step


def _parameter(name: str, dtype: np.dtype, to: Operand) -> Step:
    whole = (1 << (8 * dtype.itemsize)) - 1

    def step(program: Program, mask: Mask) -> None:
        bits = program.launch.parameters[name] & whole
        _put(program, to, np.array([bits], f"u{dtype.itemsize}").view(dtype), mask)

    return step


def _store(opcode: str, target: Operand, source: Operand) -> Step:
    space, kind, count = _access(opcode)
    sources = source if isinstance(source, list) else (source,)
    reads = [_reader(one, "b" + kind[1:]) for one in sources]
    read = _addresses(space, target)
    if len(reads) != count or space == "param":
        raise ValueError(opcode)

    def step(program: Program, mask: Mask) -> None:
        active = program.active(mask)
        addresses = np.broadcast_to(read(program, mask), program.count)[active]
        values = [np.broadcast_to(one(program, mask), program.count)[active] for one in reads]
        for region, offsets, mine in program.find(space, addresses, active):
            region.write(offsets, np.stack(values, 1)[mine], program.actor(active[mine]))

    return step


def _shuffle(opcode: str, to: Operand, source: Operand, by: Operand, *rest: Operand) -> Step:
    """shfl.sync.bfly: the value of the lane whose number differs by these bits."""
    if opcode != "shfl.sync.bfly.b32" or rest != (Immediate(LANES - 1), Immediate(-1)):
        raise ValueError(opcode)
    read, distance = _reader(source, "b32"), _reader(by, "u32")

    def step(program: Program, mask: Mask) -> None:
        partner = program.threads ^ distance(program, mask).astype(int)
        if mask is not None:
            active = program.active(mask)
            demand(mask[partner[active]], "shuffles with a thread that is not there", active)
        values = np.broadcast_to(read(program, mask), program.count)
        _put(program, to, values[partner], mask)

    return step


def _atomic(opcode: str, to: Operand, target: Operand, source: Operand) -> Step:
    """One thread after another; from here on the program sees what others have published."""
    if opcode != "atom.global.gpu.acq_rel.add.u32":
        raise ValueError(opcode)
    address, read = _addresses("global", target), _reader(source, "u32")

    def step(program: Program, mask: Mask) -> None:
        active = program.active(mask)
        addresses = np.broadcast_to(address(program, mask), program.count)[active]
        amounts = np.broadcast_to(read(program, mask), program.count)
        before = np.zeros(program.count, "u4")
        program.acquired = True
        for region, offsets, mine in program.find("global", addresses, active):
            for offset, thread in zip(offsets, active[mine], strict=True):
                where, actor = np.array([offset]), program.actor(np.array([thread]))
                before[thread] = region.read(where, 4, 1, actor)[0, 0]
                region.write(where, (before[thread] + amounts[thread]).reshape(1, 1), actor)
        _put(program, to, before, mask)

    return step


def _copy_ahead(opcode: str, *operands: Operand) -> Step:
    """cp.async: what it writes is nobody's until its group has been waited for."""
    if opcode == "cp.async.commit_group":
        return _together(lambda program: program.copies.append([]))
    if opcode == "cp.async.wait_group":
        (number,) = operands
        assert isinstance(number, Immediate)
        return _together(lambda program: _finish(program, number.value))
    if opcode not in ("cp.async.ca.shared.global", "cp.async.cg.shared.global"):
        raise ValueError(opcode)
    to, source, size, *rest = operands
    assert isinstance(size, Immediate)
    width = size.value
    target, origin = _addresses("shared", to), _addresses("global", source)
    (length,) = (_reader(one, "u32") for one in rest or [size])

    def step(program: Program, mask: Mask) -> None:
        active = program.active(mask)
        everywhere = [
            np.broadcast_to(read(program, mask), program.count)[active]
            for read in (target, origin, length)
        ]
        to_, from_, lengths = everywhere
        demand((lengths == 0) | (lengths == width), "copies a part of what it writes", active)
        values = np.zeros((len(active), width // 4), "u4")
        there = np.flatnonzero(lengths)
        sources = program.launch.memory.find(from_[there], active[there])
        for region, offsets, mine in sources:
            actor = program.actor(active[there][mine])
            values[there[mine]] = region.read(offsets, 4, width // 4, actor)
        at = to_.astype(int) - SHARED
        _begin(program, at, values, active)

        def arrive() -> None:
            for region, offsets, mine in sources:
                now = region.words[4][(offsets // 4)[:, None] + np.arange(width // 4)]
                same = now == values[there[mine]]
                demand(same, "race: the source of cp.async has changed", active[there][mine])
            assert program.shared.awaited is not None
            program.shared.awaited[at[:, None] + np.arange(width)] = False
            program.shared.write(at, values, program.actor(active))

        program.copies[-1].append(arrive)

    return step


def _begin(program: Program, at: Array, values: Array, active: Array) -> None:
    """What a copy writes holds nothing to rely on meanwhile."""
    shared, width = program.shared, 4 * values.shape[1]
    shared.write(at, np.full_like(values, 0xAAAAAAAA), program.actor(active))
    assert shared.awaited is not None
    shared.awaited[at[:, None] + np.arange(width)] = True


def _finish(program: Program, left: int) -> None:
    while len(program.copies) - 1 > left:
        for arrive in program.copies.pop(0):
            arrive()


def _together(act: Callable[[Program], Any]) -> Step:
    """A step that all threads take at once, as groups of cp.async are counted here."""

    def step(program: Program, mask: Mask) -> None:
        demand(np.array([mask is None]), "only some threads count a group", program.active(mask))
        act(program)

    return step


def _store_matrix(opcode: str, target: Operand, source: Operand) -> Step:
    """stmatrix: lane 4·i + j of a warp writes 4 bytes to row i, whose address lane i holds."""
    if opcode != "stmatrix.sync.aligned.m8n8.x1.shared.b16":
        raise ValueError(opcode)
    (register,) = source  # type: ignore[misc]
    rows, read = _addresses("shared", target), _reader(register, "b32")

    def step(program: Program, mask: Mask) -> None:
        lanes = program.threads % LANES
        holder = program.threads - lanes + lanes // 4
        if mask is not None:
            demand(mask[holder], "a warp that is not all there", program.threads)
        starts = rows(program, mask)[holder].astype(int) - SHARED
        demand(starts % 16 == 0, "misaligned: a row of 16 bytes", program.threads)
        at = starts + 4 * (lanes % 4)
        program.shared.write(at, read(program, mask)[:, None], program.actor(program.threads))

    return step


MAKERS: dict[str, Callable[..., Step]] = {
    "mov": _move,
    "ld": _load,
    "st": _store,
    "shfl": _shuffle,
    "atom": _atomic,
    "cp": _copy_ahead,
    "stmatrix": _store_matrix,
}
