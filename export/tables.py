"""Prediction from file to file, chunk by chunk: CSV, NPY, NPZ and Parquet in, CSV and the like out.

What is held at once is one chunk of rows and its predictions, however long the file is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import numpy as np

from fused_loss.export.array_rows import open_arrays
from fused_loss.export.csv_rows import TableError, read_csv
from fused_loss.export.feeds import Port
from fused_loss.export.files import replacing
from fused_loss.export.parquet_rows import ParquetRows
from fused_loss.export.progress import Progress, silent
from fused_loss.export.runtime import OnnxDualHead
from fused_loss.export.writers import CsvWriter, Writer, open_writer

CHUNK_VALUES = 1 << 18  # numbers of a chunk; as text, one may take 128 bytes
MAX_CHUNK_ROWS = 4096

Chunk = tuple[tuple[np.ndarray, ...], int]  # the inputs, and how far into the source they reach


def predict_file(
    session: OnnxDualHead,
    source: Path,
    target: Path | TextIO,
    *,
    header: str = "auto",
    progress: Progress = silent,
) -> int:
    """Run `session` over the rows of `source`; a file at `target` appears whole or not at all.

    Args:
        session: The model.
        source: `.csv` (one row a sample, its values in C order), `.npy`, `.npz` by input names, or
            `.parquet` (a column a value, or a column an input).
        target: A `.csv`, `.npz` or `.parquet` path, or an open text file, which gets CSV.
        header: Whether a CSV begins with a line of names: "yes", "no", or "auto".
        progress: Called after each chunk, with bytes of a CSV, else with rows.

    Returns:
        The number of rows.

    Raises:
        TableError: A row that is broken, by its number; values the model's dtype cannot hold.
        UsageError: A file that is missing or not what is needed.
        ValueError: Arrays that the model does not take.
        MissingDependencyError: A Parquet file, and pyarrow is not installed.
    """
    with ExitStack() as stack:
        chunks, total = _open(session, source, header, stack)
        if not isinstance(target, Path):
            return _run(session, chunks, total, CsvWriter(target, session), progress)
        with replacing(target) as temporary, open_writer(temporary, session) as writer:
            return _run(session, chunks, total, writer, progress)


def _run(
    session: OnnxDualHead, chunks: Iterator[Chunk], total: int, writer: Writer, progress: Progress
) -> int:
    rows = 0
    for inputs, done in chunks:
        writer.write(session.predict(*inputs))
        rows += len(inputs[0])
        progress(done, total)
    return rows


def _open(
    session: OnnxDualHead, source: Path, header: str, stack: ExitStack
) -> tuple[Iterator[Chunk], int]:
    ports = session.inputs
    if source.suffix == ".csv":
        return _csv_chunks(session, source, header), source.stat().st_size
    if source.suffix == ".parquet":
        table = ParquetRows(source, ports, stack)
        step = _chunk_rows(max(_width(port) for port in (*ports, *session.outputs)))
        return _converted(table.chunks(step), ports, source.name), table.count
    arrays = open_arrays(source, session.input_names, stack)
    rows = {port.name: array.shape[0] for port, array in zip(ports, arrays, strict=True)}
    if len(set(rows.values())) > 1:
        raise TableError(f"{source.name}: the inputs must have the same number of rows, got {rows}")
    widths = [math.prod(array.shape[1:]) for array in arrays] + list(map(_width, session.outputs))
    parts = zip(*(array.chunks(_chunk_rows(max(widths))) for array in arrays), strict=True)
    return _converted(parts, ports, source.name), arrays[0].shape[0]


def _csv_chunks(session: OnnxDualHead, source: Path, header: str) -> Iterator[Chunk]:
    port = session.inputs[0]
    if len(session.inputs) > 1 or not port.is_sized:
        raise TableError(
            f"a CSV holds one input of known shape, the model takes {session!r}: give an .npz"
        )
    step = _chunk_rows(max(_width(each) for each in (port, *session.outputs)))
    for rows, done in read_csv(source, _width(port), port.dtype, step, header):
        yield (rows.reshape(port.sized(len(rows))),), done


def _converted(
    parts: Iterator[tuple[np.ndarray, ...]], ports: tuple[Port, ...], place: str
) -> Iterator[Chunk]:
    done = 0
    for arrays in parts:
        yield (
            tuple(
                _cast(place, done, port, array) for port, array in zip(ports, arrays, strict=True)
            ),
            done + len(arrays[0]),
        )
        done += len(arrays[0])


def _cast(place: str, done: int, port: Port, array: np.ndarray) -> np.ndarray:
    """Floats narrow to the model's dtype, as NumPy's default is float64; integers only widen."""
    casting = "same_kind" if port.dtype.kind == "f" else "safe"
    if not np.can_cast(array.dtype, port.dtype, casting):  # type: ignore[arg-type]
        raise TableError(f"{place}: {port.name} is {array.dtype}, the model takes {port.dtype}")
    with np.errstate(over="ignore"):
        cast = array.astype(port.dtype)
    if port.dtype.kind == "f":
        lost = np.isinf(cast) & np.isfinite(array)
        if lost.any():
            raise TableError(
                f"{place}, row {done + int(np.argwhere(lost)[0][0]) + 1}: {port.name} holds values "
                f"that {port.dtype} cannot: scale them as in training"
            )
    return cast


def _width(port: Port) -> int:
    """Numbers a row, of the axes that are known."""
    return math.prod(size for size in port.shape[1:] if isinstance(size, int))


def _chunk_rows(width: int) -> int:
    return max(1, min(MAX_CHUNK_ROWS, CHUNK_VALUES // max(width, 1)))
