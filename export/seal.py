"""The sha256 that a file carries of itself: neither onnx nor onnxruntime notices a flipped bit.

Two entries of the model's metadata are appended to the serialised model: the digest of its
weights, wherever they are stored, and last the digest of every byte before it. Protobuf reads the
fields of a message in any order, so the file stays a plain ONNX model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from fused_loss.export.outline import METADATA, Outline, StoredTensor, read_outline
from fused_loss.export.wire import entry

PREFIX = "fused_loss."
KEY = f"{PREFIX}sha256"
WEIGHTS_KEY = f"{PREFIX}weights_sha256"
ENTRY_KEY, ENTRY_VALUE = 1, 2  # of StringStringEntryProto
BLOCK = 1 << 20


def sealed(model: bytes, folder: Path = Path()) -> bytes:
    """The serialised model and the records of its digests; external data lies in `folder`."""
    outline = read_outline(memoryview(model), "the model")
    with_weights = model + _record(WEIGHTS_KEY, weights_digest(outline, folder))
    return with_weights + _record(KEY, hashlib.sha256(with_weights).hexdigest())


def digest(file: bytes | memoryview) -> tuple[str, bool]:
    """The sha256 in hex, and whether the file ends in that of all that stands before: one pass."""
    view, size = memoryview(file), len(_record(KEY, "0" * 64))
    hashed = hashlib.sha256(view[:-size])
    intact = bytes(view[-size:]) == _record(KEY, hashed.hexdigest())
    hashed.update(view[-size:])
    return hashed.hexdigest(), intact


def broken_seal(intact: bool, outline: Outline, folder: Path) -> str:
    """Why a file is not what was written; empty where it is, or where it carries no seal.

    `intact` is what `digest` says of the file; the bytes of external data are read here.
    """
    if not any(key.startswith(PREFIX) for key in outline.metadata):
        return ""
    if not intact:
        return "its sha256 is not the one that it records"
    external = any(tensor.external for tensor in outline.tensors)
    if external and weights_digest(outline, folder) != outline.metadata.get(WEIGHTS_KEY):
        return "the sha256 of its external weights is not the one that it records"
    return ""


def weights_digest(outline: Outline, folder: Path) -> str:
    """The sha256 of every tensor's name, type, shape and bytes, inside the file or not.

    Raises:
        OSError: External data cannot be read.
    """
    hashed = hashlib.sha256()
    for tensor in outline.tensors:
        hashed.update(f"{tensor.name}\0{tensor.kind}\0{tensor.dims}\n".encode())
        for block in _external(tensor, folder) if tensor.external else tensor.data:
            hashed.update(block)
    return hashed.hexdigest()


def _external(tensor: StoredTensor, folder: Path) -> Iterator[bytes]:
    with (folder / tensor.external["location"]).open("rb") as file:
        file.seek(int(tensor.external.get("offset", 0)))
        left = int(tensor.external.get("length", tensor.size or 0))
        while left > 0 and (block := file.read(min(BLOCK, left))):
            yield block
            left -= len(block)


def _record(key: str, value: str) -> bytes:
    pair = entry(ENTRY_KEY, key.encode()) + entry(ENTRY_VALUE, value.encode())
    return entry(METADATA, pair)
