"""A small convolutional network with two heads: clean a noisy digit, and read it.

The 1797 digits of scikit-learn (8 x 8 pixels of 0 to 16) get noise; one head gives the clean image
back, (N, 1, 8, 8), the other one says which digit it is. Both learn from `CombinedLoss`. The file
that is exported takes pixels as they are, and gives pixels and probabilities.

Run it with `python examples/digits.py [FILE.onnx]`; it needs `pip install 'fused-loss[examples]'`.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fused_loss import CombinedLoss, DualHead
from fused_loss.export import OnnxDualHead, VerificationReport, export_onnx

EPOCHS = 12
BATCH = 64
ALPHA = 0.5
LEARNING_RATE = 3e-3
CHANNELS = 16
NOISE = 4.0  # deviation, in pixels of 0 to 16
HELD_OUT = 360


class Rows(NamedTuple):
    """One row a digit."""

    noisy: Tensor  # (N, 1, 8, 8), in pixels
    clean: Tensor  # (N, 1, 8, 8), in pixels
    digit: Tensor  # (N,)


class Scale(NamedTuple):
    """Pixels to numbers of mean 0 and deviation 1, and back."""

    mean: float
    std: float

    def standard(self, pixels: Tensor) -> Tensor:
        """(N, *) -> (N, *)."""
        return (pixels - self.mean) / self.std


def load(seed: int = 0) -> tuple[Rows, Rows]:
    """Shuffled digits with their noise: those to learn from, and those held out."""
    digits = load_digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits.target), generator=generator)
    clean = torch.from_numpy(digits.images).float()[order, None]
    noisy = clean + NOISE * torch.randn(clean.shape, generator=generator)
    rows = Rows(noisy, clean, torch.from_numpy(digits.target)[order])
    return Rows(*(x[HELD_OUT:] for x in rows)), Rows(*(x[:HELD_OUT] for x in rows))


def make_model() -> DualHead:
    """(N, 1, 8, 8) -> (N, 1, 8, 8) and (N, 10)."""
    trunk = nn.Sequential(
        nn.Conv2d(1, CHANNELS, 3, padding=1),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
        nn.ReLU(),
    )
    reader = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(CHANNELS * 16, 10))
    return DualHead(trunk, nn.Conv2d(CHANNELS, 1, 1), reader)


def train(model: nn.Module, rows: Rows, scale: Scale, epochs: int = EPOCHS) -> list[float]:
    """The mean loss of each epoch."""
    criterion = CombinedLoss(ALPHA)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for _ in range(epochs):
        parts = torch.randperm(len(rows.digit)).split(BATCH)
        total = torch.zeros(())
        for part in parts:
            noisy, clean, digit = (x[part] for x in rows)
            optimizer.zero_grad()
            loss = criterion(*model(scale.standard(noisy)), scale.standard(clean), digit)
            loss.backward()
            optimizer.step()
            total += loss.detach()
        losses.append(float(total / len(parts)))
    return losses


def export(model: nn.Module, path: Path, rows: Rows, scale: Scale) -> VerificationReport:
    """Pixels in, pixels and probabilities out; the report of the verification."""
    pixels = {"mean": scale.mean, "std": scale.std}
    return export_onnx(
        model,
        rows.noisy,
        path,
        output_names=("clean", "digit"),
        normalize=pixels,
        denormalize=pixels,
        unit="pixels",
        softmax=True,
        class_names=[str(digit) for digit in range(10)],
    ).report


def evaluate(path: Path, rows: Rows) -> tuple[float, float]:
    """Of the file, in onnxruntime: the error that is left in a pixel, the share of right digits."""
    found = OnnxDualHead(path).predict(rows.noisy)
    left = torch.from_numpy(found.regression) - rows.clean
    right = torch.from_numpy(found.label) == rows.digit
    return left.square().mean().sqrt().item(), right.float().mean().item()


def main(path: Path = Path("digits.onnx")) -> None:
    """Train from seed 0, export, and say what the file does on the held-out digits."""
    torch.manual_seed(0)
    learned, held_out = load()
    scale = Scale(learned.noisy.mean().item(), learned.noisy.std().item())
    model = make_model()
    for epoch, loss in enumerate(train(model, learned, scale), 1):
        print(f"epoch {epoch:2d}  loss {loss:.4f}")
    print(export(model, path, learned, scale).summary())
    error, accuracy = evaluate(path, held_out)
    print(f"noise of {NOISE:.1f} pixels, {error:.1f} left; {accuracy:.1%} of the digits right")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
