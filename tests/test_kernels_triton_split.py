"""Few long rows: several programs a row, in two launches; the table, its bounds, every option."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from _asserts import (
    assert_as_reference,
    assert_matches,
    fused,
    launched,
    launches,
    poisoned_memory,
)
from _cases import (
    BF16,
    EVERY_OPTION,
    F16,
    F32,
    F64,
    FACTORS,
    PRODUCT,
    TRITON_PLACES,
    Case,
    pairwise,
)
from _special_rows import SPECIAL_ROWS
from _tables import table

import fused_loss
from fused_loss import combined_loss, cross_entropy
from fused_loss.kernels import triton_launch, triton_table

SHAPES = {"C": ((5,), (11,)), "NC": ((3, 3), (3, 12))}  # the first is peeled: 11 is odd
# Three slices of a row: two whole ones, and one that is shorter or as long.
TABLE = {"SPLIT_FROM": 8, "SPLIT_BLOCK": 4, "SPLIT_MOST": 4, "COUNT_BOUND": 2, "COUNT_CHUNK": 2}
PLACES = pytest.mark.parametrize(("backend", "device"), TRITON_PLACES)
KERNELS = ["slices_kernel", "reduce_kernel"]


@pytest.fixture
def shrunken():
    """A launch table that splits little rows."""
    with table(TABLE, processors=16):
        yield


SPLIT_FACTORS = FACTORS | {
    "dtypes": ((F32, F32), (BF16, BF16), (F16, F16), (F64, F32)),
    "reduction": ("mean", "sum"),
    "layout": tuple(SHAPES),
}
COVERED = [Case(**dict(zip(SPLIT_FACTORS, row, strict=True))) for row in pairwise(
    list(SPLIT_FACTORS.values())
)]  # fmt: skip
SWEEP = [case for case in PRODUCT if case.reduction != "none" and case.layout != "NCd"]


@PLACES
@pytest.mark.parametrize(
    "case", [*COVERED, *(pytest.param(case, marks=pytest.mark.slow) for case in SWEEP)], ids=str
)
def test_every_option(case, shrunken, backend, device):
    """Each with each other, and a gradient that waits; on the second launch, what counts for both.

    The gradient may take the place of the logits.
    """
    problem = replace(case, shapes=SHAPES[case.layout]).problem(device)
    actual, forward, backward = launched(problem)
    names = backward if case.gradient_waits else forward
    assert names[0] == "slices_kernel"
    assert names[-1] == "reduce_kernel"
    assert names[1:-1] in ([], ["count_kernel"])
    assert_matches(problem, actual, fused(problem, "reference"))


@PLACES
@pytest.mark.parametrize(
    ("samples", "columns"),
    [*((1, columns) for columns in range(7, 18)), (2, 7), (2, 8), (2, 9), (15, 8), (16, 8)],
)
def test_the_boundaries(samples, columns, shrunken, backend, device):
    """Of columns, where rows begin to be split and slices end; of rows, where there are enough."""
    case = Case(targets="hard-100", smoothing=0.25, shapes=((samples, 2), (samples, columns)))
    problem = case.problem(device)
    actual, forward, _ = launched(problem)
    split = columns >= TABLE["SPLIT_FROM"] and samples < 16
    counted = ["count_kernel"] * (samples > TABLE["COUNT_BOUND"])
    assert forward == ["slices_kernel"] * split + counted + ["reduce_kernel"]
    assert_matches(problem, actual, fused(problem, "reference"))


@PLACES
@pytest.mark.parametrize("columns", [-1, 0, 1])
def test_the_table_as_it_is(columns, backend, device):
    """One row, shorter than those that are split by one, as long, and longer."""
    columns += triton_table.SPLIT_FROM
    case = Case(targets="hard-100", weighting="alpha-tensor", shapes=((1, 2), (1, columns)))
    problem = case.problem(device)
    problem.t[0] = columns - 1
    actual, forward, _ = launched(problem)
    assert forward == KERNELS[columns < triton_table.SPLIT_FROM :]
    assert_matches(problem, actual, fused(problem, "reference"))


@PLACES
@pytest.mark.parametrize("targets", ["int", "soft"])
def test_nothing_is_labelled(targets, shrunken, backend, device):
    """Every position is ignored, or has a weight of 0: NaN, as of PyTorch, and no gradient."""
    z = torch.randn(2, 11, device=device, requires_grad=True)
    t = torch.full((2,), -100, device=device)
    weight = None
    if targets == "soft":
        t, weight = torch.rand(2, 11, device=device), torch.zeros(2, device=device)
    r, y = torch.randn(2, 2, 3, device=device)
    with fused_loss.backend(backend), launches() as log:
        loss, parts = combined_loss(
            r, z, y, t, classification_weight=weight, return_components=True
        )
    assert log.kernels == KERNELS
    assert parts.classification.isnan()
    assert not parts.regression.isnan()
    (gradient,) = torch.autograd.grad(loss, z)
    assert torch.equal(gradient, torch.zeros_like(z))


@PLACES
@pytest.mark.parametrize(("targets", "smoothing"), [("hard", 0.0), ("hard", 0.25), ("soft", 0.25)])
@pytest.mark.parametrize("row", SPECIAL_ROWS)
def test_special_values_in_one_slice(row, targets, smoothing, shrunken, backend, device):
    """A slice that is -inf throughout, or holds an inf or a NaN, as the whole row would have it."""
    case = Case("sum", targets=targets, smoothing=smoothing, shapes=((1, 1), (1, 11)))
    problem = case.problem(device)
    problem.z[0] = torch.tensor(SPECIAL_ROWS[row])
    actual, forward, _ = launched(problem)
    assert forward == KERNELS
    if abs(problem.z.nan_to_num(0, 0, 0)).max() < 1e20:
        assert_as_reference(problem, actual)
    else:
        for name, value in fused(problem, "reference").items():
            assert torch.equal(value.isfinite(), actual[name].isfinite()), name


@PLACES
@pytest.mark.parametrize("smoothing", [0.25, 1.0])
@pytest.mark.parametrize("mask", ["classes", "positions", "trap"])
def test_smoothed_probabilities_and_a_mask(mask, smoothing, shrunken, backend, device):
    """K is known only when the slices meet; at 1.0 nothing is left of the targets."""
    case = replace(EVERY_OPTION, targets="soft", mask=mask, smoothing=smoothing)
    problem = replace(case, shapes=SHAPES["NC"]).problem(device)
    actual, forward, _ = launched(problem)
    assert forward == KERNELS
    assert_matches(problem, actual, fused(problem, "reference"))


@PLACES
def test_without_a_gradient_a_program_a_row(shrunken, backend, device):
    """The same loss, to the bit; the second launch reads no logit."""
    problem = replace(EVERY_OPTION, shapes=SHAPES["NC"]).problem(device)
    arguments = problem.r, problem.z, problem.y, problem.t
    with fused_loss.backend(backend), launches() as log:
        plain = combined_loss(*arguments, **problem.keywords)
        z = problem.z.clone().requires_grad_()
        trained = combined_loss(problem.r, z, problem.y, problem.t, **problem.keywords)
    assert log.kernels == 2 * KERNELS
    assert [log.arguments[i]["n_cls"] for i in (1, 3)] == [3, 9]
    assert torch.equal(plain, trained)


@PLACES
def test_it_repeats_bit_for_bit_and_leaves_the_ticket_at_zero(shrunken, backend, device):
    """Also beside launches of rows that are not split, which count on the same ticket."""
    problem = replace(EVERY_OPTION, shapes=SHAPES["NC"]).problem(device)
    other = Case(targets="hard-100").problem(device)
    first, _, _ = launched(problem)
    for _ in range(4):
        launched(other)
        again, _, _ = launched(problem)
        assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(
        s.ticket.any()
        for s in triton_launch._scratches.known.values()
        if s.ticket.device.type == device
    )


@PLACES
@pytest.mark.parametrize("inplace", [False, True])
def test_every_element_of_the_gradient_is_written(inplace, shrunken, backend, device):
    """Whatever was in the memory before, the scratch between the launches included."""
    problem = replace(EVERY_OPTION, shapes=SHAPES["NC"], inplace=inplace).problem(device)
    with poisoned_memory():
        actual = fused(problem, backend)
    assert_matches(problem, actual, fused(problem, "reference"))


@PLACES
@pytest.mark.parametrize("layout", ["padded", "transposed", "positions"])
def test_strides(layout, shrunken, backend, device):
    """Rows apart, classes apart (not split), and (N, C, S) whose classes are adjacent."""
    wide = torch.randn(3, 13, generator=torch.Generator().manual_seed(0)).to(device)
    z = {
        "padded": lambda: wide[:, 1:12],
        "transposed": lambda: wide[:, 1:12].t().contiguous().t(),
        "positions": lambda: wide[:2, :11].reshape(1, 2, 11).transpose(1, 2),
    }[layout]()
    t = torch.arange(z.numel() // 11, device=device).reshape(z[:, 0].shape)
    results = {}
    for name in (backend, "reference"):
        leaf = z.detach().requires_grad_()
        with fused_loss.backend(name), launches() as log:
            loss = cross_entropy(leaf, t)
        results[name] = loss.detach(), torch.autograd.grad(loss, leaf)[0]
        if name == backend:
            assert ("slices_kernel" in log.kernels) is (layout != "transposed")
    for one, other in zip(*results.values(), strict=True):
        eps = torch.finfo(F32).eps
        assert abs(one - other).max() <= 4 * eps * abs(other).max()


def test_every_split_is_whole():
    """The slices cover the row once; all programs fit one wave, and use the device."""
    lengths = (31999, 32000, 32001, 50257, 65536, 128256, 262144, 1 << 20)
    for classes, positions, values, size in product(lengths, (1, 2, 7, 131, 132), (1, 3), (4, 8)):
        split = triton_table.slices(classes, True, values, size, positions, 132)
        if classes < triton_table.SPLIT_FROM or positions >= 132:
            assert split is None
            continue
        number, columns, tile = split
        assert (number - 1) * columns < classes <= number * columns
        assert 1 < number <= triton_table.SPLIT_MOST
        assert columns % tile.block_c == 0
        assert positions * number <= 8 * 132
        assert positions * number >= min(132, classes // tile.block_c)
        assert (tile.rows, tile.one_block, tile.warps) == (1, False, 4)
    assert triton_table.slices(65536, False, 1, 4, 1, 132) is None


def test_it_can_be_turned_off():
    with table({"SPLIT": False}, processors=132):
        assert triton_table.slices(65536, True, 1, 4, 1, 132) is None
