"""Honest models of every kind that the export must pass: whatever is refused here is a mistake."""

from __future__ import annotations

from collections.abc import Callable

import torch
from _export import convolutional, mlp, rows
from torch import Tensor, nn

from fused_loss import DualHead

WIDTH = 32


class Encoder(nn.Module):
    """(N, 6, 32) -> a number and 5 logits, from the mean over 6 tokens."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 64, batch_first=True, dropout=0.1)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.heads = DualHead(nn.Identity(), nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 5))
        for weight in self.parameters():  # PyTorch begins with equal layers and biases of 0
            nn.init.normal_(weight, std=0.2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.heads(self.encoder(x).mean(1))


class Masked(nn.Module):
    """Logits of which half are forbidden, by a value far below any logit."""

    def __init__(self, forbidden: float = -1e9, added: bool = False) -> None:
        super().__init__()
        trunk = nn.Sequential(nn.Linear(4, 16), nn.ReLU())
        self.model = DualHead(trunk, nn.Linear(16, 1), nn.Linear(16, 6))
        self.forbidden, self.added = forbidden, added

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, logits = self.model(x)
        legal = torch.arange(6) % 2 == (x[:, :1] > 0)
        if self.added:
            return value, logits + torch.where(legal, 0.0, self.forbidden)
        return value, logits.masked_fill(~legal, self.forbidden)


def deep(layers: int = 12, width: int = 64) -> DualHead:
    """An MLP of `layers` layers without normalisation."""
    trunk: list[nn.Module] = []
    for i in range(layers):
        trunk += [nn.Linear(width if i else 4, width), nn.GELU()]
        nn.init.kaiming_normal_(trunk[-2].weight)  # so that the rows are still told apart behind it
    return DualHead(nn.Sequential(*trunk), nn.Linear(width, 2), nn.Linear(width, 10))


def scaled(model: DualHead, factor: float = 1e6) -> DualHead:
    """The same with a regression head in other units."""
    with torch.no_grad():
        model.regression_head.weight.mul_(factor)
        model.regression_head.bias.mul_(factor)
    return model


def two_units() -> DualHead:
    """Two regression columns: grams beside a share."""
    model = DualHead(nn.Sequential(nn.Linear(4, 32), nn.ReLU()), nn.Linear(32, 2), nn.Linear(32, 3))
    with torch.no_grad():
        model.regression_head.weight[0] *= 1e5
    return model


def _seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


# Name to a maker by seed, and rows.
ZOO: dict[str, tuple[Callable[[int], nn.Module], Tensor]] = {
    "mlp": (mlp, rows()),
    "cnn": (lambda seed: _seeded(convolutional, seed), rows(16, 2, 4, 5)),
    "transformer": (lambda seed: _seeded(Encoder, seed), rows(16, 6, WIDTH)),
    "12 layers": (lambda seed: _seeded(deep, seed), rows()),
    "1e6": (lambda seed: scaled(mlp(seed)), rows()),
    "12 layers, 1e6": (lambda seed: scaled(_seeded(deep, seed)), rows()),  # type: ignore[arg-type]
    "two units": (lambda seed: _seeded(two_units, seed), rows()),
    "masked": (lambda seed: _seeded(Masked, seed), rows()),
    "mask added": (lambda seed: _seeded(lambda: Masked(-1e9, True), seed), rows()),
    "mask of -1e4": (lambda seed: _seeded(lambda: Masked(-1e4, True), seed), rows()),
}
