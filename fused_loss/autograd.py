"""The autograd Functions: one node from both outputs to the loss, or a node a head.

Where the gradient is computed in the forward pass, it alone is kept; where it waits for
`grad_output` (see `kernels.gradient_waits`), the inputs are kept and nothing else. Under
`inplace_gradient` the logits' gradient lies in the logits' own storage.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_loss import kernels
from fused_loss.spec import LossSpec, LossTensors, Needs

TENSORS = len(LossTensors._fields)
WEIGHTS = LossTensors._fields.index("weights")


class FusedLoss(torch.autograd.Function):
    """`(backend, spec, components, *LossTensors) -> (loss, components)`; these take no gradient."""

    @staticmethod
    def forward(
        ctx: Any, backend: str, spec: LossSpec, want_components: bool, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the loss and, unless it waits, the gradient."""
        inputs = LossTensors(*tensors)
        ctx.set_materialize_grads(False)
        ctx.backend, ctx.spec = backend, spec
        need = ctx.needs_input_grad[3:]
        ctx.weights_need = need[WEIGHTS]
        ctx.needs = Needs(need[0], need[1], want_components or ctx.weights_need)
        ctx.waits = kernels.gradient_waits(spec, inputs)
        asked = Needs(False, False, ctx.needs.components) if ctx.waits else ctx.needs
        outcome = kernels.forward(backend, spec, inputs, asked)
        if outcome.components is not None:
            ctx.mark_non_differentiable(outcome.components)
        gradients = outcome.regression_gradient, outcome.classification_gradient
        _overwritten(spec, inputs, asked)
        # Kept by save_for_backward, so that AccumulateGrad can take the gradient's own buffer.
        kept = inputs if ctx.waits else gradients
        weighting = (outcome.components, inputs.weights) if ctx.weights_need else (None, None)
        ctx.save_for_backward(*weighting, *kept)
        return outcome.loss, outcome.components

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Gradients of both outputs and of the weights.

        Raises:
            RuntimeError: Under `create_graph=True`; under `is_grads_batched=True` where it waits; a
                second time under `inplace_gradient=True`.
        """
        gradients: list[Tensor | None] = [None] * TENSORS
        if grad_output is not None:
            _refuse(ctx, grad_output)
            components, weights, *kept = ctx.saved_tensors
            gradients[:2] = _output_gradients(ctx, kept, grad_output)
            if ctx.weights_need:
                gradients[WEIGHTS] = kernels.weights_gradient(components, weights, grad_output)
        return None, None, None, *gradients


class HeadLoss(torch.autograd.Function):
    """One head of a shared pass: `(backend, spec, needs, loss, gradients, *LossTensors) -> loss`.

    Only the head's own output takes a gradient: `needs` says which one that is.
    """

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        spec: LossSpec,
        needs: Needs,
        loss: Tensor,
        gradients: tuple[Tensor | None, Tensor | None] | None,
        *tensors: Tensor | None,
    ) -> Tensor:
        """The loss that the shared pass computed; `gradients` is None where they wait."""
        ctx.set_materialize_grads(False)
        ctx.backend, ctx.spec, ctx.needs, ctx.waits = backend, spec, needs, gradients is None
        ctx.save_for_backward(*(tensors if gradients is None else gradients))
        return loss.data  # no view of the other head's: each may be changed in place

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradient of the head's output.

        Raises:
            RuntimeError: As `FusedLoss.backward`.
        """
        gradients: list[Tensor | None] = [None] * TENSORS
        if grad_output is not None:
            _refuse(ctx, grad_output)
            gradients[:2] = _output_gradients(ctx, list(ctx.saved_tensors), grad_output)
        return *(None,) * 5, *gradients


def head_losses(backend: str, spec: LossSpec, tensors: LossTensors) -> tuple[Tensor, Tensor]:
    """Both losses from one pass over checked tensors, with a node of the graph each.

    One node with two outputs could not be differentiated in turns: the first backward pass would
    free what the second needs.
    """
    enabled = torch.is_grad_enabled()
    outputs = tensors[:2]
    wanted = [enabled and o is not None and o.requires_grad for o in outputs]
    waits = kernels.gradient_waits(spec, tensors)
    asked = Needs(*([False, False] if waits else wanted))
    with torch.no_grad():
        outcome = kernels.forward(backend, spec, tensors, asked)
        assert outcome.components is not None
        losses = [component.data for component in outcome.components.unbind()]
        _overwritten(spec, tensors, asked)
    gradients = (outcome.regression_gradient, None), (None, outcome.classification_gradient)
    for head, needs in enumerate((Needs(True, False), Needs(False, True))):
        if wanted[head]:
            kept = None if waits else gradients[head]
            own = _without_head(tensors, 1 - head)
            losses[head] = HeadLoss.apply(backend, spec, needs, losses[head], kept, *own)
    return losses[0], losses[1]


def _without_head(tensors: LossTensors, head: int) -> LossTensors:
    """The tensors with one output replaced by its dtype and its number of dimensions alone."""
    output = tensors[head]
    assert output is not None
    stub = output.new_empty((0,) * output.dim())
    return LossTensors(*(stub if place == head else t for place, t in enumerate(tensors)))


def _overwritten(spec: LossSpec, tensors: LossTensors, needs: Needs) -> None:
    """Let autograd know that the logits' values are gone, for whoever kept them."""
    if spec.inplace_gradient and needs.classification:
        assert tensors.classification_output is not None
        torch.autograd.graph.increment_version(tensors.classification_output)


def _refuse(ctx: Any, grad_output: Tensor) -> None:
    """What a closed-form backward cannot do.

    A batch of gradients multiplies stored ones; one that waits would be computed row by row.
    """
    batched = kernels.batched(grad_output)
    if torch.is_grad_enabled() or (kernels.transform() and not batched) or (batched and ctx.waits):
        what, mend = "differentiated (create_graph=True)", ""
        if batched and not torch.is_grad_enabled():
            what = "batched for float16 or reduction='none'"
            mend = ", or its gradients one at a time"
        raise RuntimeError(
            f'the backward of backend("{ctx.backend}") is closed-form and cannot be {what}: '
            f'compute this loss under fused_loss.backend("reference"){mend}'
        )
    if ctx.spec.inplace_gradient and ctx.needs.classification:
        if getattr(ctx, "has_run", False):
            raise RuntimeError(
                "a second backward pass: inplace_gradient=True gave the gradient away with the "
                "first one; leave it at False, or compute the loss again"
            )
        ctx.has_run = True


def _output_gradients(
    ctx: Any, kept: list[Tensor | None], grad_output: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Both outputs' gradients, from what was kept."""
    if not ctx.waits:
        return _scaled(ctx, kept, grad_output)
    if not (ctx.needs.regression or ctx.needs.classification):
        return None, None
    inputs = LossTensors(*kept)
    gradients = kernels.backward(ctx.backend, ctx.spec, inputs, ctx.needs, grad_output)
    _overwritten(ctx.spec, inputs, ctx.needs)
    return gradients


def _scaled(
    ctx: Any, kept: list[Tensor | None], grad_output: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The stored gradients times grad_output."""
    stored = [gradient for gradient in kept if gradient is not None]
    if stored and kernels.batched(grad_output):
        kept = [None if gradient is None else gradient * grad_output for gradient in kept]
    elif stored:
        # A retained graph runs again: its gradients stay as they are. Not under inplace_gradient.
        retained = torch._C._autograd._get_current_graph_task_keep_graph()
        in_place = not retained or (ctx.spec.inplace_gradient and ctx.needs.classification)
        scaled = iter(kernels.scale(ctx.backend, stored, grad_output, in_place=in_place))
        kept = [None if gradient is None else next(scaled) for gradient in kept]
    regression, classification = kept
    return regression, classification
