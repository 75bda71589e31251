"""The rule by which a provider is right: its outputs against float64.

Of each output, two errors count:

    norm = ‖out - ref‖ / ‖ref‖            max = max|out - ref| / max|ref|

and each may be twice what eager PyTorch has on these inputs, or, where that is more, one unit in
the last place of the output (its rounding) and eight of the arithmetic (at least float32).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Error(NamedTuple):
    """The distance of one output from the reference."""

    norm: float
    max: float


Errors = dict[str, Error]  # by output


def allowance(of_eager: Errors, outputs: Mapping[str, Any]) -> Errors:
    """What the errors of these outputs may be; computed, see the module."""
    allowed = {}
    for name, output in outputs.items():
        dtype = torch.as_tensor(output).dtype
        arithmetic = torch.promote_types(dtype, torch.float32)
        rounding = torch.finfo(dtype).eps + 8 * torch.finfo(arithmetic).eps
        peer = of_eager.get(name, Error(0.0, 0.0))
        allowed[name] = Error(*(max(2 * value, rounding) for value in peer))
    return allowed


def complaint(found: Errors, allowed: Errors) -> str | None:
    """The first output that is wrong, in words, or None. NaN is wrong."""
    for name, error in found.items():
        for measure, value, most in zip(Error._fields, error, allowed[name], strict=True):
            if not value <= most:
                return f"{name}: {measure} error {value:.1e} > {most:.1e}"
    return None


class Distance:
    """Sums over blocks of an output; nothing is read from the device before the end."""

    def __init__(self) -> None:
        self.blocks: list[Tensor] = []

    def add(self, output: Tensor, reference: Tensor) -> None:
        """Another block of the output, and what it should be in float64."""
        difference = output.detach().double() - reference
        self.blocks.append(
            torch.stack(
                [
                    difference.square().sum(),
                    reference.square().sum(),
                    difference.abs().amax(),
                    reference.abs().amax(),
                ]
            )
        )

    def error(self) -> Error:
        """Over all blocks."""
        blocks = torch.stack(self.blocks)
        (squares, of_reference), (largest, at_most) = blocks[:, :2].sum(0), blocks[:, 2:].amax(0)
        return Error(_ratio(squares.sqrt(), of_reference.sqrt()), _ratio(largest, at_most))


def _ratio(error: Tensor, reference: Tensor) -> float:
    return 0.0 if error == 0 else float(error / reference)
