"""The launcher: tiles, programs and launches; every path through the kernels on small tensors."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from _asserts import assert_matches, error, fused, launched, launches, numpy, ulp
from _cases import (
    F16,
    F32,
    INTERPRETED,
    LAYOUTS,
    PRODUCT,
    REDUCTIONS,
    TARGETS,
    TRITON_PLACES,
    WEIGHTINGS,
    Case,
    pairwise,
)
from _special_rows import SPECIAL_ROWS
from _tables import table
from triton.language import constexpr

import fused_loss
from fused_loss import combined_loss, cross_entropy
from fused_loss.kernels import (
    triton_counts,
    triton_launch,
    triton_reduce,
    triton_table,
)

pytestmark = pytest.mark.parametrize(("backend", "device"), TRITON_PLACES)

# The first is peeled: 11 is odd.
LONG = {"C": ((5,), (11,)), "NC": ((3, 3), (3, 12)), "NCd": ((2, 5), (2, 11, 3))}
TABLE = {
    "TILE": 8, "WIDE": 1, "STRIDED_BLOCK": 4, "BLOCK_MAX": 8, "STREAM_BLOCK": 4,
    "BLOCK_M": 4, "COUNT_BOUND": 2, "COUNT_CHUNK": 2,
}  # fmt: skip


@pytest.fixture
def shrunken(monkeypatch):
    """A launch table so small that little tensors take many tiles, blocks, programs and partials.

    On a GPU the figures are legal too, if slow; but there a kernel's constants cannot change.
    """
    if INTERPRETED:
        for name in ("COUNT_BLOCK", "PARTIAL_BLOCK"):
            for module in (triton_counts, triton_reduce):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, constexpr(2))
    with table(TABLE, processors=1):
        yield


OPTIONS = (REDUCTIONS, LAYOUTS, TARGETS, (False, True), (0.0, 0.25), WEIGHTINGS, ("one", "other"))
COVERED = [Case(*row) for row in pairwise(OPTIONS)]


@pytest.mark.parametrize(
    "case",
    [*COVERED, *(pytest.param(case, marks=pytest.mark.slow) for case in PRODUCT)],
    ids=str,
)
def test_blocks_tiles_and_a_count(case, shrunken, backend, device):
    """Rows of three blocks; two launches where labels have to be counted."""
    problem = replace(case, shapes=LONG[case.layout]).problem(device)
    actual, forward, _ = launched(problem)
    of_r = case.regression_weight or case.missing
    of_z = case.layout != "C" and (case.targets != "soft" or case.position_weight)
    counted = case.reduction == "mean" and not case.normalizers and bool(of_r or of_z)
    name = "per_sample_kernel" if case.reduction == "none" else "reduce_kernel"
    assert forward == ["count_kernel"] * counted + [name]
    assert_matches(problem, actual, fused(problem, "reference"))


def test_the_table_is_that_small(shrunken, backend, device):
    """What the tests above are there for does happen in them."""
    problem = Case(shapes=LONG["NC"], smoothing=0.25).problem(device)
    problem.z.requires_grad_()
    with fused_loss.backend(backend), launches() as log:
        combined_loss(problem.r, problem.z, problem.y, problem.t, label_smoothing=0.25)
    _, arguments = log.arguments
    assert arguments["BLOCK_C"] < 12
    assert not arguments["ONE_BLOCK"]
    assert log.programs[-1] > arguments["n_cls"] > 1
    assert not INTERPRETED or triton_counts.PARTIAL_BLOCK.value == 2


@pytest.mark.parametrize("strides", ["rows", "classes apart"])
@pytest.mark.parametrize("targets", ["hard-100", "soft"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_programs_walk_several_tiles(reduction, targets, strides, shrunken, backend, device):
    """18 samples: nine tiles for eight programs."""
    case = Case(reduction, targets=targets, upstream="other", shapes=((18, 2), (18, 3)))
    problem = case.problem(device)
    if strides != "rows":
        problem = problem._replace(z=problem.z.t().contiguous().t(), t=problem.t.contiguous())
    actual, _, _ = launched(problem)
    assert_matches(problem, actual, fused(problem, "reference"))
    again, _, _ = launched(problem)
    assert all(torch.equal(actual[name], again[name]) for name in actual)


@pytest.mark.parametrize(("targets", "smoothing"), [("hard", 0.0), ("hard", 0.25), ("soft", 0.25)])
@pytest.mark.parametrize("row", SPECIAL_ROWS)
def test_special_values_in_one_block(row, targets, smoothing, shrunken, backend, device):
    """A running maximum and sum meet them as the whole row would."""
    case = Case("none", targets=targets, smoothing=smoothing, shapes=((2, 1), (2, 11)))
    problem = case.problem(device)
    problem.z[1] = torch.tensor(SPECIAL_ROWS[row])
    actual, reference = fused(problem, backend), fused(problem, "reference")
    for name, value in actual.items():
        oracle = numpy(reference[name])
        same = numpy(value)
        assert ((oracle == same) | (abs(oracle) < 1e38) | (oracle != oracle) & (same != same)).all()
        assert error(value, oracle) <= 4 * ulp(abs(oracle) + 1, F32), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("targets", ["hard-100", "soft"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_count_costs_a_second_launch(reduction, targets, layout, shrunken, backend, device):
    """Only class indices under "mean", where there are many and a gradient is wanted."""
    problem = Case(reduction, layout, targets, shapes=LONG[layout]).problem(device)
    many = reduction == "mean" and targets != "soft" and layout != "C"
    for wanted in (True, False):
        with fused_loss.backend(backend), launches() as log:
            z = problem.z.detach().requires_grad_(wanted)
            combined_loss(problem.r, z, problem.y, problem.t, reduction=reduction)
        assert log.kernels == ["count_kernel"] * (many and wanted) + ["reduce_kernel"]


def test_the_count_of_a_gradient_that_waits(shrunken, backend, device):
    """It is made in the backward pass: only there is it needed."""
    case = Case(targets="hard-100", dtypes=(F32, F16), shapes=LONG["NC"])
    problem = case.problem(device)
    actual, forward, backward = launched(problem)
    assert forward == ["reduce_kernel"]
    assert backward == ["count_kernel", "reduce_kernel"]
    assert_matches(problem, actual, fused(problem, "reference"))


def test_labels_are_counted_beyond_the_bound(backend, device):
    """With the table as it is."""
    n = triton_table.COUNT_BOUND + 1
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(0)).to(device)
    t = torch.arange(n, device=device) % 2
    t[::3] = -100
    weight = torch.tensor([2.0, 0.5], device=device)
    assert_cross_entropy(z, t, weight, ["count_kernel", "reduce_kernel"], backend)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_a_row_longer_than_a_block(soft, backend, device):
    """With the table as it is: three blocks of hard targets."""
    random = torch.Generator().manual_seed(0)
    z = torch.randn(2, triton_table.BLOCK_MAX + 3, generator=random).to(device)
    t = z.flip(1).softmax(1) if soft else torch.tensor([3, triton_table.BLOCK_MAX], device=device)
    assert_cross_entropy(z, t, None, ["reduce_kernel"], backend)


def assert_cross_entropy(z, t, weight, kernels, backend):
    """Against PyTorch's in float64, with its own error in the dtype of z beside two ulps."""

    def run(name, z, t, weight, watch):
        z = z.detach().requires_grad_()
        with fused_loss.backend(name), watch as log:
            loss = cross_entropy(z, t, weight)
        return log, loss.detach(), torch.autograd.grad(loss, z)[0]

    log, *actual = run(backend, z, t, weight, launches())
    assert log.kernels == kernels
    wide = [x.double() if x is not None and x.is_floating_point() else x for x in (z, t, weight)]
    _, *own = run("reference", z, t, weight, nullcontext())
    _, *truth = run("reference", *wide, nullcontext())
    for value, yardstick, oracle in zip(actual, own, map(numpy, truth), strict=True):
        assert error(value, oracle) <= error(yardstick, oracle) + 2 * ulp(abs(oracle), z.dtype)


def test_the_same_bits_in_a_hundred_launches(backend, device):
    """On one ticket, on which those of more programs arrive too."""
    case = Case(targets="hard-100", shapes=((3, 2), (3, 5)))
    one, other = case.problem(device), replace(case, shapes=((3, 2), (300, 5))).problem(device)
    first = fused(one, backend)
    for again in range(100):
        if again % 20 == 0:
            fused(other, backend)
        assert all(torch.equal(first[name], value) for name, value in fused(one, backend).items())


def test_the_ticket_is_left_at_zero(shrunken, backend, device):
    case = Case(targets="hard-100", shapes=LONG["NC"])
    for problem in (case.problem(device), replace(case, dtypes=(F16, F32)).problem(device)):
        launched(problem)
        known = triton_launch._scratches.known.values()
        tickets = [scratch.ticket for scratch in known if scratch.ticket.device.type == device]
        assert tickets  # other tests of this process leave some without memory
        assert not any(ticket.any() for ticket in tickets)
