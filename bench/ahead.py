"""Compiles the launches of a call for GPUs that are not there, and reads what came out.

Run as a module this is a worker: a line of JSON in, a line of JSON out. It runs without
TRITON_INTERPRET, and Triton's own JIT decides what is specialised, as it does before a launch.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from fused_loss.bench.calls import Call, launches_go_to
from fused_loss.bench.sass import Work, work

SM_90 = ("cuda", 90, 32)
GFX942 = ("hip", "gfx942", 64)
REGISTERS = 65536  # of a multiprocessor

Variant = tuple[str, tuple[tuple[str, Any], ...]]


class Access(NamedTuple):
    """Loads or stores of global memory through one of the kernel's pointers."""

    pointer: str  # "z_ptr"
    kind: str  # "ld", "st"; "cp": a load into shared memory, ahead of its use
    bits: int  # that one instruction moves for a thread
    number: int  # of instructions


class Code(NamedTuple):
    """What the compiler made of one launch."""

    kernel: str
    variant: list[Any]
    programs: int
    registers: int
    shared: int  # bytes a program
    spilled: int  # bytes a thread for which there is no register: stack and local memory
    unforced: int  # bytes that ptxas spills unforced, to fit one more block on a multiprocessor
    accesses: list[Access]
    wide_loads: int  # LDG.E.128 and LDGSTS.E.128 in the machine code
    work: Work  # of its loop over rows of logits


class Compiler:
    """The worker, seen from a test."""

    def __init__(self, folder: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment["TRITON_CACHE_DIR"] = str(folder / "cache")
        environment["PYTHONPATH"] = os.pathsep.join(
            str(Path(path).absolute())
            for path in environment.get("PYTHONPATH", "").split(os.pathsep)
            if path
        )
        self.log = (folder / "worker.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fused_loss.bench.ahead"],
            cwd=folder,  # where no folder has the package's name
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )

    def compile(
        self, call: Call, target: tuple[str, Any, int], candidate: int = 0, listing: bool = True
    ) -> list[Code]:
        """Compile each launch of the call, in their order.

        Args:
            call: A public call.
            target: `SM_90` or `GFX942`.
            candidate: Which tile, of those that a trial would try, where there are so many; the
                first is the launch table's.
            listing: Whether to read the machine code too: half of the time goes there. Without,
                `wide_loads` and `work` are empty.

        Raises:
            RuntimeError: It does not compile; the message is the compiler's.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps([call, target, candidate, listing]) + "\n")
            self.process.stdin.flush()
        codes = json.loads(self.process.stdout.readline() or '"the compiler has died"')
        if isinstance(codes, str):
            self.log.seek(0)
            raise RuntimeError(f"{codes}\n{self.log.read()[-4000:]}")
        return [
            Code(*code)._replace(accesses=[Access(*a) for a in code[7]], work=Work(*code[9]))
            for code in codes
        ]

    def close(self) -> None:
        """End the worker."""
        with suppress(BrokenPipeError):
            self.process.communicate()
        self.log.close()


# --- the worker -----------------------------------------------------------------------------------


class _Driver:
    """A GPU of which only the architecture is known."""

    def __init__(self) -> None:
        self.targets: list[Any] = []
        self.current = 0

    def choose(self, target: Any) -> None:
        if target not in self.targets:
            self.targets.append(target)
        self.current = self.targets.index(target)

    def get_current_device(self) -> int:
        return self.current

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.targets[self.current]


def _compile(
    driver: _Driver, call: Call, target: tuple[str, Any, int], candidate: int, listing: bool
) -> list[Code]:
    from triton.backends.compiler import GPUTarget

    from fused_loss.kernels import triton_autotune, triton_plan

    driver.choose(GPUTarget(*target))
    codes = []

    def launch(made: Any, arguments: dict[str, Any]) -> None:
        kernel, warps = made.kernel, made.warps
        options = {"grid": (made.programs,), "warmup": True, "num_warps": warps}
        options |= {"enable_fp_fusion": True, **arguments}
        compiled = kernel.run(**options)
        name, constexprs = variant(kernel, warps, arguments)
        shown = [[key, value if _is_json(value) else str(value)] for key, value in constexprs]
        if target == SM_90:
            read = _read_cubin(kernel, options, compiled, listing)
        else:
            read = _read_amdgcn(compiled)
        codes.append(Code(name, shown, made.programs, *read))

    def choose(plan: Any, again: Any, run: Any) -> Any:
        tiles = triton_autotune.candidates(plan.main)
        return again(tiles[candidate]) if candidate < len(tiles) else plan

    triton_plan.recall.cache_clear()
    with (
        launches_go_to(launch),
        mock.patch.multiple(triton_autotune, ENABLED=candidate > 0, _choose=choose),
    ):
        call.run()
    return codes


def variant(kernel: Any, warps: int, arguments: dict[str, Any]) -> Variant:
    """The variant that a launch with these arguments runs: its constexprs and its warps."""
    values = [(name, arguments[name]) for name in _constexprs(kernel.fn)]
    return kernel.fn.__name__, (*values, ("warps", warps))


@functools.cache
def _constexprs(function: Any) -> tuple[str, ...]:
    import triton.language as tl

    annotations = inspect.signature(function).parameters.values()
    return tuple(p.name for p in annotations if p.annotation is tl.constexpr)


def _read_cubin(
    kernel: Any, options: dict[str, Any], compiled: Any, listing: bool
) -> tuple[Any, ...]:
    registers, stack = _usage(compiled)
    spilled = 0
    if stack:  # by choice, if they vanish where no block but this one has to fit
        all_registers = min(255, REGISTERS // (32 * options["num_warps"]))
        _, spilled = _usage(kernel.run(**options, maxnreg=all_registers))
    shown = _disassembly(compiled.asm["cubin"]) if listing else ""
    wide = len(re.findall(r"\bLDG(?:STS)?\.E\S*\.128\b", shown))
    shared = compiled.metadata.shared
    return registers, shared, spilled, stack - spilled, _accesses(compiled), wide, work(shown)


def _is_json(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _usage(compiled: Any) -> tuple[int, int]:
    """Registers and spilled bytes, a thread."""
    from triton import knobs

    cuobjdump = knobs.nvidia.cuobjdump.path
    usage = _inspect(compiled.asm["cubin"], cuobjdump, "--dump-resource-usage")
    used = {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", usage)}
    return used["REG"], used["STACK"] + used["LOCAL"]


@functools.lru_cache(maxsize=16)  # it takes most of a second, and calls share their small kernels
def _disassembly(cubin: bytes) -> str:
    from triton import knobs

    return _inspect(cubin, knobs.nvidia.nvdisasm.path, "-c", "-g")


def _inspect(cubin: bytes, *command: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [*command, file.name], check=True, capture_output=True, text=True
        ).stdout


def _accesses(compiled: Any) -> list[Access]:
    """By pointer, from PTX, whose widths ptxas keeps: each address traced back to a parameter."""
    ptx = compiled.asm["ptx"]
    names = [name for name, kind in compiled.src.signature.items() if kind != "constexpr"]
    origin: dict[str, str] = {}  # register -> pointer
    for register, index in re.findall(r"ld\.param\.b64\s+(%rd\d+), \[\w+_param_(\d+)\]", ptx):
        if int(index) < len(names) and names[int(index)].endswith("_ptr"):
            origin[register] = names[int(index)]
    computed = [
        (registers[0], registers[1:])
        for line in ptx.splitlines()
        if not re.search(r"\b(ld|st|atom)\.", line) and (registers := re.findall(r"%rd\d+", line))
    ]
    known = 0
    while known < len(origin):  # a loop hands an address back to its own beginning
        known = len(origin)
        for register, sources in computed:
            for source in sources:
                if source in origin:
                    origin.setdefault(register, origin[source])
    found: Counter[tuple[str, str, int]] = Counter()
    ahead = r"cp\.async\.c[ag]\.shared\.global \[.*?\], \[ *(%rd\d+).*?\], (0x\w+)"
    for register, size in re.findall(ahead, ptx):  # into shared memory, for the next iteration
        found[origin[register], "cp", 8 * int(size, 16)] += 1
    access = r"\b(ld|st)\.global\S*?(?:\.v(\d))?\.[bfus](\d+)\s.*\[ *(%rd\d+)"
    for kind, length, bits, register in re.findall(access, ptx):
        found[origin[register], kind, int(length or 1) * int(bits)] += 1
    return [Access(*key, count) for key, count in found.items()]


def _read_amdgcn(compiled: Any) -> tuple[Any, ...]:
    found = re.findall(r"\.(\w+): +(\d+)$", compiled.asm["amdgcn"], re.MULTILINE)
    used = {key: int(value) for key, value in found}
    shared = compiled.metadata.shared
    return used["vgpr_count"], shared, used["private_segment_fixed_size"], 0, [], 0, Work()


def _work() -> None:
    from triton.runtime import driver as active

    driver = _Driver()
    active.set_active(driver)
    answers, sys.stdout = sys.stdout, sys.stderr  # what Triton prints is no answer
    for question in sys.stdin:
        call, target, candidate, listing = json.loads(question)
        try:
            answer: Any = _compile(driver, Call(*call), tuple(target), candidate, listing)
        except Exception:
            answer = traceback.format_exc()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _work()
