"""Prediction from file to file, held to the session called on the same rows."""

import errno
import io
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from _export import contents, mlp_bytes, rows

from fused_loss.export import OnnxDualHead
from fused_loss.export import tables as tables_file
from fused_loss.export.csv_rows import TableError
from fused_loss.export.feeds import Port
from fused_loss.export.runtime import Predictions
from fused_loss.export.tables import predict_file


@pytest.fixture
def session(tmp_path):
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "m.onnx"
    path.write_bytes(mlp_bytes())
    return OnnxDualHead(path)


class Echo:
    """A session that gives back its first input twice, and its shapes to the caller."""

    output_names, class_names, units = ("r", "c"), (), ()

    def __init__(self, *inputs):
        self.inputs = tuple(Port(name, shape, np.dtype(dtype)) for name, shape, dtype in inputs)
        self.outputs = (Port("r", ("batch", 2), np.dtype("f")),) * 2
        self.input_names = tuple(port.name for port in self.inputs)
        self.seen = []

    def predict(self, *inputs):
        self.seen.append([(x.shape, x.dtype.name) for x in inputs])
        flat = inputs[0].reshape(len(inputs[0]), -1).astype("f")
        return Predictions(flat, flat, flat.argmax(1))


def test_csv_npy_npz_and_parquet_give_the_sessions_values(session, tmp_path):
    x = rows(5).numpy()
    np.savetxt(tmp_path / "x.csv", x, "%.9g", delimiter=",", header="a,b,c,d", comments="")
    np.save(tmp_path / "x.npy", x.astype(">f8"))
    np.savez(tmp_path / "x.npz", unused=np.ones(3), input=x)
    pq.write_table(pa.table({"id": list("abcde"), "input": list(x)}), tmp_path / "x.parquet")
    regression, classification = session(x)
    for source in ("x.csv", "x.npy", "x.npz", "x.parquet"):
        assert predict_file(session, tmp_path / source, tmp_path / "out.npz") == 5
        with np.load(tmp_path / "out.npz") as out:
            assert set(out) == {"regression_output", "classification_output", "label"}
            assert np.array_equal(out["regression_output"], regression)
            assert np.array_equal(out["classification_output"], classification)
            assert np.array_equal(out["label"], classification.argmax(1))
        assert predict_file(session, tmp_path / source, tmp_path / "out.parquet") == 5
        columns = pq.read_table(tmp_path / "out.parquet").to_pydict()
        assert np.array_equal(columns["regression_output_1"], regression[:, 1])
        assert columns["label"] == classification.argmax(1).tolist()
        assert predict_file(session, tmp_path / source, tmp_path / "out.csv") == 5
        text = io.StringIO()
        assert predict_file(session, tmp_path / source, text) == 5
        assert text.getvalue() == (tmp_path / "out.csv").read_text()
        read = np.loadtxt(tmp_path / "out.csv", delimiter=",", skiprows=1)
        assert np.array_equal(read[:, :3].astype("f"), regression)
        assert np.array_equal(read[:, 3:6].astype("f"), classification)


def noted(told):
    return lambda *done: told.append(done)


def test_chunks_cover_every_row_once_and_tell_how_far_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(tables_file, "MAX_CHUNK_ROWS", 4)
    np.save(tmp_path / "x.npy", np.arange(20.0).reshape(10, 2))
    (tmp_path / "x.csv").write_text("".join(f"{2 * i},{2 * i + 1}\n" for i in range(10)))
    size = (tmp_path / "x.csv").stat().st_size
    pq.write_table(pa.table({"a": range(0, 20, 2), "b": range(1, 21, 2)}), tmp_path / "x.parquet")
    for name, total in (("x.npy", 10), ("x.csv", size), ("x.parquet", 10)):
        session = Echo(("input", ("batch", 2), "float32" if name != "x.parquet" else "int64"))
        told = []
        predict_file(
            session, tmp_path / name, tmp_path / "o.npz", header="no", progress=noted(told)
        )
        assert [seen[0][0] for seen in session.seen] == [(4, 2), (4, 2), (2, 2)]
        assert np.array_equal(np.load(tmp_path / "o.npz")["r"], np.arange(20).reshape(10, 2))
        assert len(told) == 3
        assert told[-1] == (total, total)


def test_wide_rows_come_in_smaller_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(tables_file, "CHUNK_VALUES", 12)
    np.save(tmp_path / "x.npy", np.ones((5, 2, 3), "f"))
    session = Echo(("input", ("batch", 2, 3), "float32"))
    predict_file(session, tmp_path / "x.npy", io.StringIO())
    assert [seen[0][0] for seen in session.seen] == [(2, 2, 3), (2, 2, 3), (1, 2, 3)]


def test_a_csv_row_is_one_sample_in_c_order(tmp_path):
    (tmp_path / "x.csv").write_text("0,1,2,3,4,5\n")
    session = Echo(("input", ("batch", 2, 3), "int64"))
    predict_file(session, tmp_path / "x.csv", tmp_path / "o.npz", header="no")
    assert session.seen == [[((1, 2, 3), "int64")]]
    assert np.load(tmp_path / "o.npz")["r"].tolist() == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("name", ["x.csv", "x.npy"])
def test_no_rows_give_a_header_alone_and_empty_arrays(session, tmp_path, name):
    (tmp_path / "x.csv").write_text("a,b,c,d\n")
    np.save(tmp_path / "x.npy", np.empty((0, 4)))
    text = io.StringIO()
    assert predict_file(session, tmp_path / name, text) == 0
    assert text.getvalue().count("\n") == 1
    assert predict_file(session, tmp_path / name, tmp_path / "o.npz") == 0
    assert np.load(tmp_path / "o.npz")["classification_output"].shape == (0, 3)


@pytest.mark.parametrize(
    ("dtype", "array", "said"),
    [
        ("float32", np.ones((2, 2), complex), "x is complex128, the model takes float32"),
        (
            "float16",
            np.array([[1, 2]] * 5 + [[1e5, 1]]),
            "x.npy, row 6: x holds values that float16 cannot",
        ),
        ("int64", np.ones((2, 2)), "x is float64, the model takes int64"),
        ("int32", np.ones((2, 2), "int64"), "x is int64, the model takes int32"),
        ("float32", np.array(1.0), "x.npy has no batch axis"),
    ],
)
def test_values_that_the_models_dtype_cannot_hold_are_refused(tmp_path, dtype, array, said):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(TableError, match=said):
        predict_file(Echo(("x", ("batch", 2), dtype)), tmp_path / "x.npy", tmp_path / "o.csv")
    assert set(contents(tmp_path)) == {"x.npy"}


def test_nan_and_infinity_of_an_array_go_through(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[np.nan, np.inf]]))
    session = Echo(("x", ("batch", 2), "float32"))
    predict_file(session, tmp_path / "x.npy", tmp_path / "o.npz")
    assert np.array_equal(np.load(tmp_path / "o.npz")["r"], [[np.nan, np.inf]], equal_nan=True)


@pytest.mark.parametrize("longer", [2, 4096])
def test_inputs_of_different_length_are_refused_also_where_a_chunk_ends(tmp_path, longer):
    a, b = np.ones((4096, 1)), np.ones((4096 + longer, 1))
    np.savez(tmp_path / "x.npz", a=a, b=b)
    session = Echo(("a", ("batch", 1), "float32"), ("b", ("batch", 1), "float32"))
    with pytest.raises(TableError, match=rf"same number of rows, got .*'b': {4096 + longer}"):
        predict_file(session, tmp_path / "x.npz", io.StringIO())


@pytest.mark.parametrize(
    "inputs",
    [
        [("a", ("batch", 1), "float32"), ("b", ("batch", 1), "float32")],
        [("a", ("batch", "length"), "float32")],
    ],
)
def test_a_csv_holds_one_input_of_known_shape(tmp_path, inputs):
    (tmp_path / "x.csv").write_text("1,2\n")
    with pytest.raises(TableError, match=r"a CSV holds one input of known shape, .*give an .npz"):
        predict_file(Echo(*inputs), tmp_path / "x.csv", io.StringIO())


def test_a_bad_row_at_the_end_leaves_the_old_predictions(session, tmp_path, monkeypatch):
    monkeypatch.setattr(tables_file, "MAX_CHUNK_ROWS", 1)
    (tmp_path / "x.csv").write_text("1,2,3,4\n1,2,3\n")
    for target in ("o.csv", "o.npz", "o.parquet"):
        (tmp_path / target).write_bytes(b"old")
        before = contents(tmp_path)
        with pytest.raises(TableError, match="line 2 has 3 cells"):
            predict_file(session, tmp_path / "x.csv", tmp_path / target)
        assert contents(tmp_path) == before


LIMITED = """
import resource, sys
from pathlib import Path
from fused_loss.export import OnnxDualHead
from fused_loss.export.tables import predict_file
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for target in sys.argv[2:]:
    try:
        predict_file(OnnxDualHead("models/m.onnx"), Path(sys.argv[1]), Path(target))
    except OSError as error:
        print(error)
"""


@pytest.mark.parametrize("kind", ["full", "limited"])
def test_a_full_disk_leaves_the_old_predictions(session, tmp_path, monkeypatch, kind):
    """The system's own error at 100 kB a file, and that of a full disk when the file is flushed."""
    np.save(tmp_path / "x.npy", rows(20_000).numpy())
    targets = ["o.csv", "o.npz", "o.parquet"]
    for target in targets:
        (tmp_path / target).write_bytes(b"old")
    before = contents(tmp_path)
    if kind == "limited":
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, "x.npy", *targets],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.count("File too large") == 3
    else:

        def full(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        for target in targets:
            with pytest.raises(OSError, match="No space left"):
                predict_file(session, tmp_path / "x.npy", tmp_path / target)
    assert contents(tmp_path) == before


SOURCES = ("csv", "npy", "npz", "compressed.npz", "fortran.npz", "parquet")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "target"), [*((kind, "npz") for kind in SOURCES), ("npy", "csv"), ("npy", "parquet")]
)
def test_memory_does_not_grow_with_the_rows(session, tmp_path, kind, target):
    """Over eight times the rows, the most that a process holds grows by less than half the data."""
    peaks = [peak(tmp_path, kind, target, rows) for rows in (1 << 17, 1 << 20)]
    assert peaks[1] - peaks[0] < (1 << 20) * 4 * 8 / 2


PEAK = """
import sys
from pathlib import Path
from fused_loss.export import OnnxDualHead
from fused_loss.export.tables import predict_file
predict_file(OnnxDualHead("models/m.onnx"), *map(Path, sys.argv[1:]))
(line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
print(int(line.split()[1]) * 1024)
"""


def peak(folder, kind, target, rows):
    """Bytes of a process that predicts these rows of four float64."""
    x, source = np.random.default_rng(0).random((rows, 4)), f"x.{kind}"
    if kind == "csv":
        np.savetxt(folder / source, x, delimiter=",")
    elif kind == "parquet":
        columns = {f"x{i}": column for i, column in enumerate(x.T)}
        pq.write_table(pa.table(columns), folder / source)
    elif kind == "npy":
        np.save(folder / source, x)
    else:
        save = np.savez_compressed if kind.startswith("compressed") else np.savez
        save(folder / source, input=np.asfortranarray(x) if kind.startswith("fortran") else x)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, source, f"o.{target}"],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)
