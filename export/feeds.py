"""What a session is fed: arrays of the model's dtype, shape, byte order and layout, or an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fused_loss.export.errors import OnnxLoadError

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


# How onnxruntime says it, of a Gather, a GatherElements, a GatherND and a ScatterND.
OUT_OF_RANGE = ("out of data bounds", "Out of range value in", "invalid index", "invalid indice")


@dataclass(frozen=True)
class Port:
    """An input or an output of a model.

    Attributes:
        name: In the file.
        shape: A symbolic axis stands by its name.
        dtype: NumPy's.
    """

    name: str
    shape: tuple[int | str | None, ...]
    dtype: np.dtype

    def checked(self, value: Any) -> np.ndarray:
        """An array that onnxruntime can read in place; a copy only where the layout asks for one.

        Raises:
            TypeError: Not an array or a tensor, another dtype, or another byte order.
            ValueError: A shape that the model does not take.
        """
        array = _as_array(self.name, value)
        if not array.dtype.isnative:
            raise TypeError(
                f"{self.name} is in the other byte order ({array.dtype.str}): "
                "give it as x.astype(x.dtype.newbyteorder('='))"
            )
        if array.dtype != self.dtype:
            raise TypeError(
                f"{self.name} is {array.dtype}, the model takes {self.dtype}: "
                f"give it as x.astype('{self.dtype}')"
            )
        fits = array.ndim == len(self.shape) and all(
            size == wanted
            for size, wanted in zip(array.shape, self.shape, strict=True)
            if isinstance(wanted, int)
        )
        if not fits:
            wanted = ", ".join(map(str, self.shape))
            one = array.ndim == len(self.shape) - 1
            mend = "; one sample needs a batch axis: x[None]" if one else ""
            raise ValueError(
                f"{self.name} has shape {array.shape}, the model takes ({wanted}){mend}"
            )
        return np.require(array, requirements=["C", "A"])

    @property
    def is_sized(self) -> bool:
        """Whether every axis but the first has a known size."""
        return all(isinstance(size, int) for size in self.shape[1:])

    def sized(self, rows: int) -> tuple[int, ...]:
        """The shape of that many rows.

        Raises:
            ValueError: An axis beside the first is symbolic.
        """
        tail = [size for size in self.shape[1:] if isinstance(size, int)]
        if not self.is_sized:
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(f"{self.name} is ({wanted}): only the batch axis may be symbolic here")
        return (rows, *tail)


def port(node: Any) -> Port:
    """Of onnxruntime's description of an input or an output.

    Raises:
        OnnxLoadError: A type that NumPy lacks.
    """
    if node.type not in DTYPES:
        raise OnnxLoadError(f"{node.name} is a {node.type}, which cannot be given as a NumPy array")
    return Port(node.name, tuple(node.shape), np.dtype(DTYPES[node.type]))


def unknown_index(error: Exception, feeds: Mapping[str, np.ndarray]) -> str:
    """What to say where onnxruntime met an index that is out of range; of another error nothing."""
    said = str(error).rpartition("Status Message: ")[2].rpartition("] ")[2].strip()
    if not any(words in said for words in OUT_OF_RANGE):
        return ""
    whole = {name: array for name, array in feeds.items() if array.dtype.kind in "iu"} or feeds
    held = ", ".join(f"{name} holds {x.min()} to {x.max()}" for name, x in whole.items() if x.size)
    return f"an index is none that the model knows ({said}): {held}; look for the rows beyond"


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
