"""The CPU backend: plain PyTorch operators and a closed-form backward.

For a position with logits z, `p = softmax(z)` and smoothed, class-weighted targets
`q' = class_weight · ((1-ε)·target + ε/C)`:

    loss      = -Σ_c q'_c · log p_c
    d loss/dz = p · Σ_c q'_c - q'

and for the regression head `d (r-y)²/dr = 2·(r-y)`. Both gradients are finished here, for a
`grad_output` of 1, in the same pass that computes the loss. The logits are taken in blocks of
samples that fit the cache, so the only buffer of the logits' size is the gradient itself: log p is
written into it (or, for half types, into a float32 block) and turned into the gradient in place.

Of few logits the time is that of the operators dispatched, not of the bytes moved: there PyTorch's
own nll_loss and log_softmax kernels are called, forward and backward, in buffers of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
FEW = 32  # logits are few where so many times their number is at most BLOCK_ELEMENTS

nll_loss = torch.ops.aten.nll_loss_forward.default
nll_loss_backward = torch.ops.aten.nll_loss_backward.default
log_softmax_backward = torch.ops.aten._log_softmax_backward_data.default


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
    if not in_place:
        return [g * grad_output for g in gradients]
    if grad_output.device.type == "cpu" and grad_output.item() == 1:  # no accelerator: no sync
        return gradients
    return [g.mul_(grad_output) for g in gradients]


def _run(spec: LossSpec, tensors: LossTensors, needs: Needs, upstream: Tensor | None) -> Outcome:
    r, z, y, t, weights, class_weight = tensors
    dtype = accumulation_dtype(r, z)
    one_sample = z is not None and z.dim() == 1 and spec.per_sample
    w_reg, w_cls = _weights(spec, weights, dtype)
    if upstream is not None:
        upstream = upstream.to(dtype)
        w_reg, w_cls = w_reg * upstream, w_cls * upstream
    mse = ce = grad_r = grad_z = None
    if r is not None and y is not None:
        per_sample = spec.per_sample and not one_sample
        mse, grad_r = _regression(spec, r, y, needs.regression, dtype, w_reg, per_sample)
    if z is not None and t is not None:
        head = _Classification(spec, z, t, needs.classification, class_weight, dtype)
        ce, grad_z = head.run(w_cls)
    if mse is None or ce is None:  # cross_entropy or mse_loss alone: weight 1
        only = ce if mse is None else mse
        assert only is not None
        return Outcome(only, None, grad_r, grad_z)
    loss = mse if upstream is not None else _weighted_sum(w_reg, mse, w_cls, ce)
    return Outcome(loss, torch.stack((mse, ce)) if needs.components else None, grad_r, grad_z)


def _weighted_sum(w_reg: Any, mse: Tensor, w_cls: Any, ce: Tensor) -> Tensor:
    """w_reg · mse + w_cls · ce, in the fewest operators."""
    if isinstance(w_reg, Tensor):
        return w_reg * mse + w_cls * ce
    return torch.add(w_cls * ce, mse, alpha=w_reg)


def _weights(spec: LossSpec, weights: Tensor | None, dtype: torch.dtype) -> tuple[Any, Any]:
    """`(w_reg, w_cls)`: two floats or two 0-d tensors."""
    if weights is None:
        return spec.weights or (1.0, 1.0)
    weights = weights.to(dtype)
    return (weights[0], weights[1]) if weights.dim() else (weights, 1 - weights)


def _blocks(rows: int, *tensors: Any) -> Iterator[tuple[Any, ...]]:
    """The tensors in blocks of `rows` along dimension 0; numbers, 0-d tensors and None go along."""
    first = tensors[0]
    if first.dim() == 0 or first.shape[0] <= rows:
        yield tensors
        return
    for start in range(0, first.shape[0], rows):
        block = slice(start, start + rows)
        yield tuple(t[block] if isinstance(t, Tensor) and t.dim() else t for t in tensors)


def _by_row(values: Any, dims: int) -> Any:
    """(N,) as (N, 1, ...) of `dims` dimensions; anything else as it is."""
    if isinstance(values, Tensor) and values.dim() == 1:
        return values.view(-1, *[1] * (dims - 1))
    return values


# A number is cheaper than a tensor: for small inputs the dispatcher is the cost. So the weights,
# the denominators and the scale of a row stay Python floats wherever the host knows them.


def _regression(
    spec: LossSpec,
    r: Tensor,
    y: Tensor,
    need: bool,
    dtype: torch.dtype,
    weight: Any,
    per_sample: bool,
) -> tuple[Tensor, Tensor | None]:
    """Mean, sum or per-sample mean of (r-y)²; weight · its gradient, where that is needed."""
    if per_sample:
        columns = max(r[0].numel(), 1) if r.shape[0] else 1
        scale = _by_row(2.0 * weight / columns, r.dim())
        errors, gradient = _squared_errors(r, y, need, dtype, scale)
        return errors if errors.dim() < 2 else errors.flatten(1).sum(1) / columns, gradient
    divisor = 1 if spec.reduction == "sum" else max(r.numel(), 1)
    scale = 2.0 * weight / divisor
    if r.numel() <= BLOCK_ELEMENTS:
        errors, gradient = _squared_errors(r, y, need, dtype, scale)
        return errors.sum() if spec.reduction == "sum" else errors.mean(), gradient
    return _long_regression(r, y, need, dtype, scale, divisor)


def _long_regression(
    r: Tensor, y: Tensor, need: bool, dtype: torch.dtype, scale: Any, divisor: int
) -> tuple[Tensor, Tensor | None]:
    """The same block by block, for a sum over all elements."""
    gradient = torch.empty_like(r) if need else None
    if r.is_contiguous() and y.is_contiguous():
        flat = r.view(-1), y.view(-1), None if gradient is None else gradient.view(-1)
    else:
        flat = r, y, gradient
    rows = max(1, BLOCK_ELEMENTS * flat[0].shape[0] // r.numel())
    sums = []
    for r_block, y_block, out in _blocks(rows, *flat):
        errors, finished = _squared_errors(r_block, y_block, need, dtype, scale)
        sums.append(errors.sum())
        if out is not None and finished is not None:
            out.copy_(finished)
    return torch.stack(sums).sum() / divisor, gradient


def _squared_errors(
    r: Tensor, y: Tensor, need: bool, dtype: torch.dtype, scale: Any
) -> tuple[Tensor, Tensor | None]:
    """(r-y)² in `dtype`, and scale · (r-y) in that of r."""
    difference = r.to(dtype) - y.to(dtype)
    gradient = (difference * scale).to(r.dtype) if need else None
    return difference * difference, gradient


class _Classification:
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
        few = 0 < logits.numel() * FEW <= BLOCK_ELEMENTS and logits.dim() == 2
        return plain and few and not self.spec.per_sample and logits.device.type == "cpu"

    def _of_few(self, weight: Any) -> tuple[Tensor, Tensor | None]:
        """By PyTorch's own kernels: two operators forward, two backward."""
        targets, ignore_index = self.targets, self.spec.ignore_index
        reduction = 1 if self.spec.reduction == "mean" else 2
        log_p = torch.log_softmax(self.logits.to(self.dtype), 1)
        loss, labelled = nll_loss(log_p, targets, None, reduction, ignore_index)
        if not self.need:
            return loss, None
        if not isinstance(weight, Tensor):
            weight = torch.tensor(weight, dtype=self.dtype)
        hit = nll_loss_backward(weight, log_p, targets, None, reduction, ignore_index, labelled)
        gradient = log_softmax_backward(hit, log_p, 1, self.dtype).to(self.logits.dtype)
        if labelled.item() != len(targets):  # NaN · 0 is not 0
            gradient.masked_fill_((targets == ignore_index).unsqueeze(1), 0.0)
        return loss, gradient

    def _in_blocks(self, weight: Any) -> tuple[Tensor, Tensor | None]:
        if not self.soft:
            self._read_indices()
        gradient = torch.empty_like(self.logits) if self.need else None
        denominator = self._denominator()
        scale = self._scale(weight, denominator) if self.need else None
        elements = self.logits.numel()
        rows = max(1, BLOCK_ELEMENTS * self.logits.shape[0] // elements) if elements else 1
        views = self.targets, gradient, self.target_weight, self.ignored, scale
        blocks = [self._block(*block) for block in _blocks(rows, self.logits, *views)]
        losses = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
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
            return _by_row(scale, len(self.shape))
        if not isinstance(scale, Tensor):
            scale = torch.full((), scale, dtype=self.dtype, device=self.logits.device)
        scale = _by_row(scale, len(self.shape)).expand(self.shape)
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
