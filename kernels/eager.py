"""The CPU backend: plain PyTorch operators and a closed-form backward.

For a position with logits z, `p = softmax(z)` and smoothed, class-weighted targets
`q' = class_weight · ((1-ε)·target + ε/K)` on the K possible classes:

    loss      = -Σ_c q'_c · log p_c
    d loss/dz = p · Σ_c q'_c - q'

and for the regression head `d w·(r-y)²/dr = 2·w·(r-y)`. Both gradients are finished here, for a
`grad_output` of 1, in the same pass that computes the loss. The logits are taken in tiles that fit
the cache, so the only buffer of the logits' size is the gradient itself: p is written into it (or
into a float32 buffer of a tile) and turned into the gradient in place. `docs/cpu.md` has the whole.

Parallel is what PyTorch's operators are. On a CPU results of logits (N, C) have the same bits for
any number of threads. Those of (N, C, d1, ...) may differ in the last: along a dimension that is
not the last `torch.softmax` gives each thread a share of the positions and takes another exp for
the odd ones at its end.

The page faults of a large new buffer may cost more than the arithmetic. They are gone with
`inplace_gradient`, and fewer with `THP_MEM_ALLOC_ENABLE=1`, PyTorch's own switch for huge pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_loss.kernels.eager_classification import Classification
from fused_loss.kernels.eager_numbers import sums_dtype, value
from fused_loss.kernels.eager_regression import Regression
from fused_loss.spec import (
    LossSpec,
    LossTensors,
    Needs,
    Outcome,
    accumulation_dtype,
    illegal_index,
    in_dtype,
    number_in,
)


def forward(spec: LossSpec, tensors: LossTensors, needs: Needs) -> Outcome:
    """The loss, its components, and the gradients that are needed (for a `grad_output` of 1)."""
    return _run(spec, tensors, needs, None)


def gradients(
    spec: LossSpec, tensors: LossTensors, needs: Needs, grad_output: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients for `grad_output`, () or (N,), computed from the inputs."""
    outcome = _run(spec, tensors, needs, grad_output)
    return outcome.regression_gradient, outcome.classification_gradient


def scale(
    gradients: Sequence[Tensor | None], grad_output: Tensor, in_place: bool
) -> Sequence[Tensor | None]:
    """The stored gradients times a 0-d `grad_output`; in place where nobody else will read them."""
    if not in_place:
        return [None if g is None else g * grad_output for g in gradients]
    if grad_output.device.type == "cpu" and grad_output.item() == 1:  # no accelerator: no sync
        return gradients
    return [None if g is None else g.mul_(grad_output) for g in gradients]


def _run(spec: LossSpec, tensors: LossTensors, needs: Needs, upstream: Tensor | None) -> Outcome:
    r, z = tensors.regression_output, tensors.classification_output
    dtype = accumulation_dtype(r, z)
    output = z if r is None else r
    assert output is not None
    sums = sums_dtype(output, dtype)
    w_reg, w_cls = _weights(spec, tensors.weights, sums)
    if upstream is not None:  # for the gradients alone
        factor = upstream.to(sums) if upstream.dim() else value(upstream.to(sums))
        w_reg, w_cls = w_reg * factor, w_cls * factor
    mse = ce = grad_r = grad_z = None
    if r is not None and (upstream is None or needs.regression):
        mse, grad_r = Regression(spec, tensors, needs.regression, dtype).run(w_reg)
    if z is not None and (upstream is None or needs.classification):
        ce, grad_z = _classification(spec, tensors, needs.classification, dtype, w_cls)
    if mse is None or ce is None:  # cross_entropy or mse_loss alone: weight 1
        loss, components = ce if mse is None else mse, None
    else:
        loss = w_reg * mse + w_cls * ce
        parts = (mse, ce) if tensors.weights is None else (mse, ce, mse - ce)
        rows = [_tensor(part, dtype) for part in parts] if needs.components else []
        components = torch.stack(rows) if rows else None
    return Outcome(_tensor(loss, dtype), components, grad_r, grad_z)


def _tensor(loss: Any, dtype: torch.dtype) -> Tensor:
    """A loss in its dtype; one that is a number lies on the CPU."""
    if isinstance(loss, Tensor):
        return in_dtype(loss, dtype)
    return torch.scalar_tensor(number_in(loss, dtype), dtype=dtype, device="cpu")


def _classification(
    spec: LossSpec, tensors: LossTensors, need: bool, dtype: torch.dtype, weight: Any
) -> tuple[Any, Tensor | None]:
    try:
        return Classification(spec, tensors, need, dtype).run(weight)
    except (IndexError, RuntimeError) as error:
        named = illegal_index(spec, tensors)
        if named is None:
            raise
        raise named from error


def _weights(spec: LossSpec, weights: Tensor | None, dtype: torch.dtype) -> tuple[Any, Any]:
    """`(w_reg, w_cls)`: two numbers or, on an accelerator, two 0-d tensors."""
    if weights is None:
        return spec.weights or (1.0, 1.0)
    if weights.dim():
        w_reg, w_cls = weights.to(dtype).unbind()
        return value(w_reg), value(w_cls)
    alpha = value(weights.to(dtype))
    return alpha, 1 - alpha
