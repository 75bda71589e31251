import json
import sys

import numpy as np
import pytest
import torch
from _export import called, contents, edited, mlp, mlp_bytes, rows

MODEL = ("--model", "_export:mlp")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A current folder with the file of `mlp()`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").write_bytes(mlp_bytes())
    return tmp_path


@pytest.mark.parametrize("options", [(), ("--input-shape", 4), ("--input-names", "input")])
def test_a_good_file_is_0_with_a_summary(capsys, options):
    code, out, err = called(capsys, "verify", "m.onnx", *MODEL, *options)
    assert (code, err) == (0, "")
    assert out.startswith("m.onnx: opset 20, IR 10, sha256 ")
    assert len(out.splitlines()) == 3


def test_rows_and_checkpoint_are_used_and_the_report_written(here, capsys):
    torch.save(mlp().state_dict(), "w.pt")
    np.save("x.npy", rows(10).numpy())
    code, out, err = called(
        capsys, "verify", "m.onnx", "--model", "_export:untrained", "--checkpoint", "w.pt",
        "--verify-data", "x.npy", "--verify-batches", "8", "--report", "r.json", "-q",
    )  # fmt: skip
    assert (code, out, err) == (0, "", "")
    report = json.loads((here / "r.json").read_text())
    assert report["source"] == "data"
    assert [c["batch"] for c in report["comparisons"]][::4] == [8, 8, 2]


def test_another_weight_is_3_and_the_file_is_left_alone(here, capsys):
    code, out, err = called(
        capsys, "verify", "m.onnx", "--model", "_export:untrained", "--report", "r.json"
    )
    assert (code, out) == (3, "")
    assert err.startswith("fused-loss: m.onnx is refused:\nregression_output: max error ")
    assert err.endswith("is the file of other weights?\n")
    assert contents(here)["m.onnx"] == mlp_bytes()
    assert json.loads((here / "r.json").read_text())["passed"] is False


def test_other_names_are_3(capsys):
    code, _, err = called(capsys, "verify", "m.onnx", *MODEL, "--output-names", "price,grade")
    assert code == 3
    assert "they must be ('price', 'grade')" in err


@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_file_is_1_whatever_rows_are_given(here, capsys, size):
    (here / "m.onnx").write_bytes(mlp_bytes()[:size])
    np.savez("x.npz", a=rows(3).numpy(), b=rows(3).numpy())
    for options in ((), ("--example", "x.npz"), ("--input-shape", 4), ("--verify-data", "x.npz")):
        code, _, err = called(capsys, "verify", "m.onnx", *MODEL, *options)
        assert code == 1
        assert err.startswith("fused-loss: m.onnx is not a valid ONNX model: it is ")


def test_there_is_nothing_to_verify_in_what_predict_does_not_run_either(here, capsys):
    """One exit code for a checkpoint, a graph that is none and a changed file: see cli.py."""

    def unknown(graph):
        graph.node[0].op_type = "Unheard"

    torch.save(mlp().state_dict(), "w.pt")
    (here / "graph.onnx").write_bytes(edited(mlp_bytes(), unknown))
    (here / "flipped.onnx").write_bytes(mlp_bytes()[:-1] + b"?")
    np.save("x.npy", rows(1).numpy())
    for name, said in (
        ("w.pt", "is not a valid ONNX model: it is a zip archive"),
        ("graph.onnx", "Unheard"),
        ("flipped.onnx", "is not what was exported: its sha256"),
    ):
        for words in (("verify", name, *MODEL), ("predict", name, "x.npy")):
            code, out, err = called(capsys, *words)
            assert (code, out) == (1, "")
            assert said in err


def test_what_is_not_there_is_2(capsys):
    assert called(capsys, "verify", "no.onnx", *MODEL) == (
        2, "", "fused-loss: there is no file no.onnx\n",
    )  # fmt: skip
    assert called(capsys, "verify", ".", *MODEL)[0] == 2
    code, _, err = called(capsys, "verify", "m.onnx")
    assert code == 2
    assert "the following arguments are required: --model" in err


def test_what_the_file_does_not_say_is_asked_for(here, capsys):
    def free(graph):
        graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"

    (here / "m.onnx").write_bytes(edited(mlp_bytes(), free))
    code, _, err = called(capsys, "verify", "m.onnx", *MODEL)
    assert code == 2
    assert "the file does not say what input may hold" in err
    assert called(capsys, "verify", "m.onnx", *MODEL, "--input-shape", 4)[0] == 0


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_its_packages_it_is_4(capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, out, err = called(capsys, "verify", "m.onnx", *MODEL)
    assert (code, out) == (4, "")
    assert err.startswith(f"fused-loss: {package} is needed and cannot be imported")
    assert err.endswith("pip install 'fused-loss[export]'\n")


@pytest.mark.parametrize("options", [("--atol", "nobody:1"), ("--rtol", "-1")])
def test_options_that_do_not_fit_the_file_are_2(capsys, options):
    code, out, err = called(capsys, "verify", "m.onnx", *MODEL, *options)
    assert (code, out) == (2, "")
    assert "Traceback" not in err


def test_a_report_does_not_replace_what_is_read(here, capsys):
    torch.save(mlp().state_dict(), "w.pt")
    before = (here / "w.pt").read_bytes()
    code, _, err = called(
        capsys, "verify", "m.onnx", *MODEL, "--checkpoint", "w.pt", "--report", "./w.pt"
    )
    assert code == 2
    assert "--report w.pt is what --checkpoint reads: give it another name" in err
    assert (here / "w.pt").read_bytes() == before
