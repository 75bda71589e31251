"""Run an exported model with onnxruntime; nothing of PyTorch is needed but for tensors given."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fused_loss.export.errors import OnnxLoadError
from fused_loss.export.session import open_session
from fused_loss.export.signature import OUTPUT_NAMES

DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}


class OnnxDualHead:
    """An exported two-headed model, called on NumPy arrays or on tensors in the CPU's memory.

    Args:
        path: The `.onnx` file.
        threads: Threads within an operator.
        providers: Of onnxruntime, in order of preference; the CPU by default.

    Attributes:
        input_names, output_names: In the order of call and return.
        input_shapes, output_shapes: One tuple a name; a symbolic axis stands by its name.
        input_dtypes: One NumPy dtype an input.

    Raises:
        FileNotFoundError: No file at `path`.
        OnnxLoadError: onnxruntime cannot load it, it has changed since it was exported, it does not
            have two outputs, or an input is of a type that NumPy lacks.
        MissingDependencyError: onnxruntime is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        threads: int = 1,
        providers: Sequence[str] | None = None,
    ) -> None:
        self.path = Path(path)
        self._session = open_session(self.path, threads=threads, providers=providers)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        names = tuple(output.name for output in outputs)
        if len(names) != 2:
            raise OnnxLoadError(
                f"{self.path.name} has outputs {names}: regression and classification are needed"
            )
        if names == OUTPUT_NAMES[::-1]:
            outputs = outputs[::-1]
        self.input_names = tuple(node.name for node in inputs)
        self.input_shapes = tuple(tuple(node.shape) for node in inputs)
        self.input_dtypes = tuple(_dtype(node.name, node.type) for node in inputs)
        self.output_names = tuple(node.name for node in outputs)
        self.output_shapes = tuple(tuple(node.shape) for node in outputs)

    def __call__(self, *inputs: Any) -> tuple[np.ndarray, np.ndarray]:
        """(N, *) an input -> (regression (N, *), classification (N, C, *)).

        Raises:
            TypeError: Not an array or a tensor, another dtype, or another byte order.
            ValueError: The wrong number of inputs, or shapes that the model does not take.
        """
        if len(inputs) != len(self.input_names):
            raise ValueError(
                f"the model takes {len(self.input_names)} inputs {self.input_names}, "
                f"got {len(inputs)}"
            )
        feeds = {
            name: _checked(name, value, shape, dtype)
            for name, value, shape, dtype in zip(
                self.input_names, inputs, self.input_shapes, self.input_dtypes, strict=True
            )
        }
        rows = {name: array.shape[0] for name, array in feeds.items()}
        if len(set(rows.values())) > 1:
            raise ValueError(f"the inputs must have the same number of rows, got {rows}")
        regression, classification = self._session.run(list(self.output_names), feeds)
        return regression, classification

    def __repr__(self) -> str:
        """The file, its inputs and its outputs."""
        inputs = ", ".join(
            f"{name} {dtype}{list(shape)}"
            for name, dtype, shape in zip(
                self.input_names, self.input_dtypes, self.input_shapes, strict=True
            )
        )
        return f"OnnxDualHead({str(self.path)!r}: {inputs} -> {', '.join(self.output_names)})"


def _dtype(name: str, kind: str) -> np.dtype:
    if kind not in DTYPES:
        raise OnnxLoadError(f"{name} is a {kind}, which cannot be given as a NumPy array")
    return np.dtype(DTYPES[kind])


def _checked(
    name: str, value: Any, shape: tuple[int | str | None, ...], dtype: np.dtype
) -> np.ndarray:
    array = _as_array(name, value)
    if not array.dtype.isnative:
        raise TypeError(
            f"{name} is in the other byte order ({array.dtype.str}): "
            "give it as x.astype(x.dtype.newbyteorder('='))"
        )
    if array.dtype != dtype:
        raise TypeError(
            f"{name} is {array.dtype}, the model takes {dtype}: give it as x.astype('{dtype}')"
        )
    fits = array.ndim == len(shape) and all(
        size == wanted
        for size, wanted in zip(array.shape, shape, strict=True)
        if isinstance(wanted, int)
    )
    if not fits:
        wanted = ", ".join(map(str, shape))
        mend = "; one sample needs a batch axis: x[None]" if array.ndim == len(shape) - 1 else ""
        raise ValueError(f"{name} has shape {array.shape}, the model takes ({wanted}){mend}")
    return np.ascontiguousarray(array)


def _as_array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "detach"):
        raise TypeError(
            f"{name} must be a NumPy array or a tensor, got {type(value).__name__}: "
            "give it as np.asarray(x, dtype='float32')"
        )
    if value.device.type != "cpu":
        raise TypeError(f"{name} is on {value.device}: give it as x.cpu()")
    try:
        return value.detach().numpy()
    except TypeError as error:
        raise TypeError(f"{name} is {value.dtype}, which NumPy lacks: give x.float()") from error
