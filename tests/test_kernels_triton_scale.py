import pytest
import torch
from _asserts import launches
from _cases import TRITON_PLACES, Case

import fused_loss
from fused_loss import combined_loss, cross_entropy, kernels

pytestmark = pytest.mark.parametrize(("backend", "device"), TRITON_PLACES)

FACTORS = [1.0, 0.0, -2.0, 65536.0, float("inf"), float("nan")]


def stored(device, dtype=torch.float32):
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random).to(device, dtype) for shape in ((4, 2), (4, 5))]


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("factor", FACTORS)
def test_times_grad_output(factor, in_place, backend, device):
    gradients = stored(device)
    before = [gradient.clone() for gradient in gradients]
    grad_output = torch.tensor(factor, device=device)
    scaled = kernels.scale(backend, gradients, grad_output, in_place)
    for new, old, copy in zip(scaled, gradients, before, strict=True):
        assert (new.data_ptr() == old.data_ptr()) == in_place
        torch.testing.assert_close(new, copy * grad_output, rtol=0, atol=0, equal_nan=True)
        assert in_place or torch.equal(old, copy)


def test_one_gradient(backend, device):
    (gradient, _) = stored(device)
    expected = gradient * 3
    (scaled,) = kernels.scale(backend, [gradient], torch.tensor(3.0, device=device), True)
    assert torch.equal(scaled, expected)


def test_the_layout_is_kept(backend, device):
    """A gradient that is dense in another order is scaled as it lies in memory."""
    gradients = [gradient.t().contiguous().t() for gradient in stored(device)]
    expected = [3 * gradient for gradient in gradients]
    grad_output = torch.tensor(3.0, device=device)
    for new, old, answer in zip(
        kernels.scale(backend, gradients, grad_output, False), gradients, expected, strict=True
    ):
        assert new.stride() == old.stride()
        assert torch.equal(new, answer)


def test_more_than_one_tile(backend, device):
    """40000 elements beside 10: each program walks several tiles, of one gradient only."""
    random = torch.Generator().manual_seed(0)
    gradients = [torch.randn(n, generator=random).to(device) for n in (10, 40000)]
    expected = [gradient * 0.5 for gradient in gradients]
    scaled = kernels.scale(backend, gradients, torch.tensor(0.5, device=device), True)
    assert all(map(torch.equal, scaled, expected))


@pytest.mark.parametrize("retained", [True, False])
def test_only_a_retained_graph_gets_new_buffers(retained, backend, device):
    problem = Case(targets="hard-100").problem(device)
    z = problem.z.requires_grad_()
    with fused_loss.backend(backend):
        loss = combined_loss(problem.r, z, problem.y, problem.t, **problem.keywords)
    with launches() as log:
        torch.autograd.grad(loss, z, torch.tensor(0.5, device=device), retain_graph=retained)
    assert log.kernels == ["scale_kernel"]
    assert log.operators.count("empty_like") == retained
    assert [arguments["IN_PLACE"] for arguments in log.arguments] == [not retained]


def test_grad_output_is_widened(backend, device):
    """A float64 loss of a float32 input: the factor is not rounded first."""
    z = stored(device)[1].requires_grad_()
    with fused_loss.backend(backend):
        loss = cross_entropy(z, torch.tensor([0, 1, 2, 3], device=device))
    (one,) = torch.autograd.grad(loss, z, retain_graph=True)
    factor = 1 / 3
    (gradient,) = torch.autograd.grad(loss.double() * factor, z)
    assert torch.equal(gradient, one * torch.tensor(factor, device=device))
