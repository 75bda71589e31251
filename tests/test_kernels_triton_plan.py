"""Plans: found again by the signature, right for whatever has another, and holding no tensor."""

from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import replace

import pytest
import torch
from _asserts import assert_matches, fused, launched
from _cases import BF16, F16, F32, F64, TRITON_PLACES, Case

import fused_loss
from fused_loss import combined_loss
from fused_loss.kernels import triton_grid, triton_launch, triton_plan, triton_scaling
from fused_loss.kernels.triton_scale import scale_kernel

pytestmark = pytest.mark.parametrize(("backend", "device"), TRITON_PLACES)


@pytest.fixture
def fresh():
    for cache in (triton_plan.recall, triton_scaling.recall):
        cache.cache_clear()


def planned() -> tuple[int, int]:
    """The plans made: of losses and gradients that waited, and of gradients to scale."""
    return triton_plan.recall.cache_info().misses, triton_scaling.recall.cache_info().misses


def test_a_signature_is_planned_once(fresh, backend, device):
    """Neither other values nor another alpha, normalizer or address bring about a new plan."""
    problem = Case(normalizers="numbers").problem(device)
    offset = problem.z.new_zeros(problem.z.numel() + 1)[1:].view(problem.z.shape).copy_(problem.z)
    numbers = ("regression_normalizer", "classification_normalizer")
    others = {name: 2 * problem.keywords[name] + 1 for name in numbers}
    for other in (
        problem,
        problem._replace(y=problem.y + 1),
        problem._replace(z=offset),
        problem._replace(keywords=problem.keywords | {"alpha": 0.125}, weights=(0.125, 0.875)),
        problem._replace(keywords=problem.keywords | others),
    ):
        assert_matches(other, fused(other, backend), fused(other, "reference"))
        assert planned() == (1, 1)


BASE = Case(targets="hard-100")
VARIED = {
    "reduction": replace(BASE, reduction="sum"),
    "a value a sample": replace(BASE, reduction="none"),
    "smoothing": replace(BASE, smoothing=0.25),
    "ignored class": replace(BASE, targets="hard-class"),
    "probabilities": replace(BASE, targets="soft"),
    "class weight": replace(BASE, weighted=True),
    "mask": replace(BASE, mask="positions"),
    "regression weight": replace(BASE, regression_weight="full"),
    "a weight a sample": replace(BASE, regression_weight="sample"),
    "classification weight": replace(BASE, position_weight="full"),
    "missing": replace(BASE, missing="some"),
    "empty": replace(BASE, missing="all", empty="zero"),
    "numbers": replace(BASE, normalizers="numbers"),
    "normalizers": replace(BASE, normalizers="tensors"),
    "alpha": replace(BASE, weighting="alpha-tensor"),
    "pair": replace(BASE, weighting="pair-tensor"),
    "in place": replace(BASE, inplace=True),
    "float16": replace(BASE, dtypes=(F32, F16)),
    "bfloat16": replace(BASE, dtypes=(BF16, F32)),
    "float64": replace(BASE, dtypes=(F64, F64)),
    "target dtype": replace(BASE, target_dtype=F64),
    "shape": replace(BASE, shapes=((4, 3), (4, 5))),
}


@pytest.mark.parametrize("name", VARIED)
def test_what_differs_has_a_plan_of_its_own(name, fresh, backend, device):
    """And the first plan is found again after it."""
    varied = VARIED[name]
    own = 2 if varied.reduction == "none" or F16 in varied.dtypes else 1  # a gradient that waits
    for case, plans in ((BASE, 1), (varied, 1 + own), (BASE, 1 + own)):
        problem = case.problem(device)
        assert_matches(problem, launched(problem)[0], fused(problem, "reference"))
        assert triton_plan.recall.cache_info().currsize == plans


@pytest.mark.parametrize("which", ["r", "z", "y", "t"])
def test_strides_are_part_of_a_signature(which, fresh, backend, device):
    problem = replace(BASE, targets="soft").problem(device)
    across = getattr(problem, which).t().contiguous().t()
    for other in (problem, problem._replace(**{which: across}), problem):
        assert_matches(other, fused(other, backend), fused(other, "reference"))
    assert triton_plan.recall.cache_info().currsize == 2


@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("dtype", [F32, F16])
def test_needs_are_part_of_a_signature(dtype, needed, fresh, backend, device):
    problem = replace(BASE, dtypes=(dtype, dtype)).problem(device)
    fused(problem, backend)
    expected = fused(problem, backend)
    r, z = problem.r.detach(), problem.z.detach()
    outputs = [x.requires_grad_(need) for x, need in zip((r, z), needed, strict=True)]
    with fused_loss.backend(backend):
        loss = combined_loss(*outputs, problem.y, problem.t, **problem.keywords)
    assert torch.equal(loss, expected["loss"])
    leaves = {name: x for name, x in zip("rz", outputs, strict=True) if x.requires_grad}
    if leaves:
        gradients = torch.autograd.grad(loss, list(leaves.values()), problem.grad_output)
        for name, gradient in zip(leaves, gradients, strict=True):
            assert torch.equal(gradient, expected[name])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_tensor_of_a_call_stays(reduction, fresh, backend, device):
    case = Case(reduction, mask="positions", regression_weight="full", position_weight="full")
    problem = replace(case, weighted=True, weighting="alpha-tensor").problem(device)
    for _ in range(2):
        result = fused(problem, backend)
        tensors = [*problem[:4], problem.grad_output, *problem.keywords.values(), *result.values()]
        alive = [weakref.ref(x) for x in tensors if torch.is_tensor(x)]
        assert len(alive) > 10
        del result, tensors
    del problem
    gc.collect()
    assert not [ref for ref in alive if ref() is not None]
    assert triton_plan.recall.cache_info().currsize


def test_the_plans_are_bounded(backend, device):
    for cache in (triton_plan.recall, triton_scaling.recall):
        assert cache.cache_info().maxsize == triton_grid.PLANS


def test_scratch_grows_and_is_a_threads_own(fresh, backend, device):
    place, found = torch.device(device, 0) if device == "cuda" else torch.device(device), []

    def look() -> None:
        small = triton_launch._scratch(place, F32, 8)
        assert triton_launch._scratch(place, F32, 8) is small
        large = triton_launch._scratch(place, F32, len(small.partials) + 1)
        assert len(large.partials) > len(small.partials)
        assert triton_launch._scratch(place, F32, 8) is large
        found.extend([small, large, triton_launch._scratch(place, F64, 8)])

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    addresses = {x.data_ptr() for scratch in found for x in (scratch.ticket, scratch.partials)}
    assert len(addresses) == 2 * len(found) == 12


@pytest.mark.parametrize("case", [BASE, replace(BASE, inplace=True)], ids=str)
def test_nothing_is_read_of_the_scratch_of_the_launch_before(case, fresh, backend, device):
    problem = case.problem(device)
    expected = fused(problem, backend)
    for scratch in triton_launch._scratches.known.values():
        for x in (scratch.partials, scratch.components, scratch.counts):
            x.fill_(torch.nan)
    again = fused(problem, backend)
    assert all(torch.equal(expected[name], again[name]) for name in expected)


def test_a_launch_has_the_arguments_of_its_kernel(backend, device):
    """All of them, in its order; a stranger among them is noticed."""
    place = torch.device(device)
    launch = triton_grid.Launch(scale_kernel, 1, place, 4, BLOCK=8, a_elements=3)
    assert list(launch.arguments) == list(scale_kernel.arg_names)
    with pytest.raises(AssertionError, match="no_such"):
        triton_grid.Launch(scale_kernel, 1, place, 4, no_such=1)
