"""`task_losses`: two losses from one pass, each with a graph of its own."""

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _asserts import launches
from _public import ALL, assert_agrees, batch, device_of
from torch import Tensor, nn

import fused_loss
from fused_loss import Components, combined_loss, task_losses
from fused_loss.options import Options

on_all = pytest.mark.parametrize("backend", ALL)
on_closed_form = pytest.mark.parametrize("backend", ["eager", "triton"])
on_reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
F16, F32 = torch.float16, torch.float32


def leaves(backend: str, dtype: torch.dtype = F32, **form: Any) -> tuple[Tensor, ...]:
    r, z, y, t = batch(**form, device=device_of(backend))
    return r.to(dtype).requires_grad_(), z.to(dtype).requires_grad_(), y, t


def options_of(device: torch.device, reduction: str) -> dict[str, Any]:
    """Every option that does not exclude another."""
    given = {
        "class_weight": torch.tensor([0.5, 2.0, 1.25]),
        "class_mask": torch.tensor([[True, True, True], [True, True, False]]).repeat(2, 1),
        "regression_weight": torch.tensor([[0.5], [1.0], [0.0], [2.0]]),
        "classification_weight": torch.tensor([0.5, 1.0, 2.0, 0.0]),
    }
    options: dict[str, Any] = {name: value.to(device) for name, value in given.items()}
    options |= {"label_smoothing": 0.1, "nan_targets": "ignore", "empty": "zero"}
    options |= {"ignore_index": 1, "reduction": reduction}
    if reduction == "mean":
        options |= {"regression_normalizer": 3, "classification_normalizer": torch.tensor(2.0)}
        options["classification_normalizer"] = options["classification_normalizer"].to(device)
    return options


def test_it_has_the_options_of_combined_loss():
    parameters = inspect.signature(task_losses).parameters
    mine = list(inspect.signature(combined_loss).parameters)[:4]
    assert list(parameters) == [*mine, "return_components", "options"]
    for name in ("alpha", "loss_weights", "gamma"):
        with pytest.raises(TypeError, match=f"task_losses got an unexpected argument '{name}'"):
            task_losses(*batch(), **{name: 0.5})
    for name in Options.__annotations__:
        with pytest.raises((TypeError, ValueError), match=name):
            task_losses(*batch(), **{name: object()})


@on_all
@on_reductions
@pytest.mark.parametrize("every", [False, True], ids=["plain", "every option"])
def test_each_is_a_component_of_combined_loss(backend: str, every: bool, reduction: str):
    """To the bit, gradients included, which the weights (1, 0) and (0, 1) single out.

    Where "auto" takes PyTorch's operators for one and its own for the other, to their roundings.
    """
    few = 4 * torch.finfo(torch.float32).eps if (backend, reduction) == ("auto", "none") else 0.0

    def assert_same(one: Tensor, other: Tensor) -> None:
        torch.testing.assert_close(one, other, rtol=few, atol=few)

    device = device_of(backend)
    options = options_of(device, reduction) if every else {"reduction": reduction}
    r, z, y, t = leaves(backend)
    y[2, 0] = torch.nan if every else 0.0
    with fused_loss.backend(backend):
        losses, components = task_losses(r, z, y, t, return_components=True, **options)
        for i, weights in enumerate([(1.0, 0.0), (0.0, 1.0)]):
            alone, parts = combined_loss(
                r, z, y, t, loss_weights=weights, return_components=True, **options
            )
            assert_same(losses[i].detach(), parts[i])
            assert_same(components[i], parts[i])
            mine = torch.autograd.grad(losses[i].sum(), (r, z)[i], retain_graph=True)
            assert_same(mine[0], torch.autograd.grad(alone.sum(), (r, z))[i])
    assert type(components) is Components
    assert not any(part.requires_grad for part in components)
    assert all(loss.requires_grad for loss in losses)


@on_all
@on_reductions
def test_they_are_pytorch_s_two_losses(backend: str, reduction: str):
    inputs = batch(features=(), device=device_of(backend))
    with fused_loss.backend(backend):
        for i, oracle in enumerate(
            (
                lambda r, z, y, t: F.mse_loss(r, y, reduction=reduction),
                lambda r, z, y, t: F.cross_entropy(z, t, reduction=reduction),
            )
        ):
            assert_agrees(
                lambda *x, i=i: task_losses(*x, reduction=reduction)[i],
                oracle,
                inputs,
                leaves=(i,),
            )


def test_one_shared_launch():
    r, z, y, t = leaves("triton")
    with fused_loss.backend("triton"), launches() as log:
        task_losses(r, z, y, t)
    assert log.kernels == ["reduce_kernel"]


@on_all
@on_reductions
@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_either_order_and_a_second_time(
    backend: str, order: tuple[int, int], dtype: torch.dtype, reduction: str
):
    """Each backward pass is its own: the other loss can still be differentiated, and this again."""
    r, z, y, t = leaves(backend, dtype)
    with fused_loss.backend(backend):
        losses = task_losses(r, z, y, t, reduction=reduction)
        expected = [
            torch.autograd.grad(loss.sum(), leaf)[0]
            for loss, leaf in zip(task_losses(r, z, y, t, reduction=reduction), (r, z), strict=True)
        ]
    for i in order:
        leaf = (r, z)[i]
        for factor in (1.0, 2.0):
            (gradient,) = torch.autograd.grad(losses[i].sum() * factor, leaf, retain_graph=True)
            assert torch.equal(gradient, factor * expected[i])
            assert gradient.dtype == dtype
    for i in order:
        losses[i].sum().backward()
        with pytest.raises(RuntimeError, match="second time"):
            losses[i].sum().backward()
    assert torch.equal(r.grad, expected[0])
    assert torch.equal(z.grad, expected[1])


@on_all
@on_reductions
def test_their_sum_in_one_pass(backend: str, reduction: str):
    r, z, y, t = leaves(backend)
    with fused_loss.backend(backend):
        first, second = task_losses(r, z, y, t, reduction=reduction)
        whole = combined_loss(r, z, y, t, loss_weights=(3.0, 0.25), reduction=reduction)
    mine = torch.autograd.grad((3 * first + 0.25 * second).sum(), (r, z))
    theirs = torch.autograd.grad(whole.sum(), (r, z))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=4 * torch.finfo(F32).eps, atol=0)


@on_all
@pytest.mark.parametrize("needy", [0, 1])
def test_only_one_head_requires_grad(backend: str, needy: int):
    r, z, y, t = leaves(backend)
    (r, z)[1 - needy].requires_grad_(False)
    with fused_loss.backend(backend):
        losses = task_losses(r, z, y, t)
    assert [loss.requires_grad for loss in losses] == [needy == 0, needy == 1]
    losses[needy].backward()
    assert (r, z)[1 - needy].grad is None
    assert (r, z)[needy].grad.abs().sum() > 0


@on_all
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_grad_there_is_no_graph(backend: str, mode: Any):
    r, z, y, t = leaves(backend)
    with fused_loss.backend(backend), mode():
        assert not any(loss.requires_grad for loss in task_losses(r, z, y, t))


@on_all
def test_each_may_be_changed_in_place(backend: str):
    """They share no version counter: what is done to one leaves the other's graph alone."""
    r, z, y, t = leaves(backend)
    with fused_loss.backend(backend):
        first, second = task_losses(r, z, y, t)
        value = second.detach().clone()
        first.mul_(2)
        assert torch.equal(second, value)
        second.backward()
        first.backward()
    assert torch.equal(r.grad, 2 * torch.autograd.grad(F.mse_loss(r, y), r)[0])


@on_all
def test_the_same_tensor_for_both_heads(backend: str):
    _, z, _, t = leaves(backend)
    y = torch.zeros_like(z)
    with fused_loss.backend(backend):
        first, second = task_losses(z, z, y, t)
        for loss, other in ((first, F.mse_loss(z, y)), (second, F.cross_entropy(z, t))):
            mine, theirs = (torch.autograd.grad(x, z)[0] for x in (loss, other))
            torch.testing.assert_close(mine, theirs)


@on_closed_form
def test_a_second_derivative_is_an_error(backend: str):
    r, z, y, t = leaves(backend)
    with fused_loss.backend(backend):
        losses = task_losses(r, z, y, t)
    for loss, leaf in zip(losses, (r, z), strict=True):
        with pytest.raises(RuntimeError, match=rf'backend\("{backend}"\) is closed-form'):
            torch.autograd.grad(loss, leaf, create_graph=True)


def descended(losses_of: Any, way: str, chunk: int | None, device: torch.device) -> list[Tensor]:
    """A small model's gradients by torchjd; IMTL-G balances the tasks' gradients."""
    from torchjd.aggregation import IMTLG  # `make gpu` collects this file and may lack it
    from torchjd.autojac import backward, jac_to_grad, mtl_backward

    torch.manual_seed(0)
    trunk, heads = nn.Linear(5, 8), (nn.Linear(8, 2), nn.Linear(8, 3))
    model = nn.ModuleList([trunk, *heads]).to(device)
    x, y, t = torch.randn(6, 5), torch.randn(6, 2), torch.randint(0, 3, (6,))
    x, y, t = x.to(device), y.to(device), t.to(device)
    features = trunk(x).tanh()
    losses = list(losses_of(heads[0](features), heads[1](features), y, t))
    shared = list((trunk if way == "mtl_backward" else model).parameters())
    if way == "mtl_backward":
        mtl_backward(losses, features=features, parallel_chunk_size=chunk)
    else:
        backward(losses, inputs=shared, parallel_chunk_size=chunk)
    jac_to_grad(shared, IMTLG())
    return [p.grad for p in model.parameters()]


@on_all
@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("way", ["backward", "mtl_backward"])
def test_jacobian_descent(backend: str, way: str, chunk: int | None):
    """torchjd differentiates both losses at once (vmap) or in turns; its result is eager's."""
    device = device_of(backend)
    with fused_loss.backend(backend):
        mine = descended(task_losses, way, chunk, device)
    theirs = descended(
        lambda r, z, y, t: (F.mse_loss(r, y), F.cross_entropy(z, t)), way, chunk, device
    )
    for one, other in zip(mine, theirs, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other)
