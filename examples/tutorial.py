"""The two-head tutorial, with `combined_loss` in place of its own.

One linear layer predicts y = 2x + 3 plus noise, and a classifier reads that prediction; both learn
from `alpha * MSE + (1 - alpha) * cross-entropy`. The class labels are those of other points, which
the model never sees: nothing about them can be learned here, and the accuracy stays at chance.

Run it with `python examples/tutorial.py`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fused_loss import DualHead, combined_loss

EPOCHS = 100
SHOWN_EVERY = 10
LEARNING_RATE = 0.01


class Data(NamedTuple):
    """What the model sees, and what it should answer."""

    x: Tensor  # (100, 1)
    y: Tensor  # (100, 1), the regression targets
    labels: Tensor  # (100,), the classes 0 and 1


def make_data() -> Data:
    """Noisy points on a line, and the labels of two clusters around -2 and +2."""
    x = torch.randn(100, 1) * 10
    y = 2 * x + 3 + torch.randn(100, 1) * 2
    # The clusters themselves go unused; drawing them keeps the tutorial's random numbers.
    clusters = [torch.randn(50, 1) + centre for centre in (-2, 2)]
    labels = [torch.full((len(points),), index) for index, points in enumerate(clusters)]
    return Data(x, y, torch.cat(labels))


def make_model() -> DualHead:
    """The trunk is the regression; the classifier takes its output."""
    return DualHead(nn.Linear(1, 1), nn.Identity(), nn.Linear(1, 2))


def train(model: nn.Module, data: Data, epochs: int = EPOCHS) -> list[float]:
    """Plain gradient descent on the whole data set; the loss of each epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = combined_loss(*model(data.x), data.y, data.labels, alpha=0.5)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def evaluate(model: nn.Module, data: Data) -> tuple[float, float]:
    """The mean squared error, and the share of right classes."""
    prediction, logits = model(data.x)
    squared = (prediction - data.y) ** 2
    right = logits.argmax(1) == data.labels
    return squared.mean().item(), right.float().mean().item()


def main() -> None:
    """Train from seed 0, and print what the tutorial prints."""
    torch.manual_seed(0)
    data, model = make_data(), make_model()
    for epoch, loss in enumerate(train(model, data), 1):
        if epoch % SHOWN_EVERY == 0:
            print(f"epoch {epoch:3d}  loss {loss:.4f}")
    mse, accuracy = evaluate(model, data)
    print(f"regression MSE {mse:.4f}")
    print(f"accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
