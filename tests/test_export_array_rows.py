import io
import zipfile
from contextlib import ExitStack

import numpy as np
import pytest

from fused_loss.export.array_rows import open_arrays
from fused_loss.export.csv_rows import TableError
from fused_loss.export.errors import UsageError

X = np.random.default_rng(0).standard_normal((10, 2, 3))


def read(path, names=("x",), rows=4):
    """The chunks of each array."""
    with ExitStack() as stack:
        return [list(array.chunks(rows)) for array in open_arrays(path, names, stack)]


def saved(folder, kind, **arrays):
    path = folder / ("x.npy" if kind == "npy" else "x.npz")
    if kind == "npy":
        np.save(path, *arrays.values())
    else:
        {"npz": np.savez, "compressed": np.savez_compressed}[kind](path, **arrays)
    return path


def headed(shape):
    """An NPY file with this shape in its header, and 48 bytes behind it."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 48


KINDS = pytest.mark.parametrize("kind", ["npy", "npz", "compressed"])


@KINDS
@pytest.mark.parametrize(
    "array",
    [
        X,
        np.asfortranarray(X),
        X[:, 0, 0],
        np.asfortranarray(X[:, 0]),
        X.astype(">f4"),
        X[:, :, :0],
        X[:0],
        np.asfortranarray(X[:0]),
        X > 0,
        X.astype("f2"),
        (9 * X).astype("u2"),
    ],
    ids=lambda a: f"{a.dtype.str}{a.shape}{'F' if a.flags.fnc else ''}",
)
def test_chunks_are_the_rows_in_order(tmp_path, kind, array):
    (chunks,) = read(saved(tmp_path, kind, x=array))
    assert np.array_equal(np.concatenate(chunks), array)
    assert {chunk.dtype for chunk in chunks} == {array.dtype}
    assert [len(chunk) for chunk in chunks] == ([4, 4, 2] if len(array) else [0])
    assert all(chunk.flags.c_contiguous for chunk in chunks)


def test_arrays_by_name_in_the_order_of_the_inputs(tmp_path):
    path = saved(tmp_path, "npz", unused=np.array([object]), b=X[:5] + 1, a=X)
    a, b = read(path, ("a", "b"), rows=100)
    assert np.array_equal(a[0], X)
    assert np.array_equal(b[0], X[:5] + 1)
    (only,) = read(saved(tmp_path, "npz", anything=X), ("input",), rows=100)
    assert np.array_equal(only[0], X)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.txt", b"", "must be an .npy or .npz file"),
        ("x.npy", b"1,2", "x.npy cannot be read: "),
        ("x.npz", b"PK", "x.npz cannot be read: "),
        ("x.npz", b"", "x.npz cannot be read: "),
        ("x.npy", np.array([object()]), "x.npy cannot be read: it holds Python objects"),
        ("x.npy", headed("(-1, 3)"), r"x.npy cannot be read: its shape is \(-1, 3\)"),
        ("x.npy", headed("(True, 3)"), r"x.npy cannot be read: its shape is \(True, 3\)"),
        ("x.npy", headed("(3, 3"), "x.npy cannot be read: "),
    ],
)
def test_what_cannot_be_read_is_a_usage_error(tmp_path, name, content, said):
    path = tmp_path / name
    np.save(path, content) if isinstance(content, np.ndarray) else path.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        read(path)


def test_what_is_not_what_the_model_needs(tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        read(tmp_path / "no.npy")
    with pytest.raises(UsageError, match=r"holds \['a', 'b'\], the inputs are \['x'\]"):
        read(saved(tmp_path, "npz", a=X, b=X))
    with pytest.raises(UsageError, match=r"one array, the inputs are \['a', 'b'\]: give an .npz"):
        read(saved(tmp_path, "npy", x=X), ("a", "b"))
    with pytest.raises(TableError, match=r"x.npy is <U1, numbers are needed"):
        read(saved(tmp_path, "npy", x=np.array(["a"])))
    with pytest.raises(TableError, match="has no batch axis"):
        read(saved(tmp_path, "npz", x=np.array(1.0)))


@KINDS
def test_a_shape_that_promises_more_than_is_there_is_refused_at_once(tmp_path, kind):
    content = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 3)}
    np.lib.format.write_array_header_1_0(content, header)
    content.write(b"\0" * 48)
    path = saved(tmp_path, kind, x=X)
    if kind == "npy":
        path.write_bytes(content.getvalue())
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", content.getvalue())
    with pytest.raises(TableError, match=r"is cut short: 26388279066624 bytes of .*, 48 there"):
        read(path)


def test_damage_is_named_by_the_row_before_it(tmp_path):
    path = saved(tmp_path, "npz", x=np.zeros((4000, 3)))
    content = bytearray(path.read_bytes())
    content[content.index(b"\n") + 1] ^= 1  # in the first row: the checksum comes at the end
    path.write_bytes(content)
    with pytest.raises(TableError, match=r"x.npz: x is damaged after row 3\d00: Bad CRC-32"):
        read(path, rows=100)
    path = saved(tmp_path, "npy", x=np.zeros((4000, 3)))
    with ExitStack() as stack:
        (rows,) = open_arrays(path, ("x",), stack)
        path.write_bytes(path.read_bytes()[:-100])  # while it is read
        with pytest.raises(TableError, match=r"x.npy ends after row 3995 of 4000"):
            list(rows.chunks(4))
