import io
from types import SimpleNamespace

import numpy as np
import pytest

from fused_loss.export.writers import CsvWriter, NpzWriter, labels

SESSION = SimpleNamespace(output_names=("price", "grade"))


def heads(dtype="float32"):
    """2 rows: one regression value, three logits."""
    regression = np.array([[0.1], [-2.5e-8]], dtype)
    return regression, np.array([[0.25, 1 / 3, -1], [7, np.nan, np.inf]], dtype)


def table(*chunks, names=("price", "grade")):
    text = io.StringIO()
    writer = CsvWriter(text, SimpleNamespace(output_names=names))
    for chunk in chunks:
        writer.write(*chunk)
    return text.getvalue()


def test_a_label_is_the_largest_logit_and_none_where_a_logit_is_nan():
    assert labels(heads()[1]).tolist() == [1, -1]
    assert labels(np.arange(12).reshape(1, 3, 4)).tolist() == [[2, 2, 2, 2]]
    assert labels(np.empty((0, 3))).shape == (0,)


def test_a_line_a_sample_and_one_header_over_all_chunks():
    regression, classification = heads()
    halves = [(regression[i : i + 1], classification[i : i + 1]) for i in range(2)]
    lines = table(*halves).split("\n")
    assert lines == [
        "price_0,grade_0,grade_1,grade_2,label",
        "0.1,0.25,0.33333334,-1.0,1",
        "-2.5e-08,7.0,nan,inf,-1",
        "",
    ]
    assert table(heads()) == "\n".join(lines)
    assert table((regression[:0], classification[:0])) == lines[0] + "\n"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_text_of_a_number_reads_back_the_same(dtype):
    values = np.random.default_rng(0).standard_normal((50, 2)).astype(dtype)
    read = np.loadtxt(io.StringIO(table((values, values))), delimiter=",", skiprows=1)
    assert np.array_equal(read[:, :4].astype(dtype), np.concatenate([values, values], 1))
    assert np.array_equal(read[:, 4], values.argmax(1))


def test_heads_with_more_axes_have_a_column_a_value():
    first = table((np.zeros((1, 2, 2)), np.zeros((1, 3, 2)))).split("\n")[0]
    assert first.split(",") == [
        *(f"price_{i}" for i in range(4)),
        *(f"grade_{i}" for i in range(6)),
        "label_0",
        "label_1",
    ]
    assert table((np.zeros(1), np.zeros((1, 2)))).startswith("price_0,grade_0,grade_1,label\n")


def test_arrays_keep_shape_and_dtype():
    writer, (regression, classification) = NpzWriter(SESSION), heads("float16")
    for i in range(2):
        writer.write(regression[i : i + 1], classification[i : i + 1])
    arrays = writer.arrays()
    assert np.array_equal(arrays["price"], regression)
    assert np.array_equal(arrays["grade"], classification, equal_nan=True)
    assert arrays["grade"].dtype == np.float16
    assert arrays["label"].tolist() == [1, -1]


def test_an_output_called_label_keeps_its_name():
    names = ("price", "label")
    writer = NpzWriter(SimpleNamespace(output_names=names))
    writer.write(*heads())
    assert np.array_equal(writer.arrays()["label"], heads()[1], equal_nan=True)
    assert writer.arrays()["predicted_label"].tolist() == [1, -1]
    assert table(heads(), names=names).split("\n")[0].endswith("label_2,predicted_label")
