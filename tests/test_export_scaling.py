import numpy as np
import pytest
import torch

from fused_loss.export.scaling import restored, scaling


@pytest.mark.parametrize(
    ("values", "sample", "shape"),
    [
        (2.0, (3, 4, 5), ()),
        ([2.0], (3,), ()),
        ([1.0, 2.0, 3.0], (3,), (3,)),
        ([1.0, 2.0, 3.0], (3, 4, 5), (3, 1, 1)),
        ([[1.0, 2.0]], (1, 2), (1, 2)),
        (torch.tensor([1.0, 2.0]), (2,), (2,)),
        (np.arange(1, 4), (3,), (3,)),
    ],
)
def test_a_number_one_along_axis_1_or_one_an_element(values, sample, shape):
    mean, std = scaling("it", {"mean": 0, "std": values}).tensors(sample, torch.float64)
    assert std.shape == shape
    assert mean.shape == ()
    assert (torch.zeros(7, *sample, dtype=torch.float64) / std).shape == (7, *sample)


def test_standard_rows_are_put_back_in_their_unit():
    given = scaling("it", {"mean": [1.0, 2.0], "std": [10.0, 100.0]})
    rows = torch.tensor([[0.0, 1.0]])
    index = torch.tensor([3])
    assert restored((rows, index), ("x", "i"), {"x": given})[0].tolist() == [[1.0, 102.0]]
    assert restored((rows, index), ("x", "i"), {"x": given})[1] is index


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"mean": 1}, ValueError, r"it must hold mean and std and nothing else, got \['mean'\]"),
        ({"mean": 1, "std": 1, "min": 0}, ValueError, "and nothing else"),
        (3, ValueError, "it must hold mean and std and nothing else, got 3"),
        ({"mean": "a", "std": 1}, TypeError, "it: mean must be a number or lists of numbers"),
        ({"mean": [[1], [2, 3]], "std": 1}, TypeError, "it: mean must be a number"),
        ({"mean": True, "std": 1}, TypeError, "it: mean must be a number"),
        ({"mean": [], "std": 1}, ValueError, "it: mean must hold finite numbers"),
        ({"mean": float("nan"), "std": 1}, ValueError, "it: mean must hold finite numbers"),
        ({"mean": 1, "std": [1, 0]}, ValueError, "it: std must be above 0 everywhere, the least"),
        ({"mean": [1, 2], "std": [1, 2, 3]}, ValueError, r"mean has shape \(2,\), std \(3,\)"),
    ],
)
def test_what_is_no_scaling_is_named(given, error, said):
    with pytest.raises(error, match=said):
        scaling("it", given)


def test_a_shape_that_does_not_fit_names_both():
    with pytest.raises(ValueError, match=r"shape \(2,\), a sample has shape \(3, 4\)"):
        scaling("it", {"mean": [1, 2], "std": 1}).tensors((3, 4), torch.float32)
