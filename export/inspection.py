"""What a file is, says of itself, and whether it is what was written; nothing of it is run."""

from __future__ import annotations

import math
import os
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fused_loss.export.admission import examined
from fused_loss.export.errors import OnnxLoadError, require
from fused_loss.export.files import as_path
from fused_loss.export.meaning import REGRESSION, entries
from fused_loss.export.outline import mapped, read_outline
from fused_loss.export.seal import KEY, PREFIX, WEIGHTS_KEY, weights_digest

SHOWN = 8  # of many names
WIDTH = 80
DIGESTS = (KEY.removeprefix(PREFIX), WEIGHTS_KEY.removeprefix(PREFIX))


@dataclass(frozen=True)
class Value:
    """An input or an output.

    Attributes:
        name: In the file.
        dtype: NumPy's name of it.
        shape: A symbolic axis by its name, an unknown one is "?".
        role: Of an output: "regression" and the like; empty where the file does not say.
        unit: Of a regression output.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    role: str = ""
    unit: str = ""

    def __str__(self) -> str:
        """In one line."""
        role = f": {self.role}" if self.role else ""
        unit = f", in {self.unit}" if self.unit else ""
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.shape))}]{role}{unit}"


@dataclass(frozen=True)
class Inspection:
    """A model file from outside.

    Attributes:
        file: Its name, without the folder.
        size: In bytes.
        sha256: Of its bytes.
        is_sealed: Whether it carries digests, and they hold.
        problem: Why it is not what was written; empty where it is, or is not sealed.
        weights: Numbers in its tensors.
        weights_sha256: Of the tensors, wherever they are stored.
        external: Name to size in bytes of the files with weights.
        opset: Operator set to version; "" is the default one.
        ir_version: Of the file.
        producer: The exporter.
        inputs, outputs: In order.
        operators: Name to number, the most frequent first.
        about: What the export wrote: roles, class_names, unit, normalize, denormalize, tolerance,
            observed_error, versions and whatever else.
    """

    file: str
    size: int
    sha256: str
    is_sealed: bool
    problem: str
    weights: int
    weights_sha256: str
    external: dict[str, int]
    opset: dict[str, int]
    ir_version: int
    producer: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    operators: dict[str, int]
    about: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings."""
        return asdict(self)

    def __str__(self) -> str:
        """For people; a name cannot steer their terminal."""
        return "\n".join("".join(map(_visible, line)) for line in _lines(self))


def inspect_onnx(path: str | os.PathLike[str]) -> Inspection:
    """Look at the file at `path`.

    Raises:
        FileNotFoundError: No file at `path`.
        OnnxLoadError: It is not a model, or names external data that is not its own.
        TypeError: `path` is no path.
        MissingDependencyError: onnx is not installed.
    """
    onnx = require("onnx")
    path = as_path(path)
    found = examined(path)
    with mapped(found.path) as view:
        outline = read_outline(view, path.name)
        weights = sum(math.prod(tensor.dims) for tensor in outline.tensors)
        weights_sha256, size = weights_digest(outline, found.path.parent), len(view)
    try:
        model = onnx.load(str(found.path), load_external_data=False)
    except Exception as error:
        raise OnnxLoadError(f"{path.name} is not a valid ONNX model: {error}") from error
    about = {key: x for key, x in entries(found.metadata).items() if key not in DIGESTS}
    roles = about.get("roles")
    by_name = {name: role for role, name in roles.items()} if isinstance(roles, dict) else {}
    unit = about.get("unit", "")
    unit = ", ".join(map(str, unit)) if isinstance(unit, list) else str(unit)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    return Inspection(
        file=path.name,
        size=size,
        sha256=found.sha256,
        is_sealed=found.is_sealed,
        problem=found.broken,
        weights=weights,
        weights_sha256=weights_sha256,
        external={str(p.relative_to(found.path.parent)): p.stat().st_size for p in found.external},
        opset={entry.domain: entry.version for entry in model.opset_import},
        ir_version=model.ir_version,
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        inputs=tuple(_value(onnx, value, {}) for value in inputs),
        outputs=tuple(_value(onnx, value, by_name, unit) for value in model.graph.output),
        operators=dict(Counter(_operators(model.graph)).most_common()),
        about=about,
    )


def _value(onnx: Any, value: Any, roles: Mapping[str, str], unit: str = "") -> Value:
    tensor = value.type.tensor_type
    known = onnx.TensorProto.DataType.values()
    kind = tensor.elem_type
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind)) if kind and kind in known else "?"
    shape = (
        d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim
    )
    role = str(roles.get(value.name, ""))
    return Value(value.name, dtype, tuple(shape), role, unit if role == REGRESSION else "")


def _operators(graph: Any) -> Iterator[str]:
    """Of the graph and of those within its nodes."""
    for node in graph.node:
        yield f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _operators(inner)


def _lines(found: Inspection) -> Iterator[str]:
    yield f"{found.file}: {found.size:,} bytes"
    yield f"sha256 {found.sha256}"
    if found.problem:
        yield f"CHANGED since it was exported: {found.problem}"
    else:
        yield "sealed: it is what was written" if found.is_sealed else "not sealed: no digest in it"
    yield f"weights: {found.weights:,} numbers"
    yield f"sha256 {found.weights_sha256}"
    for name, size in found.external.items():
        yield f"  in {name}: {size:,} bytes"
    opsets = ", ".join(f"{name or 'opset'} {n}" for name, n in found.opset.items())
    yield f"{opsets}, IR {found.ir_version}, by {found.producer or 'an unnamed exporter'}"
    yield "inputs"
    yield from (f"  {value}" for value in found.inputs)
    yield "outputs"
    yield from (f"  {value}" for value in found.outputs)
    yield from _wrapped("operators", [f"{name} {n}" for name, n in found.operators.items()])
    yield from _about(found.about)


def _about(about: Mapping[str, Any]) -> Iterator[str]:
    """What stands beside the outputs already is left out."""
    allowed, errors = about.get("tolerance"), about.get("observed_error")
    if isinstance(errors, dict) and isinstance(allowed, dict):
        yield "verified against PyTorch in float64"
        for name, error in errors.items():
            yield f"  {name}: error {_short(error)} of {_short(allowed.get(name))} allowed"
    else:
        about = {**about, "tolerance ": allowed, "observed_error ": errors}
    for key, value in about.items():
        if key in ("roles", "unit", "tolerance", "observed_error") or value is None:
            continue
        if isinstance(value, dict):
            yield from _wrapped(key, [f"{name} {_short(x)}" for name, x in value.items()])
        elif isinstance(value, list):
            yield from _wrapped(key, [_short(x) for x in value])
        else:
            yield f"{key}: {_short(value)}"


def _short(value: Any) -> str:
    """A value in a few words; a list of numbers by its size."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_short(x)}" for name, x in value.items()) + ")"
    if isinstance(value, list) and len(value) > SHOWN // 2:
        return f"[{_short(value[0])}, ... {len(value)} in all]"
    if isinstance(value, list):
        return "[" + ", ".join(map(_short, value)) + "]"
    return str(value)


def _visible(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()


def _wrapped(title: str, words: list[str]) -> Iterator[str]:
    if len(words) > SHOWN:
        words = [*words[:SHOWN], f"and {len(words) - SHOWN} more"]
    yield from textwrap.wrap(f"{title}: {', '.join(words)}", WIDTH, subsequent_indent="  ")
