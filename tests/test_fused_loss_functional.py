"""`combined_loss` as a user meets it; the options are swept in test_kernels_*.py."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from _asserts import launches
from _public import ALL, assert_agrees, assert_near, batch, composed, device_of, errors
from torch import Tensor

import fused_loss
from fused_loss import Components, combined_loss

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

pytestmark = pytest.mark.parametrize("backend", ALL)


@pytest.fixture(autouse=True)
def chosen(backend: str):
    """Each test runs on `backend`; on "triton" it must launch something."""
    with fused_loss.backend(backend):
        if backend == "triton":
            with launches() as log:
                yield
            assert log.kernels
        else:
            yield


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ({}, {}),
        ({"features": ()}, {}),
        ({"positions": (2,)}, {"label_smoothing": 0.1}),
        ({"soft": True}, {}),
        ({"soft": True, "positions": (2,)}, {"reduction": "sum"}),
        ({}, {"reduction": "sum", "ignore_index": 1}),
        ({"features": ()}, {"reduction": "none", "label_smoothing": 0.1}),
    ],
    ids=str,
)
def test_it_is_the_composition_of_pytorch_s_two_losses(backend: str, form: dict, options: dict):
    inputs = batch(**form, device=device_of(backend))
    assert_agrees(
        lambda *x: combined_loss(*x, **options), lambda *x: composed(*x, **options), inputs
    )


def test_a_value_worked_out_by_hand(backend: str):
    # mse = (1² + 3²)/2 = 5; ce = (ln 2 - ln(3/4))/2, where softmax(ln 3, 0) = (3/4, 1/4)
    device = device_of(backend)
    r = torch.tensor([1.0, 2.0], device=device, requires_grad=True)
    z = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], device=device, requires_grad=True)
    y, t = torch.tensor([0.0, -1.0], device=device), torch.tensor([1, 0], device=device)
    loss, parts = combined_loss(r, z, y, t, 0.25, return_components=True)
    loss.backward()
    ce = (math.log(2) - math.log(3 / 4)) / 2
    for actual, expected in (
        (loss, 0.25 * 5 + 0.75 * ce),
        (parts.regression, 5.0),
        (parts.classification, ce),
        (r.grad, [0.25, 0.75]),  # 0.25 · 2(r - y)/2
        (z.grad, [[0.1875, -0.1875], [-0.09375, 0.09375]]),  # 0.75 · (p - q)/2
    ):
        bound = max(errors(composed, (r, z, y, t, 0.25), (0, 1)))
        assert_near(actual.detach().cpu(), torch.tensor(expected, dtype=F64), bound)


@pytest.mark.parametrize(
    ("r_dtype", "z_dtype", "expected"),
    [(BF16, BF16, F32), (F16, F16, F32), (F32, BF16, F32), (BF16, F64, F64), (F64, F16, F64)],
    ids=str,
)
def test_the_loss_is_at_least_float32(
    backend: str, r_dtype: torch.dtype, z_dtype: torch.dtype, expected: torch.dtype
):
    device = device_of(backend)
    r, z, y, t = batch(device=device)
    r, y, z = r.to(r_dtype).requires_grad_(), y.to(r_dtype), z.to(z_dtype).requires_grad_()
    # 0.5 is exact in every dtype: an alpha tensor neither promotes nor changes the value.
    for dtype in (None, F64, F16):
        alpha = 0.5 if dtype is None else torch.tensor(0.5, dtype=dtype, device=device)
        loss, components = combined_loss(r, z, y, t, alpha, return_components=True)
        assert {loss.dtype, *(part.dtype for part in components)} == {expected}
        gradients = torch.autograd.grad(loss, (r, z))
        assert [x.dtype for x in gradients] == [r_dtype, z_dtype]
        assert_agrees(lambda *x, alpha=alpha: combined_loss(*x, alpha), composed, (r, z, y, t))


def test_integer_regression_targets_are_numbers(backend: str):
    r, z, y, t = batch(device=device_of(backend))
    y = (4 * y).round()
    assert torch.equal(combined_loss(r, z, y.long(), t), combined_loss(r, z, y, t))


@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64],
    ids=str,
)
def test_any_integer_dtype_holds_classes(backend: str, dtype: torch.dtype):
    r, z, y, t = batch(device=device_of(backend))
    assert torch.equal(combined_loss(r, z, y, t.to(dtype)), combined_loss(r, z, y, t))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("grad", [False, True])
def test_components_are_detached_and_unweighted(backend: str, grad: bool, reduction: str):
    r, z, y, t = batch(positions=(2,), device=device_of(backend))
    r.requires_grad_(grad), z.requires_grad_(grad)
    alpha = torch.tensor(0.25, device=r.device, requires_grad=grad)
    result = combined_loss(r, z, y, t, alpha, reduction=reduction, return_components=True)
    loss, components = result
    plain = combined_loss(r, z, y, t, alpha, reduction=reduction)
    assert type(result) is tuple
    assert type(components) is Components
    assert torch.equal(loss, plain)
    assert loss.requires_grad is grad
    for i, (name, part) in enumerate(components._asdict().items()):
        assert name == ("regression", "classification")[i]
        assert not part.requires_grad
        assert part.device == z.device

        def oracle(*x: Tensor, i: int = i) -> Tensor:
            return _parts(*x, reduction)[i]

        assert_agrees(lambda *_, part=part: part, oracle, [r.detach(), z.detach(), y, t], leaves=())


def _parts(r: Tensor, z: Tensor, y: Tensor, t: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """Both losses; (N,) under "none", the mean over a sample."""
    mse, ce = F.mse_loss(r, y, reduction=reduction), F.cross_entropy(z, t, reduction=reduction)
    return (mse.mean(1), ce.mean(1)) if reduction == "none" else (mse, ce)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
def test_alpha_is_learnt(backend: str, dtype: torch.dtype, reduction: str):
    inputs = batch(features=(), device=device_of(backend))
    # 0.3125 is exact in every dtype.
    alpha = torch.tensor(0.3125, dtype=dtype, device=inputs[0].device)
    assert_agrees(
        lambda *x: combined_loss(*x, reduction=reduction),
        lambda *x: composed(*x, reduction=reduction),
        [*inputs, alpha],
        leaves=(0, 1, 4),
    )


def test_alpha_alone_may_require_grad(backend: str):
    inputs = batch(device=device_of(backend))
    alpha = torch.nn.Parameter(torch.tensor(0.25, device=inputs[0].device))
    assert_agrees(combined_loss, composed, [*inputs, alpha], leaves=(4,))
    loss = combined_loss(*inputs, alpha)
    with torch.no_grad():
        assert torch.equal(loss.detach(), combined_loss(*inputs, 0.25))


def test_an_int_is_an_alpha(backend: str):
    r, z, y, t = batch(device=device_of(backend))
    loss, components = combined_loss(r, z, y, t, 1, return_components=True)
    assert torch.equal(loss, components.regression)
    loss, components = combined_loss(r, z, y, t, 0, return_components=True)
    assert torch.equal(loss, components.classification)


def test_loss_weights_need_not_sum_to_one(backend: str):
    inputs = batch(device=device_of(backend))
    weights = torch.tensor([0.75, 2.0], device=inputs[0].device)

    def oracle(r: Tensor, z: Tensor, y: Tensor, t: Tensor, w: Tensor) -> Tensor:
        return w[0] * F.mse_loss(r, y) + w[1] * F.cross_entropy(z, t)

    def fused(*x: Tensor) -> Tensor:
        return combined_loss(*x[:4], loss_weights=x[4])

    assert_agrees(fused, oracle, [*inputs, weights], leaves=(0, 1, 4))
    for pair in ((0.75, 2.0), [0.75, 2], tuple(weights.tolist())):
        assert torch.equal(combined_loss(*inputs, loss_weights=pair), fused(*inputs, weights))


def test_weights_may_be_a_view(backend: str):
    inputs = batch(device=device_of(backend))
    row = torch.tensor([0.75, 9.0, 2.0], device=inputs[0].device)[::2]
    assert torch.equal(
        combined_loss(*inputs, loss_weights=row), combined_loss(*inputs, loss_weights=(0.75, 2.0))
    )
    expanded = torch.tensor([0.75], device=row.device).expand(2)
    assert torch.equal(
        combined_loss(*inputs, loss_weights=expanded),
        combined_loss(*inputs, loss_weights=(0.75, 0.75)),
    )


def test_one_tensor_may_be_both_heads(backend: str):
    _, z, _, t = batch(device=device_of(backend))
    y = torch.zeros_like(z)
    assert_agrees(
        lambda x: combined_loss(x, x, y.to(x.dtype), t),
        lambda x: composed(x, x, y.to(x.dtype), t),
        [z],
        leaves=(0,),
    )


def test_nothing_is_written_into_the_caller_s_tensors(backend: str):
    inputs = batch(positions=(2,), device=device_of(backend))
    t = inputs[3]
    t[0, 0] = -100
    inputs += [torch.tensor(0.5, device=t.device), torch.rand(3, device=t.device)]
    before = copy.deepcopy(inputs)
    versions = [x._version for x in inputs]
    leaves = [x.requires_grad_() for x in (*inputs[:2], inputs[4])]
    for reduction in ("mean", "sum", "none"):
        loss = combined_loss(*inputs[:5], class_weight=inputs[5], reduction=reduction)
        torch.autograd.grad(loss.sum() * 65536, leaves)
    assert [x._version for x in inputs] == versions
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_grad_there_is_no_graph(backend: str, mode: type):
    r, z, y, t = batch(device=device_of(backend))
    r.requires_grad_(), z.requires_grad_()
    with mode():
        loss = combined_loss(r, z, y, t)
    assert loss.grad_fn is None
    assert not loss.requires_grad
    assert torch.equal(loss, combined_loss(r, z, y, t).detach())


def test_autocast_changes_nothing(backend: str):
    device = device_of(backend)
    r, z, y, t = batch(device=device)
    leaves = [x.bfloat16().requires_grad_() for x in (r, z)]
    outside = combined_loss(*leaves, y, t)
    with torch.autocast(device.type, torch.bfloat16):
        loss = combined_loss(*leaves, y, t)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, outside)
    for one, other in zip(*(torch.autograd.grad(x, leaves) for x in (loss, outside)), strict=True):
        assert torch.equal(one, other)
