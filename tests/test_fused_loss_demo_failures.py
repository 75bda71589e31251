import sys

import pytest

from fused_loss import demo
from fused_loss.cli import main
from fused_loss.demo_files import MODEL, NAMES
from fused_loss.export import OnnxVerificationError, VerificationReport

TRAIN = demo.train


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(*args, **kwargs):
    raise OnnxVerificationError(
        VerificationReport(MODEL, "", None, None, {}, {}, {}, 0, "", problems=("damaged",))
    )


def stopped(*args, **kwargs):
    kwargs["on_epoch"] = interrupt
    return TRAIN(*args, **kwargs)


def interrupt(epoch):
    raise KeyboardInterrupt


def full(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("step", "failure", "code", "message"),
    [
        ("train", stopped, 130, "interrupted"),
        ("write_model", refused, 3, f"{MODEL} is refused:\ndamaged"),
        ("write_figure", full, 1, "No space left"),
    ],
)
def test_a_failure_leaves_the_files_of_before(
    tmp_path, monkeypatch, capsys, step, failure, code, message
):
    for name in NAMES[:2]:
        (tmp_path / name).write_text("before", encoding="utf-8")
    monkeypatch.setattr(demo, step, failure)
    assert main(["demo", "--out", str(tmp_path), "--epochs", "2"]) == code
    assert message in capsys.readouterr().err
    assert content(tmp_path) == dict.fromkeys(NAMES[:2], b"before")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "argument --epochs: '0' is not a whole number from 1 to"),
        (["--epochs", "1.5"], "argument --epochs: '1.5' is not a whole number"),
        (["--seed", "-1"], "argument --seed: '-1' is not a whole number from 0 to"),
        (["--seed", str(2**32)], "is not a whole number from 0 to 4294967295"),
        (["--alpha", "1.01"], "argument --alpha: '1.01' is not a number from 0 to 1"),
        (["--alpha", "nan"], "argument --alpha"),
        (["--alpha", "half"], "argument --alpha"),
        (["elsewhere"], "unrecognized arguments: elsewhere"),
    ],
)
def test_a_bad_argument_is_named(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "palmerpenguins", None)
    assert main(["demo", "--out", str(tmp_path)]) == 4
    assert "pip install 'fused-loss[demo]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
