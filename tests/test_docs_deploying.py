"""docs/deploying.md: its Python runs, its commands and options exist, its figures are bounded."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from _deployed import labelled_bytes
from _export import called, rows

from fused_loss.export.seal import KEY, WEIGHTS_KEY
from fused_loss.export.signature import MAX_IR_VERSION, OPSET

PAGE = (Path(__file__).parents[1] / "docs" / "deploying.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(labelled_bytes())
    return tmp_path


def test_the_python_runs_in_its_order():
    x = rows(3).numpy()
    names = {"x": x, "wanted": hashlib.sha256(labelled_bytes()).hexdigest()}
    found = []
    for block in blocks("python"):
        exec(block, names)
        found.append((block, names["regression"], names["classification"]))
    assert len(found) >= 6
    assert names["names"] == ["Adelie", "Chinstrap", "Gentoo"]
    assert names["roles"]["label"] == "label"
    allowed = 64 * np.finfo("f").eps * np.abs(found[0][1]).max()
    for block, regression, _ in found:
        assert np.abs(regression - found[0][1][: len(regression)]).max() <= allowed, block


def test_a_message_is_the_one_of_a_changed_file(here, capsys):
    (here / "model.onnx").write_bytes(labelled_bytes().replace(b"Gentoo", b"Gentle"))
    np.save("x.npy", rows(1).numpy())
    code, _, err = called(capsys, "predict", "model.onnx", "x.npy")
    (shown,) = (line for line in PAGE.splitlines() if line.startswith("fused-loss: "))
    assert code == 1
    assert err.startswith(shown.removesuffix(" ..."))


def test_what_it_says_of_the_file_is_so(here, capsys):
    assert f"opset {OPSET} in IR version {MAX_IR_VERSION}" in PAGE
    assert f"`{KEY}`" in PAGE
    assert f"`{WEIGHTS_KEY}`" in PAGE
    for row in re.findall(r"^\| onnxruntime.*\| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE):
        assert int(row[0]) >= MAX_IR_VERSION
        assert int(row[1]) >= OPSET


def test_the_options_that_it_names_exist(capsys):
    text = "".join(called(capsys, name, "--help")[1] for name in ("export", "predict", "inspect"))
    for option in set(re.findall(r"`(--[a-z-]+)", PAGE)) | {"-o"}:
        assert option in text, option
