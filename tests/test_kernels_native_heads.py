"""Options of few elements on a CPU: what PyTorch's operators get wrong goes to the reference."""

import math

import pytest
import torch
from _public import batch

from fused_loss import backend, combined_loss, task_losses
from fused_loss.kernels import native_heads, reference

INF, NAN, LARGEST = torch.inf, torch.nan, torch.finfo(torch.float32).max
POSSIBLE = torch.tensor([[True, True, False], [True, False, True], [True] * 3, [True] * 3])


def weights(*values):
    return torch.tensor(values)


def changed(tensor, *changes):
    """A copy with the value of each `(place, value)`."""
    copy = tensor.clone()
    for place, value in changes:
        copy[place] = value
    return copy


def losses_and_gradients(inputs, options):
    r, z, y, t = inputs
    leaves = r.clone().requires_grad_(), z.clone().requires_grad_()
    mse, ce = task_losses(*leaves, y, t, **options)
    both = combined_loss(*leaves, y, t, alpha=0.3, **options)
    gradients = torch.autograd.grad(both.sum(), leaves)
    apart = torch.autograd.grad(mse.sum(), leaves[0]), torch.autograd.grad(ce.sum(), leaves[1])
    return mse, ce, both, *gradients, apart[0][0], apart[1][0]


@pytest.fixture
def left(monkeypatch):
    """What each call of the reference's two functions was about."""
    calls = []
    for function in (reference.forward, reference.heads):

        def noted(*arguments, run=function):
            calls.append(arguments)
            return run(*arguments)

        monkeypatch.setattr(reference, function.__name__, noted)
    return calls


def check(inputs, options, calls=None, to_reference=False):
    """As the reference has it; `to_reference`: because it is the reference that has it."""
    found = losses_and_gradients(inputs, options)
    if calls is not None:
        assert len(calls) == (2 if to_reference else 0)
    with backend("reference"):
        right = losses_and_gradients(inputs, options)
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-7, equal_nan=True)
        assert torch.equal(one == 0, other == 0) or not to_reference


R, Z, Y, T = batch()
SOFT = torch.softmax(torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), 1)
TAKEN = {
    "mask": ((R, Z, Y, T.where(T != 2, 0) * POSSIBLE[:, 1]), {"class_mask": POSSIBLE}),
    "mask, nothing possible without a label": (
        (R, Z, Y, changed(T.where(T != 2, 0) * POSSIBLE[:, 1], (3, -100))),
        {"class_mask": changed(POSSIBLE, (3, False))},
    ),
    "mask over infinities": (
        (R, Z.masked_fill(~POSSIBLE, INF), Y, torch.zeros_like(T)),
        {"class_mask": POSSIBLE},
    ),
    "probabilities under a mask": ((R, Z, Y, SOFT * POSSIBLE), {"class_mask": POSSIBLE}),
    "no probability at all": (
        (R, Z, Y, changed(SOFT * POSSIBLE, (3, 0.0))),
        {"class_mask": changed(POSSIBLE, (3, False))},
    ),
    "every weight": (
        (R, Z, changed(Y, ((0, 1), NAN)), changed(T, (1, -100))),
        {
            "regression_weight": torch.rand(4, 2) + 0.5,
            "classification_weight": torch.rand(4),
            "class_weight": weights(0.5, 2.0, 0.25),
            "nan_targets": "ignore",
            "label_smoothing": 0.1,
        },
    ),
    "ignored beyond the classes": (
        (R, Z, Y, changed(T, (0, 255))),
        {
            "ignore_index": 255,
            "class_weight": weights(1.0, 2.0, 3.0),
            "classification_weight": torch.rand(4),
        },
    ),
    "normalizers": (
        (R, Z, changed(Y, (0, NAN)), T),
        {
            "nan_targets": "ignore",
            "regression_normalizer": 3,
            "classification_normalizer": torch.tensor(7),
        },
    ),
    "per sample": (
        (R, Z, changed(Y, (0, NAN), ((1, 1), NAN)), changed(T, (2, -100))),
        {
            "reduction": "none",
            "nan_targets": "ignore",
            "regression_weight": torch.rand(4, 1),
            "classification_weight": torch.rand(4),
        },
    ),
    "nothing labelled, under a normalizer": (
        (R, Z, Y * NAN, torch.full_like(T, -100)),
        {
            "nan_targets": "ignore",
            "regression_normalizer": 3.0,
            "classification_normalizer": torch.tensor(7.0),
        },
    ),
    "class weights of 0": ((R, Z, Y, T), {"class_weight": weights(1.0, 0.0, 2.0)}),
    "a missing target of an infinite prediction": (
        (changed(R, (0, INF)), Z, changed(Y, (0, NAN)), T),
        {"nan_targets": "ignore"},
    ),
}
LEFT = {
    "an infinite weight of a missing target": (
        (R, Z, changed(Y, (0, NAN)), T),
        {"nan_targets": "ignore", "regression_weight": changed(torch.ones(4, 1), (0, INF))},
    ),
    "a target that is not a number": (
        (R, Z, changed(Y, (0, NAN)), T),
        {"regression_weight": torch.rand(4, 2)},
    ),
    "no target": ((R, Z, Y * NAN, T), {"nan_targets": "ignore"}),
    "no target, which is 0": ((R, Z, Y * NAN, T), {"nan_targets": "ignore", "empty": "zero"}),
    "no label": ((R, Z, Y, torch.full_like(T, -100)), {"empty": "zero"}),
    "weights that cancel": (
        (R, Z, Y, T),
        {"classification_weight": weights(1e8, 1.0, -1e8, -1.0)},
    ),
    "an infinite logit without a label": (
        (R, changed(Z, (1, INF)), Y, changed(T, (1, -100))),
        {"classification_weight": torch.rand(4)},
    ),
    "no logit that is a number without a label": (
        (R, changed(Z, (1, NAN)), Y, changed(T, (1, -100))),
        {"reduction": "none"},
    ),
    "an impossible target": ((R, Z, Y, torch.full_like(T, 2)), {"class_mask": POSSIBLE}),
    "an impossible probability": ((R, Z, Y, SOFT), {"class_mask": POSSIBLE}),
    "a tiny impossible probability": (
        (R, Z, Y, (SOFT * POSSIBLE).masked_fill(~POSSIBLE, 1e-38)),
        {"class_mask": POSSIBLE},
    ),
    "no possible class": (
        (R, Z, Y, T * 0),
        {"class_mask": changed(POSSIBLE, (3, False))},
    ),
    "logits as low as an impossible class's": (
        (R, torch.full_like(Z, -LARGEST), Y, SOFT * POSSIBLE),
        {"class_mask": POSSIBLE},
    ),
    "smoothing under a mask": (
        (R, Z, Y, T.where(T != 2, 0) * POSSIBLE[:, 1]),
        {"class_mask": POSSIBLE, "label_smoothing": 0.1},
    ),
    "an infinite class weight, smoothing and no label": (
        (R, Z, Y, torch.full_like(T, -100)),
        {"class_weight": weights(1.0, INF, 1.0), "label_smoothing": 0.1, "reduction": "sum"},
    ),
    "class weights that are 0 for all": (
        (R, Z, Y, T * 0),
        {"class_weight": weights(0.0, 1.0, 1.0)},
    ),
    "a normalizer of 0": ((R, Z, Y, T), {"regression_normalizer": 0.0}),
    "an infinite normalizer": ((R, Z, Y, T), {"classification_normalizer": INF}),
    "a normalizer beyond float32": ((R, Z, Y, T), {"classification_normalizer": 1e300}),
    "a normalizer that is not a number": (
        (R, Z, Y, T),
        {"classification_normalizer": torch.tensor(NAN)},
    ),
    "a sum beyond float32": (
        (R * 1e19, Z, Y * 1e19, T),
        {"regression_normalizer": 1e20},
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_an_option_taken(name, left):
    check(*TAKEN[name], left)


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_to_the_reference(name, left):
    check(*LEFT[name], left, to_reference=True)


@pytest.mark.parametrize("name", TAKEN)
def test_other_dtypes(name):
    """Half inputs have the loss, and the gradients, of float32; float64 beside them its own."""
    (r, z, y, t), options = TAKEN[name]
    found = losses_and_gradients((r.double(), z.bfloat16(), y.double(), t), options)
    assert [x.dtype for x in found[:3]] == [torch.float64] * 3
    with backend("reference"):
        right = losses_and_gradients((r.double(), z.bfloat16(), y.double(), t), options)
    for one, other in zip(found, right, strict=True):
        exact = torch.finfo(one.dtype).eps * 8
        torch.testing.assert_close(one, other, rtol=exact, atol=exact / 8, equal_nan=True)


@pytest.mark.parametrize("name", [*TAKEN, *LEFT])
def test_gradients_may_be_differentiated(name):
    """Whatever the values are: what went to the closed form for some could not be, for these."""
    (r, z, y, t), options = (TAKEN | LEFT)[name]

    def second():
        leaves = r.clone().requires_grad_(), z.clone().requires_grad_()
        loss = combined_loss(*leaves, y, t, **options).sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        return torch.autograd.grad(sum((g * g.detach().sign()).sum() for g in first), leaves)

    found = second()
    with backend("reference"):
        right = second()
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", TAKEN)
def test_no_operator_s_gradient_is_nan(name):
    (r, z, y, t), options = TAKEN[name]
    with torch.autograd.set_detect_anomaly(True):
        losses_and_gradients((r, z, y, t), options)


def test_options_that_inference_mode_made():
    """Autograd cannot keep them; the closed form keeps the gradient alone."""
    r, z = R.clone().requires_grad_(), Z.clone().requires_grad_()
    right = combined_loss(r, z, Y, T * 0, class_mask=POSSIBLE)
    with torch.inference_mode():
        mask, y, t = POSSIBLE.clone(), Y.clone(), T * 0
    loss = combined_loss(r, z, y, t, class_mask=mask)
    torch.testing.assert_close(loss, right)
    for one, other in zip(
        torch.autograd.grad(loss, (r, z)), torch.autograd.grad(right, (r, z)), strict=True
    ):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        assert combined_loss(r, z, y, t, class_mask=mask).item() == right.item()


@pytest.mark.parametrize(
    ("weight", "normalizer"),
    [(0.3, 3.0), (0.3, 1.0), (0.0, 2.0), (1e-20, 1e24), (1e30, 1e-20), (1e39, 2.0)],
)
def test_a_weight_and_a_normalizer_in_one_number(weight, normalizer):
    """Where their quotient is no normal number of float32 either, though both are."""
    inputs = R * 1e9, Z, Y * 1e9, T
    options = {"loss_weights": (weight, 0.0), "regression_normalizer": normalizer}
    with backend("reference"):
        right = combined_loss(*inputs, **options)
    torch.testing.assert_close(combined_loss(*inputs, **options), right, rtol=1e-6, atol=0.0)


def test_the_loss_is_the_weighted_sum_of_its_components():
    loss, (mse, ce) = combined_loss(
        R, Z, Y, T, alpha=0.3, regression_normalizer=3.0, return_components=True
    )
    torch.testing.assert_close(loss, 0.3 * mse + 0.7 * ce)


def test_an_index_outside_the_classes_is_named():
    for options in (
        {"classification_weight": torch.rand(4), "class_weight": torch.rand(3)},
        {"class_mask": POSSIBLE},
        {"reduction": "none"},
        {"classification_normalizer": 2.0},
    ):
        for index in (3, -1):
            with pytest.raises(IndexError, match=rf"classification_targets .* {index}, .* 3 clas"):
                combined_loss(R, Z, Y, changed(T, (0, index)), **options)


def test_an_impossible_class_is_far_from_every_logit():
    assert native_heads.FAR + native_heads.CLEAR < -LARGEST / 8
    assert math.isfinite(native_heads.FAR - native_heads.CLEAR)
    assert torch.tensor(native_heads.FAR + native_heads.CLEAR).exp() == 0
