"""Whole exports: each costs about a second, so one export answers many questions."""

import copy
import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from _export import (
    Branches,
    Noisy,
    TwoInputs,
    contents,
    convolutional,
    mlp,
    mlp_proto,
    model_of,
    rows,
)
from torch import nn

from fused_loss.export import (
    OnnxDualHead,
    OnnxExportError,
    OnnxVerificationError,
    export_onnx,
    verify_onnx,
)
from fused_loss.export import to_onnx as to_onnx_file
from fused_loss.export.signature import OUTPUT_NAMES


@pytest.fixture
def given(monkeypatch):
    """The tracer, replaced by the file that it made of `mlp()` before."""
    monkeypatch.setattr(to_onnx_file, "traced", lambda *args: mlp_proto())


def state_of(model):
    """Everything of a model that an export could touch."""
    return {
        "training": [module.training for module in model.modules()],
        "grad": [(p.requires_grad, p.grad) for p in model.parameters()],
        "data": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "storage": [p.data_ptr() for p in model.parameters()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
    }


def same_state(one, other):
    data = one.pop("data"), other.pop("data")
    return one == other and all(torch.equal(data[0][name], data[1][name]) for name in data[0])


def test_the_file_and_its_result(tmp_path):
    model, path = mlp(), tmp_path / "m.onnx"
    model.trunk.train()
    model.regression_head.eval()
    model.classification_head.weight.requires_grad_(False)
    before, random = state_of(model), torch.get_rng_state()
    result = export_onnx(model, rows(), str(path))

    assert same_state(before, state_of(model))
    assert torch.equal(random, torch.get_rng_state())
    assert list(contents(tmp_path)) == ["m.onnx"]
    assert model_of(path) == mlp_proto().SerializeToString(deterministic=True)  # without dropout
    assert result.path == path
    assert result.sha256 == result.report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert result.report.passed
    assert result.report.file == "m.onnx"
    assert repr(result).startswith(
        f"ExportResult({str(path)!r}, verified: regression_output off by "
    )
    assert len(repr(result)) < 200 + len(str(path))
    assert "comparisons" not in repr(result.report)

    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 20)]
    assert proto.ir_version == 10
    assert result.report.inputs == {"input": ["batch", 4]}
    assert result.report.outputs == {key: ["batch", 3] for key in OUTPUT_NAMES}
    for text in (str(Path(__file__).parent), "site-packages", "/tests/", "forward"):
        assert text.encode() not in path.read_bytes()

    x = rows(5)
    with torch.no_grad():
        expected = model.eval()(x)
        exact = copy.deepcopy(model).double()(x.double())
    for found, eager, truth in zip(OnnxDualHead(path)(x), expected, exact, strict=True):
        off = (eager - truth).abs().max().item()
        bound = max(16 * off, 64 * 2.0**-23 * truth.abs().max().item())
        assert np.abs(found - truth.numpy()).max() <= bound


def test_heads_over_an_image(tmp_path):
    path, x = tmp_path / "m.onnx", rows(6, 2, 4, 5)
    with torch.no_grad():
        convolutional().train()(x)
    result = export_onnx(convolutional().train(), x.numpy(), path)
    assert result.report.inputs == {"input": ["batch", 2, 4, 5]}
    assert list(result.report.outputs.values()) == [["batch", 1, 4, 5], ["batch", 3, 4, 5]]
    regression, classification = OnnxDualHead(path)(x)
    assert regression.shape == (6, 1, 4, 5)
    expected = convolutional().eval()(x)[1].argmax(1).numpy()
    assert np.array_equal(classification.argmax(1), expected)


def test_several_inputs_and_names_of_ones_own(tmp_path):
    path = tmp_path / "m.onnx"
    example = (rows(8), np.arange(16).reshape(8, 2) % 5)
    result = export_onnx(
        TwoInputs(),
        example,
        path,
        input_names=["numbers", "index"],
        output_names=["price", "grade"],
        verify_data=example,
        verify_batches=(3, 1),
        opset=18,
    )
    assert result.report.inputs == {"numbers": ["batch", 4], "index": ["batch", 2]}
    assert result.report.outputs == {"price": ["batch"], "grade": ["batch", 3]}
    assert result.report.opset == 18
    assert result.report.source == "data"
    assert {c.batch for c in result.report.comparisons} == {1, 2, 3}  # the last slice has 2 rows
    session = OnnxDualHead(path)
    assert session.output_names == ("price", "grade")
    assert [str(dtype) for dtype in session.input_dtypes] == ["float32", "int64"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes(tmp_path, dtype):
    path, model = tmp_path / "m.onnx", mlp(activation=nn.ReLU()).to(dtype)
    report = export_onnx(model, rows(dtype=dtype), path).report
    assert OnnxDualHead(path).input_dtypes == (np.dtype(str(dtype).removeprefix("torch.")),)
    for comparison in report.comparisons:
        if comparison.batch:
            eps = torch.finfo(dtype).eps
            assert comparison.allowed == max(
                16 * comparison.eager_error, 64 * eps * comparison.scale
            )
    assert any(comparison.eager_error for comparison in report.comparisons) is (
        dtype == torch.float16
    )


def test_a_python_number_that_the_exporter_rounds_to_float32_is_caught(tmp_path):
    with pytest.raises(OnnxVerificationError, match="keeps Python numbers in float32"):
        export_onnx(mlp().double(), rows(dtype=torch.float64), tmp_path / "m.onnx")
    assert contents(tmp_path) == {}


def test_wrappers_are_taken_off(tmp_path):
    wrapped = nn.DataParallel(torch.compile(mlp()))
    path = tmp_path / "m.onnx"
    export_onnx(wrapped, rows(), path)
    assert model_of(path) == mlp_proto().SerializeToString(deterministic=True)
    assert isinstance(wrapped, nn.DataParallel)


def test_a_forward_that_branches_on_the_batch_size_is_kept_as_a_failure_alone(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    with pytest.raises(OnnxVerificationError, match="batch 1, 2 fails and 7, 64 passes") as caught:
        export_onnx(Branches(), rows(), path, keep_failed=True)
    assert str(caught.value).startswith("m.onnx is refused:\nregression_output: max error")
    found = contents(tmp_path)
    assert found.pop("m.onnx") == b"old"
    assert list(found) == ["m.failed.onnx"]
    digest = hashlib.sha256(found["m.failed.onnx"]).hexdigest()
    assert digest == caught.value.report.sha256


class Filled(nn.Module):
    """Takes NaN for a value that is missing."""

    def __init__(self):
        super().__init__()
        self.model = mlp()

    def forward(self, x):
        return self.model(torch.where(x.isnan(), 0.5, x))


def test_rows_of_nan_are_named_and_are_legal_for_a_model_that_is_made_for_them(tmp_path):
    example = rows()
    example[:, 1] = np.nan
    with pytest.raises(OnnxVerificationError, match="\nthe rows of example hold NaN or inf them"):
        export_onnx(mlp(), example, tmp_path / "m.onnx")
    assert contents(tmp_path) == {}
    assert export_onnx(Filled(), example, tmp_path / "m.onnx").report.passed


class Fixed(nn.Module):
    """(N, 4) through a shape with the traced number of rows written in."""

    def __init__(self):
        super().__init__()
        self.model = mlp()

    def forward(self, x):
        regression, classification = self.model(x)
        return regression.reshape(3, 3), classification


class BranchesOnValues(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = mlp()

    def forward(self, x):
        return self.model(x if x.sum() > 0 else -x)


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (Noisy(), {}, "two runs differ: does forward draw random numbers"),
        (nn.Linear(5, 3), {}, r"the model itself fails on \(16, 4\) torch.float32: "),
        (nn.Linear(4, 3), {}, "must return two heads, .* got 1 tensor"),
        (mlp().to(torch.bfloat16), {}, "is bfloat16, which onnxruntime cannot compute"),
        (
            BranchesOnValues(),
            {},
            r"^forward goes by the values of a tensor \(test_export_to_onnx.py, line \d+, in "
            r"forward: `return self.model\(x if x.sum\(\) > 0 else -x\)`\), .*torch.where[^\n]*$",
        ),
        (mlp(), {"opset": 11}, "opset 11 was asked for and the exporter gives 18"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_model_that_cannot_be_exported_leaves_nothing(tmp_path, model, options, said, capfd):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    with pytest.raises(OnnxExportError, match=said):
        export_onnx(model, rows(), path, **options)
    assert contents(tmp_path) == {"m.onnx": b"old"}
    assert capfd.readouterr() == ("", "")  # the exporter speaks through the error alone


def test_a_number_of_rows_written_into_forward_is_no_batch_axis(tmp_path):
    with pytest.raises(OnnxExportError, match="static shape of 3"):
        export_onnx(Fixed(), rows(3), tmp_path / "m.onnx")
    assert contents(tmp_path) == {}


@pytest.mark.usefixtures("given")
def test_a_path_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    missing = tmp_path / "no" / "m.onnx"
    with pytest.raises(FileNotFoundError, match=f"there is no folder {missing.parent}: make it"):
        export_onnx(mlp(), rows(), missing)
    with pytest.raises(IsADirectoryError, match="is a folder: give the name of a file in it"):
        export_onnx(mlp(), rows(), tmp_path)
    for name in ("m.json", "m.pbtxt", "m.onnxtxt"):  # which onnx would read by its ending
        with pytest.raises(ValueError, match=f"{name} would be read as .* that ends in .onnx"):
            export_onnx(mlp(), rows(), tmp_path / name)
    opened = os.open

    def read_only(name, flags, *args, **options):
        if flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied", str(name))
        return opened(name, flags, *args, **options)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(PermissionError, match=r"change its permissions: '.*/m.onnx'"):
        export_onnx(mlp(), rows(), tmp_path / "m.onnx")
    assert contents(tmp_path) == {}


@pytest.mark.usefixtures("given")
def test_a_disk_that_is_full_keeps_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "m.onnx").write_bytes(b"old")

    def full(path, data):
        with path.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        export_onnx(mlp(), rows(), tmp_path / "m.onnx")
    assert contents(tmp_path) == {"m.onnx": b"old"}


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"opset": 20.0}, TypeError, "opset must be an int, got 20.0"),
        ({"opset": True}, TypeError, "opset must be an int"),
        ({"output_names": ("a",)}, ValueError, "must be two names"),
        ({"input_names": ("a", "b")}, ValueError, "example has 1 tensors and input_names has 2"),
        ({"verify_batches": (0,)}, ValueError, "verify_batches must hold a size above 0"),
        ({"verify_data": "x"}, TypeError, "verify_data must be a tensor"),
        ({"model": mlp}, TypeError, "must be an eager torch.nn.Module, got function"),
    ],
)
@pytest.mark.usefixtures("given")
def test_arguments_are_checked_before_anything_is_done(tmp_path, arguments, error, said):
    with pytest.raises(error, match=said):
        export_onnx(**{"model": mlp(), "example": rows(), "path": tmp_path / "m.onnx"} | arguments)
    assert contents(tmp_path) == {}


@pytest.mark.usefixtures("given")
def test_the_same_seed_draws_the_same_rows(tmp_path):
    path = tmp_path / "m.onnx"
    reports = [export_onnx(mlp(), rows(), path, seed=seed).report for seed in (3, 3, 4)]
    assert reports[0] == reports[1]
    assert reports[0].comparisons != reports[2].comparisons
    again = verify_onnx(path, mlp(), rows(), seed=3)  # of the file that seed 4 has written since
    assert dataclasses.replace(again, sha256=reports[0].sha256) == reports[0]


def test_a_default_device_is_none_of_ours(tmp_path, given):
    model, example = mlp(), rows()
    with torch.device("meta"):
        result = export_onnx(model, example, tmp_path / "m.onnx")
    assert result.report.passed
