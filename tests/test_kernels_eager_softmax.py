import pytest
import torch
import torch.nn.functional as F

import fused_loss
from fused_loss import combined_loss, cross_entropy
from fused_loss.kernels import eager_tiles

MODES = {
    "indices": {},
    "weights": {"class_weight": True},
    "smoothing": {"label_smoothing": 0.1},
    "weights and smoothing": {"class_weight": True, "label_smoothing": 0.1},
    "probabilities": {"soft": True},
    "mask": {"class_mask": True},
    "mask and probabilities": {"class_mask": True, "soft": True},
}


def results(z, t, **options):
    """The loss of the logits on `eager`, and their gradient."""
    z = z.detach().clone().requires_grad_()
    r = torch.zeros(z.shape[0], 1)
    with fused_loss.backend("eager"):
        loss = combined_loss(r, z, r, t, 0.0, **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), z)[0]


def inputs(mode, n, c, positions=(), scale=1.0):
    """Logits, targets and options of a mode."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, c, *positions, generator=generator) * scale
    options = dict(MODES[mode])
    t = torch.randint(c, (n, *positions), generator=generator)
    if options.pop("soft", False):
        t = torch.randn(z.shape, generator=generator).softmax(1)
    if options.get("class_weight"):
        options["class_weight"] = torch.rand(c, generator=generator) + 0.5
    if options.get("class_mask"):
        mask = torch.rand(z.shape, generator=generator) < 0.7
        mask[:, 0] = True
        options["class_mask"] = mask
        if t.is_floating_point():
            t = t * mask
        else:
            t = t.where(mask.gather(1, t.unsqueeze(1)).squeeze(1), 0)
    return z, t, options


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(70001, 3), (100_003, 7), (300, 4000), (1, 100_003)], ids=str)
def test_the_same_bits_for_any_number_of_threads(mode, shape):
    z, t, options = inputs(mode, *shape)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(z, t, **options))
    finally:
        torch.set_num_threads(before)
    for loss, gradient in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(gradient, found[0][1])


@pytest.mark.parametrize("mode", MODES)
def test_an_extraordinary_row_leaves_the_others_bits(mode):
    z, t, options = inputs(mode, 8, 6)
    if not t.is_floating_point():
        t[3] = 0
    _, before = results(z, t, reduction="sum", **options)
    far = z.clone()
    far[3, 0] = -1e4
    loss, after = results(far, t, reduction="none", **options)
    others = torch.arange(8) != 3
    assert loss[3] > 1000
    assert torch.equal(results(far, t, reduction="sum", **options)[1][others], before[others])
    assert after[3].isfinite().all()


@pytest.mark.parametrize("gap", [50.0, 79.0, 81.0, 100.0, 1e4, 1e30])
def test_a_probability_that_underflows(gap):
    """The loss is the gap to an ulp, and the gradient that of PyTorch."""
    z = torch.tensor([[0.0, -gap, -gap], [0.0, -1.0, 1.0]])
    t = torch.tensor([1, 2])
    loss, gradient = results(z, t, reduction="none")
    wide = z.double().requires_grad_()
    truth = F.cross_entropy(wide, t, reduction="none")
    (theirs,) = torch.autograd.grad(truth.sum(), wide)
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(loss.double(), truth.detach(), rtol=2 * eps, atol=0)
    torch.testing.assert_close(gradient.double(), theirs, rtol=0, atol=2 * eps)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_an_impossible_class_holds_does_not_matter(poison, soft):
    z, t, options = inputs("mask and probabilities" if soft else "mask", 8, 6)
    impossible = ~options["class_mask"]
    right = results(z.masked_fill(impossible, 0.0), t, **options)
    for one, other in zip(
        results(z.masked_fill(impossible, poison), t, **options), right, strict=True
    ):
        eps = torch.finfo(torch.float32).eps
        torch.testing.assert_close(one, other, rtol=4 * eps, atol=eps)
        assert one.isfinite().all()


@pytest.mark.parametrize("possible", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.5])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_target_that_is_no_probability(reduction, value, possible):
    """It is in the loss as the reference has it, and in no gradient of an impossible class."""
    z, t, options = inputs("mask and probabilities", 8, 6)
    mask = options["class_mask"]
    row, column = (mask == possible).nonzero()[0]
    t[row, column] = value
    loss, gradient = results(z, t, reduction=reduction, **options)
    with fused_loss.backend("reference"):
        zero = torch.zeros(8, 1)
        right = combined_loss(zero, z, zero, t, 0.0, reduction=reduction, **options)
    torch.testing.assert_close(loss, right, equal_nan=True)
    assert not gradient[~mask].any()
    others = torch.arange(8) != row
    assert gradient[others].isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_class_weight_of_probabilities_that_is_no_number(value):
    z, t, options = inputs("mask and probabilities", 8, 6)
    weight = torch.ones(6)
    weight[2] = value
    loss, gradient = results(z, t, reduction="none", class_weight=weight, **options)
    with fused_loss.backend("reference"):
        zero = torch.zeros(8, 1)
        right = combined_loss(
            zero, z, zero, t, 0.0, reduction="none", class_weight=weight, **options
        )
    torch.testing.assert_close(loss, right, equal_nan=True)
    assert not gradient[~options["class_mask"]].any()


def error(loss_of, z, t):
    """Of the mean loss and of its gradient, relative to the largest value of each."""
    found = []
    for dtype in (z.dtype, torch.float64):
        leaf = z.detach().to(dtype).requires_grad_()
        loss = loss_of(leaf, t)
        found.append((loss.detach().double(), torch.autograd.grad(loss, leaf)[0].double()))
    return [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*found, strict=True)]


def at_least_float32(z):
    return z if z.dtype == torch.float64 else z.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape", [(8, 262144), (70000, 8), pytest.param((3052, 32768), marks=pytest.mark.slow)], ids=str
)
def test_long_sums_are_as_near_to_float64_as_pytorchs(shape, dtype):
    """Over 262144 classes, over many positions, and over 10^8 logits; give half an ulp."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(shape, generator=generator).to(dtype)
    t = torch.randint(shape[1], shape[:1], generator=generator)
    with fused_loss.backend("eager"):
        ours = error(cross_entropy, z, t)
    theirs = error(
        lambda z, t: (
            F.cross_entropy(z.float(), t) if z.dtype != torch.float64 else F.cross_entropy(z, t)
        ),
        z,
        t,
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one <= other + torch.finfo(dtype).eps / 2


def test_blocks_do_not_show_in_the_bits(monkeypatch):
    z, t, options = inputs("weights", 64, 10)
    whole = results(z, t, **options)
    monkeypatch.setattr(eager_tiles, "BLOCK_ELEMENTS", 37)
    for one, other in zip(results(z, t, **options), whole, strict=True):
        assert torch.equal(one, other)


def test_an_illegal_index_is_found_before_the_logits_are_written_over(monkeypatch):
    monkeypatch.setattr(eager_tiles, "BLOCK_ELEMENTS", 12)
    z, t, _ = inputs("indices", 8, 6)
    t[7] = 6
    leaf = z.clone().requires_grad_()
    logits = leaf * 1
    r = torch.zeros(8, 1)
    with fused_loss.backend("eager"), pytest.raises(IndexError, match="class index 6"):
        combined_loss(r, logits, r, t, inplace_gradient=True)
    assert torch.equal(logits, z)
