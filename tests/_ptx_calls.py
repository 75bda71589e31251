"""Calls whose launches run in the emulator of PTX, in a process without TRITON_INTERPRET.

Triton's own JIT binds, specialises and compiles for sm_90, up to PTX; that text is what runs, on
the CPU tensors of the call. Memory that is not initialised is NaN, and nobody may read it before
it has been written.
"""

from __future__ import annotations

import ctypes
import random
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from _asserts import Result, fused
from _cases import Problem
from _ptx_machine import Launch, run, together
from _ptx_memory import Memory, Misuse
from _ptx_parse import parse
from _relaunch import Driver
from _tables import table
from torch import Tensor
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import driver

from fused_loss.kernels import dispatch, triton_launch, triton_table

FORMATS = {"i1": "?", "i8": "b", "i32": "i", "i64": "q", "fp32": "f", "fp64": "d"}
Edit = Callable[[str], str]  # of the text of a kernel


class Answer(NamedTuple):
    """What a call gave, and the kernels that it launched."""

    result: Result
    kernels: list[str]


driver.set_active(Driver())


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
                ctypes.memset(storage.data_ptr(), 0xFF, storage.nbytes())  # NaN in any dtype
            return tensor

        return allocate


class _Emulator:
    """In place of the launcher."""

    def __init__(self, seed: int | None, alone: bool, edit: Edit) -> None:
        self.allocations, self.edit = _Allocations(), edit
        self.kernels: list[str] = []
        self.draw = random.Random(seed) if seed is not None else None
        self.warps = self.draw if alone else None
        self.later: list[Launch] | None = None  # launches that somebody else runs

    def launch(self, call: Any, arguments: dict[str, Any]) -> None:
        made = self.prepared(call, arguments)
        self.kernels.append(made.code.name)
        if self.later is not None:
            self.later.append(made)
            return
        order = list(range(made.programs))
        if self.draw is not None:
            self.draw.shuffle(order)
        run(made, order)

    def prepared(self, call: Any, arguments: dict[str, Any]) -> Launch:
        options = {"num_warps": call.warps, "enable_fp_fusion": True, "grid": (call.programs,)}
        compiled = call.kernel.warmup(**arguments, **options)
        kinds = {k: kind for k, kind in compiled.src.signature.items() if kind != "constexpr"}
        tensors = [arguments[k] for k, kind in kinds.items() if kind[0] == "*"]
        memory = Memory((x for x in tensors if x is not None), self.allocations.written)
        code = parse(self.edit(compiled.asm["ptx"]))
        parameters = [
            memory.address(arguments[name])
            if kind[0] == "*"
            else int.from_bytes(struct.pack(FORMATS[kind], arguments[name]), "little")
            for name, kind in kinds.items()
        ]
        parameters += [0] * (len(code.parameters) - len(parameters))  # scratch that Triton adds
        shared = compiled.metadata.shared
        return Launch(code, parameters, call.programs, shared, memory, self.warps)


@contextmanager
def emulated(
    seed: int | None = None,
    alone: bool = False,
    processors: int = 2,
    resident: int = 32,
    bound: int = triton_table.COUNT_BOUND,
    edit: Edit = str,
) -> Iterator[_Emulator]:
    """Let every launch run here.

    Args:
        seed: Of the order of programs and warps; None: programs as they are numbered.
        alone: Each warp alone from barrier to barrier.
        processors: Multiprocessors of the device.
        resident: Warps that each head starts on one.
        bound: Positions or elements from which `count_kernel` counts them, half as many a program.
        edit: What is done to the text of each kernel.
    """
    emulator = _Emulator(seed, alone, edit)
    poisoned = emulator.allocations.poisoned
    places = [(torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty_strided")]
    patches = [
        *((owner, name, poisoned(getattr(owner, name))) for owner, name in places),
        (triton_launch, "launch", emulator.launch),
        (dispatch, "_demand_triton", _always(None)),
        (CUDABackend, "make_cubin", _always(b"")),
    ]
    numbers = {"RESIDENT": resident, "COUNT_BOUND": bound, "COUNT_CHUNK": bound // 2}
    with ExitStack() as stack:
        stack.enter_context(table(numbers, processors))
        for owner, name, value in patches:
            stack.enter_context(mock.patch.object(owner, name, value))
        triton_launch._scratches.__dict__.clear()
        yield emulator


def _always(value: Any) -> Callable[..., Any]:
    return lambda *args: value


# --- what a test may ask for ----------------------------------------------------------------------


def call(problem: Problem, **how: Any) -> Answer:
    """Forward and backward; `how` is `emulated`'s, as in all that follow."""
    with emulated(**how) as emulator:
        return Answer(fused(problem, "triton"), emulator.kernels)


def again(problem: Problem, times: int, **how: Any) -> list[Result]:
    """The same call over and over, with the same scratch."""
    with emulated(**how):
        return [fused(problem, "triton") for _ in range(times)]


def side_by_side(problems: list[Problem], **how: Any) -> list[Result]:
    """Calls on streams of their own, whose launches are under way at once."""
    streams, results = [], []
    with emulated(**how) as emulator:
        for problem in problems:
            triton_launch._scratches.__dict__.clear()  # a stream has its own
            emulator.later = []
            results.append(fused(problem, "triton"))
            streams.append(emulator.later)
        together(streams, emulator.draw or random.Random(0))
    return results


def edited(
    problem: Problem, kernel: str, pattern: str, text: str, most: int, **how: Any
) -> list[str]:
    """What is wrong with a call once a pattern in a kernel has been replaced, at a place at a time.

    "" where nothing is. So many places at the most, evenly over the kernel.
    """
    places: list[int] = []

    def edit(ptx: str) -> str:
        if f".entry {kernel}(" not in ptx:
            return ptx
        matches = list(re.finditer(pattern, ptx, re.MULTILINE))
        places[:] = range(0, len(matches), -(-len(matches) // most) or 1)
        chosen = matches[places[len(found)]]
        return ptx[: chosen.start()] + chosen.expand(text) + ptx[chosen.end() :]

    found: list[str] = []
    while not found or len(found) < len(places):
        try:
            call(problem, edit=edit, **how)
            found.append("")
        except Misuse as misuse:
            found.append(misuse.what)
    return found
