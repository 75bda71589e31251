"""A number of rows bound once: onnxruntime reads and writes the same arrays at every call."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from fused_loss.export.feeds import Port, unknown_index


class BoundHeads:
    """Both heads of a fixed number of rows, without an allocation or a check a call.

    Fill `inputs`, call, read the arrays that are returned: they are `outputs`, and the next call
    writes over them. One thread at a time; another one binds its own.

    Attributes:
        inputs: One array an input, zeros at first.
        outputs: (regression, classification).
    """

    def __init__(
        self, session: Any, inputs: Sequence[Port], outputs: Sequence[Port], rows: int
    ) -> None:
        self.inputs = tuple(np.zeros(port.sized(rows), port.dtype) for port in inputs)
        self.outputs = tuple(np.zeros(port.sized(rows), port.dtype) for port in outputs)
        self._session, self._binding = session, session.io_binding()
        self._lock = threading.Lock()
        self._names = [port.name for port in inputs]
        for bind, ports, arrays in (
            (self._binding.bind_input, inputs, self.inputs),
            (self._binding.bind_output, outputs, self.outputs),
        ):
            for port, array in zip(ports, arrays, strict=True):
                place = array.ctypes.data
                bind(port.name, "cpu", 0, array.dtype.type, array.shape, place)

    def __call__(self) -> tuple[np.ndarray, np.ndarray]:
        """Run on what `inputs` hold now: (regression, classification).

        Raises:
            RuntimeError: Another thread is within this call.
            ValueError: An index is out of the model's range.
        """
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("these arrays are in use by another thread: bind() its own")
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            if said := unknown_index(error, dict(zip(self._names, self.inputs, strict=True))):
                raise ValueError(said) from error
            raise
        finally:
            self._lock.release()
        regression, classification = self.outputs
        return regression, classification
