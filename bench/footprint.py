"""What one call costs besides time, read from PyTorch's profiler.

The memory is the most that was allocated at once beyond what the call began with: on a CPU summed
over the allocator's own events, on a GPU its peak counter. Outputs count; inputs do not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from fused_loss.bench.programs import Program

CALL = "fused_loss.bench call"
# Calls of the CUDA runtime after which the host has waited for the GPU. A copy to pageable host
# memory waits too, and shows as cudaStreamSynchronize.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
NO_KERNELS = ("Memcpy", "Memset")


@dataclass(frozen=True)
class Footprint:
    """Of one warm call.

    Attributes:
        peak_bytes: The most memory held at once, beyond the inputs.
        operators: PyTorch operators dispatched, those within others included.
        launches: GPU kernels, or None on a CPU.
        synchronisations: Times that the host waited for the GPU, or None on a CPU.
    """

    peak_bytes: int
    operators: int
    launches: int | None
    synchronisations: int | None


def footprint(program: Program, inputs: Any, device: torch.device) -> Footprint:
    """Run one call of a warm program under the profiler."""
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu
    if gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if gpu else 0
    profiler = profile(activities=activities, profile_memory=not gpu)
    with _quiet(), profiler, record_function(CALL):
        program(inputs)
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    operators = sum(event.name().startswith("aten::") for event in events)
    if not gpu:
        return Footprint(_peak(events), operators, None, None)
    peak = torch.cuda.max_memory_allocated(device) - before
    kernels = [e for e in events if e.device_type() == torch.autograd.DeviceType.CUDA]
    launches = sum(not event.name().startswith(NO_KERNELS) for event in kernels)
    return Footprint(peak, operators, launches, _waits(events))


def _waits(events: Any) -> int:
    """The host's waits within the call: the profiler itself waits after it."""
    call = next(event for event in events if event.name() == CALL)
    end = call.start_ns() + call.duration_ns()
    return sum(event.name() in WAITS and event.start_ns() < end for event in events)


def _peak(events: Any) -> int:
    """The largest running sum over allocations and releases, in bytes."""
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = most = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        most = max(most, held)
    return most


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the profiler's own lines, which its C++ writes on stderr."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
