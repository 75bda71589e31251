"""The fault matrix: every fault is refused for its own reason, and every honest model passes."""

from functools import cache

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from _export import contents, mlp, replace_values, rows, traced_bytes
from _zoo import ZOO
from onnx import TensorProto, helper
from torch import nn

from fused_loss import DualHead
from fused_loss.export import OnnxExportError, OnnxVerificationError, export_onnx, verify_onnx

BATCHES = (0, 1, 2, 3, 7, 64, 4096)
QUICK = ("mlp", "cnn", "transformer", "12 layers, 1e6", "mask added")
OTHERS = {"Relu": "Tanh", "Gelu": "Relu", "Erf": "Tanh"}

models = pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in ZOO if n not in QUICK)]
)


@cache
def honest(name: str) -> bytes:
    make, example = ZOO[name]
    return traced_bytes(make(0), example)


def held(tmp_path, name, edit=lambda graph: None, batches=(0, 1, 2, 7, 64)):
    """The file of a model of the zoo, edited, held to the model."""
    make, example = ZOO[name]
    proto = onnx.load_from_string(honest(name))
    edit(proto.graph)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return verify_onnx(path, make(0), example, batches=batches)


@models
def test_an_honest_file_passes_at_every_batch_size(tmp_path, name):
    report = held(tmp_path, name, batches=BATCHES)
    assert report.passed
    assert {c.batch for c in report.comparisons} == set(BATCHES)


def matrices(graph):
    """Its weights of two dimensions and more, the largest last."""
    floats = (t for t in graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) > 1)
    return sorted(floats, key=lambda tensor: np.prod(tensor.dims))


def activation_swapped(graph):
    node = next(node for node in graph.node if node.op_type in OTHERS)
    node.op_type = OTHERS[node.op_type]
    node.ClearField("attribute")


def altered(graph):
    """One value of the largest weight, by 2e-4."""

    def change(values):
        values.reshape(-1)[values.size // 2] += 2e-4
        return values

    replace_values(matrices(graph)[-1], change)


def nan_weight(graph):
    def change(values):
        values.reshape(-1)[0] = np.nan
        return values

    replace_values(matrices(graph)[-1], change)


def permuted_bias(graph):
    bias = next(t for t in graph.initializer if t.name.endswith("classification_head.bias"))
    replace_values(bias, lambda values: np.roll(values, 1))


def reversed_outputs(graph):
    outputs = [onnx.ValueInfoProto.FromString(o.SerializeToString()) for o in graph.output]
    graph.ClearField("output")
    graph.output.extend(reversed(outputs))


def random_dropout(graph):
    """Dropout as in training, before the regression."""
    name = graph.output[0].name
    (node,) = (node for node in graph.node if name in node.output)
    node.output[0] = "kept"
    graph.initializer.append(helper.make_tensor("ratio", TensorProto.FLOAT, (), [0.5]))
    graph.initializer.append(helper.make_tensor("training", TensorProto.BOOL, (), [True]))
    graph.node.append(helper.make_node("Dropout", ["kept", "ratio", "training"], [name], seed=1))


FAULTS = {
    activation_swapped: "both outputs differ at every batch size",
    altered: r"in the file,? is not the model's: \d+ of \d+ values differ, by up to 2.0e-04",
    nan_weight: r"NaN",
    permuted_bias: "classification_head.bias in the file holds the model's values in another order",
    reversed_outputs: r"the outputs are .* \(swapped\), they must be",
    random_dropout: "regression_output: max error",
}


@models
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_in_the_file_is_refused_by_name(tmp_path, name, fault):
    with pytest.raises(OnnxVerificationError, match=FAULTS[fault]):
        held(tmp_path, name, fault)


def test_heads_of_equal_widths_that_are_exchanged_are_named(tmp_path):
    def cross(graph):
        names = [output.name for output in graph.output]
        for node in graph.node:
            for i, name in enumerate(node.output):
                node.output[i] = names[1 - names.index(name)] if name in names else name

    with pytest.raises(OnnxVerificationError, match="holds the other's values: the heads are exch"):
        held(tmp_path, "mlp", cross)


class Around(nn.Module):
    """`mlp()` with `change(x, model)` for a forward."""

    def __init__(self, change, model=None):
        super().__init__()
        self.model, self.change = model or mlp(), change
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("variance", torch.ones(4))

    def forward(self, x):
        return self.change(self, x)


def branch(self, x):
    regression, classification = self.model(x)
    return (regression if x.shape[0] > 2 else 2 * regression), classification


def compiling(self, x):
    return self.model(2 * x if torch.compiler.is_compiling() else x)


def exporting(self, x):
    return self.model(2 * x if torch.compiler.is_exporting() else x)


def static(self, x):
    regression, classification = self.model(x)
    return regression.reshape(3, 3), classification


def dropout(self, x):
    return self.model(F.dropout(x, 0.5))


def batch_norm(self, x):
    return self.model(F.batch_norm(x, self.mean, self.variance, training=True))


def autocast(self, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.model(x)


def autocast_within(self, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        regression, classification = self.model(x)
    return regression.float(), classification.float()


class KeepsDropping(nn.Dropout):
    """As those who sample with it do."""

    def train(self, mode=True):
        return super().train(True)


MODELS = {
    "batch-dependent branch": (branch, OnnxVerificationError, "batch 1, 2 fails and 7, 64 passes"),
    "is_compiling() branch": (compiling, OnnxVerificationError, r"ask torch.compiler.is_compiling"),
    "is_exporting() branch": (exporting, OnnxVerificationError, r"ask torch.compiler.is_compiling"),
    "static batch": (static, OnnxExportError, "forward reshape to a number of rows"),
    "train-mode dropout": (dropout, OnnxExportError, "two runs differ: does forward draw random"),
    "train-mode batch norm": (
        batch_norm,
        OnnxExportError,
        "writes into mean, variance, .*training",
    ),
    "autocast": (autocast, OnnxExportError, "output is bfloat16, .* is autocast on in forward"),
    "autocast within": (autocast_within, OnnxExportError, "computes in bfloat16, .*is autocast on"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_fault_in_the_model_is_refused_by_name(tmp_path, name):
    change, error, said = MODELS[name]
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    with pytest.raises(error, match=said):
        export_onnx(Around(change), rows(3), path)
    assert contents(tmp_path) == {"m.onnx": b"old"}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: mlp().bfloat16(), "is bfloat16, which onnxruntime cannot compute on a CPU"),
        (lambda: mlp(activation=KeepsDropping()), r"trunk.1 \(KeepsDropping\) stays in training"),
    ],
    ids=["bfloat16", "a module that stays in training"],
)
def test_a_model_that_no_file_can_be_is_refused_by_name(tmp_path, model, said):
    with pytest.raises(OnnxExportError, match=said):
        export_onnx(model(), rows(), tmp_path / "m.onnx")
    assert contents(tmp_path) == {}


def normalised_first():
    """A batch norm that no layer can take in."""
    trunk = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.ReLU())
    return DualHead(trunk, nn.Linear(8, 1), nn.Linear(8, 3))


def test_a_batch_norm_in_training_mode_in_the_file_is_refused(tmp_path):
    model, path = normalised_first(), tmp_path / "m.onnx"
    proto = onnx.load_from_string(traced_bytes(model, rows()))
    path.write_bytes(proto.SerializeToString())
    assert verify_onnx(path, model, rows()).passed
    (node,) = (node for node in proto.graph.node if node.op_type == "BatchNormalization")
    node.output.extend(["new_mean", "new_variance"])
    node.attribute.append(helper.make_attribute("training_mode", 1))
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(OnnxVerificationError, match=r"NaN .* gives 0 NaN"):  # of 1 row
        verify_onnx(path, model, rows())
    with pytest.raises(OnnxVerificationError, match="regression_output: max error"):
        verify_onnx(path, model, rows(), batches=(7, 64))


def test_training_mode_of_the_model_itself_is_no_fault(tmp_path):
    export_onnx(normalised_first().train(), rows(), tmp_path / "m.onnx")
