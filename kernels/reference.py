"""The oracle: `F.mse_loss` and `F.cross_entropy` composed in the obvious way.

Every other backend is tested against this one, and it shares no arithmetic with them. It is made of
differentiable PyTorch operators alone and never enters an autograd Function, so that double
backward, `torch.func` and forward-mode differentiation all work through it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_loss.spec import LossSpec, LossTensors, accumulation_dtype


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
        targets = targets.long()
        losses = F.cross_entropy(
            logits,
            targets,
            weight,
            ignore_index=spec.ignore_index,
            reduction="none",
            label_smoothing=spec.label_smoothing,
        )
        labelled = (targets != spec.ignore_index).to(dtype)
        share = labelled
        if weight is not None:
            share = labelled * weight[targets.where(labelled.bool(), targets.new_zeros(()))]
        losses = losses.where(labelled.bool(), losses.new_zeros(()))
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
