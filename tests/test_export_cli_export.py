import json
import sys

import numpy as np
import onnx
import pytest
import torch
from _export import (
    called,
    contents,
    edited,
    initializer,
    mlp,
    mlp_bytes,
    mlp_proto,
    model_of,
    replace_values,
    rows,
)

from fused_loss.export import OnnxDualHead
from fused_loss.export import to_onnx as to_onnx_file

MODEL = ("--model", "_export:mlp")
SHAPE = ("--input-shape", 4)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty current folder; the tracer gives the file that it made of `mlp()` before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(to_onnx_file, "traced", lambda *args: mlp_proto())
    return tmp_path


@pytest.fixture
def faulty(monkeypatch):
    def double(graph):
        replace_values(initializer(graph, (3,)), lambda bias: bias * 2)

    monkeypatch.setattr(
        to_onnx_file, "traced", lambda *args: onnx.load_from_string(edited(mlp_bytes(), double))
    )


def test_a_verified_file_its_report_and_a_summary(here, capsys):
    torch.save(mlp().state_dict(), "w.pt")
    code, out, err = called(
        capsys, "export", "m.onnx", "--model", "_export:untrained", "--checkpoint", "w.pt", *SHAPE,
        "--report", "r.json", "--verify-batches", "3,1", "--seed", 5,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert set(contents(here)) == {"w.pt", "m.onnx", "r.json"}
    report = json.loads((here / "r.json").read_text())
    assert report["passed"] is True
    assert (report["file"], report["seed"], report["source"]) == ("m.onnx", 5, "example")
    assert [c["batch"] for c in report["comparisons"]] == [1, 1, 1, 1, 3, 3, 3, 3]
    first, *heads = out.splitlines()
    assert first == f"m.onnx: opset 20, IR 10, sha256 {report['sha256']}"
    assert [line.split(":")[0] for line in heads] == ["regression_output", "classification_output"]


def test_without_the_checkpoint_the_weights_are_the_factorys_and_that_is_said(capsys):
    code, out, err = called(capsys, "export", "m.onnx", "--model", "_export:untrained", *SHAPE)
    assert code == 3
    assert out == ""
    assert err.startswith(
        "fused-loss: no --checkpoint: these are the weights that the factory made\n"
        "fused-loss: m.onnx is refused:\n"
    )


def test_quiet_says_nothing(capsys):
    assert called(capsys, "export", "m.onnx", *MODEL, *SHAPE, "-q") == (0, "", "")


def test_several_inputs_by_name_with_names_and_opset_of_ones_own(here, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.chdir(here)
    index = np.arange(16).reshape(8, 2) % 5
    np.savez("x.npz", index=index, numbers=rows(8).double().numpy())
    code, out, err = called(
        capsys, "export", "m.onnx", "--model", "_export:TwoInputs", "--example", "x.npz",
        "--input-names", "numbers, index", "--output-names", "price,grade", "--opset", 18,
        "--verify-data", "x.npz",
    )  # fmt: skip
    assert code == 0, err
    assert out.startswith("m.onnx: opset 18, ")
    session = OnnxDualHead("m.onnx")
    assert session.input_names == ("numbers", "index")
    assert session.output_names == ("price", "grade")
    assert session(rows(8), index)[0].shape == (8,)


def test_a_file_that_is_there_is_replaced_by_force_alone(here, capsys):
    (here / "m.onnx").write_bytes(b"old")
    code, _, err = called(capsys, "export", "m.onnx", *MODEL, *SHAPE)
    assert (code, contents(here)) == (2, {"m.onnx": b"old"})
    assert err.startswith("fused-loss: m.onnx exists: --force replaces it")
    assert called(capsys, "export", "m.onnx", *MODEL, *SHAPE, "--force")[0] == 0
    assert model_of(here / "m.onnx") == mlp_proto().SerializeToString(deterministic=True)


@pytest.mark.usefixtures("faulty")
def test_a_file_that_is_refused_is_3_and_the_old_one_stays(here, capsys):
    (here / "m.onnx").write_bytes(b"old")
    code, out, err = called(
        capsys, "export", "m.onnx", *MODEL, *SHAPE, "--force", "--report", "r.json", "-q"
    )
    assert (code, out) == (3, "")
    assert err.startswith("fused-loss: m.onnx is refused:\nregression_output: max error ")
    assert " (batch 1, DISABLE_ALL)\n" in err
    report = json.loads((here / "r.json").read_text())
    assert report["passed"] is False
    assert contents(here) == {"m.onnx": b"old", "r.json": (here / "r.json").read_bytes()}


@pytest.mark.usefixtures("faulty")
def test_a_refused_file_is_kept_where_it_is_asked_for(here, capsys):
    code, _, err = called(capsys, "export", "m.onnx", *MODEL, *SHAPE, "--keep-failed", "-q")
    assert code == 3
    assert "fused-loss: the refused file is kept as m.failed.onnx\n" in err
    assert set(contents(here)) == {"m.failed.onnx"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "one of --input-shape and --example is needed"),
        ((*SHAPE, "--example", "x.npy"), 2, "not allowed with argument"),
        (("--input-shape", "0"), 2, "0 must hold sizes of 1 and above"),
        (
            ("--input-shape", "a"),
            2,
            "--input-shape: 'a' must be whole numbers with commas between, as in 3,8",
        ),
        (("--example", "no.npy"), 2, "there is no file no.npy"),
        ((*SHAPE, "--input-names", "a,b"), 2, "--input-shape is for one input"),
        ((*SHAPE, "--output-names", "a"), 2, "output_names must be two names"),
        ((*SHAPE, "--verify-batches", "0"), 2, "--verify-batches must hold a size above 0"),
        ((*SHAPE, "--verify-batches", "-1"), 2, "--verify-batches"),
        (
            (*SHAPE, "--verify-batches", "0,x"),
            2,
            "'0,x' must be whole numbers with commas between, as in 0,1,64",
        ),
        ((*SHAPE, "--atol", "x"), 2, "'x' must be a number, or one of an output, as in price:0.5"),
        ((*SHAPE, "--checkpoint", "no.pt"), 2, "there is no file no.pt"),
        ((*SHAPE, "--report", "no/r.json"), 2, "--report no/r.json cannot be written"),
        ((*SHAPE, "--report", "./m.onnx"), 2, "--report m.onnx is the model file"),
        ((*SHAPE, "--nonsense"), 2, "unrecognized arguments: --nonsense"),
        (("--input-shape", "5"), 1, "the model itself fails on (64, 5) torch.float32: "),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_is_written(here, capsys, words, code, said):
    found, out, err = called(capsys, "export", "m.onnx", *MODEL, *words)
    assert (found, out) == (code, "")
    assert said in err
    assert "Traceback" not in err
    assert contents(here) == {}


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("no/m.onnx", "no: make it first"),
        (".", ". is a folder: give the name of a file in it"),
        ("m.json", "m.json would be read as json: give it a name that ends in .onnx"),
    ],
)
def test_a_path_where_no_model_can_be_is_usage_before_the_factory_is_called(capsys, out, said):
    found, _, err = called(capsys, "export", out, "--model", "nowhere:f", *SHAPE)
    assert found == 2
    assert err.rstrip().endswith(said)


@pytest.mark.parametrize("model", ["nowhere:f", "_export:nothing", "_export"])
def test_a_model_that_is_not_there_is_usage(capsys, model):
    assert called(capsys, "export", "m.onnx", "--model", model, *SHAPE)[0] == 2


def test_without_onnxscript_the_extra_is_named(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, _, err = called(capsys, "export", "m.onnx", *MODEL, *SHAPE, "-q")
    assert code == 4
    assert err.startswith("fused-loss: onnxscript is needed and cannot be imported")
    assert err.endswith("pip install 'fused-loss[export]'\n")
    assert contents(here) == {}


def test_the_seed_makes_the_factorys_weights_repeat(capsys, monkeypatch):
    made = []

    def factory():
        made.append(torch.nn.Linear(4, 3))
        return made[-1]

    monkeypatch.setattr(sys.modules["_export"], "made_here", factory, raising=False)
    for seed in (7, 7, 8):
        called(capsys, "export", "m.onnx", "--model", "_export:made_here", *SHAPE, "--seed", seed)
    assert torch.equal(made[0].weight, made[1].weight)
    assert not torch.equal(made[0].weight, made[2].weight)


@pytest.mark.parametrize("option", ["--checkpoint", "--example", "--verify-data"])
def test_the_model_does_not_replace_what_it_is_made_from(here, capsys, option):
    (here / "w.onnx").write_bytes(b"mine")
    arguments = ("export", "w.onnx", "--model", "_export:mlp", option, "w.onnx", "--force")
    shape = () if option == "--example" else ("--input-shape", 4)
    code, out, err = called(capsys, *arguments, *shape)
    assert (code, out) == (2, "")
    assert f"OUT w.onnx is what {option} reads" in err
    assert (here / "w.onnx").read_bytes() == b"mine"
