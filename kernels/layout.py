"""Strides: how the kernels see tensors of any rank and layout, without moving them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Matrix(NamedTuple):
    """A tensor seen as (N, D): element (n, d) at n·stride_n + d·stride_d."""

    tensor: Tensor | None  # None: an absent head
    rows: int = 0
    columns: int = 1
    stride_n: int = 0
    stride_d: int = 0

    @property
    def flat(self) -> bool:
        """Whether element n·D + d lies at offset n·D + d."""
        return self.tensor is not None and self.tensor.is_contiguous()

    def strides(self, name: str) -> dict[str, int]:
        """The kernel's strides, by the name of its argument."""
        return {f"{name}_stride_n": self.stride_n, f"{name}_stride_d": self.stride_d}


class Rows(NamedTuple):
    """A tensor seen as (N, C, S): a row of C classes for each of the N·S positions."""

    tensor: Tensor | None  # None: an absent head
    samples: int = 0
    classes: int = 1
    positions: int = 1  # S, a sample
    stride_n: int = 0
    stride_c: int = 0
    stride_s: int = 0

    def strides(self, name: str) -> dict[str, int]:
        """The kernel's strides, by the name of its argument."""
        return {
            f"{name}_stride_n": self.stride_n,
            f"{name}_stride_c": self.stride_c,
            f"{name}_stride_s": self.stride_s,
        }


def matrix(tensor: Tensor) -> Matrix:
    """(N, *) as (N, D); copied only where no single stride spans the dimensions after the first."""
    if tensor.dim() == 0:
        return Matrix(tensor, 1, 1, 0, 0)
    if tensor.dim() == 1:
        return Matrix(tensor, tensor.shape[0], 1, tensor.stride(0), 0)
    stride = _merged(tensor.shape[1:], tensor.stride()[1:]) if tensor.numel() else 0
    if stride is None:
        return matrix(tensor.contiguous())
    columns = tensor.shape[1:].numel()
    return Matrix(tensor, tensor.shape[0], columns, tensor.stride(0), stride)


def rows(tensor: Tensor) -> Rows:
    """(C,), (N, C) or (N, C, d1, ...) as (N, C, S); copied where the d's have no single stride."""
    if tensor.dim() == 1:
        return Rows(tensor, 1, tensor.shape[0], 1, 0, tensor.stride(0), 0)
    n, c, *spatial = tensor.shape
    stride_n, stride_c, *strides = tensor.stride()
    stride = _merged(spatial, strides) if tensor.numel() else 0
    if stride is None:
        return rows(tensor.contiguous())
    return Rows(tensor, n, c, torch.Size(spatial).numel(), stride_n, stride_c, stride)


def index_rows(tensor: Tensor) -> Rows:
    """Class indices (), (N,) or (N, d1, ...) as (N, S), in the form of their logits."""
    seen = matrix(tensor)
    return Rows(seen.tensor, stride_n=seen.stride_n, stride_s=seen.stride_d)


def gradient_like(tensor: Tensor, merged: int) -> Tensor:
    """An uninitialised gradient: dense, and in a layout that is seen uncopied.

    Args:
        tensor: What it is the gradient of; its strides are kept if they can be.
        merged: The first dimension of those that share a stride: 1 for `matrix`, 2 for `rows`, 0
            where all of it is one sample.
    """
    gradient = torch.empty_like(tensor)
    if _merged(gradient.shape[merged:], gradient.stride()[merged:]) is None:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return gradient


def dense(tensor: Tensor) -> bool:
    """Whether it fills its memory without a gap, in whatever order of its dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _merged(shape: tuple[int, ...] | list[int], strides: tuple[int, ...] | list[int]) -> int | None:
    """The stride of these dimensions as one, 0 if they have one element, None if there is none."""
    merged: int | None = None
    expected = 0
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size == 0:
            return 0
        if size == 1:
            continue
        if merged is None:
            merged = stride
        elif stride != expected:
            return None
        expected = stride * size
    return merged or 0
