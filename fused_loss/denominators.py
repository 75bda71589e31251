"""What "mean" divides by: the denominators of a batch, added up over micro-batches and processes.

A mean of means is not the mean where the parts are uneven. So the parts are divided by the
denominators of the whole, `Σ_k loss_k / total`, and each head has a denominator of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import torch
import torch.distributed as dist
from torch import Tensor

from fused_loss.checks import check_targets
from fused_loss.options import signed
from fused_loss.spec import LossSpec, class_axis, index_error

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Normalizers(TypedDict):
    """Two keywords of `combined_loss`."""

    regression_normalizer: Tensor
    classification_normalizer: Tensor


@dataclass(frozen=True)
class Denominators:
    """What each head's "mean" divides by: 0-d tensors on the device, of one dtype.

    Not a tuple: `+` on tuples joins them.

    Attributes:
        regression: `Σ regression_weight` over the elements that are not missing.
        classification: `Σ classification_weight·class_weight[t]` over the labelled positions (class
            indices), or `Σ classification_weight` (probabilities).
    """

    regression: Tensor
    classification: Tensor

    @staticmethod
    def total(parts: Iterable[Denominators]) -> Denominators:
        """The denominators of all micro-batches together: the sum of theirs.

        Raises:
            ValueError: There is no part.
            TypeError: A part is something else.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("parts is empty: give the denominators of at least one micro-batch")
        for part in parts:
            if not isinstance(part, Denominators):
                raise TypeError(
                    f"parts must hold Denominators, got {type(part).__name__}: "
                    "give one loss_denominators(...) a micro-batch"
                )
        return Denominators(
            torch.stack([part.regression for part in parts]).sum(0),
            torch.stack([part.classification for part in parts]).sum(0),
        )

    def across(self, group: ProcessGroup | None = None) -> Denominators:
        """Those of all processes together, as DistributedDataParallel needs them: divided by W.

        The loss of the whole batch is `L = Σ_w S_w / D`: S_w is what process w adds up, D the
        denominators of all W processes together. DistributedDataParallel averages the gradients of
        the losses l_w, `(1/W)·Σ_w ∇l_w`. That is `∇L` for `l_w = S_w / (D/W)`, so D/W is what comes
        back. The mean over the processes of their losses is L, too.

        One all-reduce for both heads, which every process of the group has to join; nothing is read
        back.

        Args:
            group: The processes among which gradients are averaged; None: all of them.

        Raises:
            RuntimeError: `torch.distributed` has no process group, or this process is not in it.
        """
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "across() adds up over processes and there is no process group: call "
                "torch.distributed.init_process_group first, or leave across() out for one process"
            )
        world = dist.get_world_size(group)
        if world < 1:
            raise RuntimeError("group does not contain this process: call across() within it only")
        both = torch.stack((self.regression, self.classification))
        dist.all_reduce(both, group=group)
        return Denominators(*(both / world).unbind())

    def normalizers(self, empty: str = "nan") -> Normalizers:
        """The keywords of `combined_loss` that put these in the place of a micro-batch's own.

        Args:
            empty: As in `combined_loss`, for a head in which the whole batch has no label at all:
                "nan" gives a loss of NaN and a gradient of 0, "zero" a loss of 0.

        Raises:
            ValueError: `empty` is neither of the two.
        """
        zero = LossSpec(empty=empty).empty == "zero"
        regression, classification = (
            value.where(value != 0, value.new_ones(())) if zero else value
            for value in (self.regression, self.classification)
        )
        return {"regression_normalizer": regression, "classification_normalizer": classification}


def loss_denominators(
    regression_targets: Tensor,
    classification_targets: Tensor,
    *,
    class_weight: Tensor | None = None,
    regression_weight: Tensor | None = None,
    classification_weight: Tensor | None = None,
    ignore_index: int = -100,
    nan_targets: str = "propagate",
) -> Denominators:
    """What `combined_loss` divides by under "mean", for a batch with these targets.

    For gradient accumulation and data parallel: add up those of all micro-batches and processes,
    and every micro-batch's loss is then a share of the whole batch's:

        parts = [loss_denominators(y, t, nan_targets="ignore") for x, y, t in micro_batches]
        whole = Denominators.total(parts)  # under DistributedDataParallel: .across()
        for x, y, t in micro_batches:
            loss = combined_loss(*model(x), y, t, nan_targets="ignore", **whole.normalizers())
            loss.backward()

    Nothing is read back from a device. The outputs are not needed, so all micro-batches can be
    counted before the first of them goes through the model. `class_mask` and `label_smoothing` have
    no part in it.

    Args:
        regression_targets: As in `combined_loss`; so are all the others. Give both calls the same.
        classification_targets: Class indices (N, d1, ...), or probabilities (N, C, d1, ...), (C,).
        class_weight: (C,).
        regression_weight: As many dimensions as `regression_targets`, each equal or 1.
        classification_weight: As many dimensions as the positions (N, d1, ...), each equal or 1.
        ignore_index: The class index of positions without a label.
        nan_targets: "ignore" where a NaN in `regression_targets` is a missing label.

    Returns:
        Two 0-d tensors: float64 where one of the arguments is, else float32.

    Raises:
        ValueError: Shapes, devices or options that do not go together.
        TypeError: An argument of the wrong type or dtype.
        IndexError: On a CPU, with a `class_weight`, a class index outside [0, C) that is not
            `ignore_index`.
    """
    spec = LossSpec(ignore_index=ignore_index, nan_targets=nan_targets)
    y, t = regression_targets, classification_targets
    check_targets(spec, y, t, class_weight, regression_weight, classification_weight)
    given = (y, t, class_weight, regression_weight, classification_weight)
    double = any(tensor is not None and tensor.dtype == torch.float64 for tensor in given)
    empty = y.new_empty((), dtype=torch.float64 if double else torch.float32)
    present = ~y.isnan() if spec.ignores_nan else None
    regression = _sum(empty, y.shape, present, regression_weight)
    if t.is_floating_point():
        positions = class_axis(t)[1]
        return Denominators(regression, _sum(empty, positions, None, classification_weight))
    t = (signed(t) if t.dtype == torch.uint64 else t).long()
    labelled = t != ignore_index
    share = None if class_weight is None else _weight_of(t, labelled, class_weight, ignore_index)
    classification = _sum(empty, t.shape, labelled, classification_weight, share)
    return Denominators(regression, classification)


def _sum(
    like: Tensor, shape: tuple[int, ...], present: Tensor | None, *weights: Tensor | None
) -> Tensor:
    """Σ of the product of the weights over the elements that are present; without any, their count.

    In the dtype and on the device of `like`.
    """
    share = None
    for weight in weights:
        if weight is not None:
            share = weight.to(like.dtype) if share is None else share * weight.to(like.dtype)
    if share is None:
        return like.new_full((), math.prod(shape)) if present is None else present.sum().to(like)
    share = share.expand(shape)
    return (share if present is None else share.where(present, share.new_zeros(()))).sum()


def _weight_of(t: Tensor, labelled: Tensor, class_weight: Tensor, ignore_index: int) -> Tensor:
    """class_weight[t] in the shape of t; off the CPU an illegal index, whose loss is NaN, has any.

    Raises:
        IndexError: On a CPU, an index lies outside [0, C).
    """
    classes = len(class_weight)
    if t.device.type == "cpu" and not torch.compiler.is_compiling():
        error = index_error(t, classes, ignore_index)
        if error is not None:
            raise error
    legal = labelled & (t >= 0) & (t < classes)
    return class_weight[t.where(legal, t.new_zeros(()))]
