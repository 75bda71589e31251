"""Two processes under DistributedDataParallel find the gradient that one finds for all rows."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import _processes
import pytest
import torch
from torch import Tensor

from fused_loss import backend, combined_loss

SECONDS = 100  # until a process that hangs is ended
# They meet in a file and talk over the loopback device: no free port, no host name to resolve.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("processes")
    ranks = range(len(_processes.SHARES))
    running = [
        subprocess.Popen(
            [sys.executable, _processes.__file__, str(rank), str(folder)],
            env=os.environ | LOOPBACK,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ranks
    ]
    try:
        said = [process.communicate(timeout=SECONDS)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    return [torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in ranks]


def one_process() -> tuple[Tensor, Tensor]:
    """Loss and gradient of the whole batch."""
    module = _processes.model()
    x, y, t = _processes.whole()
    with backend("reference"):
        loss = combined_loss(*module(x), y, t, **_processes.OPTIONS)
    loss.backward()
    return loss.detach(), _processes.gradients(module)


def near(ours: Tensor, truth: Tensor) -> bool:
    """Equal but for the order of sums of at most so many terms."""
    x, y, _ = _processes.whole()
    terms = x.numel() + y.numel()
    error = (ours - truth).abs().max()
    return bool(error <= terms * torch.finfo(truth.dtype).eps * truth.abs().max())


@pytest.mark.parametrize("name", _processes.BACKENDS)
def test_two_processes_equal_one(found: list[dict[str, Any]], name: str):
    loss, gradient = one_process()
    losses = torch.stack([process[name]["loss"] for process in found])
    assert near(losses.mean(), loss)
    assert losses[0] != losses[1]
    for process in found:
        assert near(process[name]["gradients"], gradient)


def test_a_mean_of_means_is_something_else(found: list[dict[str, Any]]):
    _, gradient = one_process()
    for process in found:
        assert not near(process["mean of means"]["gradients"], gradient)


def test_a_group_counts_its_own_processes(found: list[dict[str, Any]]):
    assert found[0]["alone"]["found"].tolist() == [2, 6]
    assert found[1]["alone"] == {
        "error": "group does not contain this process: call across() within it only"
    }
