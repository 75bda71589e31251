"""Names, axes and inputs of an exported model, declared once for export, verification and use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

BATCH_AXIS = "batch"
INPUT_NAMES = ("input",)
OUTPUT_NAMES = ("regression_output", "classification_output")
REGRESSION, CLASSIFICATION, LABEL, LOSS = "regression", "classification", "label", "loss"
HEADS = (REGRESSION, CLASSIFICATION)
VERIFY_BATCHES = (0, 1, 2, 7, 64)
OPSET = 20
MAX_IR_VERSION = 10

Arrays: TypeAlias = "Tensor | np.ndarray | Sequence[Tensor | np.ndarray]"
Tensors: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True)
class Signature:
    """The names of inputs and outputs.

    Attributes:
        input_names: One an input.
        output_names: Of the two heads, regression first.
        roles: What the file gives, in its order: the two heads, then "label" and "loss" where they
            are there; or "loss" alone. The last two are the names of their outputs too.

    Raises:
        TypeError: Names that are not a sequence of strings.
        ValueError: Names that are empty, repeated or in the wrong number or order.
    """

    input_names: tuple[str, ...] = INPUT_NAMES
    output_names: tuple[str, ...] = OUTPUT_NAMES
    roles: tuple[str, ...] = HEADS

    def __post_init__(self) -> None:
        """Check the names."""
        for argument in ("input_names", "output_names"):
            object.__setattr__(self, argument, _names(argument, getattr(self, argument)))
        if len(self.output_names) != 2:
            raise ValueError(
                "output_names must be two names, regression then classification, "
                f"got {len(self.output_names)}: {self.output_names}"
            )
        if self.output_names == OUTPUT_NAMES[::-1]:
            raise ValueError(
                f"output_names {self.output_names} are swapped: they label the outputs of forward "
                "by position, regression first"
            )
        every = (*self.input_names, *self.output_names, *self.roles[2:])
        if len(set(every)) != len(every):
            raise ValueError(f"input_names and output_names must all differ, got {every}")

    @property
    def outputs(self) -> dict[str, str]:
        """Role to name, in the order of the file."""
        named = dict(zip(HEADS, self.output_names, strict=True))
        return {role: named.get(role, role) for role in self.roles}

    @property
    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Axis 0 of every input is `batch`, in the nesting of `forward(*inputs)`."""
        return (({0: BATCH_AXIS},) * len(self.input_names),)


def as_tensors(argument: str, arrays: Arrays, count: int) -> Tensors:
    """Tensors on the CPU, one an input, each (N, *) with the same N >= 1.

    Raises:
        TypeError: Not tensors or NumPy arrays.
        ValueError: Too few or too many, no batch axis, no row, or different numbers of rows.
    """
    given = [arrays] if isinstance(arrays, (Tensor, np.ndarray)) else arrays
    if not isinstance(given, (list, tuple)):
        raise TypeError(
            f"{argument} must be a tensor, a NumPy array or a tuple of them, "
            f"got {type(arrays).__name__}"
        )
    tensors = tuple(_as_tensor(argument, array) for array in given)
    if len(tensors) != count:
        raise ValueError(
            f"{argument} has {len(tensors)} tensors and input_names has {count} names: "
            "give one name an input"
        )
    rows = {tensor.shape[0] for tensor in tensors}
    if len(rows) > 1:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise ValueError(f"{argument} must have the same number of rows in every input: {shapes}")
    if rows == {0}:
        raise ValueError(f"{argument} has no row: give at least one")
    return tensors


def batch_sizes(argument: str, sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes in rising order, once each.

    Raises:
        ValueError: Nothing to verify with, or a size that is not a whole number >= 0.
    """
    checked = tuple(sizes)
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 0 for size in checked):
        raise ValueError(f"{argument} must be whole numbers >= 0, got {checked}")
    if not any(checked):
        raise ValueError(f"{argument} must hold a size above 0, got {checked}")
    return tuple(sorted(set(checked)))


def _names(argument: str, names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{argument} must be a tuple of strings, got {names!r}")
    if not names or "" in names:
        raise ValueError(f"{argument} must hold names that are not empty, got {tuple(names)}")
    return tuple(names)


def _as_tensor(argument: str, array: Any) -> Tensor:
    if isinstance(array, np.ndarray):
        array = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    if not isinstance(array, Tensor):
        raise TypeError(f"{argument} must hold tensors or NumPy arrays, got {type(array).__name__}")
    if array.dim() == 0:
        raise ValueError(f"{argument} must have a batch axis first, (N, ...): got a 0-d tensor")
    return array.detach().cpu()
