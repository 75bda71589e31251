"""Predictions as a table or as arrays: both heads under their names, the label and its class."""

from __future__ import annotations

import csv
import json
import math
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Protocol, TextIO

import numpy as np

from fused_loss.export.errors import require
from fused_loss.export.runtime import OnnxDualHead, Predictions

UNKNOWN = ""  # the class of a label of -1


class Writer(Protocol):
    """Takes the predictions of one chunk after another."""

    def write(self, found: Predictions) -> None:
        """(n, *), (n, C, *) and (n, *)."""


@contextmanager
def open_writer(path: Path, session: OnnxDualHead) -> Iterator[Writer]:
    """The writer of that ending, `.csv`, `.npz` or `.parquet`; the file is whole after the block.

    Raises:
        OSError: The file cannot be written.
        MissingDependencyError: pyarrow is not installed.
    """
    if path.suffix == ".npz":
        with NpzWriter(path, session) as arrays:
            yield arrays
    elif path.suffix == ".parquet":
        with ParquetWriter(path, session) as columns:
            yield columns
    else:
        with path.open("w", encoding="utf-8", newline="") as text:
            yield CsvWriter(text, session)


class Table:
    """The columns of a row of predictions, for one model.

    A regression value and a logit each have one, named after the output, with the class where it is
    known and the unit in brackets; then the label (an index), and its class by name.
    """

    def __init__(self, session: OnnxDualHead) -> None:
        self._outputs, self.units = session.output_names, session.units
        self.class_names = session.class_names
        self.label, self.named = (
            f"predicted_{name}" if name in self._outputs else name for name in ("label", "class")
        )

    def columns(self, found: Predictions) -> dict[str, np.ndarray]:
        """Name to (n,), every column of these predictions."""
        regression, classification, label = map(_flat, found)
        names = [
            *self._regression(regression.shape[1]),
            *self._classes(classification.shape[1]),
            *_numbered(self.label, label.shape[1]),
        ]
        values = [*regression.T, *classification.T, *label.T]
        if self.class_names:
            names += _numbered(self.named, label.shape[1])
            values += list(self.classes(label).T)
        return dict(zip(names, values, strict=True))

    def classes(self, label: np.ndarray) -> np.ndarray:
        """The names of these indices."""
        return np.array([*self.class_names, UNKNOWN])[label]

    def unit(self, index: int) -> str:
        """Of that value of the regression head."""
        if len(self.units) == 1:
            return self.units[0]
        return self.units[index] if index < len(self.units) else ""

    def _regression(self, width: int) -> list[str]:
        units = [f" [{self.unit(i)}]" if self.unit(i) else "" for i in range(width)]
        return [f"{self._outputs[0]}_{i}{unit}" for i, unit in enumerate(units)]

    def _classes(self, width: int) -> list[str]:
        known = len(self.class_names) == width == len(set(self.class_names))
        return [f"{self._outputs[1]}_{x}" for x in (self.class_names if known else range(width))]


class CsvWriter:
    """One line a sample; numbers are the shortest text that reads back the same."""

    def __init__(self, file: TextIO, session: OnnxDualHead) -> None:
        self._rows = csv.writer(file, lineterminator="\n")
        self._table, self._begun = Table(session), False

    def write(self, found: Predictions) -> None:
        """Lines for one chunk."""
        columns = self._table.columns(found)
        if not self._begun:
            self._rows.writerow(columns)
            self._begun = True
        self._rows.writerows(zip(*(column.astype(str) for column in columns.values()), strict=True))


class NpzWriter(ExitStack):
    """The outputs under their names, `label` and `class`; `class_names` and `unit` where known.

    Each array grows in a nameless file of its own, and all of them are copied into one at the end.
    """

    def __init__(self, path: Path, session: OnnxDualHead) -> None:
        super().__init__()
        self._path, self._names, self._table = path, session.output_names, Table(session)
        self._spools: dict[str, tuple[IO[bytes], np.dtype, tuple[int, ...]]] = {}
        self._rows = 0

    def write(self, found: Predictions) -> None:
        """Keep one chunk."""
        arrays = dict(zip(self._names, found[:2], strict=True)) | {self._table.label: found.label}
        if self._table.class_names:
            arrays[self._table.named] = self._table.classes(found.label)
        for name, array in arrays.items():
            if name not in self._spools:
                spool = self.enter_context(TemporaryFile(dir=self._path.parent))  # noqa: SIM115
                self._spools[name] = (spool, array.dtype, array.shape[1:])
            self._spools[name][0].write(array.tobytes())
        self._rows += len(found.label)

    def __exit__(self, *error: Any) -> None:
        """Write the file, unless something went wrong."""
        try:
            if error[0] is None:
                self._save()
        finally:
            super().__exit__(*error)

    def _save(self) -> None:
        with zipfile.ZipFile(self._path, "w") as archive:
            for name, (spool, dtype, tail) in self._spools.items():
                spool.seek(0)
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                    _write_header(member, dtype, (self._rows, *tail))
                    shutil.copyfileobj(spool, member)
            known = {"class_names": self._table.class_names, "unit": self._table.units}
            for name, texts in known.items():
                if texts and name not in self._spools:
                    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                        np.save(member, np.array(texts))


class ParquetWriter(ExitStack):
    """The columns of the table, one row group a chunk; the unit stands in a column's metadata."""

    def __init__(self, path: Path, session: OnnxDualHead) -> None:
        super().__init__()
        self._arrow = require("pyarrow", "parquet")
        self._parquet = require("pyarrow.parquet", "parquet")
        self._path, self._table = path, Table(session)
        self._file: Any = None

    def write(self, found: Predictions) -> None:
        """Rows of one chunk."""
        columns = self._table.columns(found)
        arrays = [self._arrow.array(column) for column in columns.values()]
        if self._file is None:
            pairs = enumerate(zip(columns, arrays, strict=True))
            fields = [self._field(i, name, array.type) for i, (name, array) in pairs]
            names = {"class_names": json.dumps(self._table.class_names)}
            schema = self._arrow.schema(fields, names if self._table.class_names else None)
            self._file = self.enter_context(self._parquet.ParquetWriter(self._path, schema))
        schema = self._file.schema
        self._file.write_table(self._arrow.Table.from_arrays(arrays, schema=schema))

    def _field(self, index: int, name: str, kind: Any) -> Any:
        unit = self._table.unit(index) if name.endswith("]") else ""
        return self._arrow.field(name, kind, metadata={"unit": unit} if unit else None)


def _flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(len(array), math.prod(array.shape[1:]))


def _numbered(name: str, width: int) -> Sequence[str]:
    return [name] if width == 1 else [f"{name}_{i}" for i in range(width)]


def _write_header(file: Any, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(file, header)
