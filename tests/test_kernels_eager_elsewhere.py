"""The eager backend on another device than a CPU, such as a GPU, where `auto` takes it."""

from dataclasses import replace

import pytest
import torch
from _asserts import Result, assert_matches, composed, leaves
from _cases import COVERING, EVERY_OPTION, F32, F64, REDUCTIONS, Case, Problem
from _elsewhere import Elsewhere, back, made_elsewhere, there
from torch.utils._pytree import tree_map

from fused_loss import kernels
from fused_loss.options import arrange
from fused_loss.spec import LossTensors, Needs


def computed(problem: Problem) -> Result:
    """Loss, components and gradients, as the autograd Function has the backend compute them."""
    taken, keywords = leaves(problem)
    keywords = {**keywords, "inplace_gradient": False}
    spec, tensors = arrange(taken["r"], taken["z"], problem.y, problem.t, **keywords)
    moved = LossTensors(*(there(None if x is None else x.detach()) for x in tensors))
    waits = kernels.gradient_waits(spec, tensors)
    needs, upstream = Needs(True, True), there(problem.grad_output)
    with torch.no_grad(), made_elsewhere():
        outcome = kernels.forward("eager", spec, moved, Needs(not waits, not waits))
        if waits:
            r_grad, z_grad = kernels.backward("eager", spec, moved, needs, upstream)
        else:
            r_grad, z_grad = kernels.scale("eager", outcome[2:], upstream, True)
        found = {"loss": outcome.loss, "r": r_grad, "z": z_grad}
        components = outcome.components
        found |= {"regression": components[0], "classification": components[1]}
        name = next((name for name in ("alpha", "loss_weights") if name in taken), None)
        if name:
            found[name] = kernels.weights_gradient(components, moved.weights, upstream)
    assert all(type(value) is Elsewhere for value in found.values())
    return tree_map(back, found)


@pytest.mark.parametrize("case", [case for case in COVERING if not case.inplace], ids=str)
def test_a_covering_array_of_all_options(case):
    problem = case.problem()
    assert_matches(problem, computed(problem), composed(problem))


@pytest.mark.parametrize("targets", ["hard", "hard-100", "soft"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_every_option(dtype, reduction, targets):
    """And what is counted, since no normalizer is given."""
    case = replace(EVERY_OPTION, reduction=reduction, targets=targets, dtypes=(dtype, dtype))
    problem = replace(case, normalizers="").problem()
    assert_matches(problem, computed(problem), composed(problem))


@pytest.mark.parametrize("option", ["missing", "ignored"])
def test_a_mean_by_count_is_of_the_dtype_of_the_loss(option):
    case = Case(targets="hard-100" if option == "ignored" else "hard", dtypes=(F64, F64))
    problem = replace(case, missing="some" if option == "missing" else "").problem()
    assert_matches(problem, computed(problem), composed(problem))


@pytest.mark.parametrize("targets", [[1, 1, -100], [[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]])
def test_a_share_beyond_float32_is_no_error(targets):
    z = torch.tensor([[1.0, 2.0], [2.0, 1.0], [0.0, 1.0]])
    r, t = torch.ones(3, 2), torch.tensor(targets)
    spec, tensors = arrange(r, z, r + 1, t, classification_normalizer=1e-40)
    with torch.no_grad(), made_elsewhere():
        found = kernels.forward("eager", spec, LossTensors(*map(there, tensors)), Needs(True, True))
    assert back(found.loss) == torch.inf
