"""The oracle of the other backends against two others: NumPy loops and PyTorch's own losses."""

import pytest
import torch
from _asserts import assert_matches, composed, fused
from _cases import BF16, COVERING, F64, PRODUCT, Case

import fused_loss
from fused_loss import combined_loss


@pytest.mark.parametrize("case", PRODUCT + COVERING, ids=str)
def test_value_and_gradients(case):
    problem = case.problem()
    assert_matches(problem, fused(problem, "reference"), composed(problem))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_second_derivative(reduction):
    case = Case(reduction, targets="hard-100", smoothing=0.25, weighted=True, dtypes=(F64, F64))
    problem = case.problem()
    alpha = torch.tensor(0.3, dtype=F64, requires_grad=True)

    def loss(r, z, alpha):
        keywords = {**problem.keywords, "alpha": alpha}
        return combined_loss(r, z, problem.y, problem.t, **keywords)

    inputs = (problem.r.requires_grad_(), problem.z.requires_grad_(), alpha)
    with fused_loss.backend("reference"):
        assert torch.autograd.gradcheck(loss, inputs)
        assert torch.autograd.gradgradcheck(loss, inputs)


def test_functional_transforms():
    problem = Case(targets="soft", smoothing=0.25, dtypes=(F64, F64)).problem()

    def loss(r, z):
        return combined_loss(r, z, problem.y, problem.t, **problem.keywords)

    with fused_loss.backend("reference"):
        reverse = torch.func.grad(loss, argnums=(0, 1))(problem.r, problem.z)
        _, forward = torch.func.jvp(loss, (problem.r, problem.z), reverse)
    expected = fused(problem, "reference")
    for gradient, name in zip(reverse, ("r", "z"), strict=True):
        assert torch.equal(gradient, expected[name])
    assert torch.allclose(forward, sum(g.square().sum() for g in reverse), rtol=1e-14, atol=0)


def test_a_half_input_is_widened_once():
    """The loss of bfloat16 outputs is that of the same values in float32, to the last bit."""
    problem = Case(targets="soft", smoothing=0.25, weighted=True, dtypes=(BF16, BF16)).problem()
    wide = problem._replace(r=problem.r.float(), z=problem.z.float())
    narrow, full = fused(problem, "reference"), fused(wide, "reference")
    for name in ("loss", "regression", "classification"):
        assert torch.equal(narrow[name], full[name])
    for name in ("r", "z"):
        assert torch.equal(narrow[name], full[name].to(BF16))


@pytest.mark.parametrize("case", COVERING, ids=str)
def test_each_result_is_rounded_once(case):
    """As near to float64 as its dtype allows, where the composition in float32 is not."""
    problem = case.problem()
    wide = problem._replace(**{name: getattr(problem, name).double() for name in ("r", "z", "y")})
    narrow, exact = fused(problem, "reference"), fused(wide, "reference")
    for name, value in narrow.items():
        smallest = torch.finfo(value.dtype).tiny
        assert torch.allclose(
            value.double(), exact[name].double(), torch.finfo(value.dtype).eps, smallest, True
        ), name


def test_an_illegal_index_is_named():
    problem = Case(weighted=True).problem()
    t = problem.t.clone()
    t[1] = 7
    with fused_loss.backend("reference"), pytest.raises(IndexError, match=r"class index 7, .* 5 "):
        combined_loss(problem.r, problem.z, problem.y, t, **problem.keywords)
