import json

import pytest
from _deployed import labelled_bytes
from _export import called, mlp_bytes

from fused_loss.export import inspect_onnx


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").write_bytes(labelled_bytes())
    return tmp_path


def test_text_and_json(capsys):
    found = inspect_onnx("m.onnx")
    assert called(capsys, "inspect", "m.onnx") == (0, f"{found}\n", "")
    code, out, err = called(capsys, "inspect", "m.onnx", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(json.dumps(found.to_dict()))


def test_a_file_that_has_changed_is_shown_and_is_1(here, capsys):
    (here / "m.onnx").write_bytes(labelled_bytes().replace(b"Gentoo", b"Gentle"))
    code, out, err = called(capsys, "inspect", "m.onnx")
    assert (code, err) == (1, "")
    assert "CHANGED since it was exported" in out
    code, out, _ = called(capsys, "inspect", "m.onnx", "--json")
    assert code == 1
    assert json.loads(out)["problem"] == "its sha256 is not the one that it records"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("no.onnx",), 2, "there is no file no.onnx"),
        ((".",), 2, ". is a folder, a file is needed"),
        ((), 2, "the following arguments are required: FILE"),
        (("cut.onnx",), 1, "cut.onnx is not a valid ONNX model: it is cut short"),
    ],
)
def test_what_cannot_be_shown(here, capsys, words, code, said):
    (here / "cut.onnx").write_bytes(mlp_bytes()[:200])
    found, out, err = called(capsys, "inspect", *words)
    assert (found, out) == (code, "")
    assert said in err
