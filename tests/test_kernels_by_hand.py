r"""Values worked out by hand, typed in.

Two samples, three classes. The logits are logarithms, so that the probabilities are fractions:

    z = ln (1, 2, 1)  p = (1/4, 1/2, 1/4)  -log p = (2, 1, 2)·ln 2  target 1: 1·ln 2
        ln (1, 1, 2)      (1/4, 1/4, 1/2)           (2, 2, 1)·ln 2  target 0: 2·ln 2
    r - y = 1, -2         (r-y)² = 1, 4             MSE = 5/2

The loss is 1/4·MSE + 3/4·CE; `ce` below is in units of ln 2. d loss/dr = 1/4·2·(r-y)/2 = 1/4, -1/2
under "mean". d loss/dz = 3/4·(p·Σq' - q')/L; `rows` below is p·Σq' - q' in quarters, row by row:
(1, -2, 1) and (-3, 1, 2) for the hard targets. Without its last class the second row has p = 1/2
twice, and without its middle class so has the first.
"""

import math
from typing import NamedTuple

import pytest
import torch
from _cases import F32, F64, PLACES

import fused_loss
from fused_loss import combined_loss

LN2, INF, NAN = math.log(2), math.inf, math.nan
HARD = ((1, -2, 1), (-3, 1, 2))
ZERO = ((0, 0, 0), (0, 0, 0))
LAST = ((True, True, True), (True, True, False))  # masks: without the second row's last class
NONE = ((False, False, False), (True, True, True))  # without any class of the first row


class Hand(NamedTuple):
    """An option and its answer."""

    keywords: dict
    ce: float | tuple[float, float]  # in ln 2
    rows: tuple[tuple[float, ...], tuple[float, ...]]  # quarters of p·Σq' - q'
    divisor: float = 2  # L
    mse: float | tuple[float, float] = 2.5
    r: tuple[float, float] = (0.25, -0.5)
    targets: tuple = (1, 0)
    y: tuple[float, float] = (0.0, 5.0)


HANDS = {
    "plain": Hand({}, 1.5, HARD),
    # (2, 1, 3): 1·1 + 2·2 = 5 over the weights of the targets, 1 + 2 = 3; second row twice
    "class_weight": Hand({"class_weight": (2.0, 1.0, 3.0)}, 5 / 3, ((1, -2, 1), (-6, 2, 4)), 3),
    "ignore_index": Hand({"ignore_index": 0}, 1.0, ((1, -2, 1), (0, 0, 0)), 1),
    "ignore_-100": Hand({}, 1.0, ((1, -2, 1), (0, 0, 0)), 1, targets=(1, -100)),
    # ε = 0.3: q = (.1, .8, .1), 0.2 + 0.8 + 0.2 = 1.2; (.8, .1, .1), 1.6 + 0.2 + 0.1 = 1.9
    "label_smoothing": Hand(
        {"label_smoothing": 0.3}, 1.55, ((0.6, -1.2, 0.6), (-2.2, 0.6, 1.6))
    ),
    # q' = (.2, .8, .3), mass 1.3: 0.4 + 0.8 + 0.6 = 1.8
    # q' = (1.6, .1, .3), mass 2: 3.2 + 0.2 + 0.3 = 3.7
    "smoothing and weight": Hand(
        {"label_smoothing": 0.3, "class_weight": (2.0, 1.0, 3.0)},
        5.5 / 3,
        ((0.5, -0.6, 0.1), (-4.4, 1.6, 2.8)),
        3,
    ),
    # 1/2·2 + 1/2·1 = 1.5 and 1: mean 1.25
    "probabilities": Hand(
        {}, 1.25, ((-1, 0, 1), (1, 1, -2)), targets=((0.5, 0.5, 0.0), (0.0, 0.0, 1.0))
    ),
    # mass 2: 1·2 + 1·1 = 3; p·2 - q. Mass 0: no loss, no gradient.
    "unnormalised probabilities": Hand(
        {}, 1.5, ((-2, 0, 2), (0, 0, 0)), targets=((1.0, 1.0, 0.0), (0.0, 0.0, 0.0))
    ),
    # q' = (1, .5, 0), mass 1.5: 2 + .5 = 2.5; (0, 0, 3), mass 3: 3. The divisor is the count.
    "probabilities and weight": Hand(
        {"class_weight": (2.0, 1.0, 3.0)},
        2.75,
        ((-2.5, 1, 1.5), (3, 3, -6)),
        targets=((0.5, 0.5, 0.0), (0.0, 0.0, 1.0)),
    ),
    "sum": Hand({"reduction": "sum"}, 3.0, HARD, 1, 5.0, (0.5, -1.0)),
    "none": Hand({"reduction": "none"}, (1.0, 2.0), HARD, 1, (1.0, 4.0), (0.5, -1.0)),
    "none, ignored": Hand(
        {"reduction": "none", "ignore_index": 1},
        (0.0, 2.0),
        ((0, 0, 0), (-3, 1, 2)),
        1,
        (1.0, 4.0),
        (0.5, -1.0),
    ),
    # --- masks: the second row is then 1·ln 2 and (-1/2, 1/2)
    "class_mask": Hand({"class_mask": LAST}, 1.0, ((1, -2, 1), (-2, 2, 0))),
    # the first row's target, 1, is impossible: p = (1/2, 0, 1/2) keeps its pull
    "a target on an impossible class": Hand(
        {"class_mask": ((True, False, True), (True, True, True))}, INF, ((2, 0, 2), (-3, 1, 2))
    ),
    "no class is possible": Hand({"class_mask": NONE}, INF, ((0, 0, 0), (-3, 1, 2))),
    "nor is there a target": Hand(
        {"class_mask": NONE}, 1.0, ((0, 0, 0), (-3, 1, 2)), targets=((0.0,) * 3, (1.0, 0.0, 0.0))
    ),
    # p - q = (1/2 - 1/2, -, 1/2)
    "mass on an impossible class": Hand(
        {"class_mask": ((True, False, True), (True, True, True))},
        INF,
        ((0, 0, 2), (1, 1, -2)),
        targets=((0.5, 0.5, 0.0), (0.0, 0.0, 1.0)),
    ),
    # 1 + 0·log 0, of a row whose mass is 2
    "no mass on an impossible class": Hand(
        {"class_mask": LAST}, 1.5, ((-3, 2, 1), (0, 0, 0)), targets=((1.0, 0.0, 0.0), (0.5, 0.5, 0))
    ),
    # second row, K = 2: q = (.85, .15, 0), mass 1
    "mask and smoothing": Hand(
        {"class_mask": LAST, "label_smoothing": 0.3}, 1.1, ((0.6, -1.2, 0.6), (-1.4, 1.4, 0))
    ),
    # q' = (1.7, .15, 0), mass 1.85
    "mask, smoothing and weight": Hand(
        {"class_mask": LAST, "label_smoothing": 0.3, "class_weight": (2.0, 1.0, 3.0)},
        3.65 / 3,
        ((0.5, -0.6, 0.1), (-3.1, 3.1, 0)),
        3,
    ),
    # smoothing spreads over nothing: q = 0.7 on the target
    "no class is possible, smoothing": Hand(
        {"class_mask": NONE, "label_smoothing": 0.3}, INF, ((0, 0, 0), (-2.2, 0.6, 1.6))
    ),
    # --- weights: (1·1 + 3·2)/(1 + 3), and (2·1 + 1·4)/(2 + 1)
    "classification_weight": Hand(
        {"classification_weight": (1.0, 3.0)}, 7 / 4, ((1, -2, 1), (-9, 3, 6)), 4
    ),
    "classification_weight, sum": Hand(
        {"classification_weight": (1.0, 3.0), "reduction": "sum"},
        7.0, ((1, -2, 1), (-9, 3, 6)), 1, 5.0, (0.5, -1.0),
    ),
    # divided by the count of the sample's labelled positions, 1, and not by their weight
    "classification_weight, none": Hand(
        {"classification_weight": (1.0, 3.0), "reduction": "none"},
        (1.0, 6.0), ((1, -2, 1), (-9, 3, 6)), 1, (1.0, 4.0), (0.5, -1.0),
    ),
    # (1·1·1 + 3·2·2)/(1·1 + 3·2)
    "classification_weight and class_weight": Hand(
        {"classification_weight": (1.0, 3.0), "class_weight": (2.0, 1.0, 3.0)},
        13 / 7, ((1, -2, 1), (-18, 6, 12)), 7,
    ),
    # (1·1.5 + 3·1)/(1 + 3): the class weights of probabilities are not in the divisor
    "classification_weight, probabilities": Hand(
        {"classification_weight": (1.0, 3.0)},
        4.5 / 4, ((-1, 0, 1), (3, 3, -6)), 4, targets=((0.5, 0.5, 0.0), (0.0, 0.0, 1.0)),
    ),
    "classification_weight, ignored": Hand(
        {"classification_weight": (3.0, NAN)}, 1.0, ((3, -6, 3), (0, 0, 0)), 3, targets=(1, -100)
    ),
    "regression_weight": Hand(
        {"regression_weight": ((2.0,), (1.0,))}, 1.5, HARD, mse=2.0, r=(1 / 3, -1 / 3)
    ),
    "regression_weight, sum": Hand(
        {"regression_weight": ((2.0,), (1.0,)), "reduction": "sum"}, 3.0, HARD, 1, 6.0, (1.0, -1.0)
    ),
    "regression_weight, none": Hand(
        {"regression_weight": ((2.0,), (1.0,)), "reduction": "none"},
        (1.0, 2.0), HARD, 1, (2.0, 4.0), (1.0, -1.0),
    ),
    # --- missing targets
    "nan_targets": Hand(
        {"nan_targets": "ignore"}, 1.5, HARD, mse=1.0, r=(0.5, 0.0), y=(0.0, NAN)
    ),
    "nan_targets, none": Hand(
        {"nan_targets": "ignore", "reduction": "none"},
        (1.0, 2.0), HARD, 1, (1.0, 0.0), (0.5, 0.0), y=(0.0, NAN),
    ),
    # 2·1/2: a missing element's weight is in no sum, NaN or not
    "nan_targets and regression_weight": Hand(
        {"nan_targets": "ignore", "regression_weight": ((2.0,), (NAN,))},
        1.5, HARD, mse=1.0, r=(0.5, 0.0), y=(0.0, NAN),
    ),
    "nan_targets as they are": Hand({}, 1.5, HARD, mse=NAN, r=(0.25, NAN), y=(0.0, NAN)),
    # --- denominators: 5/4 and 3/8
    "normalizers": Hand(
        {"regression_normalizer": 4, "classification_normalizer": 8.0},
        3 / 8, HARD, 8, 1.25, (0.125, -0.25),
    ),
    "normalizer and weight": Hand(
        {"classification_weight": (1.0, 3.0), "classification_normalizer": 8},
        7 / 8, ((1, -2, 1), (-9, 3, 6)), 8,
    ),
    "nothing labelled": Hand(
        {"nan_targets": "ignore"}, NAN, ZERO, 1, NAN, (0.0, 0.0), (-100, -100), (NAN, NAN)
    ),
    "nothing labelled, zero": Hand(
        {"nan_targets": "ignore", "empty": "zero"},
        0.0, ZERO, 1, 0.0, (0.0, 0.0), (-100, -100), (NAN, NAN),
    ),
    "weights of 0 label nothing": Hand(
        {"classification_weight": (0.0, 0.0), "regression_weight": ((0.0,), (0.0,)),
         "empty": "zero"},
        0.0, ZERO, 1, 0.0, (0.0, 0.0),
    ),
    "nothing labelled, normalizers": Hand(
        {"nan_targets": "ignore", "regression_normalizer": 4, "classification_normalizer": 8},
        0.0, ZERO, 1, 0.0, (0.0, 0.0), (-100, -100), (NAN, NAN),
    ),
    "nothing labelled, sum": Hand(
        {"nan_targets": "ignore", "reduction": "sum"},
        0.0, ZERO, 1, 0.0, (0.0, 0.0), (-100, -100), (NAN, NAN),
    ),
    "nothing labelled, none": Hand(
        {"nan_targets": "ignore", "reduction": "none"},
        (0.0, 0.0), ZERO, 1, (0.0, 0.0), (0.0, 0.0), (-100, -100), (NAN, NAN),
    ),
}  # fmt: skip

EVERYWHERE = [pytest.param("reference", "cpu", id="reference-cpu"), *PLACES]


def computed(r, z, y, t, backend, keywords):
    r.requires_grad_()
    z.requires_grad_()
    keywords = {
        name: torch.tensor(value, device=z.device) if isinstance(value, tuple) else value
        for name, value in keywords.items()
    }
    with fused_loss.backend(backend):
        loss, parts = combined_loss(r, z, y, t, 0.25, return_components=True, **keywords)
    return loss, parts, *torch.autograd.grad(loss.sum(), (r, z))


def close(actual, answer, dtype):
    """To one unit in the last place of 7, the largest number that occurs."""
    answer = torch.as_tensor(answer, dtype=F64)
    bound = 7 * torch.finfo(dtype).eps
    torch.testing.assert_close(actual.cpu().double(), answer, rtol=0, atol=bound, equal_nan=True)


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize(("backend", "device"), EVERYWHERE)
@pytest.mark.parametrize("name", HANDS)
def test_two_samples(name, backend, device, dtype):
    hand = HANDS[name]
    r = torch.tensor([[1.0], [3.0]], dtype=dtype, device=device)
    y = torch.tensor(hand.y, dtype=dtype, device=device)[:, None]
    z = torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 2.0]], dtype=dtype, device=device).log()
    t = torch.tensor(hand.targets, device=device)
    loss, parts, r_grad, z_grad = computed(r, z, y, t, backend, hand.keywords)
    mse, ce = torch.tensor(hand.mse, dtype=F64), torch.tensor(hand.ce, dtype=F64) * LN2
    close(loss, 0.25 * mse + 0.75 * ce, dtype)
    close(parts.regression, mse, dtype)
    close(parts.classification, ce, dtype)
    close(r_grad.squeeze(1), hand.r, dtype)
    close(z_grad, torch.tensor(hand.rows, dtype=F64) / 4 * 0.75 / hand.divisor, dtype)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("backend", "device"), EVERYWHERE)
def test_one_sample_without_a_batch(backend, device, reduction):
    """Logits (C,): 0-d whatever the reduction. r - y = 1, -2: mean 5/2 or sum 5."""
    r = torch.tensor([1.0, 3.0], device=device)
    y = torch.tensor([0.0, 5.0], device=device)
    z = torch.tensor([1.0, 2.0, 1.0], device=device).log()
    t = torch.tensor(1, device=device)
    loss, parts, r_grad, z_grad = computed(r, z, y, t, backend, {"reduction": reduction})
    mse, scale = (5.0, 0.5) if reduction == "sum" else (2.5, 0.25)
    close(loss, 0.25 * mse + 0.75 * LN2, F32)
    close(parts.regression, mse, F32)
    close(parts.classification, LN2, F32)
    close(r_grad, (scale, -2 * scale), F32)
    close(z_grad, (0.75 / 4, -0.75 / 2, 0.75 / 4), F32)


@pytest.mark.parametrize(("reduction", "ce", "rows"), [
    # one labelled position each: ln 2 and 2·ln 2; the mean is over 2 positions
    ("mean", 1.5 * LN2, 2), ("sum", 3 * LN2, 1), ("none", (LN2, 2 * LN2), 1),
])  # fmt: skip
@pytest.mark.parametrize(("backend", "device"), EVERYWHERE)
def test_positions_without_a_label(backend, device, reduction, ce, rows):
    """(N, C, 2): the two samples from above, each beside a position that is ignored."""
    first = torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 2.0]], device=device).log()
    z = torch.stack((first, torch.full_like(first, 7.0)), 2)
    t = torch.tensor([[1, -100], [0, -100]], device=device)
    r = torch.tensor([[1.0], [3.0]], device=device)
    y = torch.tensor([[0.0], [5.0]], device=device)
    _, parts, _, z_grad = computed(r, z, y, t, backend, {"reduction": reduction})
    close(parts.classification, ce, F32)
    close(z_grad[:, :, 0], torch.tensor(HARD, dtype=F64) / 4 * 0.75 / rows, F32)
    assert torch.equal(z_grad[:, :, 1], torch.zeros_like(first))


@pytest.mark.parametrize(("empty", "nothing"), [("nan", NAN), ("zero", 0.0)])
@pytest.mark.parametrize("head", ["regression", "classification"])
@pytest.mark.parametrize(("backend", "device"), EVERYWHERE)
def test_the_weights_gradient_where_a_head_has_no_label(backend, device, head, empty, nothing):
    """d loss/d alpha = MSE - CE, and d loss/d(w_reg, w_cls) = (MSE, CE): 5/2 and 3/2·ln 2."""
    r = torch.tensor([1.0, 3.0], device=device)
    y = torch.tensor([0.0, 5.0], device=device)
    z = torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 2.0]], device=device).log()
    t = torch.tensor([1, 0], device=device)
    mse, ce = 2.5, 1.5 * LN2
    if head == "regression":
        y, mse = y * NAN, nothing
    else:
        t, ce = t * 0 - 100, nothing
    alpha = torch.tensor(0.25, device=device, requires_grad=True)
    pair = torch.tensor([0.25, 0.75], device=device, requires_grad=True)
    options = {"nan_targets": "ignore", "empty": empty}
    with fused_loss.backend(backend):
        for given, answer in (({"alpha": alpha}, mse - ce), ({"loss_weights": pair}, (mse, ce))):
            loss = combined_loss(r, z, y, t, **given, **options)
            close(loss, 0.25 * mse + 0.75 * ce, F32)
            (gradient,) = torch.autograd.grad(loss, given.values())
            close(gradient, answer, F32)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("backend", "device"), EVERYWHERE)
def test_options_of_positions(backend, device, reduction):
    """(N, C, 2) and (N, 2): each sample once with weight 1, once with weight 2 or missing."""
    rows = torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 2.0]], device=device).log()
    z, t = torch.stack((rows, rows), 2), torch.tensor([[1, 1], [0, -100]], device=device)
    r = torch.tensor([[1.0, 1.0], [3.0, 3.0]], device=device)
    y = torch.tensor([[0.0, 0.0], [5.0, NAN]], device=device)
    mask = torch.tensor([[True] * 3, [True, True, False]], device=device)[:, :, None]
    weight = torch.tensor([[1.0, 2.0]], device=device)  # of every sample's positions and elements
    keywords = {
        "class_mask": mask, "classification_weight": weight, "regression_weight": weight,
        "nan_targets": "ignore", "reduction": reduction,
    }  # fmt: skip
    with fused_loss.backend(backend):
        r.requires_grad_(), z.requires_grad_()
        loss, parts = combined_loss(r, z, y, t, 0.25, return_components=True, **keywords)
        r_grad, z_grad = torch.autograd.grad(loss.sum(), (r, z))
    # ln 2: 1 + 2·1 and 1; squares: 1 + 2·1 and 4. Counts 2 and 1; weights 1 + 2 and 1.
    ce, mse, divisors = {
        "mean": (4 / 4, 7 / 4, (4, 4)),
        "sum": (4.0, 7.0, (1, 1)),
        "none": ((3 / 2, 1.0), (3 / 2, 4.0), (2, 1)),
    }[reduction]
    close(parts.classification, torch.tensor(ce, dtype=F64) * LN2, F32)
    close(parts.regression, mse, F32)
    first, second = divisors
    close(r_grad, [[0.5 / first, 1 / first], [-1 / second, 0.0]], F32)
    pull = torch.tensor([[1, -2, 1], [-2, 2, 0]], dtype=F64) / 4 * 0.75
    pull = pull / torch.tensor([[first], [second]], dtype=F64)
    close(z_grad[:, :, 0], pull, F32)
    close(z_grad[0, :, 1], 2 * pull[0], F32)
    assert not z_grad[1, :, 1].any()
