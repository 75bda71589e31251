"""Calls that go through Triton's own launcher, into a driver that only keeps what it is given.

Each parameter that reaches the driver is held to the argument of the kernel that it is, byte for
byte, in the order and the sizes that the machine code has them. Run with TRITON_LIBCUDA_PATH at the
folder of that driver (see `_driver.c`); JSON on stdout.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import struct
from pathlib import Path
from typing import Any

from _relaunch import Driver, Watch, step
from triton.runtime import driver as active

from fused_loss.kernels import triton_direct

FAKE = ctypes.CDLL(str(Path(os.environ["TRITON_LIBCUDA_PATH"], "libcuda.so.1")), ctypes.RTLD_GLOBAL)
FAKE.launched.restype = ctypes.POINTER(ctypes.c_long)
FAKE.parameter.restype = ctypes.POINTER(ctypes.c_char)
FORMATS = {"i1": "?", "i8": "b", "i32": "i", "i64": "q", "fp32": "f", "fp64": "d"}
STREAM = 4242


def real_driver() -> Driver:
    """Triton's launcher and the library under it, on a device that is not there."""
    from triton.backends.nvidia.driver import CudaLauncher, CudaUtils

    class Real(Driver):
        launcher_cls = CudaLauncher
        real = CudaUtils()
        utils = real

        def get_current_stream(self, device: int) -> int:
            return STREAM

    return Real()


def sizes(compiled: Any) -> list[int]:
    """Of the parameters of its machine code, in bytes."""
    head = compiled.asm["ptx"].partition(".entry")[2].partition("{")[0]
    return [int(bits) // 8 for bits in re.findall(r"\.param \.[a-z](\d+)", head)]


def wanted(compiled: Any, arguments: dict[str, Any]) -> list[tuple[str, bytes]]:
    """The arguments that the machine code takes."""
    packed = []
    for name, kind in compiled.src.signature.items():
        value = arguments[name]
        if kind == "constexpr":
            continue
        if kind.startswith("*"):
            packed.append((name, struct.pack("Q", 0 if value is None else value.data_ptr())))
        else:
            packed.append((name, struct.pack(FORMATS[kind], value)))
    return packed


class Real(Watch):
    """Counts the launches, and what reached the driver otherwise than it was meant to."""

    swapped: tuple[str, ...] = ()  # arguments that are to take each other's place

    def mixed(self, arguments: dict[str, Any]) -> dict[str, Any]:
        there = [name for name in self.swapped if name in arguments]
        return arguments | dict(zip(there, (arguments[n] for n in reversed(there)), strict=True))

    def start(self, call: Any, arguments: Any) -> None:
        self.launches += 1
        compiled = call.code.get(triton_direct.aligned(arguments))
        if compiled is None:  # so that it is known what the driver is about to be given
            options = {"num_warps": call.warps, "enable_fp_fusion": True}
            compiled = call.kernel.warmup(**arguments, **options, grid=(call.programs,))
        expected, room = wanted(compiled, arguments), sizes(compiled)
        FAKE.expect(len(room), (ctypes.c_int * len(room))(*room))
        before = FAKE.launched()[0]
        self._start(call, self.mixed(arguments))
        launches, *seen = FAKE.launched()[:5]
        name = call.kernel.fn.__name__
        told = [call.programs, 32 * call.warps, compiled.metadata.shared, STREAM]
        if (launches, seen) != (before + 1, told):
            self.wrong.append(f"{name}: {seen} for {told}")
        if len(room) < len(expected):
            self.wrong.append(f"{name}: {len(room)} parameters for {len(expected)}")
        for i, (argument, value) in enumerate(expected):
            found = FAKE.parameter(i)[: room[i]]
            if found != value:
                self.wrong.append(f"{name}.{argument}: {found!r} for {value!r}")


def main() -> None:
    """What each call did, by name."""
    active.set_active(real_driver())
    watch = Real()
    steps = {
        "first": step(),
        "again": step(alpha=0.25),
        "a normalizer": step(n=101, classification_normalizer=4.5),
        "none": step(reduction="none", label_smoothing=0.1),
    }
    found = {name: watch.run(call) for name, call in steps.items()}
    watch.swapped = "w_reg", "w_cls"
    found["mixed up"] = watch.run(step(alpha=0.25))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
