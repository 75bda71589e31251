"""Cross-entropy of a block of samples by plain PyTorch operators: losses, and the gradient.

With smoothed, class-weighted targets q' of mass A = Σ_c q'_c the loss of a position is
`-Σ_c q'_c · log p_c` and its gradient `scale · (A·p - q')`. What is read from memory once stays in
the cache, so the passes over it are what there is to save. `torch.softmax` costs half of
`torch.log_softmax` and an `exp` after it:

    class indices   p = softmax(z), -log p_t, p·(scale·A), -scale·A at t
    and smoothing   z - m, Σ q'·(z - m), p, p_m, p·(scale·A), -scale·q'
    probabilities   log p, Σ q'·log p, -scale·q', and the backward of `log_softmax`

Here m is the largest logit, and log p = z - m + log p_m has the accuracy of `log_softmax` without
its exp. All look at the losses of the block once: where one is no ordinary number they take the
longer way, which knows a p that underflows, NaN in a row without a label, and 0 · log 0 at an
impossible class. On an accelerator no value is read back: there it is always `_exactly`. So it is
where no gradient is wanted: then `log_softmax` is all that there is to do; and for short rows that
are turned, where the bits of `torch.softmax` depend on the number of threads.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_loss.kernels.eager_numbers import class_sums, operand
from fused_loss.kernels.eager_tiles import move
from fused_loss.spec import in_dtype

SMALLEST = -80.0  # of log p: exp(-80) is 2e-35, still a normal number of float32
SMALLEST_P = math.exp(SMALLEST)
LONG_ROW, PIECE = 1024, 128  # classes
EXACT_MOST = 1 << 16  # elements


nll_loss: Any = torch._C._nn.nll_loss  # type: ignore[attr-defined]
log_softmax_backward: Any = torch.ops.aten._log_softmax_backward_data.out
EACH = 0  # no reduction, as PyTorch's operators number it


def bare_losses(
    logits: Tensor, targets: Tensor, class_weight: Tensor | None, out: Tensor, ignore_index: int
) -> Tensor:
    """Losses (n,) of rows (n, C) and class indices where no gradient is wanted; `out` is a buffer.

    Raises:
        IndexError: A class index lies outside [0, C).
    """
    if logits.dtype != out.dtype:
        logits = out.copy_(logits)
    log_p = torch.log_softmax(logits, 1, out=out)
    losses: Tensor = nll_loss(log_p, targets, class_weight, EACH, ignore_index)
    return losses


class Block(NamedTuple):
    """Some samples of a call: (n, C, d1, ...) of logits, and what is known of their positions."""

    logits: Tensor  # (n, C, d1, ...): where they are no tile in the dtype of out, they move there
    targets: Tensor  # indices (n, d1, ...), legal ones; or probabilities (n, C, d1, ...)
    out: Tensor  # (n, C, d1, ...), float32 or float64: p (or log p), then the gradient
    mask: Tensor | None  # (n, C, d1, ...): False where a class is impossible
    weight: Tensor | None  # class_weight[t], (n, d1, ...)
    ignored: Tensor | None  # (n, d1, ...): True where there is no label
    scale: Any  # a number, 0-d or (n, d1, ...), 0 where there is no label; None: no gradient


class Softmax:
    """The arithmetic of a call, block by block; q' = class_weight · ((1-ε)·target + ε/K)."""

    def __init__(
        self,
        smoothing: float,
        class_weight: Tensor | None,
        soft: bool,
        sums: torch.dtype,
        exactly: bool,
    ) -> None:
        self.exactly = exactly  # whether always by the letter
        self.sums = sums  # the dtype of losses, a value a position
        self.smoothing = smoothing  # ε
        self.class_weight = class_weight  # (1, C, 1, ...)
        self.soft = soft  # whether targets are probabilities

    def looks_twice(self, masked: bool) -> bool:
        """Whether the logits of a block must stay until its gradient is finished."""
        return not self.exactly and (self.soft or self.smoothing > 0 or masked)

    def losses(self, block: Block) -> Tensor:
        """Unreduced losses (n, d1, ...); with a scale, `out` holds the gradient afterwards."""
        if block.scale is not None and block.logits.shape[1] == 1:  # p is 1 whatever the logit is
            block = block._replace(scale=block.scale * 0.0)
        if self.exactly or (block.scale is None and block.mask is None):
            return self._exactly(block)
        if not (self.soft or self.smoothing):
            return self._by_probability(block)
        losses = self._by_log_softmax(block) if self.soft else self._by_softmax(block)
        return self._exactly(block) if losses is None else losses

    def _by_probability(self, block: Block) -> Tensor:
        """The losses of class indices without smoothing, from p."""
        index = block.targets.unsqueeze(1)
        known = _target_and_largest(block.logits, index) if block.logits is block.out else None
        p = torch.softmax(_logits(block), 1, out=block.out)
        whole = self._whole(p)
        p_t = in_dtype(p.gather(1, index), self.sums).div_(whole)
        log_p_t = p_t.log().squeeze(1)
        ordinary = _ordinary(log_p_t, SMALLEST, block)
        if not ordinary:
            if block.mask is not None:
                p = torch.softmax(_logits(block, exactly=True), 1, out=block.out)
                whole = self._whole(p)
                p_t = in_dtype(p.gather(1, index), self.sums).div_(whole)
            by_logits = _log_by_logits(p, index, block, known)
            log_p_t = torch.where(p_t > SMALLEST_P, p_t.log(), by_logits.to(p_t)).squeeze(1)
        if block.scale is not None:
            factor = _by_class(block.scale)
            if block.weight is not None:
                factor = factor * block.weight.unsqueeze(1)
            at_t = p_t.sub_(1.0).mul_(factor)  # in float64 rounded once; p·f - f would be twice
            _multiply(p, factor / whole).scatter_(1, index, in_dtype(at_t, p.dtype))
            if not ordinary:
                _clear(p, block)
        if block.weight is not None:
            log_p_t = _times_log(block.weight, log_p_t, block.mask)
        return log_p_t.neg_()

    def _by_log_softmax(self, block: Block, exactly: bool = False) -> Tensor | None:
        """Of probabilities, as autograd has it; None where a row has what it gets wrong."""
        masked = block.mask is not None
        q, log_p = self._probabilities(block), torch.log_softmax(_logits(block, exactly), 1)
        losses = in_dtype(class_sums(torch.mul(q, log_p, out=block.out), masked), self.sums)
        if masked:  # to leave out 0 · log 0, every NaN was left out: one of q or log p shows here
            losses += (class_sums(q) + log_p.amax(1) + losses).mul_(0.0)
        if not _ordinary(losses, -torch.inf, block):
            again = masked and not exactly
            return self._by_log_softmax(block, exactly=True) if again else None
        if block.scale is not None:
            minus = operand(-1.0 * _by_class(block.scale), log_p.dtype)
            upstream = torch.mul(q, minus, out=block.out)
            # In its own place: a row, or a column of positions, is summed before it is written.
            log_softmax_backward(upstream, log_p, 1, log_p.dtype, out=block.out)
        return losses.neg_()

    def _by_softmax(self, block: Block, exactly: bool = False) -> Tensor | None:
        """Of smoothed class indices, from p and the logits less their maximum m; None as above."""
        z = _logits(block, exactly)
        centred = z - z.amax(1, keepdim=True)  # log p = z - m + log p_m
        masked = block.mask is not None
        a, q, index = self._of_label(block), self._spread(block), block.targets.unsqueeze(1)
        losses = in_dtype(centred.gather(1, index), self.sums).mul_(a).squeeze(1)
        losses += class_sums(centred.mul_(q), masked)
        p = torch.softmax(z, 1, out=block.out)
        mass = a + _mass(q, p)
        whole = self._whole(p)
        largest = in_dtype(p.amax(1, keepdim=True), self.sums).div_(whole)
        losses += largest.log_().mul_(mass).squeeze(1)
        ordinary = _ordinary(losses, -torch.inf, block)
        if not ordinary:
            ignored = block.ignored
            if ignored is None or not _ordinary(losses.masked_fill(ignored, 0), -torch.inf, block):
                again = masked and not exactly
                return self._by_softmax(block, exactly=True) if again else None
        if block.scale is not None:
            scale = _by_class(block.scale)
            _multiply(p, mass * scale / whole)
            _subtract(p, scale, q)
            _add_at(p, index, scale * -a)
            if not ordinary:
                _clear(p, block)
        return losses.neg_()

    def _whole(self, p: Tensor) -> Any:
        """Σ_c p, (n, 1, d1, ...): all but 1, by the roundings of the sum within softmax.

        Of a small block, where another operator costs little; of a large one it is left at 1.
        """
        if p.numel() > EXACT_MOST:
            return 1.0
        return p.sum(1, keepdim=True, dtype=self.sums)

    def _exactly(self, block: Block) -> Tensor:
        """The same by the letter, for every value that there is."""
        log_p, mask = _log_softmax(block), block.mask
        if mask is not None:
            log_p.masked_fill_(~mask.any(1, keepdim=True), -torch.inf)
        if self.soft:
            q: Any = self._probabilities(block)
            a: Any = 0.0
            bare = block.scale is None and mask is None
            losses = -class_sums(log_p.mul_(q) if bare else _times_log(q, log_p, mask))
        else:
            a, index = self._of_label(block), block.targets.unsqueeze(1)
            q = self._spread(block) if self.smoothing else 0.0
            losses = _times_log(a, log_p.gather(1, index), mask).neg_().squeeze(1)
            if self.smoothing:
                losses = losses - class_sums(_times_log(q, log_p, mask))
        if block.scale is None:
            return losses
        mass = _mass(q, log_p)
        scale = _by_class(block.scale)
        gradient = _multiply(log_p.exp_(), (a + mass) * scale)
        if self.soft or self.smoothing:
            _subtract(gradient, scale, q)
        if not self.soft:
            _add_at(gradient, index, scale * -a)
        _clear(gradient, block)
        return losses

    def _probabilities(self, block: Block) -> Tensor:
        """q' of probability targets, (n, C, d1, ...)."""
        q = block.targets.to(block.out.dtype)
        if self.smoothing:
            q = q * (1 - self.smoothing) + self._even(block)
        return q if self.class_weight is None else q * self.class_weight

    def _of_label(self, block: Block) -> Any:
        """Of a class index t, what q' has at t alone, (1-ε)·class_weight[t]: as (n, 1, d1, ...)."""
        if block.weight is None:
            return 1 - self.smoothing
        return (1 - self.smoothing) * block.weight.unsqueeze(1)

    def _spread(self, block: Block) -> Any:
        """Of a class index, what q' has at every class, class_weight·ε/K."""
        even = self._even(block)
        return even if self.class_weight is None else even * self.class_weight

    def _even(self, block: Block) -> Any:
        """ε/K: a number or, with a mask, (n, C, d1, ...) with 0 for an impossible class."""
        if block.mask is None:
            return self.smoothing / block.logits.shape[1]
        possible = _as_numbers(block.mask, block.out)
        return possible * (self.smoothing / possible.sum(1, keepdim=True).clamp(min=1))


def _target_and_largest(z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """z_t and m, (n, 1, d1, ...) each; in float64, where their difference cannot overflow."""
    return z.gather(1, index).double(), z.amax(1, keepdim=True).double()


def _log_by_logits(
    p: Tensor, index: Tensor, block: Block, known: tuple[Tensor, Tensor] | None
) -> Tensor:
    """log p_t = (z_t - m) + log p_m, (n, 1, d1, ...), with the largest logit z_m = m."""
    if known is None:
        z = _logits(block._replace(out=torch.empty_like(p)), exactly=True)
        known = _target_and_largest(z, index)
    log_p_t = known[0] - known[1]
    log_p_t += p.amax(1, keepdim=True).double().log_()
    if block.mask is not None:
        log_p_t.masked_fill_(~block.mask.any(1, keepdim=True), -torch.inf)
    return log_p_t


def _logits(block: Block, exactly: bool = False) -> Tensor:
    """The logits in the dtype of `out`, as they are or in `out`; -inf for an impossible class.

    Unless it is done `exactly`, a NaN there stays. `where` and `masked_fill` take a bool at a time;
    the smaller of z and ±inf takes an eighth of their time.
    """
    logits, out, mask = block.logits, block.out, block.mask
    if logits.dtype != out.dtype or not logits.is_contiguous():
        logits = move(logits, out)
    if mask is None:
        return logits
    if exactly:
        return torch.where(mask, logits, out.new_full((), -torch.inf), out=out)
    bound = _as_numbers(mask, out).sub_(0.5).mul_(torch.inf)
    return torch.minimum(logits, bound, out=out)


def _as_numbers(mask: Tensor, out: Tensor) -> Tensor:
    """1 and 0 in the dtype of `out`; by way of bytes, which PyTorch converts many at a time."""
    return mask.view(torch.uint8).to(out.dtype)


def _log_softmax(block: Block) -> Tensor:
    """log p in `out`; NaN where no class is possible."""
    return torch.log_softmax(_logits(block, exactly=True), 1, out=block.out)


def _ordinary(log_p: Tensor, bound: float, block: Block) -> bool:
    """Whether every log p, (n, d1, ...), is above the bound, and so no gradient needs `_clear`.

    A position without a label may have any but NaN: its p are finite, and their scale is 0.
    """
    if log_p.numel() and not log_p.min().item() > bound:
        if block.ignored is None:
            return False
        if not ((log_p > bound) | (block.ignored & (log_p <= bound))).all():
            return False
    return block.mask is None or _finite(block.scale)


def _clear(gradient: Tensor, block: Block) -> None:
    """0 where no label is, and at an impossible class: NaN · 0 is not 0."""
    if block.ignored is not None:
        gradient.masked_fill_(block.ignored.unsqueeze(1), 0.0)
    if block.mask is not None:
        gradient.masked_fill_(~block.mask, 0.0)


def _finite(scale: Any) -> bool:
    """Whether p = 0 at an impossible class leaves a gradient of 0."""
    if isinstance(scale, Tensor):
        return bool(scale.isfinite().all())
    return scale is None or math.isfinite(scale)


def _by_class(values: Any) -> Any:
    """(n, d1, ...) as (n, 1, d1, ...); a number or 0-d as it is."""
    return values.unsqueeze(1) if isinstance(values, Tensor) and values.dim() else values


def _mass(q: Any, p: Tensor) -> Any:
    """Σ_c q_c: (n or 1, 1, d1 or 1, ...), or a number of a number.

    It multiplies p, so on a CPU it is summed in float64: of a long row the sums of its pieces.
    """
    if not isinstance(q, Tensor):
        return q * p.shape[1]
    if not q.is_cpu:
        return q.sum(1, keepdim=True)
    if q.dim() > 2 or q.shape[1] < LONG_ROW:
        return q.sum(1, keepdim=True, dtype=torch.float64)
    whole = q.shape[1] // PIECE * PIECE
    pieces = q[:, :whole].unflatten(1, (-1, PIECE)).sum(2)
    pieces = torch.cat((pieces, q[:, whole:].sum(1, keepdim=True)), 1)
    return pieces.sum(1, keepdim=True, dtype=torch.float64)


def _multiply(p: Tensor, factor: Any) -> Tensor:
    """p *= factor: a number, 0-d or (n, 1, d1, ...)."""
    return p.mul_(operand(factor, p.dtype))


def _subtract(p: Tensor, scale: Any, q: Any) -> None:
    """p -= scale · q, without a temporary of its size."""
    if not isinstance(q, Tensor):
        p.sub_(operand(scale * q, p.dtype))
    elif isinstance(scale, Tensor):
        p.addcmul_(operand(scale, p.dtype), q, value=-1)
    elif q.shape == p.shape:
        p.sub_(q, alpha=scale)
    else:  # with an alpha a q that spreads is rounded otherwise at the ends of a thread's share
        p.sub_(q * scale)


def _add_at(p: Tensor, index: Tensor, values: Any) -> None:
    """p[n, index[n], ...] += values: a number, 0-d or (n, 1, d1, ...)."""
    values = operand(values, p.dtype)
    values = values if isinstance(values, Tensor) else p.new_full((), values)
    p.scatter_add_(1, index, values.expand(index.shape))


def _times_log(q: Any, log_p: Tensor, mask: Tensor | None) -> Tensor:
    """q · log p; with a mask, 0 · log 0 = 0."""
    if mask is not None:
        log_p = log_p.masked_fill((log_p == -torch.inf) & (q == 0), 0.0)
    return log_p if isinstance(q, float) and q == 1 else log_p * q
