import hashlib

import onnx
import pytest
from _export import contents, mlp, mlp_proto, rows

from fused_loss.export import OnnxExportError, OnnxVerificationError, export_onnx, verify_onnx
from fused_loss.export import draft as draft_file
from fused_loss.export import to_onnx as to_onnx_file
from fused_loss.export.seal import digest


@pytest.fixture(autouse=True)
def given(monkeypatch):
    """The tracer, replaced by the file that it made of `mlp()` before."""
    monkeypatch.setattr(to_onnx_file, "traced", lambda *args: mlp_proto())


def test_the_finished_file_records_what_was_measured_and_its_digest(tmp_path):
    path = tmp_path / "m.onnx"
    report = export_onnx(mlp(), rows(), path).report
    file = path.read_bytes()
    assert digest(file)[1]
    assert report.sha256 == hashlib.sha256(file).hexdigest()
    said = {entry.key for entry in onnx.load_from_string(file).metadata_props}
    assert {"fused_loss.tolerance", "fused_loss.observed_error", "fused_loss.versions"} < said
    assert verify_onnx(path, mlp(), rows()).comparisons == report.comparisons


def test_a_file_that_is_another_after_it_was_verified_is_refused(tmp_path, monkeypatch):
    write, written = draft_file.with_metadata, []

    def changing(proto, *args):
        written.append(proto)
        if len(written) == 2:  # when the report is written into it
            proto.graph.node[0].name = "another"
        return write(proto, *args)

    monkeypatch.setattr(draft_file, "with_metadata", changing)
    with pytest.raises(OnnxExportError, match=r"m.onnx changed on the disk while it was written"):
        export_onnx(mlp(), rows(), tmp_path / "m.onnx")
    assert contents(tmp_path) == {}


def test_what_the_user_allows_is_what_is_allowed(tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(OnnxVerificationError, match=r"regression_output: max error .* > 0.0e\+00"):
        export_onnx(mlp(), rows(), path, atol={"regression_output": 0.0})
    report = export_onnx(mlp(), rows(), path, atol=0.5, rtol={"regression_output": 0.25}).report
    for comparison in report.comparisons:
        if comparison.batch:
            share = 0.25 if comparison.output == "regression_output" else 0.0
            assert comparison.allowed == 0.5 + share * comparison.scale
