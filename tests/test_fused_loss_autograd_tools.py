"""What users put around a loss: hooks, checkpoints, anomaly mode, threads, second derivatives."""

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from _asserts import Result, fused, leaves
from _cases import EAGER_PLACES, EVERY_OPTION, F16, F64, PLACES, TRITON_PLACES, Case, Problem
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fused_loss
from fused_loss import combined_loss

REFERENCE = pytest.param("reference", "cpu", id="reference-cpu")
EVERYWHERE = [REFERENCE, *PLACES]
# Triton's interpreter runs one kernel at a time: it patches the language while it does.
THREADED = [REFERENCE, *EAGER_PLACES, TRITON_PLACES[-1]]
everywhere = pytest.mark.parametrize(("backend", "device"), EVERYWHERE)
closed_form = pytest.mark.parametrize(("backend", "device"), PLACES)
# A gradient that is stored with the loss, and two that wait for grad_output.
CASES = [
    Case(weighting="alpha-tensor", upstream="other"),
    EVERY_OPTION,
    replace(EVERY_OPTION, reduction="none", targets="soft", weighting="pair-tensor"),
    replace(EVERY_OPTION, dtypes=(F16, F16), empty="zero"),
]
on_cases = pytest.mark.parametrize("case", CASES, ids=str)


def call(problem: Problem, taken: Result, keywords: dict[str, Any]) -> Tensor:
    return combined_loss(taken["r"], taken["z"], problem.y, problem.t, **keywords)


def assert_same(found: dict[str, Tensor], whole: Result) -> None:
    for name, value in found.items():
        assert torch.equal(value, whole[name]), name


@everywhere
@on_cases
def test_hooks_see_the_gradients(case, backend, device):
    """Those of leaves and of outputs that are none, before and after they are accumulated."""
    problem = case.problem(device)
    whole = fused(problem, backend)
    taken, keywords = leaves(problem)
    outputs = {name: taken[name] * 1 for name in ("r", "z")}
    seen: dict[str, list[Tensor]] = {"leaf": [], "output": [], "after": [], "node": []}
    for name in ("r", "z"):
        taken[name].register_hook(seen["leaf"].append)
        taken[name].register_post_accumulate_grad_hook(lambda leaf: seen["after"].append(leaf.grad))
        outputs[name].register_hook(seen["output"].append)
        outputs[name].retain_grad()
    with fused_loss.backend(backend):
        loss = call(problem, outputs, keywords)
    loss.grad_fn.register_prehook(lambda upstream: seen["node"].append(upstream[0]))
    loss.backward(problem.grad_output)
    assert torch.equal(seen["node"][0], problem.grad_output)
    assert [len(values) for values in seen.values()] == [2, 2, 2, 1]
    assert_same({name: taken[name].grad for name in taken}, whole)
    assert_same({name: outputs[name].grad for name in outputs}, whole)


@everywhere
@on_cases
def test_a_hook_may_replace_grad_output(case, backend, device):
    problem = case.problem(device)
    whole = fused(problem._replace(grad_output=problem.grad_output * -2), backend)
    taken, keywords = leaves(problem)
    with fused_loss.backend(backend):
        loss = call(problem, taken, keywords)
    loss.register_hook(lambda upstream: -2 * upstream)
    gradients = torch.autograd.grad(loss, list(taken.values()), problem.grad_output)
    assert_same(dict(zip(taken, gradients, strict=True)), whole)


@everywhere
@on_cases
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_computes_it_again(case, reentrant, backend, device):
    problem = case.problem(device)
    whole = fused(problem, backend)
    taken, keywords = leaves(problem)

    def part(r: Tensor, z: Tensor, weights: Tensor) -> Tensor:
        name = next(name for name in ("alpha", "loss_weights") if name in keywords)
        return call(problem, {"r": r * 1, "z": z * 1}, {**keywords, name: weights})

    with fused_loss.backend(backend):
        loss = checkpoint(part, *taken.values(), use_reentrant=reentrant)
        loss.backward(problem.grad_output)
    assert_same({name: leaf.grad for name, leaf in taken.items()}, whole)


@everywhere
@on_cases
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_anomaly_mode_finds_nothing(case, backend, device):
    """Not even where NaN stands at what is ignored, missing or impossible."""
    problem = case.problem(device)
    whole = fused(problem, backend)
    if "class_mask" in problem.keywords:
        off = ~problem.keywords["class_mask"]
        missing = problem.y.isnan()
        problem = problem._replace(
            z=problem.z.masked_fill(off, torch.nan), r=problem.r.masked_fill(missing, torch.nan)
        )
    taken, keywords = leaves(problem)
    with fused_loss.backend(backend), torch.autograd.detect_anomaly(check_nan=True):
        loss = call(problem, taken, keywords)
        gradients = torch.autograd.grad(loss, list(taken.values()), problem.grad_output)
    assert_same(dict(zip(taken, gradients, strict=True)), whole)


@closed_form
@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected in")
def test_anomaly_mode_names_the_loss(backend, device):
    problem = Case().problem(device)
    problem.z[1, 2] = torch.nan
    taken, keywords = leaves(problem)
    with (
        fused_loss.backend(backend),
        torch.autograd.detect_anomaly(check_nan=True),
        pytest.raises(RuntimeError, match=r"'FusedLossBackward' returned nan values"),
    ):
        call(problem, taken, keywords).backward()


@everywhere
@on_cases
def test_the_loss_used_twice(case, backend, device):
    """loss + 2·loss: one backward pass, for three times grad_output."""
    problem = case.problem(device)
    whole = fused(problem._replace(grad_output=problem.grad_output * 3), backend)
    taken, keywords = leaves(problem)
    with fused_loss.backend(backend):
        loss = call(problem, taken, keywords)
    (loss + 2 * loss).backward(problem.grad_output)
    for name, leaf in taken.items():
        eps = 4 * torch.finfo(leaf.dtype).eps
        torch.testing.assert_close(leaf.grad, whole[name], rtol=eps, atol=eps)


@pytest.mark.parametrize(("backend", "device"), THREADED)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_threads_do_not_meet(reduction, backend, device):
    """Each has a backend, an input and a graph of its own; all start at once."""
    cases = [replace(EVERY_OPTION, reduction=reduction, normalizers="", mask=m) for m in
             ("", "classes", "positions", "trap")]  # fmt: skip
    problems = [case.problem(device) for case in cases]
    alone = [fused(problem, backend) for problem in problems]
    gate = threading.Barrier(len(cases))
    found: list[list[Result]] = [[] for _ in cases]

    def work(place: int) -> None:
        gate.wait()
        for _ in range(3):
            found[place].append(fused(problems[place], backend))

    workers = [threading.Thread(target=work, args=(place,)) for place in range(len(cases))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for results, expected in zip(found, alone, strict=True):
        assert len(results) == 3
        for result in results:
            assert result.keys() == expected.keys()
            for name, value in result.items():
                torch.testing.assert_close(
                    value, expected[name], rtol=0, atol=0, equal_nan=True, msg=name
                )


@everywhere
@on_cases
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_grad_the_loss_is_the_same(case, mode, backend, device):
    problem = case.problem(device)
    whole = fused(problem, backend)
    taken, keywords = leaves(problem)
    with fused_loss.backend(backend), mode():
        loss = call(problem, taken, keywords)
    assert loss.grad_fn is None
    assert not loss.requires_grad
    assert torch.equal(loss, whole["loss"])


@everywhere
@on_cases
def test_one_tensor_for_both_heads(case, backend, device):
    """The sum of the two gradients, with options that tell the heads apart."""
    problem = replace(case, shapes=((4, 5), (4, 5))).problem(device)
    problem = problem._replace(r=problem.z)
    apart = fused(problem, backend)
    taken, keywords = leaves(problem)
    shared = taken["z"]
    with fused_loss.backend(backend):
        loss = call(problem, {"r": shared, "z": shared}, keywords)
    (gradient,) = torch.autograd.grad(loss, shared, problem.grad_output)
    assert torch.equal(loss, apart["loss"])
    assert torch.equal(gradient, apart["r"] + apart["z"])


@closed_form
@on_cases
@pytest.mark.parametrize("wanted", ["r", "z", "weights"])
def test_a_second_derivative_is_refused(case, wanted, backend, device):
    """Whatever the first one was taken of; and it is not silently 0."""
    problem = case.problem(device)
    taken, keywords = leaves(problem)
    with fused_loss.backend(backend):
        loss = call(problem, taken, keywords).sum()
    leaf = taken[wanted] if wanted in taken else list(taken.values())[2]
    with pytest.raises(RuntimeError, match=r'create_graph.*backend\("reference"\)'):
        torch.autograd.grad(loss, leaf, create_graph=True)


@pytest.mark.parametrize("case", [CASES[0], EVERY_OPTION, CASES[2]], ids=str)
def test_reference_s_second_derivative_is_the_gradient_s(case):
    """By differences of the gradient, in float64, in both outputs and the weights."""
    problem = replace(case, dtypes=(F64, F64)).problem()
    taken, keywords = leaves(problem)
    weights = next(name for name in taken if name not in ("r", "z"))
    inputs = [*list(taken.values())[:2], taken[weights].detach().double().requires_grad_()]

    def loss(r: Tensor, z: Tensor, w: Tensor) -> Tensor:
        return call(problem, {"r": r, "z": z}, {**keywords, weights: w})

    with fused_loss.backend("reference"):
        assert torch.autograd.gradgradcheck(loss, inputs)
