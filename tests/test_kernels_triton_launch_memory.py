"""What a step asks for beside the gradients that it returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _asserts import ALLOCATIONS
from torch.utils._python_dispatch import TorchDispatchMode

import fused_loss
from fused_loss import combined_loss
from fused_loss.bench.calls import launches_go_to
from fused_loss.bench.steps import passed_on
from fused_loss.kernels import triton_launch


class Allocated(TorchDispatchMode):
    """How many bytes are asked for within the block."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ALLOCATIONS:
            self.bytes += result.numel() * result.element_size()
        return result


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("samples", "classes", "columns"),
    [(1 << 20, 2, 16), (1 << 17, 1000, 16), (1 << 16, 10, 256), (4096, 262144, 1), (1, 262144, 1)],
)
def test_beside_the_gradients_a_step_asks_for_less_than_a_mebibyte(
    samples: int, classes: int, columns: int, inplace: bool
) -> None:
    """On tensors without memory, as an H200 would have them; scratch that is kept is in it."""
    z = torch.empty(samples, classes, dtype=torch.bfloat16, device="meta", requires_grad=True)
    r = torch.empty(samples, columns, device="meta", requires_grad=True)
    y, t = torch.empty_like(r), torch.empty(samples, dtype=torch.int64, device="meta")
    with launches_go_to(lambda *launch: None), fused_loss.backend("triton"):
        for _ in range(2):  # the first one makes the plan, of tensors that have no memory anywhere
            triton_launch._scratches.__dict__.pop("known", None)
            with Allocated() as log:
                combined_loss(r, passed_on(z), y, t, inplace_gradient=inplace).backward()
            r.grad = z.grad = None
    gradients = r.numel() * 4 + (0 if inplace else z.numel() * 2)
    assert gradients <= log.bytes < gradients + (1 << 20)
