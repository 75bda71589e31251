"""The module that is traced: the model between what was asked for before and after it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fused_loss.export.heads import Layout, picked
from fused_loss.export.options import Options
from fused_loss.export.signature import CLASSIFICATION, HEADS, LABEL, LOSS, REGRESSION, Tensors


class Before(nn.Module):
    """`(x - mean) / std` for the inputs that are scaled; what the model is given.

    Args:
        options: Which, and by what.
        input_names: One an input.
        example: Shapes and dtypes.
        scales: Dtype of means and deviations; None is the input's.

    Raises:
        ValueError: A scaling that does not fit, or of an input that is not floating point.
    """

    def __init__(
        self,
        options: Options,
        input_names: Sequence[str],
        example: Tensors,
        scales: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.scaled = [name in options.normalize for name in input_names]
        for i, (name, sample) in enumerate(zip(input_names, example, strict=True)):
            if not self.scaled[i]:
                continue
            if not sample.is_floating_point():
                raise ValueError(f"normalize: {name} is {sample.dtype}, only floats are scaled")
            mean, std = options.normalize[name].tensors(sample.shape[1:], scales or sample.dtype)
            self.register_buffer(f"mean_{i}", mean)
            self.register_buffer(f"std_{i}", std)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """(N, *) an input, and the same shapes back."""
        return tuple(
            (x - getattr(self, f"mean_{i}")) / getattr(self, f"std_{i}") if self.scaled[i] else x
            for i, x in enumerate(inputs)
        )


class Deployed(nn.Module):
    """`forward(*inputs)` gives regression, classification, label, loss: those there are, flat.

    Args:
        model: The model.
        before: What its inputs go through.
        layout: Which of its outputs is what.
        options: What is done after it.
        regression: What it gives for some rows; None where it is the loss alone.
        inner: Dtype that floating-point inputs are given to the model in, whose outputs come back
            in the dtype of the first of them; None leaves all as it is.
        scales: Dtype of mean and deviation; None is the regression output's.

    Raises:
        ValueError: A scaling that does not fit the regression output, or has none to fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        before: Before,
        layout: Layout,
        options: Options,
        regression: Tensor | None,
        *,
        inner: torch.dtype | None = None,
        scales: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.model, self.before = model, before
        self.layout, self.options, self.inner = layout, options, inner
        if options.denormalize is not None and regression is not None:
            sample, dtype = regression.shape[1:], scales or regression.dtype
            mean, std = options.denormalize.tensors(sample, dtype)
            self.register_buffer("mean", mean)
            self.register_buffer("std", std)
        label = (LABEL,) if options.label and REGRESSION in layout else ()
        there = (*layout, *label)
        self.roles = tuple(role for role in (*HEADS, LABEL, LOSS) if role in there)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """(N, *) an input -> (N, *), (N, C, *) or probabilities, labels (N, *), loss () or (N,)."""
        outer = next((x.dtype for x in inputs if x.is_floating_point()), None)
        given = (self._cast(x, self.inner) for x in self.before(*inputs))
        found = picked(self.model(*given), self.layout)
        parts = dict(zip(self.layout, (self._cast(x, outer) for x in found), strict=True))
        if LABEL in self.roles:
            parts[LABEL] = parts[CLASSIFICATION].argmax(1)
        if REGRESSION in parts and self.options.denormalize is not None:
            parts[REGRESSION] = parts[REGRESSION] * self.std + self.mean
        if CLASSIFICATION in parts and self.options.softmax:
            parts[CLASSIFICATION] = parts[CLASSIFICATION].softmax(1)
        return tuple(parts[role] for role in self.roles)

    def _cast(self, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        if self.inner is None or dtype is None or not tensor.is_floating_point():
            return tensor
        return tensor.to(dtype)
