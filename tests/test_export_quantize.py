"""int8: one export a mode answers many questions."""

import json

import numpy as np
import onnx
import pytest
import torch
from _export import convolutional, mlp, rows
from torch import nn

from fused_loss.export import OnnxExportError, OnnxVerificationError, export_onnx, verify_onnx
from fused_loss.export import draft as draft_file
from fused_loss.export.options import options
from fused_loss.export.quantize import agreement_problem, request

ROWS = rows(128)


def model():
    return mlp(activation=nn.ReLU())


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_an_int8_file_and_what_it_costs(tmp_path, mode):
    path, calls = tmp_path / "m.onnx", []
    report = export_onnx(
        model(),
        ROWS,
        path,
        quantize=mode,
        calibration_data=ROWS,
        label=True,
        progress=lambda done, total: calls.append((done, total)),
    ).report
    types = {t.data_type for t in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.INT8 in types
    assert (calls[0], calls[-1]) == ((0, 128), (128, 128)) if mode == "static" else calls == []
    found = report.quantization
    assert found.mode == mode
    assert report.source == "calibration"
    assert found.label_agreement >= found.min_label_agreement == 0.99
    assert found.bytes["int8"] == pytest.approx(path.stat().st_size, abs=1000)  # and the metadata
    assert set(found.milliseconds) == {"1", "64"}
    for output, error in found.errors.items():
        assert 0 < error <= found.limits[output]
    with torch.no_grad():
        truth = model().eval().double()(ROWS.double())
    spread = (truth[0].amax(0) - truth[0].amin(0)).numpy()
    limits = [c.allowed for c in report.comparisons if c.output == "regression_output" and c.batch]
    assert np.isclose(np.array(limits)[:, None], 0.1 * spread[None], rtol=1e-9).any(1).all()
    assert json.loads(report.to_json())["quantization"]["slower"] == list(found.slower)
    lines = report.summary().splitlines()
    assert any(line.startswith(f"int8 ({mode}): ") for line in lines)
    assert sum("the speed of fp32" in line for line in lines) == 2
    assert sum("slower, " in line for line in lines) == len(found.slower)
    again = verify_onnx(path, model(), data=ROWS)
    assert again.passed
    with pytest.raises(OnnxVerificationError):
        verify_onnx(path, mlp(seed=1, activation=nn.ReLU()), data=ROWS)


def test_labels_that_agree_too_rarely_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(draft_file, "label_agreement", lambda *args: (0.5, 128))
    with pytest.raises(OnnxVerificationError, match=r"label to 50.00% of 128 rows, 99.00% are"):
        export_onnx(model(), ROWS, tmp_path / "m.onnx", quantize="dynamic")
    assert list(tmp_path.iterdir()) == []
    assert agreement_problem((0.99, 3), 0.99) == agreement_problem(None, 1.0) == ()


def test_calibration_rows_unlike_those_of_use_are_refused(tmp_path):
    with pytest.raises(
        OnnxVerificationError, match=r"max error [^\0]*8 bits lose too much here: calibrate"
    ):
        export_onnx(
            model(),
            ROWS,
            tmp_path / "m.onnx",
            quantize="static",
            calibration_data=ROWS / 100,
            verify_data=ROWS,
        )


@pytest.mark.slow
def test_a_convolution(tmp_path):
    x = rows(64, 2, 4, 5)
    for mode in ("dynamic", "static"):
        report = export_onnx(
            convolutional(), x, tmp_path / "m.onnx", quantize=mode, calibration_data=x,
            min_label_agreement=0.9,
        ).report  # fmt: skip
        assert report.quantization.label_agreement > 0.9


class NoWeights(nn.Module):
    def forward(self, x):
        return x, x.relu()


def test_a_model_with_nothing_to_quantise_is_named(tmp_path):
    with pytest.raises(OnnxExportError, match="finds nothing to quantise"):
        export_onnx(NoWeights(), ROWS, tmp_path / "m.onnx", quantize="dynamic")


def asked(quantize="static", data=ROWS, least=None):
    return request(options(("x",), quantize=quantize), data, least, print, 1)


def test_a_request():
    assert asked(None, None) is None
    assert asked("dynamic", None).calibration is None
    assert asked(least=1).min_label_agreement == 1.0


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"data": None}, ValueError, "quantize='static' needs calibration_data"),
        ({"quantize": None}, ValueError, "calibration_data goes with quantize"),
        ({"quantize": None, "data": None, "least": 0.5}, ValueError, "min_label_agreement goes"),
        ({"least": "1"}, TypeError, "min_label_agreement must be a number"),
        ({"least": 1.5}, ValueError, "min_label_agreement must be from 0 to 1"),
        ({"data": "x"}, TypeError, "calibration_data must be a tensor"),
    ],
)
def test_requests_that_cannot_be_meant_are_refused(given, error, said):
    with pytest.raises(error, match=said):
        asked(**given)
