"""The classification head of the eager backend: cross-entropy over logits (N, C, d1, ...).

What each position counts, and what the sum is divided by, is settled here, a tile at a time, so
that nothing of the size of all positions is kept. `eager_softmax` computes a tile's losses and its
gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_loss.kernels.eager_numbers import (
    by_row,
    class_sums,
    mean_of,
    number,
    number_of,
    sum_of_parts,
    sums_dtype,
    total,
    weight_over,
)
from fused_loss.kernels.eager_softmax import Block, Softmax, bare_losses
from fused_loss.kernels.eager_tiles import (
    Tile,
    View,
    adjacent,
    blocks,
    cut,
    move,
    short_rows,
    tile_elements,
    tiles,
    view_of,
)
from fused_loss.spec import LossSpec, LossTensors, class_axis, in_dtype, index_error, number_in


class Positions(NamedTuple):
    """What is known of the positions (n, d1, ...) of a tile."""

    targets: Tensor  # indices, legal ones; or probabilities (n, C, d1, ...)
    ignored: Tensor | None  # True where there is no label
    illegal: Tensor | None  # True where the index lies outside [0, C)
    class_weight: Tensor | None  # class_weight[t]
    weight: Tensor | None  # the position's own


class Classification:
    """The classification head of one call: z (N, C, d1, ...) and what is known of its targets."""

    def __init__(
        self, spec: LossSpec, tensors: LossTensors, need: bool, dtype: torch.dtype
    ) -> None:
        logits = tensors.classification_output
        assert logits is not None
        self.spec, self.dtype, self.dims = spec, dtype, logits.dim()
        self.gradient = _buffer(logits, spec.inplace_gradient) if need else None
        self.turned = short_rows(logits, dtype)
        self.view = view_of(tensors, self.gradient, self.turned)
        self.classes, self.shape = class_axis(self.view.logits)  # C; (N, d1, ...)
        self.soft = self.view.probabilities
        self.sums = sums_dtype(logits, dtype, math.prod(self.shape))
        weight = tensors.class_weight
        self.class_weight = None if weight is None else in_dtype(weight, dtype)  # (C,)
        self.normalizer = number(
            spec.classification_normalizer,
            tensors.classification_normalizer,
            self.sums,
            logits.device,
        )
        self.some_ignored = not self.soft and self._may_be_ignored()
        self.last: tuple[Tile, Positions] | None = None  # looked at

    def run(self, weight: Any) -> tuple[Any, Tensor | None]:
        """The reduced loss, a number on a CPU; weight · its gradient, where that is needed.

        Raises:
            IndexError, RuntimeError: On a CPU, a class index lies outside [0, C).
        """
        home = self.view.gradient
        if home is not None and self.spec.inplace_gradient:
            self._refuse_illegal()
        direct = home is not None and home.dtype == self.dtype and home.is_contiguous()
        cover = self._cover(direct)
        if direct and cover[0].along is not None:  # a part of a sample is not dense
            direct, cover = False, self._cover(False)
        denominator = self._denominator(cover)
        share = None if home is None else weight_over(weight, denominator, self.normalizer)
        if home is None and self._is_bare():
            losses = self._bare_tiles(cover)
        else:
            losses = self._tiles(cover, direct, share)
        return self._reduced(losses, denominator), self.gradient

    def _cover(self, direct: bool) -> list[Tile]:
        """The call in tiles; smaller ones where a tile needs buffers of its own."""
        spread = self.soft or self.spec.label_smoothing > 0 or self.view.mask is not None
        logits = self.view.logits
        numel = logits.numel() * logits.itemsize // self.dtype.itemsize
        return tiles(logits.shape, tile_elements(numel, small=spread or not direct))

    def _is_bare(self) -> bool:
        """Whether PyTorch's `nll_loss` has all that the losses of these rows need."""
        return (
            self.view.logits.dim() == 2
            and self.view.logits.is_cpu
            and not self.soft
            and self.view.mask is None
            and self.spec.label_smoothing == 0
        )

    def _bare_tiles(self, cover: list[Tile]) -> Iterator[tuple[Tile, Tensor]]:
        """Unreduced losses (n,), tile by tile, in the fewest operators."""
        scratch = None
        for tile in cover:
            logits = self.view.logits[tile.samples]
            if scratch is None:  # the first tile is the largest
                scratch = logits.new_empty(logits.shape, dtype=self.dtype)
            out = scratch[: len(logits)]
            t = in_dtype(self.view.targets[tile.samples], torch.int64)
            losses = bare_losses(logits, t, self.class_weight, out, self.spec.ignore_index)
            if self.view.weight is not None:
                losses = _counted(losses, self._positions(tile, self.view.tile(tile)))
            yield tile, losses

    def _tiles(self, cover: list[Tile], direct: bool, share: Any) -> Iterator[tuple[Tile, Tensor]]:
        """Unreduced losses (n, d1, ...), tile by tile, and the gradient of each finished.

        p is written straight into the gradient where that is `direct`, a dense tile in the dtype of
        the loss, and otherwise into a buffer. Where the gradient lies in the logits' own memory and
        they are looked at twice, they move.
        """
        softmax, scratch = self._softmax(), None
        twice = softmax.looks_twice(self.view.mask is not None)
        moved = direct and self.spec.inplace_gradient and twice
        for tile in cover:
            part = self.view.tile(tile)
            at = self._positions(tile, part)
            logits, out = part.logits, part.gradient
            if direct and self.spec.inplace_gradient:  # the same memory
                out = logits
            if moved or not direct:
                if scratch is None:  # the first tile is the largest
                    scratch = logits.new_empty(logits.numel(), dtype=self.dtype)
                buffer = scratch[: logits.numel()].view(logits.shape)
                logits, out = (buffer.copy_(logits), out) if moved else (logits, buffer)
            assert out is not None
            mask = adjacent(part.mask) if self.turned else part.mask
            scale = None if share is None else self._scale(share, tile, at)
            losses = softmax.losses(
                Block(logits, at.targets, out, mask, at.class_weight, at.ignored, scale)
            )
            if part.gradient is not None and not direct:
                move(out, part.gradient)
            yield tile, _counted(losses, at)

    def _softmax(self) -> Softmax:
        weight = self.class_weight
        if weight is not None:
            weight = weight.view(1, -1, *[1] * (self.view.logits.dim() - 2))  # (1, C, 1, ...)
        exactly = self.turned or not self.view.logits.is_cpu
        return Softmax(self.spec.label_smoothing, weight, self.soft, self.sums, exactly)

    def _positions(self, tile: Tile, part: View) -> Positions:
        """What the positions of a tile count; a call of one tile asks twice."""
        if self.last is None or self.last[0] is not tile:
            self.last = tile, self._look_at(part)
        return self.last[1]

    def _look_at(self, part: View) -> Positions:
        t = part.targets
        weight = None if part.weight is None else in_dtype(part.weight, self.sums)
        if self.soft:
            return Positions(adjacent(t) if self.turned else t, None, None, None, weight)
        ignored = illegal = by_class = None
        t = in_dtype(t, torch.int64)
        if self.some_ignored:
            ignored = t == self.spec.ignore_index
            t = t.masked_fill(ignored, 0)
        if not t.is_cpu:  # on a CPU `gather` checks the range itself
            illegal = (t < 0) | (t >= self.classes)
            t = t.masked_fill(illegal, 0)
        if self.class_weight is not None:
            by_class = in_dtype(self.class_weight, self.sums)[t]
        return Positions(t, ignored, illegal, by_class, weight)

    def _may_be_ignored(self) -> bool:
        """Whether some position may have no label: an `ignore_index` below 0 is the least index."""
        t = self.view.targets
        if self.spec.ignore_index >= 0 or not t.is_cpu:  # on an accelerator nothing is read back
            return True
        return t.dtype.is_signed and t.numel() > 0 and t.min().item() < 0

    def _refuse_illegal(self) -> None:
        """On a CPU, before a logit is written over for nothing."""
        targets = self.view.targets
        if targets.is_cpu and not self.soft:
            error = index_error(targets, self.classes, self.spec.ignore_index)
            if error is not None:
                raise error

    def _denominator(self, cover: list[Tile]) -> Any:
        """What a sum of losses is divided by: a number or 0-d for "mean", or (N,) for "none"."""
        if self.spec.per_position or self.spec.reduction == "sum":
            return 1
        if self.spec.per_sample:
            return self._labelled_of_samples(cover)
        if self.normalizer is not None:
            return self.normalizer
        if self.view.weight is None and (self.class_weight is None or self.soft):
            return self._labelled() if self.some_ignored else math.prod(self.shape)
        shares = [_share(self._positions(tile, self.view.tile(tile))) for tile in cover]
        return sum_of_parts(shares)

    def _labelled(self) -> Any:
        """How many positions are labelled, a number or 0-d."""
        flat = blocks(self.view.targets.flatten())
        return sum_of_parts([number_of(self._has_label(t), self.sums) for (t,) in flat])

    def _has_label(self, targets: Tensor) -> Tensor:
        return in_dtype(targets, torch.int64) != self.spec.ignore_index

    def _labelled_of_samples(self, cover: list[Tile]) -> Any:
        """How many positions of a sample are labelled, at least 1: a number or (N,)."""
        if self.dims < 3:
            return 1
        if not self.some_ignored:
            return max(math.prod(self.shape[1:]), 1)
        counts = self.view.logits.new_zeros(self.shape[0], dtype=self.sums)
        for tile in cover:
            labelled = self._has_label(cut(self.view.targets, tile))
            counts[tile.samples] += labelled.flatten(1).sum(1)
        return counts.clamp_(min=1)

    def _scale(self, share: Any, tile: Tile, at: Positions) -> Any:
        """d loss / d (a position's cross-entropy): a number, 0-d, or (n, d1, ...).

        0 where a position has no label, and everywhere where nothing has one.
        """
        if isinstance(share, Tensor) and share.dim():  # (N,) or (N, d1, ...)
            share = cut(share[None] if self.turned else by_row(share, len(self.shape)), tile)
        if at.weight is not None:
            share = share * at.weight
        if at.ignored is None and at.illegal is None:
            return share if isinstance(share, Tensor) else number_in(share, self.dtype)
        if not isinstance(share, Tensor):
            share = number_in(share, self.sums)
            share = torch.full((), share, dtype=self.sums, device=at.targets.device)
        share = share.expand(at.targets.shape)
        if at.illegal is not None:
            share = share.masked_fill(at.illegal, torch.nan)
        return share if at.ignored is None else share.masked_fill(at.ignored, 0.0)

    def _reduced(self, losses: Iterator[tuple[Tile, Tensor]], denominator: Any) -> Any:
        """Losses (n, d1, ...) of tiles as the spec reduces them."""
        if self.spec.per_sample:
            return self._apart(losses, denominator)
        whole = sum_of_parts([total(part) for _, part in losses])
        if self.spec.reduction == "sum":
            return whole
        if self.normalizer is not None:
            return whole / denominator
        return mean_of(whole, denominator, self.spec.of_nothing)

    def _apart(self, losses: Iterator[tuple[Tile, Tensor]], denominator: Any) -> Tensor:
        """A value a position, or a sample."""
        a_position = self.spec.per_position or self.dims < 3
        shape = self.shape if a_position else self.shape[:1]
        found = self.view.logits.new_zeros(shape, dtype=self.sums)
        for tile, part in losses:
            if a_position:
                cut(found, tile).copy_(part)
            else:
                found[tile.samples] += class_sums(part.flatten(1))
        if not a_position:
            found = found / denominator
        return found[0] if self.turned or self.dims == 1 else found


def _buffer(logits: Tensor, in_place: bool) -> Tensor:
    """Where the gradient goes: the only buffer of the logits' size, or the logits' own."""
    return logits.detach() if in_place else torch.empty_like(logits)


def _share(at: Positions) -> Any:
    """What the positions of a tile add to the denominator of "mean"."""
    shares = [weight for weight in (at.class_weight, at.weight) if weight is not None]
    share = math.prod(shares[1:], start=shares[0])
    return total(share if at.ignored is None else share.masked_fill(at.ignored, 0))


def _counted(losses: Tensor, at: Positions) -> Tensor:
    """The losses of a tile times what its positions count; 0 without a label."""
    if at.weight is not None:
        losses = losses * at.weight
    if at.illegal is not None:
        losses = losses.masked_fill(at.illegal, torch.nan)
    return losses if at.ignored is None else losses.masked_fill(at.ignored, 0.0)
