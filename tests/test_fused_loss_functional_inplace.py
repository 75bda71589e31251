"""`inplace_gradient=True`: the gradient takes over the logits' storage, or an error says why."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _public import assert_agrees, batch, composed, device_of
from torch import Tensor

import fused_loss
from fused_loss import CombinedLoss, UncertaintyWeightedLoss, combined_loss, task_losses

pytestmark = pytest.mark.parametrize("backend", ["auto", "eager", "triton"])
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
on_reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
# The gradient is written with the loss ("mean" in float32), or in the backward pass.
WAYS = [("mean", F32), ("none", F32), ("mean", F16)]
on_ways = pytest.mark.parametrize(("reduction", "dtype"), WAYS, ids=str)


@pytest.fixture(autouse=True)
def chosen(backend: str):
    with fused_loss.backend(backend):
        yield


def given(backend: str, dtype: torch.dtype = F32, **form: Any) -> tuple[Tensor, ...]:
    """r, a leaf that logits are made from, y, t."""
    r, z, y, t = batch(**form, device=device_of(backend))
    return r.to(dtype).requires_grad_(), z.to(dtype).requires_grad_(), y, t


def inplace(r: Tensor, z: Tensor, y: Tensor, t: Tensor, *alpha: Any, **options: Any) -> Tensor:
    """The loss of a copy of the logits, which it may write over."""
    return combined_loss(r, z * 1, y, t, *alpha, inplace_gradient=True, **options)


@on_reductions
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
def test_value_and_gradients(backend: str, dtype: torch.dtype, soft: bool, reduction: str):
    r, z, y, t = batch(features=(), soft=soft, device=device_of(backend))
    alpha = torch.tensor(0.3125, device=z.device)
    t = t.to(dtype) if soft else t
    assert_agrees(
        lambda *x: inplace(*x, reduction=reduction),
        lambda *x: composed(*x, reduction=reduction),
        (r.to(dtype), z.to(dtype), y.to(dtype), t, alpha),
        leaves=(0, 1, 4),
    )


@on_ways
def test_the_gradient_lies_where_the_logits_did(backend: str, reduction: str, dtype: torch.dtype):
    r, z, y, t = given(backend, dtype, positions=(2,))
    logits = z * 1
    version = logits._version
    loss = combined_loss(r, logits, y, t, reduction=reduction, inplace_gradient=True)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.data_ptr() == logits.data_ptr()
    assert torch.equal(gradient, logits)
    assert logits._version > version


@pytest.mark.parametrize("factor", [65536.0, 1 / 3, 0.0])
@on_ways
def test_a_factor_above_the_loss(backend: str, reduction: str, dtype: torch.dtype, factor: float):
    """A GradScaler's, or one of gradient accumulation."""
    r, z, y, t = given(backend, dtype, features=())
    inputs = [r.detach(), z.detach(), y.to(dtype), t]
    assert_agrees(
        lambda *x: inplace(*x, reduction=reduction) * factor,
        lambda *x: composed(*x, reduction=reduction) * factor,
        inputs,
    )


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "view(-1, C)": lambda base: base.view(-1, 3),
    "transposed": lambda base: base.transpose(1, 2),
    "a slice": lambda base: base.view(-1, 3)[::2],
    "a slice of classes": lambda base: base.view(-1, 3)[:, :2],
    "one sample": lambda base: base[1, 2],
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_views_of_a_base(backend: str, reduction: str, name: str):
    """(2, 4, 3), as a language model gives it; what is not of the view is not written."""
    device = device_of(backend)
    leaf = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).to(device)
    leaf.requires_grad_()
    shape = VIEWS[name](leaf).shape
    positions = () if len(shape) == 1 else (shape[0], *shape[2:])
    t = torch.zeros(positions, dtype=torch.int64, device=device)
    r = torch.zeros(positions[:1] or (1,), device=device)

    def loss(**options: Any) -> Tensor:
        base = leaf * 1
        rest = base.detach().clone()
        value = combined_loss(r, VIEWS[name](base), r + 1, t, reduction=reduction, **options)
        (value.sum() * 3).backward(inputs=[leaf])
        written = torch.zeros_like(base, dtype=torch.bool)
        VIEWS[name](written).fill_(True)
        assert torch.equal(base[~written], rest[~written])
        gradient, leaf.grad = leaf.grad, None
        return gradient

    expected, gradient = loss(), loss(inplace_gradient=True)
    assert torch.equal(gradient == 0, expected == 0)
    torch.testing.assert_close(gradient, expected, rtol=8 * torch.finfo(F32).eps, atol=0)


@on_ways
def test_nothing_is_written_where_no_gradient_is_wanted(
    backend: str, reduction: str, dtype: torch.dtype
):
    r, z, y, t = given(backend, dtype)
    options = {"reduction": reduction, "inplace_gradient": True}
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            logits = z.detach().clone()
            combined_loss(r, logits, y, t, **options)
            combined_loss(r, z, y, t, **options)  # a leaf
            task_losses(r, logits, y, t, **options)
        assert torch.equal(logits, z)
    logits, before = z.detach().clone(), z.detach().clone()
    combined_loss(r, logits, y, t, **options).sum().backward()  # for the other head alone
    assert r.grad.abs().sum() > 0
    assert torch.equal(logits, before)
    assert logits._version == 0


@on_ways
def test_the_other_arguments_are_untouched(backend: str, reduction: str, dtype: torch.dtype):
    r, z, y, t = given(backend, dtype, soft=True)
    mask = torch.ones(3, dtype=torch.bool, device=z.device)
    held = [r, z, y, t, mask]
    before = [(x._version, x.detach().clone()) for x in held]
    inplace(r, z, y, t, class_mask=mask, reduction=reduction).sum().backward()
    for x, (version, copy) in zip(held, before, strict=True):
        assert x._version == version
        assert torch.equal(x, copy)


@on_ways
def test_a_later_use_is_noticed(backend: str, reduction: str, dtype: torch.dtype):
    """An operator that kept the logits for its own backward pass finds them changed."""
    r, z, y, t = given(backend, dtype)
    logits = z * 1
    kept = logits.square().sum()
    loss = combined_loss(r, logits, y, t, reduction=reduction, inplace_gradient=True).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


def test_so_is_a_layer_that_keeps_its_output(backend: str):
    r, z, y, t = given(backend)
    loss = combined_loss(r, z.tanh(), y, t, inplace_gradient=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@on_ways
def test_a_later_use_that_needs_no_values_is_right(
    backend: str, reduction: str, dtype: torch.dtype
):
    """Both gradients of the logits are added up."""
    r, z, y, t = given(backend, dtype)
    logits = z * 1
    extra = logits.sum() * 0.25
    loss = combined_loss(r, logits, y, t, reduction=reduction, inplace_gradient=True)
    (gradient,) = torch.autograd.grad(loss.sum().to(F32) + extra, z)
    plain = combined_loss(r, z, y, t, reduction=reduction).sum() + (z * 1).sum() * 0.25
    (expected,) = torch.autograd.grad(plain, z)
    torch.testing.assert_close(gradient, expected)


@on_ways
def test_hooks_and_retained_gradients(backend: str, reduction: str, dtype: torch.dtype):
    r, z, y, t = given(backend, dtype)
    seen = []
    logits = z * 1
    logits.retain_grad()
    logits.register_hook(lambda gradient: seen.append(gradient.clone()))
    loss = combined_loss(r, logits, y, t, reduction=reduction, inplace_gradient=True).sum()
    loss.backward()
    (expected,) = torch.autograd.grad(inplace(r, z, y, t, reduction=reduction).sum(), z)
    for found in (*seen, logits.grad, z.grad):
        assert torch.equal(found, expected)


@on_ways
def test_task_losses(backend: str, reduction: str, dtype: torch.dtype):
    """The regression head's gradient does not wait for the logits, nor do they for it."""
    r, z, y, t = given(backend, dtype)
    plain = task_losses(r, z, y, t, reduction=reduction)
    expected = [torch.autograd.grad(x.sum(), w)[0] for x, w in zip(plain, (r, z), strict=True)]
    logits = z * 1
    losses = task_losses(r, logits, y, t, reduction=reduction, inplace_gradient=True)
    losses[1].sum().backward(retain_graph=True)
    losses[0].sum().backward(retain_graph=True)
    losses[0].sum().backward()  # which is not in place
    torch.testing.assert_close(z.grad, expected[1])
    torch.testing.assert_close(r.grad, 2 * expected[0])
    with pytest.raises(RuntimeError, match="a second backward pass: inplace_gradient=True"):
        losses[1].sum().backward()


@on_ways
def test_a_second_backward_is_an_error(backend: str, reduction: str, dtype: torch.dtype):
    r, z, y, t = given(backend, dtype)
    loss = inplace(r, z, y, t, reduction=reduction).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"a second backward pass.*leave it at False, or comp"):
        loss.backward()


@on_ways
def test_create_graph_is_an_error(backend: str, reduction: str, dtype: torch.dtype):
    r, z, y, t = given(backend, dtype)
    loss = inplace(r, z, y, t, reduction=reduction).sum()
    with pytest.raises(RuntimeError, match=r'create_graph.*fused_loss.backend\("reference"\)'):
        torch.autograd.grad(loss, z, create_graph=True)


MEND = r"leave inplace_gradient at False, or pass classification_output.clone\(\)"


@pytest.mark.parametrize(
    "loss",
    [
        functools.partial(combined_loss, inplace_gradient=True),
        functools.partial(task_losses, inplace_gradient=True),
        CombinedLoss(inplace_gradient=True),
        UncertaintyWeightedLoss(inplace_gradient=True),
    ],
    ids=["combined_loss", "task_losses", "CombinedLoss", "UncertaintyWeightedLoss"],
)
def test_a_leaf_is_refused(backend: str, loss: Callable):
    r, z, y, t = given(backend)
    before = z.detach().clone()
    message = f"inplace_gradient=True writes over classification_output, which is a leaf.*{MEND}"
    if isinstance(loss, torch.nn.Module):
        loss = loss.to(z.device)
    with pytest.raises(ValueError, match=message):
        loss(r, z, y, t)
    assert torch.equal(z, before)


@pytest.mark.parametrize("view", [lambda z: z.view(3, 4), lambda z: z[:, :2], torch.Tensor.t])
def test_a_view_of_a_leaf_is_refused(backend: str, view: Callable[[Tensor], Tensor]):
    """Trained logits, say, that are flattened for the loss."""
    leaf = torch.nn.Parameter(torch.randn(4, 3, device=device_of(backend)))
    before, logits = leaf.detach().clone(), view(leaf)
    r, t = torch.zeros(len(logits), device=leaf.device), torch.zeros(len(logits), dtype=torch.long)
    with pytest.raises(ValueError, match=f"which is a view of a leaf.*{MEND}"):
        combined_loss(r, logits, r, t.to(leaf.device), inplace_gradient=True)
    assert torch.equal(leaf, before)


def test_a_lazy_negative_is_refused(backend: str):
    r, z, y, t = given(backend)
    logits = torch.complex(z, z).conj().imag
    with pytest.raises(ValueError, match=f"the negative of what is in memory.*{MEND}"):
        combined_loss(r, logits, y, t, inplace_gradient=True)


@pytest.mark.parametrize(
    "overlap",
    [lambda z: z[:1].expand(4, 3), lambda z: z.view(-1).as_strided((4, 3), (2, 1))],
    ids=["expanded", "as_strided"],
)
def test_overlapping_logits_are_refused(backend: str, overlap: Callable[[Tensor], Tensor]):
    r, z, y, t = given(backend)
    with pytest.raises(ValueError, match=rf"whose elements overlap in memory \(strides .*{MEND}"):
        combined_loss(r, overlap(z * 1), y, t, inplace_gradient=True)


@pytest.mark.parametrize(
    "name", ["regression_output", "regression_targets", "classification_targets",
             "regression_weight", "class_weight", "alpha"],
)  # fmt: skip
def test_aliased_logits_are_refused(backend: str, name: str):
    """A view of the same memory, even where it does not overlap the logits."""
    r, z, y, t = given(backend)
    logits = torch.cat((z, z), 1)
    arguments: dict[str, Any] = {
        "regression_output": r[:, :1],
        "classification_output": logits[:, :3],
        "regression_targets": y[:, :1],
        "classification_targets": t,
    }
    arguments[name] = {
        "regression_output": logits[:, 3:4],
        "regression_targets": logits[:, 3:4].detach(),
        "classification_targets": logits[:, 3:].detach(),
        "regression_weight": logits[:, 3:4].detach(),
        "class_weight": logits[0, 3:].detach(),
        "alpha": logits[0, 3].detach(),
    }[name]
    named = "loss_weights" if name == "alpha" else name
    with pytest.raises(ValueError, match=f"{named} lies in the same memory; {MEND}"):
        combined_loss(**arguments, inplace_gradient=True)


def test_reference_and_what_goes_there_refuse(backend: str):
    r, z, y, t = given(backend)
    message = r'inplace_gradient=True does not go with backend\("reference"\): leave it out'
    with (
        fused_loss.backend("reference"),
        pytest.raises(NotImplementedError, match=message),
    ):
        inplace(r, z, y, t)
    y.requires_grad_()
    message = "targets that require grad" + (".*: leave it out" if backend == "auto" else "")
    with pytest.raises(NotImplementedError, match=message):
        inplace(r, z, y, t)


def test_a_compiled_graph_refuses(backend: str):
    r, z, y, t = given(backend)
    graph = torch.compile(inplace, backend="aot_eager", fullgraph=True)
    with pytest.raises(RuntimeError, match=r"=True does not go with|under torch\.c"):
        graph(r, z, y, t)
    torch._dynamo.reset()


def test_a_transform_refuses(backend: str):
    r, z, y, t = (x.detach() for x in given(backend))
    with pytest.raises(NotImplementedError, match=r"a torch\.func transform"):
        torch.func.grad(lambda z: inplace(r, z, y, t))(z)
