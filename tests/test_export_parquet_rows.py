import sys
from contextlib import ExitStack

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fused_loss.export.csv_rows import TableError
from fused_loss.export.errors import MissingDependencyError, UsageError
from fused_loss.export.feeds import Port
from fused_loss.export.parquet_rows import ParquetRows

F32 = np.dtype("float32")
X = np.arange(24.0).reshape(6, 4)


def read(path, *ports, rows=4):
    with ExitStack() as stack:
        table = ParquetRows(path, ports or [Port("input", ("batch", 4), F32)], stack)
        chunks = list(table.chunks(rows))
    assert table.count == sum(len(chunk[0]) for chunk in chunks)
    return [np.concatenate(arrays) for arrays in zip(*chunks, strict=True)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.parquet"


def save(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


def numbered(x):
    return {f"x{i}": column for i, column in enumerate(x.T)}


def test_all_columns_are_the_one_input_in_the_files_order(path):
    mixed = {"a": [1, 2], "b": [True, False], "c": pa.array([0.5, 1.5], pa.float32()), "d": [7, 8]}
    (found,) = read(save(path, mixed))
    assert found.tolist() == [[1, 1, 0.5, 7], [2, 0, 1.5, 8]]
    (found,) = read(save(path, numbered(X), row_group_size=2))
    assert np.array_equal(found, X)
    (image,) = read(path, Port("input", ("batch", 2, 2), F32))
    assert np.array_equal(image, X.reshape(6, 2, 2))


@pytest.mark.parametrize("width", [-1, 4])
def test_a_column_of_lists_is_an_input_by_its_name(path, width):
    lists = pa.array(list(X), pa.list_(pa.float64(), width))
    save(path, {"other": ["text"] * 6, "input": lists, "n": [1] * 6})
    ports = Port("input", ("batch", 4), F32), Port("n", ("batch",), np.dtype("int64"))
    found, n = read(path, *ports)
    assert np.array_equal(found, X)
    assert (n.tolist(), n.dtype) == ([1] * 6, np.int64)
    nested = pa.array(X.reshape(6, 2, 2).tolist())
    (image,) = read(save(path, {"input": nested}), Port("input", ("batch", 2, 2), F32))
    assert np.array_equal(image, X.reshape(6, 2, 2))
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(X.reshape(6, 2, 2))
    (image,) = read(save(path, {"input": tensors}), Port("input", ("batch", 2, 2), F32))
    assert np.array_equal(image, X.reshape(6, 2, 2))


def test_no_rows_are_one_empty_chunk(path):
    assert read(save(path, numbered(X[:0])))[0].shape == (0, 4)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (numbered(X[:, :3]), "x.parquet has 3 columns, the model takes 4 values"),
        (
            numbered(X) | {"x2": [0, 1, 2, 3, 4, None]},
            "x.parquet, row 6, column 'x2': there is no value",
        ),
        (numbered(X) | {"x1": list("abcdef")}, "x.parquet, column 'x1' is string, numbers are"),
        (
            {"input": [[1.0] * 4] * 5 + [[1.0] * 3]},
            "x.parquet, row 6, column 'input': the lists differ in length",
        ),
        (
            {"input": [[1.0] * 4] * 5 + [[1.0, None, 1.0, 1.0]]},
            "row 6, column 'input': there is no v",
        ),
        ({"input": [[1.0] * 4] * 5 + [None]}, "row 6, column 'input': there is no value"),
    ],
)
def test_a_broken_row_is_named(path, columns, said):
    with pytest.raises(TableError, match=said):
        read(save(path, columns))


def test_what_is_not_a_table_of_the_inputs(path):
    with pytest.raises(UsageError, match="there is no file"):
        read(path)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(UsageError, match=r"x.parquet cannot be read: "):
        read(path)
    ports = Port("a", ("batch", 1), F32), Port("b", ("batch", 1), F32)
    with pytest.raises(UsageError, match=r"has columns \['a'\], the inputs are \['a', 'b'\]"):
        read(save(path, {"a": [1]}), *ports)
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 2, names=["c", "c"]), path)
    with pytest.raises(UsageError, match="several columns of one name"):
        read(path)


def test_damage_within_is_named_by_the_row_before_it(path):
    save(path, numbered(np.random.default_rng(0).random((20_000, 4))), row_group_size=10_000)
    content = bytearray(path.read_bytes())
    middle = pq.ParquetFile(path).metadata.row_group(1).column(0)
    start = middle.dictionary_page_offset or middle.data_page_offset
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(TableError, match=r"x.parquet is damaged after row 8192: "):
        read(path, rows=4096)


def test_without_pyarrow_the_extra_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingDependencyError, match=r"fused-loss\[parquet\]"):
        read(path)
