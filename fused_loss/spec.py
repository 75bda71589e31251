"""What a loss is: its scalars (`LossSpec`), tensors (`LossTensors`) and parts (`Components`).

Scalars travel in the spec, which is frozen and hashable; tensors travel as tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

REDUCTIONS = ("mean", "sum", "none")
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Components(NamedTuple):
    """The two losses before weighting: detached, on the device, () or (N,) under "none"."""

    regression: Tensor
    classification: Tensor


class LossTensors(NamedTuple):
    """The tensors of one call. A head that is absent has None for its output and its targets."""

    regression_output: Tensor | None  # r: (N, *)
    classification_output: Tensor | None  # z: (N, C, d1, ...)
    regression_targets: Tensor | None  # y: (N, *)
    classification_targets: Tensor | None  # t: indices (N, d1, ...), or probabilities
    weights: Tensor | None = None  # () alpha, or (2,) (w_reg, w_cls); None: spec.weights
    class_weight: Tensor | None = None  # (C,)

    @property
    def probabilities(self) -> bool:
        """Whether the classification targets are probabilities rather than class indices."""
        targets = self.classification_targets
        return targets is not None and targets.is_floating_point()


class Needs(NamedTuple):
    """Which of the two outputs want a gradient, and whether the components are wanted."""

    regression: bool
    classification: bool
    components: bool = True


class Outcome(NamedTuple):
    """What a backend returns for one call.

    The gradients are those for a `grad_output` of 1, or None where they were not asked for.
    """

    loss: Tensor  # () or (N,)
    components: Tensor | None  # (2,) or (2, N): regression, classification; or None
    regression_gradient: Tensor | None
    classification_gradient: Tensor | None


@dataclass(frozen=True)
class LossSpec:
    """The scalars of a loss.

    Attributes:
        reduction: "mean", "sum" or "none" (one value a sample).
        ignore_index: The class index whose positions are not labelled.
        label_smoothing: ε in [0, 1]: the target becomes `(1-ε)·target + ε/C`.
        weights: `(w_reg, w_cls)`; None where they travel as a tensor.
        per_position: "none" as `F.cross_entropy` has it: one value a position, (N, d1, ...).
    """

    reduction: str = "mean"
    ignore_index: int = -100
    label_smoothing: float = 0.0
    weights: tuple[float, float] | None = (0.5, 0.5)
    per_position: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no meaning.

        Raises:
            ValueError: A value outside its legal range.
            TypeError: A value of the wrong type.
        """
        if self.reduction not in REDUCTIONS:
            known = ", ".join(map(repr, REDUCTIONS))
            raise ValueError(f"reduction must be one of {known}, got {self.reduction!r}")
        if isinstance(self.ignore_index, bool) or not isinstance(self.ignore_index, int):
            raise TypeError(f"ignore_index must be an int, got {self.ignore_index!r}")
        if not -(1 << 63) <= self.ignore_index < 1 << 63:
            raise ValueError(f"ignore_index must fit 64 bits, got {self.ignore_index}")
        if not isinstance(self.label_smoothing, float | int):
            raise TypeError(f"label_smoothing must be a float, got {self.label_smoothing!r}")
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing must lie in [0, 1], got {self.label_smoothing}")

    @property
    def per_sample(self) -> bool:
        """Whether the loss has one value a sample or position, rather than one in all."""
        return self.reduction == "none"


def accumulation_dtype(
    regression_output: Tensor | None, classification_output: Tensor | None
) -> torch.dtype:
    """`promote(float32, r, z)`: the dtype of the loss and of every sum within it."""
    outputs = regression_output, classification_output
    double = any(output is not None and output.dtype == torch.float64 for output in outputs)
    return torch.float64 if double else torch.float32


def class_axis(logits: Tensor) -> tuple[int, tuple[int, ...]]:
    """C, and the shape of the positions: (N, d1, ...), or () for logits (C,)."""
    if logits.dim() == 1:
        return logits.shape[0], ()
    return logits.shape[1], (logits.shape[0], *logits.shape[2:])


def index_error(targets: Tensor, classes: int, ignore_index: int) -> IndexError | None:
    """The error that names the first class index outside [0, C); reads the values."""
    index = targets.long()
    illegal = index[((index < 0) | (index >= classes)) & (index != ignore_index)]
    if not illegal.numel():
        return None
    return IndexError(
        f"classification_targets holds the class index {int(illegal[0])}, outside [0, {classes}) "
        f"for {classes} classes; a position without a label carries ignore_index ({ignore_index})"
    )
