"""The model that a file is held to: PyTorch itself, in the model's dtype and in float64.

Everything runs on a copy, so the caller's module keeps its flags, dtype, device and buffers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from fused_loss.export.errors import OnnxExportError
from fused_loss.export.evaluation import evaluation_copy
from fused_loss.export.signature import Tensors

Heads = tuple[np.ndarray, np.ndarray]  # regression (N, *), classification (N, C, *)
NARROW = (torch.float32, torch.float16, torch.bfloat16)


class Reference:
    """A two-headed model, ready to be exported and compared with.

    Attributes:
        module: A copy of the model on the CPU, every submodule in eval mode.

    Raises:
        TypeError: Not an `nn.Module`, or a ScriptModule.
        OnnxExportError: The model cannot be copied, holds NaN, or is in bfloat16.
    """

    def __init__(self, model: nn.Module) -> None:
        self.module = evaluation_copy(model)
        self._exact = copy.deepcopy(self.module).double()

    def eager(self, inputs: Tensors) -> Heads:
        """The outputs in the model's own dtype.

        Raises:
            OnnxExportError: Two runs from different random states do not agree.
        """
        first, again = (self._run(self.module, inputs, seed) for seed in (0, 1))
        if not all(map(_repeats, first, again)):
            raise OnnxExportError(
                "the outputs of two runs differ: does forward draw random numbers or keep state?"
            )
        return first

    def exact(self, inputs: Tensors) -> Heads:
        """The outputs in float64, from the same inputs."""
        with _Float64():
            return self._run(self._exact, inputs, seed=0)

    def probe(self, example: Tensors) -> None:
        """Run the model on `example`, so that what is wrong with it is said before it is traced.

        Raises:
            OnnxExportError: `forward` fails, does not return (regression, classification), or does
                not repeat.
        """
        try:
            self.eager(example)
        except OnnxExportError:
            raise
        except Exception as error:
            given = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in example)
            raise OnnxExportError(f"the model itself fails on {given}: {error}") from error

    def _run(self, module: nn.Module, inputs: Tensors, seed: int) -> Heads:
        with isolated():
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
            return _as_heads(module(*(x.clone() for x in inputs)), rows=inputs[0].shape[0])


@contextmanager
def isolated() -> Iterator[None]:
    """No gradient, no autocast, the CPU by default, and the caller's random state kept."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        yield


class _Float64(TorchDispatchMode):
    """Runs every operator in float64, whatever dtype `forward` names (`x.float()`, new tensors)."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        args, kwargs = tree_map(_widened, (args, kwargs or {}))
        return tree_map(_widened, func(*args, **kwargs))


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.dtype in NARROW else value
    return torch.float64 if isinstance(value, torch.dtype) and value in NARROW else value


def _as_heads(outputs: Any, rows: int) -> Heads:
    if not isinstance(outputs, (tuple, list)) or not all(isinstance(o, Tensor) for o in outputs):
        raise OnnxExportError(
            "forward must return a flat tuple (regression, classification) of tensors, got "
            f"{_brief(outputs)}: wrap the model in a module that does"
        )
    if len(outputs) != 2:
        raise OnnxExportError(
            f"forward must return two tensors, (regression, classification), got {len(outputs)}"
        )
    for head, output, least in zip(("regression", "classification"), outputs, (1, 2), strict=True):
        if not output.is_floating_point():
            raise OnnxExportError(f"the {head} output must be floating point, got {output.dtype}")
        if output.dim() < least or output.shape[0] != rows:
            wanted = f"({rows}, {'...' if least == 1 else 'C, ...'})"
            raise OnnxExportError(
                f"the {head} output of {rows} rows must have shape {wanted}, "
                f"got {tuple(output.shape)}"
            )
    regression, classification = (output.detach().cpu().numpy() for output in outputs)
    return regression, classification


def _repeats(first: np.ndarray, again: np.ndarray) -> bool:
    """Equal up to the order of a sum that several threads share."""
    if first.shape != again.shape:
        return False
    known = np.abs(first[np.isfinite(first)])
    slack = 4 * float(np.finfo(first.dtype).eps) * float(known.max(initial=0.0))
    return np.allclose(first, again, rtol=0.0, atol=slack, equal_nan=True)


def _brief(outputs: Any) -> str:
    if isinstance(outputs, dict):
        return f"a dict with keys {list(outputs)}"
    if isinstance(outputs, (tuple, list)):
        return f"{type(outputs).__name__} of {[type(item).__name__ for item in outputs]}"
    return type(outputs).__name__
