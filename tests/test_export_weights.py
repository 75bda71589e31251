import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from _export import contents, mlp, rows

from fused_loss.export import OnnxDualHead, OnnxExportError, OnnxVerificationError, export_onnx
from fused_loss.export import weights as weights_file
from fused_loss.export.weights import lie_outside, sha256


def data_files(folder):
    return sorted(path.name for path in folder.glob("*.data"))


def test_weights_beside_the_file_are_named_by_their_content(tmp_path):
    path, x = tmp_path / "m.onnx", rows(5)
    report = export_onnx(mlp(), rows(), path, external_data="always").report
    assert report.passed
    (name,) = data_files(tmp_path)
    assert name == f"m.{sha256(tmp_path / name)[:16]}.data"
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    outside = [t for t in tensors if t.data_location == onnx.TensorProto.EXTERNAL]
    assert {
        entry.value for t in outside for entry in t.external_data if entry.key == "location"
    } == {name}
    inside = export_onnx(mlp(), rows(), tmp_path / "n.onnx", external_data="never")
    for ours, theirs in zip(OnnxDualHead(path)(x), OnnxDualHead(inside.path)(x), strict=True):
        assert (ours == theirs).all()


def test_another_export_never_changes_what_a_copied_model_reads(tmp_path):
    path, copy = tmp_path / "m.onnx", tmp_path / "copy.onnx"
    export_onnx(mlp(), rows(), path, external_data="always")
    copy.write_bytes(path.read_bytes())
    first, before = data_files(tmp_path), OnnxDualHead(copy)(rows(5))
    export_onnx(mlp(seed=1), rows(), path, external_data="always")
    assert set(first) < set(data_files(tmp_path))  # the copy still reads it
    assert all((a == b).all() for a, b in zip(OnnxDualHead(copy)(rows(5)), before, strict=True))
    copy.unlink()
    second = set(data_files(tmp_path)) - set(first)
    export_onnx(mlp(), rows(), path, external_data="always")
    assert data_files(tmp_path) == first  # what nobody reads is gone
    assert second.isdisjoint(data_files(tmp_path))
    export_onnx(mlp(), rows(), path)
    assert data_files(tmp_path) == []


def test_a_refused_file_leaves_no_weights_behind(tmp_path, monkeypatch):
    options = {"external_data": "always", "atol": 0.0}
    with pytest.raises(OnnxVerificationError):
        export_onnx(mlp(), rows(), tmp_path / "m.onnx", **options)
    assert contents(tmp_path) == {}
    with pytest.raises(OnnxVerificationError):
        export_onnx(mlp(), rows(), tmp_path / "m.onnx", keep_failed=True, **options)
    assert [p.suffix for p in sorted(tmp_path.iterdir())] == [".data", ".onnx"]


def test_when_they_lie_outside(monkeypatch):
    assert lie_outside(mlp(), "always")
    assert not lie_outside(mlp(), "auto")
    assert not lie_outside(mlp(), "never")
    size = sum(p.nbytes for p in mlp().parameters())
    monkeypatch.setattr(weights_file, "LIMIT", size - 1)
    assert lie_outside(mlp(), "auto")
    assert not lie_outside(mlp(), "auto", halved=True)
    monkeypatch.setattr(weights_file, "LIMIT", 100)
    assert lie_outside(mlp(), "auto")
    with pytest.raises(OnnxExportError, match=r"'never': one .onnx file is a protobuf message"):
        lie_outside(mlp(), "never")
    with pytest.raises(OnnxExportError, match="quantize writes one file"):
        lie_outside(mlp(), "auto", whole=True)
    with pytest.raises(ValueError, match="does not go with quantize"):
        lie_outside(mlp(), "always", whole=True)
    with pytest.raises(ValueError, match="external_data must be one of auto, always, never"):
        lie_outside(mlp(), "yes")


LIMITED = """
import resource, signal, sys
from _export import mlp, rows
from fused_loss.export import export_onnx
from fused_loss.export import trace
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
export = trace.torch.onnx.export
def limited(*args, **options):
    program = export(*args, **options)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))  # from here on the disk is full
    return program
trace.torch.onnx.export = limited
try:
    export_onnx(mlp(seed=1), rows(), sys.argv[1], external_data=sys.argv[2])
except OSError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.mark.parametrize("choice", [pytest.param("never", marks=pytest.mark.slow), "always"])
def test_a_disk_that_fills_during_an_overwrite_leaves_the_old_model_loading_bit_identically(
    tmp_path, choice
):
    path, x = tmp_path / "m.onnx", rows(5)
    export_onnx(mlp(), rows(), path, external_data=choice)
    before, outputs = contents(tmp_path), OnnxDualHead(path)(x)
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), choice],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "refused: " in done.stderr
    assert "File too large" in done.stderr
    assert contents(tmp_path) == before
    assert all((a == b).all() for a, b in zip(OnnxDualHead(path)(x), outputs, strict=True))


LARGE = """
import json, resource, sys, time
import torch
from torch import nn
from fused_loss import DualHead
from fused_loss.export import OnnxDualHead, OnnxExportError, export_onnx
path, width = sys.argv[1], 8300
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
layers = [nn.Linear(64, width)]
for _ in range(8):
    layers += [nn.ReLU(), nn.Linear(width, width)]
    nn.init.normal_(layers[-1].weight, std=(2 / width) ** 0.5)
model = DualHead(nn.Sequential(*layers), nn.Linear(width, 1), nn.Linear(width, 3))
size, x = sum(p.nbytes for p in model.parameters()), torch.randn(8, 64)
try:
    export_onnx(model, x, path, external_data="never")
except OnnxExportError as error:
    said = str(error)
begin = time.monotonic()
report = export_onnx(model, x, path).report
took, high = time.monotonic() - begin, peak()
del model
shapes = [list(output.shape) for output in OnnxDualHead(path)(torch.randn(3, 64))]
print(json.dumps(dict(size=size, peak=high, seconds=took, passed=report.passed, said=said,
                      shapes=shapes, external=report.to_dict()["sha256"])))
"""


@pytest.mark.slow
def test_a_model_above_two_gigabytes_in_bounded_memory(tmp_path, capsys):
    """The model, its copy, one in float64 beside them: 4 times the weights, and the process."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path / "m.onnx")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    with capsys.disabled():
        print(f"\n{found['size'] / 1e9:.2f} GB of weights: peak {found['peak'] / 1e9:.2f} GB "
              f"({found['peak'] / found['size']:.2f} times), {found['seconds']:.0f} s")  # fmt: skip
    assert found["size"] > 2.2e9
    assert found["passed"]
    assert "protobuf message, which cannot exceed 2 GiB" in found["said"]
    assert found["shapes"] == [[3, 1], [3, 3]]
    assert found["peak"] < 4.5 * found["size"]
    (name,) = data_files(tmp_path)
    assert (tmp_path / name).stat().st_size >= found["size"] - 1e6
    assert (tmp_path / "m.onnx").stat().st_size < 1e6
