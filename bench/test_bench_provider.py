"""`pytest bench`: the registry under pytest-benchmark, for its statistics, storage and comparison.

`FUSED_LOSS_BENCH_SUITE` names the suite; by default "gpu" where there is a GPU, else "smoke".
`-k` narrows it: `pytest bench -k "tutorial and not compile"`.
"""

import os
from itertools import cycle

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fused_loss.bench.cases import Case, Phase
from fused_loss.bench.kinds import Kind, kind_of
from fused_loss.bench.measure import first_call, timer
from fused_loss.bench.models import ModelCase
from fused_loss.bench.programs import Provider
from fused_loss.bench.run import threads_of
from fused_loss.bench.suites import SUITES

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
SUITE = os.environ.get("FUSED_LOSS_BENCH_SUITE", "gpu" if GPU else "smoke")


def device_of(kind: Kind) -> torch.device:
    return torch.device(kind.on) if kind.on else DEVICE


def providers_of(case: Case | ModelCase) -> list[Provider]:
    kind = kind_of(case)
    return [p for p in kind.providers.values() if p.available(device_of(kind)) is None]


@pytest.mark.benchmark(timer=timer(DEVICE), warmup=True, warmup_iterations=3, disable_gc=True)
@pytest.mark.parametrize(
    ("case", "phase", "provider"),
    [
        pytest.param(case, phase, provider, id=f"{case.name}-{phase.value}-{provider.name}")
        for case in SUITES[SUITE]
        for phase in case.phases
        for provider in providers_of(case)
        if phase in provider.phases
    ],
)
def test_provider(
    benchmark: BenchmarkFixture, case: Case | ModelCase, phase: Phase, provider: Provider
) -> None:
    torch.compiler.reset()
    kind = kind_of(case)
    device = device_of(kind)
    with threads_of(phase):
        program = provider.program(case, phase, device)
        fresh = case.make(device, seed=1)
        outputs, compilation = first_call(program, fresh, device)
        if provider.computes and phase is not Phase.STEP:
            fresh = case.make(device, seed=1) if provider.overwrites else fresh
            of_eager = kind.eager_errors(case, phase, fresh, device)
            assert kind.verdict(case, phase, fresh, outputs, of_eager)[2] is None
        del fresh, outputs
        sets = cycle([case.make(device, seed) for seed in range(2, 2 + case.input_sets(device))])
        benchmark.group = f"{case.name} {phase.value}"
        benchmark.extra_info.update(
            bytes_moved=case.bytes_moved(phase),
            first_call_s=compilation,
            threads=torch.get_num_threads(),
            device=str(device),
        )
        with program.context():
            benchmark(lambda: program.step(next(sets)))
