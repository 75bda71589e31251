"""The weights in a file against the model's, bit by bit.

A weight that is off by little hides behind the rounding of a deep or saturated network, where no
tolerance on the outputs can see it. Those that kept their name and shape must be the model's own,
and so must a matrix that the exporter has transposed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fused_loss.export.errors import require

OWN = "model."  # the attribute of `Deployed` that holds the user's model
ROUNDINGS = 8  # of a folded weight: the exporter computes it in the weight's own dtype
NEAR = 1e-2  # of the largest value: a matrix that is this near to a weight was made from it


def differences(path: Path, module: nn.Module) -> tuple[str, ...]:
    """What a weight in the file at `path` is not, for each that is not that of `module`.

    Weights outside the file are read one at a time. A batch norm that the exporter folded into the
    layer before it, which keeps its name, is folded here too, to within rounding.
    """
    onnx = require("onnx")
    own = {name.removeprefix(OWN): tensor.numpy() for name, tensor in module.state_dict().items()}
    norms = [one for one in module.modules() if isinstance(one, _BatchNorm)]
    graph = onnx.load(str(path), load_external_data=False).graph
    named = {tensor.name: tensor for tensor in graph.initializer if tensor.name in own}
    others = [tensor for tensor in graph.initializer if tensor.name not in own]
    found = []
    for name, wanted in own.items():
        if name not in named:
            like = (_values(onnx, tensor, path) for tensor in _like(wanted, others))
            found += _transposed(name, wanted, like)
        elif tuple(named[name].dims) == wanted.shape:
            values = _values(onnx, named[name], path)
            if not _same(values, wanted) and not any(_folded(values, wanted, n) for n in norms):
                found.append(f"{name} in the file {_difference(values, wanted)}")
    return tuple(found)


def _transposed(name: str, wanted: np.ndarray, candidates: Iterator[np.ndarray]) -> list[str]:
    """The nearest transpose, where none is the weight's own and one is near to it."""
    nearest, distance = None, NEAR * float(np.abs(wanted).max(initial=0.0))
    for values in candidates:
        if _same(values.T, wanted):
            return []
        off = float(np.abs(values.T - wanted).max())
        if off <= distance:
            nearest, distance = values.T, off
    if nearest is None:
        return []
    return [f"{name}, transposed in the file, {_difference(nearest, wanted)}"]


def _like(wanted: np.ndarray, others: list[Any]) -> list[Any]:
    """Those of the weight's shape, transposed."""
    return [t for t in others if wanted.ndim == 2 and tuple(t.dims) == wanted.shape[::-1]]


def _folded(values: np.ndarray, wanted: np.ndarray, norm: _BatchNorm) -> bool:
    """Whether `values` are a weight (out, in, *) or a bias (out,) with `norm` folded into them."""
    if norm.running_mean is None or norm.running_var is None or wanted.dtype.kind != "f":
        return False
    mean, variance = norm.running_mean.double().numpy(), norm.running_var.double().numpy()
    scale = 1 / np.sqrt(variance + norm.eps)
    if norm.affine:
        scale = scale * norm.weight.detach().double().numpy()
    shift = norm.bias.detach().double().numpy() if norm.affine else 0.0
    if wanted.ndim == 0 or wanted.shape[0] != len(mean):
        return False
    if wanted.ndim == 1:
        made = (wanted - mean) * scale + shift
    else:
        made = wanted * scale.reshape(-1, *(1,) * (wanted.ndim - 1))
    slack = ROUNDINGS * float(np.finfo(wanted.dtype).eps) * np.abs(made).max(initial=0.0)
    return bool((np.abs(values - made) <= slack).all())


def _values(onnx: Any, tensor: Any, path: Path) -> np.ndarray:
    return onnx.numpy_helper.to_array(tensor, base_dir=str(path.parent))


def _same(values: np.ndarray, wanted: np.ndarray) -> bool:
    """To the bit; a narrower dtype is for the comparison of outputs."""
    if values.dtype != wanted.dtype:
        return values.dtype.itemsize < wanted.dtype.itemsize
    return np.array_equal(values, wanted, equal_nan=wanted.dtype.kind == "f")


def _difference(values: np.ndarray, wanted: np.ndarray) -> str:
    if values.dtype != wanted.dtype:
        return f"is {values.dtype} and must be {wanted.dtype}, as it was exported"
    if not np.isfinite(values).all() and np.isfinite(wanted).all():
        return f"holds {int((~np.isfinite(values)).sum())} NaN or inf"
    if np.array_equal(np.sort(values, axis=None), np.sort(wanted, axis=None)):
        return "holds the model's values in another order"
    off = np.abs(values.astype(np.float64) - wanted.astype(np.float64))
    return (
        f"is not the model's: {int((off > 0).sum())} of {off.size} values differ, "
        f"by up to {off.max():.1e}"
    )
