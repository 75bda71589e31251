"""A process without TRITON_INTERPRET that makes calls in the emulator: see `_ptx_calls`."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any


class Worker:
    """The process, seen from a test."""

    def __init__(self, folder: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment["TRITON_CACHE_DIR"] = str(folder / "cache")
        self.log = (folder / "worker.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
        )

    def ask(self, question: str, *given: Any, **how: Any) -> Any:
        """Call a function of `_ptx_calls` there.

        Raises:
            RuntimeError: It raised; the message is its traceback.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            pickle.dump((question, given, how), self.process.stdin)
            self.process.stdin.flush()
            right, answer = pickle.load(self.process.stdout)
        except (EOFError, BrokenPipeError):
            self.log.seek(0)
            right, answer = False, self.log.read()[-4000:]
        if not right:
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        """End it."""
        with suppress(BrokenPipeError):
            self.process.communicate()
        self.log.close()


def _work() -> None:
    import _ptx_calls

    answers, sys.stdout = sys.stdout.buffer, sys.stderr  # what others print is no answer
    while True:
        try:
            question, given, how = pickle.load(sys.stdin.buffer)
        except EOFError:
            os._exit(0)  # to take all apart would take seconds
        try:
            answer: Any = True, getattr(_ptx_calls, question)(*given, **how)
        except Exception:
            answer = False, traceback.format_exc()
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _work()
