import numpy as np
import pytest

from fused_loss.export.csv_rows import TableError, read_csv
from fused_loss.export.errors import UsageError

F32 = np.dtype("float32")


@pytest.fixture
def table(tmp_path):
    """`table(text)` writes rows.csv and reads it: an array of all rows, two columns by default."""

    def read(text, width=2, dtype=F32, chunk_rows=1000, header="auto"):
        path = tmp_path / "rows.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        chunks = read_csv(path, width, np.dtype(dtype), chunk_rows, header)
        return np.concatenate([chunk for chunk, _ in chunks])

    return read


@pytest.mark.parametrize(
    "text",
    [
        "1,2\n3,4\n",
        "1,2\n3,4",
        "1,2\r\n3,4\r\n",
        "1,2\r3,4\r",
        "a,b\n1,2\n3,4\n",
        "\ufeff1,2\n3,4\n",
        "\ufeffa,b\r\n1,2\r\n3,4\r\n",
        '"a, with a comma","b\nin two lines"\n"1","2"\n3,4\n',
        " 1.0 , 2e0\n+3,4.\n",
        "1,2\n3,4\n\n\n",
        "größe,名前\n1,2\n3,4\n",
    ],
)
def test_the_same_rows_in_many_spellings(table, text):
    found = table(text)
    assert found.dtype == F32
    assert found.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("text", ["a,b\n", "a,b"])
def test_names_alone_are_no_rows(table, text):
    assert table(text).shape == (0, 2)


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_a_file_without_a_line_is_no_table_unless_it_can_have_no_header(table, text):
    assert table(text, header="no").shape == (0, 2)
    for header in ("auto", "yes"):
        with pytest.raises(TableError, match=r"rows.csv has no line, .* say --header no"):
            table(text, header=header)


def test_a_header_is_what_has_no_number_in_it_unless_it_is_said(table):
    assert table("1,2\n3,4", header="yes").tolist() == [[3, 4]]
    assert table("1,2\n3,4", header="no").tolist() == [[1, 2], [3, 4]]
    with pytest.raises(TableError, match="line 1, column 1: 'a' is not a number"):
        table("a,b\n1,2", header="no")
    with pytest.raises(TableError, match="line 1, column 1: 'a' is not a number"):
        table("a,2\n1,2")
    with pytest.raises(TableError, match=r"rows.csv, line 1: 0,1... may be names or numbers"):
        table("0,1\n3,4")
    assert table("0,1\n3,4", header="yes").tolist() == [[3, 4]]
    assert table("0,1\n3,4", header="no").tolist() == [[0, 1], [3, 4]]
    assert table("0\n3", width=1).tolist() == [[0], [3]]
    with pytest.raises(ValueError, match="header must be one of"):
        table("1,2", header="maybe")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,2\n3\n", "rows.csv, line 2 has 1 cells, the model takes 2 values: is the separator a"),
        ("1,2\n3,4,5\n", "rows.csv, line 2 has 3 cells, the model takes 2 values$"),
        ("1,2,\n", "line 1 has 3 cells"),
        ("a,b,c\n1,2\n", "line 1 has 3 cells"),
        (",\n1,2\n", "line 1: '' may be a name or a value that is missing: say --header yes or"),
        ("NA,n/a\n1,2\n", "line 1: 'NA' may be a name or a value that is missing"),
        ("a;b\n1;2\n", "line 1 has 1 cells, .*: is the separator a comma"),
        ("1,2\n\n3,4\n", "rows.csv, line 2 is empty, with rows after it"),
        ("1,2\n3,\n", "line 2, column 2: '' is not a number"),
        ("1,2\n3,four\n", "line 2, column 2: 'four' is not a number"),
        ("1,2\nnan,4\n", "line 2, column 1: 'nan' is not finite in float32"),
        ("1,2\n3,-inf\n", "line 2, column 2: '-inf' is not finite"),
        ("1,2\n3,1e39\n", "line 2, column 2: '1e39' is not finite in float32"),
        ('"a\nb",c\n1,2\n3,x\n', "line 4, column 2: 'x' is not a number"),
        (b"1,2\n3,\xff\n", "rows.csv, after line .*: 'utf-8' codec can't decode"),
        ("1,2\n" + "3" * 140_000, "rows.csv, after line .*: field larger than field limit"),
    ],
)
def test_what_is_not_a_row_is_named_by_its_line_and_column(table, text, said):
    with pytest.raises(TableError, match=said):
        table(text)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numbers_round_once_to_the_models_dtype(table, dtype):
    texts = ["0.1", "1e-3", "3.14159265358979", "-65000"]
    assert np.array_equal(table(",".join(texts), 4, dtype)[0], np.array(texts, float).astype(dtype))
    with pytest.raises(TableError, match="'1e400' is not finite"):
        table("1e400,1", dtype=dtype)


@pytest.mark.parametrize(
    ("dtype", "cell"),
    [("int64", "1.0"), ("int8", "128"), ("uint8", "-1"), ("bool", "2"), ("int64", "9" * 30)],
)
def test_whole_numbers_are_read_as_such_or_refused(table, dtype, cell):
    assert table("1,0", dtype=dtype).tolist() == [[1, 0]]
    with pytest.raises(
        TableError, match=f"line 2, column 2: '{cell}' is not a whole number that fit"
    ):
        table(f"1,0\n0,{cell}", dtype=dtype)


def test_the_largest_integers_keep_every_bit(table):
    assert table("9223372036854775807,-9223372036854775808", dtype="int64").tolist() == [
        [2**63 - 1, -(2**63)]
    ]


def test_rows_come_in_chunks_with_how_far_they_reach(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n" + "".join(f"{i},{i}\n" for i in range(10)))
    chunks = list(read_csv(path, 2, F32, 4))
    assert [len(chunk) for chunk, _ in chunks] == [4, 4, 2]
    assert np.concatenate([chunk for chunk, _ in chunks])[:, 0].tolist() == list(range(10))
    assert chunks[-1][1] == path.stat().st_size


def test_an_error_in_a_later_chunk_has_its_own_line(table):
    with pytest.raises(TableError, match="line 8, column 2: 'x'"):
        table("a,b\n" + "1,2\n" * 6 + "1,x\n", chunk_rows=2)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        next(read_csv(tmp_path / "no.csv", 2, F32, 10))
