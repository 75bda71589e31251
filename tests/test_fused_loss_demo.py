"""The demo as a user calls it: one run of the command line, and what it leaves behind."""

import contextlib
import hashlib
import io
import json
import re
import shlex
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import onnx
import pytest
from matplotlib.image import imread

from fused_loss import demo, demo_files
from fused_loss.cli import main
from fused_loss.demo_data import COLUMNS, SPECIES, load, split
from fused_loss.demo_files import FIGURE, MODEL, NAMES, REPORT, WEIGHTS
from fused_loss.demo_model import ALPHA, EPOCHS, PenguinModel
from fused_loss.export import OnnxDualHead
from fused_loss.export.signature import OUTPUT_NAMES, VERIFY_BATCHES
from fused_loss.export.sources import load_checkpoint


class Shown(NamedTuple):
    """A run of the demo."""

    folder: Path
    text: str
    drawn: tuple[Any, ...]  # the arguments of `draw`


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "with space"
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        mock.patch.object(demo_files, "draw", wraps=demo_files.draw) as draw,
    ):
        assert main(["demo", "--out", str(folder)]) == 0
    draw.assert_called_once()
    return Shown(folder, out.getvalue(), draw.call_args.args)


def predictions(folder, rows):
    """(mass in g, logits, true mass, true species) in float64."""
    mass, logits = OnnxDualHead(folder / MODEL)(rows.inputs)
    arrays = mass, logits, rows.mass.numpy()
    return (*(array.astype("float64") for array in arrays), rows.species.numpy())


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_holds_what_is_said(shown):
    assert {path.name for path in shown.folder.iterdir()} == set(NAMES)
    assert f"with space holds {', '.join(NAMES)}\n" in shown.text
    assert "273 to learn from, 69 held out" in shown.text
    assert f"{EPOCHS}/{EPOCHS} loss 0." in shown.text


def test_the_model_has_named_outputs_and_a_symbolic_batch_axis(shown):
    graph = onnx.load(shown.folder / MODEL).graph

    def shapes(values):
        return {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in values
        }

    assert shapes(graph.input) == {"input": ["batch", len(COLUMNS)]}
    assert shapes(graph.output) == {
        "regression_output": ["batch", 1],
        "classification_output": ["batch", len(SPECIES)],
    }


def test_the_report_is_of_this_file_and_passes(shown):
    report = json.loads((shown.folder / REPORT).read_text(encoding="utf-8"))
    assert report["passed"] is True
    assert report["file"] == MODEL
    assert report["problems"] == []
    assert report["sha256"] == hashlib.sha256((shown.folder / MODEL).read_bytes()).hexdigest()
    assert report["sha256"] in shown.text
    compared = {(c["output"], c["batch"], c["level"]) for c in report["comparisons"]}
    levels = ("DISABLE_ALL", "ENABLE_ALL")
    assert compared >= {
        (output, batch, level)
        for output in OUTPUT_NAMES
        for batch in VERIFY_BATCHES
        for level in levels
    }
    assert all(c["passed"] for c in report["comparisons"])


def test_the_table_says_what_onnxruntime_gives(shown):
    parts = split(load(), seed=0)
    deviation = parts.train.mass.double().numpy().std()
    columns = []
    for part in parts:
        mass, logits, true_mass, species = predictions(shown.folder, part)
        top = logits.max(1)
        log_sum = top + np.log(np.exp(logits - top[:, None]).sum(1))
        mse = np.mean(((mass - true_mass) / deviation) ** 2)
        ce = np.mean(log_sum - logits[np.arange(len(species)), species])
        accuracy = np.mean(logits.argmax(1) == species)
        rmse = np.sqrt(np.mean((mass - true_mass) ** 2))
        columns.append((accuracy, rmse, ALPHA * mse + (1 - ALPHA) * ce, mse, ce))
    rows = {"accuracy": 3, "RMSE": 0, "loss": 4, "  regression": 4, "  classification": 4}
    for (name, digits), *values in zip(rows.items(), *columns, strict=True):
        cells = re.search(rf"^\W {name}[^\d]* (\d\S*) +\W +(\S+) \W$", shown.text, re.MULTILINE)
        printed = [float(cell) for cell in cells.groups()]
        # Half a unit of the last digit, and float32 beside it.
        atol, rtol = 0.5 * 10**-digits, 100 * np.finfo("float32").eps
        np.testing.assert_allclose(printed, values, atol=atol, rtol=rtol, err_msg=name)
    assert columns[1][0] >= 0.95
    assert columns[1][1] <= 400


def test_the_weights_are_those_of_the_file(shown):
    model = PenguinModel()
    load_checkpoint(model, shown.folder / WEIGHTS)
    rows = split(load(), seed=0).held_out
    eager = model(rows.inputs)
    exact = model.double()(rows.inputs.double())
    found = predictions(shown.folder, rows)[:2]
    for ours, theirs, truth in zip(found, eager, exact, strict=True):
        theirs, truth = theirs.detach().double().numpy(), truth.detach().numpy()
        ulp = np.finfo("float32").eps * np.abs(truth).max()
        assert np.abs(ours - truth).max() <= max(2 * np.abs(theirs - truth).max(), ulp)


def test_a_bird_with_a_missing_measurement_can_be_given_to_the_file(shown):
    bird = split(load(), seed=0).held_out.inputs[:1].numpy()
    session = OnnxDualHead(shown.folder / MODEL)
    model = PenguinModel()
    load_checkpoint(model, shown.folder / WEIGHTS)
    missing, mean = bird.copy(), bird.copy()
    missing[:, 1], mean[:, 1] = np.nan, model.inputs.mean[1]
    for ours, theirs, whole in zip(session(missing), session(mean), session(bird), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert (ours != whole).all()


def test_the_picture_has_three_panels_with_something_in_them(shown):
    data = (shown.folder / FIGURE).read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (2250, 855)
    image = imread(shown.folder / FIGURE)[:, :, :3]
    for panel in np.split(image, 3, axis=1):
        coloured = panel.max(2) - panel.min(2) > 0.3
        assert coloured.mean() > 0.001
        assert (panel.min(2) > 0.99).mean() > 0.2


def test_the_picture_shows_what_onnxruntime_gives_for_the_held_out_birds(shown):
    mass, logits, true_mass, species = predictions(shown.folder, split(load(), seed=0).held_out)
    history, *drawn = shown.drawn
    for ours, theirs in zip(
        drawn, (true_mass[:, 0], mass[:, 0], species, logits.argmax(1)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert len(history) == EPOCHS


def test_the_commands_that_it_names_work(shown):
    lines = shown.text.rpartition("Next:\n")[2].splitlines()
    assert len(lines) == 2
    for line in lines:
        subprocess.run(shlex.split(line), check=True, capture_output=True, text=True)
    names, *rows = (shown.folder / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert names.startswith("regression_output_0,classification_output_0,")
    mass, logits, _, _ = predictions(shown.folder, split(load(), seed=0).held_out)
    label = logits.argmax(1)[:, None]
    np.testing.assert_array_equal(
        np.array([row.split(",") for row in rows], dtype="float32"),
        np.concatenate([mass, logits, label], axis=1).astype("float32"),
    )
    (shown.folder / "predictions.csv").unlink()


def test_the_command_is_named_as_it_was_called(tmp_path, monkeypatch):
    script = tmp_path / "fused-loss"
    script.write_text("#!/bin/sh\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert demo._program() == [str(script)]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert demo._program() == ["fused-loss"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/fused_loss/__main__.py"])
    assert demo._program() == [sys.executable, "-m", "fused_loss"]


def test_a_second_run_writes_the_same_files(tmp_path, capsys):
    runs = []
    for seed in (1, 1, 2):
        assert main(["demo", "--out", str(tmp_path), "--epochs", "1", "--seed", str(seed)]) == 0
        runs.append(content(tmp_path))
    first, again, other = runs
    npz = {name for name in NAMES if name.endswith(".npz")}  # a ZIP holds the time of writing
    assert {n for n in NAMES if first[n] != again[n]} <= npz
    assert {n for n in NAMES if first[n] == other[n]} == set()


def test_an_output_without_unicode_is_no_error(tmp_path, monkeypatch):
    raw = io.BytesIO()
    text = io.TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", text)
    assert main(["demo", "--out", str(tmp_path), "--epochs", "1"]) == 0
    text.flush()
    assert b"held-out" in raw.getvalue()
