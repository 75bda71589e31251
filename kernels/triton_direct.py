"""Launching what Triton has compiled already, without asking it again which code that is.

`kernel[grid](...)` looks at each of some seventy arguments, at every launch, to find the machine
code that fits them. A plan's arguments never change but for addresses, and of an address Triton's
code for NVIDIA depends on one thing alone: whether 16 divides it. So what was compiled is
remembered by that, and started again by Triton's own `CompiledKernel[grid](...)`, which takes all
arguments in the kernel's order. It is asked anew in its interpreter, for AMD, whose code depends on
the size of a tensor's storage too, and where somebody watches the launches of the kernel.

Triton's own settings (`triton.knobs`) count as they were at the first launch of a plan.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from triton.compiler import CompiledKernel

ALIGNMENT = 16  # bytes

Code = dict[int, Any]  # CompiledKernel, by the pointers that are aligned, a bit each


def start(
    kernel: Any, programs: int, warps: int, arguments: dict[str, Any], code: Code | None
) -> None:
    """Launch a kernel, as fast as `code`, what is known of its machine code, allows."""
    if code is None or not _remembers(kernel):
        _asked(kernel, programs, warps, arguments)
        return
    key = aligned(arguments)
    compiled = code.get(key)
    if compiled is not None:
        compiled[programs, 1, 1](*arguments.values())
        return
    compiled = _asked(kernel, programs, warps, arguments)
    if isinstance(compiled, CompiledKernel):
        code[key] = compiled


def _asked(kernel: Any, programs: int, warps: int, arguments: dict[str, Any]) -> Any:
    # Fused multiply-add, as Triton has always compiled; said aloud, 3.9 warns where it is not.
    return kernel[(programs,)](**arguments, num_warps=warps, enable_fp_fusion=True)


def _remembers(kernel: Any) -> bool:
    return isinstance(kernel, triton.JITFunction) and not kernel.pre_run_hooks and CUDA


CUDA = torch.version.hip is None


def aligned(arguments: dict[str, Any]) -> int:
    """Which of the pointers, which come first in every kernel, are aligned: a bit each."""
    bits = 1
    for value in arguments.values():
        if value is None:
            bits *= 2
        elif isinstance(value, torch.Tensor):
            bits = 2 * bits + (value.data_ptr() % ALIGNMENT == 0)
        else:
            return bits
    return bits
