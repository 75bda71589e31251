import hashlib
import json
import sys

import numpy as np
import onnx
import pytest
from _deployed import ABOUT, SPECIES, described, labelled_bytes
from _export import mlp_bytes
from onnx import TensorProto, helper, numpy_helper

from fused_loss.export import MissingDependencyError, OnnxLoadError, inspect_onnx
from fused_loss.export.inspection import Value
from fused_loss.export.seal import sealed


@pytest.fixture
def inspect(tmp_path):
    def look(file):
        (tmp_path / "m.onnx").write_bytes(file)
        return inspect_onnx(tmp_path / "m.onnx")

    return look


def test_everything_that_an_export_has_written(inspect):
    file = labelled_bytes()
    found = inspect(file)
    assert (found.file, found.size) == ("m.onnx", len(file))
    assert found.sha256 == hashlib.sha256(file).hexdigest()
    assert (found.is_sealed, found.problem) == (True, "")
    recorded = {e.key: e.value for e in onnx.load_from_string(file).metadata_props}
    assert found.weights_sha256 == recorded["fused_loss.weights_sha256"]
    assert found.about == json.loads(json.dumps(ABOUT))
    assert (found.opset, found.ir_version) == ({"": 20}, 10)
    assert found.inputs == (Value("input", "float32", ("batch", 4)),)
    assert found.outputs == (
        Value("label", "int64", ("batch",), "label"),
        Value("regression_output", "float32", ("batch", 3), "regression", "g"),
        Value("classification_output", "float32", ("batch", 3), "classification"),
    )
    assert found.operators["Gemm"] == 3
    assert found.operators["ArgMax"] == 1
    proto = onnx.load_from_string(file)
    assert found.weights >= sum(numpy_helper.to_array(t).size for t in proto.graph.initializer)
    assert json.loads(json.dumps(found.to_dict()))["about"]["class_names"] == list(SPECIES)


def test_the_text_says_it_in_80_columns(inspect):
    text = str(inspect(labelled_bytes()))
    assert max(map(len, text.splitlines())) <= 80
    for line in (
        "sealed: it is what was written",
        "opset 20, IR 10, by pytorch",
        "  input float32 [batch, 4]",
        "  regression_output float32 [batch, 3]: regression, in g",
        "  regression_output: error 1e-07 of 2e-06 allowed",
        "class_names: Adelie, Chinstrap, Gentoo",
        "versions: torch 2.13.0, onnx 1.23.2",
        "normalize: input (mean [0, 0, 0, 0], std [1, 1, 1, 1])",
    ):
        assert f"\n{line}" in text


def test_long_lists_are_cut_and_names_cannot_steer_a_terminal(inspect):
    names = [f"class-{i}" for i in range(1000)]
    text = str(inspect(labelled_bytes(class_names=names, unit="g\x1b[2J\n", note=[1.5] * 99)))
    assert "class-7, and 992 more" in text
    assert r": regression, in g\x1b[2J\n" in text
    assert "\x1b" not in text
    text = str(inspect(described({"normalize": {"x": {"mean": [[0.25] * 9] * 9}}})))
    assert "normalize: x (mean [[0.25, ... 9 in all], ... 9 in all])" in text


def test_a_file_that_has_changed_is_shown_and_said(inspect):
    file = labelled_bytes()
    at = file.index(b"regression_output")
    found = inspect(file[:at] + b"R" + file[at + 1 :])
    assert not found.is_sealed
    assert found.problem == "its sha256 is not the one that it records"
    assert "\nCHANGED since it was exported: its sha256 is not" in str(found)


def test_a_file_of_another_exporter(inspect):
    proto = onnx.load_from_string(mlp_bytes())
    for field in ("metadata_props", "producer_name", "producer_version"):
        proto.ClearField(field)
    proto.opset_import.append(helper.make_opsetid("com.other", 1))
    proto.graph.input.append(helper.make_tensor_value_info("odd", 0, None))
    branch = helper.make_graph([helper.make_node("Inner", [], ["y"], domain="com.other")], "b", [],
                               [])  # fmt: skip
    proto.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=branch))
    found = inspect(proto.SerializeToString())
    assert (found.is_sealed, found.problem, found.about) == (False, "", {})
    assert found.operators["com.other.Inner"] == 1
    assert found.inputs[1] == Value("odd", "?", ())
    for line in ("not sealed: no digest in it", "opset 20, com.other 1, IR 10, by an unnamed exp"):
        assert line in str(found)


def test_weights_beside_the_file_are_listed(inspect, tmp_path):
    (tmp_path / "w.data").write_bytes(np.ones(2, "f").tobytes())
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=1)
    weight.external_data.add(key="location", value="w.data")
    graph = helper.make_graph([], "g", [], [], [weight])
    found = inspect(sealed(helper.make_model(graph).SerializeToString(), tmp_path))
    assert (found.external, found.weights, found.is_sealed) == ({"w.data": 8}, 2, True)
    assert "\n  in w.data: 8 bytes\n" in str(found)


def test_what_is_no_model_is_an_error(inspect, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        inspect_onnx(tmp_path / "no.onnx")
    with pytest.raises(OnnxLoadError, match=r"m.onnx is not a valid ONNX model: it is empty"):
        inspect(b"")
    nameless = b"\x08\x0a\x3a\x02\x12\x7f"  # a graph whose name is cut short, seen by onnx alone
    with pytest.raises(OnnxLoadError, match=r"m.onnx is not a valid ONNX model: "):
        inspect(nameless)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"fused-loss\[export\]"):
        inspect(mlp_bytes())
