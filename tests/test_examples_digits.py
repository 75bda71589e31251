import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from fused_loss.export import OnnxDualHead, inspect_onnx

SCRIPT = Path(__file__).parents[1] / "examples" / "digits.py"


@pytest.fixture(scope="module")
def digits():
    spec = importlib.util.spec_from_file_location("digits", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.EPOCHS = 4
    return module


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """Held-out rows, their scale, the model and its file after a short training from seed 0."""
    path = tmp_path_factory.mktemp("digits") / "digits.onnx"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learned, held_out = digits.load()
        scale = digits.Scale(learned.noisy.mean().item(), learned.noisy.std().item())
        model = digits.make_model()
        losses = digits.train(model, learned, scale, digits.EPOCHS)
    assert losses == sorted(losses, reverse=True)
    assert digits.export(model, path, learned, scale).passed
    return held_out, scale, model, path


def test_the_rows_are_whole_digits_with_noise(digits):
    learned, held_out = digits.load()
    assert [len(rows.digit) for rows in (learned, held_out)] == [1437, 360]
    assert held_out.clean.shape == held_out.noisy.shape == (360, 1, 8, 8)
    assert (held_out.clean.min(), held_out.clean.max()) == (0, 16)
    assert set(held_out.digit.tolist()) == set(range(10))
    again = digits.load()[1]
    assert all(map(torch.equal, held_out, again))


def test_the_file_cleans_and_reads(digits, trained):
    held_out, _, _, path = trained
    error, accuracy = digits.evaluate(path, held_out)
    assert error < (held_out.noisy - held_out.clean).square().mean().sqrt()
    assert accuracy > 0.5  # one in ten by chance


def test_the_file_gives_the_models_pixels_and_probabilities(trained):
    """Each within what the verification of the file allowed."""
    held_out, scale, model, path = trained
    model = model.eval().double()
    with torch.no_grad():
        clean, logits = model(scale.standard(held_out.noisy.double()))
    exact = clean * scale.std + scale.mean, logits.softmax(1)
    allowed = inspect_onnx(path).about["tolerance"]
    session = OnnxDualHead(path)
    for name, found, truth in zip(
        session.output_names, session(held_out.noisy), exact, strict=True
    ):
        assert np.abs(found - truth.numpy()).max() <= 4 * allowed[name]
    assert session.class_names == tuple("0123456789")
    assert session.units == ("pixels",)


def test_it_says_what_it_does(digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(digits, "train", lambda *args: [1.0])
    with torch.random.fork_rng(devices=[]):
        digits.main(tmp_path / "d.onnx")
    out = capsys.readouterr().out
    assert out.startswith("epoch  1  loss 1.0000\nd.onnx: opset 20")
    assert out.splitlines()[-1].startswith("noise of 4.0 pixels, ")
