"""A progress bar on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]  # (done, total)


def silent(done: int, total: int) -> None:
    """Show nothing."""


@contextmanager
def bar(name: str, shown: bool = True) -> Iterator[Progress]:
    """Gives what to call as the work goes on; nothing is shown where rich is not installed."""
    try:
        from rich.console import Console
        from rich.progress import Progress as Bar
    except ImportError:
        shown = False
    if not shown:
        yield silent
        return
    with Bar(console=Console(stderr=True), transient=True) as shown_bar:
        task = shown_bar.add_task(name, total=None)
        yield lambda done, total: shown_bar.update(task, completed=done, total=total)
