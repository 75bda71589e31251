"""The only validation of tensors: every public call of the combined family passes here once.

An error names the argument, what was given and what mends it. No value of a tensor is read, except
under `FUSED_LOSS_DEBUG=1`.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import Tensor

from fused_loss.spec import (
    FLOAT_DTYPES,
    PLAIN,
    LossSpec,
    LossTensors,
    class_axis,
    index_error,
    normalizes_mean,
)

ARGUMENTS = (*LossTensors._fields[:4], "loss_weights", *LossTensors._fields[5:])
REQUIRED = 4  # the first of them; the others may be None
DEBUG = os.environ.get("FUSED_LOSS_DEBUG") == "1"


def check(spec: LossSpec, tensors: LossTensors) -> None:
    """Refuse what the combined loss has no meaning for.

    Raises:
        TypeError: Not a tensor, or a dtype that a loss cannot take.
        ValueError: Shapes, devices or options that do not go together.
        IndexError: Under `FUSED_LOSS_DEBUG=1`, a class index outside [0, C) on any device.
    """
    if _usual(spec, tensors):
        return
    device = getattr(tensors.regression_output, "device", None)
    for place, tensor in enumerate(tensors):
        if tensor is not None or place < REQUIRED:
            _check_tensor(_name(place, tensor), tensor, device)
    r, z, y, t = tensors[:REQUIRED]
    assert r is not None
    assert z is not None
    assert y is not None
    assert t is not None
    for name, output in (("regression_output", r), ("classification_output", z)):
        if output.dtype not in FLOAT_DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
            raise TypeError(f"{name} must be one of {known}, got {output.dtype}")
    if r.shape != y.shape:
        raise ValueError(
            f"regression_targets has shape {tuple(y.shape)}, regression_output {tuple(r.shape)}: "
            f"they must be equal, nothing is broadcast; {_reshaping(r, y)}"
        )
    _check_classification(spec, z, t)
    if spec.reduction == "none":
        _check_samples(r, z)
    if any(option is not None for option in tensors[REQUIRED:]):
        _check_options(spec, tensors, r, z)
    if torch.compiler.is_compiling():
        return
    if spec.inplace_gradient and _trains(z):
        _check_inplace(tensors, z)
    if DEBUG and not t.is_floating_point():
        error = index_error(t, class_axis(z)[0], spec.ignore_index)
        if error is not None:
            raise error


def _usual(spec: LossSpec, tensors: LossTensors) -> bool:
    """Whether the call is one of the many in which nothing is left to check: it is the faster way.

    Plain tensors of float32 in the shapes (N, *) and (N, C), class indices of int64 or
    probabilities of float32, one device, and options in full shape.
    """
    r: Any
    z: Any
    y: Any
    t: Any
    r, z, y, t, weights, of_classes, mask, of_errors, of_positions, *_ = tensors
    return (
        type(r) in PLAIN
        and type(z) in PLAIN
        and type(y) is Tensor
        and type(t) is Tensor
        and r.dtype is z.dtype is y.dtype is torch.float32
        and (t.dtype is torch.int64 or (t.dtype is torch.float32 and spec.ignore_index < 0))
        and r.layout is z.layout is y.layout is t.layout is torch.strided
        and (
            (r.is_cpu and z.is_cpu and y.is_cpu and t.is_cpu)
            or r.device == z.device == y.device == t.device
        )
        and r.shape == y.shape
        and z.dim() == 2
        and (z.shape[:1] if t.dtype is torch.int64 else z.shape) == t.shape
        and z.shape[1] > 0
        and not (spec.per_sample or spec.inplace_gradient or DEBUG)
        and tensors.regression_normalizer is tensors.classification_normalizer is None
        and (weights is None or _fits(weights, torch.float32, weights.shape, z))
        and (mask is None or _full(mask, torch.bool, z.shape, z))
        and (of_classes is None or _full(of_classes, torch.float32, z.shape[1:], z))
        and (of_errors is None or _full(of_errors, torch.float32, r.shape, z))
        and (of_positions is None or _full(of_positions, torch.float32, z.shape[:1], z))
    )


def _full(option: Any, dtype: torch.dtype, shape: tuple[int, ...], beside: Tensor) -> bool:
    """Whether it is a constant in the shape that it would be spread to, on the same device."""
    return _fits(option, dtype, shape, beside) and not option.requires_grad


def _fits(option: Any, dtype: torch.dtype, shape: tuple[int, ...], beside: Tensor) -> bool:
    return (
        type(option) in PLAIN
        and option.dtype is dtype
        and option.layout is torch.strided
        and option.device == beside.device
        and option.shape == shape
    )


def check_targets(
    spec: LossSpec,
    y: Tensor,
    t: Tensor,
    class_weight: Tensor | None,
    regression_weight: Tensor | None,
    classification_weight: Tensor | None,
) -> None:
    """Refuse targets and weights from which no denominator can be counted.

    Raises:
        TypeError: Not a tensor, or a dtype that a loss cannot take.
        ValueError: Shapes, devices or options that do not go together.
    """
    first = "regression_targets"
    device = getattr(y, "device", None)
    _check_tensor(first, y, device, first)
    _check_tensor("classification_targets", t, device, first)
    for name, weight in (
        ("class_weight", class_weight),
        ("regression_weight", regression_weight),
        ("classification_weight", classification_weight),
    ):
        if weight is not None:
            _check_tensor(name, weight, device, first)
            check_constant(name, weight)
    positions = tuple(t.shape)
    if t.is_floating_point():
        _check_probabilities(spec, t)
        if t.dim() == 0:
            raise ValueError(
                f"classification_targets is {t.dtype}, so it holds probabilities and needs a "
                "dimension of classes; got a 0-d tensor: for a class index call .long()"
            )
        classes, positions = class_axis(t)
        _check_class_weight(class_weight, classes)
    elif class_weight is not None:
        _check_class_weight(class_weight, class_weight.numel())
    _check_weights(
        ("regression_weight", regression_weight, first, tuple(y.shape)),
        ("classification_weight", classification_weight, "the positions", positions),
    )


def _name(place: int, tensor: Tensor | None) -> str:
    """The argument at this place: a 0-d tensor of weights is an alpha."""
    name = ARGUMENTS[place]
    alpha = name == "loss_weights" and isinstance(tensor, Tensor) and not tensor.dim()
    return "alpha" if alpha else name


def _check_tensor(
    name: str,
    tensor: Tensor | None,
    device: torch.device | None,
    first: str = "regression_output",
) -> None:
    """A dense tensor of numbers (of bools: the mask) on the device of the first argument."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    dtype = tensor.dtype
    if name == "class_mask":
        if dtype != torch.bool:
            raise TypeError(f"class_mask must be torch.bool, got {dtype}: call .bool()")
    elif dtype == torch.bool or dtype.is_complex:
        raise TypeError(f"{name} must not be {dtype}: convert it, .float() or .long()")
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise TypeError(f"{name} must be a dense tensor: call .to_dense() or .dequantize()")
    if tensor.device != device:
        raise ValueError(
            f"{name} is on {tensor.device} and {first} on {device}: move all tensors to one device"
        )


def _reshaping(r: Tensor, y: Tensor) -> str:
    """The mend for two shapes that differ."""
    if r.numel() == y.numel():
        return f"call regression_targets.reshape({tuple(r.shape)})"
    return "every prediction needs its own target"


def _check_classification(spec: LossSpec, z: Tensor, t: Tensor) -> None:
    if z.dim() == 0:
        raise ValueError(
            "classification_output must be (N, C), (N, C, d1, ...) or (C,), got a 0-d tensor"
        )
    classes, positions = class_axis(z)
    if classes == 0:
        raise ValueError(f"classification_output has shape {tuple(z.shape)}: no class at all")
    if t.is_floating_point():
        if t.dtype in FLOAT_DTYPES and t.shape != z.shape:
            mend = "for class indices call .long()" if t.shape == positions else "one a class"
            raise ValueError(
                f"classification_targets is {t.dtype}, so it holds probabilities and must have the "
                f"shape of classification_output, {tuple(z.shape)}; got {tuple(t.shape)}: {mend}"
            )
        _check_probabilities(spec, t)
    elif t.shape != positions:
        mend = (
            "for one-hot or probability targets call .float()"
            if t.shape == z.shape
            else f"call classification_targets.reshape({positions})"
            if t.numel() == math.prod(positions)
            else "one index a position"
        )
        raise ValueError(
            f"classification_targets holds class indices and must have shape {positions} for "
            f"classification_output of shape {tuple(z.shape)}; got {tuple(t.shape)}: {mend}"
        )


def _check_probabilities(spec: LossSpec, t: Tensor) -> None:
    if t.dtype not in FLOAT_DTYPES:
        raise TypeError(f"classification_targets must not be {t.dtype}: call .float()")
    if spec.ignore_index >= 0:
        raise ValueError(
            f"ignore_index={spec.ignore_index} goes with class indices; classification_targets "
            "holds probabilities: leave ignore_index at its default"
        )


def _check_samples(r: Tensor, z: Tensor) -> None:
    """Under "none" both heads have the same N samples; logits (C,) are one sample with any r."""
    if z.dim() > 1 and (r.dim() == 0 or r.shape[0] != z.shape[0]):
        raise ValueError(
            f'reduction="none" gives one value a sample, so the first dimensions must be equal: '
            f"regression_output is {tuple(r.shape)} and classification_output {tuple(z.shape)}"
        )


def _check_options(spec: LossSpec, tensors: LossTensors, r: Tensor, z: Tensor) -> None:
    """The tensors that may be absent."""
    classes, positions = class_axis(z)
    if tensors.weights is not None:
        _check_floating("loss_weights" if tensors.weights.dim() else "alpha", tensors.weights)
    _check_class_weight(tensors.class_weight, classes)
    mask = tensors.class_mask
    if mask is not None and mask.shape != (classes,):
        _check_broadcast("class_mask", mask, "classification_output", z.shape)
    of_positions = "the positions of classification_output"
    _check_weights(
        ("regression_weight", tensors.regression_weight, "regression_output", r.shape),
        ("classification_weight", tensors.classification_weight, of_positions, positions),
    )
    for place in range(REQUIRED + 1, len(tensors)):
        check_constant(ARGUMENTS[place], tensors[place])
    for name in ("regression_normalizer", "classification_normalizer"):
        normalizer = getattr(tensors, name)
        if normalizer is not None:
            normalizes_mean(name, spec.reduction)
            if normalizer.dim():
                raise ValueError(
                    f"{name} must be a number or a 0-d tensor, got shape {tuple(normalizer.shape)}"
                )


def _check_class_weight(weight: Tensor | None, classes: int) -> None:
    if weight is None:
        return
    _check_floating("class_weight", weight)
    if weight.shape != (classes,):
        raise ValueError(
            f"class_weight must have shape ({classes},), one weight a class; "
            f"got {tuple(weight.shape)}"
        )


def _check_weights(*weights: tuple[str, Tensor | None, str, tuple[int, ...]]) -> None:
    """Name, weight, and what it weights: its name and its shape."""
    for name, weight, what, shape in weights:
        if weight is not None:
            _check_floating(name, weight)
            _check_broadcast(name, weight, what, shape)


def _check_floating(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} must be floating-point, got {tensor.dtype}: call .float()")


def _check_broadcast(name: str, tensor: Tensor, what: str, shape: tuple[int, ...]) -> None:
    """As many dimensions as `what`, each of its size or 1."""
    fits = tensor.dim() == len(shape) and all(
        size in (1, whole) for size, whole in zip(tensor.shape, shape, strict=True)
    )
    if fits:
        return
    mend = f"each dimension must be that of {what} or 1"
    if tensor.dim() == 1 and len(shape) > 1 and tensor.shape[0] == shape[0]:
        mend = f"for one value a sample give {name}.view(-1{', 1' * (len(shape) - 1)})"
    raise ValueError(
        f"{name} has shape {tuple(tensor.shape)}, which does not spread over {what} "
        f"{tuple(shape)}: {mend}"
    )


def check_constant(name: str, tensor: Tensor | None) -> None:
    """Refuse a tensor that wants a gradient where there is none.

    Raises:
        ValueError: It requires grad.
    """
    if tensor is not None and tensor.requires_grad:
        raise ValueError(f"{name} takes no gradient: pass {name}.detach()")


def _trains(z: Tensor) -> bool:
    """Whether the logits want a gradient from a backend; within a transform no backend writes."""
    transformed = torch._C._are_functorch_transforms_active()
    return torch.is_grad_enabled() and z.requires_grad and not transformed


def _check_inplace(tensors: LossTensors, z: Tensor) -> None:
    """Whether the logits' storage may become their gradient's."""
    mend = "leave inplace_gradient at False, or pass classification_output.clone()"
    base = z._base
    if z.is_leaf or (base is not None and base.is_leaf and base.requires_grad):
        what = "a leaf" if z.is_leaf else "a view of a leaf"
        raise ValueError(
            f"inplace_gradient=True writes over classification_output, which is {what}: its values "
            f"are yours; {mend}"
        )
    if z.is_neg():
        raise ValueError(
            "inplace_gradient=True writes over classification_output, the negative of what "
            f"is in memory (x.conj().imag is); {mend}"
        )
    if _may_overlap(z):
        raise ValueError(
            "inplace_gradient=True writes over classification_output, whose elements overlap in "
            f"memory (strides {z.stride()} of shape {tuple(z.shape)}); {mend}"
        )
    storage = z.untyped_storage()._cdata
    for place, other in enumerate(tensors):
        if place != 1 and other is not None and other.untyped_storage()._cdata == storage:
            raise ValueError(
                f"inplace_gradient=True writes over classification_output, and {ARGUMENTS[place]} "
                f"lies in the same memory; {mend}"
            )


def _may_overlap(tensor: Tensor) -> bool:
    """Whether two elements may share an address: not if each stride clears all smaller ones."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False
