"""Rows of a Parquet file, in chunks: a column a value, or a column of lists an input."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from fused_loss.export.csv_rows import TableError
from fused_loss.export.errors import UsageError, require
from fused_loss.export.feeds import Port
from fused_loss.export.files import needed

BUFFER = 1 << 20  # bytes of a column that are read at once, where whole row groups would be


class ParquetRows:
    """The columns of a file that a model's inputs are made of.

    A file with columns of the inputs' names gives those: numbers, or lists of as many as the input
    has. Otherwise all columns together are the one input, in the file's order.

    Attributes:
        count: Of rows.

    Raises:
        UsageError: No such file, not Parquet, or not the columns that are needed.
        MissingDependencyError: pyarrow is not installed.
    """

    def __init__(self, path: Path, ports: Sequence[Port], stack: ExitStack) -> None:
        parquet = require("pyarrow.parquet", "parquet")
        needed(path)
        self._arrow, self._path, self._ports = require("pyarrow", "parquet"), path, ports
        try:
            self._file = stack.enter_context(
                parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)
            )
        except (self._arrow.ArrowException, OSError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from error
        self.count = self._file.metadata.num_rows
        held, names = self._file.schema_arrow.names, [port.name for port in ports]
        if len(set(held)) < len(held):
            raise UsageError(f"{path} has several columns of one name: {held}")
        self._by_name = set(names) <= set(held)
        if not self._by_name and len(names) > 1:
            raise UsageError(f"{path} has columns {held}, the inputs are {names}")
        self._columns = names if self._by_name else held
        if not self._by_name and len(held) != math.prod(ports[0].sized(1)):
            raise TableError(
                f"{path.name} has {len(held)} columns, the model takes "
                f"{math.prod(ports[0].sized(1))} values"
            )

    def chunks(self, rows: int) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield one array an input, of that many rows at most; one chunk at least.

        Raises:
            TableError: A value that is missing or no number, by its row and column.
        """
        first = 0
        try:
            batches = self._file.iter_batches(rows, columns=self._columns, use_threads=False)
            for batch in batches:
                yield self._arrays(batch, first)
                first += batch.num_rows
        except (self._arrow.ArrowException, OSError) as error:
            raise TableError(f"{self._path.name} is damaged after row {first}: {error}") from error
        if not first:
            schema = self._file.schema_arrow
            yield self._arrays(self._arrow.RecordBatch.from_pylist([], schema=schema), 0)

    def _arrays(self, batch: Any, first: int) -> tuple[np.ndarray, ...]:
        columns = [self._values(batch.column(name), name, first) for name in self._columns]
        if not self._by_name:
            columns = [np.stack(columns, axis=1)]
        shaped = zip(columns, self._ports, strict=True)
        return tuple(self._shaped(array, port) for array, port in shaped)

    def _values(self, column: Any, name: str, first: int) -> np.ndarray:
        """(n,) of a column of numbers, (n, width) of one of lists."""
        types, where = self._arrow.types, f"column {name!r}"
        shape = [len(column)]
        if isinstance(column, self._arrow.ExtensionArray):
            column = column.storage

        def refuse(wrong: np.ndarray, what: str) -> None:
            if wrong.any():
                row = first + int(np.flatnonzero(wrong)[0]) // math.prod(shape[1:]) + 1
                raise TableError(f"{self._path.name}, row {row}, {where}: {what}")

        while True:
            refuse(_numpy(column.is_null()), "there is no value")
            if not (types.is_list(column.type) or types.is_large_list(column.type)
                    or types.is_fixed_size_list(column.type)):  # fmt: skip
                break
            sizes = _numpy(column.value_lengths())
            size = int(sizes[0]) if len(sizes) else 0
            refuse(sizes != size, "the lists differ in length")
            shape.append(size)
            column = column.flatten()
        kinds = (types.is_integer, types.is_floating, types.is_boolean)
        if not any(is_kind(column.type) for is_kind in kinds):
            raise TableError(f"{self._path.name}, {where} is {column.type}, numbers are needed")
        return _numpy(column).reshape(shape)

    def _shaped(self, array: np.ndarray, port: Port) -> np.ndarray:
        """Lists are in C order, as the cells of a CSV are."""
        width = math.prod(array.shape[1:])
        if not port.is_sized or width != math.prod(port.sized(1)):
            return array  # the session says what it takes
        return array.reshape(port.sized(len(array)))


def _numpy(column: Any) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False)
