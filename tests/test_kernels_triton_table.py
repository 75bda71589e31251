"""The launch table as it is: every tiling is legal, and right at the lengths where it changes."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from _asserts import assert_matches, fused, launched, poisoned_memory
from _cases import BF16, EVERY_OPTION, F32, F64, TRITON_PLACES, Case

import fused_loss
from fused_loss import combined_loss
from fused_loss.bench.calls import launches_go_to
from fused_loss.kernels import triton_launch, triton_table
from fused_loss.kernels.triton_table import tile

PLACES = pytest.mark.parametrize(("backend", "device"), TRITON_PLACES)
LONGEST = triton_table.BLOCK_MAX + 2


def begins(adjacent: bool, values: int, itemsize: int) -> list[int]:
    """The lengths from which another tiling takes over; those of longer rows count as one.

    From 8 on of those that 8 divides; of others the longest of all are cut into blocks.
    """
    tiles: list[object] = []
    for classes in range(1, LONGEST):
        even = classes if classes < 8 else -(-classes // 8) * 8
        chosen = tile(even, adjacent, values, itemsize)
        tiles.append(chosen if chosen.one_block else "longer")
    return [c + 1 for c in range(1, len(tiles)) if tiles[c] != tiles[c - 1]]


def around(lengths: list[int]) -> list[int]:
    return sorted({c + step for c in lengths for step in (-1, 0, 1)})


def test_every_tiling_is_legal():
    """Powers of two, at most 32 elements a thread, and a row in one block where it fits."""
    lengths = [*range(1, 70), 1000, 1024, 4097, 8192, 16384, 16385, 32000, 262144]
    for classes, adjacent, values, size in product(lengths, (False, True), (1, 2, 3), (4, 8)):
        chosen = tile(classes, adjacent, values, size)
        for number in (chosen.rows, chosen.block_c, chosen.warps):
            assert number & (number - 1) == 0
        assert chosen.one_block == (chosen.block_c >= classes)
        assert 2 <= chosen.warps <= 16
        assert chosen.warps >= 4 or chosen.rows == 1
        assert chosen.stages == 1 or chosen.rows == 1
        assert chosen.rows * chosen.block_c <= 32 * 32 * chosen.warps


def test_where_another_tiling_begins():
    """What the tests below stand on: each power of two has its own, as long as a row fits."""
    assert begins(True, 1, 4) == [2**k + 1 for k in range(15)]
    assert begins(False, 1, 4) == [2**k + 1 for k in range(7)]
    assert begins(True, 3, 4)[-1] == triton_table.BLOCK_MAX // 4 + 1
    assert begins(True, 1, 8)[-1] == triton_table.BLOCK_MAX // 8 + 1


def test_half_of_it_is_the_longest_row_kept_whose_length_8_does_not_divide():
    half = triton_table.BLOCK_MAX // 2
    kept = {c: tile(c, True, 1, 4).one_block for c in (half - 1, half + 1, half + 8, 2 * half - 1)}
    assert list(kept.values()) == [True, False, True, False]


def mostly_swept(lengths: list[int], kept: tuple[int, ...]) -> list[object]:
    """All of them, those not kept in the sweep alone."""
    assert {*kept} <= {*lengths}
    slow = pytest.mark.slow
    return [c if c in kept else pytest.param(c, marks=slow) for c in lengths]


def hold(case: Case, device: str, classes_apart: bool = False) -> None:
    problem = case.problem(device)
    if classes_apart:
        problem = problem._replace(z=problem.z.t().contiguous().t())
    actual, forward, _ = launched(problem)
    assert forward == ["per_sample_kernel" if case.reduction == "none" else "reduce_kernel"]
    assert_matches(problem, actual, fused(problem, "reference"))


@PLACES
@pytest.mark.parametrize("classes", [*around(begins(True, 1, 4)), triton_table.BLOCK_MAX + 8])
def test_a_row_that_is_kept_and_longer_ones(classes, backend, device):
    """A tile of rows and one row more; of long rows a single one."""
    rows = tile(classes, True, 1, 4).rows
    samples = rows + 1 if classes <= 1024 else 1
    hold(Case(targets="hard-100", shapes=((samples, 2), (samples, classes))), device)


@PLACES
@pytest.mark.parametrize(
    "classes", mostly_swept(around(begins(True, 1, 4)), (3, 513, 1025, LONGEST - 1))
)
def test_a_loss_a_sample(classes, backend, device):
    samples = tile(classes, True, 1, 4).rows + 1 if classes <= 1024 else 1
    shapes = (samples, 2), (samples, classes)
    hold(Case(reduction="none", targets="hard-100", shapes=shapes), device)


@PLACES
@pytest.mark.parametrize("classes", mostly_swept(around(begins(False, 1, 4)), (3, 64, 65)))
def test_a_loss_a_sample_with_classes_apart(classes, backend, device):
    samples = tile(classes, False, 1, 4).rows + 1
    shapes = (samples, 2), (samples, classes)
    case = Case(reduction="none", targets="hard-100", shapes=shapes)
    hold(case, device, classes_apart=classes > 1)


@PLACES
@pytest.mark.parametrize("classes", around(begins(False, 1, 4)))
def test_classes_apart(classes, backend, device):
    rows = tile(classes, False, 1, 4).rows
    case = Case(targets="hard-100", shapes=((rows + 1, 2), (rows + 1, classes)))
    hold(case, device, classes_apart=classes > 1)


@PLACES
@pytest.mark.parametrize("classes", around(begins(True, 3, 4)[-1:]))
@pytest.mark.parametrize("targets", ["hard-100", "soft"])
def test_with_targets_weights_and_a_mask(targets, classes, backend, device):
    case = Case(
        targets=targets, weighted=True, smoothing=0.25, mask="positions", dtypes=(F32, BF16),
        position_weight="full", shapes=((2, 2), (2, classes)),
    )  # fmt: skip
    hold(case, device)


@PLACES
@pytest.mark.parametrize("classes", around(begins(True, 1, 8)[-1:]))
def test_in_float64(classes, backend, device):
    hold(Case(dtypes=(F64, F64), shapes=((2, 2), (2, classes))), device)


@PLACES
@pytest.mark.slow
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_where_labels_are_counted_apart(more, backend, device):
    """Each program counts them up to the bound, and a launch of its own beyond it."""
    samples = triton_table.COUNT_BOUND + more
    case = Case(targets="hard-100", weighted=True, shapes=((1, 1), (samples, 2)))
    problem = case.problem(device)
    actual, forward, _ = launched(problem)
    assert forward == ["count_kernel"] * (more > 0) + ["reduce_kernel"]
    assert_matches(problem, actual, fused(problem, "reference"))


@pytest.mark.parametrize(
    ("samples", "classes", "counted"),
    [
        *[(samples, 1000, samples > 1448) for samples in (1447, 1448, 1449)],
        *[(triton_table.COUNT_BOUND + more, 2, more > 0) for more in (-1, 0, 1)],
    ],
)
def test_where_a_launch_of_its_own_counts(samples, classes, counted):
    """Beyond COUNT_BOUND; where each row has a program, 1448 · 1448 labels reach COUNT_READS."""
    names = []
    z = torch.empty(samples, classes, device="meta", requires_grad=True)
    r, y, t = torch.empty(3, 1, 2, device="meta")[0], torch.empty(1, 2, device="meta"), z[:, 0]
    to = launches_go_to(lambda made, arguments: names.append(made.kernel.fn.__name__))
    with to, fused_loss.backend("triton"):
        combined_loss(r, z, y, t.detach().long())
    assert names == ["count_kernel"] * counted + ["reduce_kernel"]


@PLACES
@pytest.mark.parametrize("more", [-1, 0, 1])
@pytest.mark.parametrize("tiles", [1, 3])
def test_whole_tiles_of_elements_and_what_is_left(tiles, more, backend, device):
    elements = tiles * tile(2, True, 1, 4).elements + more
    hold(Case(missing="some", shapes=((elements,), (3, 2))), device)


@PLACES
@pytest.mark.parametrize("classes", [1, 2, 32, 512, 1000, 2048, 4096, 16384, 16385])
def test_one_sample(classes, backend, device):
    """In any tiling; smoothed, so that the classes beside the label count."""
    hold(Case(smoothing=0.25, shapes=((1, 2), (1, classes))), device)


@PLACES
@pytest.mark.parametrize("classes", [1, 2, 32, 512, 1000, 2048, 4096, 16384, 16385])
def test_nothing_is_labelled(classes, backend, device):
    """In any tiling: NaN, no gradient, and the ticket is left at zero."""
    z = torch.randn(2, classes, device=device, requires_grad=True)
    t = torch.full((2,), -100, device=device)
    r, y = torch.randn(2, 2, 3, device=device)
    with fused_loss.backend(backend):
        loss, parts = combined_loss(r, z, y, t, return_components=True)
    assert parts.classification.isnan()
    (gradient,) = torch.autograd.grad(loss, z)
    assert torch.equal(gradient, torch.zeros_like(z))
    tickets = [scratch.ticket for scratch in triton_launch._scratches.known.values()]
    assert not any(ticket.any() for ticket in tickets if ticket.device.type == device)


@PLACES
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("classes", [3, 64, 1000, 4097])
def test_every_element_of_the_gradient_is_written(classes, reduction, backend, device):
    """Whatever was in the memory before."""
    case = replace(EVERY_OPTION, reduction=reduction, shapes=((3, 5), (3, classes)))
    problem = case.problem(device)
    with poisoned_memory():
        actual = fused(problem, backend)
    assert_matches(problem, actual, fused(problem, "reference"))
