import io
import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from fused_loss.export.runtime import Predictions
from fused_loss.export.writers import CsvWriter, Table, open_writer


def session(names=("price", "grade"), class_names=(), units=()):
    return SimpleNamespace(output_names=names, class_names=class_names, units=units)


NAMED = {"class_names": ("poor", "fair, or so", "good"), "units": ("EUR",)}


def found(dtype="float32"):
    """2 rows: one regression value, three logits, the label."""
    regression = np.array([[0.1], [-2.5e-8]], dtype)
    classification = np.array([[0.25, 1 / 3, -1], [7, np.nan, np.inf]], dtype)
    return Predictions(regression, classification, np.array([1, -1]))


def part(predictions, rows):
    return Predictions(*(array[rows] for array in predictions))


def table(*chunks, **about):
    text = io.StringIO()
    writer = CsvWriter(text, session(**about))
    for chunk in chunks:
        writer.write(chunk)
    return text.getvalue()


def written(path, *chunks, **about):
    with open_writer(path, session(**about)) as writer:
        for chunk in chunks:
            writer.write(chunk)
    return path


def halves(predictions):
    return [part(predictions, slice(i, i + 1)) for i in range(2)]


def test_a_line_a_sample_and_one_header_over_all_chunks():
    lines = table(*halves(found())).split("\n")
    assert lines == [
        "price_0,grade_0,grade_1,grade_2,label",
        "0.1,0.25,0.33333334,-1.0,1",
        "-2.5e-08,7.0,nan,inf,-1",
        "",
    ]
    assert table(found()) == "\n".join(lines)
    assert table(part(found(), slice(0))) == lines[0] + "\n"


def test_classes_by_name_and_the_unit_in_the_header():
    assert table(found(), **NAMED).split("\n") == [
        'price_0 [EUR],grade_poor,"grade_fair, or so",grade_good,label,class',
        '0.1,0.25,0.33333334,-1.0,1,"fair, or so"',
        "-2.5e-08,7.0,nan,inf,-1,",
        "",
    ]


def test_a_unit_for_each_value_and_names_that_do_not_tell_classes_apart():
    wide = Predictions(np.zeros((1, 3)), np.zeros((1, 2)), np.zeros(1, int))
    header = table(wide, units=("kg", "m"), class_names=("a", "a")).split("\n")[0]
    assert header == "price_0 [kg],price_1 [m],price_2,grade_0,grade_1,label,class"
    assert Table(session(units=("g",))).unit(5) == "g"
    assert Table(session()).unit(0) == ""


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_text_of_a_number_reads_back_the_same(dtype):
    values = np.random.default_rng(0).standard_normal((50, 2)).astype(dtype)
    text = table(Predictions(values, values, values.argmax(1)))
    read = np.loadtxt(io.StringIO(text), delimiter=",", skiprows=1)
    assert np.array_equal(read[:, :4].astype(dtype), np.concatenate([values, values], 1))
    assert np.array_equal(read[:, 4], values.argmax(1))


def test_heads_with_more_axes_have_a_column_a_value():
    dense = Predictions(np.zeros((1, 2, 2)), np.zeros((1, 3, 2)), np.ones((1, 2), int))
    lines = table(dense, **NAMED).split("\n")
    assert lines[0].split(",")[4:] == [
        *(f"grade_{i}" for i in range(6)),
        *("label_0", "label_1", "class_0", "class_1"),
    ]
    assert lines[1].endswith('1,1,"fair, or so","fair, or so"')
    flat = Predictions(np.zeros(1), np.zeros((1, 2)), np.zeros(1, int))
    assert table(flat).startswith("price_0,grade_0,grade_1,label\n")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_arrays_keep_shape_and_dtype(tmp_path, dtype):
    path = written(tmp_path / "o.npz", *halves(found(dtype)), **NAMED)
    with np.load(path) as arrays:
        for name, array in zip(("price", "grade", "label"), found(dtype), strict=True):
            assert np.array_equal(arrays[name], array, equal_nan=True)
            assert arrays[name].dtype == array.dtype
        assert arrays["class"].tolist() == ["fair, or so", ""]
        assert arrays["class_names"].tolist() == list(NAMED["class_names"])
        assert arrays["unit"].tolist() == ["EUR"]
    assert {file.name for file in tmp_path.iterdir()} == {"o.npz"}


def test_arrays_are_the_same_bytes_however_they_come(tmp_path):
    once = written(tmp_path / "a.npz", found()).read_bytes()
    assert written(tmp_path / "b.npz", *halves(found())).read_bytes() == once
    with np.load(written(tmp_path / "c.npz", part(found(), slice(0)))) as arrays:
        assert {name: array.shape for name, array in arrays.items()} == {
            "price": (0, 1),
            "grade": (0, 3),
            "label": (0,),
        }


def test_columns_of_parquet_carry_class_and_unit(tmp_path):
    path = written(tmp_path / "o.parquet", *halves(found()), **NAMED)
    read = pq.read_table(path)
    columns = read.to_pydict()
    assert np.array_equal(columns["price_0 [EUR]"], found().regression[:, 0])
    logits = [columns[f"grade_{name}"] for name in NAMED["class_names"]]
    assert np.array_equal(np.transpose(logits), found().classification, equal_nan=True)
    assert (columns["label"], columns["class"]) == ([1, -1], ["fair, or so", ""])
    assert read.schema.field(0).metadata == {b"unit": b"EUR"}
    assert read.schema.field(1).metadata is None
    assert json.loads(read.schema.metadata[b"class_names"]) == list(NAMED["class_names"])
    assert str(read.schema.field(0).type) == "float"
    empty = written(tmp_path / "e.parquet", part(found(), slice(0)))
    assert pq.read_table(empty).num_rows == 0
    assert pq.read_table(empty).column_names == ["price_0", "grade_0", "grade_1", "grade_2",
                                                 "label"]  # fmt: skip


def test_an_output_called_label_keeps_its_name(tmp_path):
    names = ("class", "label")
    with np.load(written(tmp_path / "o.npz", found(), names=names, **NAMED)) as arrays:
        assert np.array_equal(arrays["label"], found().classification, equal_nan=True)
        assert arrays["predicted_label"].tolist() == [1, -1]
        assert arrays["predicted_class"].tolist() == ["fair, or so", ""]
    assert table(found(), names=names).split("\n")[0].endswith("label_2,predicted_label")


@pytest.mark.parametrize("name", ["o.npz", "o.parquet", "o.csv"])
def test_after_an_error_nothing_more_is_written(tmp_path, name):
    def broken():
        with open_writer(tmp_path / name, session()) as writer:
            writer.write(found())
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert {file.name for file in tmp_path.iterdir()} <= {name}
