"""A case's loss and gradients in float64: PyTorch's own two losses on the same inputs, taken in
blocks of samples so that no case is too large for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_loss.bench.cases import IGNORE_INDEX, Case, Inputs, Phase
from fused_loss.bench.verify import Distance, Errors

BLOCK_ELEMENTS = 1 << 24  # 128 MiB of float64
OUTPUTS = ("loss", "regression gradient", "classification gradient")


def errors(case: Case, phase: Phase, inputs: Inputs, outputs: tuple[Tensor, ...]) -> Errors:
    """How far a step's outputs, (loss,) or (loss, d loss/dr, d loss/dz), are from float64.

    Raises:
        ValueError: An output is missing, or has another shape or a gradient another dtype.
    """
    _check_form(inputs, outputs)
    distances = [Distance() for _ in outputs]
    loss = torch.zeros((), dtype=torch.float64, device=outputs[0].device)
    for name, block, part, gradient in _reference(case, inputs):
        loss += part
        if len(outputs) > 1:
            index = OUTPUTS.index(name)
            distances[index].add(outputs[index][block], gradient * phase.grad_output)
    distances[0].add(outputs[0], loss)
    return {name: distance.error() for name, distance in zip(OUTPUTS, distances, strict=False)}


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
