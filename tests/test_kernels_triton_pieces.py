"""Long rows whose length is odd: an aligned body, and what lies before and behind it."""

from dataclasses import replace

import pytest
import torch
from _asserts import assert_matches, fused, launches, poisoned_memory
from _cases import BF16, EVERY_OPTION, F16, F32, F64, TRITON_PLACES, Case
from _tables import table

import fused_loss
from fused_loss import combined_loss
from fused_loss.kernels.triton_math import PEELED

pytestmark = pytest.mark.parametrize(("backend", "device"), TRITON_PLACES)

ROWS, CLASSES = 8, 43  # each row begins at another distance from an aligned address
TABLE = {
    "TILE": 16, "WIDE": 1, "BLOCK_MAX": 16, "STREAM_BLOCK": 16,
    "SPLIT_FROM": 32, "SPLIT_BLOCK": 16, "SPLIT_MOST": 4,
}  # fmt: skip


@pytest.fixture
def shrunken():
    """A launch table in which rows of 43 classes are long."""
    with table(TABLE, processors=1):
        yield


def case_of(**changes) -> Case:
    return Case(**{"shapes": ((ROWS, 2), (ROWS, CLASSES)), **changes})


def peeled(problem, backend) -> bool:
    """Whether the rows are, whose gradient is held to the reference; in memory full of NaN."""
    with poisoned_memory(), launches() as log:
        actual = fused(problem, backend)
    assert_matches(problem, actual, fused(problem, "reference"))
    (unit,) = {arguments["UNIT"] for arguments in log.arguments if "UNIT" in arguments}
    return unit == PEELED.value


QUICK = ("plain", "a sample's own", "everything, bfloat16")  # the others are in the sweep
ALONE = ("smoothed", "float16", "float64", "a sample's own")  # the last is never split
CASES = {
    "plain": case_of(targets="hard-100"),
    "bfloat16": case_of(targets="hard-100", dtypes=(BF16, BF16), upstream="other"),
    "float16": case_of(targets="soft", dtypes=(F16, F16)),
    "float64": case_of(dtypes=(F64, F64), shapes=((3, 2), (3, CLASSES))),
    "smoothed": case_of(smoothing=0.25, weighted=True),
    "smoothed probabilities": case_of(targets="soft", smoothing=0.25, weighted=True),
    "masked probabilities": case_of(targets="soft", smoothing=0.25, mask="positions"),
    "a sample's own": case_of(reduction="none", targets="hard-100", upstream="other"),
    "in place": case_of(targets="hard-100", inplace=True),
    "everything": replace(EVERY_OPTION, shapes=((ROWS, 2), (ROWS, CLASSES))),
    "everything, bfloat16": replace(
        EVERY_OPTION, shapes=((ROWS, 2), (ROWS, CLASSES)), dtypes=(BF16, BF16), inplace=True
    ),
}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        pytest.param(name, split, marks=() if name in QUICK else pytest.mark.slow)
        for name in CASES
        for split in (False, True)
        if not (split and name in ALONE)
    ],
)
def test_wherever_a_row_begins(name, split, shrunken, backend, device):
    problem = CASES[name].problem(device)
    with table(TABLE, processors=16 if split else 2), launches() as log:
        assert peeled(problem, backend)
    assert ("slices_kernel" in log.kernels) == split


@pytest.mark.parametrize(
    ("targets", "classes"), [("hard", 17), ("hard", 23), ("hard", 26), ("soft", 20), ("soft", 31)]
)
def test_bodies_of_few_blocks_or_of_less_than_one(targets, classes, shrunken, backend, device):
    """The label at each class in turn: before the body, in it, behind it."""
    rows = classes if targets == "hard" else 8
    case = case_of(targets=targets, dtypes=(F32, BF16), shapes=((rows, 1), (rows, classes)))
    problem = case.problem(device)
    if targets == "hard":
        problem.t.copy_(torch.arange(classes))
    assert peeled(problem, backend)


def test_rows_that_are_aligned_apart_from_each_other_are_not_peeled(shrunken, backend, device):
    """Logits that lie further apart than their gradient, or than probabilities."""
    problem = case_of(targets="soft").problem(device)
    apart = problem.z.new_zeros(ROWS, CLASSES + 2)[:, :CLASSES].copy_(problem.z)
    alike = problem.z.new_zeros(ROWS, CLASSES + 8)[:, :CLASSES].copy_(problem.z)
    assert peeled(problem._replace(z=alike), backend)
    assert not peeled(problem._replace(z=apart), backend)
    t = problem.t.new_zeros(ROWS, CLASSES + 2)[:, :CLASSES].copy_(problem.t)
    assert not peeled(problem._replace(t=t), backend)


@pytest.mark.parametrize("of", ["a mask a row", "probabilities"])
def test_what_has_another_stride_between_classes_is_not_peeled(of, shrunken, backend, device):
    """Though its rows begin where those of the logits do, but for a multiple of 8."""
    soft = of == "probabilities"
    case = case_of(targets="soft" if soft else "hard", shapes=((ROWS, 2), (ROWS, 41)))
    problem = case.problem(device)
    if soft:
        problem = problem._replace(t=problem.t.t().contiguous().t())
    else:
        mask = torch.arange(ROWS, device=device)[:, None] != 3
        problem = problem._replace(keywords=problem.keywords | {"class_mask": mask})
    assert not peeled(problem, backend)


@pytest.mark.parametrize("masked", [False, True])
def test_logits_in_place_whose_rows_are_an_odd_distance_apart(masked, shrunken, backend, device):
    """16 divides their length. A mask for all rows begins elsewhere than they do."""
    problem = case_of(targets="hard-100", inplace=True, shapes=((ROWS, 2), (ROWS, 48)))
    problem = problem.problem(device)
    z = problem.z.new_zeros(ROWS, 49)[:, :48].copy_(problem.z)
    if masked:
        mask = (torch.arange(48, device=device) % 5 != 1)[None]
        problem = problem._replace(keywords=problem.keywords | {"class_mask": mask})
    assert peeled(problem._replace(z=z), backend) is not masked


def test_the_table_as_it_is(backend, device):
    """50257 classes: GPT-2's. Two rows, of which the second begins at an odd address."""
    random = torch.Generator().manual_seed(0)
    z = torch.randn(2, 50257, generator=random).to(device, BF16)
    t = torch.tensor([50256, 3], device=device)
    r, y = torch.randn(2, 2, 3, generator=random).to(device)
    found = {}
    for name, dtype in ((backend, BF16), ("reference", F64)):
        leaf = z.to(dtype).requires_grad_()
        with fused_loss.backend(name), launches() as log:
            loss = combined_loss(r, leaf, y, t, classification_normalizer=2.0)
        found[name] = loss, torch.autograd.grad(loss, leaf)[0]
        # One launch, or two where the device splits few rows among its many programs.
        peeled_rows = [a["UNIT"] == PEELED.value for a in log.arguments]
        assert all(peeled_rows)
        assert bool(peeled_rows) is (name == backend)
    for one, truth in zip(*found.values(), strict=True):
        assert ((one - truth).abs() <= torch.finfo(one.dtype).eps * truth.abs()).all()
