"""The oracle: `F.mse_loss` and `F.cross_entropy` composed in the obvious way.

Every other backend is tested against this one, and it shares no arithmetic with them. It is made of
differentiable PyTorch operators alone and never enters an autograd Function, so that double
backward, `torch.func` and forward-mode differentiation all work through it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_loss.spec import LossSpec, LossTensors, accumulation_dtype, class_axis


def forward(spec: LossSpec, tensors: LossTensors) -> tuple[Tensor, Tensor | None]:
    """The loss and its two components, `(2,)` or `(2, N)`, all attached to the graph.

    Args:
        spec: The scalars.
        tensors: Checked tensors; either head may be absent.

    Returns:
        The weighted loss, () or (N,), and `stack((regression, classification))`; None in its place
        where there is one head only.
    """
    dtype = accumulation_dtype(tensors.regression_output, tensors.classification_output)
    parts = []
    if tensors.regression_output is not None:
        parts.append(_regression(spec, tensors, dtype))
    if tensors.classification_output is not None:
        parts.append(_classification(spec, tensors, dtype))
    if len(parts) == 1:  # cross_entropy or mse_loss alone: weight 1
        return parts[0], None
    mse, ce = parts
    if tensors.weights is None:
        assert spec.weights is not None
        w_reg, w_cls = spec.weights
        return w_reg * mse + w_cls * ce, torch.stack((mse, ce))
    weights = tensors.weights.to(dtype)
    pair = (weights, 1 - weights) if weights.dim() == 0 else weights.unbind()
    return pair[0] * mse + pair[1] * ce, torch.stack((mse, ce))


def _regression(spec: LossSpec, tensors: LossTensors, dtype: torch.dtype) -> Tensor:
    output, targets = tensors.regression_output, tensors.regression_targets
    assert output is not None
    assert targets is not None
    output, targets = output.to(dtype), targets.to(dtype)
    if spec.reduction != "none":
        return F.mse_loss(output, targets, reduction=spec.reduction)
    errors = F.mse_loss(output, targets, reduction="none")
    logits = tensors.classification_output
    if logits is not None and logits.dim() == 1:  # (C,): one sample
        return errors.sum() / max(errors.numel(), 1)
    if errors.dim() < 2:
        return errors
    return errors.flatten(1).sum(1) / max(errors[0].numel() if len(errors) else 0, 1)


def _classification(spec: LossSpec, tensors: LossTensors, dtype: torch.dtype) -> Tensor:
    logits, targets = tensors.classification_output, tensors.classification_targets
    assert logits is not None
    assert targets is not None
    logits = logits.to(dtype)
    weight = None if tensors.class_weight is None else tensors.class_weight.to(dtype)
    if tensors.probabilities:
        targets = targets.to(dtype)
        losses = F.cross_entropy(
            logits, targets, weight, reduction="none", label_smoothing=spec.label_smoothing
        )
        labelled = torch.ones_like(losses)
        share = labelled
    else:
        losses, labelled, share = _by_index(spec, logits, targets.long(), weight)
    if spec.per_position:
        return losses
    if spec.reduction == "none":
        if losses.dim() < 2:
            return losses
        return losses.flatten(1).sum(1) / labelled.flatten(1).sum(1).clamp(min=1)
    if spec.reduction == "sum":
        return losses.sum()
    total = share.sum()
    empty = total == 0  # PyTorch's NaN, with a gradient of 0
    mean = losses.sum() / total.where(~empty, total.new_ones(()))
    return mean.where(~empty, mean.new_full((), torch.nan))


def _by_index(
    spec: LossSpec, logits: Tensor, targets: Tensor, weight: Tensor | None
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
    losses = F.cross_entropy(
        logits,
        targets,
        weight,
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=spec.label_smoothing,
    )
    if poison is not None:
        losses = losses * poison
    share = labelled.to(logits.dtype)
    if weight is not None:
        share = share * weight[targets.where(labelled, targets.new_zeros(()))]
    return losses.where(labelled, losses.new_zeros(())), labelled.to(logits.dtype), share
