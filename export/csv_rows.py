"""Rows of numbers from a CSV file, in chunks; a row that is not one is named by its line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fused_loss.export.files import needed

HEADER = ("auto", "yes", "no")
MISSING = ("", "na", "n/a", "null", "none", "?", "-", ".")  # what tables write for no value


class TableError(ValueError):
    """Rows or arrays that the model cannot be given; the message says where."""


class _Line(NamedTuple):
    place: str  # "rows.csv, line 7"
    cells: Sequence[str]


def read_csv(
    path: Path, width: int, dtype: np.dtype, chunk_rows: int, header: str = "auto"
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield `((n, width) array, bytes read)`; at least one chunk, which may be empty.

    Args:
        path: UTF-8, comma-separated.
        width: Values a row.
        dtype: Of the arrays.
        chunk_rows: Rows in a chunk, at most.
        header: "yes" skips the first line; "auto" does so where none of its cells is a number.

    Raises:
        UsageError: No such file.
        TableError: A row of another length, a cell that is not a finite number of this dtype, an
            empty line between rows, no line where there may be a header, or text that is not UTF-8.
    """
    if header not in HEADER:
        raise ValueError(f"header must be one of {HEADER}, got {header!r}")
    needed(path)
    with path.open("rb") as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as text:
        lines = _without_header(_lines(text, path.name), header, width, path.name)
        chunk = list(islice(lines, chunk_rows))
        while True:
            yield _numbers(chunk, width, dtype), raw.tell()
            chunk = list(islice(lines, chunk_rows))
            if not chunk:
                return


def _lines(text: io.TextIOWrapper, name: str) -> Iterator[_Line]:
    """Lines with something in them; empty ones only at the end, where they are dropped."""
    reader, empty = csv.reader(text), 0
    try:
        for cells in reader:
            if not cells:
                empty = empty or reader.line_num
                continue
            if empty:
                raise TableError(f"{name}, line {empty} is empty, with rows after it")
            yield _Line(f"{name}, line {reader.line_num}", cells)
    except (csv.Error, UnicodeDecodeError) as error:
        raise TableError(f"{name}, after line {reader.line_num}: {error}") from error


def _without_header(lines: Iterator[_Line], header: str, width: int, name: str) -> Iterator[_Line]:
    first = next(lines, None)
    if first is None:
        if header == "no":
            return
        raise TableError(
            f"{name} has no line, not even of names: was it written to the end? "
            "If it is meant to hold no rows, say --header no"
        )
    if _is_header(first, header):
        _check_width(first, width)
    else:
        yield first
    yield from lines


def _is_header(line: _Line, header: str) -> bool:
    if header != "auto":
        return header == "yes"
    counted = [str(i) for i in range(len(line.cells))]
    if len(counted) > 1 and line.cells == counted:
        raise TableError(
            f"{line.place}: {','.join(counted[:3])}... may be names or numbers: "
            "say --header yes or --header no"
        )
    if any(_is_number(cell) for cell in line.cells):
        return False
    for cell in line.cells:
        if cell.strip().lower() in MISSING:
            raise TableError(
                f"{line.place}: {cell!r} may be a name or a value that is missing: "
                "say --header yes or --header no"
            )
    return True


def _numbers(lines: Sequence[_Line], width: int, dtype: np.dtype) -> np.ndarray:
    """(n, width) of dtype; the whole chunk at once, cell by cell only to name what is wrong."""
    for line in lines:
        _check_width(line, width)
    try:
        with np.errstate(over="ignore"):
            values = np.array([[_value(cell, dtype) for cell in line.cells] for line in lines])
            rows = _narrowed(values, dtype).reshape(len(lines), width)
        if dtype.kind != "f" or np.isfinite(rows).all():
            return rows
    except (ValueError, OverflowError):
        pass
    for line in lines:
        for column, cell in enumerate(line.cells, 1):
            _check_cell(cell, dtype, f"{line.place}, column {column}")
    raise TableError(f"{lines[0].place}: these rows cannot be read as {dtype}")


def _value(cell: str, dtype: np.dtype) -> Any:
    return float(cell) if dtype.kind == "f" else int(cell)


def _narrowed(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    narrow = values.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(narrow, values):
        raise OverflowError
    return narrow


def _check_width(line: _Line, width: int) -> None:
    if len(line.cells) != width:
        mend = ": is the separator a comma?" if len(line.cells) == 1 else ""
        raise TableError(
            f"{line.place} has {len(line.cells)} cells, the model takes {width} values{mend}"
        )


def _check_cell(cell: str, dtype: np.dtype, place: str) -> None:
    try:
        with np.errstate(over="ignore"):
            value = _narrowed(np.array(_value(cell, dtype)), dtype)
    except (ValueError, OverflowError):
        what = "a number" if dtype.kind == "f" else f"a whole number that fits {dtype}"
        raise TableError(f"{place}: {cell!r} is not {what}") from None
    if dtype.kind == "f" and not np.isfinite(value):
        raise TableError(f"{place}: {cell!r} is not finite in {dtype}")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
