"""A mean and a deviation per feature: of an input before the model, of the regression after it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scaling:
    """Means and deviations in float64, of any shape that fits a sample.

    Attributes:
        argument: What an error calls it.
        mean, std: (), (C,) along axis 1 of (N, C, *), or the whole shape of a sample.
    """

    argument: str
    mean: np.ndarray
    std: np.ndarray

    def tensors(self, sample: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Mean and deviation, shaped to broadcast over (N, *sample).

        Raises:
            ValueError: Neither one number, nor one for each along axis 1, nor one for each element.
        """
        sample = tuple(sample)
        return self._shaped(self.mean, sample, dtype), self._shaped(self.std, sample, dtype)

    def _shaped(self, values: np.ndarray, sample: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        tensor = torch.from_numpy(values.copy()).to(dtype)
        if values.size == 1:
            return tensor.reshape(())
        if values.shape == sample:
            return tensor
        if sample and values.shape == sample[:1]:
            return tensor.reshape(-1, *(1,) * (len(sample) - 1))
        raise ValueError(
            f"{self.argument} has mean and std of shape {values.shape}, a sample has shape "
            f"{sample}: give one number, one for each along its first axis, or one for each element"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}


def scaling(argument: str, given: Any) -> Scaling:
    """Check a mapping with `mean` and `std`.

    Raises:
        TypeError, ValueError: Other keys, no numbers, or a deviation that is not above 0.
    """
    if not isinstance(given, Mapping) or set(given) != {"mean", "std"}:
        keys = list(given) if isinstance(given, Mapping) else given
        raise ValueError(f"{argument} must hold mean and std and nothing else, got {keys}")
    mean, std = (_numbers(f"{argument}: {key}", given[key]) for key in ("mean", "std"))
    if mean.shape != std.shape and 1 not in (mean.size, std.size):
        raise ValueError(f"{argument}: mean has shape {mean.shape}, std {std.shape}")
    if not (std > 0).all():
        raise ValueError(f"{argument}: std must be above 0 everywhere, the least is {std.min():g}")
    return Scaling(argument, mean, std)


def restored(
    rows: Sequence[Tensor], names: Sequence[str], scalings: Mapping[str, Scaling]
) -> tuple[Tensor, ...]:
    """Standard rows (N, *) as they are before they are scaled, `x * std + mean`."""
    before = []
    for name, tensor in zip(names, rows, strict=True):
        if name in scalings:
            mean, std = scalings[name].tensors(tensor.shape[1:], tensor.dtype)
            tensor = tensor * std + mean
        before.append(tensor)
    return tuple(before)


def _numbers(argument: str, given: Any) -> np.ndarray:
    try:
        values = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
        values = values.astype(np.float64, casting="safe" if values.dtype.kind in "fiu" else "no")
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{argument} must be a number or lists of numbers, got {given!r}"
        ) from error
    if not values.size or not all(map(math.isfinite, values.ravel())):
        raise ValueError(f"{argument} must hold finite numbers, got {given!r}")
    return values
