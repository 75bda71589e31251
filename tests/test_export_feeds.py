"""`Port`; what it refuses is tested through `OnnxDualHead`, in test_export_runtime.py."""

from types import SimpleNamespace

import numpy as np
import pytest

from fused_loss.export.errors import OnnxLoadError
from fused_loss.export.feeds import DTYPES, Port, port

IMAGE = Port("x", ("batch", 2, 3), np.dtype("f"))


def test_an_array_that_fits_is_not_copied():
    x = np.ones((4, 2, 3), "f")
    assert IMAGE.checked(x) is x
    x.flags.writeable = False
    assert IMAGE.checked(x) is x


def test_a_layout_that_cannot_be_read_in_place_is_copied():
    x = np.arange(24, dtype="f").reshape(4, 2, 3)
    packed = np.zeros(24 * 4 + 1, "u1")[1:].view("f").reshape(4, 2, 3)
    packed[:] = x
    assert not packed.flags.aligned
    for other in (packed, np.asfortranarray(x), x[::1, :, ::-1][:, :, ::-1]):
        found = IMAGE.checked(other)
        assert found.flags.c_contiguous
        assert found.flags.aligned
        assert np.array_equal(found, x)


def test_the_shape_of_so_many_rows():
    assert IMAGE.sized(5) == (5, 2, 3)
    assert IMAGE.is_sized
    text = Port("x", ("batch", "length"), np.dtype("i8"))
    assert not text.is_sized
    with pytest.raises(ValueError, match=r"x is \(batch, length\): only the batch axis may be"):
        text.sized(5)


def test_types_of_onnxruntime_are_numpys_or_refused():
    for kind, dtype in DTYPES.items():
        node = SimpleNamespace(name="x", shape=["batch", 2], type=kind)
        assert port(node) == Port("x", ("batch", 2), np.dtype(dtype))
    with pytest.raises(OnnxLoadError, match=r"x is a tensor\(string\)"):
        port(SimpleNamespace(name="x", shape=[], type="tensor(string)"))
