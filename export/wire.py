"""Protobuf's wire format, enough of it to know what a model file holds before anything loads it.

onnx and onnxruntime build the whole model in memory before a question can be asked, and follow the
names of external files. These functions only look: over a memory map they hold a few numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FIXED = {FIXED64: 8, FIXED32: 4}
MAX_VARINT = 10  # bytes of 64 bits, seven a byte

Value: TypeAlias = "int | memoryview"


class WireError(ValueError):
    """Bytes that are not a protobuf message."""


def fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Yield `(field number, value)`: an int of a varint, else the bytes, which are not copied.

    Raises:
        WireError: The message is cut short, or not one.
    """
    at, end = 0, len(message)
    while at < end:
        tag, at = varint(message, at)
        number, kind = tag >> 3, tag & 7
        if number == 0 or kind not in (VARINT, BYTES, *FIXED):
            raise WireError(f"it is no protobuf message (tag {tag})")
        if kind == VARINT:
            value, at = varint(message, at)
            yield number, value
            continue
        size, at = (FIXED[kind], at) if kind in FIXED else varint(message, at)
        if size > end - at:
            raise WireError(f"it is cut short: {size} bytes are announced, {end - at} are there")
        yield number, message[at : at + size]
        at += size


def varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, seven bits a byte, and where it ends.

    Raises:
        WireError: It does not end.
    """
    number = 0
    for place, byte in enumerate(message[at : at + MAX_VARINT]):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + place + 1
    raise WireError("it is cut short, or no protobuf message")


def numbers(value: Value) -> Iterator[int]:
    """A repeated int64, packed or one at a time.

    Raises:
        WireError: A number that does not end.
    """
    if isinstance(value, int):
        yield _signed(value)
        return
    at = 0
    while at < len(value):
        number, at = varint(value, at)
        yield _signed(number)


def text(value: Value) -> str:
    """A string.

    Raises:
        WireError: It is not one in UTF-8.
    """
    try:
        return bytes(message(value)).decode()
    except UnicodeDecodeError as error:
        raise WireError("a name is not UTF-8") from error


def message(value: Value) -> memoryview:
    """A nested message.

    Raises:
        WireError: A number stands in its place.
    """
    if isinstance(value, int):
        raise WireError("it is no ONNX model: a number stands where a message should")
    return value


def entry(number: int, content: bytes) -> bytes:
    """The field of that number with that content."""
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
