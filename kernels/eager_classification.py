"""The classification head of the eager backend: cross-entropy over logits (N, C, d1, ...).

With smoothed, class-weighted targets q' the loss of a position is `-Σ_c q'_c · log p_c` and its
gradient `p · Σ_c q'_c - q'`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fused_loss.kernels.eager_blocks import (
    REDUCTIONS,
    blocks,
    by_row,
    fits,
    in_dtype,
)
from fused_loss.spec import LossSpec, class_axis, index_error

FEW = 32  # logits are few where so many times their number fits a block

nll_loss = torch.ops.aten.nll_loss_forward.default
nll_loss_backward = torch.ops.aten.nll_loss_backward.default
log_softmax_backward = torch._log_softmax_backward_data


class Classification:
    """The classification head of one call: z (N, C, d1, ...) and what is known of its targets."""

    def __init__(
        self,
        spec: LossSpec,
        logits: Tensor,
        targets: Tensor,
        need: bool,
        class_weight: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        self.one_sample = logits.dim() == 1
        if self.one_sample:  # (C,) -> (1, C)
            logits, targets = logits[None], targets[None]
        self.spec, self.logits, self.need, self.dtype = spec, logits, need, dtype
        self.classes, self.shape = class_axis(logits)  # C; (N, d1, ...)
        self.class_weight = None if class_weight is None else class_weight.to(dtype)
        self.soft = targets.is_floating_point()
        self.targets = targets if self.soft else targets.long()
        self.ignored: Tensor | None = None  # positions without a label; None: there are none
        self.illegal: Tensor | None = None  # positions with an index outside [0, C)
        self.target_weight: Tensor | None = None  # class_weight[t], (N, d1, ...)

    def run(self, weight: Any) -> tuple[Tensor, Tensor | None]:
        """The reduced loss; weight · its gradient, where that is needed.

        Raises:
            IndexError: On a CPU, a class index lies outside [0, C).
        """
        try:
            loss, gradient = self._of_few(weight) if self._few() else self._in_blocks(weight)
        except (IndexError, RuntimeError) as error:
            named = None
            if not self.soft and self.logits.device.type == "cpu":
                named = index_error(self.targets, self.classes, self.spec.ignore_index)
            if named is None:
                raise
            raise named from error
        if self.one_sample:
            loss = loss[0] if self.spec.per_sample else loss
            gradient = None if gradient is None else gradient[0]
        return loss, gradient

    def _few(self) -> bool:
        """Whether plain class indices of few logits (N, C) are averaged or summed on a CPU."""
        logits = self.logits
        plain = not (self.soft or self.spec.label_smoothing or self.class_weight is not None)
        few = logits.dim() == 2 and logits.numel() > 0 and fits(logits, FEW)
        return plain and few and not self.spec.per_sample and logits.device.type == "cpu"

    def _of_few(self, weight: Any) -> tuple[Tensor, Tensor | None]:
        """By PyTorch's own kernels: two operators forward, two backward."""
        targets, ignore_index = self.targets, self.spec.ignore_index
        reduction = REDUCTIONS[self.spec.reduction]
        log_p = torch.log_softmax(in_dtype(self.logits, self.dtype), 1)
        loss, labelled = nll_loss(log_p, targets, None, reduction, ignore_index)
        if not self.need:
            return loss, None
        if not isinstance(weight, Tensor):
            weight = torch.scalar_tensor(weight, dtype=self.dtype, device=log_p.device)
        hit = nll_loss_backward(weight, log_p, targets, None, reduction, ignore_index, labelled)
        gradient = in_dtype(log_softmax_backward(hit, log_p, 1, self.dtype), self.logits.dtype)
        if labelled.item() != len(targets):  # NaN · 0 is not 0
            gradient.masked_fill_((targets == ignore_index).unsqueeze(1), 0.0)
        return loss, gradient

    def _in_blocks(self, weight: Any) -> tuple[Tensor, Tensor | None]:
        if not self.soft:
            self._read_indices()
        gradient = torch.empty_like(self.logits) if self.need else None
        denominator = self._denominator()
        scale = self._scale(weight, denominator) if self.need else None
        views = self.targets, gradient, self.target_weight, self.ignored, scale
        parts = [self._block(*block) for block in blocks(self.logits, *views)]
        losses = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.illegal is not None:
            losses = losses.masked_fill(self.illegal, torch.nan)
        if self.ignored is not None:
            losses = losses.masked_fill(self.ignored, 0.0)
        return self._reduced(losses, denominator), gradient

    def _reduced(self, losses: Tensor, denominator: Any) -> Tensor:
        """Losses (N, d1, ...) as the spec reduces them."""
        if self.spec.per_position:
            return losses
        if self.spec.per_sample:
            return losses if losses.dim() < 2 else losses.flatten(1).sum(1) / denominator
        total = losses.sum()
        if self.spec.reduction == "sum":
            return total
        mean = total / denominator
        if self.target_weight is not None and self.spec.label_smoothing:  # x/0 is not yet NaN
            mean = mean.where(denominator != 0, torch.nan)
        return mean

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
        if self.spec.per_position:
            return 1
        if self.spec.per_sample:
            if self.ignored is None or self.ignored.dim() < 2:
                return max(math.prod(self.shape[1:]), 1)
            return (~self.ignored).flatten(1).sum(1).clamp(min=1).to(self.dtype)
        if self.spec.reduction == "sum":
            return 1
        if self.soft or (self.ignored is None and self.target_weight is None):
            return math.prod(self.shape)
        if self.target_weight is None:
            assert self.ignored is not None
            return (~self.ignored).sum().to(self.dtype)
        weights = self.target_weight
        return (weights if self.ignored is None else weights.masked_fill(self.ignored, 0)).sum()

    def _scale(self, weight: Any, denominator: Any) -> Any:
        """d loss / d (a position's cross-entropy): a number, 0-d, or (N, d1, ...).

        0 where a position has no label, and everywhere where nothing has one.
        """
        if isinstance(denominator, Tensor):
            scale = torch.where(denominator == 0, 0.0, weight / denominator)
        else:
            scale = weight / max(denominator, 1)
        if self.ignored is None and self.illegal is None:
            return by_row(scale, len(self.shape))
        if not isinstance(scale, Tensor):
            scale = torch.full((), scale, dtype=self.dtype, device=self.logits.device)
        scale = by_row(scale, len(self.shape)).expand(self.shape)
        if self.illegal is not None:
            scale = scale.masked_fill(self.illegal, torch.nan)
        return scale if self.ignored is None else scale.masked_fill(self.ignored, 0.0)

    def _block(
        self,
        logits: Tensor,
        targets: Tensor,
        gradient: Tensor | None,
        weight: Tensor | None,
        ignored: Tensor | None,
        scale: Any,
    ) -> Tensor:
        """Unreduced losses (n, d1, ...) of a block of samples; finishes the block's gradient."""
        direct = gradient is not None and gradient.dtype == self.dtype and gradient.is_contiguous()
        log_p = torch.log_softmax(logits.to(self.dtype), 1, out=gradient if direct else None)
        if isinstance(scale, Tensor) and scale.dim():
            scale = scale.unsqueeze(1)  # (n, 1, d1, ...)
        if self.soft:
            losses = self._soft(log_p, targets, scale)
        else:
            weight = None if weight is None else weight.unsqueeze(1)
            losses = self._hard(log_p, targets.unsqueeze(1), weight, scale)
        if gradient is not None and ignored is not None:
            log_p.masked_fill_(ignored.unsqueeze(1), 0.0)  # NaN · 0 is not 0
        if gradient is not None and not direct:
            gradient.copy_(log_p)
        return losses

    def _soft(self, log_p: Tensor, targets: Tensor, scale: Any) -> Tensor:
        """Losses (n, d1, ...); with a scale, log p becomes scale · (p·Σq' - q')."""
        smoothing = self.spec.label_smoothing
        q = targets.to(self.dtype)
        if smoothing:
            q = q * (1 - smoothing) + smoothing / self.classes
        if self.class_weight is not None:
            q = q * self._by_class(self.class_weight)
        losses = -(log_p * q).sum(1)
        if scale is not None:
            log_p.exp_().mul_(q.sum(1, keepdim=True)).sub_(q).mul_(scale)
        return losses

    def _hard(self, log_p: Tensor, index: Tensor, weight: Tensor | None, scale: Any) -> Tensor:
        """Losses (n, d1, ...); with a scale, log p becomes scale · (p·Σq' - q').

        Here q' = a·1[c = t] + b·class_weight with a = (1-ε)·class_weight[t] and b = ε/C.
        """
        smoothing = self.spec.label_smoothing
        classes = None if self.class_weight is None else self._by_class(self.class_weight)
        a: Any = 1 - smoothing if weight is None else (1 - smoothing) * weight
        b = smoothing / self.classes
        losses = log_p.gather(1, index) * -a
        if smoothing:
            every = log_p if classes is None else log_p * classes
            losses = losses - b * every.sum(1, keepdim=True)
        if scale is not None:
            even: Any = b * (self.classes if classes is None else classes.sum())
            log_p.exp_().mul_(scale * (a + even))
            if smoothing:
                log_p.sub_(scale * b if classes is None else scale * b * classes)
            hit = scale * -a
            hit = hit if isinstance(hit, Tensor) else log_p.new_full((), hit)
            log_p.scatter_add_(1, index, hit.expand(index.shape))
        return losses.squeeze(1)

    def _by_class(self, values: Tensor) -> Tensor:
        """(C,) as (1, C, 1, ...)."""
        return values.view(1, -1, *[1] * (len(self.shape) - 1))
