"""What the tests of the examples share: two ways to train, and how far apart they may come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[..., Tensor]


def double(batch: Any) -> Any:
    """A named tuple of tensors, the floating-point ones in float64."""
    return type(batch)(*(t.double() if t.is_floating_point() else t for t in batch))


def reversed_rows(batch: Any) -> Any:
    """The same rows in another order: another rounding of the same sums."""
    return type(batch)(*(tensor.flip(0) for tensor in batch))


def rounding(steps: int) -> float:
    """A rounding in float64 each step."""
    return steps * torch.finfo(torch.float64).eps


def assert_trains_alike(
    make: Callable[[], nn.Module],
    train: Callable[[nn.Module, Sequence[Any]], list[float]],
    usual: Callable[[nn.Module, Sequence[Any]], list[float]],
    batches: Sequence[Any],
) -> tuple[nn.Module, nn.Module]:
    """Every step's loss and the weights in the end are the usual way's, but for rounding; float64.

    Each step carries the roundings of those before it, and how far they grow is the model's affair.
    So the yardstick is the usual way on the rows of each batch in reverse: ours may be as far from
    the usual way as that is, one rounding a step at least.

    Returns:
        The two models.
    """
    batches = [double(batch) for batch in batches]
    found = []
    for way, given in (
        (usual, batches),
        (usual, [reversed_rows(batch) for batch in batches]),
        (train, batches),
    ):
        model = make().double()
        losses = torch.tensor(way(model, given), dtype=torch.float64)
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        found.append((model, losses, weights))
    (theirs, *expected), (_, *other), (ours, *actual) = found
    for truth, yardstick, value in zip(expected, other, actual, strict=True):
        floor = rounding(len(batches)) * truth.abs().max()
        allowed = torch.maximum((yardstick - truth).abs().max(), floor)
        off = (value - truth).abs().max()
        assert off <= allowed, f"off by {off:.3g}, allowed {allowed:.3g}"
    start = torch.cat([p.detach().flatten() for p in make().double().parameters()])
    assert not torch.equal(start, actual[1])
    return ours, theirs
