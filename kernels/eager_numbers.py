"""Cheap scalars and exact sums, for both heads of the eager backend.

Of small inputs the time is that of the operators dispatched. So what the host knows stays a Python
number until it meets a tensor, and a tensor is asked for its dtype before it is converted. On a CPU
a sum has the same bits for any number of threads: what PyTorch would split is summed by rows first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_loss.spec import in_dtype, number_in

FEW = 32  # a value a position in float64 is little beside a row of so many logits
LONG_SUM = 1 << 15  # elements; PyTorch splits longer sums among its threads
SUM_ROW = 1 << 9


def by_row(values: Any, dims: int) -> Any:
    """(N,) as (N, 1, ...) of `dims` dimensions; anything else as it is."""
    if isinstance(values, Tensor) and values.dim() == 1:
        return values.view(-1, *[1] * (dims - 1))
    return values


def value(tensor: Tensor) -> Any:
    """A 0-d tensor as a number, where reading it costs nothing: on a CPU."""
    return tensor.item() if tensor.is_cpu else tensor


def operand(values: Any, dtype: torch.dtype) -> Any:
    """A tensor or a number as an operator of this dtype takes it."""
    return in_dtype(values, dtype) if isinstance(values, Tensor) else number_in(values, dtype)


def number(
    scalar: float | None, tensor: Tensor | None, dtype: torch.dtype, device: torch.device
) -> Any:
    """A normalizer as what may be divided by: a number that is not 0, or 0-d; None without one."""
    known = scalar if tensor is None else value(in_dtype(tensor, dtype))
    if known is None or isinstance(known, Tensor) or known != 0:
        return known
    return torch.zeros((), dtype=dtype, device=device)


def number_of(labelled: Tensor, dtype: torch.dtype) -> Any:
    """How many are True: a number on a CPU; elsewhere 0-d, in a dtype that a quotient is to have.

    (A number over integers has PyTorch's default dtype.)
    """
    count = labelled.sum()
    return value(count if count.is_cpu else in_dtype(count, dtype))


def per_labelled(missing: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, *) bool -> (N,): how many elements of a sample are labelled, at least 1."""
    return (~missing).flatten(1).sum(1).clamp(min=1).to(dtype)


def sums_dtype(tensor: Tensor, dtype: torch.dtype, values: int = 0) -> torch.dtype:
    """That of losses and sums: on a CPU float64, where so many values are few beside the tensor."""
    few = values <= max(LONG_SUM, tensor.numel() // FEW)
    return torch.float64 if few and tensor.is_cpu else dtype


def total(values: Tensor) -> Any:
    """Σ of all elements: on a CPU in float64, and the same bits for any number of threads."""
    if not values.is_cpu:
        return values.sum()
    if values.numel() <= LONG_SUM:
        return in_dtype(values, torch.float64).sum().item()
    flat = values.reshape(-1)
    whole = flat.numel() // SUM_ROW * SUM_ROW
    return total(flat[:whole].view(-1, SUM_ROW).sum(1)) + total(flat[whole:])


def sum_of_parts(parts: list[Any]) -> Any:
    """Σ of what tiles add: numbers, or 0-d or (N,) tensors."""
    if len(parts) > 1 and isinstance(parts[0], Tensor):
        return torch.stack(parts).sum(0)
    return sum(parts[1:], start=parts[0])


def class_sums(values: Tensor, skip_nan: bool = False) -> Tensor:
    """(n, C, ...) -> (n, ...); a lone long row in pieces: PyTorch would split it among threads."""
    sum_of = torch.nansum if skip_nan else torch.sum
    row = values.shape[1]
    if not values.is_cpu or row <= LONG_SUM or values.numel() > row:
        return sum_of(values, 1)
    whole = row // SUM_ROW * SUM_ROW
    pieces = sum_of(values[:, :whole].unflatten(1, (-1, SUM_ROW)), 2)
    return class_sums(torch.cat((pieces, sum_of(values[:, whole:], 1, keepdim=True)), 1))


def weight_over(weight: Any, denominator: Any, normalizer: Any) -> Any:
    """weight / denominator, for a gradient: 0 where nothing is labelled.

    A `normalizer` of the caller's, which is then the denominator, does not say what is labelled.
    """
    if normalizer is not None:
        return weight / denominator
    if isinstance(denominator, Tensor):
        return torch.where(denominator == 0, 0.0, weight / denominator)
    return weight / denominator if denominator else 0.0


def mean_of(sum_of_all: Any, denominator: Any, of_nothing: float) -> Any:
    """The sum / denominator; where that is 0, and nothing labelled, the value for nothing."""
    if isinstance(denominator, Tensor):
        return torch.where(denominator == 0, of_nothing, sum_of_all / denominator)
    return sum_of_all / denominator if denominator else of_nothing
