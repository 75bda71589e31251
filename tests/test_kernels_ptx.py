"""What the compiler made of the kernels, executed: calls through the emulator of their PTX.

Each is right, whatever the order of its programs and of its warps is, and beside another call. That
a fault would be seen is shown by making some.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from _asserts import Result, assert_matches, fused
from _cases import BF16, COVERING, EVERY_OPTION, F16, F32, F64, Case, Problem
from _ptx_worker import Worker
from torch import Tensor

REDUCED, SPLIT, COUNTED = ["reduce_kernel"], ["slices_kernel", "reduce_kernel"], ["count_kernel"]
SCALED, SAMPLES = ["scale_kernel"], ["per_sample_kernel"]
FEW_PROGRAMS = {"processors": 1, "resident": 4}  # so that each has several rows


class Call(NamedTuple):
    """A case, the kernels that it launches, the device, and how tensors lie in memory."""

    case: Case
    kernels: list[str]
    device: dict[str, int] = {}  # noqa: RUF012
    laid: dict[str, Callable[[Tensor], Tensor]] = {}  # noqa: RUF012

    def problem(self) -> Problem:
        problem = self.case.problem()
        return problem._replace(
            **{name: laid(getattr(problem, name)) for name, laid in self.laid.items()}
        )


def rows(n: int, c: int, dtype: torch.dtype = F32, width: int = 3, **options: Any) -> Case:
    """Logits (n, c) and outputs (n, width)."""
    return Case(shapes=((n, width), (n, c)), dtypes=(dtype, dtype), **options)


def padded(z: Tensor) -> Tensor:
    """From an odd address, with gaps between the rows."""
    wide = z.new_zeros(len(z), z.shape[1] + 3)
    wide[:, 1:-2] = z
    return wide[:, 1:-2]


def transposed(z: Tensor) -> Tensor:
    """Classes are not adjacent in memory."""
    return z.transpose(0, 1).contiguous().transpose(0, 1)


CALLS = {
    "100 classes, every option, counted": Call(
        replace(EVERY_OPTION, normalizers="", shapes=((60, 12), (60, 100))),
        COUNTED + REDUCED + SCALED,
        {"bound": 50},
        {"r": padded},
    ),
    "10 classes": Call(rows(133, 10, BF16, targets="hard-100"), REDUCED + SCALED),
    "1000 classes, in place": Call(
        rows(5, 1000, BF16, targets="hard-100", inplace=True), REDUCED + SCALED
    ),
    "4096 classes, read ahead": Call(
        rows(4, 4096, targets="hard-100", upstream="other"), REDUCED + SCALED, FEW_PROGRAMS
    ),
    "20001 classes": Call(rows(2, 20001, BF16, targets="hard-100", width=700), REDUCED + SCALED),
    "32000 classes, split": Call(
        rows(2, 32000, BF16, upstream="other"), SPLIT + SCALED, {"processors": 3}
    ),
    "per sample, spatial, float64": Call(
        Case(
            reduction="none",
            targets="hard-100",
            missing="some",
            upstream="other",
            shapes=((3, 3), (3, 33, 2)),
            dtypes=(F64, F64),
        ),
        SAMPLES + SAMPLES,
        laid={"r": padded},
    ),
}
MORE = {  # each kernel is a second to compile
    "2 classes, counted": Call(
        rows(300, 2, targets="hard-100", weighting="pair-tensor", missing="some"),
        COUNTED + REDUCED + SCALED,
        {"bound": 200},
    ),
    "10 classes, spatial": Call(
        Case(targets="soft", shapes=((2, 3), (2, 10, 5)), dtypes=(BF16, BF16)), REDUCED + SCALED
    ),
    "19 classes, spatial, in vectors": Call(
        Case(targets="hard-100", shapes=((2, 3), (2, 19, 64)), dtypes=(BF16, BF16)),
        REDUCED + SCALED,
    ),
    "16 classes, padded": Call(
        rows(5, 16, BF16, missing="some"), REDUCED + SCALED, laid={"z": padded}
    ),
    "20 classes, sum, masked, transposed": Call(
        rows(5, 20, reduction="sum", mask="positions"), REDUCED + SCALED, laid={"z": transposed}
    ),
    "1024 classes, float16": Call(rows(3, 1024, F16, upstream="other"), REDUCED + REDUCED),
    "4096 classes, in place": Call(
        rows(4, 4096, F16, targets="hard-100", inplace=True), REDUCED + REDUCED, FEW_PROGRAMS
    ),
    "16384 classes": Call(rows(2, 16384, BF16, targets="soft"), REDUCED + SCALED),
    "16385 classes": Call(rows(2, 16385, weighted=True, smoothing=0.25), REDUCED + SCALED),
    "32000 classes, split, every option": Call(
        replace(EVERY_OPTION, targets="soft", shapes=((2, 3), (2, 32000)), inplace=True),
        SPLIT + SCALED,
        {"processors": 3},
    ),
    "33001 classes, split": Call(rows(1, 33001, F16), SPLIT + SPLIT),
}  # fmt: skip
MANY = "1000 classes, in place"  # that is launched over and over
slow = pytest.mark.slow
every_call = pytest.mark.parametrize(
    "call",
    [
        *(pytest.param(call, id=name) for name, call in CALLS.items()),
        *(pytest.param(call, id=name, marks=slow) for name, call in MORE.items()),
    ],
)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    process = Worker(tmp_path_factory.mktemp("ptx"))
    yield process
    process.close()


def assert_same_bits(found: Result, wanted: Result) -> None:
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        bits = [x.contiguous().flatten().view(torch.uint8) for x in (value, wanted[name])]
        assert torch.equal(*bits), name


@every_call
def test_the_machine_computes_what_it_should(worker: Worker, call: Call) -> None:
    problem = call.problem()
    result, kernels = worker.ask("call", problem, **call.device)
    assert kernels == call.kernels
    assert_matches(problem, result, fused(problem, "reference"))


@slow
@pytest.mark.parametrize("case", COVERING, ids=str)
def test_every_option(worker: Worker, case: Case) -> None:
    """And whatever the order of programs and warps."""
    problem = case.problem()
    result, kernels = worker.ask("call", problem)
    assert kernels
    assert_matches(problem, result, fused(problem, "reference"))
    alone, _ = worker.ask("call", problem, seed=1, alone=True)
    assert_same_bits(alone, result)


@pytest.mark.parametrize(
    "name", [MANY, *(pytest.param(name, marks=slow) for name in CALLS | MORE if name != MANY)]
)
def test_no_order_changes_a_bit(worker: Worker, name: str) -> None:
    """Of programs, or of warps, each alone from barrier to barrier; with one scratch and ticket."""
    call = (CALLS | MORE)[name]
    problem = call.problem()
    device = {"processors": 3, "resident": 4} | call.device
    first, _ = worker.ask("call", problem, **device)
    for alone in (False, True):
        for other in worker.ask("again", problem, 2, seed=2, alone=alone, **device):
            assert_same_bits(other, first)
    assert_matches(problem, first, fused(problem, "reference"))


def test_two_calls_at_once_give_the_bits_of_each_alone(worker: Worker) -> None:
    """On two streams: the same shape, other logits; programs of both are under way at once."""
    one = CALLS[MANY].problem()
    both = one, one._replace(z=one.z.flip(0), r=one.r.flip(0))
    device = {"processors": 3, "resident": 4}
    alone = [worker.ask("call", problem, **device)[0] for problem in both]
    for seed in range(2):
        found = worker.ask("side_by_side", list(both), seed=seed, **device)
        for result, wanted in zip(found, alone, strict=True):
            assert_same_bits(result, wanted)


FAULTS = {  # of `reduce_kernel`: call, pattern, what takes its place, what is found, of how many
    "a barrier": (MANY, r"^\s*bar\.sync.*", "", "race: ", 3),
    "a wait": (
        "4096 classes, read ahead", r"^\s*cp\.async\.wait_group.*", "", "cp.async is under way", 1,
    ),
    "an order": (MANY, r"acq_rel", "relaxed", "race: reads what another thread writes", 1),
    "an address": (
        MANY, r"(ld\.global\.v4\.b32 \{[^}]*\}, \[ %rd\d+) \+ 0 \]", r"\1 + 2 ]",
        "misaligned: 16 bytes", 1,
    ),
    "a bound": (  # of the last store
        "20001 classes", r"(?s)\A(.*^\s*)@%p\d+ (st\.global\.b16 )", r"\1\2", "out of bounds", 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen(worker: Worker, name: str) -> None:
    call, pattern, text, wrong, most = FAULTS[name]
    problem, device = CALLS[call].problem(), CALLS[call].device
    found = worker.ask("edited", problem, "reduce_kernel", pattern, text, most, **device)
    assert any(wrong in told for told in found), found


@slow
def test_hardly_a_barrier_is_one_too_many(worker: Worker) -> None:
    """The first has nothing before it; two stand between accesses of one and the same thread."""
    problem = rows(6, 100, targets="hard-100").problem()
    found = worker.ask("edited", problem, "reduce_kernel", r"^\s*bar\.sync.*", "", 99)
    assert sum("race: " in told for told in found) >= len(found) - 3


@slow
@pytest.mark.parametrize("file", ["test_kernels_extremes.py"])
def test_the_tests_of_the_interpreter_hold(file: str, tmp_path: Path) -> None:
    """NaN, infinities and illegal indices: nothing is read where it may not be."""
    tests = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "_ptx_plugin", "-k", "triton-cpu"]
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(tests)}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        [*command, tests / file], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
