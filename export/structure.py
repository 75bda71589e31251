"""What an `.onnx` file says of itself: names, shapes, operator set; and what is wrong with that."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fused_loss.export.admission import examined
from fused_loss.export.errors import OnnxLoadError, require
from fused_loss.export.signature import LOSS, Signature

Shapes = dict[str, "list[int | str]"]


@dataclass(frozen=True)
class Structure:
    """The outside of a model file.

    Attributes:
        opset: Of the default operator set; None where the file cannot be read.
        ir_version: None where the file cannot be read.
        inputs: Name to shape; a symbolic axis by its name, an unknown one is "?".
        outputs: Name to shape.
        dtypes: Name of an input to its NumPy dtype.
        metadata: What the file says of itself by key.
        operators: The types of its nodes.
        problems: Why it is not a valid model.
    """

    opset: int | None = None
    ir_version: int | None = None
    inputs: Shapes = field(default_factory=dict)
    outputs: Shapes = field(default_factory=dict)
    dtypes: dict[str, np.dtype] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    operators: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()

    def differences(self, signature: Signature) -> tuple[str, ...]:
        """Where names, their order or the batch axis are not those of `signature`."""
        if self.problems:
            return ()
        found = []
        for kind, names, wanted in (
            ("inputs", tuple(self.inputs), signature.input_names),
            ("outputs", tuple(self.outputs), tuple(signature.outputs.values())),
        ):
            if names != wanted:
                swapped = " (swapped)" if sorted(names) == sorted(wanted) else ""
                found.append(f"the {kind} are {names}{swapped}, they must be {wanted}")
        for name, shape in (*self.inputs.items(), *self.outputs.items()):
            if not shape and name == LOSS and LOSS in signature.roles:
                continue
            if not shape:
                found.append(f"{name} has no batch axis")
            elif isinstance(shape[0], int):
                found.append(
                    f"{name} has the fixed shape {shape}: the batch axis must be symbolic; does "
                    "forward reshape to a number of rows?"
                )
        return tuple(found)


def read_structure(path: Path) -> Structure:
    """Read and check the file with onnx; damage is a problem in the result, not an exception."""
    onnx = require("onnx")
    try:
        operators = examined(path).operators
        model = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(str(path), full_check=True)
    except OnnxLoadError as error:
        return Structure(problems=(str(error).removeprefix(f"{path.name} is "),))
    except Exception as error:
        reason = str(error).strip().replace(str(path), "the file") or type(error).__name__
        return Structure(problems=(f"not a valid ONNX model: {reason}",))
    if not model.graph.output:
        return Structure(problems=("not a valid ONNX model: it has no output",))
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    return Structure(
        opset=versions[0] if versions else None,
        ir_version=model.ir_version,
        inputs={value.name: _shape(value) for value in inputs},
        outputs={value.name: _shape(value) for value in model.graph.output},
        dtypes={value.name: _dtype(onnx, value) for value in inputs},
        metadata={entry.key: entry.value for entry in model.metadata_props},
        operators=operators,
    )


def _shape(value: Any) -> list[int | str]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims]


def _dtype(onnx: Any, value: Any) -> np.dtype:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
