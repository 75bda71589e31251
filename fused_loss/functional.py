"""The public losses: `combined_loss`, and `cross_entropy` and `mse_loss` as PyTorch has them.

The way of a tensor: check, choose the backend, then one autograd Function around the backend.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.nn import _reduction as legacy
from torch.overrides import handle_torch_function, has_torch_function_variadic

from fused_loss import kernels
from fused_loss.autograd import FusedLoss
from fused_loss.checks import check
from fused_loss.spec import (
    FLOAT_DTYPES,
    Components,
    LossSpec,
    LossTensors,
    Needs,
    class_axis,
)


class _DefaultAlpha(float):
    """The default of `alpha`, told apart from a 0.5 that the caller wrote."""


DEFAULT_ALPHA = _DefaultAlpha(0.5)


@overload
def combined_loss(
    regression_output: Tensor,
    classification_output: Tensor,
    regression_targets: Tensor,
    classification_targets: Tensor,
    alpha: float | Tensor = ...,
    *,
    loss_weights: tuple[float, float] | Tensor | None = ...,
    class_weight: Tensor | None = ...,
    ignore_index: int = ...,
    label_smoothing: float = ...,
    reduction: str = ...,
    return_components: Literal[False] = ...,
) -> Tensor: ...
@overload
def combined_loss(
    regression_output: Tensor,
    classification_output: Tensor,
    regression_targets: Tensor,
    classification_targets: Tensor,
    alpha: float | Tensor = ...,
    *,
    loss_weights: tuple[float, float] | Tensor | None = ...,
    class_weight: Tensor | None = ...,
    ignore_index: int = ...,
    label_smoothing: float = ...,
    reduction: str = ...,
    return_components: Literal[True],
) -> tuple[Tensor, Components]: ...
@overload
def combined_loss(
    regression_output: Tensor,
    classification_output: Tensor,
    regression_targets: Tensor,
    classification_targets: Tensor,
    alpha: float | Tensor = ...,
    *,
    loss_weights: tuple[float, float] | Tensor | None = ...,
    class_weight: Tensor | None = ...,
    ignore_index: int = ...,
    label_smoothing: float = ...,
    reduction: str = ...,
    return_components: bool = ...,
) -> Tensor | tuple[Tensor, Components]: ...
def combined_loss(
    regression_output: Tensor,
    classification_output: Tensor,
    regression_targets: Tensor,
    classification_targets: Tensor,
    alpha: float | Tensor = DEFAULT_ALPHA,
    *,
    loss_weights: tuple[float, float] | Tensor | None = None,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    return_components: bool = False,
) -> Tensor | tuple[Tensor, Components]:
    """`alpha * MSE + (1 - alpha) * cross-entropy` of a model with two heads.

    Value and both gradients are those of `F.mse_loss` and `F.cross_entropy` (per position:
    `loss = -Σ class_weight·q·log p` with `q = (1-ε)·target + ε/C`), computed in one pass.

    Args:
        regression_output: Predictions (N, *), float.
        classification_output: Logits (N, C), (N, C, d1, ...), or (C,) for one sample; float. The
            two heads may have different dtypes and, unless reduction is "none", different N.
        regression_targets: Exactly the shape of `regression_output`.
        classification_targets: Class indices (N, d1, ...) of any integer dtype, or probabilities in
            the shape of the logits; the dtype decides.
        alpha: Weight of the MSE, a float or a 0-d tensor, which may require grad.
        loss_weights: `(w_reg, w_cls)` in place of `(alpha, 1 - alpha)`: two floats, or a tensor
            (2,), which may require grad.
        class_weight: (C,), the `weight` of `F.cross_entropy`.
        ignore_index: The class index of positions without a label.
        label_smoothing: ε in [0, 1].
        reduction: "mean", "sum", or "none": (N,), a sample's losses over its labelled elements
            divided by their count.
        return_components: Whether to return `(loss, Components(regression, classification))`: the
            two losses before weighting, detached and on the device, for logging without a sync.

    Returns:
        The loss in `promote(float32, both outputs)`: () or, under "none", (N,).

    Raises:
        ValueError: Shapes, devices, dtypes or options that do not go together.
        TypeError: An argument of the wrong type or dtype.
        IndexError: On a CPU, a class index outside [0, C) that is not `ignore_index`; on a GPU that
            position's loss and gradient are NaN (`FUSED_LOSS_DEBUG=1` raises there too).
    """
    weights, pair = split_weights(alpha, loss_weights)
    spec = LossSpec(reduction, ignore_index, label_smoothing, pair)
    tensors = LossTensors(
        regression_output,
        classification_output,
        regression_targets,
        classification_targets,
        weights,
        class_weight,
    )
    check(spec, tensors)
    if classification_targets.dtype == torch.uint64:
        tensors = tensors._replace(classification_targets=_signed(classification_targets))
    loss, components = _run(spec, tensors, return_components)
    if not return_components:
        return loss
    assert components is not None
    return loss, Components(*components.detach().unbind())


def _signed(indices: Tensor) -> Tensor:
    """uint64 as int64: what is too large stays too large, and is not taken for a negative index."""
    wrapped = indices.view(torch.int64)
    return wrapped.masked_fill(wrapped < 0, torch.iinfo(torch.int64).max)


def split_weights(
    alpha: float | Tensor, loss_weights: tuple[float, float] | Tensor | None
) -> tuple[Tensor | None, tuple[float, float] | None]:
    """The weights as a tensor, or as two floats.

    Raises:
        ValueError: Both were given, or a shape that does not fit.
        TypeError: Neither a float nor a tensor.
    """
    if loss_weights is None:
        if isinstance(alpha, Tensor):
            if alpha.dim():
                raise ValueError(
                    f"alpha must be a float or a 0-d tensor, got shape {tuple(alpha.shape)}; "
                    "call alpha.squeeze(), or pass a pair as loss_weights"
                )
            return alpha, None
        if isinstance(alpha, bool) or not isinstance(alpha, float | int):
            raise TypeError(f"alpha must be a float or a 0-d tensor, got {type(alpha).__name__}")
        return None, (float(alpha), 1.0 - alpha)
    if not isinstance(alpha, _DefaultAlpha):
        raise ValueError(
            "alpha and loss_weights are two ways to say the same: give only one of them"
        )
    if isinstance(loss_weights, Tensor):
        if loss_weights.shape != (2,):
            raise ValueError(
                f"loss_weights must be (w_reg, w_cls), shape (2,); got {tuple(loss_weights.shape)}"
            )
        return loss_weights, None
    if not isinstance(loss_weights, tuple | list) or len(loss_weights) != 2:
        raise ValueError(f"loss_weights must be (w_reg, w_cls), got {loss_weights!r}")
    w_reg, w_cls = loss_weights
    if any(isinstance(w, bool) or not isinstance(w, float | int) for w in loss_weights):
        raise TypeError(
            "loss_weights must hold two floats, or be one tensor (2,): torch.stack((w_reg, w_cls))"
        )
    return None, (float(w_reg), float(w_cls))


def _run(
    spec: LossSpec, tensors: LossTensors, components: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The loss, and its components if they are wanted, on the backend that takes them."""
    backend = kernels.resolve(spec, tensors)
    differentiable = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (*tensors[:2], tensors.weights)
    )
    if differentiable and backend != "reference":
        return FusedLoss.apply(backend, spec, components, *tensors)
    outcome = kernels.forward(backend, spec, tensors, Needs(False, False, components))
    return outcome.loss, outcome.components


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
    loss, _ = _run(spec, LossTensors(None, input, None, target, None, weight))
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
    loss, _ = _run(spec, tensors)
    return (loss.reshape(input.shape) if reduction == "none" else loss).to(input.dtype)


def _plain(input: Tensor, target: Tensor, weight: Tensor | None = None) -> bool:
    """Dense, non-empty tensors on one device, of dtypes and in a mode that the fused path takes."""
    given = [input, target] if weight is None else [input, target, weight]
    if torch.compiler.is_compiling() or kernels.transform():
        return False
    if not all(type(t) in (Tensor, Parameter) for t in given):
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
