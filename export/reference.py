"""The model that a file is held to: PyTorch itself, in the file's dtype and in float64.

Everything runs on copies, so the caller's module keeps its flags, dtype, device and buffers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from fused_loss.export.arrays import model_dtype
from fused_loss.export.deployed import Before, Deployed
from fused_loss.export.diagnose import COMPILING
from fused_loss.export.errors import OnnxExportError
from fused_loss.export.evaluation import evaluation_copy
from fused_loss.export.options import Options
from fused_loss.export.probe import isolated, probed
from fused_loss.export.signature import (
    CLASSIFICATION,
    LABEL,
    LOSS,
    REGRESSION,
    Signature,
    Tensors,
)

Arrays = tuple[np.ndarray, ...]  # regression (N, *), classification (N, C, *), label (N, *), loss
NARROW = (torch.float32, torch.float16, torch.bfloat16)


class Reference:
    """A two-headed model with its options, run once on `example`, ready to be exported.

    Args:
        model: The module.
        example: Rows as the file will be given them, before any normalisation.
        input_names: One an input.
        output_names: Of the two heads.
        options: What the file does beside the model.
        roles: Role to the name or position of the tensor that `forward` returns for it.

    Attributes:
        module: What is traced, on the CPU, every submodule in eval mode.
        signature: Of the file.
        example: As it is given to `module`.

    Raises:
        TypeError: Not an `nn.Module`, or a ScriptModule.
        ValueError: Options that do not fit the model.
        OnnxExportError: The model cannot be copied, holds NaN or is in bfloat16; `forward` fails,
            does not return the two heads, or does not repeat.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensors,
        signature: Signature | None = None,
        *,
        options: Options | None = None,
        roles: Mapping[str, str] | None = None,
    ) -> None:
        signature, options = signature or Signature(), options or Options()
        names = signature.input_names
        core = evaluation_copy(model)
        exact = copy.deepcopy(core).double()
        if options.dtype == "fp32":
            core = core.float()
        self._io = model_dtype(core) if options.dtype else None
        self.example = self.cast(example)
        before = Before(options, names, self.example)
        layout, regression = probed(core, before, self.example, dict(roles or {}), signature)
        self._exact: Deployed | None = Deployed(
            exact,
            Before(options, names, self.example, torch.float64),
            layout,
            options,
            regression,
            scales=torch.float64,
        )
        inner = torch.float16 if options.dtype == "fp16" else None
        core = core if inner is None else core.to(inner)
        self.module = Deployed(core, before, layout, options, regression, inner=inner).eval()
        self.signature = Signature(names, signature.output_names, self.module.roles)
        with _unwritten(self.module), _converted(options.dtype):
            outputs = dict(zip(self.module.roles, self.eager(self.example), strict=True))
        _check_class_names(options.class_names, outputs.get(CLASSIFICATION))

    def eager(self, inputs: Tensors) -> Arrays:
        """The outputs in the file's dtype.

        Raises:
            OnnxExportError: Two runs from different random states do not agree, or an output is not
                one of its role's shape.
        """
        first, again = (self._run(self.module, inputs, seed) for seed in (0, 1))
        if not all(map(_repeats, first, again)):
            raise OnnxExportError(
                "the outputs of two runs differ: does forward draw random numbers or keep state?"
            )
        return first

    def explain(self) -> str:
        """Why a file may differ from the model, where the model itself shows it."""
        with _believed_to_compile():
            try:
                other = self._run(self.module, self.example, seed=0)
            except Exception:
                return ""
        same = all(map(_repeats, self.eager(self.example), other))
        return "" if same else COMPILING

    def exact(self, inputs: Tensors) -> Arrays:
        """The outputs of the model as it was given, in float64, from the same inputs."""
        assert self._exact is not None
        with _Float64():
            return self._run(self._exact, inputs, seed=0)

    def release(self) -> None:
        """Give back the memory of the float64 copy: `exact` cannot be called any more."""
        self._exact = None

    def cast(self, inputs: Tensors) -> Tensors:
        """Floating-point inputs in the dtype that the file takes, where a dtype was asked for."""
        if self._io is None:
            return inputs
        return tuple(x.to(self._io) if x.is_floating_point() else x for x in inputs)

    def _run(self, module: Deployed, inputs: Tensors, seed: int) -> Arrays:
        with isolated():
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
            outputs = module(*(x.clone() for x in inputs))
            return _as_arrays(module.roles, outputs, rows=inputs[0].shape[0])


@contextmanager
def _converted(dtype: str | None) -> Iterator[None]:
    """What fails after the probe has passed fails for the dtype's sake."""
    try:
        yield
    except OnnxExportError:
        raise
    except Exception as error:
        raise OnnxExportError(f"the model fails in {dtype or 'its own dtype'}: {error}") from error


@contextmanager
def _believed_to_compile() -> Iterator[None]:
    """`torch.compiler.is_compiling()` and `is_exporting()` are true, however they were imported."""
    flags = ("_is_compiling_flag", "_is_exporting_flag")
    before = {flag: getattr(torch.compiler, flag) for flag in flags}
    try:
        for flag in flags:
            setattr(torch.compiler, flag, True)
        yield
    finally:
        for flag, value in before.items():
            setattr(torch.compiler, flag, value)


@contextmanager
def _unwritten(module: nn.Module) -> Iterator[None]:
    """Nothing is written into the model meanwhile; a batch norm does so without a trace."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    versions = {name: weight._version for name, weight in module.named_parameters()}
    yield
    written = [
        name for name, weight in module.named_parameters() if weight._version != versions[name]
    ]
    for name, buffer in module.named_buffers():
        if not (buffer.shape == buffers[name].shape and _same(buffer, buffers[name])):
            written.append(name)
    if written:
        names = ", ".join(name.removeprefix("model.") for name in written)
        raise OnnxExportError(
            f"forward writes into {names}, which a file cannot: is a batch norm in training mode, "
            "or does it keep state?"
        )


def _same(one: Tensor, other: Tensor) -> bool:
    return np.array_equal(one.numpy(), other.numpy(), equal_nan=one.is_floating_point())


def _check_class_names(names: Sequence[str] | None, logits: np.ndarray | None) -> None:
    if names is None:
        return
    if logits is None or len(names) != logits.shape[1]:
        classes = "no classes" if logits is None else f"{logits.shape[1]} classes"
        raise ValueError(f"class_names has {len(names)} names, the model has {classes}")


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


def _as_arrays(roles: Sequence[str], outputs: Sequence[Tensor], rows: int) -> Arrays:
    for role, output in zip(roles, outputs, strict=True):
        if role != LABEL and not output.is_floating_point():
            raise OnnxExportError(f"the {role} output must be floating point, got {output.dtype}")
        if output.dtype == torch.bfloat16:
            raise OnnxExportError(
                f"the {role} output is bfloat16, which onnxruntime cannot compute on a CPU: is "
                "autocast on in forward?"
            )
        if not _fits(role, output, rows):
            wanted = {REGRESSION: f"({rows}, ...)", LOSS: f"() or ({rows},)"}
            raise OnnxExportError(
                f"the {role} output of {rows} rows must have shape "
                f"{wanted.get(role, f'({rows}, C, ...)')}, got {tuple(output.shape)}"
            )
    return tuple(output.detach().cpu().numpy() for output in outputs)


def _fits(role: str, output: Tensor, rows: int) -> bool:
    if role == LOSS:
        return output.shape in ((), (rows,))
    least = 1 if role in (REGRESSION, LABEL) else 2
    return output.dim() >= least and output.shape[0] == rows


def _repeats(first: np.ndarray, again: np.ndarray) -> bool:
    """Equal up to the order of a sum that several threads share."""
    if first.shape != again.shape:
        return False
    if first.dtype.kind != "f":
        return True  # labels, of logits that are compared
    known = np.abs(first[np.isfinite(first)])
    slack = 4 * float(np.finfo(first.dtype).eps) * float(known.max(initial=0.0))
    return np.allclose(first, again, rtol=0.0, atol=slack, equal_nan=True)
