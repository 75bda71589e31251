from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from _asserts import assert_matches, fused
from _cases import COVERING, EAGER_PLACES, F64, PRODUCT, Case
from torch.autograd.profiler import profile

import fused_loss
from fused_loss import combined_loss
from fused_loss.kernels import eager_tiles


@pytest.mark.parametrize(("backend", "device"), EAGER_PLACES)
@pytest.mark.parametrize("case", PRODUCT + COVERING, ids=str)
def test_value_and_gradients(backend, device, case):
    problem = case.problem(device)
    assert_matches(problem, fused(problem, backend), fused(problem, "reference"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_errors_of_samples_outlive_their_block(dtype, monkeypatch):
    """Those of the next block are written into the same buffer."""
    monkeypatch.setattr(eager_tiles, "BLOCK_ELEMENTS", 4)
    r, y = torch.arange(7, dtype=dtype), torch.zeros(7, dtype=dtype)
    with fused_loss.backend("eager"):
        assert torch.equal(fused_loss.mse_loss(r, y, reduction="none"), r * r)


@pytest.mark.parametrize("case", PRODUCT, ids=str)
def test_block_by_block(case, monkeypatch):
    """The same, where two samples fill a block."""
    monkeypatch.setattr(eager_tiles, "BLOCK_ELEMENTS", 4)
    problem = case.problem()
    assert_matches(problem, fused(problem, "eager"), fused(problem, "reference"))


# Where the loss is infinite or NaN its differences are neither here nor there.
DIFFERENTIABLE = [
    case for case in PRODUCT if fused(case.problem(), "reference")["loss"].isfinite().all()
]


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_closed_form_is_the_derivative(case):
    """Against finite differences in float64, in both outputs and in the weights."""
    problem = replace(case, dtypes=(F64, F64)).problem()
    keywords = dict(problem.keywords)
    inputs = [problem.r, problem.z]
    name = next((n for n in ("alpha", "loss_weights") if torch.is_tensor(keywords.get(n))), None)
    if name is not None:
        inputs.append(keywords.pop(name).double())

    def loss(r, z, weights=None):
        given = {} if name is None else {name: weights}
        return combined_loss(r, z, problem.y, problem.t, **keywords, **given) * problem.grad_output

    with fused_loss.backend("eager"):
        assert torch.autograd.gradcheck(loss, [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_one_buffer_of_the_size_of_the_logits(reduction, soft, gradients):
    """Seen by the allocator itself: the gradient, and nothing else of its size."""
    r, z = torch.randn(4096, 1), torch.randn(4096, 1000)
    t = torch.softmax(torch.randn(4096, 1000), 1) if soft else torch.randint(0, 1000, (4096,))
    y = torch.randn(4096, 1)
    inputs = [r.requires_grad_(gradients), z.requires_grad_(gradients)]

    def step():
        with fused_loss.backend("eager"):
            loss = combined_loss(r, z, y, t, reduction=reduction)
        if gradients:
            torch.autograd.grad(loss, inputs, torch.full_like(loss, 0.5))

    assert count_large_allocations(step, z.numel() * z.element_size()) == (1 if gradients else 0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("way", ["no_grad", "inference_mode", "the other head alone", "in place"])
def test_no_buffer_of_the_size_of_the_logits(way, reduction):
    """Where their gradient is not wanted, or lies in their own memory."""
    r, y, leaf = torch.randn(4096, 1), torch.randn(4096, 1), torch.randn(4096, 1000)
    t = torch.randint(0, 1000, (4096,))
    r.requires_grad_()
    leaf.requires_grad_(way != "the other head alone")
    logits = leaf * 1 if way == "in place" else leaf
    options = {"reduction": reduction, "inplace_gradient": way == "in place"}
    mode = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(way, nullcontext)

    def step():
        with fused_loss.backend("eager"), mode():
            loss = combined_loss(r, logits, y, t, **options)
        if loss.requires_grad:
            inputs = [r, logits] if way == "in place" else [r]
            torch.autograd.grad(loss, inputs, torch.full_like(loss, 0.5))

    assert count_large_allocations(step, leaf.numel() * leaf.element_size()) == 0


def count_large_allocations(step, size):
    """How many allocations of at least `size` bytes the CPU allocator saw."""
    with profile(profile_memory=True, use_cpu=True) as record:
        step()
    events = record.kineto_results.events()
    return sum(event.name() == "[memory]" and event.nbytes() >= size for event in events)


def test_the_count_of_allocations_counts():
    size = 1 << 20
    assert count_large_allocations(lambda: [torch.empty(size), torch.ones(size)], 4 * size) == 2


@pytest.mark.parametrize("layout", ["C", "NC", "NCd"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("index", [-1, 5, 1 << 40, -(1 << 40)])
def test_an_index_outside_the_classes_is_named(index, weighted, layout):
    problem = Case(layout=layout, weighted=weighted).problem()
    t = problem.t.clone()
    t.view(-1)[-1] = index
    message = rf"classification_targets .* {index}, .* 5 classes"
    with fused_loss.backend("eager"), pytest.raises(IndexError, match=message):
        combined_loss(problem.r, problem.z, problem.y, t, **problem.keywords)


def test_a_default_device_is_none_of_ours():
    """Tensors on the CPU stay there, whatever new ones default to; and nothing is left behind."""
    problem = Case(weighting="pair").problem()
    right = fused(problem, "eager")
    with torch.device("meta"):
        inside = fused(problem, "eager")
    for found in (inside, fused(problem, "eager")):
        assert all(torch.equal(found[name], right[name]) for name in right)
