import dataclasses

import numpy as np
import pytest
import torch

from fused_loss.spec import (
    Components,
    LossSpec,
    LossTensors,
    accumulation_dtype,
    class_axis,
    index_error,
)

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


def test_a_scalar_of_numpy_is_taken_as_pytorch_takes_it():
    spec = LossSpec(ignore_index=np.int64(3), label_smoothing=np.float32(0.5))
    assert type(spec.ignore_index) is int
    assert type(spec.label_smoothing) is float
    assert spec == LossSpec(ignore_index=3, label_smoothing=0.5)
    with pytest.raises(TypeError, match="ignore_index must be an int"):
        LossSpec(ignore_index=np.float32(3))


def test_a_spec_is_frozen_and_hashes_by_value():
    spec = LossSpec("sum", 3, 0.1, (1.0, 2.0))
    assert spec == LossSpec("sum", 3, 0.1, (1.0, 2.0))
    assert hash(spec) == hash(LossSpec("sum", 3, 0.1, (1.0, 2.0)))
    assert spec != LossSpec("sum", 3, 0.2, (1.0, 2.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.reduction = "mean"


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_only_none_is_per_sample(reduction: str):
    assert LossSpec(reduction).per_sample == (reduction == "none")


@pytest.mark.parametrize("smoothing", [0, 0.0, 0.3, 1.0, 1])
def test_a_legal_smoothing_is_kept(smoothing: float):
    assert LossSpec(label_smoothing=smoothing).label_smoothing == smoothing


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"reduction": "avg"}, ValueError, "reduction must be one of 'mean', 'sum', 'none'.*'avg'"),
        ({"reduction": None}, ValueError, "reduction must be one of .* got None"),
        ({"reduction": ["mean"]}, ValueError, "reduction must be one of"),
        ({"ignore_index": 1.0}, TypeError, "ignore_index must be an int, got 1.0"),
        ({"ignore_index": True}, TypeError, "ignore_index must be an int, got True"),
        ({"ignore_index": None}, TypeError, "ignore_index must be an int, got None"),
        ({"label_smoothing": "0.1"}, TypeError, "label_smoothing must be a float, got '0.1'"),
        ({"label_smoothing": torch.tensor(0.1)}, TypeError, "label_smoothing must be a float"),
        ({"label_smoothing": -0.1}, ValueError, r"label_smoothing must lie in \[0, 1\], got -0.1"),
        ({"label_smoothing": 1.1}, ValueError, r"label_smoothing must lie in \[0, 1\], got 1.1"),
        ({"nan_targets": "skip"}, ValueError, "nan_targets must be one of 'propagate', 'ignore'"),
        ({"nan_targets": None}, ValueError, "nan_targets must be one of .* got None"),
        ({"empty": "NaN"}, ValueError, "empty must be one of 'nan', 'zero', got 'NaN'"),
        ({"inplace_gradient": None}, TypeError, "inplace_gradient must be a bool, got None"),
        (
            {"reduction": "sum", "regression_normalizer": 2.0},
            ValueError,
            r"regression_normalizer replaces the denominator of reduction=\"mean\", got .*'sum'",
        ),
        (
            {"reduction": "none", "classification_normalizer": 0.0},
            ValueError,
            "classification_normalizer replaces the denominator .*'none': leave one of them out",
        ),
        ({"ignore_index": 1 << 63}, ValueError, f"ignore_index must fit 64 bits, got {1 << 63}"),
        ({"label_smoothing": float("nan")}, ValueError, "label_smoothing .* got nan"),
    ],
)
def test_a_scalar_without_a_meaning_is_refused(fields: dict, error: type, message: str):
    with pytest.raises(error, match=message) as caught:
        LossSpec(**fields)
    assert caught.type is error


@pytest.mark.parametrize(("empty", "value"), [("nan", "nan"), ("zero", "0.0")])
def test_what_the_mean_of_nothing_is(empty: str, value: str):
    assert repr(LossSpec(empty=empty).of_nothing) == value


@pytest.mark.parametrize(("nan_targets", "expected"), [("propagate", False), ("ignore", True)])
def test_only_ignore_ignores(nan_targets: str, expected: bool):
    assert LossSpec(nan_targets=nan_targets).ignores_nan is expected


def test_components_are_named_and_ordered():
    assert Components._fields == ("regression", "classification")


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (None, False),
        (torch.zeros(2, dtype=torch.uint8), False),
        (torch.zeros(2, dtype=torch.int64), False),
        (torch.zeros(2, 3), True),
        (torch.zeros(2, 3, dtype=torch.bfloat16), True),
    ],
)
def test_the_dtype_of_the_targets_decides(targets: torch.Tensor | None, expected: bool):
    assert LossTensors(None, None, None, targets).probabilities is expected


@pytest.mark.parametrize(
    ("logits", "mask", "spread"),
    [
        ((5,), (5,), (5,)),
        ((2, 5), (5,), (2, 5)),
        ((2, 5, 3), (5,), (2, 5, 3)),
        ((5, 5, 3), (1, 5, 1), (5, 5, 3)),
        ((2, 5, 3), (2, 1, 3), (2, 5, 3)),
        ((2, 1), (1,), (2, 1)),
    ],
)
def test_masks_and_weights_are_spread_without_a_copy(logits: tuple, mask: tuple, spread: tuple):
    r, z = torch.zeros(logits), torch.zeros(logits)
    given = torch.zeros(mask, dtype=torch.bool)
    weight = torch.zeros([1] * len(logits))
    tensors = LossTensors(
        *(r, z, r, z, None, None), given, weight, torch.zeros([1] * max(len(logits) - 1, 0))
    ).spread()
    assert tensors.class_mask.shape == spread
    assert tensors.class_mask.data_ptr() == given.data_ptr()
    assert tensors.regression_weight.shape == logits
    assert tensors.regression_weight.data_ptr() == weight.data_ptr()
    assert tensors.classification_weight.shape == class_axis(z)[1]
    plain = LossTensors(r, z, r, z)
    assert plain.spread() is plain


def test_a_mask_of_classes_lies_along_the_classes():
    """(C,) of logits (N, C, N), where it would fit the last dimension too."""
    mask = torch.tensor([True, False, True])
    z = torch.zeros(2, 3, 3)
    spread = LossTensors(z, z, z, z, class_mask=mask).spread().class_mask
    assert torch.equal(spread, mask[None, :, None].expand(2, 3, 3))


@pytest.mark.parametrize(
    ("r", "z", "expected"),
    [
        (F16, F16, F32),
        (BF16, F16, F32),
        (F32, BF16, F32),
        (F64, F16, F64),
        (BF16, F64, F64),
        (None, BF16, F32),
        (F64, None, F64),
        (None, None, F32),
    ],
)
def test_sums_are_at_least_float32(r, z, expected: torch.dtype):
    outputs = [None if dtype is None else torch.zeros(1, dtype=dtype) for dtype in (r, z)]
    assert accumulation_dtype(*outputs) == expected


@pytest.mark.parametrize(
    ("shape", "classes", "positions"),
    [((5,), 5, ()), ((2, 5), 5, (2,)), ((2, 5, 3), 5, (2, 3)), ((2, 5, 3, 4), 5, (2, 3, 4))],
)
def test_class_axis(shape: tuple, classes: int, positions: tuple):
    assert class_axis(torch.zeros(shape)) == (classes, positions)


@pytest.mark.parametrize(
    ("targets", "ignore_index", "named"),
    [
        (torch.tensor([0, 1, 2]), -100, None),
        (torch.tensor([0, -100, 2]), -100, None),
        (torch.tensor([0, 3, 2]), 3, None),
        (torch.tensor(2), -100, None),
        (torch.zeros(0, dtype=torch.int64), -100, None),
        (torch.tensor([0, 3, 7]), -100, 3),
        (torch.tensor([[0, -1], [5, 2]]), -100, -1),
        (torch.tensor([0, -100]), 1, -100),
        (torch.tensor(9), -100, 9),
        # 156 is -100 in eight bits: an index is widened before it is compared.
        (torch.tensor([156], dtype=torch.uint8), -100, 156),
        (torch.tensor([-100], dtype=torch.int8), -100, None),
        (torch.tensor([65436], dtype=torch.uint16), -100, 65436),
    ],
)
def test_the_first_illegal_index_is_named(targets: torch.Tensor, ignore_index: int, named):
    error = index_error(targets, 3, ignore_index)
    if named is None:
        assert error is None
    else:
        assert type(error) is IndexError
        assert f"class index {named}, outside [0, 3) for 3 classes" in str(error)
        assert f"ignore_index ({ignore_index})" in str(error)
