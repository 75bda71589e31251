"""The demo's model and its training: measurements as they are read, in; grams and logits, out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from fused_loss.demo_data import COLUMNS, SPECIES, Rows
from fused_loss.modules import CombinedLoss, DualHead

Outputs: TypeAlias = tuple[Tensor, Tensor]

# Chosen on the splits of seeds 100 to 105, none of which the tests use.
EPOCHS = 60
ALPHA = 0.5
HIDDEN = 32
BATCH = 32
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2


class Scale(nn.Module):
    """(N, F) -> (N, F) with mean 0 and deviation 1 over the rows that it was fitted to."""

    mean: Tensor  # (F,)
    deviation: Tensor  # (F,)

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))

    def fit(self, values: Tensor) -> None:
        """Of what is not NaN in (N, F); a feature that never varies keeps the deviation 1."""
        known = ~values.isnan()
        count = known.sum(0).clamp(min=1)
        mean = values.where(known, 0.0).sum(0) / count
        variance = (values - mean).where(known, 0.0).square().sum(0) / count
        self.mean.copy_(mean)
        self.deviation.copy_(variance.sqrt().where(variance > 0, 1.0))

    def forward(self, values: Tensor) -> Tensor:
        """(N, F) -> (N, F)."""
        return (values - self.mean) / self.deviation

    def restore(self, standard: Tensor) -> Tensor:
        """The inverse of `forward`."""
        return standard * self.deviation + self.mean


class PenguinModel(nn.Module):
    """`DualHead` between two scales: the exported file takes millimetres and gives grams."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = Scale(len(COLUMNS))
        self.mass = Scale(1)
        self.heads = DualHead(
            nn.Sequential(nn.Linear(len(COLUMNS), HIDDEN), nn.ReLU()),
            nn.Linear(HIDDEN, 1),
            nn.Linear(HIDDEN, len(SPECIES)),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 8) -> mass (N, 1) in g, logits (N, 3); a missing value (NaN) counts as the mean."""
        standard = self.inputs(x)
        mass, logits = self.heads(standard.where(~standard.isnan(), 0.0))
        return self.mass.restore(mass), logits


class Scores(NamedTuple):
    """How good a part's predictions are; the regression loss in squared deviations of the mass."""

    accuracy: float
    rmse: float  # g
    loss: float
    regression: float
    classification: float


class Epoch(NamedTuple):
    """The scores of both parts after an epoch."""

    train: Scores
    held_out: Scores


def train(
    rows: Rows,
    held_out: Rows,
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
    alpha: float = ALPHA,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> tuple[PenguinModel, list[Epoch]]:
    """Fit a model to `rows`, scales included; `held_out` is only scored, after each epoch."""
    criterion = CombinedLoss(alpha)
    history = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PenguinModel()
        model.inputs.fit(rows.inputs)
        model.mass.fit(rows.mass)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )
        for _ in range(epochs):
            for batch in torch.randperm(len(rows.mass)).split(BATCH):
                chosen = Rows(*(tensor[batch] for tensor in rows))
                optimizer.zero_grad()
                criterion(*_standard(model.mass, model(chosen.inputs), chosen)).backward()
                optimizer.step()
            history.append(Epoch(*(evaluate(alpha, model, part) for part in (rows, held_out))))
            on_epoch(history[-1])
    return model, history


@torch.no_grad()
def evaluate(alpha: float, model: PenguinModel, rows: Rows) -> Scores:
    """Scores of the model's own predictions."""
    return score(alpha, model.mass, model(rows.inputs), rows)


def score(alpha: float, scale: Scale, outputs: Outputs, rows: Rows) -> Scores:
    """Scores of `(mass (N, 1) in g, logits (N, 3))`, whichever runtime they come from."""
    mass, logits = outputs
    criterion = CombinedLoss(alpha, return_components=True)
    loss, components = criterion(*_standard(scale, outputs, rows))
    return Scores(
        (logits.argmax(1) == rows.species).float().mean().item(),
        (mass - rows.mass).square().mean().sqrt().item(),
        loss.item(),
        components.regression.item(),
        components.classification.item(),
    )


def _standard(scale: Scale, outputs: Outputs, rows: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss's arguments, masses in deviations: squared grams would drown the classes."""
    mass, logits = outputs
    return scale(mass), logits, scale(rows.mass), rows.species
