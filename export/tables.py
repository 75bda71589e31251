"""Prediction from file to file, chunk by chunk: CSV, NPY and NPZ in, CSV and NPZ out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from fused_loss.export.arrays import read_arrays
from fused_loss.export.csv_rows import TableError, read_csv
from fused_loss.export.files import replacing
from fused_loss.export.runtime import OnnxDualHead
from fused_loss.export.writers import CsvWriter, NpzWriter, Writer

CHUNK_VALUES = 1 << 20  # numbers held at once
MAX_CHUNK_ROWS = 4096

Chunk = tuple[tuple[np.ndarray, ...], int]  # the inputs, and how far into the source they reach
Progress = Callable[[int, int], None]  # (done, total), in bytes or rows


def predict_file(
    session: OnnxDualHead,
    source: Path,
    target: Path | TextIO,
    *,
    header: str = "auto",
    progress: Progress = lambda done, total: None,
) -> int:
    """Run `session` over the rows of `source`; a file at `target` appears whole or not at all.

    Args:
        session: The model.
        source: `.csv` (one row a sample, its values in C order), `.npy`, or `.npz` by input names.
        target: A `.csv` or `.npz` path, or an open text file, which gets CSV.
        header: Whether a CSV begins with a line of names: "yes", "no", or "auto".
        progress: Called after each chunk.

    Returns:
        The number of rows.

    Raises:
        TableError: A row that is broken, by its line; values the model's dtype cannot hold.
        UsageError: A file that is missing or not what is needed.
        ValueError: Arrays that the model does not take.
    """
    chunks, total = _open(session, source, header)
    if not isinstance(target, Path):
        return _run(session, chunks, total, CsvWriter(target, session), progress)
    with replacing(target) as temporary:
        if target.suffix == ".npz":
            collected = NpzWriter(session)
            rows = _run(session, chunks, total, collected, progress)
            with temporary.open("wb") as binary:
                np.savez(binary, **collected.arrays())
            return rows
        with temporary.open("w", encoding="utf-8", newline="") as text:
            return _run(session, chunks, total, CsvWriter(text, session), progress)


def _run(
    session: OnnxDualHead, chunks: Iterator[Chunk], total: int, writer: Writer, progress: Progress
) -> int:
    rows = 0
    for inputs, done in chunks:
        writer.write(*session(*inputs))
        rows += len(inputs[0])
        progress(done, total)
    return rows


def _open(session: OnnxDualHead, source: Path, header: str) -> tuple[Iterator[Chunk], int]:
    if source.suffix == ".csv":
        return _csv_chunks(session, source, header), source.stat().st_size
    arrays = read_arrays(source, session.input_names)
    for name, array in zip(session.input_names, arrays, strict=True):
        if array.ndim == 0:
            raise TableError(f"{source.name}: {name} has no batch axis: (N, ...) is needed")
    if len({len(array) for array in arrays}) > 1:
        rows = {name: len(array) for name, array in zip(session.input_names, arrays, strict=True)}
        raise TableError(f"{source.name}: the inputs must have the same number of rows, got {rows}")
    return _array_chunks(session, arrays), len(arrays[0])


def _csv_chunks(session: OnnxDualHead, source: Path, header: str) -> Iterator[Chunk]:
    shape = [size for size in session.input_shapes[0][1:] if isinstance(size, int)]
    if len(session.input_shapes) > 1 or len(shape) < len(session.input_shapes[0]) - 1:
        raise TableError(
            f"a CSV holds one input of known shape, the model takes {session!r}: give an .npz"
        )
    width, dtype = math.prod(shape), session.input_dtypes[0]
    for rows, done in read_csv(source, width, dtype, _chunk_rows(width), header):
        yield (rows.reshape(-1, *shape),), done


def _array_chunks(session: OnnxDualHead, arrays: Sequence[np.ndarray]) -> Iterator[Chunk]:
    step = _chunk_rows(max(math.prod(array.shape[1:]) for array in arrays))
    for start in range(0, max(len(arrays[0]), 1), step):
        parts = zip(session.input_names, arrays, session.input_dtypes, strict=True)
        inputs = tuple(
            _cast(name, array[start : start + step], dtype) for name, array, dtype in parts
        )
        yield inputs, start + len(inputs[0])


def _cast(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Floats narrow to the model's dtype, as NumPy's default is float64; integers only widen."""
    casting = "same_kind" if dtype.kind == "f" else "safe"
    if not np.can_cast(array.dtype, dtype, casting):  # type: ignore[arg-type]
        raise TableError(f"{name} is {array.dtype}, the model takes {dtype}")
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if dtype.kind == "f" and np.any(np.isinf(cast) & np.isfinite(array)):
        raise TableError(f"{name} holds values that {dtype} cannot: scale them as in training")
    return cast


def _chunk_rows(width: int) -> int:
    return max(1, min(MAX_CHUNK_ROWS, CHUNK_VALUES // max(width, 1)))
