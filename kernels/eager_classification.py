"""The classification head of the eager backend: cross-entropy over logits (N, C, d1, ...).

What each position counts, and what the sum is divided by, is settled here; the losses and the
gradient are computed block by block, in `eager_softmax`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fused_loss.kernels.eager_blocks import (
    blocks,
    by_row,
    mean_of,
    number,
    per_labelled,
    rows_a_block,
    sums_dtype,
    total,
    value,
    weight_over,
)
from fused_loss.kernels.eager_softmax import Block, Softmax
from fused_loss.spec import LossSpec, LossTensors, class_axis, in_dtype, index_error, number_in


class Classification:
    """The classification head of one call: z (N, C, d1, ...) and what is known of its targets."""

    def __init__(
        self, spec: LossSpec, tensors: LossTensors, need: bool, dtype: torch.dtype
    ) -> None:
        logits, targets = tensors.classification_output, tensors.classification_targets
        assert logits is not None
        assert targets is not None
        mask, position_weight = tensors.class_mask, tensors.classification_weight
        self.one_sample = logits.dim() == 1
        if self.one_sample:  # (C,) -> (1, C)
            logits, targets = logits[None], targets[None]
            mask = None if mask is None else mask[None]
            position_weight = None if position_weight is None else position_weight[None]
        self.spec, self.logits, self.need, self.dtype = spec, logits, need, dtype
        self.classes, self.shape = class_axis(logits)  # C; (N, d1, ...)
        self.sums = sums_dtype(logits, dtype, math.prod(self.shape))
        self.mask = mask
        self.position_weight = _if_given(position_weight, self.sums)  # (N, d1, ...)
        self.class_weight = _if_given(tensors.class_weight, dtype)  # (C,)
        self.soft = targets.is_floating_point()
        self.targets = targets if self.soft else in_dtype(targets, torch.int64)
        by_class = self.class_weight
        if by_class is not None:
            by_class = by_class.view(1, -1, *[1] * (logits.dim() - 2))  # (1, C, 1, ...)
        self.softmax = Softmax(spec.label_smoothing, by_class, self.soft, self.sums)
        self.normalizer = number(
            spec.classification_normalizer,
            tensors.classification_normalizer,
            self.sums,
            logits.device,
        )
        self.ignored: Tensor | None = None  # positions without a label; None: there are none
        self.illegal: Tensor | None = None  # positions with an index outside [0, C)
        self.target_weight: Tensor | None = None  # class_weight[t], (N, d1, ...)

    def run(self, weight: Any) -> tuple[Any, Tensor | None]:
        """The reduced loss, a number on a CPU; weight · its gradient, where that is needed.

        Raises:
            IndexError, RuntimeError: On a CPU, a class index lies outside [0, C).
        """
        loss, gradient = self._in_blocks(weight)
        if self.one_sample:
            loss = loss[0] if self.spec.per_sample else loss
            gradient = None if gradient is None else gradient[0]
        return loss, gradient

    def _in_blocks(self, weight: Any) -> tuple[Any, Tensor | None]:
        if not self.soft:
            self._read_indices()
        gradient = self._buffer() if self.need else None
        denominator = self._denominator()
        scale = self._scale(weight, denominator) if self.need else None
        parts = list(self._parts(gradient, scale))
        losses = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.position_weight is not None:
            losses = losses * self.position_weight
        if self.illegal is not None:
            losses = losses.masked_fill(self.illegal, torch.nan)
        if self.ignored is not None:
            losses = losses.masked_fill(self.ignored, 0.0)
        return self._reduced(losses, denominator), gradient

    def _parts(self, gradient: Tensor | None, scale: Any) -> Iterator[Tensor]:
        """Unreduced losses (n, d1, ...), block by block, and the gradient of each finished.

        p is written straight into a dense gradient in the dtype of the loss, and otherwise into a
        scratch buffer. Where the gradient lies in the logits' own memory, it is they that move.
        """
        direct = gradient is not None and gradient.dtype == self.dtype and gradient.is_contiguous()
        moved = direct and self.spec.inplace_gradient
        rows, scratch = rows_a_block(self.logits, small=moved or not direct), None
        if moved or not direct:
            scratch = self.logits.new_empty((rows, *self.logits.shape[1:]), dtype=self.dtype)
        views = self.targets, gradient, self.mask, self.target_weight, self.ignored, scale
        for logits, targets, home, *rest in blocks(self.logits, *views, rows=rows):
            buffer = home if scratch is None else scratch[: len(logits)]
            if moved:
                logits = buffer.copy_(logits)
            yield self.softmax.losses(Block(logits, targets, home if direct else buffer, *rest))
            if home is not None and not direct:
                home.copy_(buffer)

    def _buffer(self) -> Tensor:
        """Where the gradient goes: the only buffer of the logits' size, or the logits' own."""
        if self.spec.inplace_gradient:
            return self.logits.detach()
        return torch.empty_like(self.logits)

    def _reduced(self, losses: Tensor, denominator: Any) -> Any:
        """Losses (N, d1, ...) as the spec reduces them."""
        if self.spec.per_position:
            return losses
        if self.spec.per_sample:
            return losses if losses.dim() < 2 else losses.flatten(1).sum(1) / denominator
        if self.spec.reduction == "sum":
            return total(losses)
        if self.normalizer is not None:
            return total(losses) / denominator
        return mean_of(total(losses), denominator, self.spec.of_nothing)

    def _read_indices(self) -> None:
        if self.need and self.spec.inplace_gradient:
            self._refuse_illegal()
        on_cpu = self.logits.is_cpu
        if not on_cpu or self._may_be_ignored():  # on an accelerator nothing is read back
            self.ignored = self.targets == self.spec.ignore_index
            self.targets = self.targets.masked_fill(self.ignored, 0)
        if not on_cpu:  # on a CPU `gather` checks the range itself
            self.illegal = (self.targets < 0) | (self.targets >= self.classes)
            self.targets = self.targets.masked_fill(self.illegal, 0)
        if self.class_weight is not None:
            self.target_weight = in_dtype(self.class_weight, self.sums)[self.targets]

    def _may_be_ignored(self) -> bool:
        """Whether some position may have no label: an `ignore_index` below 0 is the least index."""
        if self.spec.ignore_index >= 0 or not self.targets.numel():
            return True
        return bool(self.targets.min().item() < 0)

    def _refuse_illegal(self) -> None:
        """On a CPU, before a logit is written over for nothing."""
        if self.logits.device.type == "cpu":
            error = index_error(self.targets, self.classes, self.spec.ignore_index)
            if error is not None:
                raise error

    def _denominator(self) -> Any:
        """What a sum of losses is divided by: a number or 0-d for "mean", or (N,) for "none"."""
        if self.spec.per_position or self.spec.reduction == "sum":
            return 1
        if self.spec.per_sample:
            if self.ignored is None or self.ignored.dim() < 2:
                return max(math.prod(self.shape[1:]), 1)
            return per_labelled(self.ignored, self.sums)
        if self.normalizer is not None:
            return self.normalizer
        shares = [w for w in (self.target_weight, self.position_weight) if w is not None]
        if not shares:
            labelled = self.ignored
            return math.prod(self.shape) if labelled is None else value((~labelled).sum())
        share = math.prod(shares[1:], start=shares[0])
        return total(share if self.ignored is None else share.masked_fill(self.ignored, 0))

    def _scale(self, weight: Any, denominator: Any) -> Any:
        """d loss / d (a position's cross-entropy): a number, 0-d, or (N, d1, ...).

        0 where a position has no label, and everywhere where nothing has one.
        """
        scale = by_row(weight_over(weight, denominator, self.normalizer), len(self.shape))
        if self.position_weight is not None:
            scale = scale * self.position_weight
        if self.ignored is None and self.illegal is None:
            return scale if isinstance(scale, Tensor) else number_in(scale, self.dtype)
        if not isinstance(scale, Tensor):
            scale = torch.full((), scale, dtype=self.sums, device=self.logits.device)
        scale = scale.expand(self.shape)
        if self.illegal is not None:
            scale = scale.masked_fill(self.illegal, torch.nan)
        return scale if self.ignored is None else scale.masked_fill(self.ignored, 0.0)


def _if_given(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The tensor in this dtype, if there is one."""
    return None if tensor is None else in_dtype(tensor, dtype)
