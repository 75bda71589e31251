"""Values at the edge: very large, infinite, NaN, missing, illegal, or none at all."""

from dataclasses import replace

import pytest
import torch
from _asserts import assert_as_reference, assert_matches, fused
from _cases import BF16, F16, F32, F64, PLACES, REDUCTIONS, Case, Problem

import fused_loss
from fused_loss import combined_loss

pytestmark = pytest.mark.parametrize(("backend", "device"), PLACES)

INF, NAN = float("inf"), float("nan")


def problem_of(z, t, device, case=None, **keywords):
    """Logits `z` and targets `t` beside an ordinary regression head."""
    case = case or Case(**keywords)
    z = torch.as_tensor(z, dtype=torch.float32)
    plain = replace(case, shapes=((z.shape[0], 2), tuple(z.shape))).problem(device)
    t = torch.as_tensor(t)
    if t.is_floating_point():
        t = t.to(case.dtypes[1])
    return plain._replace(z=z.to(device, case.dtypes[1]), t=t.to(device))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("targets", ["hard", "soft"])
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16])
def test_finite_extremes(dtype, targets, reduction, backend, device):
    """Losses of thousands, and a row far below zero: a running maximum must not start at 0."""
    low = -1e30 if dtype != F16 else -65504.0
    z = [[1e4, -1e4, 0.0], [low, low, low], [low, 0.0, -1e4], [-1e4, -1e4, -1e4]]
    t = [1, 2, 2, 0]
    if targets == "soft":
        t = [[0.25, 0.75, 0.0], [0.5, 0.25, 0.25], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]
    case = Case(reduction, targets=targets, dtypes=(dtype, dtype))
    problem = problem_of(z, t, device, case)
    actual = fused(problem, backend)
    assert_matches(problem, actual, fused(problem, "reference"))


SPECIAL_ROWS = {
    "-inf beside the target": [-INF, 1.0, 2.0],
    "-inf at the target": [0.0, 1.0, -INF],
    "only the target is not -inf": [-INF, -INF, 2.0],
    "all -inf": [-INF, -INF, -INF],
    "+inf beside the target": [INF, 0.0, 1.0],
    "+inf at the target": [0.0, 1.0, INF],
    "two +inf": [INF, 1.0, INF],
    "NaN": [0.0, NAN, 1.0],
}


@pytest.mark.parametrize(
    ("targets", "smoothing", "reduction"),
    [
        ("hard", 0.0, "mean"),
        ("hard", 0.0, "none"),
        ("hard", 0.25, "none"),
        ("soft", 0.0, "none"),
        ("soft", 0.25, "sum"),
    ],
)
@pytest.mark.parametrize("row", SPECIAL_ROWS)
def test_special_logits(row, targets, smoothing, reduction, backend, device):
    z = [[0.5, -1.0, 2.0], SPECIAL_ROWS[row], [1.0, 1.0, 0.0]]
    t = [0, 2, 1]
    if targets == "soft":
        t = [[0.25, 0.75, 0.0], [0.0, 0.5, 0.5], [0.5, 0.25, 0.25]]
    case = Case(reduction, targets=targets, smoothing=smoothing)
    problem = problem_of(z, t, device, case)
    assert_as_reference(problem, fused(problem, backend))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("value", [INF, -INF, NAN, 1e30])
@pytest.mark.parametrize("where", ["r", "y"])
def test_special_regression_values(where, value, reduction, backend, device):
    problem = Case(reduction).problem(device)
    getattr(problem, where)[1, 0] = value
    assert_as_reference(problem, fused(problem, backend))


def test_a_nan_probability(backend, device):
    problem = Case("none", targets="soft").problem(device)
    problem.t[1, 2] = NAN
    assert_as_reference(problem, fused(problem, backend))


@pytest.mark.parametrize(("smoothing", "weighted"), [(0.0, False), (0.25, True)])
@pytest.mark.parametrize("layout", ["NC", "NCd"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_an_ignored_row_of_nan(reduction, layout, smoothing, weighted, backend, device):
    """It has no say: loss and gradients are those beside a row of zeros, its own exactly 0."""
    case = Case(reduction, layout, "hard-100", weighted, smoothing)
    clean = case.problem(device)
    ignored = (clean.t == -100).unsqueeze(1).expand(clean.z.shape)
    assert ignored.any()
    zeros = fused(clean._replace(z=clean.z.masked_fill(ignored, 0.0)), backend)
    for poison in (NAN, INF):
        actual = fused(clean._replace(z=clean.z.masked_fill(ignored, poison)), backend)
        assert not actual["z"][ignored].any()
        for name, value in actual.items():
            assert torch.equal(value, zeros[name]), name


@pytest.mark.parametrize("logits", [0.5, NAN])
@pytest.mark.parametrize("shape", [(), (3,), (3, 2)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_labelled(reduction, shape, logits, backend, device):
    """NaN under "mean", 0 otherwise; the gradient is 0 in any case."""
    z = torch.full((*shape[:1], 4, *shape[1:]), logits, device=device)
    t = torch.full(shape, -100, device=device)
    y = torch.zeros((*shape[:1], 2), device=device)
    problem = (
        Case(reduction)
        .problem(device)
        ._replace(r=torch.ones_like(y), z=z, y=y, t=t, grad_output=torch.ones(1, device=device)[0])
    )
    if reduction == "none":
        problem = problem._replace(grad_output=torch.ones(shape[:1], device=device))
    actual = fused(problem, backend)
    answer = NAN if reduction == "mean" else 0.0
    torch.testing.assert_close(
        actual["classification"],
        torch.full_like(actual["classification"], answer),
        equal_nan=True,
        rtol=0,
        atol=0,
    )
    assert actual["loss"].isnan().all() == (reduction == "mean")
    assert not actual["z"].any()
    assert actual["r"].ne(0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.25])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_class_weights_of_zero(reduction, smoothing, backend, device):
    """A target of weight 0 adds nothing; where all are, nothing is labelled."""
    some = Case(reduction, smoothing=smoothing).problem(device)
    weight = torch.tensor([0.0, 2.0, 0.0, 1.0, 0.5], device=device)
    some = some._replace(keywords={**some.keywords, "class_weight": weight})
    for t in ([0, 1, 2, 3], [0, 2, 0, 2]):
        problem = some._replace(t=torch.tensor(t, device=device))
        actual = fused(problem, backend)
        assert_matches(problem, actual, fused(problem, "reference"))
    assert actual["z"].any() == (bool(smoothing) and reduction != "mean")


INTEGERS = [
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint16, torch.uint32, torch.uint64,
]  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_any_integer_dtype(dtype, reduction, backend, device):
    """The same to the bit as with int64, an ignored index of that dtype's own range included."""
    wide = Case(reduction, targets="hard-class", smoothing=0.25, weighted=True).problem(device)
    assert_same(wide, wide._replace(t=wide.t.to(dtype)), backend)
    last = torch.iinfo(dtype).max
    if reduction == "mean" and last < 1 << 63:
        keywords = {**wide.keywords, "ignore_index": last}
        t = wide.t.where(wide.t != wide.keywords["ignore_index"], last)
        wide = wide._replace(t=t, keywords=keywords)
        assert_same(wide, wide._replace(t=t.to(dtype)), backend)


def assert_same(one, other, backend):
    first, second = fused(one, backend), fused(other, backend)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_uint8_156_is_not_minus_100(backend, device):
    case = Case("none", shapes=((2, 1), (2, 200)))
    problem = case.problem(device)._replace(t=torch.tensor([156, 3], device=device))
    narrow = problem._replace(t=problem.t.to(torch.uint8))
    assert fused(narrow, backend)["z"][0].any()
    assert_same(problem, narrow, backend)


EMPTY = [
    ((0, 2), (0, 3)), ((0,), (0, 3)), ((0, 2), (0, 3, 4)), ((2, 0), (2, 3)), ((2, 2), (2, 3, 0)),
]  # fmt: skip


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shapes", EMPTY, ids=str)
def test_empty(shapes, reduction, soft, backend, device):
    """NaN, 0 or nothing, as PyTorch says."""
    r_shape, z_shape = shapes
    r, z = torch.zeros(r_shape, device=device), torch.zeros(z_shape, device=device)
    positions = z_shape[:1] + z_shape[2:]
    t = torch.rand(z_shape) if soft else torch.zeros(positions, dtype=torch.int64)
    grad_output = torch.ones(z_shape[:1] if reduction == "none" else (), device=device)
    keywords = {"reduction": reduction}
    problem = Problem(r, z, torch.zeros_like(r), t.to(device), keywords, (0.5, 0.5), grad_output)
    assert_as_reference(problem, fused(problem, backend))


@pytest.mark.parametrize("targets", ["hard", "soft"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_class(reduction, targets, backend, device):
    """Its probability is 1: no loss, and no gradient, from any logit."""
    t = [0, 0, 0] if targets == "hard" else [[1.0], [1.0], [1.0]]
    problem = problem_of([[3.0], [-1e4], [0.0]], t, device, reduction=reduction, targets=targets)
    actual = fused(problem, backend)
    assert not actual["classification"].any()
    assert not actual["z"].any()
    assert_matches(problem, actual, fused(problem, "reference"))


@pytest.mark.parametrize("targets", ["hard-100", "soft"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "shapes", [((7, 2), (3, 5)), ((1,), (4, 5, 2)), ((2, 3), (5,)), ((), (2, 5))]
)
def test_heads_of_different_batches(shapes, reduction, targets, backend, device):
    problem = Case(reduction, targets=targets, shapes=shapes).problem(device)
    assert_matches(problem, fused(problem, backend), fused(problem, "reference"))


@pytest.mark.parametrize("index", [-1, 5, -101, 1 << 40, -(1 << 62)])
@pytest.mark.parametrize(
    ("reduction", "weighted", "smoothing"),
    [("mean", True, 0.25), ("sum", False, 0.0), ("none", True, 0.0), ("none", False, 0.25)],
)
def test_an_illegal_index(reduction, weighted, smoothing, index, backend, device):
    """Nothing is read out of bounds: that row is NaN, and the others are as they were."""
    clean = Case(reduction, weighted=weighted, smoothing=smoothing).problem(device)
    t = clean.t.clone()
    t[1] = index
    problem = clean._replace(t=t)
    if (backend, device) == ("eager", "cpu"):
        with fused_loss.backend(backend), pytest.raises(IndexError, match=f"index {index}, .* 5 "):
            combined_loss(problem.r, problem.z, problem.y, problem.t, **problem.keywords)
        return
    actual, before = fused(problem, backend), fused(clean, backend)
    others = [0, 2, 3]
    assert actual["z"][1].isnan().all()
    assert actual["z"][others].isfinite().all()
    assert torch.equal(actual["r"], before["r"])
    if reduction == "none":
        assert actual["loss"][1].isnan()
        assert torch.equal(actual["loss"][others], before["loss"][others])
    else:
        assert actual["loss"].isnan()
    if reduction != "mean":
        assert torch.equal(actual["z"][others], before["z"][others])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_an_index_above_int64_is_not_taken_for_a_negative_one(reduction, backend, device):
    """2⁶⁴-100 is no class, and not the ignored index -100 either."""
    problem = Case(reduction).problem(device)
    huge = torch.full_like(problem.t, -100).view(torch.uint64)
    with fused_loss.backend(backend):
        if device == "cpu" and backend != "triton":
            with pytest.raises(IndexError):
                combined_loss(problem.r, problem.z, problem.y, huge, **problem.keywords)
        else:
            loss = combined_loss(problem.r, problem.z, problem.y, huge, **problem.keywords)
            assert loss.isnan().all()


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"label_smoothing": 0.25},
        {"classification_normalizer": 1e-40},
        {"regression_normalizer": 1e-40},
        {"loss_weights": (1e39, 1e39)},
    ],
    ids=lambda keywords: next(iter(keywords), "plain"),
)
@pytest.mark.parametrize("targets", [[1, 1, 0], [[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]])
def test_beyond_float32_is_infinite(targets, keywords, backend, device):
    """A sum, a weight or a share that float32 cannot hold: no operator may refuse it."""
    z = torch.tensor([[3e38, -3e38], [3e38, -3e38], [0.0, 1.0]], device=device, requires_grad=True)
    r = torch.ones(3, 2, device=device, requires_grad=True)
    reduction = "mean" if any("normalizer" in name for name in keywords) else "sum"
    with fused_loss.backend(backend):
        loss = combined_loss(
            r,
            z,
            r.detach() + 1,
            torch.tensor(targets, device=device),
            reduction=reduction,
            **keywords,
        )
        loss.backward()
    assert loss.item() == INF
    assert r.grad.isfinite().all() == (
        "regression_normalizer" not in keywords and "loss_weights" not in keywords
    )
