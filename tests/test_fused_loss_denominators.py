import dataclasses
import math
from typing import Any

import pytest
import torch
from _cases import PLACES
from torch import Tensor

import fused_loss
from fused_loss import Denominators, combined_loss, loss_denominators

NAN = math.nan
F64 = torch.float64
COUNTED = ("class_weight", "regression_weight", "classification_weight", "ignore_index")
COUNTED += ("nan_targets",)


def of(*numbers: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(numbers, dtype=dtype)


# regression targets, classification targets, options, and the two denominators by hand
BY_HAND: dict[str, tuple[Tensor, Tensor, dict[str, Any], float, float]] = {
    "counts": (torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), {}, 12, 4),
    "one sample": (torch.zeros(()), torch.tensor(2), {}, 1, 1),
    "no sample": (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), {}, 0, 0),
    "NaN propagates": (of(1, NAN, 3), torch.tensor([0, 0]), {}, 3, 2),
    "missing": (of(1, NAN, 3), torch.tensor([0, -100]), {"nan_targets": "ignore"}, 2, 1),
    "all missing": (of(NAN), torch.tensor([-100]), {"nan_targets": "ignore"}, 0, 0),
    "ignore_index": (torch.zeros(1), torch.tensor([1, 2, 1]), {"ignore_index": 1}, 1, 1),
    "positions": (torch.zeros(2, 1), torch.tensor([[0, -100, 1], [1, 1, 1]]), {}, 2, 5),
    "weights": (
        of(1, NAN, 3),
        torch.tensor([0, -100, 2]),
        {
            "nan_targets": "ignore",
            "regression_weight": of(0.5, 8, 0.25),
            "class_weight": of(2, 1, 0.5),
            "classification_weight": of(0.5, 16, 4),
        },
        0.75,  # 0.5 + 0.25
        3.0,  # 2 · 0.5 + 0.5 · 4
    ),
    "weights of NaN where nothing is": (
        of(1, NAN),
        torch.tensor([0, -100]),
        {
            "nan_targets": "ignore",
            "regression_weight": of(0.5, NAN),
            "classification_weight": of(2, NAN),
        },
        0.5,
        2.0,
    ),
    "weights that spread": (
        torch.zeros(2, 3),
        torch.tensor([[0, 1], [1, -100]]),
        {"regression_weight": of(0.5, 2)[:, None], "classification_weight": of(0.5, 4)[:, None]},
        7.5,  # 3 · (0.5 + 2)
        5.0,  # 2 · 0.5 + 4
    ),
    "probabilities": (
        torch.zeros(1),
        torch.full((3, 5), 0.2),
        {"class_weight": of(1, 2, 3, 4, 5)},
        1,
        3,
    ),
    "probabilities of one": (torch.zeros(2), torch.full((5,), 0.2), {}, 2, 1),
    "weighted probabilities": (
        torch.zeros(1),
        torch.full((2, 5, 3), 0.2),
        {"classification_weight": of(0.5, 2)[:, None]},
        1,
        7.5,
    ),
    "bytes": (torch.zeros(1), torch.tensor([156, 0], dtype=torch.uint8), {}, 1, 2),
    "bytes weighted": (
        torch.zeros(1),
        torch.tensor([1, 0, 1], dtype=torch.uint8),
        {"class_weight": of(0.5, 4)},
        1,
        8.5,
    ),
    "not -100": (torch.zeros(1), torch.tensor([2**64 - 100], dtype=torch.uint64), {}, 1, 1),
    "integers": (torch.tensor([3, 4]), torch.tensor([0]), {"nan_targets": "ignore"}, 2, 1),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_by_hand(case: str):
    y, t, options, regression, classification = BY_HAND[case]
    found = loss_denominators(y, t, **options)
    for value, expected in ((found.regression, regression), (found.classification, classification)):
        assert (value.shape, value.dtype) == ((), torch.float32)
        assert value.item() == expected


@pytest.mark.parametrize("place", ["targets", "probabilities", "weight"])
def test_float64_where_an_argument_is(place: str):
    y = torch.zeros(2, dtype=F64 if place == "targets" else torch.bfloat16)
    t = torch.ones(2, 3, dtype=F64 if place == "probabilities" else torch.float32)
    weight = of(0.1, 0.1, dtype=F64 if place == "weight" else torch.float32)
    found = loss_denominators(y, t, classification_weight=weight)
    assert found.regression.dtype == found.classification.dtype == F64


# --- a batch in parts -----------------------------------------------------------------------------

PARTS = (3, 1, 4, 2, 2)  # uneven; the second is without a class label, the third without a target
N = sum(PARTS)


def whole(kind: str, device: str = "cpu") -> tuple[list[Tensor], dict[str, Tensor], dict[str, Any]]:
    """float64 `[r, z, y, t]`; what is split with it; what is not."""
    random = torch.Generator().manual_seed(len(kind))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=F64)

    positions = (3,) if kind == "positions" else ()
    r, y, z = normal(N, 2), normal(N, 2), normal(N, 5, *positions)
    y[4:8] = NAN
    y[0, 1] = y[10, 0] = NAN
    t = torch.randint(5, (N, *positions), generator=random)
    t[3] = t[9] = t[11] = -100
    split: dict[str, Tensor] = {}
    if kind in ("soft", "mask"):
        t = normal(*z.shape).softmax(1)
    if kind == "mask":
        split["class_mask"] = torch.rand(z.shape, generator=random) < 0.7
        split["class_mask"][:, 0] = True
        t = (t * split["class_mask"]) / (t * split["class_mask"]).sum(1, keepdim=True)
    if kind in ("weights", "positions"):
        split["regression_weight"] = torch.rand(N, 1, generator=random, dtype=F64)
        split["classification_weight"] = torch.rand(N, *positions, generator=random, dtype=F64)
    fixed: dict[str, Any] = {"nan_targets": "ignore"}
    if kind in ("weights", "soft"):
        fixed["class_weight"] = of(2.0, 0.5, 1.5, 0.25, 3.0, dtype=F64).to(device)
    split = {name: tensor.to(device) for name, tensor in split.items()}
    return [tensor.to(device) for tensor in (r, z, y, t)], split, fixed


def counted(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in COUNTED}


KINDS = ("plain", "weights", "positions", "soft", "mask")


@pytest.mark.parametrize(("backend", "device"), [*PLACES, ("reference", "cpu")])
@pytest.mark.parametrize("kind", KINDS)
def test_uneven_micro_batches_equal_the_batch(kind: str, backend: str, device: str):
    tensors, split, fixed = whole(kind, device)
    parts = list(zip(*(tensor.split(PARTS) for tensor in tensors), strict=True))
    given = [
        {name: tensor.split(PARTS)[k] for name, tensor in split.items()} for k in range(len(PARTS))
    ]
    total = Denominators.total(
        loss_denominators(y, t, **counted(options | fixed))
        for (_, _, y, t), options in zip(parts, given, strict=True)
    )
    found = [torch.zeros(3, dtype=F64, device=device)]
    r_grads, z_grads = [], []
    with fused_loss.backend(backend):
        for part, options in zip(parts, given, strict=True):
            value, r_grad, z_grad = results(part, **options, **fixed, **total.normalizers())
            found[0] = found[0] + value
            r_grads.append(r_grad)
            z_grads.append(z_grad)
        expected = results(tensors, **split, **fixed)
    found += [torch.cat(r_grads), torch.cat(z_grads)]
    for ours, truth in zip(found, expected, strict=True):
        assert truth.isfinite().all()
        assert truth.abs().max() > 0
        assert ((ours - truth).abs() <= rounding(tensors, truth)).all()


def rounding(tensors: list[Tensor], truth: Tensor) -> Tensor:
    """What another order of the sums may change: numel terms of one sign at most."""
    return tensors[1].numel() * torch.finfo(F64).eps * truth.abs().max()


def results(tensors: Any, **options: Any) -> list[Tensor]:
    """The loss beside its components (3,), and both gradients."""
    r, z, y, t = tensors
    r, z = r.detach().requires_grad_(), z.detach().requires_grad_()
    loss, components = combined_loss(r, z, y, t, 0.25, return_components=True, **options)
    gradients = torch.autograd.grad(loss, (r, z))
    return [torch.stack((loss.detach(), *components)), *gradients]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mean_of_means_is_something_else(kind: str):
    tensors, split, fixed = whole(kind)
    with fused_loss.backend("reference"):
        expected, *_ = results(tensors, **split, **fixed)
        values = []
        for k, part in enumerate(zip(*(tensor.split(PARTS) for tensor in tensors), strict=True)):
            options = {name: tensor.split(PARTS)[k] for name, tensor in split.items()}
            values.append(results(part, **options, **fixed, empty="zero")[0])
    found = torch.stack(values).mean(0)
    assert ((found - expected).abs() > rounding(tensors, expected)).all()


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_a_batch_without_a_label_is_as_empty_says(empty: str, backend: str):
    r, z = torch.ones(2, 1), torch.ones(2, 3)
    y, t = torch.full((2, 1), NAN), torch.tensor([-100, 1])
    parts = [loss_denominators(y[:1], t[:1], nan_targets="ignore") for _ in range(2)]
    parts.append(loss_denominators(y[1:], t[1:], nan_targets="ignore"))
    normalizers = Denominators.total(parts).normalizers(empty)
    assert normalizers["classification_normalizer"] == 1
    with fused_loss.backend(backend):
        options = {"nan_targets": "ignore", "empty": empty}
        expected = results((r, z, y, t), **options)
        found = results((r, z, y, t), **options, **normalizers)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert expected[0][:2].isnan().all() == (empty == "nan")


# --- the object, and what it refuses --------------------------------------------------------------


def test_totals_are_kept_apart_from_their_parts():
    one = Denominators(torch.tensor(2.0), torch.tensor(3.0))
    total = Denominators.total(iter([one, one]))
    assert (total.regression.item(), total.classification.item()) == (4, 6)
    assert (one.regression.item(), one.classification.item()) == (2, 3)
    assert (total.normalizers()["regression_normalizer"]).item() == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.regression = torch.tensor(0.0)
    with pytest.raises(TypeError):
        one + one


def test_nothing_is_read_back():
    y, t = torch.empty(4, 2, device="meta"), torch.empty(4, dtype=torch.long, device="meta")
    weight = torch.empty(3, device="meta")
    found = loss_denominators(y, t, class_weight=weight, nan_targets="ignore")
    total = Denominators.total([found, found]).normalizers("zero")
    assert {value.device.type for value in total.values()} == {"meta"}


def test_it_compiles_as_one_graph():
    y, t, options, regression, classification = BY_HAND["weights"]
    compiled = torch.compile(loss_denominators, fullgraph=True, backend="eager")
    found = compiled(y, t, **options)
    assert (found.regression.item(), found.classification.item()) == (regression, classification)


Y, T = torch.zeros(4, 2), torch.tensor([0, 1, 2, -100])
BAD: dict[str, tuple[tuple[Any, Any], dict[str, Any], type[Exception], str]] = {
    "no tensor": (([1.0], T), {}, TypeError, "regression_targets must be a tensor, got list"),
    "no labels": ((Y, None), {}, TypeError, "classification_targets must be a tensor"),
    "bools": ((Y, T > 0), {}, TypeError, r"classification_targets .* torch.bool: convert"),
    "devices": (
        (Y, T.to("meta")), {}, ValueError,
        "classification_targets is on meta and regression_targets on cpu: move all",
    ),
    "0-d probability": ((Y, torch.tensor(1.0)), {}, ValueError, "dimension of classes.*long"),
    "ignored probability": (
        (Y, torch.ones(4, 3)), {"ignore_index": 0}, ValueError, "ignore_index=0 goes with class",
    ),
    "class_weight": (
        (Y, T), {"class_weight": torch.ones(3, 1)}, ValueError,
        r"class_weight must have shape \(3,\)",
    ),
    "class_weight, soft": (
        (Y, torch.ones(4, 3)), {"class_weight": torch.ones(4)}, ValueError, r"shape \(3,\)",
    ),
    "integer weight": (
        (Y, T), {"class_weight": torch.ones(3).int()}, TypeError, "class_weight must be floating",
    ),
    "too few weights": (
        (Y, T), {"classification_weight": torch.ones(3)}, ValueError,
        r"classification_weight has shape \(3,\), which does not spread over the positions \(4,\)",
    ),
    "weights a sample": (
        (Y, T), {"regression_weight": torch.ones(4)}, ValueError,
        r"over regression_targets \(4, 2\): .* give regression_weight.view\(-1, 1\)",
    ),
    "gradient": (
        (Y, T), {"regression_weight": torch.ones(4, 1, requires_grad=True)}, ValueError,
        "regression_weight takes no gradient: pass regression_weight.detach",
    ),
    "nan_targets": ((Y, T), {"nan_targets": "drop"}, ValueError, "nan_targets must be one of"),
    "ignore_index": ((Y, T), {"ignore_index": 0.5}, TypeError, "ignore_index must be an int"),
    "class index": (
        (Y, T), {"class_weight": torch.ones(2)}, IndexError,
        r"the class index 2, outside \[0, 2\)",
    ),
    "negative class index": (
        (Y, T - 1), {"class_weight": torch.ones(3), "ignore_index": -101}, IndexError,
        "the class index -1,",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str):
    targets, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        loss_denominators(*targets, **options)


def test_bad_totals_are_named():
    with pytest.raises(ValueError, match="parts is empty: give the denominators of at least one"):
        Denominators.total([])
    with pytest.raises(TypeError, match=r"got tuple: give one loss_denominators\(...\) a micro"):
        Denominators.total([(torch.ones(()), torch.ones(()))])
    with pytest.raises(ValueError, match="empty must be one of 'nan', 'zero', got 'one'"):
        Denominators(torch.ones(()), torch.ones(())).normalizers("one")
    with pytest.raises(RuntimeError, match=r"no process group: call .*init_process_group first"):
        Denominators(torch.ones(()), torch.ones(())).across()
