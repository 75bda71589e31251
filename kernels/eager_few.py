"""The eager backend on small inputs, where the operators dispatched are the time, not the bytes.

Losses without options, averaged or summed, go through PyTorch's own kernels, forward and backward,
in the fewest calls. Anything else, and more of it, goes by blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_loss.kernels.eager_blocks import REDUCTIONS, fits, in_dtype
from fused_loss.spec import LossSpec, LossTensors

MOST_LOGITS = 1 << 15  # 128 KiB of float32; above, one buffer and one pass are faster

mse_loss: Any = torch._C._nn.mse_loss  # without the wrapper, which costs as much as the operator
nll_loss = torch.ops.aten.nll_loss_forward.default
nll_loss_backward = torch.ops.aten.nll_loss_backward.default
log_softmax_backward = torch._log_softmax_backward_data


def few_elements(spec: LossSpec, tensors: LossTensors) -> bool:
    """Whether these are predictions that each count 1, in one block, averaged or summed."""
    r = tensors.regression_output
    assert r is not None
    return spec.plain and tensors.plain and r.numel() > 0 and fits(r)


def squared_errors(
    spec: LossSpec, tensors: LossTensors, need: bool, dtype: torch.dtype, weight: Any
) -> tuple[Tensor, Tensor | None]:
    """Mean or sum of (r-y)²; weight · its gradient, where that is needed."""
    r, y = tensors.regression_output, tensors.regression_targets
    assert r is not None
    assert y is not None
    wide, targets = in_dtype(r, dtype), in_dtype(y, dtype)
    loss = mse_loss(wide, targets, REDUCTIONS[spec.reduction])
    if not need:
        return loss, None
    scale = 2.0 * weight / (1 if spec.reduction == "sum" else r.numel())
    return loss, in_dtype((wide - targets).mul_(scale), r.dtype)


def few_logits(spec: LossSpec, tensors: LossTensors) -> bool:
    """Whether these are plain class indices of few logits (N, C) on a CPU, averaged or summed."""
    z = tensors.classification_output
    assert z is not None
    few = z.dim() == 2 and 0 < z.numel() <= MOST_LOGITS and z.device.type == "cpu"
    return few and spec.plain and tensors.plain and not tensors.probabilities


def cross_entropy(
    spec: LossSpec, tensors: LossTensors, need: bool, dtype: torch.dtype, weight: Any
) -> tuple[Tensor, Tensor | None]:
    """The loss; weight · its gradient, where that is needed. Two operators forward, two backward.

    Raises:
        IndexError: A class index lies outside [0, C); the words are PyTorch's.
    """
    z, t = tensors.classification_output, tensors.classification_targets
    assert z is not None
    assert t is not None
    targets, ignore_index = in_dtype(t, torch.int64), spec.ignore_index
    reduction = REDUCTIONS[spec.reduction]
    log_p = torch.log_softmax(in_dtype(z, dtype), 1)
    loss, labelled = nll_loss(log_p, targets, None, reduction, ignore_index)
    if not need:
        return loss, None
    if not isinstance(weight, Tensor):
        weight = torch.scalar_tensor(weight, dtype=dtype, device=z.device)
    hit = nll_loss_backward(weight, log_p, targets, None, reduction, ignore_index, labelled)
    gradient = in_dtype(log_softmax_backward(hit, log_p, 1, dtype), z.dtype)
    if labelled.item() != len(targets):  # NaN · 0 is not 0
        gradient.masked_fill_((targets == ignore_index).unsqueeze(1), 0.0)
    return loss, gradient
