"""The oracle: `F.mse_loss` and `F.cross_entropy` composed in the obvious way.

Every other backend is tested against this one, and it shares no arithmetic with them. It is made of
differentiable PyTorch operators alone and never enters an autograd Function, so that double
backward, `torch.func` and forward-mode differentiation all work through it.

Where PyTorch lacks an option it is `log_softmax`, `gather` and `where`. A `where` hides a NaN from
the value but not from the gradient, so what must not matter is replaced before it is used.

On a CPU all of it is computed in float64, and each result is rounded once; an accelerator may not
have float64, or have it slow, and a compiled graph would lose half of its speed: there it is the
dtype of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_loss.spec import (
    LossSpec,
    LossTensors,
    accumulation_dtype,
    class_axis,
    illegal_index,
)


def forward(spec: LossSpec, tensors: LossTensors) -> tuple[Tensor, Tensor | None]:
    """The loss and its two components, `(2,)` or `(2, N)`, all attached to the graph.

    Args:
        spec: The scalars.
        tensors: Checked and spread tensors; either head may be absent.

    Returns:
        The weighted loss, () or (N,), and `stack((regression, classification))`; None in its place
        where there is one head only.
    """
    parts = _heads(spec, tensors)
    dtype = accumulation_dtype(tensors.regression_output, tensors.classification_output)
    if len(parts) == 1:  # cross_entropy or mse_loss alone: weight 1
        return parts[0].to(dtype), None
    mse, ce = parts
    pair: Sequence[float | Tensor]
    if tensors.weights is None:
        assert spec.weights is not None
        pair = spec.weights
    else:
        weights = tensors.weights.to(mse.dtype)
        pair = (weights, 1 - weights) if weights.dim() == 0 else weights.unbind()
    return (pair[0] * mse + pair[1] * ce).to(dtype), torch.stack((mse, ce)).to(dtype)


def heads(spec: LossSpec, tensors: LossTensors) -> tuple[Tensor, ...]:
    """The losses of those heads that are there, regression first, each with a graph of its own."""
    dtype = accumulation_dtype(tensors.regression_output, tensors.classification_output)
    return tuple(loss.to(dtype) for loss in _heads(spec, tensors))


def _heads(spec: LossSpec, tensors: LossTensors) -> tuple[Tensor, ...]:
    """The same in the dtype that they were computed in."""
    dtype = _working_dtype(tensors)
    parts = []
    if tensors.regression_output is not None:
        parts.append(_regression(spec, tensors, dtype))
    if tensors.classification_output is not None:
        parts.append(_classification(spec, tensors, dtype))
    return tuple(parts)


def _named(spec: LossSpec, tensors: LossTensors, error: Exception) -> Exception:
    """What an operator's error was about, if it was a class index whose value may be read."""
    if torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling():
        return error
    return illegal_index(spec, tensors) or error


def _working_dtype(tensors: LossTensors) -> torch.dtype:
    outputs = tensors.regression_output, tensors.classification_output
    on_cpu = all(output is None or output.device.type == "cpu" for output in outputs)
    if on_cpu and not torch.compiler.is_compiling():
        return torch.float64
    return accumulation_dtype(*outputs)


def _regression(spec: LossSpec, tensors: LossTensors, dtype: torch.dtype) -> Tensor:
    output, targets = tensors.regression_output, tensors.regression_targets
    assert output is not None
    assert targets is not None
    output, targets = output.to(dtype), targets.to(dtype)
    normalizer = _normalizer(spec.regression_normalizer, tensors.regression_normalizer)
    whole = not spec.ignores_nan and tensors.regression_weight is None and normalizer is None
    if whole and spec.reduction != "none" and spec.empty == "nan":
        return F.mse_loss(output, targets, reduction=spec.reduction)
    present = torch.ones_like(targets)
    if spec.ignores_nan:
        missing = targets.isnan()
        nothing = targets.new_zeros(())
        output, targets = output.where(~missing, nothing), targets.where(~missing, nothing)
        present = (~missing).to(dtype)
    errors = F.mse_loss(output, targets, reduction="none")
    share = present
    if tensors.regression_weight is not None:
        weight = tensors.regression_weight.to(dtype)
        weight = weight.where(present != 0, weight.new_zeros(()))
        errors, share = errors * weight, share * weight
    logits = tensors.classification_output
    if spec.reduction == "none" and logits is not None and logits.dim() == 1:  # (C,): one sample
        return errors.sum() / present.sum().clamp(min=1)
    if spec.reduction == "none":
        return _per_sample(errors, present)
    return _reduced(spec, errors, share, normalizer)


def _classification(spec: LossSpec, tensors: LossTensors, dtype: torch.dtype) -> Tensor:
    logits, targets = tensors.classification_output, tensors.classification_targets
    assert logits is not None
    assert targets is not None
    logits = logits.to(dtype)
    weight = None if tensors.class_weight is None else tensors.class_weight.to(dtype)
    if tensors.probabilities:
        losses = _by_probability(spec, logits, targets.to(dtype), weight, tensors.class_mask)
        labelled = torch.ones_like(losses)
        share = labelled
    else:
        try:
            losses, labelled, share = _by_index(
                spec, logits, targets.long(), weight, tensors.class_mask
            )
        except (IndexError, RuntimeError) as error:
            raise _named(spec, tensors, error) from error
    if spec.per_position:
        return losses
    if tensors.classification_weight is not None:
        scale = tensors.classification_weight.to(dtype)
        scale = scale.where(labelled != 0, scale.new_zeros(()))
        losses, share = losses * scale, share * scale
    if spec.reduction == "none":
        return _per_sample(losses, labelled)
    normalizer = _normalizer(spec.classification_normalizer, tensors.classification_normalizer)
    return _reduced(spec, losses, share, normalizer)


def _normalizer(number: float | None, tensor: Tensor | None) -> float | Tensor | None:
    return number if tensor is None else tensor


def _per_sample(losses: Tensor, labelled: Tensor) -> Tensor:
    """(N, *) -> (N,): the sum of a sample's losses over the count of its labelled elements."""
    if losses.dim() < 2:
        return losses
    return losses.flatten(1).sum(1) / labelled.flatten(1).sum(1).clamp(min=1)


def _reduced(
    spec: LossSpec, losses: Tensor, share: Tensor, normalizer: float | Tensor | None
) -> Tensor:
    """The sum of the losses, divided under "mean" by the sum of the shares or the normalizer."""
    if spec.reduction == "sum":
        return losses.sum()
    if normalizer is not None:
        number = normalizer.to(losses.dtype) if isinstance(normalizer, Tensor) else normalizer
        return losses.sum() / number
    total = share.sum()
    empty = total == 0  # PyTorch's NaN or 0, with a gradient of 0
    mean = losses.sum() / total.where(~empty, total.new_ones(()))
    return mean.where(~empty, mean.new_full((), spec.of_nothing))


def _by_probability(
    spec: LossSpec, logits: Tensor, targets: Tensor, weight: Tensor | None, mask: Tensor | None
) -> Tensor:
    """Losses (N, d1, ...) of probability targets."""
    smoothing = spec.label_smoothing
    if mask is None:
        return F.cross_entropy(logits, targets, weight, reduction="none", label_smoothing=smoothing)
    axis = int(logits.dim() > 1)
    log_p = _masked_log_softmax(logits, mask)
    q = (1 - smoothing) * targets
    if smoothing:
        q = q + smoothing * _even(mask, logits)
    if weight is not None:
        q = q * _by_class(weight, logits)
    return -_times_log(q, log_p).sum(axis)


def _by_index(
    spec: LossSpec, logits: Tensor, targets: Tensor, weight: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, 1 where a position is labelled, and its share of the denominator; (N, d1, ...)."""
    labelled = targets != spec.ignore_index
    ignore_index, poison = spec.ignore_index, None
    if logits.device.type != "cpu" or torch.compiler.is_compiling():
        # An illegal index would stop the device: class 0 in its place, and NaN for its result.
        illegal = labelled & ((targets < 0) | (targets >= class_axis(logits)[0]))
        ignore_index = -100
        targets = targets.masked_fill(~labelled, ignore_index).masked_fill(illegal, 0)
        poison = torch.where(illegal, torch.nan, torch.ones_like(targets, dtype=logits.dtype))
    # The gradient of a position without a label is 0 whatever its logits are.
    axis = int(logits.dim() > 1)
    logits = logits.where(labelled.unsqueeze(axis), logits.new_zeros(()))
    at = targets.where(labelled, targets.new_zeros(()))
    if mask is None:
        losses = F.cross_entropy(
            logits,
            targets,
            weight,
            ignore_index=ignore_index,
            reduction="none",
            label_smoothing=spec.label_smoothing,
        )
    else:
        losses = _masked_by_index(spec, logits, at, weight, mask)
    if poison is not None:
        losses = losses * poison
    share = labelled.to(logits.dtype)
    if weight is not None:
        share = share * weight[at]
    return losses.where(labelled, losses.new_zeros(())), labelled.to(logits.dtype), share


def _masked_by_index(
    spec: LossSpec, logits: Tensor, targets: Tensor, weight: Tensor | None, mask: Tensor
) -> Tensor:
    """Losses (N, d1, ...) of class indices over the classes that the mask leaves."""
    axis = int(logits.dim() > 1)
    log_p = _masked_log_softmax(logits, mask)
    of_target = log_p.gather(axis, targets.unsqueeze(axis)).squeeze(axis)
    share = torch.ones_like(of_target) if weight is None else weight[targets]
    losses = -_times_log((1 - spec.label_smoothing) * share, of_target)
    if spec.label_smoothing:
        q = spec.label_smoothing * _even(mask, logits)
        if weight is not None:
            q = q * _by_class(weight, logits)
        losses = losses - _times_log(q, log_p).sum(axis)
    return losses


def _masked_log_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """log p over the True classes; -inf for the others, and for all where none is True."""
    axis = int(logits.dim() > 1)
    possible = mask.any(axis, keepdim=True)
    masked = logits.masked_fill(~mask, -torch.inf).masked_fill(~possible, 0.0)
    return torch.log_softmax(masked, axis).masked_fill(~possible, -torch.inf)


def _even(mask: Tensor, logits: Tensor) -> Tensor:
    """1/K on the K True classes of each position, 0 on the others; in the shape of the logits."""
    count = mask.sum(int(logits.dim() > 1), keepdim=True).clamp(min=1)
    return mask.to(logits.dtype) / count


def _times_log(q: Tensor, log_p: Tensor) -> Tensor:
    """q · log p with 0 · log 0 = 0, in the gradient too."""
    nothing = (q == 0) & (log_p == -torch.inf)
    return q * log_p.masked_fill(nothing, 0.0)


def _by_class(values: Tensor, logits: Tensor) -> Tensor:
    """(C,) as (C,) or (1, C, 1, ...), beside the logits."""
    return values if logits.dim() == 1 else values.view(1, -1, *[1] * (logits.dim() - 2))
