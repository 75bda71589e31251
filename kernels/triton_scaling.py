"""How stored gradients are scaled, worked out once for their signature."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from fused_loss.kernels import layout
from fused_loss.kernels.triton_grid import PLANS, Launch, Signature, cdiv, programs, stand_in
from fused_loss.kernels.triton_scale import scale_kernel
from fused_loss.kernels.triton_table import SCALE_BLOCK, SCALE_RESIDENT


class Scaling(NamedTuple):
    """How stored gradients are scaled.

    Attributes:
        launch: What takes those that are dense; None if none is.
        rows: Their places among the gradients, and what the kernel calls each of them.
        with_gaps: The places of the others.
    """

    launch: Launch | None
    rows: tuple[tuple[int, str], ...]
    with_gaps: tuple[int, ...]


def scaling(gradients: Sequence[Tensor | None], grad_output: Tensor, in_place: bool) -> Scaling:
    """How these gradients are scaled."""
    return recall(
        in_place,
        grad_output.dtype,
        grad_output.device,
        *[g if g is None else (g.shape, g.stride(), g.dtype) for g in gradients],
    )


@functools.lru_cache(PLANS)
def recall(
    in_place: bool, dtype: torch.dtype, device: torch.device, *signatures: Signature | None
) -> Scaling:
    """The same, by what it depends on."""
    there = [(place, g) for place, g in enumerate(map(stand_in, signatures)) if g is not None]
    dense = [(place, gradient) for place, gradient in there if layout.dense(gradient)]
    with_gaps = tuple(place for place, gradient in there if not layout.dense(gradient))
    if not dense:
        return Scaling(None, (), with_gaps)
    a, b = dense[0][1].numel(), dense[-1][1].numel() if len(dense) > 1 else 0
    launch = Launch(
        scale_kernel,
        programs(cdiv(max(a, b), 4 * SCALE_BLOCK), SCALE_RESIDENT, device),
        device,
        warps=4,
        a_elements=a,
        b_elements=b,
        IN_PLACE=in_place,
        BLOCK=SCALE_BLOCK,
        ACC=tl.float64 if torch.float64 in (dtype, *(g.dtype for _, g in dense)) else tl.float32,
    )
    names = ("ab",) if len(dense) == 1 else ("a", "b")  # one alone stands for both
    return Scaling(launch, tuple(zip((p for p, _ in dense), names, strict=True)), with_gaps)
