"""The clock: order, rotation and statistics. No test here depends on a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import pytest
from _bench import CPU, SMALL

from fused_loss.bench import PROVIDERS, Inputs, Phase, measure
from fused_loss.bench.measure import (
    FEWEST_ROUNDS,
    MOST_ROUNDS,
    Neighbours,
    Plan,
    Timing,
    alternate,
    first_call,
    timer,
)
from fused_loss.bench.programs import Program


def recorder(name: str, log: list[tuple[str, str]]) -> Program:
    def step(inputs: Inputs) -> tuple:
        log.append((name, "step"))
        return ()

    @contextmanager
    def context() -> Iterator[None]:
        log.append((name, "enter"))
        yield

    return Program(step, context)


def test_programs_alternate_in_rotated_order():
    log: list[tuple[str, str]] = []
    programs = {name: recorder(name, log) for name in "abc"}
    timings = alternate(programs, [SMALL.make()], CPU, Plan(rounds=4))
    entered = "".join(name for name, event in log if event == "enter")
    # the first three touch the inputs, the next three calibrate
    assert entered == "abc" + "abc" + "abc" + "bca" + "cab" + "abc"
    assert [len(list(group)) for key, group in groupby(log) if key == ("b", "step")] == [
        1,
        3,
        *[timings["b"].calls] * 4,
    ]


def test_every_round_gives_each_program_a_sample():
    timings = alternate({n: recorder(n, []) for n in "ab"}, [SMALL.make()], CPU, Plan(rounds=7))
    assert all(len(timing.seconds) == 7 for timing in timings.values())
    assert all(timing.clock == "wall" and timing.calls >= 1 for timing in timings.values())


def test_inputs_rotate():
    seen = []
    program = Program(lambda inputs: (seen.append(inputs), ())[1], recorder("", []).context)
    sets = [SMALL.make(seed=seed) for seed in range(3)]
    alternate({"a": program}, sets, CPU, Plan(rounds=2))
    assert all(x is sets[place % 3] for place, x in enumerate(seen))
    assert len(seen) > 3


def test_nothing_to_time_is_no_time():
    assert alternate({}, [SMALL.make()], CPU, Plan(rounds=3)) == {}


def test_progress_ends_at_one():
    shares: list[float] = []
    alternate({"a": recorder("a", [])}, [SMALL.make()], CPU, Plan(rounds=4), shares.append)
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_statistics_by_hand():
    timing = Timing((4.0, 1.0, 2.0, 3.0, 10.0), 1, "wall")
    assert timing.median == 3.0
    assert timing.quantile(0.1) == pytest.approx(1.4)
    assert timing.quantile(0.9) == pytest.approx(7.6)
    assert Timing((2.0,), 1, "wall").quantile(0.9) == 2.0


def test_a_plan_by_rounds():
    assert Plan(rounds=8).share(2, 1e9) == 0.25
    assert Plan(rounds=8).share(8, 0.0) == 1


def test_a_plan_by_seconds_stops_neither_too_early_nor_too_late():
    plan = Plan(seconds=2.0)
    assert plan.share(FEWEST_ROUNDS - 1, 1e9) < 1
    assert plan.share(FEWEST_ROUNDS, 2.0) >= 1
    assert plan.share(FEWEST_ROUNDS, 1.0) < 1
    assert plan.share(MOST_ROUNDS, 0.0) >= 1


def test_the_first_call_returns_what_the_step_does():
    inputs = SMALL.make()
    program = PROVIDERS["eager"].program(SMALL, Phase.TRAINING, CPU)
    outputs, seconds = first_call(program, inputs, CPU)
    assert len(outputs) == 3
    assert seconds > 0


def test_neighbours_are_what_others_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stat = tmp_path / "stat"  # jiffies: user nice system idle iowait irq softirq steal
    stat.write_text("cpu 100 0 50 9 9 1 1 1 0 0\n")
    monkeypatch.setattr(measure, "PROC_STAT", stat)
    with Neighbours() as neighbours:
        stat.write_text(f"cpu {100 + 10**9} 0 50 9 9 1 1 1 0 0\n")
    assert neighbours.cores is not None
    assert neighbours.cores > 0


def test_idle_time_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stat = tmp_path / "stat"
    stat.write_text("cpu 100 0 50 9 9 1 1 1 0 0\n")
    monkeypatch.setattr(measure, "PROC_STAT", stat)
    with Neighbours() as neighbours:
        stat.write_text(f"cpu 100 0 50 {10**9} {10**9} 1 1 1 0 0\n")
    assert neighbours.cores == 0


def test_where_the_system_does_not_tell_neighbours_are_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(measure, "PROC_STAT", tmp_path / "absent")
    with Neighbours() as neighbours:
        pass
    assert neighbours.cores is None


def test_before_each_sample_there_is_a_pause_outside_the_clock():
    log: list[tuple[str, str]] = []
    programs = {name: recorder(name, log) for name in "ab"}
    timings = alternate(
        programs, [SMALL.make()], CPU, Plan(rounds=3), before=lambda: log.append(("-", "pause"))
    )
    pauses = [place for place, entry in enumerate(log) if entry == ("-", "pause")]
    assert len(pauses) == 6
    assert all(log[place + 1][1] == "enter" for place in pauses)
    assert all(len(timing.seconds) == 3 for timing in timings.values())


def test_threads_that_spin_are_waited_for(monkeypatch: pytest.MonkeyPatch):
    busy = iter([0.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0])  # CPU seconds: idle in the third wait
    slept: list[float] = []
    monkeypatch.setattr(measure.time, "process_time", lambda: next(busy))
    monkeypatch.setattr(measure.time, "sleep", slept.append)
    measure.settle()
    assert slept == [measure.SETTLING_SECONDS] * 3


def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []
    monkeypatch.setattr(measure.time, "process_time", lambda: float(len(slept)))
    monkeypatch.setattr(measure.time, "sleep", slept.append)
    measure.settle()
    assert len(slept) == measure.MOST_SETTLING


@pytest.mark.gpu
def test_on_a_gpu_events_are_the_clock():
    import torch

    device = torch.device("cuda", 0)
    program = PROVIDERS["eager"].program(SMALL, Phase.TRAINING, device)
    timing = alternate({"eager": program}, [SMALL.make(device)], device, Plan(rounds=3))["eager"]
    assert timing.clock == "cuda events"
    assert min(timing.seconds) > 0
    assert timer(device)() > 0
