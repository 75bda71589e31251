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
from fused_loss.bench.kinds import kind_of
from fused_loss.bench.measure import first_call, timer
from fused_loss.bench.programs import Provider
from fused_loss.bench.providers import PROVIDERS
from fused_loss.bench.suites import SUITES

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
SUITE = os.environ.get("FUSED_LOSS_BENCH_SUITE", "gpu" if GPU else "smoke")
AVAILABLE = [p for p in PROVIDERS.values() if p.available(DEVICE) is None]


@pytest.mark.benchmark(timer=timer(DEVICE), warmup=True, warmup_iterations=3, disable_gc=True)
@pytest.mark.parametrize(
    ("case", "phase", "provider"),
    [
        pytest.param(case, phase, provider, id=f"{case.name}-{phase.value}-{provider.name}")
        for case in SUITES[SUITE]
        for phase in case.phases
        for provider in AVAILABLE
        if phase in provider.phases
    ],
)
def test_loss(benchmark: BenchmarkFixture, case: Case, phase: Phase, provider: Provider) -> None:
    torch.compiler.reset()
    program = provider.program(case, phase, DEVICE)
    fresh = case.make(DEVICE, seed=1)
    outputs, compilation = first_call(program, fresh, DEVICE)
    if provider.computes and phase is not Phase.STEP:
        fresh = case.make(DEVICE, seed=1) if provider.overwrites else fresh
        kind = kind_of(case)
        of_eager = kind.eager_errors(case, phase, fresh, DEVICE)
        assert kind.verdict(case, phase, fresh, outputs, of_eager)[2] is None
    del fresh, outputs
    sets = cycle([case.make(DEVICE, seed) for seed in range(2, 2 + case.input_sets(DEVICE))])
    benchmark.group = f"{case.name} {phase.value}"
    benchmark.extra_info.update(
        bytes_moved=case.bytes_moved(phase),
        first_call_s=compilation,
        threads=torch.get_num_threads(),
        device=str(DEVICE),
    )
    with program.context():
        benchmark(lambda: program.step(next(sets)))
