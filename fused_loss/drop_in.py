"""`cross_entropy` and `mse_loss` as `torch.nn.functional` has them, on the fused backends."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import _reduction as legacy
from torch.overrides import handle_torch_function, has_torch_function_variadic

from fused_loss import kernels
from fused_loss.functional import run
from fused_loss.spec import FLOAT_DTYPES, PLAIN, LossSpec, LossTensors, class_axis


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """`F.cross_entropy`: signature, shapes, values, dtypes and errors are PyTorch's.

    Logits (N, C), (N, C, d1, ...) or (C,). What the fused path does not take, PyTorch itself
    computes. One thing differs: where all class weights of the labelled positions are 0, the
    gradient is 0 beside PyTorch's NaN loss, and not NaN.
    """
    if has_torch_function_variadic(input, target, weight):
        return handle_torch_function(
            cross_entropy,
            (input, target, weight),
            input,
            target,
            weight=weight,
            size_average=size_average,
            ignore_index=ignore_index,
            reduce=reduce,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
    if size_average is not None or reduce is not None:
        reduction = legacy.legacy_get_string(size_average, reduce)
    if not _fuses_cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing):
        plain = F.cross_entropy(
            input,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
        return _not_fused("cross_entropy", plain)
    per_position = reduction == "none" and input.dim() > 1
    spec = LossSpec(reduction, ignore_index, label_smoothing, (1.0, 1.0), per_position)
    loss, _ = run(spec, LossTensors(None, input, None, target, None, weight))
    return loss.to(input.dtype)


def _fuses_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> bool:
    """Whether the call is a legal one that the fused path computes."""
    scalars = type(ignore_index) is int and type(label_smoothing) in (float, int)
    if not (scalars and abs(ignore_index) < 1 << 63 and 0 <= label_smoothing <= 1):
        return False
    if not _plain(input, target, weight) or input.dim() == 0:
        return False
    classes, positions = class_axis(input)
    if target.is_floating_point():
        fits = target.shape == input.shape and target.dtype == input.dtype and ignore_index < 0
    else:
        fits = target.shape == positions and target.dtype in (torch.int64, torch.uint8)
    if weight is not None:
        fits = fits and weight.shape == (classes,) and weight.dtype == input.dtype
    return fits and reduction in ("mean", "sum", "none")


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """`F.mse_loss`: signature, shapes, values, dtypes and errors are PyTorch's.

    Two tensors of any one shape. What the fused path does not take (a `weight`, shapes that
    broadcast, two dtypes), PyTorch itself computes.
    """
    if has_torch_function_variadic(input, target, weight):
        return handle_torch_function(
            mse_loss,
            (input, target, weight),
            input,
            target,
            size_average=size_average,
            reduce=reduce,
            reduction=reduction,
            weight=weight,
        )
    if size_average is not None or reduce is not None:
        reduction = legacy.legacy_get_string(size_average, reduce)
    fits = weight is None and _plain(input, target) and input.shape == target.shape
    if not (fits and input.dtype == target.dtype and reduction in ("mean", "sum", "none")):
        plain = F.mse_loss(input, target, reduction=reduction, weight=weight)  # type: ignore[call-arg]
        return _not_fused("mse_loss", plain)
    spec = LossSpec(reduction, weights=(1.0, 1.0))
    if reduction == "none":  # each element is a sample of its own
        tensors = LossTensors(input.reshape(-1), None, target.reshape(-1), None)
    else:
        tensors = LossTensors(input, None, target, None)
    loss, _ = run(spec, tensors)
    return (loss.reshape(input.shape) if reduction == "none" else loss).to(input.dtype)


def _plain(input: Tensor, target: Tensor, weight: Tensor | None = None) -> bool:
    """Dense, non-empty tensors on one device, of dtypes and in a mode that the fused path takes."""
    given = [input, target] if weight is None else [input, target, weight]
    if torch.compiler.is_compiling() or kernels.transform():
        return False
    if not all(type(t) in PLAIN for t in given):
        return False
    return (
        input.dtype in FLOAT_DTYPES
        and input.numel() > 0
        and all(t.device == input.device and t.layout == torch.strided for t in given)
        and not any(t.requires_grad for t in given[1:])
        and not _autocast(input.device.type)
        and kernels.asked() != "reference"
    )


def _autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _not_fused(name: str, result: Tensor) -> Tensor:
    """PyTorch's own result, unless the Triton kernel was asked for by name."""
    if kernels.asked() == "triton":
        raise NotImplementedError(
            f'backend("triton") does not take this {name}; use "auto" or "reference"'
        )
    return result
