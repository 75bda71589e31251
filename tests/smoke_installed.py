"""Against the installed wheel, outside the checkout: `python smoke_installed.py bare|export`.

`bare`: torch and NumPy alone. `export`: with the extra of that name. Not collected by pytest.
"""

import csv
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import fused_loss
from fused_loss import CombinedLoss, DualHead, combined_loss, cross_entropy, mse_loss

OPTIONAL = ("triton", "onnx", "onnxruntime", "onnxscript")
LOADED = sorted(set(OPTIONAL) & set(sys.modules))
SCRIPT = Path(sysconfig.get_path("scripts")) / "fused-loss"
SITE = Path(sysconfig.get_path("purelib")).resolve()

MODELS = """
import torch
from torch import nn
from fused_loss import DualHead

def build():
    return DualHead(nn.Sequential(nn.Linear(5, 16), nn.Tanh()), nn.Linear(16, 1), nn.Linear(16, 3))

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.both = build()

    def forward(self, x):
        regression, classification = self.both(x)
        return (regression + 1 if x.shape[0] > 2 else regression), classification
"""


def check(condition: object, what: str) -> None:
    """Say what holds; leave with 1 where it does not."""
    if not condition:
        sys.exit(f"FAILED: {what}")
    print(f"ok: {what}")


def agrees(actual: Tensor, own: Tensor, exact: Tensor) -> bool:
    """The rule of `verify_onnx`: eager PyTorch's own error in float32 is the measure."""
    eps = torch.finfo(torch.float32).eps
    allowed = max(16 * (own - exact).abs().max(), 64 * eps * exact.abs().max())
    return actual.shape == exact.shape and bool((actual - exact).abs().max() <= allowed)


def command(*arguments: object, code: int) -> str:
    """Run `fused-loss`; its stdout and stderr."""
    done = subprocess.run(
        [SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    shown = " ".join(map(str, arguments))
    if done.returncode != code:
        print(said)
    check(done.returncode == code, f"`fused-loss {shown}` exits {code}")
    check("Traceback" not in said, "and prints no traceback")
    return said


def installed() -> None:
    """What was imported is what was installed, and nothing more."""
    for module in (fused_loss, fused_loss.kernels, fused_loss.functional):
        check(SITE in Path(module.__file__ or "").resolve().parents, f"{module.__name__} in {SITE}")
    for name in ("export", "bench"):
        found = importlib.util.find_spec(f"fused_loss.{name}")
        check(found and SITE in Path(found.origin or "").resolve().parents, f"fused_loss.{name}")
    for name in ("kernels", "export", "bench"):
        check(importlib.util.find_spec(name) is None, f"no top-level package {name}")
    check((SITE / "fused_loss/py.typed").exists(), "py.typed")
    check(not LOADED, f"import fused_loss loads none of {', '.join(OPTIONAL)}")
    said = command("--version", code=0)
    check(said.split() == ["fused-loss", fused_loss.__version__], said.strip())


def losses() -> None:
    """Values and gradients on both backends of a CPU, against `torch.nn.functional` in float64."""
    torch.manual_seed(0)
    r, z, y = torch.randn(64, 2), torch.randn(64, 7), torch.randn(64, 2)
    t = torch.randint(7, (64,))

    def results(loss: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = loss(*leaves)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    pairs: list[tuple[str, Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]] = [
        (
            "combined_loss",
            lambda r, z: combined_loss(r, z, y, t, 0.25, label_smoothing=0.1),
            lambda r, z: (
                0.25 * F.mse_loss(r, y.double()) + 0.75 * F.cross_entropy(z, t, label_smoothing=0.1)
            ),
            (r, z),
        ),
        ("cross_entropy", lambda z: cross_entropy(z, t), lambda z: F.cross_entropy(z, t), (z,)),
        ("mse_loss", lambda r: mse_loss(r, y), lambda r: F.mse_loss(r, y.to(r.dtype)), (r,)),
    ]
    for backend in ("auto", "eager", "reference"):
        for name, ours, theirs, inputs in pairs:
            with fused_loss.backend(backend):
                actual = results(ours, *inputs)
            own, exact = results(theirs, *inputs), results(theirs, *(x.double() for x in inputs))
            right = all(map(agrees, actual, own, exact))
            check(right, f"{name} on {backend}: value and gradients")


def trained() -> DualHead:
    """A model that has learnt a little from data made here."""
    torch.manual_seed(0)
    sys.path.insert(0, os.getcwd())
    from smoke_models import build

    model = build()
    x = torch.randn(256, 5)
    y, t = x[:, :1] - x[:, 1:2], x[:, 2:].argmax(1)
    criterion = CombinedLoss(0.25, return_components=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    history = []
    for _ in range(40):
        optimizer.zero_grad()
        loss, components = criterion(*model(x), y, t)
        loss.backward()
        optimizer.step()
        history.append([float(part) for part in components])
    check(history[-1][0] < history[0][0] / 2, "training halves the regression loss")
    check(history[-1][1] < history[0][1] / 2, "training halves the classification loss")
    return model.eval()


def bare() -> None:
    """Torch and NumPy alone."""
    for name in ("onnx", "onnxruntime", "onnxscript", "rich", "pytest"):
        check(importlib.util.find_spec(name) is None, f"{name} is not installed")
    losses()
    trained()
    said = command("export", "m.onnx", "--model", "smoke_models:build", "--input-shape", 5, code=4)
    check("pip install 'fused-loss[export]'" in said, said.strip())
    check(not Path("m.onnx").exists(), "no file is left")
    for name in ("demo", "bench"):
        said = command(name, code=4)
        check(f"pip install 'fused-loss[{name}]'" in said, said.strip())


def export() -> None:
    """Train, export, verify, predict; a wrong model leaves no file."""
    from fused_loss.export import OnnxDualHead

    model = trained()
    torch.save(model.state_dict(), "w.pt")
    named = ("--model", "smoke_models:build", "--checkpoint", "w.pt", "--input-shape", 5)
    command("export", "m.onnx", *named, "--report", "r.json", code=0)
    command("verify", "m.onnx", *named, code=0)
    check(Path("r.json").stat().st_size, "the report is written")

    x = torch.randn(9, 5)
    rows = [[f"x{i}" for i in range(5)], *x.tolist()]
    with open("x.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    command("predict", "m.onnx", "x.csv", "-o", "y.csv", code=0)
    with open("y.csv", newline="") as file:
        table = list(csv.DictReader(file))
    with torch.no_grad():
        own = model(x)
        exact = model.double()(x.double())
    predicted = torch.tensor([[float(line["regression_output_0"])] for line in table])
    check(
        len(table) == 9 and agrees(predicted, own[0], exact[0]), "predict gives the model's values"
    )
    said = command("inspect", "m.onnx", code=0)
    check("sealed: it is what was written" in said, "inspect finds the file as it was written")
    said = command("predict", "m.onnx", "x.csv", "-o", "y.parquet", code=4)
    check("pip install 'fused-loss[parquet]'" in said, said.strip())
    labels = [int(line["label"]) for line in table]
    check(labels == exact[1].argmax(1).tolist(), "and its classes")
    outputs = OnnxDualHead("m.onnx", threads=1)(x.numpy())
    check(
        all(map(agrees, map(torch.from_numpy, outputs), own, exact)),
        "OnnxDualHead gives both heads",
    )

    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    wrong = ("--model", "smoke_models:Branching", "--input-shape", 5)
    said = command("export", "bad.onnx", *wrong, code=3)
    check("regression_output" in said, "the refusal names the output")
    command("export", "m.onnx", *wrong, "--force", code=3)
    command("verify", "m.onnx", *wrong, code=3)
    command("export", "m.onnx", *named, code=2)
    after = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    check(before == after, "a refused file leaves everything as it was")


def main() -> None:
    """Run what is asked for, in a folder of its own."""
    modes = {"bare": bare, "export": export}
    if sys.argv[1:] not in [[mode] for mode in modes]:
        sys.exit(f"usage: python {sys.argv[0]} {'|'.join(modes)}")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("smoke_models.py").write_text(MODELS, encoding="utf-8")
        try:
            installed()
            modes[sys.argv[1]]()
        finally:
            os.chdir(Path(folder).parent)
    print(f"{sys.argv[1]}: everything holds")


if __name__ == "__main__":
    main()
