"""Grids, blocks and buffers: everything between a checked call and a kernel.

Beside the launch itself nothing but allocations and views reaches the dispatcher, and no value is
read back from the device. One launch computes the loss and both gradients. Where "mean" divides by
what only the targets or the weights tell, more than COUNT_BOUND of them cost a second one, before
it, that counts both heads. Few long rows cost one more, that reads them in slices.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_loss.kernels import layout
from fused_loss.kernels.triton_counts import count_kernel
from fused_loss.kernels.triton_few import FewRows, few_rows
from fused_loss.kernels.triton_heads import Heads
from fused_loss.kernels.triton_per_sample import per_sample_kernel
from fused_loss.kernels.triton_reduce import reduce_kernel
from fused_loss.kernels.triton_scale import scale_kernel
from fused_loss.kernels.triton_split import slices_kernel
from fused_loss.kernels.triton_table import (
    BLOCK_M,
    COUNT_BOUND,
    COUNT_CHUNK,
    SCALE_BLOCK,
    SPLIT_MOST,
)
from fused_loss.spec import LossSpec, LossTensors, Needs, Outcome

INTERPRETER_PROCESSORS = 2


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type == "cpu":
        return INTERPRETER_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _programs(tiles: int, warps: int, device: torch.device) -> int:
    """One wave of resident programs at the most: each walks its tiles in a loop."""
    return max(1, min(tiles, _processors(device) * max(1, 32 // warps)))


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
    call = _Call(spec, tensors, needs, deferred=True)
    call.run(None, None, grad_output)
    return call.r_grad, call.z_grad


def scale(
    gradients: Sequence[Tensor | None], grad_output: Tensor, in_place: bool
) -> Sequence[Tensor | None]:
    """The stored gradients times a 0-d `grad_output`; in place where nobody else will read them.

    One that lies in the logits' own storage may have gaps, which are not its own to write: the
    kernel, which sees memory as one row, does not take it.
    """
    there = [gradient for gradient in gradients if gradient is not None]
    rows = [gradient for gradient in there if layout.dense(gradient)]
    scaled = iter(_scaled(rows, grad_output, in_place) if rows else ())
    results: list[Tensor | None] = []
    for gradient in gradients:
        if gradient is None or layout.dense(gradient):
            results.append(None if gradient is None else next(scaled))
        else:
            results.append(gradient.mul_(grad_output) if in_place else gradient * grad_output)
    return results


def _scaled(gradients: list[Tensor], grad_output: Tensor, in_place: bool) -> list[Tensor]:
    """One or two gradients in one launch."""
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


class Denominator(NamedTuple):
    """Where the denominator of a head comes from, as `reduce_kernel` has it."""

    kind: str = "number"  # or "tensor", "own", "counted"
    number: float = 1.0
    tensor: Tensor | None = None

    @property
    def known(self) -> bool:
        """Whether it is known before a target or a weight is read."""
        return self.kind in ("number", "tensor")


class _Call(Heads):
    """The launches of one call."""

    def run(
        self, loss: Tensor | None, components: Tensor | None, grad_output: Tensor | None
    ) -> None:
        """Launch the kernel of this reduction: for the loss, or for the gradients alone."""
        few = few_rows(self, _processors(self.device))
        arguments = self.arguments()
        arguments.update(
            loss_ptr=loss,
            components_ptr=components,
            grad_output_ptr=grad_output,
            DEFERRED=grad_output is not None,
        )
        if self.spec.per_sample:
            self._per_sample(arguments, grad_output)
        else:
            self._reduce(arguments, few)
        if self.z_home is not None:
            assert self.z.tensor is not None
            self.z_home.copy_(self.z.tensor)

    def _reduce(self, arguments: dict[str, Any], few: FewRows | None) -> None:
        n_cls = n_reg = 0
        published = None
        if few is not None:
            n_cls, published = few.writers, few.scratch()
            launch(
                slices_kernel,
                few.programs,
                self.device,
                self.tile.warps,
                **few.reading(arguments, published),
            )
        elif self.z.tensor is not None:
            tiles = triton.cdiv(self.positions, self.tile.rows)
            n_cls = _programs(tiles, self.tile.warps, self.device)
        if self.r.tensor is not None:
            n_reg = _programs(triton.cdiv(self.elements, BLOCK_M), self.tile.warps, self.device)
        ticket = _ticket(self.device)
        flat = self.flat()
        regression, classification = self._denominators(ticket, flat)
        launch(
            reduce_kernel,
            n_cls + n_reg,
            self.device,
            self.tile.warps,
            **arguments,
            partials_ptr=self.sums(2, n_cls + n_reg),
            ticket_ptr=ticket,
            slices_ptr=published,
            r_denominator_ptr=regression.tensor,
            z_denominator_ptr=classification.tensor,
            n_cls=n_cls,
            slices=few.slices.number if few else 0,
            columns=few.slices.columns if few else 0,
            elements=self.elements,
            positions=self.positions,
            r_denominator=regression.number,
            z_denominator=classification.number,
            of_nothing=self.spec.of_nothing,
            R_DENOMINATOR=regression.kind,
            Z_DENOMINATOR=classification.kind,
            FLAT=flat and self.r.tensor is not None,
            SPLIT=SPLIT_MOST if few else 0,
            ROWS=self.tile.rows,
            BLOCK_M=BLOCK_M,
        )

    def _denominators(self, ticket: Tensor, flat: bool) -> tuple[Denominator, Denominator]:
        """Of both heads; those that a launch of their own has to find are counted here."""
        spec, tensors = self.spec, self.tensors
        by_weight = self.element_weight.tensor is not None or spec.ignores_nan
        r = self._denominator(
            self.r.tensor,
            spec.regression_normalizer,
            tensors.regression_normalizer,
            None if by_weight else self.elements,
        )
        by_weight = not self.soft or self.position_weight.tensor is not None
        z = self._denominator(
            self.z.tensor,
            spec.classification_normalizer,
            tensors.classification_normalizer,
            None if by_weight else self.positions,
        )
        count_r = not r.known and self.r_grad is not None and self.elements > COUNT_BOUND
        count_z = not z.known and self.z_grad is not None and self.positions > COUNT_BOUND
        if count_r or count_z:
            counted = self._count(ticket, flat, count_r, count_z)
            r = Denominator("counted", tensor=counted[0]) if count_r else r
            z = Denominator("counted", tensor=counted[1]) if count_z else z
        return r, z

    def _denominator(
        self, output: Tensor | None, number: float | None, tensor: Tensor | None, count: int | None
    ) -> Denominator:
        """Of a head: the caller's, the `count` of what is labelled, or for the kernel to find."""
        if output is None or self.spec.reduction == "sum":
            return Denominator()
        if tensor is not None:
            return Denominator("tensor", tensor=tensor)
        if number is not None:
            return Denominator(number=number)
        if count is None:
            return Denominator("own")
        nothing = 1 if self.spec.empty == "zero" else 0  # 0/1 or 0/0
        return Denominator(number=float(count or nothing))

    def _count(self, ticket: Tensor, flat: bool, count_r: bool, count_z: bool) -> Tensor:
        """Both denominators of "mean", (2,), in a launch of their own."""
        n_cls = triton.cdiv(self.positions, COUNT_CHUNK) if count_z else 0
        n_reg = triton.cdiv(self.elements, COUNT_CHUNK) if count_r else 0
        denominators = self.sums(2)
        launch(
            count_kernel,
            n_cls + n_reg,
            self.device,
            warps=4,
            denominators_ptr=denominators,
            partials_ptr=self.sums(n_cls + n_reg),
            ticket_ptr=ticket,
            t_ptr=self.t.tensor,
            t_stride_n=self.t.stride_n,
            t_stride_s=self.t.stride_s,
            position_weight_ptr=self.position_weight.tensor,
            position_weight_stride_n=self.position_weight.stride_n,
            position_weight_stride_s=self.position_weight.stride_s,
            class_weight_ptr=self.class_weight,
            **self.y.arguments("y"),
            **self.element_weight.arguments("element_weight"),
            n_cls=n_cls,
            chunk=COUNT_CHUNK,
            positions=self.positions,
            elements=self.elements,
            S=self.z.positions,
            C=self.z.classes,
            D=self.r.columns,
            ignore_index=self.spec.ignore_index,
            **self._options_of_counting(count_r, count_z),
            FLAT=flat and count_r,
        )
        return denominators

    def _options_of_counting(self, count_r: bool, count_z: bool) -> dict[str, Any]:
        """The options of the heads that are counted: others would compile the same code again."""
        options = self.options()
        del options["HAS_MASK"]
        for name in ("SOFT", "HAS_WEIGHT", "HAS_POSITION_WEIGHT"):
            options[name] = options[name] and count_z
        for name in ("HAS_ELEMENT_WEIGHT", "IGNORE_NAN"):
            options[name] = options[name] and count_r
        if options["SOFT"]:
            options["HAS_WEIGHT"] = False
        return {**options, "COUNT_R": count_r, "COUNT_Z": count_z}

    def _per_sample(self, arguments: dict[str, Any], grad_output: Tensor | None) -> None:
        samples = self.samples()
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
