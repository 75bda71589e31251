"""The autograd Function: one node from both outputs to the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_loss import kernels
from fused_loss.spec import LossSpec, LossTensors, Needs


class FusedLoss(torch.autograd.Function):
    """`(backend, spec, components, *LossTensors) -> (loss, components)`; these take no gradient.

    Where the gradient is computed in the forward pass, it alone is kept; where it waits for
    `grad_output` (see `kernels.gradient_waits`), the inputs are kept and nothing else.
    """

    @staticmethod
    def forward(
        ctx: Any, backend: str, spec: LossSpec, want_components: bool, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the loss and, unless it waits, the gradient."""
        inputs = LossTensors(*tensors)
        ctx.set_materialize_grads(False)
        ctx.backend, ctx.spec = backend, spec
        _, _, _, r_needs, z_needs, _, _, ctx.weights_need, _ = ctx.needs_input_grad
        ctx.needs = Needs(r_needs, z_needs, want_components or ctx.weights_need)
        ctx.waits = kernels.gradient_waits(spec, inputs)
        asked = Needs(False, False, ctx.needs.components) if ctx.waits else ctx.needs
        outcome = kernels.forward(backend, spec, inputs, asked)
        if outcome.components is not None:
            ctx.mark_non_differentiable(outcome.components)
        # Kept by save_for_backward, so that AccumulateGrad can take the gradient's own buffer.
        kept = (
            inputs if ctx.waits else (outcome.regression_gradient, outcome.classification_gradient)
        )
        ctx.save_for_backward(
            outcome.components if ctx.weights_need else None, inputs.weights, *kept
        )
        return outcome.loss, outcome.components

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Gradients of both outputs and of the weights.

        Raises:
            RuntimeError: Under `create_graph=True` or `is_grads_batched=True`.
        """
        if grad_output is None:
            return (None,) * 9
        batched = torch._C._functorch.is_legacy_batchedtensor(grad_output)
        if torch.is_grad_enabled() or batched or kernels.transform():
            raise RuntimeError(
                f'the backward of backend("{ctx.backend}") is closed-form and cannot be '
                f"{'batched' if batched else 'differentiated (create_graph=True)'}: "
                'compute this loss under fused_loss.backend("reference")'
            )
        components, weights, *kept = ctx.saved_tensors
        grad_r = grad_z = None
        if ctx.waits and (ctx.needs.regression or ctx.needs.classification):
            inputs = LossTensors(*kept)
            grad_r, grad_z = kernels.backward(ctx.backend, ctx.spec, inputs, ctx.needs, grad_output)
        elif not ctx.waits:
            grad_r, grad_z = _scaled(ctx.backend, kept, grad_output)
        grad_weights = (
            _weights_gradient(components, weights, grad_output) if ctx.weights_need else None
        )
        return None, None, None, grad_r, grad_z, None, None, grad_weights, None


def _scaled(backend: str, kept: list[Tensor | None], grad_output: Tensor) -> list[Tensor | None]:
    stored = [gradient for gradient in kept if gradient is not None]
    if not stored:
        return kept
    # A retained graph runs again: its gradients stay as they are.
    retained = torch._C._autograd._get_current_graph_task_keep_graph()
    scaled = iter(kernels.scale(backend, stored, grad_output, in_place=not retained))
    return [None if gradient is None else next(scaled) for gradient in kept]


def _weights_gradient(components: Tensor, weights: Tensor, grad_output: Tensor) -> Tensor:
    """d loss/d(w_reg, w_cls) = (mse, ce), and d loss/d alpha = mse - ce, summed over samples."""
    pair = components * grad_output
    if pair.dim() > 1:
        pair = pair.flatten(1).sum(1)
    return (pair if weights.dim() else pair[0] - pair[1]).to(weights.dtype)
