"""What a GPU is asked for in tests: a captured graph, and how many kernels it has seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def captured(step: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """The step as a CUDA graph, warmed up on a stream of its own, and what a replay writes to."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    return graph, outputs


def device_kernels(step: Callable[[], Any]) -> tuple[int, Any]:
    """How many kernels, copies and fills the device ran in a step; and what the step gave."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as record:
        result = step()
        torch.cuda.synchronize()
    on_device = [e for e in record.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return len(on_device), result
