"""A call's signature as the kernels see it: both heads as strided views, and their gradients.

Shapes, strides and dtypes say it all. The tensors here have no memory: they stand for those of any
call with this signature, and `Input` says which of them a kernel's pointer is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from fused_loss.kernels import layout
from fused_loss.kernels.triton_math import PEELED, VECTOR
from fused_loss.kernels.triton_table import tile
from fused_loss.spec import LossSpec, LossTensors, Needs, accumulation_dtype

PLACES = {name: place for place, name in enumerate(LossTensors._fields)}


class Input(NamedTuple):
    """A tensor of the call that a kernel reads, and what makes it readable, if it is not."""

    place: int  # in LossTensors
    prepare: Callable[[Tensor], Tensor] | None = None


def _as_bytes(mask: Tensor) -> Tensor:
    return mask.view(torch.uint8)


def _as_dense_bytes(mask: Tensor) -> Tensor:
    return mask.view(torch.uint8).contiguous()


class Heads:
    """The views of one signature; `deferred`: a head whose gradient is not needed is left out."""

    def __init__(
        self, spec: LossSpec, tensors: LossTensors, needs: Needs, deferred: bool = False
    ) -> None:
        r, z = tensors.regression_output, tensors.classification_output
        self.spec, self.tensors = spec, tensors
        self.inputs: dict[str, Input] = {}  # by pointer
        self.dtype = accumulation_dtype(r, z)
        self.one_sample = z is not None and z.dim() == 1
        self.class_weight = False
        self.r_grad: Tensor | None = None
        self.z_grad: Tensor | None = None
        self.r = self.y = self.r_out = self.element_weight = layout.Matrix(None)
        self.z = self.t = self.z_out = self.class_mask = layout.Rows(None)
        self.position_weight = layout.Rows(None)
        if r is not None and (needs.regression or not deferred):
            self._regression(r, needs.regression)
        if z is not None and (needs.classification or not deferred):
            self._classification(z, needs.classification)
        if tensors.weights is not None:
            self.inputs["weights_ptr"] = Input(PLACES["weights"])
        self.elements = self.r.rows * self.r.columns
        self.positions = self.z.samples * self.z.positions
        self.soft = self.z.tensor is not None and tensors.probabilities
        self.smooth = self.z.tensor is not None and spec.label_smoothing > 0
        between_rows = self.z.stride_s if self.z.positions > 1 else self.z.stride_n
        self.adjacent = self.z.stride_c == 1 or self.z.stride_c < between_rows
        targets = self.soft or self.smooth or self.class_weight
        self.values = 1 + targets + (self.class_mask.tensor is not None)
        self.tile = tile(self.z.classes, self.adjacent, self.values, self.dtype.itemsize)

    def _reads(self, pointer: str, name: str, copied: bool) -> None:
        self.inputs[pointer] = Input(PLACES[name], torch.Tensor.contiguous if copied else None)

    def _regression(self, r: Tensor, need: bool) -> None:
        y, weight = self.tensors.regression_targets, self.tensors.regression_weight
        assert y is not None
        whole = self.one_sample and self.spec.per_sample  # (C,): all of r is one sample
        self.r_grad = layout.gradient_like(r, merged=0 if whole else 1) if need else None
        out = r if self.r_grad is None else self.r_grad
        if whole:
            r, y, out = r[None], y[None], out[None]
            weight = None if weight is None else weight[None]
        self.r, self.y, self.r_out = layout.matrix(r), layout.matrix(y), layout.matrix(out)
        self._reads("r_ptr", "regression_output", self.r.tensor is not r)
        self._reads("y_ptr", "regression_targets", self.y.tensor is not y)
        if weight is not None:
            self.element_weight = layout.matrix(weight)
            copied = self.element_weight.tensor is not weight
            self._reads("element_weight_ptr", "regression_weight", copied)

    def _classification(self, z: Tensor, need: bool) -> None:
        t, class_weight = self.tensors.classification_targets, self.tensors.class_weight
        mask, weight = self.tensors.class_mask, self.tensors.classification_weight
        assert t is not None
        self.z = layout.rows(z)
        self._reads("z_ptr", "classification_output", self.z.tensor is not z)
        self.z_out = self.z
        if need and self.spec.inplace_gradient:
            self.z_grad = z
        elif need:
            self.z_grad = layout.gradient_like(z, merged=2)
            self.z_out = layout.rows(self.z_grad)
        self.t = layout.rows(t) if t.is_floating_point() else layout.index_rows(t)
        self._reads("t_ptr", "classification_targets", self.t.tensor is not t)
        if class_weight is not None:
            self.class_weight = True
            self._reads("class_weight_ptr", "class_weight", not class_weight.is_contiguous())
        if mask is not None:
            self.class_mask = layout.rows(mask)
            prepare = _as_bytes if self.class_mask.tensor is mask else _as_dense_bytes
            self.inputs["class_mask_ptr"] = Input(PLACES["class_mask"], prepare)
        if weight is not None:
            self.position_weight = layout.index_rows(weight)
            copied = self.position_weight.tensor is not weight
            self._reads("position_weight_ptr", "classification_weight", copied)

    def loss_shape(self) -> tuple[int, ...]:
        """Of the loss; that of the components has a 3 before it."""
        if self.spec.per_position:
            assert self.z.tensor is not None
            return (self.z.samples, *self.z.tensor.shape[2:])
        if self.spec.reduction == "none" and not self.one_sample:
            return (self.samples(),)
        return ()

    def arguments(self) -> dict[str, Any]:
        """What both kernels take but pointers: the heads, the weights and the options."""
        weights = self.tensors.weights
        kind = "scalars" if weights is None else "pair" if weights.dim() else "alpha"
        position_weight = self.position_weight.strides("position_weight")
        del position_weight["position_weight_stride_c"]
        return {
            **self.r.strides("r"),
            **self.y.strides("y"),
            **self.r_out.strides("r_grad"),
            **self.element_weight.strides("element_weight"),
            **self.z.strides("z"),
            **self.t.strides("t"),
            **self.z_out.strides("z_grad"),
            **self.class_mask.strides("class_mask"),
            **position_weight,
            "D": self.r.columns,
            "S": self.z.positions,
            "C": self.z.classes,
            "weights_stride": weights.stride(0) if kind == "pair" and weights is not None else 0,
            "ignore_index": self.spec.ignore_index,
            "smoothing": float(self.spec.label_smoothing),
            "HAS_REGRESSION": self.r.tensor is not None,
            "HAS_CLASSIFICATION": self.z.tensor is not None,
            "WEIGHTS": kind,
            **self.options(),
            "SMOOTH": self.smooth,
            "GRAD_R": self.r_grad is not None,
            "GRAD_Z": self.z_grad is not None,
            "INPLACE": self.z_grad is not None and self.spec.inplace_gradient,
            "ONE_BLOCK": self.tile.one_block,
            "UNIT": self._unit(),
            "BLOCK_C": self.tile.block_c,
        }

    def _unit(self) -> int:
        """What divides C and the distance of rows, up to 16: their alignment is a vector's then.

        1 where the classes of a row are apart in memory. Of 16 Triton knows by itself.

        A long row that is not aligned so is peeled, if all that has its shape is aligned as it is.
        """
        if self.z.tensor is None or self.z.stride_c != 1:
            return 1
        seen = self.z, self.z_out, self.class_mask, *([self.t] if self.soft else [])
        views = [view for view in seen if view.tensor is not None]
        between = [(view.stride_n, view.stride_s) for view in views]
        common = math.gcd(16, self.z.classes, *(stride for pair in between for stride in pair))
        begins = {(n % VECTOR.value, s % VECTOR.value) for n, s in between}
        alike = len(begins) == 1 and all(view.stride_c == 1 for view in views)
        long = self.tile.rows == 1 and not self.tile.one_block
        if common * self.z.tensor.itemsize < 16 and long and alike:
            return PEELED.value
        return common

    def options(self) -> dict[str, Any]:
        """What every kernel that reads targets is told of them."""
        return {
            "SOFT": self.soft,
            "HAS_WEIGHT": self.class_weight,
            "HAS_MASK": self.class_mask.tensor is not None,
            "HAS_POSITION_WEIGHT": self.position_weight.tensor is not None,
            "HAS_ELEMENT_WEIGHT": self.element_weight.tensor is not None,
            "IGNORE_NAN": self.r.tensor is not None and self.spec.ignores_nan,
            "ACC": tl.float64 if self.dtype == torch.float64 else tl.float32,
        }

    def flat(self) -> bool:
        """Whether element n·D + d of everything of the regression head lies at offset n·D + d."""
        views = self.r, self.y, self.r_out, self.element_weight
        return all(view.tensor is None or view.flat for view in views)

    def samples(self) -> int:
        """How many values a loss has under "none"."""
        if self.spec.per_position:
            return self.positions
        return self.r.rows if self.z.tensor is None else self.z.samples
