"""The public losses over both heads: `combined_loss` and `task_losses`.

The way of a tensor: check, choose the backend, then one autograd Function around the backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from fused_loss import kernels
from fused_loss.autograd import Call, FusedLoss, head_losses
from fused_loss.options import DEFAULT_ALPHA, Options, arrange
from fused_loss.spec import NO_LABEL, Components, LossSpec, LossTensors, Needs

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
            position where no class is possible gives 0 if nothing is left of its target (an
            all-zero soft one, a class weight of 0, ε = 1), +inf for any other, and no gradient.
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
            memory. The logits are then lost: what else needs them, an accuracy or a penalty, takes
            a clone of them before the call. Autograd raises where an operator kept them for its
            backward pass before they were written over; whatever reads them afterwards reads the
            gradient, and nothing notices. Nothing is written where no gradient is wanted.

    Returns:
        The loss in `promote(float32, both outputs)`: () or, under "none", (N,).

    Raises:
        ValueError: Shapes, devices, dtypes or options that do not go together; `inplace_gradient`
            with logits that are a leaf or a view of one, overlap, or share memory with another
            argument.
        TypeError: An argument of the wrong type or dtype.
        IndexError: On a CPU, a class index outside [0, C) that is not `ignore_index`; on a GPU that
            position's loss and gradient are NaN (`FUSED_LOSS_DEBUG=1` raises there too).
        NotImplementedError: The backend was asked for by name and does not take this case.
    """
    if (
        class_mask is None
        and regression_weight is None
        and classification_weight is None
        and regression_normalizer is None
        and classification_normalizer is None
        and type(ignore_index) is int
        and ignore_index == NO_LABEL
        and nan_targets == "propagate"
        and empty == "nan"
        and inplace_gradient is False
        and (loss_weights is None or alpha is DEFAULT_ALPHA)
    ):
        found = kernels.plain(
            regression_output,
            classification_output,
            regression_targets,
            classification_targets,
            alpha,
            loss_weights,
            class_weight,
            label_smoothing,
            reduction,
        )
        if found is not None:
            loss, mse, ce = found
            return (loss, Components(mse.detach(), ce.detach())) if return_components else loss
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
    loss, components = run(spec, tensors, return_components)
    if not return_components:
        return loss
    assert components is not None
    return loss, Components(*components.detach().unbind()[:2])


def run(
    spec: LossSpec, tensors: LossTensors, components: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The loss of checked tensors, and its components if wanted, on the backend that takes them."""
    backend = kernels.resolve(spec, tensors)
    if backend == "triton" and torch.compiler.is_compiling():
        return kernels.compiled(spec, tensors)
    if backend not in kernels.DIFFERENTIABLE and torch.is_grad_enabled():
        leaves = tensors[0], tensors[1], tensors.weights
        if any(leaf is not None and leaf.requires_grad for leaf in leaves):
            found = FusedLoss.apply(Call(backend, spec, tensors, components), *leaves)
            return found if components else (found, None)
    outcome = kernels.forward(backend, spec, tensors, Needs(False, False, components))
    return outcome.loss, outcome.components


@overload
def task_losses(
    regression_output: Tensor,
    classification_output: Tensor,
    regression_targets: Tensor,
    classification_targets: Tensor,
    *,
    return_components: Literal[False] = ...,
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]: ...
@overload
def task_losses(
    regression_output: Tensor,
    classification_output: Tensor,
    regression_targets: Tensor,
    classification_targets: Tensor,
    *,
    return_components: Literal[True],
    **options: Unpack[Options],
) -> tuple[tuple[Tensor, Tensor], Components]: ...
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
    if backend in kernels.DIFFERENTIABLE:
        losses = kernels.heads(backend, spec, tensors)
    elif torch.compiler.is_compiling():
        _, components = kernels.compiled(spec, tensors)
        # No views: a graph that returns one beside its detached self is not put together right.
        mse, ce = (component.clone() for component in components[:2].unbind())
        losses = (
            mse if regression_output.requires_grad else mse.detach(),
            ce if classification_output.requires_grad else ce.detach(),
        )
    else:
        losses = head_losses(backend, spec, tensors)
    if not return_components:
        return losses
    return losses, Components(*(loss.detach() for loss in losses))
