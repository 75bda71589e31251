"""Whether a provider computes the loss at all: its value and gradients against float64.

The reference is PyTorch's own two losses on the same inputs in float64, taken in blocks of samples
so that no case is too large for it. Of each output, two errors count:

    norm = ‖out - ref‖ / ‖ref‖            max = max|out - ref| / max|ref|

and each may be twice what PyTorch's eager loss has on these inputs, or, where that is more, one
unit in the last place of the output (its rounding) and eight of the arithmetic (at least float32).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_loss.bench.cases import IGNORE_INDEX, Case, Inputs, Phase
from fused_loss.bench.providers import PROVIDERS

BLOCK_ELEMENTS = 1 << 24  # 128 MiB of float64
OUTPUTS = ("loss", "regression gradient", "classification gradient")


class Error(NamedTuple):
    """The distance of one output from the reference."""

    norm: float
    max: float


Errors = dict[str, Error]  # by output


def errors(case: Case, phase: Phase, inputs: Inputs, outputs: tuple[Tensor, ...]) -> Errors:
    """How far a step's outputs, (loss,) or (loss, d loss/dr, d loss/dz), are from float64.

    Raises:
        ValueError: An output is missing, or has another shape or a gradient another dtype.
    """
    _check_form(inputs, outputs)
    distances = [_Distance() for _ in outputs]
    loss = torch.zeros((), dtype=torch.float64, device=outputs[0].device)
    for name, block, part, gradient in _reference(case, inputs):
        loss += part
        if len(outputs) > 1:
            index = OUTPUTS.index(name)
            distances[index].add(outputs[index][block], gradient * phase.grad_output)
    distances[0].add(outputs[0], loss)
    return {name: distance.error() for name, distance in zip(OUTPUTS, distances, strict=False)}


def eager_errors(case: Case, phase: Phase, inputs: Inputs) -> Errors:
    """PyTorch's own errors on this case; none where it is too large for the eager loss."""
    device = inputs.classification_output.device
    try:
        return errors(case, phase, inputs, PROVIDERS["eager"].program(case, phase, device)(inputs))
    except torch.OutOfMemoryError:
        return {}


def allowance(of_eager: Errors, outputs: tuple[Tensor, ...]) -> Errors:
    """What the errors of these outputs may be; computed, see the module."""
    allowed = {}
    for name, output in zip(OUTPUTS, outputs, strict=False):
        arithmetic = torch.promote_types(output.dtype, torch.float32)
        rounding = torch.finfo(output.dtype).eps + 8 * torch.finfo(arithmetic).eps
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


class _Distance:
    """Sums over blocks of an output; nothing is read from the device before the end."""

    def __init__(self) -> None:
        self.blocks: list[Tensor] = []

    def add(self, output: Tensor, reference: Tensor) -> None:
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
        blocks = torch.stack(self.blocks)
        (squares, of_reference), (largest, at_most) = blocks[:, :2].sum(0), blocks[:, 2:].amax(0)
        return Error(_ratio(squares.sqrt(), of_reference.sqrt()), _ratio(largest, at_most))


def _ratio(error: Tensor, reference: Tensor) -> float:
    return 0.0 if error == 0 else float(error / reference)


def _check_form(inputs: Inputs, outputs: tuple[Tensor, ...]) -> None:
    if len(outputs) not in (1, 3):
        raise ValueError(f"a step returns 1 or 3 tensors, got {len(outputs)}")
    if outputs[0].shape != ():
        raise ValueError(f"the loss must be 0-d, got shape {tuple(outputs[0].shape)}")
    sources = inputs.regression_output, inputs.classification_output
    for name, output, source in zip(OUTPUTS[1:], outputs[1:], sources, strict=False):
        if output.shape != source.shape or output.dtype != source.dtype:
            raise ValueError(
                f"the {name} must have shape {tuple(source.shape)} and dtype {source.dtype}, "
                f"got {tuple(output.shape)} and {output.dtype}"
            )


def _reference(case: Case, inputs: Inputs) -> Iterator[tuple[str, slice, Tensor, Tensor]]:
    """(output, samples, their part of the loss, their gradient), block by block in float64."""
    r, z = inputs.regression_output.detach(), inputs.classification_output.detach()
    y, t = inputs.regression_targets, inputs.classification_targets
    weight = None if inputs.class_weight is None else inputs.class_weight.double()
    denominator = _denominator(case, t, weight)
    for block in _blocks(r):
        leaf = r[block].double().requires_grad_()
        with torch.enable_grad():
            part = case.alpha * F.mse_loss(leaf, y[block].double(), reduction="sum") / r.numel()
        yield OUTPUTS[1], block, part.detach(), torch.autograd.grad(part, leaf)[0]
    for block in _blocks(z):
        leaf = z[block].double().requires_grad_()
        target = t[block].double() if case.soft_targets else t[block]
        with torch.enable_grad():
            total = F.cross_entropy(
                leaf, target, weight, reduction="sum", label_smoothing=case.label_smoothing
            )
            part = (1 - case.alpha) * total / denominator
        yield OUTPUTS[2], block, part.detach(), torch.autograd.grad(part, leaf)[0]


def _denominator(case: Case, targets: Tensor, weight: Tensor | None) -> Tensor | int:
    """What "mean" divides by: positions (probabilities), or the weights of the labelled classes."""
    if case.soft_targets:
        return math.prod(case.targets_shape)
    labelled = targets[targets != IGNORE_INDEX]
    return labelled.numel() if weight is None else weight[labelled].sum()


def _blocks(tensor: Tensor) -> Iterator[slice]:
    step = max(1, BLOCK_ELEMENTS // max(tensor[0].numel(), 1))
    for start in range(0, len(tensor), step):
        yield slice(start, start + step)
