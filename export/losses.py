"""Cross-entropy in standard ONNX operators, for models that contain their loss.

PyTorch's own translation drops `label_smoothing` and writes an invalid graph for probabilities.
Here, with log-probabilities `lp` (N, C, *), class weights `w` (C,) and K = C,

    indices t:        loss = -(1-ε)·w[t]·lp[t] - ε/K·Σ_c w[c]·lp[c], 0 where t is `ignore_index`
    probabilities q:  loss = -Σ_c w[c]·((1-ε)·q[c] + ε/K)·lp[c]

and "mean" divides the sum by Σ w[t] over what is not ignored, or by the number of positions:
`torch.nn.functional.cross_entropy` (PyTorch's `aten::cross_entropy_loss`), operator set 18.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fused_loss.export.errors import require

NONE, MEAN, SUM = 0, 1, 2  # PyTorch's own numbers of the reductions


def translations() -> dict[Any, Callable[..., Any]]:
    """For `torch.onnx.export(custom_translation_table=...)`.

    Raises:
        MissingDependencyError: onnxscript is not installed.
    """
    require("onnxscript")
    return {torch.ops.aten.cross_entropy_loss.default: cross_entropy_loss}


def cross_entropy_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    reduction: int = MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Any:
    """The nodes of `aten::cross_entropy_loss`; input (N, C, *) or (C,)."""
    op: Any = require("onnxscript").opset18
    single = len(input.shape) == 1
    if single:
        first = op.Constant(value_ints=[0])
        input, target = op.Unsqueeze(input, first), op.Unsqueeze(target, first)
    along = _Along(op, input, weight, label_smoothing)
    logs = op.LogSoftmax(input, axis=1)
    if target.dtype.is_floating_point():
        losses, count = along.probabilities(logs, target)
    else:
        losses, count = along.indices(logs, target, ignore_index)
    if reduction == NONE:
        return op.Squeeze(losses, op.Constant(value_ints=[0])) if single else losses
    total = op.ReduceSum(losses, keepdims=0)
    return total if reduction == SUM else op.Div(total, count)


class _Along:
    """The two kinds of target, each to (losses (N, *), what "mean" divides their sum by)."""

    def __init__(self, op: Any, input: Any, weight: Any, smoothing: float) -> None:
        self.op, self.weight, self.smoothing = op, weight, smoothing
        self.like = input
        self.axis = op.Constant(value_ints=[1])
        # (C,) -> (1, C, 1, ...)
        shape = [1, -1, *[1] * (len(input.shape) - 2)]
        self.shaped = weight and op.Reshape(weight, op.Constant(value_ints=shape))

    def number(self, value: float) -> Any:
        """A constant in the logits' dtype."""
        return self.op.CastLike(self.op.Constant(value_float=value), self.like)

    def weighted(self, values: Any) -> Any:
        """(N, C, *) times the class weights."""
        return values if self.weight is None else self.op.Mul(values, self.shaped)

    def probabilities(self, logs: Any, target: Any) -> tuple[Any, Any]:
        op = self.op
        if self.smoothing:
            kept = op.Mul(target, self.number(1.0 - self.smoothing))
            target = op.Add(kept, self.share())
        each = self.weighted(op.Mul(target, logs))
        losses = op.Neg(op.ReduceSum(each, self.axis, keepdims=0))
        return losses, op.CastLike(op.Size(losses), self.like)

    def indices(self, logs: Any, target: Any, ignore_index: int) -> tuple[Any, Any]:
        op = self.op
        target = op.Cast(target, to=7)  # int64
        ignored = op.Equal(target, op.Constant(value_int=ignore_index))
        known = op.Where(ignored, op.Constant(value_int=0), target)
        index = op.Unsqueeze(known, self.axis)
        zero, one = self.number(0.0), self.number(1.0)
        losses = op.Neg(op.Squeeze(op.GatherElements(logs, index, axis=1), self.axis))
        own = one if self.weight is None else op.Gather(self.weight, known)
        losses = losses if self.weight is None else op.Mul(losses, own)
        if self.smoothing:
            rest = op.Neg(op.ReduceSum(self.weighted(logs), self.axis, keepdims=0))
            losses = op.Add(
                op.Mul(losses, self.number(1.0 - self.smoothing)), op.Mul(rest, self.share())
            )
        counted = op.Where(ignored, zero, own)
        return op.Where(ignored, zero, losses), op.ReduceSum(counted, keepdims=0)

    def share(self) -> Any:
        """ε/K."""
        classes = self.op.Shape(self.like, start=1, end=2)
        classes = self.op.Squeeze(self.op.CastLike(classes, self.like))
        return self.op.Div(self.number(self.smoothing), classes)
