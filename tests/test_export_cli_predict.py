import csv
import io
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from _deployed import SPECIES, labelled_bytes
from _export import called, contents, edited, mlp_bytes, rows
from onnx import TensorProto, helper

from fused_loss.export import OnnxDualHead


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A current folder with a model, and three rows as CSV, NPY and NPZ."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").write_bytes(mlp_bytes())
    x = rows(3).numpy()
    np.save("x.npy", x)
    np.savez("x.npz", input=x)
    lines = [",".join(map(str, row)) for row in x.tolist()]
    (tmp_path / "x.csv").write_text("\n".join(["a,b,c,d", *lines, ""]))
    return tmp_path


@pytest.fixture
def expected():
    regression, classification = OnnxDualHead("m.onnx")(rows(3).numpy())
    return np.concatenate([regression, classification], 1), classification.argmax(1)


def read(text):
    """The numbers and the labels of a table of predictions."""
    header, *lines = csv.reader(io.StringIO(text))
    assert header == [
        *(f"regression_output_{i}" for i in range(3)),
        *(f"classification_output_{i}" for i in range(3)),
        "label",
    ]
    table = np.array(lines, np.float64).reshape(-1, 7)
    return table[:, :6].astype("f"), table[:, 6]


@pytest.mark.parametrize("source", ["x.csv", "x.npy", "x.npz"])
def test_a_table_on_stdout(capsys, expected, source):
    code, out, err = called(capsys, "predict", "m.onnx", source)
    assert (code, err) == (0, "")
    assert all(map(np.array_equal, read(out), expected))


@pytest.mark.parametrize("source", ["x.csv", "x.npy", "x.npz"])
def test_a_file_of_predictions(here, capsys, expected, source):
    assert called(capsys, "predict", "m.onnx", source, "-o", "o.csv") == (0, "o.csv: 3 rows\n", "")
    assert all(map(np.array_equal, read((here / "o.csv").read_text()), expected))
    words = ("predict", "m.onnx", source, "--output", "o.npz", "-q", "--threads", 2)
    assert called(capsys, *words) == (0, "", "")
    with np.load("o.npz") as out:
        heads = np.concatenate([out["regression_output"], out["classification_output"]], 1)
        assert np.array_equal(heads, expected[0])
        assert np.array_equal(out["label"], expected[1])


def test_classes_and_units_that_the_file_names(here, capsys, expected):
    (here / "m.onnx").write_bytes(labelled_bytes())
    code, out, err = called(capsys, "predict", "m.onnx", "x.csv")
    assert (code, err) == (0, "")
    header, *lines = csv.reader(io.StringIO(out))
    assert header == [
        *(f"regression_output_{i} [g]" for i in range(3)),
        *(f"classification_output_{name}" for name in SPECIES),
        "label",
        "class",
    ]
    assert np.array_equal(np.array([line[:6] for line in lines], "f"), expected[0])
    assert [line[7] for line in lines] == [SPECIES[int(line[6])] for line in lines]
    assert [int(line[6]) for line in lines] == expected[1].tolist()


def test_a_table_of_parquet(here, capsys, expected):
    pq.write_table(pa.table(dict(zip("abcd", rows(3).numpy().T, strict=True))), "x.parquet")
    code, out, _ = called(capsys, "predict", "m.onnx", "x.parquet")
    assert code == 0
    assert all(map(np.array_equal, read(out), expected))
    words = ("predict", "m.onnx", "x.parquet", "-o", "o.parquet")
    assert called(capsys, *words) == (0, "o.parquet: 3 rows\n", "")
    assert pq.read_table("o.parquet").column("label").to_pylist() == expected[1].tolist()


def test_without_pyarrow_parquet_names_its_extra(here, capsys, monkeypatch):
    (here / "x.parquet").touch()
    for package in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, package, None)
    before = contents(here)
    for words in (("x.parquet",), ("x.csv", "-o", "o.parquet")):
        code, out, err = called(capsys, "predict", "m.onnx", *words)
        assert (code, out) == (4, "")
        assert err.endswith("pip install 'fused-loss[parquet]'\n")
    assert contents(here) == before
    assert called(capsys, "predict", "m.onnx", "x.csv", "-q")[0] == 0


def test_rows_as_a_spreadsheet_leaves_them(here, capsys, expected):
    text = (here / "x.csv").read_text()
    (here / "x.csv").write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode())
    code, out, _ = called(capsys, "predict", "m.onnx", "x.csv")
    assert code == 0
    assert all(map(np.array_equal, read(out), expected))


@pytest.mark.parametrize(("header", "count"), [("auto", 3), ("yes", 2), ("no", 3)])
def test_a_header_can_be_said(here, capsys, header, count):
    lines = (here / "x.csv").read_text().splitlines()[1:]
    (here / "x.csv").write_text("\n".join(lines))
    code, out, _ = called(capsys, "predict", "m.onnx", "x.csv", "--header", header)
    assert (code, len(read(out)[1])) == (0, count)


def test_an_empty_table_has_no_predictions(here, capsys):
    (here / "x.csv").write_text("a,b,c,d\n")
    code, out, _ = called(capsys, "predict", "m.onnx", "x.csv")
    assert (code, len(read(out)[1])) == (0, 0)
    (here / "x.csv").write_text("")
    code, out, _ = called(capsys, "predict", "m.onnx", "x.csv", "--header", "no")
    assert (code, len(read(out)[1])) == (0, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "x.csv has no line, not even of names: was it written to the end?"),
        ("1,2,3,4\n1,2,x,4\n", "x.csv, line 2, column 3: 'x' is not a number"),
        ("1,2,3,4\n1,2,,4\n", "x.csv, line 2, column 3: '' is not a number"),
        ("1,2,3,4\n1,2,3\n", "x.csv, line 2 has 3 cells, the model takes 4 values"),
        ("1;2;3;4\n", "x.csv, line 1 has 1 cells, the model takes 4 values: is the separator"),
        ("0,1,2,3\n1,2,3,4\n", "say --header yes or --header no"),
    ],
)
def test_a_bad_row_is_named_and_the_old_predictions_stay(here, capsys, text, said):
    (here / "x.csv").write_text(text)
    (here / "o.csv").write_text("old")
    before = contents(here)
    code, out, err = called(capsys, "predict", "m.onnx", "x.csv", "-o", "o.csv")
    assert (code, out) == (1, "")
    assert said in err
    assert contents(here) == before


def test_arrays_that_the_model_does_not_take_are_named(here, capsys):
    for array, said in ((np.ones((2, 5)), "the model takes (batch, 4)"), (np.ones(4), "x[None]")):
        np.save("x.npy", array)
        code, out, err = called(capsys, "predict", "m.onnx", "x.npy")
        assert (code, out) == (1, "")
        assert said in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("no.onnx", "x.csv"), "there is no file no.onnx"),
        (("m.onnx", "no.csv"), "there is no file no.csv"),
        (("sub", "x.csv"), "sub is a folder, a file is needed"),
        (("m.onnx", "sub"), "sub is a folder, a file is needed"),
        (("m.onnx", "x.csv", "-o", "no/o.csv"), "no: make it first"),
        (("m.onnx", "x.csv", "-o", "sub/o.csv"), "sub/o.csv is a folder: give the name of a file"),
        (("m.onnx", "m.onnx"), "m.onnx must be one of .csv, .npy, .npz, .parquet"),
        (("m.onnx", "x.csv", "-o", "o.txt"), "o.txt must be one of .csv, .npz, .parquet"),
        (("m.onnx", "x.csv", "-o", "x.csv"), "x.csv is read from: give -o another name"),
        (("m.onnx", "x.csv", "-o", "./sub/../x.csv"), "is read from: give -o another name"),
        (("m.onnx", "x.csv", "--threads", "0"), "--threads must be at least 1, got 0"),
        (("m.onnx", "x.csv", "--header", "maybe"), "argument --header: invalid choice"),
        (("m.onnx",), "the following arguments are required: INPUT"),
    ],
)
def test_usage_is_2_and_nothing_is_written(here, capsys, words, said):
    (here / "sub/o.csv").mkdir(parents=True)
    before = contents(here)
    code, out, err = called(capsys, "predict", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert contents(here) == before


def test_a_model_that_asks_for_a_huge_row_or_memory_is_an_error(here, capsys):
    def wide(graph):
        graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1 << 40

    (here / "m.onnx").write_bytes(edited(mlp_bytes(), wide))
    code, out, err = called(capsys, "predict", "m.onnx", "x.csv")
    assert (code, out) == (1, "")

    def greedy(graph):
        sizes = helper.make_tensor("sizes", TensorProto.INT64, [1], [1 << 50])
        graph.initializer.append(sizes)
        graph.node.append(helper.make_node("ConstantOfShape", ["sizes"], ["ones"]))
        graph.node.append(helper.make_node("ReduceSum", ["ones"], ["sum"], keepdims=0))
        graph.node.append(helper.make_node("Add", ["regression_output", "sum"], ["more"]))
        graph.output[0].name = "more"

    (here / "m.onnx").write_bytes(edited(mlp_bytes(), greedy))
    code, out, err = called(capsys, "predict", "m.onnx", "x.csv", "-o", "o.csv")
    assert (code, out) == (1, "")
    assert "ConstantOfShape" in err
    assert not (here / "o.csv").exists()


def test_a_file_that_is_no_model_is_1(here, capsys):
    (here / "m.onnx").write_bytes(b"")
    code, out, err = called(capsys, "predict", "m.onnx", "x.csv")
    assert (code, out) == (1, "")
    assert err == "fused-loss: m.onnx is not a valid ONNX model: it is empty (0 bytes)\n"


def test_neither_onnx_nor_rich_is_needed_and_onnxruntime_is(capsys, monkeypatch):
    for package in ("onnx", "rich", "rich.console", "rich.progress"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert called(capsys, "predict", "m.onnx", "x.csv", "-o", "o.csv") == (
        0, "o.csv: 3 rows\n", "",
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = called(capsys, "predict", "m.onnx", "x.csv")
    assert code == 4
    assert err.endswith("pip install 'fused-loss[export]'\n")


def test_a_bar_on_a_terminal_leaves_stdout_alone(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, out, _ = called(capsys, "predict", "m.onnx", "x.csv", "-o", "o.csv")
    assert (code, out) == (0, "o.csv: 3 rows\n")
