"""Prediction from file to file, held to the session called on the same rows."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from _export import contents, mlp_bytes, rows

from fused_loss.export import OnnxDualHead
from fused_loss.export import tables as tables_file
from fused_loss.export.csv_rows import TableError
from fused_loss.export.errors import UsageError
from fused_loss.export.tables import predict_file


@pytest.fixture
def session(tmp_path):
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "m.onnx"
    path.write_bytes(mlp_bytes())
    return OnnxDualHead(path)


class Echo:
    """A session that gives back its first input twice, and its shapes to the caller."""

    output_names = ("r", "c")

    def __init__(self, *inputs):
        self.input_names = tuple(name for name, _, _ in inputs)
        self.input_shapes = tuple(shape for _, shape, _ in inputs)
        self.input_dtypes = tuple(np.dtype(dtype) for _, _, dtype in inputs)
        self.seen = []

    def __call__(self, *inputs):
        self.seen.append([(x.shape, x.dtype.name) for x in inputs])
        flat = inputs[0].reshape(len(inputs[0]), -1).astype("f")
        return flat, flat


def test_csv_npy_and_npz_give_the_sessions_values(session, tmp_path):
    x = rows(5).numpy()
    np.savetxt(tmp_path / "x.csv", x, "%.9g", delimiter=",", header="a,b,c,d", comments="")
    np.save(tmp_path / "x.npy", x.astype(">f8"))
    np.savez(tmp_path / "x.npz", unused=np.ones(3), input=x)
    regression, classification = session(x)
    for source in ("x.csv", "x.npy", "x.npz"):
        assert predict_file(session, tmp_path / source, tmp_path / "out.npz") == 5
        with np.load(tmp_path / "out.npz") as out:
            assert set(out) == {"regression_output", "classification_output", "label"}
            assert np.array_equal(out["regression_output"], regression)
            assert np.array_equal(out["classification_output"], classification)
            assert np.array_equal(out["label"], classification.argmax(1))
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
    for name, total in (("x.npy", 10), ("x.csv", size)):
        session = Echo(("input", ("batch", 2), "float32"))
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
        ("float16", np.full((2, 2), 1e5), "x holds values that float16 cannot"),
        ("int64", np.ones((2, 2)), "x is float64, the model takes int64"),
        ("int32", np.ones((2, 2), "int64"), "x is int64, the model takes int32"),
        ("float32", np.array(1.0), "x.npy: x has no batch axis"),
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
    for target in ("o.csv", "o.npz"):
        (tmp_path / target).write_bytes(b"old")
        before = contents(tmp_path)
        with pytest.raises(TableError, match="line 2 has 3 cells"):
            predict_file(session, tmp_path / "x.csv", tmp_path / target)
        assert contents(tmp_path) == before


def test_a_source_that_is_not_there():
    session = SimpleNamespace(input_names=("a",))
    with pytest.raises(UsageError, match=r"must be an \.npy or \.npz file"):
        predict_file(session, Path("x.parquet"), io.StringIO())
