"""`UncertaintyWeightedLoss` against its formula, spelt out in PyTorch's operators."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _public import ALL, assert_agrees, batch, device_of
from torch import Tensor, nn

import fused_loss
from fused_loss import Components, UncertaintyWeightedLoss

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
on_all = pytest.mark.parametrize("backend", ALL)


def by_hand(
    r: Tensor, z: Tensor, y: Tensor, t: Tensor, s_r: Tensor, s_c: Tensor, **options: Any
) -> Tensor:
    """0.5·(exp(-s_r)·MSE + s_r) + exp(-s_c)·CE + 0.5·s_c."""
    mse = F.mse_loss(r, y, reduction=options.get("reduction", "mean"))
    ce = F.cross_entropy(z, t, **options)
    return 0.5 * (torch.exp(-s_r) * mse + s_r) + torch.exp(-s_c) * ce + 0.5 * s_c


def of_module(**options: Any) -> Any:
    """The module as a function of its two parameters too."""

    def loss(r: Tensor, z: Tensor, y: Tensor, t: Tensor, s_r: Tensor, s_c: Tensor) -> Tensor:
        module = UncertaintyWeightedLoss(**options)
        given = {"regression_log_variance": s_r, "classification_log_variance": s_c}
        return torch.func.functional_call(module, given, (r, z, y, t))

    return loss


@on_all
@pytest.mark.parametrize("at", [(0.0, 0.0), (0.5, -1.25)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_value_and_all_gradients(backend: str, reduction: str, at: tuple[float, float]):
    device = device_of(backend)
    variances = [torch.tensor(value, device=device) for value in at]
    options = {"reduction": reduction, "label_smoothing": 0.1}
    with fused_loss.backend(backend):
        assert_agrees(
            of_module(**options),
            lambda *x: by_hand(*x, **options),
            [*batch(features=(), device=device), *variances],
            leaves=(0, 1, 4, 5),
        )


@on_all
def test_it_starts_at_half_the_mse_and_the_cross_entropy(backend: str):
    # mse = 4, ce = ln 2: 2 + ln 2; d/ds_r = 0.5 - mse/2 = -1.5, d/ds_c = 0.5 - ln 2
    device = device_of(backend)
    r, y = torch.tensor([3.0], device=device), torch.tensor([1.0], device=device)
    z, t = torch.zeros(1, 2, device=device), torch.tensor([0], device=device)
    module = UncertaintyWeightedLoss(return_components=True).to(device)
    with fused_loss.backend(backend):
        loss, components = module(r, z, y, t)
        loss.backward()
    ln2 = torch.tensor(2.0, dtype=F64).log()
    ulp = 4 * torch.finfo(F32).eps
    for found, answer in (
        (loss, 2 + ln2),
        (components.regression, 4),
        (components.classification, ln2),
        (module.regression_log_variance.grad, -1.5),
        (module.classification_log_variance.grad, 0.5 - ln2),
    ):
        assert abs(float(found.detach()) - float(answer)) <= ulp
    assert type(components) is Components


def test_the_variances_are_its_parameters():
    module = UncertaintyWeightedLoss(class_weight=torch.ones(3), empty="zero")
    names = ["regression_log_variance", "classification_log_variance"]
    assert [name for name, _ in module.named_parameters()] == names
    assert all(isinstance(p, nn.Parameter) and p == 0 and p.dim() == 0 for p in module.parameters())
    assert list(module.state_dict()) == [*names, "class_weight"]
    assert module.extra_repr() == "class_weight=Tensor(3,), empty='zero'"
    assert module.to(F64).regression_log_variance.dtype == F64
    assert module.to("meta").class_weight.device.type == "meta"
    with pytest.raises(TypeError, match="alpha"):
        UncertaintyWeightedLoss(alpha=0.5)
    with pytest.raises(ValueError, match="label_smoothing must lie"):
        UncertaintyWeightedLoss(label_smoothing=2)


@pytest.mark.parametrize("dtype", [F64, BF16])
def test_variances_of_another_dtype_do_not_promote(dtype: torch.dtype):
    module = UncertaintyWeightedLoss().to(dtype)
    loss = module(*batch())
    plain = UncertaintyWeightedLoss()(*batch())
    assert loss.dtype == F32
    torch.testing.assert_close(loss, plain, rtol=torch.finfo(F32).eps, atol=0)


@on_all
def test_a_batch_s_own_tensors_reach_the_loss(backend: str):
    device = device_of(backend)
    r, z, y, t = batch(device=device)
    y[0] = torch.nan
    mask = torch.tensor([True, True, False], device=device)
    module = UncertaintyWeightedLoss(nan_targets="ignore").to(device)
    with fused_loss.backend(backend):
        loss = module(r, z, y, t.clamp(max=1), class_mask=mask, regression_normalizer=2)
        mse = F.mse_loss(r[1:], y[1:], reduction="sum") / 2
        ce = F.cross_entropy(z[:, :2], t.clamp(max=1))
        torch.testing.assert_close(loss, 0.5 * mse + ce)


def test_the_variances_find_the_losses():
    """At the optimum exp(s_r) = MSE and exp(s_c) = 2·CE: the derivatives are 0 there."""
    r, z, y, t = batch()
    mse, ce = F.mse_loss(r, y), F.cross_entropy(z, t)
    module = UncertaintyWeightedLoss()
    with torch.no_grad():
        module.regression_log_variance.copy_(mse.log())
        module.classification_log_variance.copy_((2 * ce).log())
    module(r, z, y, t).backward()
    for parameter in module.parameters():
        assert abs(parameter.grad) <= 8 * torch.finfo(F32).eps
