import json

import pytest

from fused_loss.export.options import options, recorded_options
from fused_loss.export.seal import PREFIX

STATS = {"mean": [1.0, 2.0], "std": 3}


def test_nothing_asked_for_is_nothing_recorded():
    assert dict(options(("x",)).entries()) == {}


def test_what_is_recorded_gives_the_same_options():
    asked = options(
        ("x", "y"),
        dtype="fp16",
        normalize={"x": STATS},
        denormalize={**STATS, "unit": "g"},
        softmax=True,
        label=True,
        class_names=["a", "b"],
    )
    entries = dict(asked.entries())
    record = {key: json.loads(value) for key, value in entries.items()}
    assert record["normalize"] == {"x": {"mean": [1.0, 2.0], "std": 3.0}}
    assert record["unit"] == "g"
    again = recorded_options(record, ("x", "y"), {"dtype": None, "softmax": False})
    assert dict(again.entries()) == {k: v for k, v in entries.items() if k != "softmax"}
    assert PREFIX == "fused_loss."


def test_one_input_needs_no_name():
    assert list(options(("x",), normalize=STATS).normalize) == ["x"]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"dtype": "bf16"}, ValueError, "dtype must be one of fp32, fp16, got 'bf16'"),
        ({"quantize": "int4"}, ValueError, "quantize must be one of dynamic, static"),
        ({"quantize": "dynamic", "dtype": "fp16"}, ValueError, "quantize goes with fp32 alone"),
        ({"softmax": 1}, TypeError, "softmax must be True or False, got 1"),
        ({"label": "yes"}, TypeError, "label must be True or False"),
        ({"normalize": [1]}, TypeError, "normalize must be a mapping with mean and std"),
        ({"normalize": STATS}, ValueError, "normalize must name an input"),
        ({"normalize": {"z": STATS}}, ValueError, r"it holds \['z'\], the inputs are \['x', 'y'\]"),
        ({"normalize": {}}, ValueError, "normalize must hold mean and std"),
        ({"normalize": {"x": {"mean": 1}}}, ValueError, "normalize of x must hold mean and std"),
        ({"denormalize": 3}, TypeError, "denormalize must be a mapping"),
        ({"denormalize": {**STATS, "unit": "g"}, "unit": "kg"}, ValueError, "give only one"),
        ({"unit": " "}, TypeError, "unit must be a text"),
        ({"class_names": "ab"}, TypeError, "class_names must be a list of texts"),
        ({"class_names": [1]}, TypeError, "class_names must be a list of texts"),
        ({"class_names": ["a", "a"]}, ValueError, "class_names must differ"),
    ],
)
def test_what_cannot_be_meant_is_named(given, error, said):
    with pytest.raises(error, match=said):
        options(("x", "y"), **given)
