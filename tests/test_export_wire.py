import contextlib

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fused_loss.export.wire import WireError, entry, fields, message, numbers, text, varint


def listed(content):
    return [
        (number, value if isinstance(value, int) else bytes(value))
        for number, value in fields(memoryview(content))
    ]


@given(
    st.lists(st.tuples(st.integers(1, 2**29 - 1), st.binary(max_size=300)), max_size=5),
)
def test_what_is_written_is_read(pairs):
    assert listed(b"".join(entry(number, content) for number, content in pairs)) == pairs


def test_protobufs_own_messages_are_read():
    tensor = onnx.TensorProto(name="größe", dims=[3, -1, 2**40], data_type=1, raw_data=b"\x80" * 9)
    tensor.float_data.extend([1.0, 2.0])
    found = dict(listed(tensor.SerializeToString()))
    assert text(memoryview(found[8])) == "größe"
    assert (found[2], found[9], len(found[4])) == (1, b"\x80" * 9, 8)
    dims = [n for number, value in listed(tensor.SerializeToString()) if number == 1 for n in
            numbers(value if isinstance(value, int) else memoryview(value))]  # fmt: skip
    assert dims == [3, -1, 2**40]
    # Fixed-width numbers come as their bytes.
    attribute = onnx.AttributeProto(name="a", f=1.0)
    assert dict(listed(attribute.SerializeToString()))[2] == b"\x00\x00\x80\x3f"


def test_packed_numbers():
    assert list(numbers(memoryview(b"\x03\xac\x02" + b"\xff" * 9 + b"\x01"))) == [3, 300, -1]
    with pytest.raises(WireError):
        list(numbers(memoryview(b"\x03\xac")))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x0a", "it is cut short"),
        (b"\x0a\x05abc", "5 bytes are announced, 3 are there"),
        (b"\x09abc", "8 bytes are announced, 3 are there"),
        (b"\x80" * 12, "cut short, or no protobuf message"),
        (b"\x00\x01", r"no protobuf message \(tag 0\)"),
        (b"\x0b", "no protobuf message"),
    ],
)
def test_what_is_no_message_is_said(content, said):
    with pytest.raises(WireError, match=said):
        listed(content)


def test_a_number_where_text_should_be_and_text_that_is_not_utf8():
    with pytest.raises(WireError, match="a number stands"):
        message(7)
    with pytest.raises(WireError, match="not UTF-8"):
        text(memoryview(b"\xff"))
    with pytest.raises(WireError):
        varint(memoryview(b""), 0)


@given(st.binary(max_size=60))
def test_any_bytes_are_fields_or_an_error(content):
    with contextlib.suppress(WireError):
        listed(content)
