"""Grids, blocks and buffers: everything between a checked call and a kernel.

Beside the launch itself nothing but allocations and views reaches the dispatcher, and no value is
read back from the device. One launch computes the loss and both gradients; class indices at more
than COUNT_BOUND positions under "mean" cost a second one, before it, that counts the labels.
"""

from __future__ import annotations

import functools
import threading
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_loss.kernels import layout
from fused_loss.kernels.triton_per_sample import per_sample_kernel
from fused_loss.kernels.triton_reduce import count_kernel, reduce_kernel
from fused_loss.kernels.triton_scale import scale_kernel
from fused_loss.spec import LossSpec, LossTensors, Needs, Outcome, accumulation_dtype

# --- the launch table (no figure here has been measured on hardware yet) --------------------------

TILE = 2048  # elements of logits a program holds: 16 a thread at 4 warps
STRIDED_TILE = 1024  # the same where classes are not adjacent in memory: an address an element
STRIDED_BLOCK = 64  # and the columns of its blocks
MOST_ROWS = 128  # of a tile: one a thread, since each holds a dozen addresses and sums
BLOCK_MAX = 16384  # columns of float32 that are kept in registers, at 16 warps
STREAM_BLOCK = 8192  # columns a block of a longer row
BLOCK_M = 2048  # elements of the regression head a program takes at a time
SCALE_BLOCK = 4096  # elements of a gradient that are scaled at a time
COUNT_BOUND = 1 << 14  # positions whose labels each program counts itself: 128 KiB of int64
COUNT_CHUNK = 1 << 13  # positions a program of the counting kernel
INTERPRETER_PROCESSORS = 2


class Tile(NamedTuple):
    """The tiling of the logits: ROWS × BLOCK_C at a time, by `warps` warps."""

    rows: int
    block_c: int
    one_block: bool
    warps: int


@functools.lru_cache(maxsize=1024)
def tile(classes: int, adjacent: bool, plain: bool, itemsize: int) -> Tile:
    """The tiling for rows of this length.

    Args:
        classes: C.
        adjacent: Whether the classes of a row are adjacent in memory.
        plain: Whether the targets are class indices, unweighted and unsmoothed; anything else keeps
            a second value a class in registers.
        itemsize: Bytes of a value in registers, 4 or 8.
    """
    width = (1 if plain else 2) * itemsize // 4  # registers an element, in float32s
    room = width * (itemsize // 4) ** 2  # float64 takes the most for its arithmetic
    longest = BLOCK_MAX // room if adjacent else STRIDED_BLOCK
    block = triton.next_power_of_2(classes)
    block_c = block if block <= longest else min(longest, STREAM_BLOCK // room)
    held = (TILE if adjacent else STRIDED_TILE) // room
    rows = min(MOST_ROWS, max(1, held // block_c))
    warps = min(16, max(4, block_c * width // 1024))
    return Tile(rows, block_c, block <= longest, warps)


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type == "cpu":
        return INTERPRETER_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _programs(tiles: int, warps: int, device: torch.device) -> int:
    """One wave of resident programs at the most: each walks its tiles in a loop."""
    return max(1, min(tiles, _processors(device) * max(1, 32 // warps)))


# --- the backend ----------------------------------------------------------------------------------


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, on CPU tensors."""
    return not isinstance(reduce_kernel, triton.JITFunction)


def forward(spec: LossSpec, tensors: LossTensors, needs: Needs) -> Outcome:
    """The loss, its components, and the gradients that are needed (for a `grad_output` of 1)."""
    call = _Call(spec, tensors, needs)
    loss, components = call.outputs()
    call.run(loss, components, None)
    return Outcome(loss, components, call.r_grad, call.z_grad)


def gradients(
    spec: LossSpec, tensors: LossTensors, needs: Needs, grad_output: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients for `grad_output`, () or (N,), computed from the inputs."""
    call = _Call(spec, tensors, needs)
    call.run(None, None, grad_output)
    return call.r_grad, call.z_grad


def scale(gradients: list[Tensor], grad_output: Tensor, in_place: bool) -> list[Tensor]:
    """The stored gradients times a 0-d `grad_output`; in place where nobody else will read them."""
    results = gradients if in_place else [torch.empty_like(g) for g in gradients]
    a, b = gradients[0], gradients[-1]
    b_elements = b.numel() if len(gradients) > 1 else 0
    tiles = triton.cdiv(max(a.numel(), b_elements), 4 * SCALE_BLOCK)
    double = torch.float64 in (a.dtype, b.dtype, grad_output.dtype)
    launch(
        scale_kernel,
        _programs(tiles, 4, a.device),
        a.device,
        warps=4,
        grad_output_ptr=grad_output,
        a_ptr=a,
        a_out_ptr=results[0],
        b_ptr=b,
        b_out_ptr=results[-1],
        a_elements=a.numel(),
        b_elements=b_elements,
        IN_PLACE=in_place,
        BLOCK=SCALE_BLOCK,
        ACC=tl.float64 if double else tl.float32,
    )
    return results


def launch(kernel: Any, programs: int, device: torch.device, warps: int, **arguments: Any) -> None:
    """Start `programs` programs of a kernel on the tensors' device."""
    other = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if other else nullcontext():
        # Fused multiply-add, as Triton has always compiled; said aloud, 3.9 warns where it is not.
        kernel[(programs,)](**arguments, num_warps=warps, enable_fp_fusion=True)


_tickets = threading.local()


def _ticket(device: torch.device) -> Tensor:
    """The int32 zero that a launch counts its programs on, and leaves at zero.

    One a thread and stream, so that two launches at once never share it. A captured CUDA graph may
    be replayed on any stream: it gets a ticket of its own, zeroed within the graph.
    """
    stream = 0
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            return torch.zeros((), dtype=torch.int32, device=device)
        stream = torch.cuda.current_stream(device).cuda_stream
    known: dict[tuple[torch.device, int], Tensor] = _tickets.__dict__.setdefault("known", {})
    ticket = known.get((device, stream))
    if ticket is None:
        ticket = known[device, stream] = torch.zeros((), dtype=torch.int32, device=device)
    return ticket


class _Call:
    """One call: both heads as the kernels see them, and the gradients to write."""

    def __init__(self, spec: LossSpec, tensors: LossTensors, needs: Needs) -> None:
        r, z, y, t, self.weights, class_weight = tensors[:6]
        self.class_weight = None if class_weight is None else class_weight.contiguous()
        self.spec = spec
        self.dtype = accumulation_dtype(r, z)
        self.one_sample = z is not None and z.dim() == 1
        self.r_grad: Tensor | None = None
        self.z_grad: Tensor | None = None
        self.r = self.y = self.r_out = layout.Matrix(None)
        self.z = self.t = self.z_out = layout.Rows(None)
        if r is not None and y is not None:
            self._regression(r, y, needs.regression)
            self.device = r.device
        if z is not None and t is not None:
            self._classification(z, t, needs.classification)
            self.device = z.device
        self.soft = tensors.probabilities
        self.smooth = z is not None and spec.label_smoothing > 0
        self.positions = self.z.samples * self.z.positions
        between_rows = self.z.stride_s if self.z.positions > 1 else self.z.stride_n
        adjacent = self.z.stride_c == 1 or self.z.stride_c < between_rows
        plain = not (self.soft or self.smooth or self.class_weight is not None)
        self.tile = tile(self.z.classes, adjacent, plain, self.dtype.itemsize)

    def _regression(self, r: Tensor, y: Tensor, need: bool) -> None:
        self.r_grad = layout.gradient_like(r, merged=1) if need else None
        out = r if self.r_grad is None else self.r_grad
        if self.one_sample and self.spec.per_sample:  # (C,): all of r is one sample
            r, y, out = r[None], y[None], out[None]
        self.r, self.y, self.r_out = layout.matrix(r), layout.matrix(y), layout.matrix(out)

    def _classification(self, z: Tensor, t: Tensor, need: bool) -> None:
        self.z_grad = layout.gradient_like(z, merged=2) if need else None
        self.z = layout.rows(z)
        self.z_out = self.z if self.z_grad is None else layout.rows(self.z_grad)
        self.t = layout.rows(t) if t.is_floating_point() else layout.index_rows(t)

    def outputs(self) -> tuple[Tensor, Tensor | None]:
        """Uninitialised loss and components."""
        shape: tuple[int, ...] = ()
        if self.spec.per_position:
            assert self.z.tensor is not None
            shape = (self.z.samples, *self.z.tensor.shape[2:])
        elif self.spec.reduction == "none" and not self.one_sample:
            shape = (self._samples(),)
        if self.r.tensor is None or self.z.tensor is None:
            return self._empty(*shape), None
        return self._empty(*shape), self._empty(2, *shape)

    def run(
        self, loss: Tensor | None, components: Tensor | None, grad_output: Tensor | None
    ) -> None:
        """Launch the kernel of this reduction: for the loss, or for the gradients alone."""
        arguments = self._arguments()
        arguments.update(
            loss_ptr=loss,
            components_ptr=components,
            grad_output_ptr=grad_output,
            DEFERRED=grad_output is not None,
        )
        if self.spec.per_sample:
            self._per_sample(arguments, grad_output)
        else:
            self._reduce(arguments)

    def _arguments(self) -> dict[str, Any]:
        """What both kernels take: the heads, the weights and the options."""
        weights = self.weights
        kind = "scalars" if weights is None else "pair" if weights.dim() else "alpha"
        w_reg, w_cls = self.spec.weights or (1.0, 1.0)
        return {
            **self.r.arguments("r"),
            **self.y.arguments("y"),
            **self.r_out.arguments("r_grad"),
            **self.z.arguments("z"),
            **self.t.arguments("t"),
            **self.z_out.arguments("z_grad"),
            "D": self.r.columns,
            "S": self.z.positions,
            "C": self.z.classes,
            "class_weight_ptr": self.class_weight,
            "weights_ptr": weights,
            "weights_stride": weights.stride(0) if kind == "pair" and weights is not None else 0,
            "ignore_index": self.spec.ignore_index,
            "w_reg": w_reg,
            "w_cls": w_cls,
            "smoothing": float(self.spec.label_smoothing),
            "HAS_REGRESSION": self.r.tensor is not None,
            "HAS_CLASSIFICATION": self.z.tensor is not None,
            "WEIGHTS": kind,
            "SOFT": self.soft,
            "HAS_WEIGHT": self.class_weight is not None,
            "SMOOTH": self.smooth,
            "GRAD_R": self.r_grad is not None,
            "GRAD_Z": self.z_grad is not None,
            "ONE_BLOCK": self.tile.one_block,
            "BLOCK_C": self.tile.block_c,
            "ACC": self._acc(),
        }

    def _reduce(self, arguments: dict[str, Any]) -> None:
        elements = self.r.rows * self.r.columns
        n_cls = n_reg = 0
        if self.z.tensor is not None:
            tiles = triton.cdiv(self.positions, self.tile.rows)
            n_cls = _programs(tiles, self.tile.warps, self.device)
        if self.r.tensor is not None:
            n_reg = _programs(triton.cdiv(elements, BLOCK_M), self.tile.warps, self.device)
        mean = self.spec.reduction == "mean"
        counts = mean and self.z_grad is not None and not self.soft
        ticket = _ticket(self.device)
        counted = self._count(ticket) if counts and self.positions > COUNT_BOUND else None
        launch(
            reduce_kernel,
            n_cls + n_reg,
            self.device,
            self.tile.warps,
            **arguments,
            partials_ptr=self._empty(2, n_cls + n_reg),
            ticket_ptr=ticket,
            denominator_ptr=counted,
            n_cls=n_cls,
            elements=elements,
            positions=self.positions,
            MEAN=mean,
            COUNTED=counted is not None,
            FLAT=self.r.flat and self.y.flat and self.r_out.flat,
            ROWS=self.tile.rows,
            BLOCK_M=BLOCK_M,
        )

    def _count(self, ticket: Tensor) -> Tensor:
        """The denominator of "mean", in a launch of its own."""
        programs = triton.cdiv(self.positions, COUNT_CHUNK)
        denominator = self._empty()
        launch(
            count_kernel,
            programs,
            self.device,
            warps=4,
            denominator_ptr=denominator,
            partials_ptr=self._empty(programs),
            ticket_ptr=ticket,
            t_ptr=self.t.tensor,
            class_weight_ptr=self.class_weight,
            positions=self.positions,
            chunk=COUNT_CHUNK,
            S=self.z.positions,
            C=self.z.classes,
            t_stride_n=self.t.stride_n,
            t_stride_s=self.t.stride_s,
            ignore_index=self.spec.ignore_index,
            HAS_WEIGHT=self.class_weight is not None,
            ACC=self._acc(),
        )
        return denominator

    def _per_sample(self, arguments: dict[str, Any], grad_output: Tensor | None) -> None:
        samples = self._samples()
        one_position = self.z.positions == 1 or self.spec.per_position
        rows = BLOCK_M if self.z.tensor is None else self.tile.rows
        group = rows if one_position else 1
        upstream = layout.Matrix(None) if grad_output is None else layout.matrix(grad_output)
        launch(
            per_sample_kernel,
            _programs(triton.cdiv(samples, group), self.tile.warps, self.device),
            self.device,
            self.tile.warps,
            **arguments,
            samples=samples,
            grad_output_inner=upstream.columns,
            grad_output_stride_n=upstream.stride_n,
            grad_output_stride_s=upstream.stride_d,
            ONE_POSITION=one_position,
            ROWS=rows,
            SAMPLES=group,
            BLOCK_D=max(1, BLOCK_M // group),
        )

    def _samples(self) -> int:
        if self.spec.per_position:
            return self.positions
        return self.r.rows if self.z.tensor is None else self.z.samples

    def _acc(self) -> tl.dtype:
        return tl.float64 if self.dtype == torch.float64 else tl.float32

    def _empty(self, *shape: int) -> Tensor:
        """Scratch in the dtype of the sums."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)
