"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty file beside `path` to write to, renamed over `path` when the block succeeds.

    When the block raises, that file is removed and whatever was at `path` stays. A link is
    followed: the file that it names is replaced.

    Raises:
        FileNotFoundError: The folder does not exist.
        IsADirectoryError, ValueError: `path` is a folder, or a device.
        OSError: The folder cannot be written to, or the disk is full.
    """
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent}: make it first")
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file in it")
    if target.exists() and not target.is_file():
        raise ValueError(f"{path} is not a regular file")
    temporary = target.with_name(f".{target.stem[:64]}.{secrets.token_hex(6)}{target.suffix[:16]}")
    try:
        # Created here and not by tempfile, so that the file has the permissions of any other.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
    except OSError as error:
        if error.errno in FULL:
            said = f"{os.strerror(error.errno)}: what was there is kept"
            raise OSError(error.errno, said, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(target.parent)


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
