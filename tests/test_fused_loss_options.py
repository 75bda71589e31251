"""From a call's arguments to a spec and tensors; test_fused_loss_checks has what is refused."""

import inspect

import pytest
import torch
from _public import batch

from fused_loss import combined_loss
from fused_loss.options import DEFAULT_ALPHA, Options, arrange, split_normalizers, split_weights
from fused_loss.spec import LossSpec


def test_the_options_are_those_of_combined_loss():
    """Every keyword but what `task_losses` has no use for or names itself."""
    parameters = inspect.signature(combined_loss).parameters.values()
    keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert Options.__annotations__.keys() == keywords - {"loss_weights", "return_components"}


def test_an_option_that_is_left_out_has_the_default_of_combined_loss():
    spec, tensors = arrange(*batch())
    assert spec == LossSpec()
    assert tensors[4:] == (None,) * 7
    parameters = inspect.signature(combined_loss).parameters
    scalars = Options.__annotations__.keys() & vars(spec).keys()
    assert {name: getattr(spec, name) for name in scalars} == {
        name: parameters[name].default for name in scalars
    }


def test_scalars_travel_in_the_spec_and_tensors_as_tensors():
    r, z, y, t = batch(positions=(2,))
    given = {
        "class_weight": torch.ones(3),
        "class_mask": torch.ones(3, dtype=torch.bool),
        "regression_weight": torch.ones(4, 1),
        "classification_weight": torch.ones(4, 1),
        "regression_normalizer": 3,
        "classification_normalizer": torch.tensor(2),
        "ignore_index": 7,
        "label_smoothing": 0.25,
        "nan_targets": "ignore",
        "empty": "zero",
    }
    spec, tensors = arrange(r, z, y, t, torch.tensor(0.5), **given)
    assert spec == LossSpec("mean", 7, 0.25, None, False, "ignore", "zero", 3.0)
    for one, other in zip(tensors[:4], (r, z, y, t), strict=True):
        assert one is other
    assert tensors.weights == 0.5
    assert tensors.class_weight is given["class_weight"]
    assert tensors.class_mask.shape == z.shape
    assert tensors.regression_weight.shape == r.shape
    assert tensors.classification_weight.shape == (4, 2)
    assert (tensors.regression_normalizer, tensors.classification_normalizer) == (None, 2)


@pytest.mark.parametrize(
    ("alpha", "loss_weights", "expected"),
    [
        (DEFAULT_ALPHA, None, (0.5, 0.5)),
        (0.25, None, (0.25, 0.75)),
        (2, None, (2.0, -1.0)),
        (DEFAULT_ALPHA, (1, 3), (1.0, 3.0)),
        (DEFAULT_ALPHA, [0.5, 0.0], (0.5, 0.0)),
    ],
)
def test_two_floats(alpha, loss_weights, expected: tuple):
    tensor, pair = split_weights(alpha, loss_weights)
    assert tensor is None
    assert pair == expected
    assert [type(weight) for weight in pair] == [float, float]


@pytest.mark.parametrize("as_pair", [False, True])
def test_a_tensor_stays_one(as_pair: bool):
    weights = torch.ones(2 if as_pair else ())
    given = (DEFAULT_ALPHA, weights) if as_pair else (weights, None)
    tensor, pair = split_weights(*given)
    assert tensor is weights
    assert pair is None


def test_normalizers_are_numbers_or_tensors():
    tensor = torch.tensor(2.0)
    assert split_normalizers({}) == ([None, None], [None, None])
    assert split_normalizers({"regression_normalizer": 3}) == ([3.0, None], [None, None])
    both = {"regression_normalizer": tensor, "classification_normalizer": 0.5}
    numbers, tensors = split_normalizers(both)
    assert numbers == [None, 0.5]
    assert tensors[0] is tensor
    assert tensors[1] is None


def test_an_index_above_int64_stays_too_large():
    r, z, y, _ = batch()
    t = torch.tensor([0, 2, 2**63, 2**64 - 100], dtype=torch.uint64)
    _, tensors = arrange(r, z, y, t)
    last = torch.iinfo(torch.int64).max
    assert tensors.classification_targets.tolist() == [0, 2, last, last]


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 10**400},
        {"loss_weights": (1.0, 10**400)},
        {"regression_normalizer": 10**400},
        {"classification_normalizer": 10**400},
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_int_beyond_float64_is_named(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is too large"):
        combined_loss(*batch(), **options)
