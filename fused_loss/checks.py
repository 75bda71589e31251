"""The only validation of tensors: every public call of the combined family passes here once.

An error names the argument, what was given and what mends it. No value of a tensor is read, except
under `FUSED_LOSS_DEBUG=1`.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from fused_loss.spec import FLOAT_DTYPES, LossSpec, LossTensors, class_axis, index_error

ARGUMENTS = tuple(name.replace("weights", "loss_weights") for name in LossTensors._fields)
OPTIONAL = ("loss_weights", "class_weight")
DEBUG = os.environ.get("FUSED_LOSS_DEBUG") == "1"


def check(spec: LossSpec, tensors: LossTensors) -> None:
    """Refuse what the combined loss has no meaning for.

    Raises:
        TypeError: Not a tensor, or a dtype that a loss cannot take.
        ValueError: Shapes, devices or options that do not go together.
        IndexError: Under `FUSED_LOSS_DEBUG=1`, a class index outside [0, C) on any device.
    """
    device = getattr(tensors.regression_output, "device", None)
    for name, tensor in zip(ARGUMENTS, tensors, strict=True):
        if tensor is None and name in OPTIONAL:
            continue
        if name == "loss_weights" and isinstance(tensor, Tensor) and not tensor.dim():
            name = "alpha"
        _check_tensor(name, tensor, device)
    r, z, y, t, weights, class_weight = tensors
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
    if weights is not None:
        _check_weights(weights)
    if class_weight is not None:
        _check_class_weight(class_weight, class_axis(z)[0])
    if DEBUG and not torch.compiler.is_compiling() and not t.is_floating_point():
        error = index_error(t, class_axis(z)[0], spec.ignore_index)
        if error is not None:
            raise error


def _check_tensor(name: str, tensor: Tensor | None, device: torch.device | None) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    dtype = tensor.dtype
    if dtype == torch.bool or dtype.is_complex:
        raise TypeError(f"{name} must not be {dtype}: convert it, .float() or .long()")
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise TypeError(f"{name} must be a dense tensor: call .to_dense() or .dequantize()")
    if tensor.device != device:
        raise ValueError(
            f"{name} is on {tensor.device} and regression_output on {device}: "
            "move all tensors to one device"
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
        if t.dtype not in FLOAT_DTYPES:
            raise TypeError(f"classification_targets must not be {t.dtype}: call .float()")
        if t.shape != z.shape:
            mend = "for class indices call .long()" if t.shape == positions else "one a class"
            raise ValueError(
                f"classification_targets is {t.dtype}, so it holds probabilities and must have the "
                f"shape of classification_output, {tuple(z.shape)}; got {tuple(t.shape)}: {mend}"
            )
        if spec.ignore_index >= 0:
            raise ValueError(
                f"ignore_index={spec.ignore_index} goes with class indices; classification_targets "
                "holds probabilities: leave ignore_index at its default"
            )
    elif t.shape != positions:
        mend = (
            "for one-hot or probability targets call .float()"
            if t.shape == z.shape
            else "one index a position"
        )
        raise ValueError(
            f"classification_targets holds class indices and must have shape {positions} for "
            f"classification_output of shape {tuple(z.shape)}; got {tuple(t.shape)}: {mend}"
        )


def _check_samples(r: Tensor, z: Tensor) -> None:
    """Under "none" both heads have the same N samples; logits (C,) are one sample with any r."""
    if z.dim() > 1 and (r.dim() == 0 or r.shape[0] != z.shape[0]):
        raise ValueError(
            f'reduction="none" gives one value a sample, so the first dimensions must be equal: '
            f"regression_output is {tuple(r.shape)} and classification_output {tuple(z.shape)}"
        )


def _check_weights(weights: Tensor) -> None:
    if weights.dtype not in FLOAT_DTYPES:
        name = "alpha" if weights.dim() == 0 else "loss_weights"
        raise TypeError(f"{name} must be floating-point, got {weights.dtype}: call .float()")


def _check_class_weight(class_weight: Tensor, classes: int) -> None:
    if class_weight.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"class_weight must be floating-point, got {class_weight.dtype}: call .float()"
        )
    if class_weight.shape != (classes,):
        raise ValueError(
            f"class_weight must have shape ({classes},), one weight a class; "
            f"got {tuple(class_weight.shape)}"
        )
    check_constant("class_weight", class_weight)


def check_constant(name: str, tensor: Tensor | None) -> None:
    """Refuse a tensor that wants a gradient where there is none.

    Raises:
        ValueError: It requires grad.
    """
    if tensor is not None and tensor.requires_grad:
        raise ValueError(f"{name} takes no gradient: pass {name}.detach()")
