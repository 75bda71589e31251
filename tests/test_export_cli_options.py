import argparse
import io
import json
import sys

import numpy as np
import onnx
import pytest
from _export import called, contents, mlp_proto, rows

from fused_loss.cli import COMMANDS, main
from fused_loss.export import OnnxDualHead
from fused_loss.export import to_onnx as to_onnx_file
from fused_loss.export.cli_options import add_file_options, file_options, read_json
from fused_loss.export.errors import UsageError

MODEL = ("--model", "_export:mlp")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stats = {"mean": [1, 2, 3, 4], "std": 10}
    (tmp_path / "stats.json").write_text(json.dumps(stats))
    (tmp_path / "grams.json").write_text(json.dumps({"mean": 4000, "std": 800, "unit": "g"}))
    (tmp_path / "names.json").write_text(json.dumps(["Adélie", "Chinstrap", "Gentoo"]), "utf-8")
    np.save("x.npy", rows(64).numpy() * 10)
    return tmp_path


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_file_options(parser)
    return file_options(parser.parse_args(words))


def test_nothing_asked_for_is_the_defaults_of_export_onnx():
    assert parsed() == {
        "opset": 20,
        "dtype": None,
        "external_data": "auto",
        "unit": None,
        "softmax": False,
        "label": False,
        "quantize": None,
        "normalize": None,
        "denormalize": None,
        "class_names": None,
        "min_label_agreement": None,
    }


def test_json_is_read(here):
    found = parsed("--class-names", "names.json", "--denormalize", "grams.json", "--label")
    assert found["class_names"] == ["Adélie", "Chinstrap", "Gentoo"]
    assert found["denormalize"]["unit"] == "g"
    assert found["label"] is True
    with pytest.raises(UsageError, match=r"there is no file no.json"):
        parsed("--normalize", "no.json")
    (here / "bad.json").write_text("{")
    with pytest.raises(UsageError, match=r"bad.json is not JSON"):
        read_json(here / "bad.json")


def test_every_flag_in_one_file_and_it_is_verified_by_what_it_says(here, capsys):
    code, out, err = called(
        capsys, "export", "m.onnx", *MODEL, "--input-shape", 4, "--normalize", "stats.json",
        "--denormalize", "grams.json", "--softmax", "--label", "--class-names", "names.json",
        "--dtype", "fp16", "--rtol", "classification_output:0.01", "--external-data", "always",
        "--atol", "regression_output:20", "--opset", 21, "--verify-batches", "0,1,5",
    )  # fmt: skip
    assert code == 0, err
    assert out.splitlines()[3] == "label: float64's own wherever it is clear"
    assert [path.suffix for path in here.glob("m.*")].count(".data") == 1
    entries = {e.key: e.value for e in onnx.load("m.onnx").metadata_props}
    assert json.loads(entries["fused_loss.class_names"])[0] == "Adélie"
    code, out, err = called(capsys, "verify", "m.onnx", *MODEL, "--input-shape", 4)
    assert code == 0, err


def test_int8_says_what_it_costs(capsys):
    code, out, err = called(
        capsys, "export", "m.onnx", *MODEL, "--example", "x.npy", "--quantize", "static",
        "--calibration-data", "x.npy", "--min-label-agreement", 0.9, "--report", "r.json",
    )  # fmt: skip
    assert code == 0, err
    assert "int8 (static): " in out
    assert "labels agree in " in out
    with open("r.json", encoding="utf-8") as file:
        report = json.load(file)["quantization"]
    assert report["mode"] == "static"
    assert OnnxDualHead("m.onnx")(rows(3))[0].shape == (3, 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--dtype", "bf16"), "argument --dtype: invalid choice: 'bf16'"),
        (("--normalize", "names.json"), "normalize must be a mapping"),
        (("--normalize", "grams.json"), "must hold mean and std and nothing else"),
        (("--quantize", "static"), "quantize='static' needs calibration_data"),
        (("--calibration-data", "x.npy"), "calibration_data goes with quantize"),
        (("--quantize", "dynamic", "--dtype", "fp16"), "quantize goes with fp32 alone"),
        (("--class-names", "stats.json"), "class_names must be a list of texts"),
        (("--roles", "loss"), "'loss' must be role=output"),
        (("--roles", "price=0"), "roles must be regression, classification or loss"),
        (("--roles", "loss=7"), "roles names '7' as loss"),
        (("--atol", "x:1"), "atol names 'x', the outputs are"),
        (("--atol", "1", "--atol", "regression_output:2"), "each by its name"),
        (("--rtol", "much"), "--rtol: 'much' must be a number, or one of an output"),
    ],
)
def test_what_cannot_be_meant_is_usage(here, capsys, words, said):
    before = contents(here)
    code, out, err = called(capsys, "export", "m.onnx", *MODEL, "--input-shape", 4, *words)
    assert (code, out) == (1 if "loss=7" in words else 2, "")
    assert said in err
    assert contents(here) == before


def test_names_that_do_not_fit_the_model_are_usage(here, capsys):
    (here / "two.json").write_text('["a", "b"]')
    code, _, err = called(
        capsys, "export", "m.onnx", *MODEL, "--input-shape", 4, "--class-names", "two.json"
    )
    assert code == 2
    assert err.endswith("class_names has 2 names, the model has 3 classes\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_80_columns(capsys, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = called(capsys, command, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert out.isascii()


def test_an_ascii_terminal(here, monkeypatch):
    """Names that it cannot show are escaped, in what is said and in what is refused."""
    monkeypatch.setattr(to_onnx_file, "traced", lambda *args: mlp_proto())
    for out, code in (("größe.onnx", 0), ("größe.onnx", 2)):  # it exists the second time
        streams = [
            io.TextIOWrapper(io.BytesIO(), "ascii", errors=errors)
            for errors in ("strict", "backslashreplace")
        ]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        assert main(["export", out, *MODEL, "--input-shape", "4"]) == code
        for stream in streams:
            stream.flush()
        said = streams[1 if code else 0].buffer.getvalue()
        assert rb"gr\xf6\xdfe.onnx" in said
        assert said.isascii()
