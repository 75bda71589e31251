import hashlib

import onnx
import pytest
from _export import mlp_bytes

from fused_loss.export.seal import KEY, is_intact, sealed


def test_a_sealed_file_is_a_plain_model_that_carries_the_digest_of_what_was_sealed():
    model = onnx.load_from_string(mlp_bytes())
    (entry,) = model.metadata_props
    model.ClearField("metadata_props")
    body = model.SerializeToString(deterministic=True)
    assert mlp_bytes() == sealed(body)
    assert (entry.key, entry.value) == (KEY, hashlib.sha256(body).hexdigest())
    assert is_intact(mlp_bytes())


def test_every_flipped_bit_is_seen():
    file = sealed(b"a model")
    for place in range(len(file) * 8):
        flipped = bytearray(file)
        flipped[place // 8] ^= 1 << place % 8
        assert not is_intact(bytes(flipped))


@pytest.mark.parametrize("file", [b"", b"a model", sealed(b"a model") + b"x", sealed(b"x")[:-1]])
def test_what_does_not_end_in_its_digest_is_not_intact(file):
    assert not is_intact(file)


def test_an_empty_model_has_a_digest_too():
    assert is_intact(sealed(b""))
