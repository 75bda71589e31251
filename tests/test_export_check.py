"""Faults written into a good file: each is refused, at export and later, and named."""

import hashlib

import numpy as np
import onnx
import pytest
import torch
from _export import contents, edited, initializer, mlp, mlp_bytes, mlp_proto, replace_values, rows
from onnx import TensorProto, helper

from fused_loss.export import OnnxVerificationError, export_onnx, verify_onnx
from fused_loss.export import draft as draft_file
from fused_loss.export import to_onnx as to_onnx_file


def flipped_weight(graph):
    """The sign of one weight of 64."""

    def flip(values):
        values[3, 1] *= -1
        return values

    replace_values(initializer(graph, (16, 4)), flip)


def rounded_weights(graph):
    """16 bits a weight, as a careless conversion leaves them."""
    replace_values(initializer(graph, (3, 16)), lambda w: w.astype(np.float16).astype(np.float32))


def altered_constant(graph):
    replace_values(initializer(graph, ()), lambda value: value + np.float32(1e-4))


def nan_weight(graph):
    replace_values(initializer(graph, (16,)), lambda bias: bias * np.float32(np.nan))


def crossed_outputs(graph):
    """The right names in the right order, on each other's values: the shapes are the same."""
    regression, classification = (output.name for output in graph.output)
    other = {regression: classification, classification: regression}
    for node in graph.node:
        for i, name in enumerate(node.output):
            node.output[i] = other.get(name, name)


def swapped_outputs(graph):
    outputs = [helper.make_tensor_value_info(o.name, 1, ["batch", 3]) for o in graph.output]
    graph.ClearField("output")
    graph.output.extend(reversed(outputs))


def bypassed_node(graph):
    """The ReLU is gone, and its reader reads what it read."""
    (relu,) = (node for node in graph.node if node.op_type == "Relu")
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = relu.input[0] if name == relu.output[0] else name
    graph.node.remove(relu)


def removed_node(graph):
    graph.node.remove(graph.node[1])


def unknown_node(graph):
    graph.node[1].domain = "some.where"
    graph.node[1].op_type = "Nothing"


def static_batch(graph):
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3


def missing_output(graph):
    del graph.output[1]


def renamed_input(graph):
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = "x" if name == "input" else name
    graph.input[0].name = "x"


def double_output(graph):
    graph.node[-1].output[0] = "narrow"
    graph.node.append(
        helper.make_node("Cast", ["narrow"], [graph.output[1].name], to=TensorProto.DOUBLE)
    )
    graph.output[1].type.tensor_type.elem_type = TensorProto.DOUBLE


def biased_batches(graph):
    """A product over the batch axis that no single row shows."""
    regression = graph.output[0].name
    (node,) = (node for node in graph.node if regression in node.output)
    node.output[0] = "rowwise"
    graph.node.extend(
        [
            helper.make_node("CumSum", ["rowwise", "axis"], ["sums"]),
            helper.make_node("Identity", ["sums"], [regression]),
        ]
    )
    graph.initializer.append(helper.make_tensor("axis", TensorProto.INT64, (), [0]))


FAULTS = [
    (flipped_weight, "trunk.0.weight in the file is not the model's: 1 of 64 values differ, by up"),
    (rounded_weights, "regression_head.weight in the file is not the model's: 48 of 48 values"),
    (altered_constant, "regression_output: max error"),
    (nan_weight, "NaN and 0 inf from onnxruntime where PyTorch gives 0 NaN and 0 inf"),
    (crossed_outputs, "each output holds the other's values: the heads are exchanged"),
    (swapped_outputs, r"'regression_output'\) \(swapped\), they must be \('regression_output', "),
    (bypassed_node, "regression_output: max error"),
    (removed_node, "not a valid ONNX model: "),
    (unknown_node, "not a valid ONNX model: |onnxruntime cannot load m.onnx"),
    (static_batch, r"input has the fixed shape \[3, 4\]: the batch axis must be symbolic"),
    (missing_output, r"the outputs are \('regression_output',\), they must be"),
    (renamed_input, r"the inputs are \('x',\), they must be \('input',\)"),
    (double_output, r"float64 \(1, 3\) from onnxruntime, float32 \(1, 3\) from PyTorch"),
    (biased_batches, "batch 2, 7, 64 fails and 1 passes: does forward depend on the batch size?"),
]


def lowest_bit(file):
    """Of one weight: no error that the rule of acceptance could see."""
    weight = mlp().classification_head.bias.detach().numpy().tobytes()
    assert file.count(weight) == 1
    return file.replace(weight, bytes([weight[0] ^ 1]) + weight[1:])


DAMAGE = {
    "zero bytes": (lambda file: b"", "not a valid ONNX model"),
    "truncated": (lambda file: file[: len(file) // 2], "not a valid ONNX model"),
    "a web page": (lambda file: b"<!doctype html>" + file, "not a valid ONNX model"),
    "lowest bit": (lowest_bit, "m.onnx is not what was exported: its sha256 is not the one"),
}


def refused_everywhere(file, said, tmp_path, monkeypatch):
    """By `export_onnx`, which leaves the folder as it was, and by `verify_onnx` on the file."""
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr(to_onnx_file, "traced", lambda *args: mlp_proto())
    monkeypatch.setattr(draft_file, "with_metadata", lambda *args: file)
    with pytest.raises(OnnxVerificationError, match=said) as at_export:
        export_onnx(mlp(), rows(), path)
    assert contents(tmp_path) == {"m.onnx": b"old"}
    path.write_bytes(file)
    with pytest.raises(OnnxVerificationError, match=said) as later:
        verify_onnx(path, mlp(), rows(), input_names=("input",))
    assert contents(tmp_path) == {"m.onnx": file}
    assert at_export.value.report == later.value.report
    assert later.value.report.sha256 == hashlib.sha256(file).hexdigest()
    assert not later.value.report.passed


@pytest.mark.parametrize(
    ("fault", "said"), FAULTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_fault_is_refused(fault, said, tmp_path, monkeypatch):
    refused_everywhere(edited(mlp_bytes(), fault), said, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(name, tmp_path, monkeypatch):
    damage, said = DAMAGE[name]
    refused_everywhere(damage(mlp_bytes()), said, tmp_path, monkeypatch)


def test_the_file_without_a_fault_passes_and_the_weights_of_another_seed_do_not(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(edited(mlp_bytes(), lambda graph: None))
    report = verify_onnx(path, mlp(), rows())
    assert report.passed
    with pytest.raises(OnnxVerificationError, match="is the file of other weights"):
        verify_onnx(path, mlp(seed=1), rows())


def test_every_head_size_and_level_is_compared_on_at_least_eight_rows(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(mlp_bytes())
    report = verify_onnx(path, mlp(), rows())
    heads = ("regression_output", "classification_output")
    levels = ("DISABLE_ALL", "ENABLE_ALL")
    compared = [(c.batch, c.level, c.output) for c in report.comparisons]
    assert compared == [(s, lv, h) for s in (0, 1, 2, 7, 64) for lv in levels for h in heads]
    assert {c.batch: c.rows for c in report.comparisons} == {0: 0, 1: 8, 2: 8, 7: 14, 64: 64}
    assert all(c.error <= c.allowed for c in report.comparisons if c.batch)
    eps = torch.finfo(torch.float32).eps
    for c in report.comparisons:
        if c.batch:
            assert c.allowed == max(16 * c.eager_error, 64 * eps * c.scale)
            assert (c.argmax_agreement == 1.0) is (c.output == heads[1])
    assert (report.opset, report.ir_version, report.source) == (20, 10, "example")
    assert report.versions["onnx"] == onnx.__version__


class Picky(torch.nn.Module):
    """Refuses an empty batch, or one of 7."""

    def __init__(self, size):
        super().__init__()
        self.model, self.size = mlp(), size

    def forward(self, x):
        if x.shape[0] == self.size:
            raise ValueError(f"not {self.size}\nrows")
        return self.model(x)


def test_what_the_model_refuses_is_held_against_it_unless_it_is_the_empty_batch(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(mlp_bytes())
    report = verify_onnx(path, Picky(0), rows())
    assert {c.problem for c in report.comparisons if not c.batch} == {
        "the model itself fails: not 0"
    }
    with pytest.raises(OnnxVerificationError, match="the model itself fails: not 7") as caught:
        verify_onnx(path, Picky(7), rows())
    assert {c.batch for c in caught.value.report.failures} == {7}
