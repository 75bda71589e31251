"""The autograd Functions: one node from both outputs to the loss, or a node a head.

Where the gradient is computed in the forward pass, it alone is kept; where it waits for
`grad_output` (see `kernels.gradient_waits`), the inputs are kept and nothing else. Under
`inplace_gradient` the logits' gradient lies in the logits' own storage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_loss import kernels
from fused_loss.spec import LossSpec, LossTensors, Needs


class Call(NamedTuple):
    """What a node is made for; it stays out of the graph, which would keep its tensors alive."""

    backend: str
    spec: LossSpec
    tensors: LossTensors
    components: bool  # whether they are wanted beside the loss


class FusedLoss(torch.autograd.Function):
    """`(call, r, z, weights) -> loss`, or `(loss, components)`; components take no gradient.

    The three tensors are those of the call that may want a gradient. Few arguments: each costs.
    """

    @staticmethod
    def forward(
        ctx: Any, call: Call, r: Tensor | None, z: Tensor | None, weights: Tensor | None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the loss and, unless it waits, the gradient."""
        backend, spec, tensors, components = call
        ctx.set_materialize_grads(False)
        _, r_needs, z_needs, weights_need = ctx.needs_input_grad
        needs = Needs(r_needs, z_needs, components or weights_need)
        waits = kernels.gradient_waits(spec, tensors)
        asked = Needs(False, False, needs.components) if waits else needs
        outcome = kernels.forward(backend, spec, tensors, asked)
        ctx.backend, ctx.spec, ctx.needs, ctx.waits = backend, spec, needs, waits
        ctx.weights_need = weights_need
        _overwritten(spec, tensors, asked)
        # Kept by save_for_backward, so that AccumulateGrad can take the gradient's own buffer.
        kept: tuple[Tensor | None, ...] = tensors if waits else outcome[2:]
        if weights_need:
            kept = *kept, outcome.components, weights
        ctx.save_for_backward(*kept)
        if not components:
            return outcome.loss
        assert outcome.components is not None
        ctx.mark_non_differentiable(outcome.components)
        return outcome.loss, outcome.components

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, *_: None
    ) -> tuple[None, Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of both outputs and of the weights.

        Raises:
            RuntimeError: Under `create_graph=True`; under `is_grads_batched=True` where it waits; a
                second time under `inplace_gradient=True`.
        """
        if grad_output is None:
            return None, None, None, None
        _refuse(ctx, grad_output)
        kept, grad_weights = ctx.saved_tensors, None
        if ctx.weights_need:
            *kept, components, weights = kept
            grad_weights = kernels.weights_gradient(components, weights, grad_output)
        grad_r, grad_z = _output_gradients(ctx, kept, grad_output)
        return None, grad_r, grad_z, grad_weights


class HeadLoss(torch.autograd.Function):
    """One head of a shared pass: `(call, needs, output, loss, gradients) -> loss`.

    Only the head's own output takes a gradient: `needs` says which one that is. `gradients` is None
    where they wait.
    """

    @staticmethod
    def forward(
        ctx: Any,
        call: Call,
        needs: Needs,
        output: Tensor,
        loss: Tensor,
        gradients: tuple[Tensor | None, Tensor | None] | None,
    ) -> Tensor:
        """The loss that the shared pass computed."""
        ctx.set_materialize_grads(False)
        ctx.backend, ctx.spec, ctx.needs, ctx.waits = *call[:2], needs, gradients is None
        ctx.save_for_backward(*(call.tensors if gradients is None else gradients))
        return loss.data  # no view of the other head's: each may be changed in place

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradient of the head's output.

        Raises:
            RuntimeError: As `FusedLoss.backward`.
        """
        gradient = None
        if grad_output is not None:
            _refuse(ctx, grad_output)
            gradients = _output_gradients(ctx, ctx.saved_tensors, grad_output)
            gradient = gradients[0] if ctx.needs.regression else gradients[1]
        return None, None, gradient, None, None


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
        losses = [component.data for component in outcome.components.unbind()[:2]]
        _overwritten(spec, tensors, asked)
    gradients = (outcome.regression_gradient, None), (None, outcome.classification_gradient)
    for head, needs in enumerate((Needs(True, False), Needs(False, True))):
        if wanted[head]:
            kept = None if waits else gradients[head]
            call = Call(backend, spec, _without_head(tensors, 1 - head), False)
            losses[head] = HeadLoss.apply(call, needs, tensors[head], losses[head], kept)
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
    if torch.is_grad_enabled() or kernels.transform() or kernels.batched(grad_output):
        _refuse_transform(ctx, grad_output)
    if ctx.spec.inplace_gradient and ctx.needs.classification:
        if getattr(ctx, "has_run", False):
            raise RuntimeError(
                "a second backward pass: inplace_gradient=True gave the gradient away with the "
                "first one; leave it at False, or compute the loss again"
            )
        ctx.has_run = True


def _refuse_transform(ctx: Any, grad_output: Tensor) -> None:
    batched = kernels.batched(grad_output)
    if batched and not (torch.is_grad_enabled() or ctx.waits):
        return
    what, mend = "differentiated (create_graph=True)", ""
    if batched and not torch.is_grad_enabled():
        what = "batched for float16 or reduction='none'"
        mend = ", or its gradients one at a time"
    raise RuntimeError(
        f'the backward of backend("{ctx.backend}") is closed-form and cannot be {what} ("auto" '
        "chooses a backend by device, size and options): "
        f'compute this loss under fused_loss.backend("reference"){mend}'
    )


def _output_gradients(
    ctx: Any, kept: Sequence[Tensor | None], grad_output: Tensor
) -> Sequence[Tensor | None]:
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
    ctx: Any, kept: Sequence[Tensor | None], grad_output: Tensor
) -> Sequence[Tensor | None]:
    """The stored gradients times grad_output."""
    if kernels.batched(grad_output):
        return [None if gradient is None else gradient * grad_output for gradient in kept]
    # A retained graph runs again: its gradients stay as they are. Not under inplace_gradient.
    retained = torch._C._autograd._get_current_graph_task_keep_graph()
    in_place = not retained or (ctx.spec.inplace_gradient and ctx.needs.classification)
    return kernels.scale(ctx.backend, kept, grad_output, in_place)
