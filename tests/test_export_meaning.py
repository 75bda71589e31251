import json

import pytest

from fused_loss.export.errors import OnnxLoadError
from fused_loss.export.meaning import Meaning, entries, read_meaning

DEFAULT = ("regression_output", "classification_output")


def meaning(outputs=("a", "b", "c"), **about):
    metadata = {f"fused_loss.{key}": json.dumps(value) for key, value in about.items()}
    return read_meaning(metadata | {"other": "{"}, outputs, "m.onnx")


def test_without_roles_two_outputs_are_the_heads_in_their_order():
    assert meaning(("a", "b")) == Meaning("a", "b")
    assert meaning(DEFAULT).heads == DEFAULT
    assert meaning(DEFAULT[::-1]).heads == DEFAULT


def test_roles_say_which_output_is_which():
    roles = {"regression": "c", "classification": "a", "label": "b"}
    assert meaning(roles=roles) == Meaning("c", "a", "b")
    assert meaning(roles={"regression": "c", "probabilities": "b"}).heads == ("c", "b")
    both = {"regression": "c", "probabilities": "b", "classification": "a"}
    assert meaning(roles=both).heads == ("c", "a")


def test_class_names_and_units():
    found = meaning(("a", "b"), class_names=["x", "y"], unit="g")
    assert (found.class_names, found.units) == (("x", "y"), ("g",))
    assert meaning(("a", "b"), unit=["g", "mm"]).units == ("g", "mm")


@pytest.mark.parametrize(
    ("outputs", "about"),
    [
        (("a",), {}),
        (("a", "b", "c"), {}),
        (("a", "b"), {"roles": {"regression": "a"}}),
        (("a", "b"), {"roles": {"loss": "b"}}),
        (("a", "b"), {"roles": {"regression": "a", "classification": "c"}}),
        (("a", "b"), {"roles": {"regression": "a", "classification": "b", "label": "c"}}),
    ],
)
def test_two_heads_are_needed(outputs, about):
    with pytest.raises(OnnxLoadError, match=r"m.onnx has outputs .*: regression and classific"):
        meaning(outputs, **about)


@pytest.mark.parametrize(
    "about",
    [
        {"roles": ["a", "b"]},
        {"roles": {"regression": 1, "classification": "b"}},
        {"roles": "a"},
        {"class_names": {"a": "b"}},
        {"class_names": [1, 2]},
        {"class_names": "ab"},
        {"unit": 3},
        {"unit": [None]},
    ],
)
def test_what_an_export_does_not_write_is_refused(about):
    with pytest.raises(OnnxLoadError, match=r"says fused_loss\..* which is not understood"):
        meaning(("a", "b"), **about)


def test_entries_are_json_where_they_are():
    metadata = {"fused_loss.unit": '"g"', "fused_loss.sha256": "0e1f", "other": "1"}
    assert entries(metadata) == {"unit": "g", "sha256": "0e1f"}
    with pytest.raises(OnnxLoadError, match=r"unit = '\{', which"):
        read_meaning({"fused_loss.unit": "{"}, ("a", "b"), "m.onnx")


def test_json_that_is_too_deep_is_damage():
    deep = {"fused_loss.unit": "[" * 100_000}
    assert entries(deep) == {"unit": deep["fused_loss.unit"]}
    with pytest.raises(OnnxLoadError, match="not understood"):
        read_meaning(deep, ("a", "b"), "m.onnx")
