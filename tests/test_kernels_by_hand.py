r"""Values worked out by hand, typed in.

Two samples, three classes. The logits are logarithms, so that the probabilities are fractions:

    z = ln (1, 2, 1)  p = (1/4, 1/2, 1/4)  -log p = (2, 1, 2)·ln 2  target 1: 1·ln 2
        ln (1, 1, 2)      (1/4, 1/4, 1/2)           (2, 2, 1)·ln 2  target 0: 2·ln 2
    r - y = 1, -2         (r-y)² = 1, 4             MSE = 5/2

The loss is 1/4·MSE + 3/4·CE; `ce` below is in units of ln 2. d loss/dr = 1/4·2·(r-y)/2 = 1/4, -1/2
under "mean". d loss/dz = 3/4·(p·Σq' - q')/L; `rows` below is p·Σq' - q' in quarters, row by row:
(1, -2, 1) and (-3, 1, 2) for the hard targets.
"""

import math
from typing import NamedTuple

import pytest
import torch
from _cases import F32, F64, PLACES

import fused_loss
from fused_loss import combined_loss

LN2 = math.log(2)
HARD = ((1, -2, 1), (-3, 1, 2))


class Hand(NamedTuple):
    """An option and its answer."""

    keywords: dict
    ce: float | tuple[float, float]  # in ln 2
    rows: tuple[tuple[float, ...], tuple[float, ...]]  # quarters of p·Σq' - q'
    divisor: float = 2  # L
    mse: float | tuple[float, float] = 2.5
    r: tuple[float, float] = (0.25, -0.5)
    targets: tuple = (1, 0)


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
}  # fmt: skip

EVERYWHERE = [pytest.param("reference", "cpu", id="reference-cpu"), *PLACES]


def computed(r, z, y, t, backend, keywords):
    r.requires_grad_()
    z.requires_grad_()
    if "class_weight" in keywords:
        keywords = {**keywords, "class_weight": torch.tensor(keywords["class_weight"]).to(z)}
    with fused_loss.backend(backend):
        loss, parts = combined_loss(r, z, y, t, 0.25, return_components=True, **keywords)
    return loss, parts, *torch.autograd.grad(loss.sum(), (r, z))


def close(actual, answer, dtype):
    """To one unit in the last place of 5, the largest number that occurs."""
    answer = torch.as_tensor(answer, dtype=F64)
    bound = 5 * torch.finfo(dtype).eps
    torch.testing.assert_close(actual.cpu().double(), answer, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize(("backend", "device"), EVERYWHERE)
@pytest.mark.parametrize("name", HANDS)
def test_two_samples(name, backend, device, dtype):
    hand = HANDS[name]
    r = torch.tensor([[1.0], [3.0]], dtype=dtype, device=device)
    y = torch.tensor([[0.0], [5.0]], dtype=dtype, device=device)
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
