"""Writing results: whole or not at all, and a row a line: two runs are compared by eye, too.

The folder is looked at before anything is measured. It is measured into again and again: what an
earlier run has left there is written over.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def add_out(parser: argparse.ArgumentParser, files: str) -> None:
    """Declare `--out`, the folder of these files."""
    about = f"write {files} there, over those of an earlier run"
    parser.add_argument("--out", type=folder, metavar="DIR", help=about)


def folder(text: str) -> Path:
    """A folder that can be written to, or made; for argparse."""
    path = Path(text)
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{there} is a file: name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{there} cannot be written to: name another folder")
    return path


def write_table(
    folder: Path | None, files: tuple[str, str], results: dict[str, Any], rows: Any, text: str
) -> None:
    """A table's results and its text, under these two names; nothing without a folder."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / files[0], results, "rows", rows)
    write(folder / files[1], text)


def write_json(path: Path, head: dict[str, Any], name: str, rows: Iterable[Any]) -> None:
    """The head, and under `name` the rows, each in a line of its own."""
    opened = json.dumps(head, indent=1).removesuffix("\n}")
    lines = ",\n".join(json.dumps(row) for row in rows)
    write(path, f'{opened},\n "{name}": [\n{lines}\n]}}\n')


def write(path: Path, text: str) -> None:
    """The text; what was there before stays until all of it is."""
    unfinished = path.with_suffix(path.suffix + ".part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
