"""Either head's loss of few elements, every option in the fewest of PyTorch's own operators.

None stands for what these operators get wrong, such as an infinity times a weight of 0: a loss that
is not finite, a denominator that nothing can be divided by, logits out of reach. `native` takes
such a call through the reference, which is differentiable too.

What must not count is replaced before it is squared or exponentiated, so that it adds 0 to every
derivative: a missing target and its prediction by 0, the logit of an impossible class by -inf.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_loss.spec import (
    LARGEST,
    LossSpec,
    LossTensors,
    accumulation_dtype,
    illegal_index,
    in_dtype,
    number_in,
)

REDUCTIONS = {"mean": 1, "sum": 2}  # as PyTorch's operators number them
EACH = 0
SMALLEST = torch.finfo(torch.float32).tiny
# What an impossible class has beside probabilities, and what logits keep clear of then:
# exp(FAR - z) = 0 and 0 · FAR = 0, where 0 · -inf is not.
FAR, CLEAR = -LARGEST / 2, LARGEST / 4

# Without the wrappers of torch.nn.functional, which cost as much as the operators.
mse_loss: Any = torch._C._nn.mse_loss
cross_entropy_loss: Any = torch._C._nn.cross_entropy_loss


class Head(NamedTuple):
    """A head's loss: `total / denominator`, in float64 until the last where an option is summed."""

    total: Tensor  # (), or (N,) or a position
    denominator: float
    dtype: torch.dtype  # of the loss

    @property
    def loss(self) -> Tensor:
        """The quotient."""
        total = self.total
        if self.denominator != 1:
            # By a Python number it costs more than by a tensor, and the making of one.
            by = torch.scalar_tensor(self.denominator, dtype=total.dtype, device="cpu")
            total = total / by
        return in_dtype(total, self.dtype)

    def times(self, weight: float) -> tuple[Tensor, float]:
        """A tensor and a number whose product is the weighted loss: often without the quotient."""
        factor = weight / self.denominator
        if self.total.dtype == torch.float64 and SMALLEST <= abs(factor) <= LARGEST:
            return self.total, factor
        return self.loss, number_in(weight, self.dtype)


def spells_out(spec: LossSpec, tensors: LossTensors) -> bool:
    """Whether a reduction of PyTorch's own will not do: then both heads are summed in float64.

    In float32 the two sums' errors need not cancel where those of a composition by hand happen to.
    """
    options = (
        tensors.class_mask,
        tensors.regression_weight,
        tensors.classification_weight,
        spec.regression_normalizer,
        spec.classification_normalizer,
        *tensors[-2:],
    )
    return spec.ignores_nan or any(option is not None for option in options)


def mean_squared_error(spec: LossSpec, tensors: LossTensors, spelt_out: bool) -> Head | None:
    """The regression head's; None for what the reference is to compute.

    Args:
        spec: The scalars.
        tensors: Checked and spread tensors.
        spelt_out: What `spells_out` says of the call.
    """
    r, y = tensors.regression_output, tensors.regression_targets
    assert r is not None
    assert y is not None
    dtype = accumulation_dtype(r, tensors.classification_output)
    r, y, there = in_dtype(r, dtype), in_dtype(y, dtype), None
    if spec.ignores_nan:
        missing = y.isnan()
        if torch.count_nonzero(missing).item():
            there = ~missing
            r, y = torch.where(missing, 0.0, r), torch.where(missing, 0.0, y)
    weight = tensors.regression_weight
    normalizer = _normalizer(spec.regression_normalizer, tensors.regression_normalizer)
    if not (spelt_out or spec.per_sample):
        return Head(mse_loss(r, y, REDUCTIONS[spec.reduction]), 1.0, dtype)
    errors = mse_loss(r, y, EACH)
    if weight is not None:
        errors = errors * in_dtype(weight, dtype)
    if spec.per_sample:
        return _legal(_per_sample(errors, there), 1.0, dtype)
    by = _denominator(spec, normalizer, weight, there, r.numel())
    return _legal(errors.sum(dtype=torch.float64), by, dtype)


def cross_entropy(spec: LossSpec, tensors: LossTensors, spelt_out: bool) -> Head | None:
    """The classification head's; None as above.

    Raises:
        IndexError: A class index lies outside [0, C).
    """
    try:
        return _cross_entropy(spec, tensors, spelt_out)
    except (IndexError, RuntimeError) as error:
        named = illegal_index(spec, tensors)
        if named is None:
            raise
        raise named from error


def _cross_entropy(spec: LossSpec, tensors: LossTensors, spelt_out: bool) -> Head | None:
    z, t = tensors.classification_output, tensors.classification_targets
    assert z is not None
    assert t is not None
    dtype, hard = accumulation_dtype(tensors.regression_output, z), not tensors.probabilities
    z, t, there = in_dtype(z, dtype), in_dtype(t, torch.int64 if hard else dtype), None
    if hard and (spec.ignore_index >= 0 or t.min().item() < 0):
        there = t != spec.ignore_index
        if not _within(LARGEST, z):  # NaN · 0 is not 0
            return None
    of_classes, weight = tensors.class_weight, tensors.classification_weight
    if of_classes is not None:
        of_classes = in_dtype(of_classes, dtype)
        if smoothing_spoils(spec.label_smoothing, of_classes):
            return None
    if tensors.class_mask is not None:
        masked = _masked(spec, z, t, tensors.class_mask, there)
        if masked is None:
            return None
        z = masked
    normalizer = _normalizer(spec.classification_normalizer, tensors.classification_normalizer)
    how = EACH if spelt_out or spec.per_sample else REDUCTIONS[spec.reduction]
    losses = cross_entropy_loss(z, t, of_classes, how, spec.ignore_index, spec.label_smoothing)
    if weight is not None:
        losses = losses * in_dtype(weight, dtype)
    if spec.per_sample:
        each = losses if spec.per_position else _per_sample(losses, there)
        return _legal(each, 1.0, dtype)
    if not spelt_out:
        return _legal(losses, 1.0, dtype)
    if of_classes is not None and hard and normalizer is None and spec.reduction == "mean":
        labels = t if there is None else torch.where(there, t, 0)
        weight = of_classes[labels] if weight is None else weight * of_classes[labels]
    by = _denominator(spec, normalizer, weight, there, losses.numel())
    return _legal(losses.sum(dtype=torch.float64), by, dtype)


def _within(reach: float, logits: Tensor) -> bool:
    least, most = torch.aminmax(logits.detach())
    return least.item() >= -reach and most.item() <= reach


def smoothing_spoils(smoothing: float, class_weight: Tensor) -> bool:
    """Whether smoothing multiplies the 0 of a position without a label by no finite weight."""
    return smoothing > 0 and not math.isfinite(class_weight.sum().item())


def _masked(
    spec: LossSpec, z: Tensor, t: Tensor, mask: Tensor, there: Tensor | None
) -> Tensor | None:
    """Logits that give no probability to an impossible class of a labelled position."""
    if spec.label_smoothing:  # spreads over the possible ones
        return None
    if not t.is_floating_point():
        if there is not None:  # nothing may be possible there, and log p be NaN
            mask = mask | ~there.unsqueeze(1)
        return torch.where(mask, z, -torch.inf)
    if not (_within(CLEAR, z) and torch.equal(torch.where(mask, t, 0.0), t)):
        return None
    return torch.where(mask, z, FAR)


def _normalizer(number: float | None, tensor: Tensor | None) -> float | None:
    return number if tensor is None else tensor.item()


def _denominator(
    spec: LossSpec,
    normalizer: float | None,
    weight: Tensor | None,
    there: Tensor | None,
    elements: int,
) -> float:
    """Of "mean": the normalizer, the sum of the weights, or the count of what is there."""
    if spec.reduction != "mean":
        return 1.0
    if normalizer is not None:
        return normalizer
    if weight is None:
        return elements if there is None else torch.count_nonzero(there).item()
    share = weight if there is None else torch.where(there, weight, 0.0)
    return share.sum(dtype=torch.float64).item()


def _per_sample(losses: Tensor, there: Tensor | None) -> Tensor:
    """(N, *) -> (N,): the sum of a sample's losses over the count of what is there."""
    if losses.dim() < 2:
        return losses
    losses = losses.flatten(1)
    if there is None:
        return losses.mean(1)
    return losses.sum(1) / there.flatten(1).sum(1).clamp(min=1)


def _legal(total: Tensor, denominator: float, dtype: torch.dtype) -> Head | None:
    """The head; None where it is not finite, or the denominator no divisor."""
    seen = (total if total.dim() == 0 else total.detach().sum()).item()
    legal = abs(seen) <= LARGEST and SMALLEST <= abs(denominator) <= LARGEST
    return Head(total, denominator, dtype) if legal else None
