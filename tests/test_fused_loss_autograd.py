import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _asserts import launches
from _public import ALL, assert_agrees, batch, composed, device_of
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fused_loss
from fused_loss import combined_loss, cross_entropy, mse_loss

F32 = torch.float32
on_all = pytest.mark.parametrize("backend", ALL)
on_closed_form = pytest.mark.parametrize("backend", ["eager", "triton"])
on_reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def leaves(backend: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """r, z, y, t where `backend` runs; r and z require grad."""
    r, z, y, t = batch(device=device_of(backend))
    return r.to(dtype).requires_grad_(), z.to(dtype).requires_grad_(), y.to(dtype), t


@on_all
@on_reductions
@pytest.mark.parametrize("factor", [65536.0, 1 / 3, -1.0, 0.0])
def test_any_factor_above_the_loss(backend: str, factor: float, reduction: str):
    inputs = batch(features=(), device=device_of(backend))
    with fused_loss.backend(backend):
        assert_agrees(
            lambda *x: combined_loss(*x, reduction=reduction) * factor,
            lambda *x: composed(*x, reduction=reduction) * factor,
            inputs,
        )


@on_all
@pytest.mark.parametrize("kind", ["a value a sample", "expanded", "strided"])
def test_any_form_of_grad_output(backend: str, kind: str):
    inputs = batch(features=(), device=device_of(backend))
    samples = torch.tensor([0.5, 9.0, 0.0, 9.0, -2.0, 9.0, 65536.0, 9.0], device=inputs[0].device)
    upstream = {
        "a value a sample": samples[:4],
        "expanded": samples[:1].expand(4),
        "strided": samples[::2],
    }[kind]

    def weighted(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *x: _Upstream.apply(loss(*x, reduction="none"), upstream)

    with fused_loss.backend(backend):
        assert_agrees(weighted(combined_loss), weighted(composed), inputs)


class _Upstream(torch.autograd.Function):
    """The sum of losses weighted by `upstream`, which is handed back as it is."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor, upstream: Tensor) -> Tensor:
        ctx.upstream = upstream.to(losses.dtype)  # itself, strides and all, if it is float32
        return (losses * upstream).sum()

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.upstream, None


@on_all
@on_reductions
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_retained_graph_gives_the_same_again(backend: str, factor: float, reduction: str):
    r, z, y, t = leaves(backend)
    with fused_loss.backend(backend):
        loss = combined_loss(r, z, y, t, reduction=reduction).sum() * factor
    first = torch.autograd.grad(loss, (r, z), retain_graph=True)
    kept = [g.clone() for g in first]
    for gradient in first:
        gradient.mul_(7)  # the caller's own now
    loss.backward(retain_graph=True)
    loss.backward()
    for leaf, gradient in zip((r, z), kept, strict=True):
        assert torch.equal(leaf.grad, gradient + gradient)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@on_all
@pytest.mark.parametrize("needy", ["regression", "classification"])
def test_one_head_alone_may_require_grad(backend: str, needy: str):
    r, z, y, t = leaves(backend)
    leaf, other = (r, z) if needy == "regression" else (z, r)
    other.requires_grad_(False)
    with fused_loss.backend(backend):
        combined_loss(r, z, y, t).backward()
        assert other.grad is None
        i = 0 if needy == "regression" else 1
        inputs = [r.detach(), z.detach(), y, t]
        assert_agrees(combined_loss, composed, inputs, leaves=(i,))
    assert leaf.grad.shape == leaf.shape


@on_closed_form
@on_reductions
def test_a_second_derivative_is_an_error_that_names_the_mend(backend: str, reduction: str):
    r, z, y, t = leaves(backend)
    with fused_loss.backend(backend):
        losses = [combined_loss(r, z, y, t, reduction=reduction), mse_loss(r, y)]
        losses.append(cross_entropy(z, t, reduction=reduction))
    for loss in losses:
        with pytest.raises(RuntimeError, match=rf'backend\("{backend}"\) is closed-form') as caught:
            torch.autograd.grad(loss.sum(), (r, z), create_graph=True, allow_unused=True)
        assert 'fused_loss.backend("reference")' in str(caught.value)


def rows(loss: Tensor, inputs: tuple[Tensor, ...], upstream: Tensor) -> tuple[Tensor, ...]:
    """A gradient for each row of `upstream`, by the vmap of torch.func."""

    def one(row: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, inputs, row, retain_graph=True)

    return torch.vmap(one)(upstream)


@on_all
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_batch_of_gradients(backend: str, reduction: str):
    """Each is what it is alone; the graph is retained for the next batch."""
    r, z, y, t = leaves(backend)
    upstream = torch.tensor([1.0, -3.0, 0.0], device=z.device)
    with fused_loss.backend(backend):
        alpha = torch.tensor(0.25, device=z.device, requires_grad=True)
        loss = combined_loss(r, z, y, t, alpha, reduction=reduction)
    inputs = r, z, alpha
    alone = [torch.autograd.grad(loss, inputs, row, retain_graph=True) for row in upstream]
    for _ in range(2):
        legacy = torch.autograd.grad(
            loss, inputs, upstream, is_grads_batched=True, retain_graph=True
        )
        for batched in (legacy, rows(loss, inputs, upstream)):
            for i, gradient in enumerate(batched):
                expected = torch.stack([row[i] for row in alone])
                torch.testing.assert_close(gradient, expected, rtol=torch.finfo(F32).eps, atol=0)


@on_closed_form
@pytest.mark.parametrize("reason", ["none", "float16"])
def test_a_batch_of_gradients_that_wait_is_an_error_that_names_the_mend(backend: str, reason: str):
    r, z, y, t = leaves(backend, torch.float16 if reason == "float16" else torch.float32)
    with fused_loss.backend(backend):
        loss = combined_loss(r, z, y, t, reduction="none" if reason == "none" else "mean")
    upstream = torch.eye(4, device=z.device) if reason == "none" else torch.ones(3, device=z.device)
    message = r'batched .* fused_loss.backend\("reference"\), or its gradients one at a time'
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(loss, z, upstream, is_grads_batched=True, retain_graph=True)
    with pytest.raises(RuntimeError, match=message):
        rows(loss, (z,), upstream)


@on_closed_form
def test_a_batch_of_second_derivatives_is_refused(backend: str):
    r, z, y, t = leaves(backend)
    with fused_loss.backend(backend):
        loss = combined_loss(r, z, y, t)
    upstream = torch.ones(2, device=z.device)
    with pytest.raises(RuntimeError, match=r"differentiated \(create_graph=True\)"):
        torch.autograd.grad(loss, z, upstream, is_grads_batched=True, create_graph=True)


@on_reductions
def test_reference_has_second_derivatives(reduction: str):
    r, z, y, t = leaves("reference", torch.float64)
    alpha = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)

    def second(loss: Callable[..., Tensor]) -> list[Tensor]:
        value = loss(r, z, y, t, alpha, reduction=reduction)
        first = torch.autograd.grad(value.sum(), (r, z, alpha), create_graph=True)
        return list(torch.autograd.grad(sum(g.pow(2).sum() for g in first), (r, z, alpha)))

    def oracle(r: Tensor, z: Tensor, y: Tensor, t: Tensor, alpha: Tensor, **options: Any) -> Tensor:
        mse = F.mse_loss(r, y, **options)
        mse = mse.mean(1) if options["reduction"] == "none" else mse
        return alpha * mse + (1 - alpha) * F.cross_entropy(z, t, **options)

    with fused_loss.backend("reference"):
        for one, other in zip(second(combined_loss), second(oracle), strict=True):
            assert other.abs().max() > 0
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_targets_that_require_grad_go_to_the_reference(soft: bool):
    inputs = batch(features=(), soft=soft)
    assert_agrees(combined_loss, composed, inputs, leaves=(0, 1, 2, 3) if soft else (0, 1, 2))


@on_closed_form
@pytest.mark.parametrize("name", ["regression", "classification"])
def test_targets_that_require_grad_are_refused_by_name(backend: str, name: str):
    device = device_of(backend)
    r, z, y, t = batch(soft=True, device=device)
    (y if name == "regression" else t).requires_grad_()
    with fused_loss.backend(backend):
        with pytest.raises(NotImplementedError, match=rf'"{backend}"\) does not take targets that'):
            combined_loss(r, z, y, t)
        with torch.no_grad():
            loss = combined_loss(r, z, y, t)
        assert torch.equal(loss, combined_loss(r, z, y.detach(), t.detach()))


@on_reductions
@pytest.mark.parametrize("inner", ["eager", "reference"])
def test_backward_runs_on_the_backend_of_its_forward(inner: str, reduction: str):
    r, z, y, t = leaves("triton")
    with fused_loss.backend("triton"):
        loss = combined_loss(r, z, y, t, reduction=reduction)
    with fused_loss.backend(inner), launches() as log:
        (3 * loss.sum()).backward()
    assert log.kernels
    with fused_loss.backend("eager"):
        loss = combined_loss(*leaves("eager"), reduction=reduction)
    with fused_loss.backend("triton"), launches() as log:
        (3 * loss.sum()).backward()
    assert not log.kernels


def test_backward_may_run_in_another_thread():
    r, z, y, t = leaves("triton")
    with fused_loss.backend("triton"):
        loss = combined_loss(r, z, y, t, reduction="none").sum()
        expected = torch.autograd.grad(loss, (r, z), retain_graph=True)
    worker = threading.Thread(target=loss.backward)
    with launches() as log:
        worker.start()
        worker.join()
    assert log.kernels
    assert torch.equal(r.grad, expected[0])
    assert torch.equal(z.grad, expected[1])


@on_closed_form
def test_the_graph_keeps_the_gradients_and_nothing_else(backend: str):
    r, z, y, t = leaves(backend)
    with fused_loss.backend(backend):
        loss = combined_loss(r, z, y, t)
    kept = {x.data_ptr() for x in loss.grad_fn.saved_tensors if x is not None}
    assert len(kept) == 2
    assert not kept & {x.data_ptr() for x in (r, z, y, t)}
    loss.backward()
    # A leaf takes the buffer over: no copy of the logits' size.
    assert {r.grad.data_ptr(), z.grad.data_ptr()} == kept


@on_closed_form
def test_a_gradient_that_waits_keeps_the_inputs_uncopied(backend: str):
    r, z, y, t = leaves(backend)
    with fused_loss.backend(backend):
        loss = combined_loss(r, z, y, t, reduction="none")
    kept = {x.data_ptr() for x in loss.grad_fn.saved_tensors if x is not None}
    assert kept == {x.data_ptr() for x in (r, z, y, t)}


@on_closed_form
def test_logits_overwritten_before_backward(backend: str):
    for reduction, safe in (("mean", True), ("none", False)):
        r, z, y, t = leaves(backend)
        logits = z * 1
        with fused_loss.backend(backend):
            loss = combined_loss(r, logits, y, t, reduction=reduction).sum()
            again = combined_loss(r, z, y, t, reduction=reduction).sum()
        expected = torch.autograd.grad(again, z)[0]
        with torch.no_grad():
            logits.zero_()
        if safe:  # the gradient was computed with the loss
            assert torch.equal(torch.autograd.grad(loss, z)[0], expected)
        else:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


@on_all
def test_a_checkpointed_loss(backend: str):
    r, z, y, t = leaves(backend)
    with fused_loss.backend(backend):
        expected = torch.autograd.grad(combined_loss(r, z, y, t), (r, z))
        checkpoint(combined_loss, r, z, y, t, use_reentrant=False).backward()
    assert torch.equal(r.grad, expected[0])
    assert torch.equal(z.grad, expected[1])


@on_all
@on_reductions
def test_results_repeat_bit_for_bit(backend: str, reduction: str):
    def once() -> list[Tensor]:
        r, z, y, t = leaves(backend)
        with fused_loss.backend(backend):
            loss = combined_loss(r, z, y, t, reduction=reduction)
        return [loss, *torch.autograd.grad(loss.sum(), (r, z))]

    assert all(torch.equal(x, y) for x, y in zip(once(), once(), strict=True))
