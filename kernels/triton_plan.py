"""What a call launches, worked out once for its signature: grids, blocks and buffers.

A plan holds everything of a call but its tensors and the numbers that may change from step to step
(the weights of the two heads, the normalizers). It depends on shapes, strides, dtypes, the device
and the options, and on no address: what an address allows is Triton's to decide, at the launch.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_loss.kernels import layout
from fused_loss.kernels.triton_counts import count_kernel
from fused_loss.kernels.triton_few import FewRows, few_rows
from fused_loss.kernels.triton_grid import (
    PLANS,
    Launch,
    Signature,
    cdiv,
    processors,
    programs,
    stand_in,
)
from fused_loss.kernels.triton_heads import PLACES, Heads, Input
from fused_loss.kernels.triton_per_sample import per_sample_kernel
from fused_loss.kernels.triton_reduce import reduce_kernel
from fused_loss.kernels.triton_split import slices_kernel
from fused_loss.kernels.triton_table import (
    COUNT_BOUND,
    COUNT_CHUNK,
    COUNT_READS,
    SPLIT_MOST,
    Tile,
)
from fused_loss.spec import LossSpec, LossTensors, Needs


class Denominator(NamedTuple):
    """Where the denominator of a head comes from, as `reduce_kernel` has it."""

    kind: str = "number"  # or "tensor", "own", "counted"
    number: float = 1.0

    @property
    def known(self) -> bool:
        """Whether it is known before a target or a weight is read."""
        return self.kind in ("number", "tensor")


class Plan:
    """The launches of one signature and what they write; tensors without memory go in.

    Attributes:
        inputs: Each pointer to a tensor of the call.
        slices: The launch that reads few long rows in slices, before the others.
        count: The launch that counts both heads' denominators, before the other.
        main: The launch that computes the loss, or under `upstream` the gradients.
        loss_shape: Of the loss.
        both: Whether there are both heads, and components beside the loss.
        copies_upstream: Whether `grad_output` has no strides that a kernel can follow.
        r_grad, z_grad: Shape and strides of a gradient to write; None where there is none.
        inplace: Whether the logits' gradient is written over the logits.
        partials: Of programs, elements of scratch.
        published: Of slices, elements of scratch.
        types: Of the inputs.
        tuned: The plan with the fastest tile, where that was asked for: see `triton_autotune`.
    """

    __slots__ = (
        "both", "copies_upstream", "count", "device", "dtype", "inplace", "inputs", "loss_shape",
        "main", "partials", "published", "r_grad", "slices", "tuned", "types", "z_grad",
    )  # fmt: skip

    def __init__(
        self,
        spec: LossSpec,
        tensors: LossTensors,
        needs: Needs,
        device: torch.device,
        upstream: Tensor | None,
        tile: Tile | None = None,
    ) -> None:
        heads = Heads(spec, tensors, needs, deferred=upstream is not None)
        few = few_rows(heads, processors(device))
        if tile is not None:
            heads.tile = tile
        self.device, self.dtype = device, heads.dtype
        self.copies_upstream = (
            upstream is not None and layout.matrix(upstream).tensor is not upstream
        )
        self.both = heads.r.tensor is not None and heads.z.tensor is not None
        self.loss_shape = () if upstream is not None else heads.loss_shape()
        self.inplace = heads.z_grad is not None and spec.inplace_gradient
        self.r_grad, self.z_grad = _recipe(heads.r_grad), _recipe(heads.z_grad)
        self.slices: Launch | None = None
        self.count: Launch | None = None
        self.partials = self.published = 0
        arguments = heads.arguments() | {"DEFERRED": upstream is not None}
        if spec.per_sample:
            self.main = _per_sample(heads, device, arguments, upstream)
        else:
            self.main = self._reduce(heads, arguments, few)
        self.inputs = tuple((pointer, *found) for pointer, found in heads.inputs.items())
        self.types = tuple(str(tensors[place].dtype) for _, place, _ in self.inputs)  # type: ignore[union-attr]
        self.tuned: Plan | None = None

    def _reduce(self, heads: Heads, arguments: dict[str, Any], few: FewRows | None) -> Launch:
        n_cls = n_reg = 0
        warps, resident = heads.tile.warps, heads.tile.programs
        block_m = heads.tile.elements
        if few is not None:
            n_cls, self.published = few.writers, few.published
            reading = few.reading(arguments)
            self.slices = Launch(slices_kernel, few.programs, self.device, warps, **reading)
        elif heads.z.tensor is not None:
            n_cls = programs(cdiv(heads.positions, heads.tile.rows), resident, self.device)
        if heads.r.tensor is not None:
            n_reg = programs(cdiv(heads.elements, block_m), resident, self.device)
        self.partials = 2 * (n_cls + n_reg)
        regression, classification = self._denominators(heads, n_cls, n_reg)
        return Launch(
            reduce_kernel,
            n_cls + n_reg,
            self.device,
            warps,
            **arguments,
            n_cls=n_cls,
            slices=few.slices.number if few else 0,
            columns=few.slices.columns if few else 0,
            elements=heads.elements,
            positions=heads.positions,
            r_denominator=regression.number,
            z_denominator=classification.number,
            of_nothing=heads.spec.of_nothing,
            R_DENOMINATOR=regression.kind,
            Z_DENOMINATOR=classification.kind,
            FLAT=heads.flat() and heads.r.tensor is not None,
            SPLIT=SPLIT_MOST if few else 0,
            STAGES=heads.tile.stages,
            ROWS=heads.tile.rows,
            BLOCK_M=block_m,
        )

    def _denominators(
        self, heads: Heads, n_cls: int, n_reg: int
    ) -> tuple[Denominator, Denominator]:
        """Of both heads; those that a launch of their own has to find are counted there."""
        spec, tensors = heads.spec, heads.tensors
        by_weight = heads.element_weight.tensor is not None or spec.ignores_nan
        r = _denominator(
            spec,
            heads.r.tensor,
            spec.regression_normalizer,
            tensors.regression_normalizer,
            None if by_weight else heads.elements,
        )
        by_weight = not heads.soft or heads.position_weight.tensor is not None
        z = _denominator(
            spec,
            heads.z.tensor,
            spec.classification_normalizer,
            tensors.classification_normalizer,
            None if by_weight else heads.positions,
        )
        if r.kind == "tensor":
            heads.inputs["r_denominator_ptr"] = Input(PLACES["regression_normalizer"])
        if z.kind == "tensor":
            heads.inputs["z_denominator_ptr"] = Input(PLACES["classification_normalizer"])
        count_r = not r.known and heads.r_grad is not None and _counted(heads.elements, n_reg)
        count_z = not z.known and heads.z_grad is not None and _counted(heads.positions, n_cls)
        if count_r or count_z:
            self.count = _count(heads, self.device, count_r, count_z)
            self.partials = max(self.partials, self.count.programs)
        return Denominator("counted") if count_r else r, Denominator("counted") if count_z else z


def plan(
    spec: LossSpec,
    tensors: LossTensors,
    needs: Needs,
    upstream: Tensor | None = None,
    tile: Tile | None = None,
) -> Plan:
    """The plan of a call.

    Args:
        spec: Its scalars.
        tensors: Its tensors, of which only the signature counts.
        needs: Which gradients are wanted.
        upstream: The `grad_output` of gradients that have waited for it.
        tile: In place of the launch table's.
    """
    device = next(tensor for tensor in tensors if tensor is not None).device
    return recall(
        # What a spec says but the numbers: they change from step to step, and are launched as such.
        spec.reduction,
        spec.ignore_index,
        spec.label_smoothing,
        spec.per_position,
        spec.nan_targets,
        spec.empty,
        spec.regression_normalizer is not None,
        spec.classification_normalizer is not None,
        spec.inplace_gradient,
        needs,
        device,
        tile,
        None if upstream is None else (upstream.shape, upstream.stride(), upstream.dtype),
        *[t if t is None else (t.shape, t.stride(), t.dtype) for t in tensors],
    )


@functools.lru_cache(PLANS)
def recall(
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    per_position: bool,
    nan_targets: str,
    empty: str,
    r_normalizer: bool,
    z_normalizer: bool,
    inplace_gradient: bool,
    needs: Needs,
    device: torch.device,
    tile: Tile | None,
    upstream: Signature | None,
    *signatures: Signature | None,
) -> Plan:
    """The same, by what it depends on."""
    tensors = LossTensors(*map(stand_in, signatures))
    spec = LossSpec(
        reduction,
        ignore_index,
        label_smoothing,
        None if tensors.weights is not None else (1.0, 1.0),
        per_position,
        nan_targets,
        empty,
        1.0 if r_normalizer else None,
        1.0 if z_normalizer else None,
        inplace_gradient,
    )
    return Plan(spec, tensors, needs, device, stand_in(upstream), tile)


def _recipe(gradient: Tensor | None) -> tuple[torch.Size, tuple[int, ...]] | None:
    return None if gradient is None else (gradient.shape, gradient.stride())


def _denominator(
    spec: LossSpec,
    output: Tensor | None,
    number: float | None,
    tensor: Tensor | None,
    count: int | None,
) -> Denominator:
    """Of a head: the caller's, the `count` of what is labelled, or for the kernel to find."""
    if output is None or spec.reduction == "sum":
        return Denominator()
    if tensor is not None:
        return Denominator("tensor")
    if number is not None:
        return Denominator(number=number)
    if count is None:
        return Denominator("own")
    nothing = 1 if spec.empty == "zero" else 0  # 0/1 or 0/0
    return Denominator(number=float(count or nothing))


def _counted(number: int, programs: int) -> bool:
    """Whether so many are too many for so many programs to count each for itself."""
    return number > COUNT_BOUND or number * programs > COUNT_READS


def _count(heads: Heads, device: torch.device, count_r: bool, count_z: bool) -> Launch:
    """The launch that finds both denominators of "mean", (2,)."""
    n_cls = cdiv(heads.positions, COUNT_CHUNK) if count_z else 0
    n_reg = cdiv(heads.elements, COUNT_CHUNK) if count_r else 0
    return Launch(
        count_kernel,
        n_cls + n_reg,
        device,
        warps=4,
        t_stride_n=heads.t.stride_n,
        t_stride_s=heads.t.stride_s,
        position_weight_stride_n=heads.position_weight.stride_n,
        position_weight_stride_s=heads.position_weight.stride_s,
        **heads.y.strides("y"),
        **heads.element_weight.strides("element_weight"),
        n_cls=n_cls,
        chunk=COUNT_CHUNK,
        positions=heads.positions,
        elements=heads.elements,
        S=heads.z.positions,
        C=heads.z.classes,
        D=heads.r.columns,
        ignore_index=heads.spec.ignore_index,
        **_options_of_counting(heads, count_r, count_z),
        FLAT=heads.flat() and count_r,
    )


def _options_of_counting(heads: Heads, count_r: bool, count_z: bool) -> dict[str, Any]:
    """The options of the heads that are counted: others would compile the same code again."""
    options = heads.options()
    del options["HAS_MASK"]
    for name in ("SOFT", "HAS_WEIGHT", "HAS_POSITION_WEIGHT"):
        options[name] = options[name] and count_z
    for name in ("HAS_ELEMENT_WEIGHT", "IGNORE_NAN"):
        options[name] = options[name] and count_r
    if options["SOFT"]:
        options["HAS_WEIGHT"] = False
    return {**options, "COUNT_R": count_r, "COUNT_Z": count_z}


def _per_sample(
    heads: Heads, device: torch.device, arguments: dict[str, Any], upstream: Tensor | None
) -> Launch:
    one_position = heads.z.positions == 1 or heads.spec.per_position
    block_m = heads.tile.elements * 2 // heads.dtype.itemsize  # sums a sample take registers too
    rows = block_m if heads.z.tensor is None else heads.tile.rows
    group = rows if one_position else 1
    seen = layout.Matrix(None) if upstream is None else layout.matrix(upstream)
    return Launch(
        per_sample_kernel,
        programs(cdiv(heads.samples(), group), heads.tile.programs, device),
        device,
        heads.tile.warps,
        **arguments,
        samples=heads.samples(),
        positions=heads.positions,
        grad_output_inner=seen.columns,
        grad_output_stride_n=seen.stride_n,
        grad_output_stride_s=seen.stride_d,
        ONE_POSITION=one_position,
        ROWS=rows,
        SAMPLES=group,
        BLOCK_D=max(1, block_m // group),
    )
