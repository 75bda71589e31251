"""From a checked call to its kernels: buffers, pointers, launches.

Beside the launch itself nothing but allocations and views reaches the dispatcher, and no value is
read back from the device. One launch computes the loss and both gradients. Where "mean" divides by
what only the targets or the weights tell, more than COUNT_BOUND of them cost a second one, before
it, that counts both heads. Few long rows cost one more, that reads them in slices.

What can be known without looking at an address comes from `triton_plan`, which remembers it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from fused_loss.kernels import triton_autotune, triton_direct
from fused_loss.kernels.triton_grid import Launch
from fused_loss.kernels.triton_plan import Plan, plan
from fused_loss.kernels.triton_reduce import reduce_kernel
from fused_loss.kernels.triton_scaling import scaling
from fused_loss.kernels.triton_table import Tile
from fused_loss.spec import LossSpec, LossTensors, Needs, Outcome

PARTIALS = 16384  # elements of scratch at least: it is allocated once a thread and stream
Pointers = dict[str, Any]  # a kernel's arguments that no plan holds: tensors, and a few numbers


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, on CPU tensors."""
    return not isinstance(reduce_kernel, triton.JITFunction)


def forward(spec: LossSpec, tensors: LossTensors, needs: Needs) -> Outcome:
    """The loss, its components, and the gradients that are needed (for a `grad_output` of 1)."""
    tensors = _in_memory(tensors)
    call = plan(spec, tensors, needs)
    if triton_autotune.ENABLED:
        call = _tuned(call, spec, tensors, needs, None)
    return _forward(call, spec, tensors, needs)


def gradients(
    spec: LossSpec, tensors: LossTensors, needs: Needs, grad_output: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients for `grad_output`, () or (N,), computed from the inputs."""
    tensors, grad_output = _in_memory(tensors), grad_output.resolve_neg()
    call = plan(spec, tensors, needs, grad_output)
    if triton_autotune.ENABLED:
        call = _tuned(call, spec, tensors, needs, grad_output)
    return _gradients(call, spec, tensors, grad_output)


def _in_memory(tensors: LossTensors) -> LossTensors:
    """What a kernel may read by address: `x.conj().imag` is the negative of what lies there."""
    if not any(tensor is not None and tensor.is_neg() for tensor in tensors):
        return tensors
    return LossTensors(*(None if tensor is None else tensor.resolve_neg() for tensor in tensors))


def _tuned(
    call: Plan, spec: LossSpec, tensors: LossTensors, needs: Needs, grad_output: Tensor | None
) -> Plan:
    """The plan with the fastest tile. Trials under `inplace_gradient` write over a copy."""

    def again(tile: Tile) -> Plan:
        return plan(spec, tensors, needs, grad_output, tile)

    def trial(call: Plan) -> object:
        given = tensors
        if call.inplace:
            given = tensors._replace(classification_output=copy())
        if grad_output is None:
            return _forward(call, spec, given, needs)
        return _gradients(call, spec, given, grad_output)

    @functools.cache
    def copy() -> Tensor:
        z = tensors.classification_output
        assert z is not None
        return torch.empty_strided(z.shape, z.stride(), dtype=z.dtype, device=z.device).copy_(z)

    return triton_autotune.tuned(call, again, trial)


def _forward(call: Plan, spec: LossSpec, tensors: LossTensors, needs: Needs) -> Outcome:
    scratch = _scratch(call.device, call.dtype, call.partials)
    loss = torch.empty(call.loss_shape, dtype=call.dtype, device=call.device)
    pointers: Pointers = {"loss_ptr": loss}
    components = None
    if call.both:
        if needs.components or call.loss_shape:
            shape = (3, *call.loss_shape)
            components = torch.empty(shape, dtype=call.dtype, device=call.device)
        pointers["components_ptr"] = scratch.components if components is None else components
    return Outcome(loss, components, *_run(call, spec, tensors, scratch, pointers))


def _gradients(
    call: Plan, spec: LossSpec, tensors: LossTensors, grad_output: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    scratch = _scratch(call.device, call.dtype, call.partials)
    upstream = grad_output.contiguous() if call.copies_upstream else grad_output
    return _run(call, spec, tensors, scratch, {"grad_output_ptr": upstream})


def _run(
    call: Plan, spec: LossSpec, tensors: LossTensors, scratch: Scratch, pointers: Pointers
) -> tuple[Tensor | None, Tensor | None]:
    """Launch a plan on these tensors; the gradients that it writes."""
    for pointer, place, prepare in call.inputs:
        tensor = tensors[place]
        pointers[pointer] = tensor if prepare is None else prepare(tensor)  # type: ignore[arg-type]
    r, z = tensors[:2]
    r_grad = z_grad = None
    # A pointer that nothing is written to still has a type: that of the head.
    pointers["r_grad_ptr"], pointers["z_grad_ptr"] = pointers.get("r_ptr"), pointers.get("z_ptr")
    if call.r_grad is not None:
        assert r is not None
        r_grad = pointers["r_grad_ptr"] = r.new_empty_strided(*call.r_grad)
    if call.inplace:
        assert z is not None
        z_grad = z.detach()
    elif call.z_grad is not None:
        assert z is not None
        z_grad = pointers["z_grad_ptr"] = z.new_empty_strided(*call.z_grad)
    pointers["w_reg"], pointers["w_cls"] = spec.weights or (1.0, 1.0)
    if call.partials:
        _reduces(call, spec, scratch, pointers)
    _launch(call.main, pointers)
    if call.inplace and pointers["z_ptr"] is not z:  # a copy, which the kernel could follow
        assert z_grad is not None
        z_grad.copy_(pointers["z_ptr"])
    return r_grad, z_grad


def _reduces(call: Plan, spec: LossSpec, scratch: Scratch, pointers: Pointers) -> None:
    """What "mean" and "sum" need beside: scratch and the denominators, counted if they must be."""
    pointers["ticket_ptr"], pointers["partials_ptr"] = scratch.ticket, scratch.partials
    if spec.regression_normalizer is not None:
        pointers["r_denominator"] = spec.regression_normalizer
    if spec.classification_normalizer is not None:
        pointers["z_denominator"] = spec.classification_normalizer
    if call.slices is not None:
        pointers["slices_ptr"] = torch.empty(call.published, dtype=call.dtype, device=call.device)
        _launch(call.slices, pointers)
    if call.count is not None:
        pointers["denominators_ptr"] = scratch.counts
        _launch(call.count, pointers)
        if call.count.arguments["COUNT_R"]:
            pointers["r_denominator_ptr"] = scratch.r_count
        if call.count.arguments["COUNT_Z"]:
            pointers["z_denominator_ptr"] = scratch.z_count


def scale(
    gradients: Sequence[Tensor | None], grad_output: Tensor, in_place: bool
) -> Sequence[Tensor | None]:
    """The stored gradients times a 0-d `grad_output`; in place where nobody else will read them.

    One that lies in the logits' own storage may have gaps, which are not its own to write: the
    kernel, which sees memory as one row, does not take it.
    """
    grad_output = grad_output.resolve_neg()
    call = scaling(gradients, grad_output, in_place)
    results = list(gradients)
    for place in call.with_gaps:
        gradient = gradients[place]
        assert gradient is not None
        results[place] = gradient.mul_(grad_output) if in_place else gradient * grad_output
    if call.launch is not None:
        pointers: Pointers = {"grad_output_ptr": grad_output}
        for place, names in call.rows:
            gradient = gradients[place]
            assert gradient is not None
            if not in_place:
                results[place] = torch.empty_like(gradient)
            for name in names:
                pointers[f"{name}_ptr"], pointers[f"{name}_out_ptr"] = gradient, results[place]
        _launch(call.launch, pointers)
    return results


def _launch(call: Launch, pointers: Pointers) -> None:
    """Launch with those of the pointers that the kernel takes."""
    arguments = {**call.arguments, **pointers}
    if len(arguments) > len(call.arguments):
        arguments = {name: arguments[name] for name in call.arguments}
    launch(call, arguments)


def launch(call: Launch, arguments: dict[str, Any]) -> None:
    """Start a launch on the tensors' device; `arguments` are all, in the kernel's order."""
    device = call.device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            triton_direct.start(call, arguments)
    else:
        triton_direct.start(call, arguments)


class Scratch(NamedTuple):
    """What a launch writes for itself or the next one, on one stream: never read by a caller."""

    ticket: Tensor  # () int32: launches count their programs on it, and leave it at zero
    partials: Tensor  # float64, of all programs
    components: Tensor  # (3,) that nobody asked for
    counts: Tensor  # (2,) float64, and each of them
    r_count: Tensor
    z_count: Tensor


_scratches = threading.local()


def _scratch(device: torch.device, dtype: torch.dtype, partials: int) -> Scratch:
    """The scratch of this thread and stream, so that two launches at once never share one.

    A captured CUDA graph may be replayed on any stream: it gets one of its own, and its ticket is
    zeroed within the graph.
    """
    stream = 0
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            return _new_scratch(device, dtype, partials)
        stream = torch._C._cuda_getCurrentRawStream(device.index)
    known: dict[Any, Scratch] = _scratches.__dict__.setdefault("known", {})
    scratch = known.get((device, stream, dtype))
    if scratch is None or len(scratch.partials) < partials:
        scratch = known[device, stream, dtype] = _new_scratch(
            device, dtype, max(partials, PARTIALS)
        )
    return scratch


def _new_scratch(device: torch.device, dtype: torch.dtype, partials: int) -> Scratch:
    counts = torch.empty(2, dtype=torch.float64, device=device)
    return Scratch(
        torch.zeros((), dtype=torch.int32, device=device),
        torch.empty(partials, dtype=torch.float64, device=device),
        torch.empty(3, dtype=dtype, device=device),
        counts,
        counts[0],
        counts[1],
    )
