"""Writing results: whole or not at all, and a row a line: two runs are compared by eye, too."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


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
