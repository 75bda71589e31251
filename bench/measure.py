"""The clock, and nothing else has one.

Programs alternate: in each round every program gives one sample, and the first of a round is the
second of the one before, so that a machine that slows down slows all of them. A sample is the mean
of enough calls to outlast the clock's own noise. On a CPU it is wall time; on a GPU the time
between two events on the stream, over inputs that rotate so that L2 is cold, and beside it the wall
time of the same calls, from an idle GPU to an idle GPU.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from fused_loss.bench.programs import Program, Step

Sampler = Callable[[Step, Sequence[Any]], tuple[float, float]]

SAMPLE_SECONDS = 5e-3  # a sample lasts at least about this
MOST_CALLS = 1000
FEWEST_ROUNDS, MOST_ROUNDS = 5, 50
SETTLING_SECONDS, MOST_SETTLING = 1e-3, 50
PROC_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Plan:
    """How long to measure a case in a phase.

    Attributes:
        rounds: So many rounds exactly; None: as `seconds` says.
        seconds: For all programs together, within `FEWEST_ROUNDS` and `MOST_ROUNDS`.
    """

    rounds: int | None = None
    seconds: float = 1.0

    def share(self, rounds: int, seconds: float) -> float:
        """How much of the work is done after so many rounds in so many seconds; enough at 1."""
        if self.rounds is not None:
            return rounds / self.rounds
        return min(rounds / FEWEST_ROUNDS, max(rounds / MOST_ROUNDS, seconds / self.seconds))


@dataclass(frozen=True)
class Timing:
    """The samples of one program, one a round.

    Attributes:
        seconds: A call's time in each round.
        calls: The calls that each sample is the mean of.
        clock: What measured them, "wall" or "cuda events".
        wall: The wall time of the same calls; `seconds` itself on a CPU.
    """

    seconds: tuple[float, ...]
    calls: int
    clock: str
    wall: tuple[float, ...] = ()

    @property
    def wall_median(self) -> float:
        """Seconds of wall time a call."""
        return statistics.median(self.wall or self.seconds)

    @property
    def median(self) -> float:
        """Seconds a call."""
        return self.quantile(0.5)

    @property
    def spread(self) -> float:
        """From the first to the last decile, as a part of the median."""
        return (self.quantile(0.9) - self.quantile(0.1)) / self.median if self.median else 0.0

    def quantile(self, q: float) -> float:
        """Seconds a call, interpolated between samples."""
        ordered = sorted(self.seconds)
        place = q * (len(ordered) - 1)
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        return low + (high - low) * (place - math.floor(place))


def timer(device: torch.device) -> Callable[[], float]:
    """A wall clock in seconds that waits for the device before it is read."""
    if device.type != "cuda":
        return time.perf_counter

    def synchronised() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronised


def first_call(
    program: Program, inputs: Any, device: torch.device
) -> tuple[tuple[Any, ...], float]:
    """The outputs of a program's first step and the seconds it took, compilation included."""
    now = timer(device)
    start = now()
    outputs = program(inputs)
    return outputs, now() - start


def alternate(
    programs: Mapping[str, Program],
    sets: Sequence[Any],
    device: torch.device,
    plan: Plan,
    progress: Callable[[float], Any] = lambda share: None,
    before: Callable[[], Any] = lambda: None,
) -> dict[str, Timing]:
    """Time programs, already warm, against each other in one run.

    Args:
        programs: By name.
        sets: The input sets to rotate among.
        device: Where they are.
        plan: When to stop.
        progress: Called after each round with the share that is done, in [0, 1].
        before: Called before each sample, outside the clock.
    """
    sample, clock = (_events, "cuda events") if device.type == "cuda" else (_wall, "wall")
    queues = {name: cycle(sets) for name in programs}
    names = list(programs)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for program in programs.values():
        _touch(program, sets)
    with _no_collector():
        calls = {name: _calls(programs[name], queues[name], sample) for name in names}
        start, rounds, share = time.perf_counter(), 0, 0.0
        while names and share < 1:
            first = rounds % len(names)
            for name in names[first:] + names[:first]:
                queue = list(islice(queues[name], calls[name]))
                before()
                with programs[name].context():
                    samples[name].append(sample(programs[name].step, queue))
            rounds += 1
            share = plan.share(rounds, time.perf_counter() - start)
            progress(min(1.0, share))
    return {name: _timing(samples[name], calls[name], clock) for name in names}


def settle() -> None:
    """Wait until no thread of this process runs.

    PyTorch's threads spin for some milliseconds after their last work. Between two losses that is
    the same for all; another runtime with threads of its own would find its cores taken.
    """
    for _ in range(MOST_SETTLING):
        before = time.process_time()
        time.sleep(SETTLING_SECONDS)
        if time.process_time() - before < 0.3 * SETTLING_SECONDS:
            return


def _timing(samples: Sequence[tuple[float, float]], calls: int, clock: str) -> Timing:
    seconds, wall = zip(*samples, strict=True)
    return Timing(seconds, calls, clock, wall if clock != "wall" else ())


def _touch(program: Program, sets: Sequence[Any]) -> None:
    """One call on each set of inputs: what a set needs once is done before the clock."""
    with program.context():
        for inputs in sets:
            program.step(inputs)


def _calls(program: Program, queue: Iterator[Any], sample: Sampler) -> int:
    """How many calls make a sample; three single calls, timed, are the last of the warm-up."""
    with program.context():
        once = min(sample(program.step, [next(queue)])[1] for _ in range(3))
    return max(1, min(MOST_CALLS, math.ceil(SAMPLE_SECONDS / max(once, 1e-9))))


def _wall(step: Step, queue: Sequence[Any]) -> tuple[float, float]:
    """Seconds a call, twice: there is one clock."""
    start = time.perf_counter()
    for inputs in queue:
        step(inputs)
    seconds = (time.perf_counter() - start) / len(queue)
    return seconds, seconds


def _events(step: Step, queue: Sequence[Any]) -> tuple[float, float]:
    """Seconds a call between two events of the stream, and of wall time."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start = time.perf_counter()
    first.record()
    for inputs in queue:
        step(inputs)
    last.record()
    last.synchronize()
    wall = time.perf_counter() - start
    return first.elapsed_time(last) * 1e-3 / len(queue), wall / len(queue)


class Neighbours:
    """Counts the CPU that others took during a `with` block.

    With every core needed and one of them shared, threads wait for each other at every barrier, and
    a time is that of the scheduler: its spread may be small and still say nothing of the provider.

    Attributes:
        cores: What others used, in cores, or None where the system does not tell (outside Linux).
    """

    cores: float | None = None

    def __enter__(self) -> Neighbours:
        """Begin to count."""
        self._start = time.perf_counter(), _busy_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop counting."""
        (start, before), after = self._start, _busy_seconds()
        if before is not None and after is not None:
            self.cores = max(0.0, (after - before) / (time.perf_counter() - start))


def _busy_seconds() -> float | None:
    """CPU seconds spent since boot on all cores, other than by this process."""
    try:
        user, nice, system, _, _, *rest = map(
            int, PROC_STAT.read_text().splitlines()[0].split()[1:9]
        )
    except (OSError, ValueError):
        return None
    own = os.times()
    busy = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
    return busy - own.user - own.system


@contextmanager
def _no_collector() -> Iterator[None]:
    """Keep Python's garbage collector out of the samples."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
