"""The sha256 that a file carries of itself: neither onnx nor onnxruntime notices a flipped bit.

The record is one more entry of the model's metadata, appended to the serialised model: protobuf
reads the fields of a message in any order, so the file stays a plain ONNX model, and its digest
can be checked without parsing it.
"""

from __future__ import annotations

import hashlib

KEY = "fused_loss.sha256"
METADATA_PROPS, ENTRY_KEY, ENTRY_VALUE = 14, 1, 2  # field numbers of ModelProto and its entries


def sealed(model: bytes) -> bytes:
    """The serialised model and the record of its digest."""
    return model + _record(model)


def is_intact(file: bytes) -> bool:
    """Whether the file is a model and the record of its digest."""
    size = len(_record(b""))
    return file[-size:] == _record(file[:-size])


def _record(model: bytes) -> bytes:
    digest = hashlib.sha256(model).hexdigest()
    entry = _field(ENTRY_KEY, KEY.encode()) + _field(ENTRY_VALUE, digest.encode())
    return _field(METADATA_PROPS, entry)


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field: the tag, the length (both below 128), the content."""
    return bytes([number << 3 | 2, len(content)]) + content
