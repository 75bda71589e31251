"""Hostile, damaged and changed files: each is refused before onnxruntime has seen it."""

import hashlib
import os
import sys

import numpy as np
import onnx
import pytest
from _export import contents, mlp_bytes
from onnx import TensorProto, helper

from fused_loss.export import OnnxDualHead
from fused_loss.export.admission import admitted, examined
from fused_loss.export.errors import OnnxLoadError
from fused_loss.export.seal import digest, sealed

NAMES = ("regression_output", "classification_output")


def with_external(location, **place):
    """A runnable model that adds to its input two numbers of another file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=1)
    for key, value in {"location": location, **place}.items():
        weight.external_data.add(key=key, value=str(value))
    nodes = [helper.make_node("Add", ["input", "w"], [name]) for name in NAMES]
    info = [helper.make_tensor_value_info(n, 1, ["batch", 2]) for n in ("input", *NAMES)]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], [weight])
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, ir_version=10, opset_imports=opset).SerializeToString()


@pytest.fixture
def folder(tmp_path):
    """A folder `models` with weights in it, and the same weights outside."""
    models = tmp_path / "models"
    (models / "sub").mkdir(parents=True)
    for path in (models / "w.data", models / "sub" / "w.data", tmp_path / "secret.data"):
        path.write_bytes(np.array([1, 2], "f").tobytes())
    return models


def admit(folder, file, sha256=None):
    (folder / "m.onnx").write_bytes(file)
    return admitted(folder / "m.onnx", sha256)


def test_a_whole_file_is_admitted_with_its_metadata(folder):
    found = admit(folder, mlp_bytes(), digest(mlp_bytes())[0].upper())
    assert found.path == folder / "m.onnx"
    assert found.is_sealed
    assert found.external == ()
    proto = onnx.load_from_string(mlp_bytes())
    assert found.metadata == {entry.key: entry.value for entry in proto.metadata_props}
    proto.ClearField("metadata_props")
    assert not admit(folder, proto.SerializeToString()).is_sealed


def test_external_weights_at_home_are_admitted_and_run(folder):
    for location in ("w.data", "sub/w.data"):
        file = sealed(with_external(location, offset=0, length=8), folder)
        assert admit(folder, file).external == (folder / location,)
        assert OnnxDualHead(folder / "m.onnx")(np.ones((1, 2), "f"))[0].tolist() == [[2, 3]]
    # By a link to the model, its weights are those beside the file itself.
    link = folder.parent / "latest.onnx"
    link.symlink_to(folder / "m.onnx")
    assert admitted(link).external == (folder / "sub/w.data",)
    assert OnnxDualHead(link)(np.ones((1, 2), "f"))[0].tolist() == [[2, 3]]


def test_weights_elsewhere_are_refused(folder):
    (folder / "link.data").symlink_to("../secret.data")
    (folder / "inner.data").symlink_to("w.data")
    (folder / "dangling.data").symlink_to("nowhere")
    (folder / "linked").symlink_to(folder.parent, target_is_directory=True)
    os.link(folder.parent / "secret.data", folder / "hard.data")
    cases = {
        "../secret.data": "which is not in the model's folder",
        "sub/../w.data": "which is not in the model's folder",
        "..\\secret.data": "which is not in the model's folder",
        str(folder / "w.data"): "which is not in the model's folder",
        "C:\\w.data": "which is not in the model's folder",
        "\\\\host\\w.data": "which is not in the model's folder",
        "w.data\0": "which is not in the model's folder",
        "link.data": "which is a link",
        "inner.data": "which is a link",
        "dangling.data": "which is a link",
        "linked/secret.data": "which is a link",
        "hard.data": "which has another name too (a hard link)",
        "sub": "which is not a regular file",
        "no.data": "which is not there",
        "*/_ORT_MEM_ADDR_/*": "which is not there",
        "n" * 300: "which cannot be looked at: File name too long",
    }
    for location, said in cases.items():
        with pytest.raises(OnnxLoadError) as caught:
            admit(folder, with_external(location))
        assert said in str(caught.value), location
        with pytest.raises(OnnxLoadError):
            OnnxDualHead(folder / "m.onnx")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ({"offset": 4}, "which is cut short: w ends at byte 12"),
        ({"offset": -4}, "8 bytes at -4, and w needs 8"),
        ({"length": 4}, "4 bytes at 0, and w needs 8"),
        ({"offset": 1 << 62}, "which is cut short"),
        ({"offset": "x"}, "at a place that is not a number"),
        ({"offset": "9" * 5000}, "at a place that is not a number"),
    ],
)
def test_places_outside_a_file_are_refused(folder, place, said):
    with pytest.raises(OnnxLoadError, match=said):
        admit(folder, with_external("w.data", **place))


def test_a_bit_flipped_anywhere_is_refused_before_anything_runs(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    file = sealed(with_external("w.data"), folder)
    admit(folder, file)
    for place in range(len(file)):  # every bit of it is test_export_seal.py's
        flipped = bytearray(file)
        flipped[place] ^= 1 << place % 8
        with pytest.raises(OnnxLoadError):
            admit(folder, bytes(flipped))
    (folder / "m.onnx").write_bytes(file)
    (folder / "w.data").write_bytes(np.array([1, 2.0000002], "f").tobytes())
    with pytest.raises(OnnxLoadError, match="is not what was exported: the sha256 of its"):
        admitted(folder / "m.onnx")
    assert examined(folder / "m.onnx").broken
    assert not examined(folder / "m.onnx").is_sealed


def test_another_file_than_the_one_wanted_is_refused(folder):
    digest = hashlib.sha256(mlp_bytes()).hexdigest()
    with pytest.raises(OnnxLoadError) as caught:
        admit(folder, mlp_bytes(), "0" * 64)
    assert str(caught.value) == (  # no word of its metadata: it may be just what was exported
        f"m.onnx is not the file that was asked for: its sha256 is {digest}, "
        f"and sha256='{'0' * 64}' is wanted"
    )
    assert admit(folder, mlp_bytes(), digest.upper()).is_sealed
    flipped = mlp_bytes()[:-1] + b"?"
    with pytest.raises(OnnxLoadError, match="is not what was exported"):
        admit(folder, flipped, "0" * 64)


def test_a_file_that_is_not_there_or_is_none(tmp_path):
    for path, said in ((tmp_path / "no.onnx", "there is no file"), (tmp_path, "is a folder")):
        with pytest.raises(FileNotFoundError, match=said):
            admitted(path)


def test_nothing_is_written_and_no_code_is_run(folder, capsys):
    payload = b"cos\nsystem\n(S'touch %s'\ntR." % str(folder / "owned").encode()
    before = set(contents(folder))
    for content in (payload, b"\x80\x02" + payload, b"PK\x03\x04" + payload):
        with pytest.raises(OnnxLoadError):
            admit(folder, content)
    assert set(contents(folder)) == before | {"m.onnx"}
