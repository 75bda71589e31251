"""Files that are read, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fused_loss.export.errors import UsageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def as_path(path: str | os.PathLike[str]) -> Path:
    """The argument `path` of a public function.

    Raises:
        TypeError: It is no path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a path such as 'model.onnx', got {path!r}")
    return Path(path)


def needed(path: Path, error: type[Exception] = UsageError) -> None:
    """Nothing is done where there is a file to read.

    Raises:
        UsageError: No file at `path`, or a folder; as `error` where that is another type.
    """
    if path.is_dir():
        raise error(f"{path} is a folder, a file is needed")
    if not path.is_file():
        raise error(f"there is no file {path}")


def target(path: str | os.PathLike[str]) -> Path:
    """The file that `path` names, links followed, if it can be made or replaced.

    Raises:
        FileNotFoundError: The folder does not exist.
        IsADirectoryError, ValueError: `path` is a folder, or a device.
    """
    found = Path(path).resolve()
    if not found.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {found.parent}: make it first")
    if found.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file in it")
    if found.exists() and not found.is_file():
        raise ValueError(f"{path} is not a regular file")
    return found


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty file beside `path` to write to, renamed over `path` when the block succeeds.

    When the block raises, that file is removed and whatever was at `path` stays. A link is
    followed: the file that it names is replaced.

    Raises:
        FileNotFoundError, IsADirectoryError, ValueError: As `target`.
        OSError: The folder cannot be written to, or the disk is full.
    """
    final = target(path)
    temporary = final.with_name(f".{final.stem[:64]}.{secrets.token_hex(6)}{final.suffix[:16]}")
    try:
        # Created here and not by tempfile, so that the file has the permissions of any other.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        said = error.strerror
        if error.errno in CLOSED:
            said = f"{said}: choose a folder that can be written to, or change its permissions"
        raise type(error)(error.errno, said, str(path)) from error
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, final)
    except OSError as error:
        if error.errno in FULL:
            said = f"{os.strerror(error.errno)}: what was there is kept"
            raise OSError(error.errno, said, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(final.parent)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    if os.name != "posix":
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
