"""The yardstick itself; tests/test_kernels_reference.py holds all of it to the NumPy loops."""

import pytest
import torch
import torch.nn.functional as F
from _public import batch

from fused_loss.bench.composed import composed

F64 = torch.float64


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_plain_options_are_pytorch_s_own_calls(reduction: str, soft: bool):
    r, z, y, t = batch(soft=soft)
    weight = torch.tensor([0.5, 2.0, 1.0])
    options = {"class_weight": weight, "label_smoothing": 0.1, "reduction": reduction}
    loss, mse, ce = composed(r, z, y, t, torch.float32, alpha=0.25, **options)
    assert torch.equal(mse, F.mse_loss(r, y, reduction=reduction))
    expected = F.cross_entropy(z, t, weight, reduction=reduction, label_smoothing=0.1)
    assert torch.equal(ce, expected)
    assert torch.equal(loss, 0.25 * mse + 0.75 * ce)


def test_what_is_masked_is_as_if_it_were_not_there():
    r, z, y, t = batch()
    y[1], mask = torch.nan, torch.tensor([True, True, False])
    t = t.clamp(max=1)
    _, mse, ce = composed(r, z, y, t, F64, class_mask=mask, nan_targets="ignore")
    there = [0, 2, 3]
    torch.testing.assert_close(mse, F.mse_loss(r[there].double(), y[there].double()))
    torch.testing.assert_close(ce, F.cross_entropy(z[:, :2].double(), t))


def test_mass_on_an_impossible_class_is_as_on_a_logit_of_minus_infinity():
    r, z, y, t = batch(soft=True)
    mask = torch.tensor([True, True, False])
    masked = z.masked_fill(~mask, -torch.inf).requires_grad_()
    expected = F.cross_entropy(masked, t)
    _, _, ce = composed(r, z.requires_grad_(), y, t, torch.float32, class_mask=mask)
    assert ce == expected == torch.inf
    found, wanted = (torch.autograd.grad(x, y)[0] for x, y in ((ce, z), (expected, masked)))
    torch.testing.assert_close(found[:, mask], wanted[:, mask])
    assert not found[:, ~mask].any()


def test_everything_is_computed_in_the_dtype():
    r, z, y, t = batch(soft=True)
    parts = composed(r.half(), z.bfloat16(), y.half(), t, F64, alpha=torch.tensor(0.5))
    assert {part.dtype for part in parts} == {F64}
