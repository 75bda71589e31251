"""What wraps the loss from outside: `torch.func`, forward mode, fake tensors, `torch.compile`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _public import assert_agrees, batch, composed
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import fused_loss
from fused_loss import CombinedLoss, combined_loss, cross_entropy, kernels, mse_loss

on_composable = pytest.mark.parametrize("backend", ["auto", "reference"])
on_closed_form = pytest.mark.parametrize("backend", ["eager", "triton"])
R, Z, Y, T = batch(features=())
R, Z, Y = R.double(), Z.double(), Y.double()
LOSSES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "combined_loss": (lambda z: combined_loss(R, z, Y, T), lambda z: composed(R, z, Y, T)),
    "cross_entropy": (lambda z: cross_entropy(z, T), lambda z: F.cross_entropy(z, T)),
    "mse_loss": (lambda z: mse_loss(z, 2 * Z), lambda z: F.mse_loss(z, (2 * Z).to(z.dtype))),
}
on_losses = pytest.mark.parametrize(("ours", "theirs"), LOSSES.values(), ids=LOSSES.keys())


def pushed(loss: Callable[[Tensor], Tensor], requires_grad: bool = False) -> Tensor:
    """The directional derivative along (0, 1, 2) by forward mode."""
    with forward_ad.dual_level():
        leaf = Z.clone().requires_grad_(requires_grad)
        dual = forward_ad.make_dual(leaf, torch.arange(3.0).double().expand_as(Z).contiguous())
        return forward_ad.unpack_dual(loss(dual)).tangent


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor]], Any]] = {
    "grad": lambda loss: torch.func.grad(loss)(Z),
    "hessian": lambda loss: torch.func.hessian(loss)(Z),
    "jvp": lambda loss: torch.func.jvp(loss, (Z,), (Z.sin(),))[1],
    "jacrev": lambda loss: torch.func.jacrev(loss)(Z),
    "forward mode": pushed,
    "forward mode of a leaf": lambda loss: pushed(loss, requires_grad=True),
}


@on_composable
@on_losses
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_a_transform_of_the_loss(backend: str, ours: Any, theirs: Any, transform: Any):
    with fused_loss.backend(backend):
        actual = transform(ours)
    expected = transform(theirs)
    assert expected.abs().max() > 0
    torch.testing.assert_close(actual, expected)


@on_composable
def test_vmap_over_samples(backend: str):
    with fused_loss.backend(backend):
        losses = torch.func.vmap(combined_loss)(R, Z, Y, T)
    torch.testing.assert_close(
        losses, (R - Y) ** 2 / 2 + F.cross_entropy(Z, T, reduction="none") / 2
    )


@on_closed_form
@on_losses
@pytest.mark.parametrize("name", ["grad", "jvp", "forward mode", "forward mode of a leaf"])
def test_a_closed_form_refuses_a_transform(backend: str, ours: Any, theirs: Any, name: str):
    if backend == "eager" and ours is not LOSSES["combined_loss"][0]:
        # Plain PyTorch operators either way: PyTorch's own loss is what "eager" gives.
        with fused_loss.backend("eager"):
            actual = TRANSFORMS[name](ours)
        torch.testing.assert_close(actual, TRANSFORMS[name](theirs))
        return
    message = rf'backend\("{backend}"\) does not take '
    with fused_loss.backend(backend), pytest.raises(NotImplementedError, match=message):
        TRANSFORMS[name](ours)


def test_fake_tensors_have_no_values():
    with FakeTensorMode() as mode:
        r, z, y, t = (mode.from_tensor(x) for x in batch())
        for reduction, shape in (("mean", ()), ("none", (4,))):
            loss = combined_loss(r, z, y, t, reduction=reduction)
            assert (tuple(loss.shape), loss.dtype) == (shape, torch.float32)
        assert cross_entropy(z, t).shape == ()


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_no_value_is_read_off_the_cpu(backend: str, soft: bool, reduction: str):
    # A meta tensor has no values: whatever reads one raises, where a GPU would synchronise.
    r, z, y, t = batch(soft=soft, positions=(2,), device="meta")
    r.requires_grad_(), z.requires_grad_()
    weights = torch.ones(3, device="meta")
    alpha = torch.tensor(0.5, device="meta", requires_grad=True)
    with fused_loss.backend(backend):
        loss, _ = combined_loss(
            *(r, z, y, t, alpha),
            class_weight=weights,
            label_smoothing=0.1,
            reduction=reduction,
            return_components=True,
        )
        (loss.sum() * 2).backward()
        cross_entropy(z, t, weights, reduction=reduction).sum().backward()
        mse_loss(r, y, reduction=reduction).sum().backward()
    assert loss.shape == ((4,) if reduction == "none" else ())
    assert [x.grad.shape for x in (r, z, alpha)] == [r.shape, z.shape, alpha.shape]


COMPILED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mean": ({}, {}),
    "none": ({"features": ()}, {"reduction": "none", "ignore_index": 1}),
    "sum of probabilities": ({"soft": True}, {"reduction": "sum", "label_smoothing": 0.1}),
    "positions": ({"positions": (2,)}, {"label_smoothing": 0.1}),
}


@pytest.fixture(autouse=True)
def _forget_graphs():
    yield
    torch._dynamo.reset()


def compiled(function: Callable, **options: Any) -> Callable:
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


@pytest.mark.parametrize("label", COMPILED)
def test_a_compiled_loss_is_the_same_and_takes_any_alpha(label: str):
    form, options = COMPILED[label]
    inputs = batch(**form)
    loss = compiled(lambda *x: combined_loss(*x, **options))
    first = torch.tensor(0.25)
    loss(*(x.requires_grad_(i < 2) for i, x in enumerate([x.clone() for x in inputs])), first)
    loss(*inputs, first.clone().requires_grad_())
    with torch._dynamo.config.patch(error_on_recompile=True):
        for value in (0.25, 0.75):
            assert_agrees(
                loss,
                lambda *x: composed(*x, **options),
                [*inputs, torch.tensor(value)],
                leaves=(0, 1),
            )


def test_compiled_weights_learn_without_a_recompile():
    inputs = batch()
    graph = compiled(lambda *x: combined_loss(*x[:4], loss_weights=x[4], return_components=True))

    def oracle(r: Tensor, z: Tensor, y: Tensor, t: Tensor, w: Tensor) -> Tensor:
        return w[0] * F.mse_loss(r, y) + w[1] * F.cross_entropy(z, t)

    _, components = graph(*inputs, torch.ones(2))
    assert not any(part.requires_grad for part in components)
    weights = torch.tensor([0.5, 2.0])
    for _ in range(2):
        assert_agrees(lambda *x: graph(*x)[0], oracle, [*inputs, weights], leaves=(0, 1, 4))


def test_a_compiled_module_and_a_changing_batch():
    criterion = CombinedLoss(torch.nn.Parameter(torch.tensor(0.25)), class_weight=torch.ones(3))
    loss = compiled(criterion, dynamic=True)
    for n in (4, 6):
        assert_agrees(loss, lambda *x: composed(*x, 0.25), batch(n=n))
    torch.nn.init.constant_(criterion.alpha, 0.75)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_agrees(loss, lambda *x: composed(*x, 0.75), batch(n=9))


@pytest.mark.parametrize("name", ["cross_entropy", "mse_loss"])
def test_compiled_cross_entropy_and_mse_loss(name: str):
    ours, theirs = LOSSES[name]
    assert_agrees(compiled(ours), theirs, [Z.detach()], leaves=(0,))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_an_illegal_class_in_a_compiled_graph_is_nan(reduction: str):
    r, z, y, t = batch(features=())
    t[1], t[2] = 3, -7
    z.requires_grad_()
    loss = compiled(lambda *x: combined_loss(*x, reduction=reduction))(r, z, y, t)
    loss.sum().backward()
    illegal = [False, True, True, False]
    assert loss.isnan().tolist() == (illegal if reduction == "none" else True)
    assert z.grad.isnan().all(1).tolist() == illegal
    assert z.grad.isnan().any(1).tolist() == illegal


@pytest.mark.slow
@pytest.mark.parametrize("label", COMPILED)
def test_inductor_s_code_is_the_same_loss(label: str):
    form, options = COMPILED[label]
    inputs = batch(**form)
    loss = torch.compile(lambda *x: combined_loss(*x, **options), fullgraph=True)
    assert_agrees(loss, lambda *x: composed(*x, **options), inputs)
    if not inputs[3].is_floating_point():
        inputs[3][1] = 3
        assert loss(*inputs).isnan().any()


def test_a_compiled_loss_brings_no_warning(recwarn):
    """Dynamo warns of each `lru_cache` that it passes."""
    compiled = torch.compile(lambda r, z, y, t: combined_loss(r, z, y, t), backend="eager")
    compiled(R, Z, Y, T)
    assert not [str(w.message) for w in recwarn if "lru_cache" in str(w.message)]


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning"
)
@pytest.mark.parametrize("classes", [3, kernels.native.MOST_LOGITS])
@pytest.mark.parametrize("name", ["combined_loss", "mse_loss"])
def test_a_traced_loss_is_no_constant(name: str, classes: int):
    """What the closed form reads back would be one."""
    loss = {
        "combined_loss": lambda z: combined_loss(z[:, 0], z, Y[:2], T[:2] * 0),
        "mse_loss": lambda z: mse_loss(z, z.sin()),
    }[name]
    traced = torch.jit.trace(loss, torch.rand(2, classes).double(), check_trace=False)
    other = torch.rand(2, classes).double()
    torch.testing.assert_close(traced(other), loss(other))


def test_eager_refuses_a_compiled_graph():
    inputs = batch()
    graph = compiled(combined_loss)
    message = r'backend\("eager"\) does not take a graph under torch.compile'
    with fused_loss.backend("eager"), pytest.raises(Exception, match=message):
        graph(*inputs)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@on_losses
def test_a_trace_of_make_fx(backend: str, ours: Any, theirs: Any):
    with fused_loss.backend(backend):
        graph = make_fx(ours)(Z.clone())
    torch.testing.assert_close(graph(2 * Z), ours(2 * Z))


def test_real_tensors_under_a_fake_mode_leave_nothing_behind():
    """A constant that a backend keeps is not the mode's."""
    r, z, y, t = batch(features=())
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert combined_loss(r, z, y, t, 0.671875).shape == ()
    loss = combined_loss(r, z, y, t, 0.671875)
    assert type(loss) is Tensor
    assert loss.isfinite()
