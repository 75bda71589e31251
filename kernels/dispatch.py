"""Which backend takes a call, and where its backward goes.

The backend is chosen once, before any autograd Function is entered, and stays with the graph.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fused_loss.kernels import eager, native, reference
from fused_loss.spec import PLAIN, LossSpec, LossTensors, Needs, Outcome

BACKENDS = ("auto", "triton", "eager", "reference")
DIFFERENTIABLE = ("reference", "native")  # operators that autograd knows: no Function around them

RECORDING = {  # modes in which no value is to be had
    torch._C._TorchDispatchModeKey.PROXY: "make_fx",
    torch._C._TorchDispatchModeKey.FAKE: "FakeTensorMode",
}

# A kernel that has never run on hardware is not what `auto` picks. This becomes True with the first
# result of the `gpu`-marked tests under bench/results/; until then ask for `backend("triton")`.
TRITON_PROVEN_ON_HARDWARE = False


def _legal(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    return name


_DEFAULT = _legal(os.environ.get("FUSED_LOSS_BACKEND") or "auto", "FUSED_LOSS_BACKEND")


class _Choice(threading.local):
    """The backend asked for, a thread; `torch.compile` may look into the class first."""

    def __init__(self) -> None:
        self.name = _DEFAULT


_choice = _Choice()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose the backend for the calls within the block, in this thread.

    Outranks the environment variable `FUSED_LOSS_BACKEND`, which is read once at import. A backward
    pass runs on the backend of its forward pass, wherever it is called, and a graph of
    `torch.compile` on the backend that it was compiled under.

    Args:
        name: "auto" (by device), "triton", "eager" (plain PyTorch operators with a closed-form
            backward) or "reference" (`F.mse_loss` and `F.cross_entropy`, composed).

    Raises:
        ValueError: The name is none of these.
    """
    previous = _choice.name
    _choice.name = _legal(name, "the backend")
    try:
        yield
    finally:
        _choice.name = previous


def asked() -> str:
    """The backend asked for in this thread; "auto" unless someone chose."""
    return _choice.name


def plain(*arguments: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    """`native.plain` of these arguments, where `auto` may take a call; None elsewhere."""
    if asked() != "auto" or torch.compiler.is_compiling() or transform() is not None:
        return None
    return native.plain(*arguments)


def resolve(spec: LossSpec, tensors: LossTensors) -> str:
    """The backend that takes this call: one of `BACKENDS`, or "native", which "auto" alone picks.

    Raises:
        NotImplementedError: The backend was asked for by name and does not take this case.
        RuntimeError: Triton was asked for where it cannot run; the message says what to do.
    """
    name = asked()
    compiling = torch.compiler.is_compiling()
    refusal = None if name == "reference" else _refusal(tensors, name, compiling)
    if refusal is not None and name != "auto":
        raise NotImplementedError(
            f'backend("{name}") does not take {refusal}; use "auto" or "reference"'
        )
    to_reference = refusal is not None or name == "reference"
    if spec.inplace_gradient and (to_reference or compiling) and _trains(tensors):
        where = refusal or ("a compiled graph" if compiling else 'backend("reference")')
        raise NotImplementedError(f"inplace_gradient=True does not go with {where}: leave it out")
    if to_reference:
        return "reference"
    if name == "auto":
        if _is_default(tensors):
            return "triton"
        return "native" if native.takes(spec, tensors) else "eager"
    if name == "triton" and not compiling:
        _demand_triton(_device(tensors))
    return name


def _refusal(tensors: LossTensors, name: str, compiling: bool) -> str | None:
    """What in this call the closed-form backends do not take, in words."""
    if compiling:  # within a graph the kernels are one operator; see `ops`
        if name == "eager" or (name == "auto" and not _is_default(tensors)):
            return "a graph under torch.compile"
    else:
        around = transform()
        if around is not None:
            return around
        for tensor in tensors:
            if tensor is not None and type(tensor) not in PLAIN:
                return "tensor subclasses"
    for targets in (tensors.regression_targets, tensors.classification_targets):
        if targets is not None and targets.requires_grad and torch.is_grad_enabled():
            return "targets that require grad"
    return None


def transform() -> str | None:
    """What differentiates, batches or records this call from outside; None in plain code."""
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    if torch._C._is_tracing():  # a value that is read would be a constant of the trace
        return "torch.jit.trace"
    for mode, name in RECORDING.items():
        if torch._C._get_dispatch_mode(mode) is not None:
            return name
    return None


def batched(grad_output: Tensor) -> bool:
    """Whether `grad_output` is a batch of them, one graph for all, and nothing is differentiated.

    So `torch.vmap` and `is_grads_batched=True` have it, and the rows of a Jacobian in torchjd.
    """
    if torch._C._functorch.is_legacy_batchedtensor(grad_output):
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    layers = torch._C._functorch.get_interpreter_stack() or ()
    vmap = torch._C._functorch.TransformType.Vmap
    return len(layers) > 0 and all(layer.key() == vmap for layer in layers)


def _trains(tensors: LossTensors) -> bool:
    logits = tensors.classification_output
    return torch.is_grad_enabled() and logits is not None and logits.requires_grad


def _device(tensors: LossTensors) -> torch.device:
    return next(t for t in tensors if t is not None).device


def _is_default(tensors: LossTensors) -> bool:
    """Whether `auto` means the Triton kernels for these tensors."""
    return TRITON_PROVEN_ON_HARDWARE and _device(tensors).type == "cuda" and _has_triton()


def _has_triton() -> bool:
    try:
        _triton()
    except ModuleNotFoundError:
        return False
    return True


def _triton() -> ModuleType:
    """The launcher, imported at the first use: `import fused_loss` does not load triton."""
    from fused_loss.kernels import triton_launch

    return triton_launch


def _demand_triton(device: torch.device) -> None:
    if device.type not in ("cuda", "cpu"):
        raise NotImplementedError(f'backend("triton") does not take tensors on {device.type}')
    try:
        launch = _triton()
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "backend(\"triton\") needs Triton: pip install 'fused-loss[triton]'"
        ) from error
    if device.type == "cpu" and not launch.interpreted():
        raise RuntimeError(
            'backend("triton") runs on CPU tensors only in Triton\'s interpreter: set the '
            "environment variable TRITON_INTERPRET=1 before Python starts, or move them to a GPU"
        )


def _module(name: str) -> ModuleType:
    return eager if name == "eager" else _triton()


def gradient_waits(spec: LossSpec, tensors: LossTensors) -> bool:
    """Whether the gradient is computed in the backward pass rather than beside the loss.

    A gradient stored in the forward pass is for a `grad_output` of 1. That is what
    `loss.backward()` brings, and costs 2·N·C of traffic (read logits, write gradient). Where
    another factor is sure to come, storing first and scaling later costs 4·N·C and rounds twice;
    waiting costs 3·N·C and rounds once. So the gradient waits for per-sample losses, whose
    `grad_output` has a value a sample, and for float16, which needs a GradScaler because p/N
    underflows.
    """
    outputs = tensors.regression_output, tensors.classification_output
    return spec.per_sample or any(o is not None and o.dtype == torch.float16 for o in outputs)


def forward(backend: str, spec: LossSpec, tensors: LossTensors, needs: Needs) -> Outcome:
    """Loss, components, and those gradients (for a `grad_output` of 1) that are needed.

    Under `inplace_gradient` the logits' gradient is written over the logits.
    """
    if backend == "reference":
        return Outcome(*reference.forward(spec, tensors), None, None)
    if backend == "native":
        return native.forward(spec, tensors, needs)
    return _module(backend).forward(spec, tensors, needs)


def heads(backend: str, spec: LossSpec, tensors: LossTensors) -> tuple[Tensor, Tensor]:
    """The two losses of a `DIFFERENTIABLE` backend, each with a graph of its own."""
    regression, classification = (native if backend == "native" else reference).heads(spec, tensors)
    return regression, classification


def backward(
    backend: str, spec: LossSpec, tensors: LossTensors, needs: Needs, grad_output: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients for `grad_output`, from the inputs: for a gradient that waited.

    A head whose gradient is not needed is not looked at, but for the dtype and the number of
    dimensions of its output.
    """
    return _module(backend).gradients(spec, tensors, needs, grad_output)


def scale(
    backend: str, gradients: Sequence[Tensor | None], grad_output: Tensor, in_place: bool
) -> Sequence[Tensor | None]:
    """The stored gradients times a 0-d `grad_output`, decided on the device where there is one."""
    return _module(backend).scale(gradients, grad_output, in_place)
