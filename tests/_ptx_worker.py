"""Calls whose launches run in the emulator of PTX: questions and answers, pickled, on a pipe.

It runs without TRITON_INTERPRET. Triton's own JIT binds, specialises and compiles for sm_90, up to
PTX; what is launched is that text, on the CPU tensors of the call. Memory that is not initialised
is NaN, and nobody may read it before it is written.
"""

from __future__ import annotations

import os
import pickle
import random
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from _cases import Case
from torch import Tensor

FORMATS = {"i1": "?", "i8": "b", "i32": "i", "i64": "q", "fp32": "f", "fp64": "d"}


class Answer(NamedTuple):
    """What a call gave, and what it launched."""

    result: dict[str, Tensor]
    kernels: list[str]


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

    def ask(self, question: str, *given: Any) -> Any:
        """Call a function of this module there.

        Raises:
            RuntimeError: It raised; the message is its traceback.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            pickle.dump((question, given), self.process.stdin)
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


# --- the worker -----------------------------------------------------------------------------------


class _Allocations:
    """Which bytes of what PyTorch has not initialised have been written since."""

    def __init__(self) -> None:
        self.written: dict[int, np.ndarray] = {}  # by the storage's address
        self.kept: list[Any] = []  # so that no address is used again

    def poisoned(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate(*args: Any, **kwargs: Any) -> Tensor:
            tensor = original(*args, **kwargs)
            storage = tensor.untyped_storage()
            if tensor.device.type == "cpu" and storage.nbytes():
                self.kept.append(storage)
                self.written[storage.data_ptr()] = np.zeros(storage.nbytes(), bool)
                if tensor.is_floating_point():
                    tensor.fill_(float("nan"))
            return tensor

        return allocate


class _Emulator:
    """In place of the launcher."""

    def __init__(self, seed: int | None, alone: bool) -> None:
        self.allocations = _Allocations()
        self.kernels: list[str] = []
        self.draw = random.Random(seed) if seed is not None else None
        self.warps = self.draw if alone else None
        self.later: list[Any] | None = None  # launches that somebody else runs

    def launch(self, call: Any, arguments: dict[str, Any]) -> None:
        from _ptx_machine import run

        made = self.prepared(call, arguments)
        self.kernels.append(made.code.name)
        if self.later is not None:
            self.later.append(made)
            return
        order = list(range(made.programs))
        if self.draw is not None:
            self.draw.shuffle(order)
        run(made, order)

    def prepared(self, call: Any, arguments: dict[str, Any]) -> Any:
        from _ptx_machine import Launch
        from _ptx_memory import Memory
        from _ptx_parse import parse

        options = {"num_warps": call.warps, "enable_fp_fusion": True, "grid": (call.programs,)}
        compiled = call.kernel.warmup(**arguments, **options)
        kinds = {k: kind for k, kind in compiled.src.signature.items() if kind != "constexpr"}
        tensors = [arguments[k] for k, kind in kinds.items() if kind[0] == "*"]
        memory = Memory((x for x in tensors if x is not None), self.allocations.written)
        code = parse(compiled.asm["ptx"])
        parameters = [
            memory.address(arguments[name])
            if kind[0] == "*"
            else int.from_bytes(struct.pack(FORMATS[kind], arguments[name]), "little")
            for name, kind in kinds.items()
        ]
        parameters += [0] * (len(code.parameters) - len(parameters))  # scratch that Triton adds
        shared = compiled.metadata.shared
        return Launch(code, parameters, call.programs, shared, memory, self.warps)


def _driver() -> Any:
    from triton.backends.compiler import GPUTarget

    class Driver:
        """A GPU of which only the architecture is known."""

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

    return Driver()


@contextmanager
def emulated(
    seed: int | None = None, alone: bool = False, processors: int = 2, resident: int = 32
) -> Iterator[_Emulator]:
    """Let every launch run here.

    Args:
        seed: Of the order of programs and warps; None: programs as they are numbered.
        alone: Each warp alone from barrier to barrier.
        processors: Multiprocessors of the device.
        resident: Warps that each head starts on one.
    """
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime import driver

    from fused_loss.kernels import dispatch, triton_grid, triton_launch, triton_plan, triton_table

    driver.set_active(_driver())
    emulator = _Emulator(seed, alone)
    with ExitStack() as stack:
        for owner, name in (
            (torch, "empty"),
            (torch, "empty_like"),
            (Tensor, "new_empty_strided"),
        ):
            poisoned = emulator.allocations.poisoned(getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, poisoned))
        for owner in (triton_grid, triton_plan):
            stack.enter_context(mock.patch.object(owner, "processors", lambda device: processors))
        stack.enter_context(mock.patch.object(triton_table, "RESIDENT", resident))
        stack.enter_context(mock.patch.object(triton_launch, "launch", emulator.launch))
        stack.enter_context(mock.patch.object(dispatch, "_demand_triton"))
        stack.enter_context(mock.patch.object(CUDABackend, "make_cubin", lambda *args: b""))
        triton_plan.recall.cache_clear()
        triton_launch._scratches.__dict__.clear()
        yield emulator


def call(case: Case, **how: Any) -> Answer:
    """A case, forward and backward; `how` is `emulated`'s."""
    from _asserts import fused

    problem = case.problem()
    with emulated(**how) as emulator:
        return Answer(fused(problem, "triton"), emulator.kernels)


def _work() -> None:
    answers, sys.stdout = sys.stdout.buffer, sys.stderr  # what others print is no answer
    while True:
        try:
            question, given = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer: Any = True, globals()[question](*given)
        except Exception:
            answer = False, traceback.format_exc()
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _work()
