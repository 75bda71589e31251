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

from fused_loss.kernels.triton_grid import Launch

ALIGNMENT = 16  # bytes

CUDA = torch.version.hip is None


def start(call: Launch, arguments: dict[str, Any]) -> None:
    """Launch a kernel, as fast as what is known of its machine code allows."""
    kernel = call.kernel
    if not (CUDA and isinstance(kernel, triton.JITFunction)) or kernel.pre_run_hooks:
        ask(call, arguments)
        return
    key = aligned(arguments)
    compiled = call.code.get(key)
    if compiled is not None:
        compiled[call.programs, 1, 1](*arguments.values())
        return
    compiled = ask(call, arguments)
    if isinstance(compiled, CompiledKernel):
        call.code[key] = compiled


def ask(call: Launch, arguments: dict[str, Any]) -> Any:
    """Launch a kernel through Triton; the machine code that it found, if it is to be had."""
    # Fused multiply-add, as Triton has always compiled; said aloud, 3.9 warns where it is not.
    options = {"num_warps": call.warps, "enable_fp_fusion": True}
    return call.kernel[(call.programs,)](**arguments, **options)


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
