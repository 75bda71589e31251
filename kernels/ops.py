"""The Triton kernels as operators of PyTorch's own registry, for graphs of `torch.compile`.

Outside a compiled graph a call reaches the kernels directly, since an operator costs microseconds
of its own. Inside, `fused_loss::loss` is one launch that the compiler does not look into, and
`fused_loss::gradients` one more in the backward graph, for a `grad_output` that is read on the
device: the gradient waits for it, 3·N·C·b of traffic, because a graph may not write into what it
has saved. The components are differentiable too, for `task_losses`: one launch a head.

Scalars travel as the fields of `LossSpec`, tensors as those of `LossTensors`, in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_loss.kernels import dispatch, layout
from fused_loss.spec import LossSpec, LossTensors, Needs, accumulation_dtype, loss_shape

TENSORS = len(LossTensors._fields)
WEIGHTS = LossTensors._fields.index("weights")
BACKEND = "triton"
W = 3, 4  # where w_reg and w_cls stand among the scalars

_TENSORS = ", ".join(
    f"Tensor{'' if place < 4 else '?'} {name}" for place, name in enumerate(LossTensors._fields)
)
_SCALARS = (
    "str reduction, int ignore_index, float label_smoothing, float w_reg, float w_cls, "
    "str nan_targets, str empty, float? r_normalizer, float? z_normalizer"
)
torch.library.define("fused_loss::loss", f"({_TENSORS}, {_SCALARS}) -> (Tensor, Tensor)")
torch.library.define(
    "fused_loss::gradients",
    f"(Tensor grad_output, bool need_r, bool need_z, {_TENSORS}, {_SCALARS}) -> (Tensor, Tensor)",
)


def compiled(spec: LossSpec, tensors: LossTensors) -> tuple[Tensor, Tensor]:
    """The loss and its components, by the operator."""
    return torch.ops.fused_loss.loss(*tensors, *_scalars(spec))


def _scalars(spec: LossSpec) -> tuple[Any, ...]:
    return (
        spec.reduction,
        spec.ignore_index,
        float(spec.label_smoothing),
        *(spec.weights or (1.0, 1.0)),
        spec.nan_targets,
        spec.empty,
        spec.regression_normalizer,
        spec.classification_normalizer,
    )


def _call(arguments: tuple[Any, ...]) -> tuple[LossSpec, LossTensors]:
    """What an operator was given, as the backends take it."""
    tensors = LossTensors(*arguments[:TENSORS])
    reduction, ignore_index, smoothing, w_reg, w_cls, nan_targets, empty, *normalizers = arguments[
        TENSORS:
    ]
    weights = (w_reg, w_cls) if tensors.weights is None else None
    spec = LossSpec(
        reduction, ignore_index, smoothing, weights, False, nan_targets, empty, *normalizers
    )
    return spec, tensors


@torch.library.impl("fused_loss::loss", "default")
def _loss(*arguments: Any) -> tuple[Tensor, Tensor]:
    outcome = dispatch.forward(BACKEND, *_call(arguments), Needs(False, False))
    assert outcome.components is not None
    return outcome.loss, outcome.components


@torch.library.register_fake("fused_loss::loss")
def _loss_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    spec, tensors = _call(arguments)
    r, z = tensors.regression_output, tensors.classification_output
    assert r is not None
    assert z is not None
    shape, dtype = loss_shape(spec, z), accumulation_dtype(r, z)
    return r.new_empty(shape, dtype=dtype), r.new_empty((3, *shape), dtype=dtype)


@torch.library.impl("fused_loss::gradients", "default")
def _gradients(
    grad_output: Tensor, need_r: bool, need_z: bool, *arguments: Any
) -> tuple[Tensor, Tensor]:
    spec, tensors = _call(arguments)
    found = dispatch.backward(BACKEND, spec, tensors, Needs(need_r, need_z), grad_output)
    r, z = (grad_output.new_empty(0) if gradient is None else gradient for gradient in found)
    return r, z


@torch.library.register_fake("fused_loss::gradients")
def _gradients_fake(
    grad_output: Tensor, need_r: bool, need_z: bool, *arguments: Any
) -> tuple[Tensor, Tensor]:
    spec, tensors = _call(arguments)
    r, z = tensors.regression_output, tensors.classification_output
    assert r is not None
    assert z is not None
    whole = z.dim() == 1 and spec.per_sample
    return (
        layout.gradient_like(r, merged=0 if whole else 1) if need_r else grad_output.new_empty(0),
        layout.gradient_like(z, merged=2) if need_z else grad_output.new_empty(0),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.scalars = inputs[TENSORS:]
    ctx.save_for_backward(output[1], *inputs[:TENSORS])


def _backward(
    ctx: Any, grad_output: Tensor | None, grad_components: Tensor | None
) -> tuple[Tensor | None, ...]:
    components, *tensors = ctx.saved_tensors
    needs = ctx.needs_input_grad
    result: list[Tensor | None] = [None] * len(needs)
    if grad_output is not None:
        result[:2] = _of_heads(grad_output, needs[:2], tensors, ctx.scalars)
        if needs[WEIGHTS]:
            result[WEIGHTS] = weights_gradient(components, tensors[WEIGHTS], grad_output)
    if grad_components is not None:
        tensors[WEIGHTS] = None
        scalars = tuple(1.0 if place in W else s for place, s in enumerate(ctx.scalars))
        for head in range(2):
            need = [place == head and needs[head] for place in range(2)]
            more = _of_heads(grad_components[head], need, tensors, scalars)[head]
            known = result[head]
            result[head] = more if known is None or more is None else known + more
    return tuple(result)


def _of_heads(
    grad_output: Tensor, needs: Sequence[bool], tensors: Sequence[Any], scalars: Sequence[Any]
) -> list[Tensor | None]:
    """The gradients of both outputs for one `grad_output`; None where they are not needed."""
    if not any(needs):
        return [None, None]
    gradients = torch.ops.fused_loss.gradients(grad_output, *needs, *tensors, *scalars)
    return [gradients[head] if needs[head] else None for head in range(2)]


def weights_gradient(components: Tensor, weights: Tensor, grad_output: Tensor) -> Tensor:
    """d loss/d(w_reg, w_cls) = (mse, ce), and d loss/d alpha = mse - ce, summed over samples."""
    if components.device.type == "cpu":  # where float64 is at hand, and costs nothing
        components = components.double()
    parts = (components[:2] if weights.dim() else components[2:]) * grad_output
    if parts.dim() > 1:
        parts = parts.flatten(1).sum(1)
    return parts.view(weights.shape).to(weights.dtype)


torch.library.register_autograd("fused_loss::loss", _backward, setup_context=_keep)
