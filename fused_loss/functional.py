"""The public losses: `combined_loss`, `task_losses`, and PyTorch's own two, fused.

The way of a tensor: check, choose the backend, then one autograd Function around the backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.nn import _reduction as legacy
from torch.overrides import handle_torch_function, has_torch_function_variadic

from fused_loss import kernels
from fused_loss.autograd import FusedLoss, head_losses
from fused_loss.options import DEFAULT_ALPHA, Options, arrange
from fused_loss.spec import (
    FLOAT_DTYPES,
    Components,
    LossSpec,
    LossTensors,
    Needs,
    class_axis,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def combined_loss(
    regression_output: Tensor,
    classification_output: Tensor,
    regression_targets: Tensor,
    classification_targets: Tensor,
    alpha: float | Tensor = ...,
    *,
    loss_weights: tuple[float, float] | Tensor | None = ...,
    return_components: Literal[False] = ...,
    **options: Unpack[Options],
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
    return_components: Literal[True],
    **options: Unpack[Options],
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
    return_components: bool = ...,
    **options: Unpack[Options],
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
    class_mask: Tensor | None = None,
    regression_weight: Tensor | None = None,
    classification_weight: Tensor | None = None,
    regression_normalizer: float | Tensor | None = None,
    classification_normalizer: float | Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    nan_targets: str = "propagate",
    empty: str = "nan",
    reduction: str = "mean",
    return_components: bool = False,
    inplace_gradient: bool = False,
) -> Tensor | tuple[Tensor, Components]:
    """`alpha * MSE + (1 - alpha) * cross-entropy` of a model with two heads.

    Value and both gradients are those of `F.mse_loss` and `F.cross_entropy`, computed in one pass.
    Per position, `q = (1-ε)·target + ε/K` on the K possible classes and
    `loss = -Σ class_weight·q·log p`. "mean" divides `Σ classification_weight·loss` over the
    labelled positions by `Σ classification_weight·class_weight[t]` (class indices) or
    `Σ classification_weight` (probabilities), and `Σ regression_weight·(r-y)²` over the elements
    that are not missing by `Σ regression_weight`. Where that sum is 0, nothing is labelled.

    Args:
        regression_output: Predictions r (N, *), float.
        classification_output: Logits z (N, C), (N, C, d1, ...), or (C,) for one sample; float. The
            two heads may have different dtypes and, unless reduction is "none", different N.
        regression_targets: y, exactly the shape of `regression_output`.
        classification_targets: Class indices (N, d1, ...) of any integer dtype, or probabilities in
            the shape of the logits; the dtype decides. Probabilities need not sum to 1.
        alpha: Weight of the MSE, a float or a 0-d tensor, which may require grad.
        loss_weights: `(w_reg, w_cls)` in place of `(alpha, 1 - alpha)`: two floats, or a tensor
            (2,), which may require grad.
        class_weight: (C,), the `weight` of `F.cross_entropy`.
        class_mask: bool, the shape of the logits with each dimension equal or 1; (C,) is the same
            for every position. False: this class is impossible here, such as an illegal move. The
            softmax runs over the others, and the gradient there is exactly 0, with `0·log 0 = 0`. A
            hard target or soft mass on an impossible class gives +inf, as a logit of -inf does. A
            position where no class is possible gives 0 for an all-zero soft target, +inf for any
            other, and no gradient.
        regression_weight: Weight of each squared error: as many dimensions as r, each equal or 1
            (`w[:, None]` for a weight a sample).
        classification_weight: Weight of each position's cross-entropy: as many dimensions as the
            positions (N, d1, ...), each equal or 1.
        regression_normalizer: In place of the denominator of "mean": a number or a 0-d tensor, for
            gradient accumulation and data parallel (see `loss_denominators`). An empty micro-batch
            then gives 0 / normalizer.
        classification_normalizer: The same for the other head.
        ignore_index: The class index of positions without a label: they add nothing, and their
            gradient is exactly 0.
        label_smoothing: ε in [0, 1].
        nan_targets: "ignore": an element whose regression target is NaN is missing: it adds
            nothing, not to the denominator either, and its gradient is exactly 0. "propagate": NaN.
        empty: The "mean" of a head in which nothing is labelled: "nan" as in PyTorch, with a
            gradient of 0; or "zero": 0, in the gradient of alpha too.
        reduction: "mean", "sum", or "none": (N,), the sum of a sample's weighted losses over its
            labelled elements divided by their count; 0 where it has none.
        return_components: Whether to return `(loss, Components(regression, classification))`: the
            two losses before weighting, detached and on the device, for logging without a sync.
        inplace_gradient: Whether the gradient may take over the logits' storage, which halves the
            memory. Do not use the logits after the call: autograd notices if you do. Nothing is
            written where no gradient is wanted.

    Returns:
        The loss in `promote(float32, both outputs)`: () or, under "none", (N,).

    Raises:
        ValueError: Shapes, devices, dtypes or options that do not go together; `inplace_gradient`
            with logits that are a leaf, overlap, or share memory with another argument.
        TypeError: An argument of the wrong type or dtype.
        IndexError: On a CPU, a class index outside [0, C) that is not `ignore_index`; on a GPU that
            position's loss and gradient are NaN (`FUSED_LOSS_DEBUG=1` raises there too).
        NotImplementedError: The backend was asked for by name and does not take this case.
    """
    spec, tensors = arrange(
        regression_output,
        classification_output,
        regression_targets,
        classification_targets,
        alpha,
        loss_weights,
        class_weight=class_weight,
        class_mask=class_mask,
        regression_weight=regression_weight,
        classification_weight=classification_weight,
        regression_normalizer=regression_normalizer,
        classification_normalizer=classification_normalizer,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        nan_targets=nan_targets,
        empty=empty,
        reduction=reduction,
        inplace_gradient=inplace_gradient,
    )
    loss, components = _run(spec, tensors, return_components)
    if not return_components:
        return loss
    assert components is not None
    return loss, Components(*components.detach().unbind())


def _run(
    spec: LossSpec, tensors: LossTensors, components: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The loss, and its components if they are wanted, on the backend that takes them."""
    backend = kernels.resolve(spec, tensors)
    if backend == "triton" and torch.compiler.is_compiling():
        return kernels.compiled(spec, tensors)
    differentiable = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (*tensors[:2], tensors.weights)
    )
    if differentiable and backend != "reference":
        return FusedLoss.apply(backend, spec, components, *tensors)
    outcome = kernels.forward(backend, spec, tensors, Needs(False, False, components))
    return outcome.loss, outcome.components


def task_losses(
    regression_output: Tensor,
    classification_output: Tensor,
    regression_targets: Tensor,
    classification_targets: Tensor,
    *,
    return_components: bool = False,
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor] | tuple[tuple[Tensor, Tensor], Components]:
    """The two losses apart, each differentiable on its own and in either order.

    For methods that need a gradient a task, such as Jacobian descent or gradient balancing. Both
    come out of one shared pass.

    Args:
        regression_output: As in `combined_loss`.
        classification_output: As in `combined_loss`.
        regression_targets: As in `combined_loss`.
        classification_targets: As in `combined_loss`.
        return_components: Whether to return `(losses, Components)`, the latter detached.
        **options: Those of `combined_loss`, without `alpha` and `loss_weights`.

    Returns:
        `(regression_loss, classification_loss)`, as `combined_loss` would weight them: () each or,
        under "none", (N,).

    Raises:
        ValueError, TypeError, IndexError, NotImplementedError: As `combined_loss`.
    """
    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:
        raise TypeError(f"task_losses got an unexpected argument {min(unknown)!r}")
    spec, tensors = arrange(
        regression_output,
        classification_output,
        regression_targets,
        classification_targets,
        loss_weights=(1.0, 1.0),
        **options,
    )
    backend = kernels.resolve(spec, tensors)
    if backend == "reference":
        losses = kernels.reference_heads(spec, tensors)
    else:
        losses = head_losses(backend, spec, tensors)
    if not return_components:
        return losses
    return losses, Components(*(loss.detach() for loss in losses))


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
