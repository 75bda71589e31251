"""What is computed beside the model, against NumPy, and faults in it, in a written file."""

import json

import numpy as np
import onnx
import pytest
import torch
from _export import mlp, replace_values, rows, traced_bytes
from onnx import TensorProto, helper
from torch import nn

from fused_loss.export import OnnxExportError, OnnxVerificationError, export_onnx, verify_onnx
from fused_loss.export.deployed import Before, Deployed
from fused_loss.export.options import options
from fused_loss.export.session import open_session

MEAN, STD = [100.0, 200.0, 300.0, 400.0], [1.0, 2.0, 3.0, 4.0]
RAW = rows() * torch.tensor(STD) + torch.tensor(MEAN)
SCALES = {
    "normalize": {"mean": MEAN, "std": STD},
    "denormalize": {"mean": 4000.0, "std": 800.0, "unit": "g"},
}
NAMES = ["Adelie", "Chinstrap", "Gentoo"]


def by_hand(x):
    """The outputs that `SCALES`, softmax and label ask for, in float64."""
    with torch.no_grad():
        standard = (x.double() - torch.tensor(MEAN)) / torch.tensor(STD)
        regression, logits = (y.numpy() for y in mlp().eval().double()(standard))
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return regression * 800.0 + 4000.0, exp / exp.sum(1, keepdims=True), logits.argmax(1)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A file with everything in it."""
    path = tmp_path_factory.mktemp("full") / "m.onnx"
    report = export_onnx(
        mlp(), RAW, path, softmax=True, label=True, class_names=NAMES, **SCALES
    ).report
    assert report.passed
    return path


def test_everything_in_the_file_is_what_numpy_makes_of_it(full):
    session = open_session(full)
    names = [output.name for output in session.get_outputs()]
    assert names == ["regression_output", "classification_output", "label"]
    found = session.run(None, {"input": RAW.numpy()})
    wanted = by_hand(RAW)
    assert np.abs(found[0] - wanted[0]).max() < 64 * 2.0**-23 * np.abs(wanted[0]).max()
    assert np.abs(found[1] - wanted[1]).max() < 64 * 2.0**-23
    assert found[2].dtype == np.int64
    assert np.array_equal(found[2], wanted[2])


def test_the_file_says_what_it_does(full):
    said = {e.key.removeprefix("fused_loss."): e.value for e in onnx.load(full).metadata_props}
    del said["sha256"]
    found = {key: json.loads(value) for key, value in said.items() if "sha256" not in key}
    assert found["normalize"] == {"input": {"mean": MEAN, "std": STD}}
    assert found["denormalize"] == {"mean": 4000.0, "std": 800.0}
    assert (found["unit"], found["class_names"]) == ("g", NAMES)
    assert found["tolerance"].keys() == found["observed_error"].keys()
    assert all(
        found["observed_error"][name] <= found["tolerance"][name] for name in found["tolerance"]
    )


def test_it_is_verified_again_by_what_it_says_or_by_what_is_said(full):
    assert verify_onnx(full, mlp()).passed
    assert verify_onnx(full, mlp(), RAW, **SCALES, class_names=NAMES).passed
    for given, said in (
        ({"normalize": {"mean": MEAN, "std": 2.0}}, "max error"),
        ({"denormalize": {"mean": 4000.5, "std": 800.0}}, "regression_output: max error"),
        ({"softmax": False}, "classification_output: max error"),
        ({"label": False}, r"the outputs are .*'label'\), they must be"),
        ({"class_names": NAMES[::-1]}, "class_names is .* in the file and must be"),
        ({"unit": "kg", "denormalize": {"mean": 4000.0, "std": 800.0}}, "unit is 'g' in the file"),
    ):
        with pytest.raises(OnnxVerificationError, match=said):
            verify_onnx(full, mlp(), RAW, **given)


def constant(graph, name, change):
    replace_values(next(t for t in graph.initializer if t.name == name), change)


def another_mean(graph):
    constant(graph, "before.mean_0", lambda v: v + np.float32(1e-2))


def another_unit(graph):
    constant(graph, "std", lambda v: v * np.float32(1.0001))


def no_softmax(graph):
    (node,) = (node for node in graph.node if node.op_type == "Softmax")
    node.op_type = "Identity"
    node.ClearField("attribute")


def softmax_of_rows(graph):
    (node,) = (node for node in graph.node if node.op_type == "Softmax")
    node.attribute[0].i = 0


def least_label(graph):
    (node,) = (node for node in graph.node if node.op_type == "ArgMax")
    node.op_type = "ArgMin"


def label_of_the_regression(graph):
    (node,) = (node for node in graph.node if node.op_type == "ArgMax")
    node.input[0] = next(
        n for n in graph.node if n.op_type == "Gemm" and "regr" in n.input[1]
    ).output[0]


def narrow_label(graph):
    (node,) = (node for node in graph.node if node.op_type == "ArgMax")
    node.output[0] = "wide"
    graph.node.append(helper.make_node("Cast", ["wide"], ["label"], to=TensorProto.INT32))
    graph.output[2].type.tensor_type.elem_type = TensorProto.INT32


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (another_mean, "before.mean_0 in the file is not the model's: 4 of 4 values differ"),
        (another_unit, "std in the file is not the model's"),
        (no_softmax, "classification_output: max error"),
        (softmax_of_rows, "classification_output: max error"),
        (least_label, "label: is not the largest of the file's own classification output"),
        (label_of_the_regression, "label: is not the largest"),
        (narrow_label, r"label: int32 \(8,\), int64 \(8,\) is needed"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_in_what_is_beside_the_model_is_refused(full, tmp_path, fault, said):
    proto = onnx.load(full)
    proto.ClearField("metadata_props")
    fault(proto.graph)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(OnnxVerificationError, match=said):
        verify_onnx(path, mlp(), RAW, softmax=True, label=True, **SCALES_UNNAMED)


SCALES_UNNAMED = {**SCALES, "denormalize": {"mean": 4000.0, "std": 800.0}}


def test_half_precision_inside_and_float32_outside(tmp_path):
    path = tmp_path / "m.onnx"
    report = export_onnx(mlp(), RAW, path, dtype="fp16", label=True, **SCALES).report
    proto = onnx.load(path)
    assert {value.type.tensor_type.elem_type for value in proto.graph.input} == {TensorProto.FLOAT}
    weights = {t.name: t.data_type for t in proto.graph.initializer}
    assert weights["trunk.0.weight"] == TensorProto.FLOAT16
    assert weights["before.mean_0"] == weights["std"] == TensorProto.FLOAT
    assert verify_onnx(path, mlp(), RAW).comparisons == report.comparisons
    with pytest.raises(OnnxVerificationError, match="differ"):
        verify_onnx(path, mlp(seed=1), RAW)
    with pytest.raises(
        OnnxVerificationError, match="dtype is 'fp16' in the file and must be 'fp32'"
    ):
        verify_onnx(path, mlp(), RAW, dtype="fp32")


class Forbids(nn.Module):
    """A value that float16 cannot hold."""

    def __init__(self):
        super().__init__()
        self.model = mlp()

    def forward(self, x):
        regression, logits = self.model(x)
        return regression, logits.masked_fill(x[:, :1] > 0, -1e9)


def test_what_half_precision_cannot_hold_is_said(tmp_path):
    with pytest.raises(OnnxExportError, match=r"the model fails in fp16: value cannot be conv"):
        export_onnx(Forbids(), rows(), tmp_path / "m.onnx", dtype="fp16")
    with pytest.raises(OnnxVerificationError, match=r"overflow"):
        export_onnx(mlp(), 1e6 * rows(), tmp_path / "m.onnx", dtype="fp16")
    assert list(tmp_path.iterdir()) == []


def test_float32_of_a_float64_model(tmp_path):
    model = mlp(activation=nn.ReLU()).double()
    report = export_onnx(model, rows(dtype=torch.float64), tmp_path / "m.onnx", dtype="fp32").report
    assert report.inputs == {"input": ["batch", 4]}
    assert {t.data_type for t in onnx.load(tmp_path / "m.onnx").graph.initializer} == {1}


def test_one_input_of_several_is_scaled():
    example = (rows(8), torch.arange(16).reshape(8, 2) % 5)
    asked = options(("numbers", "index"), normalize={"numbers": {"mean": 1.0, "std": 2.0}})
    numbers, index = Before(asked, ("numbers", "index"), example)(*example)
    assert torch.equal(numbers, (example[0] - 1.0) / 2.0)
    assert index is example[1]
    bad = options(("numbers", "index"), normalize={"index": {"mean": 1.0, "std": 2.0}})
    with pytest.raises(ValueError, match=r"normalize: index is torch.int64, only floats"):
        Before(bad, ("numbers", "index"), example)


def test_a_bare_model_is_left_as_it_is():
    """No cast, no node more: the dtypes are the model's own."""
    before = Before(options(("x",)), ("x",), (rows(),))
    layout = {"regression": "0", "classification": "1"}
    module = Deployed(mlp().eval(), before, layout, options(("x",)), rows(16, 3))
    assert module.roles == ("regression", "classification")
    with torch.no_grad():
        for ours, theirs in zip(module(rows()), mlp().eval()(rows()), strict=True):
            assert torch.equal(ours, theirs)
    file = onnx.load_from_string(traced_bytes(mlp(), rows()))
    assert [node.op_type for node in file.graph.node] == ["Gemm", "Relu", "Mul", "Gemm", "Gemm"]
