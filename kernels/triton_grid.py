"""What every plan is made of: grids, launches but for their pointers, tensors without memory."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

INTERPRETER_PROCESSORS = 2
PLANS = 512  # signatures that are remembered, each with a few kilobytes

Signature = tuple[torch.Size, tuple[int, ...], torch.dtype]


@functools.cache
def processors(device: torch.device) -> int:
    """How many multiprocessors a device has."""
    if device.type == "cpu":
        return INTERPRETER_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def programs(tiles: int, resident: int, device: torch.device) -> int:
    """So many a multiprocessor at the most: each walks its tiles in a loop."""
    return max(1, min(tiles, processors(device) * resident))


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. (Triton's own takes ten times as long on the host.)"""
    return -(-a // b)


class Launch:
    """One launch but for its pointers: `arguments` has all, in the order of the kernel's own."""

    __slots__ = ("arguments", "code", "device", "kernel", "programs", "warps")

    def __init__(
        self, kernel: Any, programs: int, device: torch.device, warps: int, **arguments: Any
    ) -> None:
        self.kernel, self.programs, self.device, self.warps = kernel, programs, device, warps
        self.arguments: dict[str, Any] = {name: arguments.get(name) for name in kernel.arg_names}
        unknown = arguments.keys() - self.arguments.keys()
        assert not unknown, f"{kernel.arg_names} has no {unknown}"
        self.code: dict[int, Any] = {}  # what Triton compiled of it, by the pointers' alignment


def stand_in(signature: Signature | None) -> Tensor | None:
    """A tensor without memory, in place of any with this signature."""
    if signature is None:
        return None
    shape, strides, dtype = signature
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
