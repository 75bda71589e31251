"""`cross_entropy` and `mse_loss` against the functions of `torch.nn.functional` they stand for."""

import inspect
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from _asserts import launches
from _public import assert_agrees, batch, device_of
from torch import Tensor

import fused_loss
from fused_loss import cross_entropy, mse_loss

PAIRS = [(cross_entropy, F.cross_entropy), (mse_loss, F.mse_loss)]
REDUCTIONS = ("mean", "sum", "none")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
on_fast = pytest.mark.parametrize("backend", ["auto", "eager", "triton"])


def logits_and_targets(form: str, soft: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    positions = {"NCd": (2,), "NCdd": (2, 3)}.get(form, ())
    _, z, _, t = batch(positions=positions, soft=soft, device=device)
    return (z[0], t[0]) if form == "C" else (z, t)


def launched_on(backend: str, function: Callable[[], None]) -> None:
    """Call it on `backend`; on "triton" something must be launched."""
    with fused_loss.backend(backend):
        if backend != "triton":
            function()
            return
        with launches() as log:
            function()
        assert log.kernels


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_signatures_are_pytorch_s(ours: Callable, theirs: Callable):
    def described(function: Callable) -> list:
        parameters = inspect.signature(function).parameters.values()
        return [(p.name, p.kind, p.default) for p in parameters]

    assert ours.__name__ == theirs.__name__
    assert described(ours) == described(theirs)


@on_fast
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("form", ["C", "NC", "NCd", "NCdd"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cross_entropy(backend: str, reduction: str, form: str, soft: bool):
    z, t = logits_and_targets(form, soft, device_of(backend))
    weight = torch.tensor([0.5, 2.0, 1.25], device=z.device)
    for given, smoothing in ((None, 0.0), (weight, 0.2)):
        options = {"reduction": reduction, "label_smoothing": smoothing}
        if not soft:
            options["ignore_index"] = 2

        def check(given: Tensor | None = given, options: dict = options) -> None:
            assert_agrees(
                lambda *x: cross_entropy(*x, **options),
                lambda *x: F.cross_entropy(*x, **options),
                (z, t, given),
                leaves=(0,),
            )

        launched_on(backend, check)


@on_fast
@pytest.mark.parametrize("shape", [(), (4,), (4, 2), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_mse_loss(backend: str, reduction: str, shape: tuple):
    generator = torch.Generator().manual_seed(1)
    r, y = torch.randn(2, *shape, generator=generator).to(device_of(backend))

    def check() -> None:
        assert_agrees(
            lambda *x: mse_loss(*x, reduction=reduction),
            lambda *x: F.mse_loss(*x, reduction=reduction),
            (r, y),
            leaves=(0,),
        )

    launched_on(backend, check)


@on_fast
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_dtype_is_the_input_s(backend: str, reduction: str, dtype: torch.dtype):
    z, t = logits_and_targets("NC", False, device_of(backend))
    y = z.flip(0).to(dtype)
    z = z.to(dtype).requires_grad_()

    def check() -> None:
        for ours, theirs, target in (
            (cross_entropy, F.cross_entropy, t),
            (cross_entropy, F.cross_entropy, y.softmax(1)),
            (mse_loss, F.mse_loss, y),
        ):
            loss = ours(z, target, reduction=reduction)
            assert loss.dtype == theirs(z, target, reduction=reduction).dtype == dtype
            assert_agrees(
                lambda *x, f=ours: f(*x, reduction=reduction),
                lambda *x, f=theirs: f(*x, reduction=reduction),
                (z.detach(), target),
                leaves=(0,),
            )

    launched_on(backend, check)
