"""A copy of a model that is ready to be exported: plain, on the CPU, in eval mode."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from fused_loss.export.errors import OnnxExportError


def evaluation_copy(model: nn.Module) -> nn.Module:
    """A copy without `torch.compile` and `DataParallel` wrappers, on the CPU, in eval mode.

    Raises:
        TypeError: Not an `nn.Module`, or a ScriptModule.
        OnnxExportError: The model cannot be copied, stays in training mode, holds NaN, or is in
            bfloat16.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"model must be an eager torch.nn.Module, got {type(model).__name__}: "
            "pass the module itself, not a function or a scripted one"
        )
    memo: dict[int, Any] = {}
    modules = list(model.modules())
    for module in modules:
        for value in vars(module).values():
            # deepcopy refuses a tensor kept from an earlier forward (`self.hidden = ...`).
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        for module in reversed(modules):
            if _inner(module) is not module:
                memo[id(module)] = copy.deepcopy(_inner(module), memo)
        copied = copy.deepcopy(model, memo).cpu().requires_grad_(False).eval()
    except Exception as error:
        raise OnnxExportError(f"the model cannot be copied to the CPU: {error}") from error
    for name, module in copied.named_modules():
        if module.training:
            raise OnnxExportError(
                f"{name or 'the model'} ({type(module).__name__}) stays in training mode after "
                "eval(): a file computes what the model computes in eval mode"
            )
    _check_state(copied)
    return copied


def _inner(module: nn.Module) -> nn.Module:
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        return module.module
    compiled = getattr(module, "_orig_mod", None)
    return compiled if isinstance(compiled, nn.Module) else module


def _check_state(module: nn.Module) -> None:
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if tensor.dtype == torch.bfloat16:
            raise OnnxExportError(
                f"{name} is bfloat16, which onnxruntime cannot compute on a CPU: "
                "export model.float()"
            )
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise OnnxExportError(
                f"{name} holds {int(tensor.isnan().sum())} NaN of {tensor.numel()} values: "
                "has training diverged?"
            )
