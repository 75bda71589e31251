"""The regression head of the eager backend: w·(r-y)², and its gradient 2·w·(r-y).

An element whose target is missing adds nothing, to the denominator neither, and has gradient 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fused_loss.kernels.eager_numbers import (
    LONG_SUM,
    by_row,
    class_sums,
    mean_of,
    number,
    number_of,
    operand,
    per_labelled,
    sums_dtype,
    total,
    weight_over,
)
from fused_loss.kernels.eager_tiles import blocks, fits_a_block
from fused_loss.spec import LossSpec, LossTensors, in_dtype


class Regression:
    """The regression head of one call: r and y (N, *), and what each element counts."""

    def __init__(
        self, spec: LossSpec, tensors: LossTensors, need: bool, dtype: torch.dtype
    ) -> None:
        r, y, logits = tensors.regression_output, tensors.regression_targets, tensors[1]
        assert r is not None
        assert y is not None
        self.spec, self.r, self.y, self.need, self.dtype = spec, r, y, need, dtype
        self.sums = sums_dtype(r, dtype)
        self.weight = tensors.regression_weight
        one_sample = logits is not None and logits.dim() == 1  # logits (C,): all of r is one sample
        self.per_sample = spec.per_sample and not one_sample
        self.normalizer = number(
            spec.regression_normalizer, tensors.regression_normalizer, self.sums, r.device
        )

    def run(self, weight: Any) -> tuple[Any, Tensor | None]:
        """The reduced loss, a number on a CPU; weight · its gradient, where that is needed."""
        denominator = self._denominator()
        scale = self._scale(weight, denominator) if self.need else 0.0
        if fits_a_block(self.r):
            errors, gradient = self._block(self.r, self.y, self.weight, scale)
            parts = [self._summed(errors)]
        else:
            gradient = torch.empty_like(self.r) if self.need else None
            parts = list(self._parts(gradient, scale))
        if self.per_sample:
            return (parts[0] if len(parts) == 1 else torch.cat(parts)) / denominator, gradient
        return self._reduced(sum(parts[1:], start=parts[0]), denominator), gradient

    def _parts(self, gradient: Tensor | None, scale: Any) -> Iterator[Any]:
        """The sums of blocks; finishes the gradient of each, in place where its dtype allows."""
        direct, buffers = gradient is not None and gradient.dtype == self.dtype, None
        for r, y, weight, home, its_scale in self._blocks(gradient, scale):
            if buffers is None:  # the first block is the largest
                count = 2 if self.need and not direct else 1
                buffers = self.r.new_empty((count, r.numel()), dtype=self.dtype)
            scratch = [buffer[: r.numel()].view(r.shape) for buffer in buffers]
            difference = home if direct else scratch[-1]
            errors, finished = self._block(r, y, weight, its_scale, difference, scratch[0])
            if home is not None and not direct:
                home.copy_(finished)
            yield self._summed(errors)

    def _summed(self, errors: Tensor) -> Any:
        """Of a block: one value, or under "none" (n,)."""
        if not self.per_sample:
            return total(errors)
        if errors.dim() < 2:  # a copy: the next block has the same buffer
            return errors.to(self.sums, copy=True)
        return in_dtype(class_sums(errors.flatten(1)), self.sums)

    def _blocks(self, gradient: Tensor | None, scale: Any) -> Iterator[tuple[Any, ...]]:
        """`(r, y, weight, gradient, scale)` in blocks: flat, where nothing forbids it."""
        views = self.y, self.weight, gradient
        present = self.r, *(view for view in views if view is not None)
        if self.per_sample or not all(view.is_contiguous() for view in present):
            return blocks(self.r, *views, scale)
        flat = (None if view is None else view.view(-1) for view in views)
        return blocks(self.r.view(-1), *flat, scale)

    def _block(
        self,
        r: Tensor,
        y: Tensor,
        weight: Tensor | None,
        scale: Any,
        difference: Tensor | None = None,
        errors: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """w·(r-y)² and, in place of r-y, scale·w·(r-y) in the dtype of r; few are rounded once."""
        dtype = self.sums if difference is None and r.numel() <= LONG_SUM else self.dtype
        difference = torch.sub(in_dtype(r, dtype), in_dtype(y, dtype), out=difference)
        if not self.need:
            errors = difference
        errors = torch.mul(difference, difference, out=errors)
        if weight is not None:
            errors.mul_(in_dtype(weight, dtype))
            scale = in_dtype(weight, self.sums) * scale  # rounded once
        gradient = difference.mul_(operand(scale, dtype)) if self.need else None
        for pulled in (errors, gradient):
            if pulled is not None and self.spec.ignores_nan:  # NaN · 0 is not 0
                pulled.masked_fill_(y.isnan(), 0.0)
        return errors, None if gradient is None else in_dtype(gradient, self.r.dtype)

    def _denominator(self) -> Any:
        """What a sum of errors is divided by: a number or 0-d, or under "none" (N,)."""
        r = self.r
        if self.per_sample:
            columns = max(r[0].numel(), 1) if r.shape[0] else 1
            if not self.spec.ignores_nan or r.dim() < 2:
                return columns
            return per_labelled(self.y.isnan(), self.sums)
        if self.spec.reduction == "sum":
            return 1
        if self.normalizer is not None:
            return self.normalizer
        by_count = self.weight is None or self.spec.per_sample
        if by_count and not self.spec.ignores_nan:
            return max(r.numel(), 1) if self.spec.per_sample else r.numel()
        labelled = sum(self._shares(y, w, by_count) for y, w in blocks(self.y, self.weight))
        if not self.spec.per_sample:
            return labelled
        return labelled.clamp(min=1) if isinstance(labelled, Tensor) else max(labelled, 1)

    def _shares(self, y: Tensor, weight: Tensor | None, by_count: bool) -> Any:
        """What the elements of a block add to the denominator, 0-d."""
        missing = y.isnan() if self.spec.ignores_nan else None
        if by_count or weight is None:
            assert missing is not None
            return number_of(~missing, self.sums)
        weight = weight.to(self.sums)
        return total(weight if missing is None else weight.masked_fill(missing, 0.0))

    def _scale(self, weight: Any, denominator: Any) -> Any:
        """2 · d loss / d (an element's squared error): a number, 0-d, or (N, 1, ...)."""
        return by_row(weight_over(2.0 * weight, denominator, self.normalizer), self.r.dim())

    def _reduced(self, sum_of_all: Any, denominator: Any) -> Any:
        """The sum over all elements as the spec reduces it."""
        if self.spec.reduction == "mean" and self.normalizer is None:
            return mean_of(sum_of_all, denominator, self.spec.of_nothing)
        return sum_of_all / denominator
