"""`Port`; what it refuses is tested through `OnnxDualHead`, in test_export_runtime.py.

And an id that the model has no row for: onnxruntime's words name a node, ours the inputs.
"""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from _export import TwoInputs, called, rows, traced_bytes

from fused_loss.export import OnnxDualHead
from fused_loss.export.errors import OnnxLoadError
from fused_loss.export.feeds import DTYPES, Port, port, unknown_index
from fused_loss.export.signature import Signature

IMAGE = Port("x", ("batch", 2, 3), np.dtype("f"))
IDS = np.array([[0, 4], [1, 9]])
SAID = (
    "an index is none that the model knows (indices element out of data bounds, idx=9 must be "
    "within the inclusive range [-5,4]): index holds 0 to 9; look for the rows beyond"
)


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


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, example = Signature(("numbers", "index")), (rows(2), torch.from_numpy(IDS % 5))
    (tmp_path / "m.onnx").write_bytes(traced_bytes(TwoInputs(), *example, signature=names))
    return OnnxDualHead("m.onnx")


def test_an_index_out_of_range_is_told_by_its_input(session, capsys):
    x, said = rows(2).numpy(), f"^{re.escape(SAID)}$"
    for run in (session, session.predict):
        with pytest.raises(ValueError, match=said) as caught:
            run(x, IDS)
        assert "Gather" in str(caught.value.__cause__)
    bound = session.bind(2)
    bound.inputs[0][:], bound.inputs[1][:] = x, IDS
    with pytest.raises(ValueError, match=said):
        bound()
    bound.inputs[1][:] = IDS % 5  # and it is free for the next call
    assert all(map(np.array_equal, bound(), session(x, IDS % 5)))
    np.savez("x.npz", numbers=x, index=IDS)
    assert called(capsys, "predict", "m.onnx", "x.npz") == (1, "", f"fused-loss: {SAID}\n")


@pytest.mark.parametrize(
    "reason",
    [
        "invalid index found, index = 7",
        "invalid indice found, indice = 7",
        "GatherElements op: Out of range value in index tensor",
    ],
)
def test_indices_made_of_floats_are_looked_for_in_all_inputs(reason):
    feeds = {"x": np.array([-1.5, 7.0], "f"), "none": np.zeros((0, 2), "f")}
    error = RuntimeError(f"a Gather Status Message: /gather.cc:150 void [T = long] {reason}\n")
    found = unknown_index(error, feeds)
    assert found.endswith(f"({reason}): x holds -1.5 to 7.0; look for the rows beyond")
    assert unknown_index(RuntimeError("Status Message: out of memory"), feeds) == ""
