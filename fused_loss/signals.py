"""Ctrl-C and SIGTERM: either ends the command `fused-loss` with one word and no traceback.

While the command is imported nothing is open, and the process ends at once. An exception would be
lost there: PyTorch's C++ imports NumPy and forgets what that raises, and the command would go on
with half a NumPy. So the package's door imports this file ahead of torch; in a process that is not
the command, that does nothing. While the command runs, either signal unwinds.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

FLAGS = r"-[bBdEiIOPqRsSuvx]*m"
MODULES = {"fused_loss", "fused_loss.cli"}  # what `python -m` runs as the command


class Interrupted(KeyboardInterrupt):
    """Ctrl-C. A plain KeyboardInterrupt that crosses `exec` of a text kills Python at its exit."""


class Terminated(BaseException):
    """SIGTERM."""


RAISED = {signal.SIGINT: Interrupted, signal.SIGTERM: Terminated}
WORDS = {signal.SIGINT: b"interrupted", signal.SIGTERM: b"terminated"}


def is_command() -> bool:
    """Whether this process is `fused-loss`; its first argument is "-m" while that is imported."""
    called = "".join(sys.argv[:1])
    if called != "-m":
        return os.path.basename(called) in ("fused-loss", "fused-loss.exe")
    words = iter(sys.orig_argv[1:])
    option = next(word for word in words if re.match(FLAGS, word))  # the last of Python's own
    return (option.partition("m")[2] or next(words, "")) in MODULES


def leave(number: int, _: FrameType | None) -> None:
    """End the process where it stands."""
    os.write(2, b"fused-loss: " + WORDS[signal.Signals(number)] + b"\n")
    os._exit(128 + number)


def taken() -> list[signal.Signals]:
    """The signals that nobody else handles or ignores, as a shell's background job does Ctrl-C."""
    free = (signal.SIG_DFL, signal.default_int_handler, leave)
    return [number for number in RAISED if signal.getsignal(number) in free]


@contextmanager
def unwinding() -> Iterator[None]:
    """Either signal raises: a file that is being written is removed.

    Raises:
        Interrupted: At the end, where somebody has swallowed it or made another error of it.
        Terminated: The same of SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def unwind(number: int, _: FrameType | None) -> None:
        came.append(number)
        raise RAISED[signal.Signals(number)]

    before = {number: signal.signal(number, unwind) for number in taken()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            raise RAISED[signal.Signals(came[0])]


if threading.current_thread() is threading.main_thread() and is_command():
    for _number in taken():
        signal.signal(_number, leave)
