"""Small inputs on a CPU: PyTorch's own differentiable operators, in the fewest calls.

What a small loss costs is the operators that are dispatched and the Python around them, not bytes.
An autograd Function of ours, forward and backward, is more of both than the nodes that PyTorch
makes in C++. `auto` comes here; the closed form of `backend("eager")` is for all that is larger.
The sums are PyTorch's own: one of more than 32768 values may depend on the number of threads in its
last bit.

A call with most options left at their defaults goes through `plain`, ahead of every check: what is
checked in Python costs as much as an operator. What PyTorch itself refuses, `plain` leaves to the
general way, which says what is wrong.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from fused_loss.spec import (
    NO_LABEL,
    PLAIN,
    LossSpec,
    LossTensors,
    Needs,
    Outcome,
    accumulation_dtype,
    illegal_index,
    in_dtype,
    number_in,
)

# On two cores, float32, forward and backward, eager's time over that of this way and over that of
# the closed form, by N x C: 4096x65 1.06 and 0.47 with probabilities, 1024x512 0.95 and 0.68 with
# ignored rows, 1024x1000 0.67 and 1.53 so. For squared errors PyTorch's one pass does for longer.
MOST_LOGITS = 1 << 19
MOST_ERRORS = 1 << 21
REDUCTIONS = {"mean": 1, "sum": 2}  # as PyTorch's operators number them
EACH = 0  # none

# Without the wrappers of torch.nn.functional, which cost as much as the operators.
mse_loss: Any = torch._C._nn.mse_loss
cross_entropy_loss: Any = torch._C._nn.cross_entropy_loss


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
        and (class_weight is None or _is_constant(class_weight))
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


def _is_constant(weight: Any) -> bool:
    return type(weight) is Tensor and weight.dtype is torch.float32 and not weight.requires_grad


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
    """Whether these are few elements on a CPU, with no option that PyTorch lacks."""
    if not (spec.native and tensors.native):
        return False
    r, z, weight = tensors[0], tensors[1], tensors.class_weight
    if r is not None and not (r.is_cpu and 0 < r.numel() <= MOST_ERRORS):
        return False
    if z is not None and not (z.is_cpu and z.dim() > 1 and 0 < z.numel() <= MOST_LOGITS):
        return False
    # Where all labelled positions weigh 0 PyTorch's gradient is NaN, and ours 0.
    return weight is None or bool((weight > 0).all())


def forward(spec: LossSpec, tensors: LossTensors, needs: Needs) -> Outcome:
    """The loss and its components, all attached to the graph.

    Raises:
        IndexError: A class index lies outside [0, C).
    """
    mse, ce = _mean_squared_error(spec, tensors), _cross_entropy(spec, tensors)
    if mse is None or ce is None:  # cross_entropy or mse_loss alone: weight 1
        only = ce if mse is None else mse
        assert only is not None
        return Outcome(only, None, None, None)
    pair: Any
    if tensors.weights is None:
        assert spec.weights is not None
        pair = (number_in(weight, ce.dtype) for weight in spec.weights)
    else:
        weights = tensors.weights.to(mse.dtype)
        pair = weights.unbind() if weights.dim() else (weights, 1 - weights)
    loss = _weighted(mse, ce, *pair)
    return Outcome(loss, torch.stack((mse, ce)) if needs.components else None, None, None)


def _weighted(mse: Tensor, ce: Tensor, w_reg: Any, w_cls: Any) -> Tensor:
    """w_reg · mse + w_cls · ce: in two nodes, if the weights are numbers."""
    if isinstance(w_cls, Tensor):
        loss: Tensor = w_reg * mse + w_cls * ce
        return loss
    return torch.add(ce * _constant(w_cls, ce.dtype), mse, alpha=w_reg)


def heads(spec: LossSpec, tensors: LossTensors) -> tuple[Tensor, Tensor]:
    """The losses of both heads, each with a graph of its own."""
    mse, ce = _mean_squared_error(spec, tensors), _cross_entropy(spec, tensors)
    assert mse is not None
    assert ce is not None
    return mse, ce


def _mean_squared_error(spec: LossSpec, tensors: LossTensors) -> Tensor | None:
    r, y = tensors.regression_output, tensors.regression_targets
    if r is None or y is None:
        return None
    dtype = accumulation_dtype(r, tensors.classification_output)
    return mse_loss(in_dtype(r, dtype), in_dtype(y, dtype), REDUCTIONS[spec.reduction])


def _constant(value: float, dtype: torch.dtype) -> Tensor | float:
    """A 0-d tensor: a product with one costs half of a product with a Python number.

    Not under a dispatch mode, which may make another kind of tensor of it, such as a fake one.
    """
    return value if torch._C._len_torch_dispatch_stack() else _known_constant(value, dtype)


@functools.lru_cache(maxsize=256)
def _known_constant(value: float, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=dtype, device="cpu")


def _cross_entropy(spec: LossSpec, tensors: LossTensors) -> Tensor | None:
    z, targets = tensors.classification_output, tensors.classification_targets
    if z is None or targets is None:
        return None
    logits = in_dtype(z, accumulation_dtype(tensors.regression_output, z))
    ignore_index, weight = spec.ignore_index, tensors.class_weight
    if targets.is_floating_point():
        targets = in_dtype(targets, logits.dtype)
    else:
        targets = in_dtype(targets, torch.int64)
        if ignore_index >= 0 or targets.min().item() < 0:  # some may have no label
            ignored = targets == ignore_index
            nothing = bool(ignored.all())
            # Their gradient is 0 whatever the logits are; NaN · 0 is not 0.
            if nothing or not math.isfinite(logits.sum().item()):
                logits = logits.masked_fill(ignored.unsqueeze(1), 0.0)
            if nothing:
                return logits.sum() + (spec.of_nothing if spec.reduction == "mean" else 0.0)
    if weight is not None:
        weight = in_dtype(weight, logits.dtype)
    try:
        return cross_entropy_loss(
            logits, targets, weight, REDUCTIONS[spec.reduction], ignore_index, spec.label_smoothing
        )
    except (IndexError, RuntimeError) as error:
        named = illegal_index(spec, tensors)
        if named is None:
            raise
        raise named from error
