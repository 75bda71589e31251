import hashlib
from functools import partial

import numpy as np
import onnx
import pytest
from _export import mlp_bytes
from onnx import helper, numpy_helper

from fused_loss.export.outline import read_outline
from fused_loss.export.seal import (
    KEY,
    WEIGHTS_KEY,
    broken_seal,
    digest,
    sealed,
    weights_digest,
)


def is_intact(file):
    return digest(file)[1]


def small(value=1.0, name="w"):
    tensor = numpy_helper.from_array(np.full(3, value, "f"), name)
    graph = helper.make_graph([], "g", [], [], [tensor])
    return helper.make_model(graph).SerializeToString()


def outline(file):
    return read_outline(memoryview(file), "m.onnx")


def moved(file, folder, name="w.data"):
    """The same model, its tensors in a file of their own."""
    proto = onnx.load_from_string(file)
    onnx.external_data_helper.convert_model_to_external_data(proto, location=name, size_threshold=0)
    onnx.save(proto, folder / "moved.onnx")
    return (folder / "moved.onnx").read_bytes()


def test_a_sealed_file_is_a_plain_model_that_carries_both_digests():
    model = onnx.load_from_string(mlp_bytes())
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert list(entries)[-2:] == [WEIGHTS_KEY, KEY]
    last = model.metadata_props.pop()
    body = model.SerializeToString(deterministic=True)
    assert last.value == hashlib.sha256(body).hexdigest()
    model.metadata_props.pop()
    assert mlp_bytes() == sealed(model.SerializeToString(deterministic=True))
    assert entries[WEIGHTS_KEY] == weights_digest(outline(mlp_bytes()), None)
    assert is_intact(mlp_bytes())
    assert broken_seal(True, outline(mlp_bytes()), None) == ""


def test_every_flipped_bit_is_seen():
    file = sealed(small())
    assert is_intact(file)
    for place in range(len(file) * 8):
        flipped = bytearray(file)
        flipped[place // 8] ^= 1 << place % 8
        assert not is_intact(bytes(flipped))


@pytest.mark.parametrize(
    "file", [b"", small(), sealed(small()) + b"x", sealed(small())[:-1], sealed(small())[1:]]
)
def test_what_does_not_end_in_its_digest_is_not_intact(file):
    assert not is_intact(file)


def test_a_record_without_its_seal_is_broken_and_a_plain_model_is_not():
    file = small()
    assert broken_seal(is_intact(file), outline(file), None) == ""
    proto = onnx.load_from_string(sealed(file))
    proto.metadata_props.pop()
    stripped = proto.SerializeToString()
    said = "its sha256 is not the one that it records"
    assert broken_seal(is_intact(stripped), outline(stripped), None) == said


def test_weights_have_the_same_digest_inside_and_outside(tmp_path):
    plain = small()
    outside = moved(plain, tmp_path)
    assert b"\x00\x00\x80\x3f" * 3 not in outside
    digests = weights_digest(outline(outside), tmp_path), weights_digest(outline(plain), tmp_path)
    assert digests[0] == digests[1]
    others = (small(value=np.nextafter(np.float32(1), np.float32(2))), small(name="v"))
    assert digests[0] not in {weights_digest(outline(other), tmp_path) for other in others}


def test_a_bit_flipped_outside_the_file_is_seen(tmp_path):
    file = sealed(moved(small(), tmp_path), tmp_path)
    check = partial(broken_seal, is_intact(file), outline(file), tmp_path)
    assert check() == ""
    data = tmp_path / "w.data"
    original = data.read_bytes()
    for place in range(len(original) * 8):
        flipped = bytearray(original)
        flipped[place // 8] ^= 1 << place % 8
        data.write_bytes(flipped)
        assert check() == "the sha256 of its external weights is not the one that it records"


def test_the_digest_is_that_of_the_bytes():
    for model in (b"", b"a model", mlp_bytes(), memoryview(mlp_bytes())):
        assert digest(model)[0] == hashlib.sha256(model).hexdigest()
