"""Small inputs on a CPU: PyTorch's own differentiable operators, in the fewest calls.

What a small loss costs is the operators that are dispatched and the Python around them, not bytes.
An autograd Function of ours, forward and backward, is more of both than the nodes that PyTorch
makes in C++. `auto` comes here; the closed form of `backend("eager")` is for all that is larger.
The sums are PyTorch's own: one of more than 32768 values may depend on the number of threads in its
last bit.

A call with most options left at their defaults goes through `plain`, ahead of every check: what is
checked in Python costs as much as an operator. What PyTorch itself refuses, `plain` leaves to the
general way, which says what is wrong. That way is `native_heads`, for every option; what its
operators would get wrong is computed by `reference`, so that all of it can be differentiated again.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from fused_loss.kernels import native_heads, reference
from fused_loss.kernels.native_heads import EACH, REDUCTIONS, Head, cross_entropy_loss, mse_loss
from fused_loss.spec import NO_LABEL, PLAIN, LossSpec, LossTensors, Needs, Outcome, in_dtype

# On two cores, float32, eager's time over that of this way and over that of the closed form, by
# N x C: with probabilities, forward and backward, 4096x65 0.75 and 0.68, 1024x500 0.84 and 0.79;
# with ignored rows 1024x500 0.50 and 0.66, and 0.86 and 0.62 without a gradient. For squared errors
# PyTorch's one pass does for longer.
MOST_LOGITS = 1 << 19
MOST_ERRORS = 1 << 21


def plain(
    r: Any,
    z: Any,
    y: Any,
    t: Any,
    alpha: Any,
    pair: Any,
    class_weight: Any,
    smoothing: float,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The loss and its components of few float32 elements on a CPU, attached to the graph.

    Args:
        r: `regression_output`; the next three are the others in order.
        z: Logits.
        y: Regression targets.
        t: Class indices or probabilities.
        alpha: Where there is no pair.
        pair: `loss_weights`, or None.
        class_weight: As in `combined_loss`, whose further options have their defaults.
        smoothing: `label_smoothing`.
        reduction: As in `combined_loss`.

    Returns:
        None where it is no such call, where an operator refuses the arguments, and where perhaps
        nothing has a label: the general way takes it.
    """
    if not (
        type(z) in PLAIN
        and z.is_cpu
        and z.dim() > 1
        and 0 < z.numel() <= MOST_LOGITS
        and type(r) in PLAIN
        and r.is_cpu
        and 0 < r.numel() <= MOST_ERRORS
        and type(y) is Tensor
        and y.is_cpu
        and type(t) is Tensor
        and r.dtype is z.dtype is y.dtype is torch.float32
        and (t.dtype is torch.int64 or t.dtype is torch.float32)
        and t.layout is torch.strided
        and r.shape == y.shape
        and type(smoothing) is float
        and 0.0 <= smoothing <= 1.0  # where PyTorch takes a NaN and what is below 0 for 0
        and type(reduction) is str
        and (class_weight is None or _is_usual(class_weight, smoothing))
    ):
        return None
    apart = reduction == "none" and z.dim() == 2 and r.shape[:1] == z.shape[:1]
    weights = _pair(alpha, pair)
    if weights is None or not (apart or reduction in REDUCTIONS):
        return None
    try:
        how = EACH if apart else REDUCTIONS[reduction]
        mse = mse_loss(r, y, how)
        if apart and mse.dim() > 1:
            mse = mse.flatten(1).mean(1)
        ce = cross_entropy_loss(z, t, class_weight, how, NO_LABEL, smoothing)
        loss = _weighted(mse, ce, *weights)
        unlabelled = t.dtype is torch.int64 and t.min().item() < 0
        if unlabelled and not math.isfinite(z.sum().item()):
            return None
        of_all = unlabelled or class_weight is not None
        if of_all and not apart and not math.isfinite(ce.item()):
            return None
    except (RuntimeError, IndexError, TypeError, ValueError):
        return None
    return loss, mse, ce


def _is_usual(weight: Any, smoothing: float) -> bool:
    return (
        type(weight) is Tensor
        and weight.is_cpu
        and weight.dtype is torch.float32
        and not weight.requires_grad
        and not native_heads.smoothing_spoils(smoothing, weight)
    )


def _pair(alpha: Any, pair: Any) -> tuple[Any, Any] | None:
    """(w_reg, w_cls): two floats or two 0-d float32 tensors; None for anything else."""
    given = alpha if pair is None else pair
    if type(given) in PLAIN:
        if not (given.is_cpu and given.dtype is torch.float32):
            return None
        if pair is None:
            return (given, 1 - given) if given.dim() == 0 else None
        return given.unbind() if given.shape == (2,) else None
    if pair is None:
        return (alpha, 1.0 - alpha) if isinstance(alpha, float) else None
    floats = type(pair) is tuple and len(pair) == 2 and type(pair[0]) is type(pair[1]) is float
    return pair if floats else None


def takes(spec: LossSpec, tensors: LossTensors) -> bool:
    """Whether these are few elements on a CPU, not written over, that autograd may keep."""
    r, z = tensors[:2]
    if r is not None and not (r.is_cpu and 0 < r.numel() <= MOST_ERRORS):
        return False
    if z is not None and not (z.is_cpu and z.dim() > 1 and 0 < z.numel() <= MOST_LOGITS):
        return False
    if torch.is_grad_enabled() and any(t is not None and t.is_inference() for t in tensors[2:]):
        return False
    return not spec.inplace_gradient


def forward(spec: LossSpec, tensors: LossTensors, needs: Needs) -> Outcome:
    """The loss and its components, all attached to the graph.

    Raises:
        IndexError: A class index lies outside [0, C).
    """
    found = _heads(spec, tensors)
    if found is None:
        return Outcome(*reference.forward(spec, tensors), None, None)
    if len(found) == 1:  # cross_entropy or mse_loss alone: weight 1
        return Outcome(found[0].loss, None, None, None)
    mse, ce = found
    weights = tensors.weights
    if weights is None:
        assert spec.weights is not None
        (errors, w_reg), (entropy, w_cls) = mse.times(spec.weights[0]), ce.times(spec.weights[1])
        loss = in_dtype(_weighted(errors, entropy, w_reg, w_cls), mse.dtype)
    else:
        weights = weights.to(mse.dtype)
        pair = weights.unbind() if weights.dim() else (weights, 1 - weights)
        loss = _weighted(mse.loss, ce.loss, *pair)
    components = torch.stack((mse.loss, ce.loss)) if needs.components else None
    return Outcome(loss, components, None, None)


def heads(spec: LossSpec, tensors: LossTensors) -> tuple[Tensor, ...]:
    """The losses of those heads that are there, regression first, each with a graph of its own."""
    found = _heads(spec, tensors)
    if found is None:
        return reference.heads(spec, tensors)
    return tuple(head.loss for head in found)


def _heads(spec: LossSpec, tensors: LossTensors) -> tuple[Head, ...] | None:
    """Those that are there; None where one of them is for the reference."""
    found, spelt_out = [], native_heads.spells_out(spec, tensors)
    if tensors.regression_output is not None:
        found.append(native_heads.mean_squared_error(spec, tensors, spelt_out))
    if tensors.classification_output is not None:
        found.append(native_heads.cross_entropy(spec, tensors, spelt_out))
    heads = tuple(head for head in found if head is not None)
    return heads if len(heads) == len(found) else None


def _weighted(mse: Tensor, ce: Tensor, w_reg: Any, w_cls: Any) -> Tensor:
    """w_reg · mse + w_cls · ce: in two nodes, if the weights are numbers."""
    if isinstance(w_cls, Tensor):
        loss: Tensor = w_reg * mse + w_cls * ce
        return loss
    return torch.add(ce * _constant(w_cls, ce.dtype), mse, alpha=w_reg)


def _constant(value: float, dtype: torch.dtype) -> Tensor | float:
    """A 0-d tensor: a product with one costs half of a product with a Python number.

    Not under a dispatch mode, which may make another kind of tensor of it, such as a fake one.
    """
    return value if torch._C._len_torch_dispatch_stack() else _known_constant(value, dtype)


@functools.lru_cache(maxsize=256)
def _known_constant(value: float, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.scalar_tensor(value, dtype=dtype, device="cpu")
