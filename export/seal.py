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


def is_intact(file: bytes | memoryview) -> bool:
    """Whether the file ends in the digest of all that stands before."""
    size = len(_record(KEY, "0" * 64))
    return bytes(file[-size:]) == _record(KEY, digest(memoryview(file)[:-size]))


def broken_seal(model: memoryview, outline: Outline, folder: Path) -> str:
    """Why a file is not what was written; empty where it is, or where it carries no seal.

    The bytes of external data are read; those inside are covered by the digest of the file.
    """
    if not any(key.startswith(PREFIX) for key in outline.metadata):
        return ""
    if not is_intact(model):
        return "its sha256 is not the one that it records"
    external = any(tensor.external for tensor in outline.tensors)
    if external and weights_digest(outline, folder) != outline.metadata.get(WEIGHTS_KEY):
        return "the sha256 of its external weights is not the one that it records"
    return ""


def digest(content: memoryview) -> str:
    """The sha256 in hex, without a copy."""
    return hashlib.sha256(content).hexdigest()


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
