"""What a loss is: its scalars (`LossSpec`), tensors (`LossTensors`) and parts (`Components`).

Scalars travel in the spec, which is frozen and hashable; tensors travel as tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

REDUCTIONS = ("mean", "sum", "none")
NAN_TARGETS = ("propagate", "ignore")
EMPTY = ("nan", "zero")
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NO_LABEL = -100  # what `ignore_index` is unless the caller says so, as in PyTorch
LARGEST = torch.finfo(torch.float32).max
PLAIN = (Tensor, Parameter)  # a subclass may mean something else by an operator


class Components(NamedTuple):
    """The two losses before weighting: detached, on the device, () or (N,) under "none"."""

    regression: Tensor
    classification: Tensor


class LossTensors(NamedTuple):
    """The tensors of one call. A head that is absent has None for its output and its targets.

    The mask and the two weights may come in any shape that broadcasts; `spread` brings them to the
    shapes below, without a copy, before a backend sees them.
    """

    regression_output: Tensor | None  # r: (N, *)
    classification_output: Tensor | None  # z: (N, C, d1, ...)
    regression_targets: Tensor | None  # y: (N, *)
    classification_targets: Tensor | None  # t: indices (N, d1, ...), or probabilities
    weights: Tensor | None = None  # () alpha, or (2,) (w_reg, w_cls); None: spec.weights
    class_weight: Tensor | None = None  # (C,)
    class_mask: Tensor | None = None  # bool (N, C, d1, ...): False where a class is impossible
    regression_weight: Tensor | None = None  # (N, *): of each squared error
    classification_weight: Tensor | None = None  # (N, d1, ...): of each position's cross-entropy
    regression_normalizer: Tensor | None = None  # (), in place of the denominator of "mean"
    classification_normalizer: Tensor | None = None  # ()

    @property
    def probabilities(self) -> bool:
        """Whether the classification targets are probabilities rather than class indices."""
        targets = self.classification_targets
        return targets is not None and targets.is_floating_point()

    def spread(self) -> LossTensors:
        """The mask in the shape of the logits, each weight in that of what it weights: views."""
        r, z, mask = self.regression_output, self.classification_output, self.class_mask
        changes: dict[str, Tensor] = {}
        if mask is not None and z is not None and mask.shape != z.shape:
            if mask.dim() == 1 and z.dim() > 2:  # (C,) of logits (N, C, d1, ...)
                mask = mask.view(-1, *[1] * (z.dim() - 2))
            changes["class_mask"] = mask.expand(z.shape)
        weight = self.regression_weight
        if weight is not None and r is not None and weight.shape != r.shape:
            changes["regression_weight"] = weight.expand(r.shape)
        weight = self.classification_weight
        if weight is not None and z is not None and weight.shape != class_axis(z)[1]:
            changes["classification_weight"] = weight.expand(class_axis(z)[1])
        return self._replace(**changes) if changes else self


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
    components: Tensor | None  # (2, *loss): regression, classification; with a third row, their
    # difference, which is the gradient of alpha and is rounded once
    regression_gradient: Tensor | None
    classification_gradient: Tensor | None


@dataclass(frozen=True)
class LossSpec:
    """The scalars of a loss.

    Attributes:
        reduction: "mean", "sum" or "none" (one value a sample).
        ignore_index: The class index whose positions are not labelled.
        label_smoothing: ε in [0, 1]: the target becomes `(1-ε)·target + ε/K` on the K classes that
            the mask leaves, all C without one.
        weights: `(w_reg, w_cls)`; None where they travel as a tensor.
        per_position: "none" as `F.cross_entropy` has it: one value a position, (N, d1, ...).
        nan_targets: "ignore": a regression target that is NaN is missing; "propagate": it is not.
        empty: "nan" or "zero": the "mean" of a head in which nothing is labelled.
        regression_normalizer: In place of the denominator of "mean"; None: the head's own, or a
            tensor's.
        classification_normalizer: The same for the other head.
        inplace_gradient: Whether the logits' gradient is written over the logits.
    """

    reduction: str = "mean"
    ignore_index: int = -100
    label_smoothing: float = 0.0
    weights: tuple[float, float] | None = (0.5, 0.5)
    per_position: bool = False
    nan_targets: str = "propagate"
    empty: str = "nan"
    regression_normalizer: float | None = None
    classification_normalizer: float | None = None
    inplace_gradient: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no meaning.

        Raises:
            ValueError: A value outside its legal range.
            TypeError: A value of the wrong type.
        """
        _one_of("reduction", self.reduction, REDUCTIONS)
        _one_of("nan_targets", self.nan_targets, NAN_TARGETS)
        _one_of("empty", self.empty, EMPTY)
        if not isinstance(self.inplace_gradient, bool):
            raise TypeError(f"inplace_gradient must be a bool, got {self.inplace_gradient!r}")
        for name in ("regression_normalizer", "classification_normalizer"):
            if getattr(self, name) is not None:
                normalizes_mean(name, self.reduction)
        self._take_scalars_of_numpy()
        if isinstance(self.ignore_index, bool) or not isinstance(self.ignore_index, int):
            raise TypeError(f"ignore_index must be an int, got {self.ignore_index!r}")
        if not -(1 << 63) <= self.ignore_index < 1 << 63:
            raise ValueError(f"ignore_index must fit 64 bits, got {self.ignore_index}")
        if not isinstance(self.label_smoothing, float | int):
            raise TypeError(f"label_smoothing must be a float, got {self.label_smoothing!r}")
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing must lie in [0, 1], got {self.label_smoothing}")

    def _take_scalars_of_numpy(self) -> None:
        """As PyTorch does: an `np.int64` for an int, an `np.float32` for a float."""
        if not isinstance(self.ignore_index, int) and isinstance(self.ignore_index, Integral):
            object.__setattr__(self, "ignore_index", int(self.ignore_index))
        smoothing = self.label_smoothing
        if not isinstance(smoothing, float | int) and isinstance(smoothing, Real):
            object.__setattr__(self, "label_smoothing", float(smoothing))

    @property
    def ignores_nan(self) -> bool:
        """Whether a regression target that is NaN is missing."""
        return self.nan_targets == "ignore"

    @property
    def of_nothing(self) -> float:
        """The "mean" of a head in which nothing is labelled."""
        return 0.0 if self.empty == "zero" else float("nan")

    @property
    def per_sample(self) -> bool:
        """Whether the loss has one value a sample or position, rather than one in all."""
        return self.reduction == "none"


def _one_of(name: str, value: object, legal: tuple[str, ...]) -> None:
    if value not in legal:
        known = ", ".join(map(repr, legal))
        raise ValueError(f"{name} must be one of {known}, got {value!r}")


def normalizes_mean(name: str, reduction: str) -> None:
    """Refuse a normalizer where there is no denominator.

    Raises:
        ValueError: The reduction is not "mean".
    """
    if reduction != "mean":
        raise ValueError(
            f'{name} replaces the denominator of reduction="mean", got reduction={reduction!r}: '
            "leave one of them out"
        )


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in this dtype, without the microseconds that a `to` takes to find out how."""
    if tensor.dtype == dtype:
        return tensor
    if dtype == torch.float32:
        return tensor.float()
    return tensor.double() if dtype == torch.float64 else tensor.to(dtype)


def number_in(value: float, dtype: torch.dtype) -> float:
    """A number as an operator of this dtype takes it: beyond its range infinite, not an error."""
    if dtype == torch.float64 or -LARGEST <= value <= LARGEST or math.isnan(value):
        return value
    return math.copysign(math.inf, value)


def accumulation_dtype(
    regression_output: Tensor | None, classification_output: Tensor | None
) -> torch.dtype:
    """`promote(float32, r, z)`: the dtype of the loss and of every sum within it."""
    for output in (regression_output, classification_output):
        if output is not None and output.dtype == torch.float64:
            return torch.float64
    return torch.float32


def class_axis(logits: Tensor) -> tuple[int, tuple[int, ...]]:
    """C, and the shape of the positions: (N, d1, ...), or () for logits (C,)."""
    if logits.dim() == 1:
        return logits.shape[0], ()
    return logits.shape[1], (logits.shape[0], *logits.shape[2:])


def loss_shape(spec: LossSpec, logits: Tensor) -> tuple[int, ...]:
    """The shape of a loss over both heads: (), or (N,) under "none"."""
    return (logits.shape[0],) if spec.per_sample and logits.dim() > 1 else ()


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


def illegal_index(spec: LossSpec, tensors: LossTensors) -> IndexError | None:
    """What an operator's own error was about, if it was a class index; None off the CPU."""
    z, t = tensors.classification_output, tensors.classification_targets
    if z is None or t is None or t.is_floating_point() or z.device.type != "cpu":
        return None
    return index_error(t, class_axis(z)[0], spec.ignore_index)
