"""What a model file stores: its metadata and its tensors, read from a memory map.

Field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from fused_loss.export.errors import OnnxLoadError
from fused_loss.export.wire import Value, WireError, fields, message, numbers, text

GRAPH, METADATA, FUNCTIONS = 7, 14, 25  # of ModelProto
NODES, INITIALIZERS, SPARSE = 1, 5, 15  # of GraphProto
FUNCTION_NODES = 7  # of FunctionProto
OPERATOR, ATTRIBUTES = 4, 5  # of NodeProto
TENSOR, SUBGRAPH, TENSORS, SUBGRAPHS, SPARSE_TENSOR, SPARSE_TENSORS = 5, 6, 10, 11, 22, 23
DIMS, TYPE, NAME, RAW, EXTERNAL, LOCATION = 1, 2, 8, 9, 13, 14  # of TensorProto
TYPED = (4, 5, 6, 7, 10, 11)  # of TensorProto: float_data to uint64_data
STRING = 8  # a type of elements
MAX_DEPTH = 32  # graphs within graphs; protobuf itself stops at 100 messages
MAX_DIMS = 64

# Bits an element, by TensorProto.DataType.
BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64}
BITS |= {14: 64, 15: 128, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8}
BITS |= {25: 2, 26: 2}

MAGIC = {
    b"\x80": "a pickle, which could run code: nothing of it is read",
    b"PK\x03\x04": "a zip archive (a PyTorch checkpoint or an .npz?)",
    b"\x93NUMPY": "an .npy array",
    b"\x89HDF": "an HDF5 file",
    b"{": "JSON or text",
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the file stores it.

    Attributes:
        name: Empty for one within a node.
        kind: Of its elements, a TensorProto.DataType.
        dims: Its shape.
        data: Its bytes, in pieces; none where they are external.
        external: "location", "offset" and "length" of bytes in another file; empty where inside.
        is_raw: Whether `data` is the array's memory, little-endian.
    """

    name: str
    kind: int
    dims: tuple[int, ...]
    data: tuple[memoryview, ...]
    external: dict[str, str]
    is_raw: bool

    @property
    def size(self) -> int | None:
        """Bytes that its shape and type ask for; None where they do not say."""
        bits = BITS.get(self.kind)
        return None if bits is None else -(-math.prod(self.dims) * bits // 8)


@dataclass
class Outline:
    """A model file's metadata, first entry of a key; tensors in the file's order; operators."""

    metadata: dict[str, str] = field(default_factory=dict)
    tensors: list[StoredTensor] = field(default_factory=list)
    operators: set[str] = field(default_factory=set)


@contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """The bytes of a file, as they are needed.

    Raises:
        OnnxLoadError: It is empty.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise OnnxLoadError(f"{path.name} is not a valid ONNX model: it is empty (0 bytes)")
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        # The map is closed with the last slice of it.
        yield view


def read_outline(model: memoryview, name: str) -> Outline:
    """Look through a serialised model; `name` is what an error calls it.

    Raises:
        OnnxLoadError: It is not a model, is cut short, or a tensor has not the bytes of its shape.
    """
    for magic, what in MAGIC.items():
        if bytes(model[: len(magic)]) == magic:
            raise OnnxLoadError(f"{name} is not a valid ONNX model: it is {what}")
    outline, graphs = Outline(), 0
    try:
        for number, value in fields(model):
            if number == GRAPH:
                graphs += 1
                outline.tensors += _graph_tensors(message(value), 0, outline.operators)
            elif number == FUNCTIONS:
                for inner, node in fields(message(value)):
                    if inner == FUNCTION_NODES:
                        outline.tensors += _node_tensors(message(node), 0, outline.operators)
            elif number == METADATA:
                key, content = _pair(value)
                outline.metadata.setdefault(key, content)
        if not graphs:
            raise WireError("it has no graph")
        for tensor in outline.tensors:
            _check_size(tensor)
    except WireError as error:
        raise OnnxLoadError(f"{name} is not a valid ONNX model: {error}") from error
    return outline


def _graph_tensors(graph: memoryview, depth: int, operators: set[str]) -> Iterator[StoredTensor]:
    """The tensors of a graph and of those within it; their operators are added to the set."""
    if depth > MAX_DEPTH:
        raise WireError(f"graphs are nested deeper than {MAX_DEPTH}")
    for number, value in fields(graph):
        if number == INITIALIZERS:
            yield _tensor(value)
        elif number == SPARSE:
            yield from _sparse(value)
        elif number == NODES:
            yield from _node_tensors(message(value), depth, operators)


def _node_tensors(node: memoryview, depth: int, operators: set[str]) -> Iterator[StoredTensor]:
    for field_number, attribute in fields(node):
        if field_number == OPERATOR:
            operators.add(text(attribute))
        if field_number != ATTRIBUTES:
            continue
        for number, value in fields(message(attribute)):
            if number in (TENSOR, TENSORS) and not isinstance(value, int):
                yield _tensor(value)
            elif number in (SPARSE_TENSOR, SPARSE_TENSORS):
                yield from _sparse(value)
            elif number in (SUBGRAPH, SUBGRAPHS):
                yield from _graph_tensors(message(value), depth + 1, operators)


def _sparse(value: Value) -> Iterator[StoredTensor]:
    """Values (1) and indices (2) of a SparseTensorProto."""
    for number, part in fields(message(value)):
        if number in (1, 2):
            yield _tensor(part)


def _tensor(value: Value) -> StoredTensor:
    name, kind, is_raw, is_external = "", 0, False, False
    dims: list[int] = []
    data: list[memoryview] = []
    external: dict[str, str] = {}
    for number, part in fields(message(value)):
        if number == DIMS:
            dims += islice(numbers(part), MAX_DIMS)
        elif number == TYPE and isinstance(part, int):
            kind = part
        elif number == NAME:
            name = text(part)
        elif number == RAW:
            data, is_raw = [message(part)], True
        elif number in TYPED:
            data.append(memoryview(str(part).encode()) if isinstance(part, int) else part)
        elif number == EXTERNAL:
            external.update([_pair(part)])
        elif number == LOCATION:
            is_external = part == 1
    if (is_external or external) and not external.get("location"):
        raise WireError(f"tensor {name!r} is external and names no file")
    return StoredTensor(name, kind, tuple(dims), tuple(data), external, is_raw)


def _pair(value: Value) -> tuple[str, str]:
    """Key (1) and value (2) of a StringStringEntryProto."""
    pair = {1: "", 2: ""}
    for number, part in fields(message(value)):
        if number in pair:
            pair[number] = text(part)
    return pair[1], pair[2]


def _check_size(tensor: StoredTensor) -> None:
    """A shape must not promise what is not there: it would be allocated."""
    if len(tensor.dims) >= MAX_DIMS:
        raise WireError(f"tensor {tensor.name!r} has {MAX_DIMS} dimensions or more")
    shape = "x".join(map(str, tensor.dims))
    if any(size < 0 for size in tensor.dims):
        raise WireError(f"tensor {tensor.name!r} has a negative size: {shape}")
    if tensor.external or tensor.kind == STRING:
        return
    held = sum(map(len, tensor.data))
    if tensor.is_raw and tensor.size is not None and held != tensor.size:
        raise WireError(
            f"tensor {tensor.name!r} of {shape} needs {tensor.size} bytes, {held} are there"
        )
    if math.prod(tensor.dims) > 8 * held:
        raise WireError(f"tensor {tensor.name!r} of {shape} has {held} bytes")
