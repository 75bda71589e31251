"""The rows that a command line names, in NPY or NPZ files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fused_loss.export.errors import UsageError
from fused_loss.export.files import needed


def load_rows(path: Path, names: Sequence[str], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """One tensor an input, from an NPY file, or from an NPZ file by the inputs' names.

    Floating-point arrays become `dtype`, the model's: NumPy's own default is float64.

    Raises:
        UsageError: No such file, or not the arrays that are needed.
    """
    tensors = []
    for name, array in zip(names, read_arrays(path, names), strict=True):
        if array.dtype.kind not in "fiub":
            raise UsageError(f"{path.name}: {name} is {array.dtype}, numbers are needed")
        tensor = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
        tensors.append(tensor.to(dtype) if tensor.is_floating_point() else tensor)
    return tuple(tensors)


def read_arrays(path: Path, names: Sequence[str]) -> tuple[np.ndarray, ...]:
    """The arrays of an NPY file (one, read as it is used) or NPZ file, in the order of `names`.

    Raises:
        UsageError: No such file, damage, pickled objects, or not the arrays that are needed.
    """
    if path.suffix not in (".npy", ".npz"):
        raise UsageError(f"{path} must be an .npy or .npz file")
    needed(path)
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = {names[0]: loaded}
        else:
            with loaded:
                arrays = dict(loaded)
    except Exception as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if len(arrays) == len(names) == 1:
        return tuple(arrays.values())
    if not set(names) <= set(arrays):
        raise UsageError(f"{path} holds {list(arrays)}, the inputs are {list(names)}")
    return tuple(arrays[name] for name in names)


def model_dtype(model: nn.Module) -> torch.dtype:
    """Of the first floating-point parameter; float32 where there is none."""
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floats, torch.float32)
