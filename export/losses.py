"""Cross-entropy composed of plain operators, for models that contain their loss.

PyTorch's own ONNX translation of `cross_entropy` drops `label_smoothing`, writes an invalid graph
for probabilities and a wrong shape for `reduction="none"`. While a model is traced, this stands in
its place. With log-probabilities `lp` (N, C, *), class weights `w` (C,) and K = C,

    indices t:        loss = -(1-ε)·w[t]·lp[t] - ε/K·Σ_c w[c]·lp[c], 0 where t is `ignore_index`
    probabilities q:  loss = -Σ_c w[c]·((1-ε)·q[c] + ε/K)·lp[c]

and "mean" divides the sum by Σ w[t] over what is not ignored, or by the number of positions, as
`torch.nn.functional.cross_entropy` does. `F.mse_loss` is translated well and left alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import _reduction as legacy
from torch.overrides import TorchFunctionMode


class ComposedLosses(TorchFunctionMode):
    """Within the block, `F.cross_entropy` is `composed_cross_entropy`."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called for every function of `torch` within the block."""
        if func is F.cross_entropy:
            func = composed_cross_entropy
        return func(*args, **(kwargs or {}))


def composed_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """`F.cross_entropy` of legal arguments: logits (N, C), (N, C, d1, ...) or (C,)."""
    if size_average is not None or reduce is not None:
        reduction = legacy.legacy_get_string(size_average, reduce)
    axis = 1 if input.dim() > 1 else 0
    logs = input.log_softmax(axis)
    even = label_smoothing / input.shape[axis]
    # (C,) -> (1, C, 1, ...)
    shaped = None if weight is None else weight.reshape(-1, *(1,) * (input.dim() - axis - 1))
    if target.is_floating_point():
        losses = -_weighted(((1 - label_smoothing) * target + even) * logs, shaped).sum(axis)
        count: Tensor | int = losses.numel()
    else:
        target = target.long()
        labelled = target != ignore_index
        known = target.where(labelled, torch.zeros_like(target))
        share = torch.ones_like(known, dtype=logs.dtype) if weight is None else weight[known]
        losses = -share * logs.gather(axis, known.unsqueeze(axis)).squeeze(axis)
        if label_smoothing:
            rest = -_weighted(logs, shaped).sum(axis)
            losses = (1 - label_smoothing) * losses + even * rest
        losses = losses.where(labelled, torch.zeros_like(losses))
        count = share.where(labelled, torch.zeros_like(share)).sum()
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / count


def _weighted(values: Tensor, weight: Tensor | None) -> Tensor:
    return values if weight is None else values * weight
