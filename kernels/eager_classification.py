"""The classification head of the eager backend: cross-entropy over logits (N, C, d1, ...).

With smoothed, class-weighted targets q' the loss of a position is `-Σ_c q'_c · log p_c` and its
gradient `p · Σ_c q'_c - q'`. An impossible class has p = 0, and a gradient of exactly 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fused_loss.kernels.eager_blocks import (
    blocks,
    by_row,
    in_dtype,
    mean_of,
    number,
    per_labelled,
    weight_over,
)
from fused_loss.spec import LossSpec, LossTensors, class_axis


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
        self.mask = mask
        self.position_weight = _if_given(position_weight, dtype)  # (N, d1, ...)
        self.class_weight = _if_given(tensors.class_weight, dtype)
        self.soft = targets.is_floating_point()
        self.targets = targets if self.soft else targets.long()
        self.normalizer = number(
            spec.classification_normalizer, tensors.classification_normalizer, dtype, logits.device
        )
        self.ignored: Tensor | None = None  # positions without a label; None: there are none
        self.illegal: Tensor | None = None  # positions with an index outside [0, C)
        self.target_weight: Tensor | None = None  # class_weight[t], (N, d1, ...)

    def run(self, weight: Any) -> tuple[Tensor, Tensor | None]:
        """The reduced loss; weight · its gradient, where that is needed.

        Raises:
            IndexError, RuntimeError: On a CPU, a class index lies outside [0, C).
        """
        loss, gradient = self._in_blocks(weight)
        if self.one_sample:
            loss = loss[0] if self.spec.per_sample else loss
            gradient = None if gradient is None else gradient[0]
        return loss, gradient

    def _in_blocks(self, weight: Any) -> tuple[Tensor, Tensor | None]:
        if not self.soft:
            self._read_indices()
        gradient = self._buffer() if self.need else None
        denominator = self._denominator()
        scale = self._scale(weight, denominator) if self.need else None
        views = self.targets, gradient, self.mask, self.target_weight, self.ignored, scale
        parts = [self._block(*block) for block in blocks(self.logits, *views)]
        losses = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.position_weight is not None:
            losses = losses * self.position_weight
        if self.illegal is not None:
            losses = losses.masked_fill(self.illegal, torch.nan)
        if self.ignored is not None:
            losses = losses.masked_fill(self.ignored, 0.0)
        return self._reduced(losses, denominator), gradient

    def _buffer(self) -> Tensor:
        """Where the gradient goes: the only buffer of the logits' size, or the logits' own."""
        if self.spec.inplace_gradient:
            return self.logits.detach()
        return torch.empty_like(self.logits)

    def _reduced(self, losses: Tensor, denominator: Any) -> Tensor:
        """Losses (N, d1, ...) as the spec reduces them."""
        if self.spec.per_position:
            return losses
        if self.spec.per_sample:
            return losses if losses.dim() < 2 else losses.flatten(1).sum(1) / denominator
        total = losses.sum()
        if self.spec.reduction == "sum":
            return total
        if self.normalizer is not None:
            return total / denominator
        return mean_of(total, denominator, self.spec.of_nothing)

    def _read_indices(self) -> None:
        ignored = self.targets == self.spec.ignore_index
        on_cpu = self.logits.device.type == "cpu"
        if not on_cpu or ignored.any():  # on an accelerator nothing is read back
            self.ignored = ignored
            self.targets = self.targets.masked_fill(ignored, 0)
        if not on_cpu:  # on a CPU `gather` checks the range itself
            self.illegal = (self.targets < 0) | (self.targets >= self.classes)
            self.targets = self.targets.masked_fill(self.illegal, 0)
        if self.class_weight is not None:
            self.target_weight = self.class_weight[self.targets]

    def _denominator(self) -> Any:
        """What a sum of losses is divided by: a number or 0-d for "mean", or (N,) for "none"."""
        if self.spec.per_position or self.spec.reduction == "sum":
            return 1
        if self.spec.per_sample:
            if self.ignored is None or self.ignored.dim() < 2:
                return max(math.prod(self.shape[1:]), 1)
            return per_labelled(self.ignored, self.dtype)
        if self.normalizer is not None:
            return self.normalizer
        shares = [w for w in (self.target_weight, self.position_weight) if w is not None]
        if not shares:
            labelled = self.ignored
            return math.prod(self.shape) if labelled is None else (~labelled).sum().to(self.dtype)
        share = math.prod(shares[1:], start=shares[0])
        return (share if self.ignored is None else share.masked_fill(self.ignored, 0)).sum()

    def _scale(self, weight: Any, denominator: Any) -> Any:
        """d loss / d (a position's cross-entropy): a number, 0-d, or (N, d1, ...).

        0 where a position has no label, and everywhere where nothing has one.
        """
        scale = by_row(weight_over(weight, denominator, self.normalizer), len(self.shape))
        if self.position_weight is not None:
            scale = scale * self.position_weight
        if self.ignored is None and self.illegal is None:
            return scale
        if not isinstance(scale, Tensor):
            scale = torch.full((), scale, dtype=self.dtype, device=self.logits.device)
        scale = scale.expand(self.shape)
        if self.illegal is not None:
            scale = scale.masked_fill(self.illegal, torch.nan)
        return scale if self.ignored is None else scale.masked_fill(self.ignored, 0.0)

    def _block(
        self,
        logits: Tensor,
        targets: Tensor,
        gradient: Tensor | None,
        mask: Tensor | None,
        weight: Tensor | None,
        ignored: Tensor | None,
        scale: Any,
    ) -> Tensor:
        """Unreduced losses (n, d1, ...) of a block of samples; finishes the block's gradient."""
        # Whether log p may be written straight into the gradient.
        direct = gradient is not None and gradient.dtype == self.dtype and gradient.is_contiguous()
        log_p = self._log_softmax(logits, mask, gradient if direct else None)
        if isinstance(scale, Tensor) and scale.dim():
            scale = scale.unsqueeze(1)  # (n, 1, d1, ...)
        if self.soft:
            losses = self._soft(log_p, targets, mask, scale)
        else:
            weight = None if weight is None else weight.unsqueeze(1)
            losses = self._hard(log_p, targets.unsqueeze(1), mask, weight, scale)
        if gradient is None:
            return losses
        if ignored is not None:
            log_p.masked_fill_(ignored.unsqueeze(1), 0.0)  # NaN · 0 is not 0
        if mask is not None:
            log_p.masked_fill_(~mask, 0.0)
        if not direct:
            gradient.copy_(log_p)
        return losses

    def _log_softmax(self, logits: Tensor, mask: Tensor | None, out: Tensor | None) -> Tensor:
        """log p of a block, in `out` if that is given; -inf for an impossible class."""
        wide = in_dtype(logits, self.dtype)
        if mask is None:
            scratch = wide if wide is not logits else out  # a copy may be written over
            return torch.log_softmax(wide, 1, out=scratch)
        nowhere = wide.new_full((), -torch.inf)
        log_p = torch.where(mask, wide, nowhere, out=out)
        log_p = torch.log_softmax(log_p, 1, out=log_p)
        return log_p.masked_fill_(~mask.any(1, keepdim=True), -torch.inf)

    def _soft(self, log_p: Tensor, targets: Tensor, mask: Tensor | None, scale: Any) -> Tensor:
        """Losses (n, d1, ...); with a scale, log p becomes scale · (p·Σq' - q')."""
        smoothing = self.spec.label_smoothing
        q = targets.to(self.dtype)
        if smoothing:
            q = q * (1 - smoothing) + self._even(mask)
        if self.class_weight is not None:
            q = q * self._by_class(self.class_weight)
        losses = -_times_log(q, log_p, mask).sum(1)
        if scale is not None:
            log_p.exp_().mul_(q.sum(1, keepdim=True)).sub_(q).mul_(scale)
        return losses

    def _hard(
        self, log_p: Tensor, index: Tensor, mask: Tensor | None, weight: Tensor | None, scale: Any
    ) -> Tensor:
        """Losses (n, d1, ...); with a scale, log p becomes scale · (p·Σq' - q').

        Here q' = a·1[c = t] + b·class_weight with a = (1-ε)·class_weight[t] and b = ε/K.
        """
        smoothing = self.spec.label_smoothing
        a: Any = 1 - smoothing if weight is None else (1 - smoothing) * weight
        losses = -_times_log(a, log_p.gather(1, index), mask)
        spread: Any = 0.0  # b·class_weight
        if smoothing:
            spread = self._even(mask)
            if self.class_weight is not None:
                spread = spread * self._by_class(self.class_weight)
            losses = losses - _times_log(spread, log_p, mask).sum(1, keepdim=True)
        if scale is not None:
            mass = a + (self._mass(spread) if smoothing else 0.0)
            log_p.exp_().mul_(scale * mass)
            if smoothing:
                log_p.sub_(scale * spread)
            hit = scale * -a
            hit = hit if isinstance(hit, Tensor) else log_p.new_full((), hit)
            log_p.scatter_add_(1, index, hit.expand(index.shape))
        return losses.squeeze(1)

    def _even(self, mask: Tensor | None) -> Any:
        """ε/K: a number or, with a mask, (n, C, d1, ...) with 0 for an impossible class."""
        smoothing = self.spec.label_smoothing
        if mask is None:
            return smoothing / self.classes
        return mask * (smoothing / mask.sum(1, keepdim=True).clamp(min=1).to(self.dtype))

    def _mass(self, spread: Any) -> Any:
        """Σ_c b·class_weight_c: a number, or (1 or n, 1, ...)."""
        if isinstance(spread, Tensor):
            return spread.sum(1, keepdim=True)
        return spread * self.classes

    def _by_class(self, values: Tensor) -> Tensor:
        """(C,) as (1, C, 1, ...)."""
        return values.view(1, -1, *[1] * (len(self.shape) - 1))


def _if_given(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The tensor in this dtype, if there is one."""
    return None if tensor is None else in_dtype(tensor, dtype)


def _times_log(q: Any, log_p: Tensor, mask: Tensor | None) -> Tensor:
    """q · log p; with a mask, 0 · log 0 = 0."""
    if mask is not None:
        log_p = log_p.masked_fill((log_p == -torch.inf) & (q == 0), 0.0)
    return log_p * q
