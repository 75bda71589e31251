"""The CPU backend: plain PyTorch operators and a closed-form backward.

For a position with logits z, `p = softmax(z)` and smoothed, class-weighted targets
`q' = class_weight · ((1-ε)·target + ε/C)`:

    loss      = -Σ_c q'_c · log p_c
    d loss/dz = p · Σ_c q'_c - q'

and for the regression head `d (r-y)²/dr = 2·(r-y)`. Both gradients are finished here, for a
`grad_output` of 1, in the same pass that computes the loss. The logits are taken in blocks of
samples that fit the cache, so the only buffer of the logits' size is the gradient itself: log p is
written into it (or, for half types, into a float32 block) and turned into the gradient in place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fused_loss.spec import (
    LossSpec,
    LossTensors,
    Needs,
    Outcome,
    accumulation_dtype,
    class_axis,
    index_error,
)

BLOCK_ELEMENTS = 1 << 18  # 1 MiB of float32: the scratch of one block


def forward(spec: LossSpec, tensors: LossTensors, needs: Needs) -> Outcome:
    """The loss, its components, and the gradients that are needed (for a `grad_output` of 1)."""
    return _run(spec, tensors, needs, None)


def gradients(
    spec: LossSpec, tensors: LossTensors, needs: Needs, grad_output: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients for `grad_output`, () or (N,), computed from the inputs."""
    outcome = _run(spec, tensors, needs, grad_output)
    return outcome.regression_gradient, outcome.classification_gradient


def scale(gradients: list[Tensor], grad_output: Tensor, in_place: bool) -> list[Tensor]:
    """The stored gradients times a 0-d `grad_output`; in place where nobody else will read them."""
    if grad_output.device.type == "cpu" and grad_output.item() == 1:  # no accelerator: no sync
        return gradients
    return [g.mul_(grad_output) if in_place else g * grad_output for g in gradients]


def _run(spec: LossSpec, tensors: LossTensors, needs: Needs, upstream: Tensor | None) -> Outcome:
    dtype = accumulation_dtype(tensors.regression_output, tensors.classification_output)
    w_reg, w_cls = _weights(spec, tensors, dtype)
    if upstream is not None:
        upstream = upstream.to(dtype)
        w_reg, w_cls = w_reg * upstream, w_cls * upstream
    mse = ce = grad_r = grad_z = None
    if tensors.regression_output is not None:
        mse, grad_r = _regression(spec, tensors, dtype, w_reg, needs.regression)
    if tensors.classification_output is not None:
        ce, grad_z = _classification(spec, tensors, dtype, w_cls, needs.classification)
    if mse is None or ce is None:  # cross_entropy or mse_loss alone: weight 1
        only = ce if mse is None else mse
        assert only is not None
        return Outcome(only, None, grad_r, grad_z)
    loss = w_reg * mse + w_cls * ce if upstream is None else mse
    return Outcome(loss, torch.stack((mse, ce)), grad_r, grad_z)


def _weights(spec: LossSpec, tensors: LossTensors, dtype: torch.dtype) -> tuple[Any, Any]:
    """`(w_reg, w_cls)`: two floats or two 0-d tensors."""
    if tensors.weights is None:
        return spec.weights or (1.0, 1.0)
    weights = tensors.weights.to(dtype)
    return (weights, 1 - weights) if weights.dim() == 0 else (weights[0], weights[1])


def _regression(
    spec: LossSpec, tensors: LossTensors, dtype: torch.dtype, weight: float | Tensor, need: bool
) -> tuple[Tensor, Tensor | None]:
    """Mean, sum or per-sample mean of (r-y)², and weight · its gradient."""
    output, targets = tensors.regression_output, tensors.regression_targets
    assert output is not None
    assert targets is not None
    gradient = torch.empty_like(output) if need else None
    if spec.per_sample and not _one_sample(tensors):
        columns = max(output[0].numel(), 1) if len(output) else 1
        scale = 2.0 * weight / columns
        if isinstance(scale, Tensor) and scale.dim() == 1:  # (N,) in the backward pass
            scale = scale.view(-1, *[1] * (output.dim() - 1))
        errors = _squared_errors(output, targets, gradient, dtype, scale)
        return (errors if errors.dim() < 2 else errors.flatten(1).sum(1) / columns), gradient
    count = output.numel()
    divisor = 1 if spec.reduction == "sum" else max(count, 1) if spec.per_sample else count
    scale = 2.0 * weight / max(divisor, 1)
    blocks = _blocks(output, targets, gradient)
    total = _sum(_squared_errors(r, y, g, dtype, scale) for r, y, g in blocks)
    return (total if divisor == 1 else total / divisor), gradient


def _blocks(
    output: Tensor, targets: Tensor, gradient: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """(r, y, gradient) in blocks of about BLOCK_ELEMENTS."""
    if output.numel() <= BLOCK_ELEMENTS:
        yield output, targets, gradient
        return
    if output.is_contiguous() and targets.is_contiguous():
        output, targets = output.view(-1), targets.view(-1)
        gradient = None if gradient is None else gradient.view(-1)
    rows = max(1, BLOCK_ELEMENTS * len(output) // output.numel())
    for start in range(0, len(output), rows):
        block = slice(start, start + rows)
        yield output[block], targets[block], None if gradient is None else gradient[block]


def _squared_errors(
    r: Tensor, y: Tensor, gradient: Tensor | None, dtype: torch.dtype, scale: float | Tensor
) -> Tensor:
    """(r-y)² in `dtype`; scale · (r-y) goes into `gradient`."""
    difference = r.to(dtype) - y.to(dtype)
    if gradient is not None:
        torch.mul(difference, scale, out=gradient)
    return difference * difference


def _classification(
    spec: LossSpec, tensors: LossTensors, dtype: torch.dtype, weight: float | Tensor, need: bool
) -> tuple[Tensor, Tensor | None]:
    """Mean, sum or per-sample mean of the cross-entropies, and weight · its gradient."""
    logits, targets = tensors.classification_output, tensors.classification_targets
    assert logits is not None
    assert targets is not None
    gradient = torch.empty_like(logits) if need else None
    class_weight = tensors.class_weight
    if class_weight is not None:
        class_weight = class_weight.to(dtype)
    if _one_sample(tensors):  # (C,) -> (1, C)
        views = logits[None], targets[None], None if gradient is None else gradient[None]
    else:
        views = logits, targets, gradient
    head = _Head(spec, *views, class_weight, dtype)
    try:
        loss = head.run(weight)
    except (IndexError, RuntimeError) as error:
        head.explain(error)
        raise
    return (loss[0] if spec.per_sample and _one_sample(tensors) else loss), gradient


class _Head:
    """The classification head of one call: z (N, C, d1, ...) and what is known of its targets."""

    def __init__(
        self,
        spec: LossSpec,
        logits: Tensor,
        targets: Tensor,
        gradient: Tensor | None,
        class_weight: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        self.spec, self.logits, self.gradient, self.dtype = spec, logits, gradient, dtype
        self.classes, self.shape = class_axis(logits)  # C; (N, d1, ...)
        self.class_weight = class_weight  # (C,)
        self.soft = targets.is_floating_point()
        self.targets = targets if self.soft else targets.long()
        self.ignored: Tensor | None = None  # positions without a label; None: there are none
        self.illegal: Tensor | None = None  # positions with an index outside [0, C)
        self.target_weight: Tensor | None = None  # class_weight[t], (N, d1, ...)

    def run(self, weight: float | Tensor) -> Tensor:
        """The reduced loss; writes weight · its gradient."""
        if not self.soft:
            self._read_indices()
        denominator = self._denominator()
        scale = self._scale(weight, denominator) if self.gradient is not None else None
        step = max(1, BLOCK_ELEMENTS // max(self.logits[0].numel(), 1)) if len(self.logits) else 1
        if len(self.logits) <= step:
            losses = self._block(slice(None), scale)
        else:
            starts = range(0, len(self.logits), step)
            losses = torch.cat([self._block(slice(s, s + step), scale) for s in starts])
        if self.illegal is not None:
            losses = losses.masked_fill(self.illegal, torch.nan)
        if self.ignored is not None:
            losses = losses.masked_fill(self.ignored, 0.0)
        if self.spec.per_position:
            return losses
        if self.spec.reduction == "none":
            return losses if losses.dim() < 2 else losses.flatten(1).sum(1) / denominator
        total = losses.sum()
        return total if self.spec.reduction == "sum" else total / denominator

    def explain(self, error: Exception) -> None:
        """Turn an operator's own range error into one that names the index.

        Raises:
            IndexError: A class index lies outside [0, C).
        """
        if self.soft or self.logits.device.type != "cpu":
            return
        named = index_error(self.targets, self.classes, self.spec.ignore_index)
        if named is not None:
            raise named from error

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

    def _denominator(self) -> float | Tensor:
        """What a sum of losses is divided by: 0-d for "mean", (N,) or a number for "none"."""
        if self.spec.per_position:
            return 1
        if self.spec.reduction == "none":
            if self.ignored is None or self.ignored.dim() < 2:
                return max(self.logits[0, 0].numel(), 1) if len(self.logits) else 1
            return (~self.ignored).flatten(1).sum(1).clamp(min=1).to(self.dtype)
        if self.spec.reduction != "mean":
            return 1
        if self.soft or (self.ignored is None and self.target_weight is None):
            return math.prod(self.shape)
        if self.target_weight is None:
            assert self.ignored is not None
            return (~self.ignored).sum().to(self.dtype)
        weights = self.target_weight
        return (weights if self.ignored is None else weights.masked_fill(self.ignored, 0)).sum()

    def _scale(self, weight: float | Tensor, denominator: float | Tensor) -> Tensor:
        """d loss / d (a position's cross-entropy): (N, d1, ...); 0 where nothing is labelled."""
        if isinstance(denominator, Tensor):
            scale = torch.where(denominator == 0, 0.0, weight / denominator)
        else:
            scale = weight / max(denominator, 1)  # type: ignore[assignment]
        if not isinstance(scale, Tensor):
            scale = torch.full((), scale, dtype=self.dtype, device=self.logits.device)
        elif scale.dim() == 1:  # (N,): one a sample
            scale = scale.view(-1, *[1] * (len(self.shape) - 1))
        scale = scale.to(self.dtype).expand(self.shape)
        if self.illegal is not None:
            scale = scale.masked_fill(self.illegal, torch.nan)
        return scale if self.ignored is None else scale.masked_fill(self.ignored, 0.0)

    def _block(self, block: slice, scale: Tensor | None) -> Tensor:
        """Unreduced losses of a block of samples; finishes the block's gradient."""
        logits, targets = self.logits[block], self.targets[block]
        target = None if self.gradient is None else self.gradient[block]
        direct = target is not None and target.dtype == self.dtype and target.is_contiguous()
        log_p = torch.log_softmax(logits.to(self.dtype), 1, out=target if direct else None)
        rows = None if scale is None else scale[block].unsqueeze(1)  # (n, 1, d1, ...)
        if self.soft:
            losses = self._soft(log_p, targets, rows)
        else:
            weight = None if self.target_weight is None else self.target_weight[block].unsqueeze(1)
            losses = self._hard(log_p, targets.unsqueeze(1), weight, rows)
        if target is not None and self.ignored is not None:
            log_p.masked_fill_(self.ignored[block].unsqueeze(1), 0.0)  # NaN · 0 is not 0
        if target is not None and not direct:
            target.copy_(log_p)
        return losses

    def _soft(self, log_p: Tensor, targets: Tensor, rows: Tensor | None) -> Tensor:
        """Losses (n, d1, ...); with `rows`, log p becomes rows · (p·Σq' - q')."""
        smoothing = self.spec.label_smoothing
        q = targets.to(self.dtype)
        if smoothing:
            q = q * (1 - smoothing) + smoothing / self.classes
        if self.class_weight is not None:
            q = q * self._by_class(self.class_weight)
        losses = -(log_p * q).sum(1)
        if rows is not None:
            log_p.exp_().mul_(q.sum(1, keepdim=True)).sub_(q).mul_(rows)
        return losses

    def _hard(
        self, log_p: Tensor, index: Tensor, weight: Tensor | None, rows: Tensor | None
    ) -> Tensor:
        """Losses (n, d1, ...); with `rows`, log p becomes rows · (p·Σq' - q').

        Here q' = a·1[c = t] + b·class_weight with a = (1-ε)·class_weight[t] and b = ε/C.
        """
        smoothing = self.spec.label_smoothing
        classes = None if self.class_weight is None else self._by_class(self.class_weight)
        losses = -log_p.gather(1, index)
        a: float | Tensor = 1 - smoothing
        b = smoothing / self.classes
        if weight is not None:
            a = a * weight
        losses = losses if isinstance(a, float) and a == 1 else losses * a
        if smoothing:
            every = log_p if classes is None else log_p * classes
            losses = losses - b * every.sum(1, keepdim=True)
        if rows is not None:
            even: Any = b * (self.classes if classes is None else classes.sum())
            log_p.exp_().mul_(rows * (a + even if smoothing else a))
            if smoothing:
                log_p.sub_(rows * b if classes is None else rows * b * classes)
            log_p.scatter_add_(1, index, rows * -a)
        return losses.squeeze(1)

    def _by_class(self, values: Tensor) -> Tensor:
        """(C,) as (1, C, 1, ...)."""
        return values.view(1, -1, *[1] * (len(self.shape) - 1))


def _one_sample(tensors: LossTensors) -> bool:
    """Whether the logits are (C,)."""
    logits = tensors.classification_output
    return logits is not None and logits.dim() == 1


def _sum(blocks: Iterable[Tensor]) -> Tensor:
    """The sum of all elements, block after block in order."""
    sums = [block.sum() for block in blocks]
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum()
