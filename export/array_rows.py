"""The rows of NPY files and of the members of NPZ files, in order: one chunk at a time is held.

NumPy loads a member of an NPZ whole, and maps an NPY, whose pages then count as ours.
"""

from __future__ import annotations

import lzma
import math
import shutil
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, cast

import numpy as np

from fused_loss.export.csv_rows import TableError
from fused_loss.export.errors import UsageError
from fused_loss.export.files import needed

HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
KINDS = "fiubc"  # of numbers
DAMAGE = (  # what a header or a compressed stream that is not whole raises
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, NotImplementedError,
    RuntimeError, SyntaxError, tokenize.TokenError,
)  # fmt: skip


@dataclass(frozen=True)
class StoredRows:
    """An array in a file, which is opened behind its header.

    Attributes:
        place: What an error calls it.
        shape: (N, *).
        dtype: Of its values.
        file: Where they are.
        start: Of the values in the file, in bytes, for an array in Fortran order; None in C order.
    """

    place: str
    shape: tuple[int, ...]
    dtype: np.dtype
    file: IO[bytes]
    start: int | None

    def chunks(self, rows: int) -> Iterator[np.ndarray]:
        """Yield `rows` of them at a time; one chunk at least, which may be empty.

        Raises:
            TableError: The file is damaged or ends too early; says from which row on.
        """
        read = self._next if self.start is None else self._mapped
        for first in range(0, max(self.shape[0], 1), rows):
            yield read(first, min(rows, self.shape[0] - first))

    def _next(self, first: int, rows: int) -> np.ndarray:
        """In C order: what comes next."""
        shape = (rows, *self.shape[1:])
        wanted = math.prod(shape) * self.dtype.itemsize
        try:
            content = self.file.read(wanted)
        except DAMAGE as error:
            raise TableError(f"{self.place} is damaged after row {first}: {error}") from error
        if len(content) < wanted:
            whole = first + len(content) * rows // wanted
            raise TableError(f"{self.place} ends after row {whole} of {self.shape[0]}")
        return np.frombuffer(content, self.dtype).reshape(shape) if wanted else self._none(rows)

    def _mapped(self, first: int, rows: int) -> np.ndarray:
        """A row is everywhere in Fortran order; a new map forgets the pages of the last."""
        if not math.prod(self.shape):
            return self._none(rows)
        assert self.start is not None
        whole = np.memmap(self.file, self.dtype, "r", self.start, self.shape, "F")
        return np.array(whole[first : first + rows], order="C")

    def _none(self, rows: int) -> np.ndarray:
        return np.empty((rows, *self.shape[1:]), self.dtype)


def open_arrays(path: Path, names: Sequence[str], stack: ExitStack) -> tuple[StoredRows, ...]:
    """The arrays of an NPY (one) or NPZ file, in the order of `names`; `stack` closes them.

    Raises:
        UsageError: No such file, damage, pickled objects, or not the arrays that are needed.
    """
    if path.suffix not in (".npy", ".npz"):
        raise UsageError(f"{path} must be an .npy or .npz file")
    needed(path)
    try:
        if path.suffix == ".npz":
            return _members(path, names, stack)
        file = cast("IO[bytes]", stack.enter_context(path.open("rb")))
        if len(names) > 1:
            raise UsageError(f"{path} holds one array, the inputs are {list(names)}: give an .npz")
        return (_opened(file, path.name, path.stat().st_size, stack),)
    except (UsageError, TableError):
        raise
    except (*DAMAGE, ValueError, KeyError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def _members(path: Path, names: Sequence[str], stack: ExitStack) -> tuple[StoredRows, ...]:
    archive = stack.enter_context(zipfile.ZipFile(path))
    held = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    if len(held) == len(names) == 1:
        held = dict(zip(names, held.values(), strict=True))
    if not set(names) <= set(held):
        raise UsageError(f"{path} holds {list(held)}, the inputs are {list(names)}")
    found = []
    for name in names:
        member = stack.enter_context(archive.open(held[name]))
        found.append(_opened(member, f"{path.name}: {name}", held[name].file_size, stack))
    return tuple(found)


def _opened(file: IO[bytes], place: str, size: int, stack: ExitStack) -> StoredRows:
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"version {version} of the format")
    shape, is_fortran, dtype = HEADERS[version](file)
    if any(isinstance(size, bool) or size < 0 for size in shape):
        raise ValueError(f"its shape is {shape}")
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not loaded")
    if dtype.kind not in KINDS:
        raise TableError(f"{place} is {dtype}, numbers are needed")
    if not shape:
        raise TableError(f"{place} has no batch axis: (N, ...) is needed")
    start, wanted = file.tell(), math.prod(shape) * dtype.itemsize
    if wanted > size - start:
        raise TableError(f"{place} is cut short: {wanted} bytes of {shape}, {size - start} there")
    if not is_fortran or len(shape) == 1:
        return StoredRows(place, shape, dtype, file, None)
    if isinstance(file, zipfile.ZipExtFile):  # which cannot be mapped
        copy = stack.enter_context(TemporaryFile())  # noqa: SIM115
        shutil.copyfileobj(file, copy)
        copy.flush()
        return StoredRows(place, shape, dtype, copy, 0)
    return StoredRows(place, shape, dtype, file, start)
