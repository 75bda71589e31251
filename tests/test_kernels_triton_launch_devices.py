"""Which device a launch is made on, and whose scratch it takes: of CUDA as the launcher asks it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
import triton.language as tl

from fused_loss.kernels import triton_direct, triton_launch, triton_table
from fused_loss.kernels.triton_grid import Launch
from fused_loss.kernels.triton_scale import scale_kernel

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


class Cuda:
    """Two devices: which one is current, their streams, and what was started where."""

    def __init__(self) -> None:
        self.current, self.streams, self.capturing = 0, {0: 70, 1: 71}, False
        self.started: list[int] = []

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device.index
        try:
            yield
        finally:
            self.current = before

    def start(self, *launch: object) -> None:
        self.started.append(self.current)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake = Cuda()
    for name, value in (
        ("current_device", lambda: fake.current),
        ("device", fake.on),
        ("is_current_stream_capturing", lambda: fake.capturing),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    streams = mock.patch.object(
        torch._C, "_cuda_getCurrentRawStream", fake.streams.__getitem__, create=True
    )
    monkeypatch.setattr(triton_direct, "start", fake.start)
    monkeypatch.setattr(triton_launch, "_new_scratch", _scratch_without_memory)
    monkeypatch.setattr(triton_launch, "_scratches", type(triton_launch._scratches)())
    with streams:
        yield fake


def _scratch_without_memory(
    device: torch.device, dtype: torch.dtype, partials: int
) -> triton_launch.Scratch:
    found = torch.empty(partials, device="meta")
    return triton_launch.Scratch(found, found, found, found, found, found)


@pytest.mark.parametrize(("device", "current"), [(FIRST, 0), (FIRST, 1), (SECOND, 0), (SECOND, 1)])
def test_a_launch_is_made_on_the_device_of_its_tensors(device, current, cuda):
    """And leaves the current one as it was."""
    cuda.current = current
    variant = {"IN_PLACE": True, "ACC": tl.float32, "BLOCK": triton_table.SCALE_BLOCK}
    made = Launch(scale_kernel, 1, device, 4, **variant)
    triton_launch.launch(made, made.arguments)
    assert (cuda.started, cuda.current) == ([device.index], current)


def test_a_device_a_stream_a_dtype_and_a_thread_have_scratch_of_their_own(cuda):
    def scratch(device: torch.device, dtype: torch.dtype = torch.float32) -> triton_launch.Scratch:
        return triton_launch._scratch(device, dtype, 8)

    one = scratch(FIRST)
    assert scratch(FIRST) is one
    others = [scratch(SECOND), scratch(FIRST, torch.float64)]
    cuda.streams[0] = 75
    others.append(scratch(FIRST))
    thread = threading.Thread(target=lambda: others.append(scratch(FIRST)))
    thread.start()
    thread.join()
    assert len({id(found) for found in (one, *others)}) == 5
    cuda.streams[0] = 70
    assert scratch(FIRST) is one


def test_a_capture_has_scratch_that_no_other_launch_takes(cuda):
    """A graph may be replayed on any stream."""
    one = triton_launch._scratch(FIRST, torch.float32, 8)
    cuda.capturing = True
    captured = [triton_launch._scratch(FIRST, torch.float32, 8) for _ in range(2)]
    cuda.capturing = False
    assert triton_launch._scratch(FIRST, torch.float32, 8) is one
    assert len({id(found) for found in (one, *captured)}) == 3


def test_scratch_grows_and_never_shrinks(cuda):
    small = triton_launch._scratch(FIRST, torch.float32, 8)
    assert len(small.partials) >= triton_launch.PARTIALS
    large = triton_launch._scratch(FIRST, torch.float32, triton_launch.PARTIALS + 1)
    assert len(large.partials) > triton_launch.PARTIALS
    assert triton_launch._scratch(FIRST, torch.float32, 8) is large
