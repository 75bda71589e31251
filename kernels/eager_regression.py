"""The regression head of the eager backend: (r-y)², and its gradient 2·(r-y)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_loss.kernels.eager_blocks import REDUCTIONS, blocks, by_row, fits, in_dtype
from fused_loss.spec import LossSpec

mse_loss: Any = torch._C._nn.mse_loss  # without the wrapper, which costs as much as the operator


def regression(
    spec: LossSpec,
    r: Tensor,
    y: Tensor,
    need: bool,
    dtype: torch.dtype,
    weight: Any,
    per_sample: bool,
) -> tuple[Tensor, Tensor | None]:
    """Mean, sum or per-sample mean of (r-y)²; weight · its gradient, where that is needed."""
    if per_sample:
        columns = max(r[0].numel(), 1) if r.shape[0] else 1
        scale = by_row(2.0 * weight / columns, r.dim())
        errors, gradient = _squared_errors(r, y, need, dtype, scale)
        return errors if errors.dim() < 2 else errors.flatten(1).sum(1) / columns, gradient
    how = "sum" if spec.reduction == "sum" else "mean"
    if fits(r):
        return _short(how, r, y, need, dtype, weight)
    divisor = 1 if how == "sum" else r.numel()
    return _long(r, y, need, dtype, 2.0 * weight / divisor, divisor)


def _short(
    how: str, r: Tensor, y: Tensor, need: bool, dtype: torch.dtype, weight: Any
) -> tuple[Tensor, Tensor | None]:
    """Mean or sum of what fits a block."""
    wide, targets = in_dtype(r, dtype), in_dtype(y, dtype)
    loss = mse_loss(wide, targets, REDUCTIONS[how])
    if not need:
        return loss, None
    scale = 2.0 * weight / (max(r.numel(), 1) if how == "mean" else 1)
    return loss, in_dtype((wide - targets) * scale, r.dtype)


def _long(
    r: Tensor, y: Tensor, need: bool, dtype: torch.dtype, scale: Any, divisor: int
) -> tuple[Tensor, Tensor | None]:
    """The sum over all elements, block by block, divided by `divisor`."""
    gradient = torch.empty_like(r) if need else None
    if r.is_contiguous() and y.is_contiguous():
        flat = r.view(-1), y.view(-1), None if gradient is None else gradient.view(-1)
    else:
        flat = r, y, gradient
    sums = []
    for r_block, y_block, out in blocks(*flat):
        errors, finished = _squared_errors(r_block, y_block, need, dtype, scale)
        sums.append(errors.sum())
        if out is not None and finished is not None:
            out.copy_(finished)
    return torch.stack(sums).sum() / divisor, gradient


def _squared_errors(
    r: Tensor, y: Tensor, need: bool, dtype: torch.dtype, scale: Any
) -> tuple[Tensor, Tensor | None]:
    """(r-y)² in `dtype`, and scale · (r-y) in that of r."""
    difference = in_dtype(r, dtype) - in_dtype(y, dtype)
    gradient = in_dtype(difference * scale, r.dtype) if need else None
    return difference * difference, gradient
