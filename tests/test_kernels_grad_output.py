"""What a backward pass may be asked for, on both closed-form backends."""

from dataclasses import replace

import pytest
import torch
from _asserts import Launches, assert_matches, fused, launches, leaves
from _cases import BF16, F16, F32, PLACES, Case

import fused_loss
from fused_loss import combined_loss

pytestmark = pytest.mark.parametrize(("backend", "device"), PLACES)

# A gradient that is stored in the forward pass, one a sample, and one that waits for float16.
STORED = Case(targets="hard-100", weighted=True, smoothing=0.25)
PER_SAMPLE = replace(STORED, reduction="none")
WAITING = replace(STORED, dtypes=(F16, F32))
EVERYTHING = replace(
    STORED,
    mask="positions",
    regression_weight="full",
    position_weight="full",
    missing="some",
    normalizers="tensors",
)
CASES = [
    *(STORED, replace(STORED, dtypes=(BF16, F32)), PER_SAMPLE, WAITING, EVERYTHING),
    replace(EVERYTHING, reduction="none", targets="soft", dtypes=(F16, F16)),
]


def loss_of(problem, backend):
    taken, keywords = leaves(problem)
    with fused_loss.backend(backend):
        loss = combined_loss(taken["r"], taken["z"], problem.y, problem.t, **keywords)
    return loss, list(taken.values())


@pytest.mark.parametrize("factor", [0.0, 65536.0, -3.0, 0.3])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_factor(case, factor, backend, device):
    problem = case.problem(device)
    problem = problem._replace(grad_output=torch.full_like(problem.grad_output, factor))
    actual = fused(problem, backend)
    assert_matches(problem, actual, fused(problem, "reference"))
    if factor == 0:
        assert not actual["r"].any()
        assert not actual["z"].any()


@pytest.mark.parametrize("spread", ["expanded", "strided", "reversed copy"])
def test_any_stride_of_grad_output(spread, backend, device):
    problem = PER_SAMPLE.problem(device)
    values = torch.randn(4, 2, device=device, generator=torch.Generator(device).manual_seed(0))
    grad_output = {
        "expanded": values[0, 0].expand(4),
        "strided": values[:, 1],
        "reversed copy": values[:, 0].flip(0),
    }[spread]
    problem = problem._replace(grad_output=grad_output)
    assert_matches(problem, fused(problem, backend), fused(problem, "reference"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_second_backward_of_a_retained_graph(case, backend, device):
    """Each has the gradients of its own grad_output; the first ones stay as they were."""
    problem = case.problem(device)
    loss, inputs = loss_of(problem, backend)
    one = problem.grad_output
    other = torch.full_like(one, 3.0)
    first = torch.autograd.grad(loss, inputs, one, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    second = torch.autograd.grad(loss, inputs, other, retain_graph=True)
    third = torch.autograd.grad(loss, inputs, one)
    alone = fused(problem, backend)
    tripled = fused(problem._replace(grad_output=other), backend)
    for i, name in enumerate(("r", "z")):
        assert torch.equal(first[i], alone[name])
        assert torch.equal(second[i], tripled[name])
        assert torch.equal(third[i], alone[name])
        assert torch.equal(first[i], kept[i])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_gradient_belongs_to_the_caller(case, backend, device):
    """What is done to it in place does not reach the next backward pass."""
    problem = case.problem(device)
    loss, inputs = loss_of(problem, backend)
    for gradient in torch.autograd.grad(loss, inputs, problem.grad_output, retain_graph=True):
        gradient.zero_()
    again = torch.autograd.grad(loss, inputs, problem.grad_output)
    alone = fused(problem, backend)
    assert torch.equal(again[0], alone["r"])
    assert torch.equal(again[1], alone["z"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_accumulate(case, backend, device):
    problem = case.problem(device)
    loss, inputs = loss_of(problem, backend)
    loss.backward(problem.grad_output, retain_graph=True)
    loss.backward(problem.grad_output)
    alone = fused(problem, backend)
    for leaf, name in zip(inputs, ("r", "z"), strict=True):
        assert torch.equal(leaf.grad, 2 * alone[name])


@pytest.mark.parametrize("case", [STORED, PER_SAMPLE, WAITING], ids=str)
def test_one_tensor_for_both_heads(case, backend, device):
    problem = case.problem(device)
    z = problem.z.to(case.dtypes[0])
    y = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)
    apart = fused(problem._replace(r=z, z=z, y=y), backend)
    shared = z.clone().requires_grad_()
    with fused_loss.backend(backend):
        loss = combined_loss(shared, shared, y, problem.t, **problem.keywords)
    (gradient,) = torch.autograd.grad(loss, shared, problem.grad_output)
    assert torch.equal(loss, apart["loss"])
    assert torch.equal(gradient, apart["r"] + apart["z"])


@pytest.mark.parametrize("case", [STORED, PER_SAMPLE, WAITING], ids=str)
def test_a_second_derivative_is_refused(case, backend, device):
    loss, inputs = loss_of(case.problem(device), backend)
    with pytest.raises(RuntimeError, match=r'create_graph.*backend\("reference"\)'):
        torch.autograd.grad(loss.sum(), inputs, create_graph=True)


@pytest.mark.parametrize("needs", [(), ("r",), ("z",), ("r", "z")], ids="-".join)
@pytest.mark.parametrize("case", [STORED, PER_SAMPLE, WAITING], ids=str)
def test_only_the_gradients_that_are_needed(case, needs, backend, device):
    """Their values are those of the whole, and Triton's buffers are theirs alone."""
    problem = case.problem(device)
    whole = fused(problem, backend)
    inputs = {name: getattr(problem, name).clone() for name in ("r", "z")}
    for name in needs:
        inputs[name].requires_grad_()
    with fused_loss.backend(backend), Launches() as forward:
        loss = combined_loss(inputs["r"], inputs["z"], problem.y, problem.t, **problem.keywords)
    assert torch.equal(loss, whole["loss"])
    assert loss.requires_grad == bool(needs)
    if backend == "triton":
        stored = 0 if case.gradient_waits else len(needs)
        assert forward.operators.count("new_empty_strided") == stored
    if not needs:
        return
    with Launches() as backward:
        gradients = torch.autograd.grad(loss, [inputs[n] for n in needs], problem.grad_output)
    for gradient, name in zip(gradients, needs, strict=True):
        assert torch.equal(gradient, whole[name])
    if backend == "triton":
        assert backward.operators.count("new_empty_strided") == len(needs) - stored


@pytest.mark.parametrize("weighting", ["alpha-tensor", "pair-tensor"])
@pytest.mark.parametrize("case", [STORED, PER_SAMPLE], ids=str)
def test_only_the_weights_need_a_gradient(case, weighting, backend, device):
    problem = replace(case, weighting=weighting, upstream="other").problem(device)
    whole = fused(problem, backend)
    name = "alpha" if weighting.startswith("alpha") else "loss_weights"
    weights = problem.keywords[name].clone().requires_grad_()
    keywords = {**problem.keywords, name: weights}
    with fused_loss.backend(backend):
        loss = combined_loss(problem.r, problem.z, problem.y, problem.t, **keywords)
    with launches() as log:
        (gradient,) = torch.autograd.grad(loss, weights, problem.grad_output)
    assert torch.equal(gradient, whole[name])
    assert not log.kernels


@pytest.mark.parametrize("case", [STORED, PER_SAMPLE, WAITING], ids=str)
def test_no_gradient_is_computed_under_no_grad(case, backend, device):
    problem = case.problem(device)
    taken, keywords = leaves(problem)
    with fused_loss.backend(backend), torch.no_grad(), Launches() as log:
        loss = combined_loss(taken["r"], taken["z"], problem.y, problem.t, **keywords)
    assert torch.equal(loss, fused(problem, backend)["loss"])
    assert not loss.requires_grad
    assert backend == "eager" or not {"empty_like", "new_empty_strided"} & set(log.operators)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_repeat_to_the_bit(case, backend, device):
    problem = case.problem(device)
    first, second = fused(problem, backend), fused(problem, backend)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_logits_changed_before_their_backward_are_noticed(backend, device):
    """A gradient that waits is computed from the inputs."""
    loss, (r, z) = loss_of(PER_SAMPLE.problem(device), backend)
    with torch.no_grad():
        z.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss.sum(), (r, z))
