"""Mixed precision as it is used: autocast, GradScaler, and gradients that float16 barely holds."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _cases import EAGER_PLACES, PLACES
from torch import Tensor, nn

import fused_loss
from fused_loss import DualHead, combined_loss
from fused_loss.bench.composed import composed

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
SCALE = 65536.0  # GradScaler's first
REFERENCE = pytest.param("reference", "cpu", id="reference-cpu")
everywhere = pytest.mark.parametrize(("backend", "device"), [REFERENCE, *PLACES])
closed_form = pytest.mark.parametrize(("backend", "device"), PLACES)
on_halves = pytest.mark.parametrize("dtype", [BF16, F16], ids=str)


def model_and_batch(device: str) -> tuple[DualHead, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = DualHead(nn.Linear(8, 16), nn.Linear(16, 2), nn.Linear(16, 5)).to(device)
    x, y = torch.randn(12, 8, generator=random), torch.randn(12, 2, generator=random)
    t = torch.randint(0, 5, (12,), generator=random)
    return model, x.to(device), y.to(device), t.to(device)


def distance(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth.double()).norm() / truth.double().norm())


@everywhere
@on_halves
@pytest.mark.parametrize("inside", [True, False], ids=["inside autocast", "outside"])
def test_autocast(inside: bool, dtype: torch.dtype, backend: str, device: str):
    """Half outputs give a float32 loss, in and out of the context; the weights learn as eager's."""
    model, x, y, t = model_and_batch(device)
    with torch.autocast(device, dtype):
        r, z = model(x)
        eager = 0.5 * F.mse_loss(r, y) + 0.5 * F.cross_entropy(z, t)
        with fused_loss.backend(backend):
            loss = combined_loss(r, z, y, t)
    if not inside:
        with fused_loss.backend(backend):
            loss = combined_loss(r, z, y, t)
    assert (r.dtype, z.dtype, loss.dtype) == (dtype, dtype, F32)
    truth, *_ = composed(r, z, y, t, F64)
    wanted = gradients_of(truth, r, z)
    own, found = gradients_of(eager, r, z), gradients_of(loss, r, z)
    for one, other, exact in zip(found, own, wanted, strict=True):
        assert one.dtype == dtype
        bound = distance(other, exact) + torch.finfo(dtype).eps
        assert distance(one, exact) <= bound
    assert abs(float(loss.detach().double() - truth.detach())) <= 4 * torch.finfo(F32).eps * float(
        truth.detach()
    )


def gradients_of(loss: Tensor, *outputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, outputs, retain_graph=True)


def trained(loss_of: Any, dtype: torch.dtype, device: str) -> tuple[float, list[Tensor]]:
    """Three steps under a GradScaler: its scale, and the weights. Float16 overflows in the second.

    float32 runs without autocast and without the scaler, and leaves that step out.
    """
    model, x, y, t = model_and_batch(device)
    half = dtype != F32
    scaler = torch.amp.GradScaler(device, init_scale=SCALE, enabled=half)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for factor in (1.0, 1e6, 1.0) if dtype == F16 else (1.0, 1.0):
        optimizer.zero_grad()
        with torch.autocast(device, dtype, enabled=half):
            loss = loss_of(*model(x), y, t)
        scaler.scale(loss * factor).backward()
        scaler.step(optimizer)
        scaler.update()
    return scaler.get_scale(), [p.detach().clone() for p in model.parameters()]


def eager_loss(r: Tensor, z: Tensor, y: Tensor, t: Tensor) -> Tensor:
    return 0.5 * F.mse_loss(r, y) + 0.5 * F.cross_entropy(z, t)


@everywhere
@on_halves
def test_a_grad_scaler_trains(dtype: torch.dtype, backend: str, device: str):
    """Scaled, unscaled, stepped; and a step that overflows is left out, as with eager's loss."""
    with fused_loss.backend(backend):
        scale, ours = trained(combined_loss, dtype, device)
    scale_of_eager, eager = trained(eager_loss, dtype, device)
    _, exact = trained(eager_loss, F32, device)
    assert scale == scale_of_eager == (SCALE / 2 if dtype == F16 else SCALE)
    for one, other, right in zip(ours, eager, exact, strict=True):
        assert distance(one, right) <= 2 * distance(other, right) + torch.finfo(dtype).eps


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mask and weights": {"class_mask": True, "classification_weight": True},
}


def far_from_one(n: int, c: int, device: str, **options: Any) -> tuple[list[Tensor], dict]:
    """Confident logits over many samples: p/N of most classes is far below float16's smallest."""
    of = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    z = (4 * torch.randn(n, c, **of)).half()
    t = torch.randint(0, c, (n,), **of)
    keywords = {}
    if "class_mask" in options:
        mask = torch.rand(n, c, **of) < 0.9
        keywords["class_mask"] = mask.scatter_(1, t[:, None], True)
        keywords["classification_weight"] = torch.rand(n, **of)
    r, y = torch.randn(2, n, 1, **of).half()
    return [r, z, y, t], keywords


def assert_no_further_than_eager(n: int, c: int, backend: str, device: str, **options: Any):
    """The float16 gradient under a GradScaler, from float64; and no more of it is lost."""
    (r, z, y, t), keywords = far_from_one(n, c, device, **options)

    def gradient(loss: Any) -> Tensor:
        leaf = z.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf) * SCALE, leaf)[0]

    eager = gradient(lambda z: composed(r, z, y, t, F32, **keywords)[0])
    with fused_loss.backend(backend):
        found = gradient(lambda z: combined_loss(r, z, y, t, **keywords))
    wide = z.double().requires_grad_()
    (truth,) = torch.autograd.grad(composed(r, wide, y, t, F64, **keywords)[0] * SCALE, wide)
    assert found.dtype == eager.dtype == F16
    # Half of a float16 step is both errors; what float32 does before is all they differ in.
    assert distance(found, truth) <= distance(eager, truth) + 8 * torch.finfo(F32).eps
    lost = [int((x == 0).sum()) - int((truth == 0).sum()) for x in (found, eager)]
    assert lost[0] <= lost[1] + found.numel() * 8 * torch.finfo(F32).eps


@closed_form
@pytest.mark.parametrize("name", OPTIONS)
def test_a_large_batch_of_float16(name: str, backend: str, device: str):
    """In Triton's interpreter a smaller one."""
    samples = 1024 if (backend, device) == ("triton", "cpu") else 16384
    assert_no_further_than_eager(samples, 64, backend, device, **OPTIONS[name])


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_a_large_batch_of_many_classes(name: str, backend: str):
    assert_no_further_than_eager(16384, 32000, backend, "cuda", **OPTIONS[name])


@pytest.mark.parametrize(("backend", "device"), EAGER_PLACES)
def test_without_the_scale_much_is_lost(backend: str, device: str):
    """What the test above would see: the same gradient, stored unscaled, is mostly 0."""
    (r, z, y, t), _ = far_from_one(16384, 64, device)
    z.requires_grad_()
    with fused_loss.backend(backend):
        (plain,) = torch.autograd.grad(combined_loss(r, z, y, t), z)
        (scaled,) = torch.autograd.grad(combined_loss(r, z, y, t) * SCALE, z)
    assert (plain == 0).float().mean() > 0.5 > 2 * (scaled == 0).float().mean()


@everywhere
@pytest.mark.parametrize(
    ("r_dtype", "z_dtype"), [(F16, BF16), (BF16, F32), (F32, F16), (F64, BF16)], ids=str
)
def test_heads_and_targets_of_different_dtypes(
    r_dtype: torch.dtype, z_dtype: torch.dtype, backend: str, device: str
):
    """Targets and weights of yet other dtypes: the loss is in promote(float32, r, z)."""
    model, x, y, t = model_and_batch(device)
    r, z = (output.detach() for output in model(x))
    r, z = r.to(r_dtype).requires_grad_(), z.to(z_dtype).requires_grad_()
    soft = F.one_hot(t, 5).to(BF16)
    weight = torch.ones(12, 1, dtype=F64, device=device) / 2
    with fused_loss.backend(backend):
        loss = combined_loss(r, z, y.half(), soft, regression_weight=weight)
    wide = torch.promote_types(torch.promote_types(r_dtype, z_dtype), F32)
    assert loss.dtype == wide
    truth, *_ = composed(r, z, y.half(), soft, F64, regression_weight=weight)
    own, *_ = composed(r, z, y.half(), soft, wide, regression_weight=weight)
    found, yardstick, exact = (gradients_of(x, r, z) for x in (loss, own, truth))
    for one, other, right, leaf in zip(found, yardstick, exact, (r, z), strict=True):
        assert one.dtype == leaf.dtype
        assert distance(one, right) <= distance(other, right) + torch.finfo(leaf.dtype).eps


@everywhere
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_where_both_losses_cancel_the_gradient_of_alpha_is_rounded_once(
    reduction: str, backend: str, device: str
):
    """Means of 149/3 and (149 + 2^-17)/3: as float32 they are equal, or a unit of 3.8e-6 apart."""
    gap = 2.0**-17
    losses = torch.tensor([49.0, 50.0, 50.0 + gap], device=device)  # exact: e^-49 is lost beside 1
    z = torch.stack((losses, torch.zeros_like(losses)), 1)
    r = torch.tensor([6.0, 8.0, 7.0], device=device)  # squares 36, 64, 49
    alpha = torch.tensor(0.5, device=device, requires_grad=True)
    targets = torch.zeros_like(r), torch.ones_like(r, dtype=torch.int64)
    with fused_loss.backend(backend):
        combined_loss(r, z, *targets, alpha, reduction=reduction).backward()
    wanted = torch.tensor(-gap if reduction == "sum" else -gap / 3)
    assert torch.equal(alpha.grad.cpu(), wanted)
