"""What the two runtimes are compared on: rows drawn from a seed in the scale of the example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fused_loss.export.signature import Tensors

# A batch size is run until it has shown this many rows: the largest value of one row alone says
# nothing of the head's scale.
ROWS_PER_SIZE = 8
STANDARD_ROWS = 64


@dataclass(frozen=True)
class Case:
    """One batch size and the inputs it is run on."""

    batch: int
    draws: tuple[Tensors, ...]


def drawn_cases(example: Tensors, sizes: Sequence[int], seed: int) -> Iterator[Case]:
    """Random inputs like `example`, for each batch size.

    A floating-point input takes whole rows of the example and adds normal noise of each position's
    own standard deviation over the rows (of the position's magnitude where it does not vary), so
    standardised and raw features both keep their scale. An integer or boolean input takes, position
    by position, values that the example holds there: no other value is known to be legal.
    """
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        runs = -(-ROWS_PER_SIZE // size) if size else 1
        yield Case(size, tuple(_draw(example, size, generator) for _ in range(runs)))


def data_cases(data: Tensors, sizes: Sequence[int], seed: int) -> Iterator[Case]:
    """The user's rows: a random choice for each size, then all of them in slices of the largest."""
    generator = torch.Generator().manual_seed(seed)
    rows = data[0].shape[0]
    for size in sizes:
        chosen = torch.randint(rows, (size,), generator=generator, device="cpu")
        yield Case(size, (tuple(tensor[chosen] for tensor in data),))
    for start in range(0, rows, max(sizes)):
        part = tuple(tensor[start : start + max(sizes)] for tensor in data)
        yield Case(part[0].shape[0], (part,))


def _draw(example: Tensors, size: int, generator: torch.Generator) -> Tensors:
    rows = torch.randint(example[0].shape[0], (size,), generator=generator, device="cpu")
    return tuple(
        _perturbed(tensor, rows, generator)
        if tensor.is_floating_point()
        else _mixed(tensor, size, generator)
        for tensor in example
    )


def _perturbed(tensor: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    values = tensor.double()
    noise = torch.randn(
        (len(rows), *tensor.shape[1:]), generator=generator, device="cpu", dtype=torch.float64
    )
    return (values[rows] + noise * _spread(values)).to(tensor.dtype)


def _spread(values: Tensor) -> Tensor:
    """(N, *) -> (*): the deviation at each position, of what is finite there."""
    finite = values.isfinite()
    known = values.where(finite, 0.0)
    count = finite.sum(0).clamp(min=1)
    mean = known.sum(0) / count
    deviation = (((known - mean).where(finite, 0.0) ** 2).sum(0) / count).sqrt()
    overall = known.square().mean().sqrt() if known.numel() else known.new_tensor(0.0)
    spread = deviation.where(deviation > 0, mean.abs())
    spread = spread.where(spread > 0, overall)
    return spread.where(spread > 0, 1.0)


def _mixed(tensor: Tensor, size: int, generator: torch.Generator) -> Tensor:
    rows = torch.randint(
        tensor.shape[0], (size, *tensor.shape[1:]), generator=generator, device="cpu"
    )
    return tensor.gather(0, rows)


def standard_example(
    shapes: dict[str, list[int | str]], dtypes: dict[str, np.dtype], seed: int
) -> Tensors:
    """Standard normal rows for a file's inputs, where no example is given.

    Raises:
        ValueError: An input that is not floating point, or a second symbolic axis: its legal values
            are not in the file.
    """
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        _standard_rows(name, shape, dtypes[name], generator) for name, shape in shapes.items()
    )


def _standard_rows(
    name: str, shape: list[int | str], dtype: np.dtype, generator: torch.Generator
) -> Tensor:
    sizes = [size for size in shape[1:] if isinstance(size, int)]
    if len(sizes) < len(shape) - 1 or not np.issubdtype(dtype, np.floating):
        raise ValueError(
            f"the file does not say what {name} may hold ({dtype} {shape}): "
            "give rows as example= or data="
        )
    rows = torch.randn(
        (STANDARD_ROWS, *sizes), generator=generator, device="cpu", dtype=torch.float64
    )
    return rows.to(torch.from_numpy(np.empty(0, dtype)).dtype)
