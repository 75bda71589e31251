import json
import sys

import numpy as np
import onnx
import pytest
import torch
from _export import TwoInputs, edited, mlp, mlp_bytes, rows
from torch import nn

from fused_loss.export import (
    MissingDependencyError,
    OnnxExportError,
    OnnxVerificationError,
    verify_onnx,
)
from fused_loss.export.seal import sealed


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(mlp_bytes())
    return path


def test_without_rows_the_inputs_are_standard_normal_in_the_files_shape(path):
    report = verify_onnx(path, mlp())
    assert report.passed
    assert report.source == "random"
    assert report.inputs == {"input": ["batch", 4]}
    assert report.seed == 0
    assert report.summary().startswith("m.onnx: opset 20, IR 10, sha256 ")


def test_the_users_rows_decide(path):
    data = rows(20).numpy()
    report = verify_onnx(str(path), mlp(), data=data, batches=[8])
    assert report.source == "data"
    assert [c.batch for c in report.comparisons][::4] == [8, 8, 8, 4]
    report = verify_onnx(path, mlp(), (rows(3),), batches=(1,))
    assert {c.batch for c in report.comparisons} == {1}
    assert report.source == "example"


def test_scale_is_that_of_the_rows(path):
    small, large = (
        verify_onnx(path, mlp(), factor * rows()).comparisons[-1].scale for factor in (1, 1000)
    )
    assert large > 100 * small


def test_the_model_is_left_as_it_was(path):
    model = nn.DataParallel(mlp().train())
    before, random = [p.clone() for p in model.parameters()], torch.get_rng_state()
    assert verify_onnx(path, model).passed
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert all(map(torch.equal, before, model.parameters()))
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"input_names": ("x",)}, r"the inputs are \('input',\), they must be \('x',\)"),
        ({"output_names": ("a", "b")}, r"the outputs are .* they must be \('a', 'b'\)"),
    ],
)
def test_names_must_be_those_asked_for(path, names, said):
    with pytest.raises(OnnxVerificationError, match=said):
        verify_onnx(path, mlp(), **names)


def test_another_model_is_not_this_one(path):
    with pytest.raises(
        OnnxVerificationError, match="is this the model that the file was made from"
    ):
        verify_onnx(path, TwoInputs())


def test_a_damaged_file_is_refused_whatever_rows_are_given(path):
    path.write_bytes(mlp_bytes()[:100])
    for rows_given in ({}, {"example": rows()}, {"data": (rows(), rows())}):
        with pytest.raises(OnnxVerificationError, match="not a valid ONNX model") as caught:
            verify_onnx(path, TwoInputs(), **rows_given)
        assert caught.value.report.comparisons == ()
        assert caught.value.report.opset is None


def test_what_the_file_cannot_say_must_be_given(path):
    def free(graph):
        graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"

    path.write_bytes(edited(mlp_bytes(), free))
    with pytest.raises(ValueError, match="the file does not say what input may hold"):
        verify_onnx(path, mlp())
    assert verify_onnx(path, mlp(), rows()).passed


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"path": "missing.onnx"}, FileNotFoundError, "there is no file missing.onnx"),
        ({"batches": ()}, ValueError, "batches must hold a size above 0"),
        ({"example": (np.ones((1, 4)),) * 2}, ValueError, "example has 2 tensors and input_names"),
        ({"data": np.ones((0, 4))}, ValueError, "data has no row"),
        ({"model": mlp}, TypeError, "must be an eager torch.nn.Module"),
        ({"model": nn.Linear(4, 3).bfloat16()}, OnnxExportError, "weight is bfloat16"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(path, arguments, error, said):
    with pytest.raises(error, match=said):
        verify_onnx(**{"path": path, "model": mlp()} | arguments)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_its_packages_the_extra_is_named(path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingDependencyError, match=rf"{package} is needed .*fused-loss\[export\]"
    ):
        verify_onnx(path, mlp())


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ({"dtype": "fp16"}, "is float32 and must be float16, as it was exported"),
        ({"quantize": "dynamic"}, "says that it is quantised, and has no operator of int8"),
    ],
)
def test_a_file_is_not_judged_by_a_precision_that_it_only_claims(tmp_path, claim, said):
    path = tmp_path / "m.onnx"
    proto = onnx.load_from_string(mlp_bytes())
    kept = {e.key: e.value for e in proto.metadata_props if not e.key.endswith("sha256")}
    proto.ClearField("metadata_props")
    for key, value in (kept | {f"fused_loss.{k}": json.dumps(v) for k, v in claim.items()}).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    path.write_bytes(sealed(proto.SerializeToString()))
    with pytest.raises(OnnxVerificationError, match=said):
        verify_onnx(path, mlp(), rows(8))
