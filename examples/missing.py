"""Training with missing labels, in two ways; `penguins_missing.py` and `diamonds.py` compare them.

A row may lack its number (NaN), its class (-100), or both. The usual way is to gather the rows that
have one, head by head, and to leave a head out where a batch has none. `combined_loss` does it in
one call, and reads nothing back to find out which rows they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fused_loss import DualHead, combined_loss

ALPHA = 0.5
HIDDEN = 64
SHOWN = 100  # batches whose gradients are compared
MISSING = -100  # the class of a row without one

Loss: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Batch(NamedTuple):
    """Some rows of a data set."""

    x: Tensor  # (N, F)
    y: Tensor  # (N, 1) in deviations from the mean; NaN: missing
    t: Tensor  # (N,); MISSING: missing

    def take(self, rows: Tensor) -> Batch:
        """The rows that an index or a mask chooses."""
        return Batch(*(tensor[rows] for tensor in self))


def fused(r: Tensor, z: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Each head over its labelled rows; 0 for a head that has none."""
    return combined_loss(
        r, z, y, t, ALPHA, nan_targets="ignore", ignore_index=MISSING, empty="zero"
    )


def gathered(r: Tensor, z: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """The same, by gathering those rows first."""
    loss = 0 * (r.sum() + z.sum())  # keeps both heads in the graph
    known, named = ~y.isnan(), t != MISSING
    if known.any():
        loss = loss + ALPHA * F.mse_loss(r[known], y[known])
    if named.any():
        loss = loss + (1 - ALPHA) * F.cross_entropy(z[named], t[named])
    return loss


def make_model(seed: int, features: int, classes: int) -> DualHead:
    """A small network; the same weights for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU())
        return DualHead(trunk, nn.Linear(HIDDEN, 1), nn.Linear(HIDDEN, classes))


def train(model: nn.Module, batches: Iterable[Batch], loss: Loss, rate: float) -> list[float]:
    """A step a batch; the loss of each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    losses = []
    for x, y, t in batches:
        optimizer.zero_grad()
        value = loss(*model(x), y, t)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def difference(model: nn.Module, batch: Batch) -> tuple[float, float]:
    """How far the two ways are apart: of the loss, and of the gradients of both outputs.

    Each as a share of the largest value.
    """
    found = []
    for loss in (fused, gathered):
        outputs = [output.detach().requires_grad_() for output in model(batch.x)]
        value = loss(*outputs, batch.y, batch.t)
        gradients = torch.autograd.grad(value, outputs)
        found.append((value.detach(), torch.cat([g.flatten() for g in gradients])))
    (ours, our_gradient), (theirs, their_gradient) = found
    return _apart(ours, theirs), _apart(our_gradient, their_gradient)


def _apart(ours: Tensor, theirs: Tensor) -> float:
    scale = theirs.abs().max().clamp(min=torch.finfo(theirs.dtype).tiny)
    return ((ours - theirs).abs().max() / scale).item()


class Scores(NamedTuple):
    """How good a model is on rows that all have both labels."""

    loss: float
    error: float  # root of the mean squared error, in deviations
    accuracy: float


@torch.no_grad()
def score(model: nn.Module, rows: Batch) -> Scores:
    """The scores of the model's outputs."""
    r, z = model(rows.x)
    error = F.mse_loss(r, rows.y).sqrt()
    accuracy = (z.argmax(1) == rows.t).float().mean()
    return Scores(gathered(r, z, rows.y, rows.t).item(), error.item(), accuracy.item())


def standard(values: Tensor) -> Tensor:
    """(N, F) with mean 0 and deviation 1 over what is known; NaN stays NaN."""
    centred = values - values.nanmean(0)
    return centred / centred.square().nanmean(0).sqrt()


def compare(
    make: Callable[[], nn.Module], batches: Sequence[Batch], held_out: Batch, rate: float
) -> None:
    """Train from the same weights on the same batches in both ways, and print what came out."""
    ways = {"fused": fused, "gathered": gathered}
    models = {name: make() for name in ways}
    losses = {name: train(models[name], batches, loss, rate) for name, loss in ways.items()}
    scores = [score(model, held_out) for model in models.values()]
    last = losses["fused"][-1], losses["gathered"][-1]

    table = Table(title=f"{len(batches)} steps, {len(held_out.t)} rows held out")
    table.add_column("")
    for name in ways:
        table.add_column(name, justify="right")
    table.add_row("loss of the last step", *(f"{loss:.6f}" for loss in last))
    table.add_row("held-out: loss", *(f"{each.loss:.6f}" for each in scores))
    table.add_row("held-out: error (deviations)", *(f"{each.error:.6f}" for each in scores))
    table.add_row("held-out: accuracy", *(f"{each.accuracy:.4f}" for each in scores))
    console = Console()
    console.print(table)
    for line in _findings(models["fused"], batches, losses):
        console.print(line, highlight=False, soft_wrap=True)


def _findings(
    model: nn.Module, batches: Sequence[Batch], losses: dict[str, list[float]]
) -> Iterator[str]:
    numberless = sum(batch.y.isnan().all().item() for batch in batches)
    classless = sum((batch.t == MISSING).all().item() for batch in batches)
    yield f"batches without any number: {numberless}, without any class: {classless}"
    apart = [difference(model, batch) for batch in batches[-SHOWN:]]
    loss, gradient = (max(values) for values in zip(*apart, strict=True))
    yield (
        f"same weights, same batch: the losses differ by {loss:.1e} of their value at most, "
        f"the gradients by {gradient:.1e} of the largest"
    )
    steps = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    yield f"the two trainings: the losses of a step differ by {steps:.1e} at most"
