import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _asserts import launches

import fused_loss

SCRIPT = Path(__file__).parents[1] / "examples" / "tutorial.py"
LOSSES = [8.1870, 4.6265, 3.6122, 3.3246, 3.0892, 2.8965, 2.7388, 2.6097, 2.5040, 2.4174]
MSE, ACCURACY = 4.1031, 0.5


@pytest.fixture(scope="module")
def tutorial():
    spec = importlib.util.spec_from_file_location("tutorial", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trained(tutorial, epochs, dtype=torch.float32):
    """Losses, data and model from seed 0; the numbers are drawn in float32 whatever the dtype."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        data, model = tutorial.make_data(), tutorial.make_model().to(dtype)
    data = data._replace(x=data.x.to(dtype), y=data.y.to(dtype))
    losses = tutorial.train(model, data, epochs)
    return losses, data, model


def test_it_prints_the_figures_of_the_tutorial(tmp_path):
    run = subprocess.run(
        [sys.executable, SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stderr == ""
    shown = re.findall(r"^epoch +(\d+) +loss (\S+)$", run.stdout, re.MULTILINE)
    assert shown == [(str(10 * (i + 1)), f"{loss:.4f}") for i, loss in enumerate(LOSSES)]
    assert run.stdout.endswith(f"regression MSE {MSE:.4f}\naccuracy {ACCURACY:.4f}\n")


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
def test_every_plain_backend_gives_the_figures(tutorial, backend):
    with fused_loss.backend(backend):
        losses, data, model = trained(tutorial, tutorial.EPOCHS)
    mse, accuracy = tutorial.evaluate(model, data)
    assert [round(loss, 4) for loss in losses[9::10]] == LOSSES
    assert (round(mse, 4), accuracy) == (MSE, ACCURACY)


def numbers(losses, model):
    """Every loss, and every weight in the end, in float64."""
    weights = torch.cat([p.detach().double().flatten() for p in model.parameters()])
    return torch.tensor(losses, dtype=torch.float64), weights


@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_losses_and_weights_are_as_near_to_float64_as_those_of_pytorch(tutorial, backend):
    """Its own error is allowed, one unit in the last place at least."""
    epochs = 3
    with fused_loss.backend("reference"):
        exact = numbers(*trained(tutorial, epochs, torch.float64)[::2])
        plain = numbers(*trained(tutorial, epochs)[::2])
    with fused_loss.backend(backend), launches() as log:
        found = numbers(*trained(tutorial, epochs)[::2])
    assert (len(log.kernels) >= epochs) == (backend == "triton")
    for truth, theirs, ours in zip(exact, plain, found, strict=True):
        ulp = torch.finfo(torch.float32).eps * truth.abs().max()
        allowed = torch.maximum((theirs - truth).abs().max(), ulp)
        assert (ours - truth).abs().max() <= allowed


def test_the_classifier_reads_the_regression(tutorial):
    data, model = tutorial.make_data(), tutorial.make_model()
    regression, logits = model(data.x)
    torch.testing.assert_close(logits, model.classification_head(regression), rtol=0, atol=0)
    assert [tuple(p.shape) for p in model.parameters()] == [(1, 1), (1,), (2, 1), (2,)]
