"""`export_onnx`: trace, write beside the target, verify what was written, then rename it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fused_loss.export.draft import Draft
from fused_loss.export.errors import OnnxVerificationError, require
from fused_loss.export.files import as_path, replacing, target
from fused_loss.export.heads import as_roles
from fused_loss.export.inputs import data_cases, drawn_cases
from fused_loss.export.metadata import weights_file
from fused_loss.export.options import options
from fused_loss.export.progress import Progress, silent
from fused_loss.export.quantize import request
from fused_loss.export.reference import Reference
from fused_loss.export.report import VerificationReport
from fused_loss.export.signature import (
    INPUT_NAMES,
    OPSET,
    OUTPUT_NAMES,
    VERIFY_BATCHES,
    Arrays,
    Signature,
    as_tensors,
    batch_sizes,
)
from fused_loss.export.tolerance import Limits, rules_for
from fused_loss.export.trace import traced
from fused_loss.export.weights import Outside, lie_outside


@dataclass(frozen=True, repr=False)
class ExportResult:
    """A file that was written and verified.

    Attributes:
        path: The file.
        report: What was compared.
        sha256: Of the file's bytes.
    """

    path: Path
    report: VerificationReport
    sha256: str

    def __repr__(self) -> str:
        """The file, and how far each output is off; `report.summary()` says more."""
        allowed = self.report.tolerance
        errors = (
            f"{name} off by {error:.1e} of {allowed[name]:.1e} allowed"
            for name, error in self.report.observed_error.items()
        )
        return f"ExportResult({str(self.path)!r}, verified: {', '.join(errors)})"


def export_onnx(
    model: nn.Module,
    example: Arrays,
    path: str | os.PathLike[str],
    *,
    opset: int = OPSET,
    dtype: str | None = None,
    external_data: str = "auto",
    input_names: Sequence[str] = INPUT_NAMES,
    output_names: Sequence[str] = OUTPUT_NAMES,
    roles: Mapping[str, str | int] | None = None,
    normalize: Mapping[str, Any] | None = None,
    denormalize: Mapping[str, Any] | None = None,
    unit: str | None = None,
    softmax: bool = False,
    label: bool = False,
    class_names: Sequence[str] | None = None,
    verify_batches: Sequence[int] = VERIFY_BATCHES,
    verify_data: Arrays | None = None,
    atol: Limits = None,
    rtol: Limits = None,
    seed: int = 0,
    quantize: str | None = None,
    calibration_data: Arrays | None = None,
    min_label_agreement: float | None = None,
    progress: Progress = silent,
    keep_failed: bool = False,
) -> ExportResult:
    """Write `model` to an `.onnx` file that onnxruntime is known to agree with.

    The file appears at `path` only once it is verified (see `verify_onnx`); until then, and after
    any failure, what was there before stays. `model` is copied and never touched: it may be in
    training mode, on an accelerator, compiled, or wrapped in `DataParallel`.

    Args:
        model: `forward(*inputs)` returns the two heads, regression (N, *) and classification
            (N, C, *): a tuple in this order; or a named tuple, dataclass or dict that calls them
            `regression` and `classification` (`_output` may follow), or as `output_names` or
            `roles` say. Any other output is refused by name.
        example: Rows (N, *) like those the file will see; a tuple for several inputs. Verification
            draws its inputs in their scale, so several real rows say more than one of zeros.
        path: Where to write.
        opset: Of the file; an exporter that gives another one is an error.
        dtype: "fp32", or "fp16": weights and arithmetic in half precision, while inputs and outputs
            keep the model's dtype. None leaves the model's own.
        external_data: Weights in a file of their own beside `path`: "auto" above 1.5 GiB, "always",
            or "never".
        input_names: One an input.
        output_names: Of the regression and the classification output.
        roles: "regression", "classification" or "loss" to the name or position of the tensor that
            `forward` returns for it; `heads.price` is one within another. A "loss", () or (N,),
            becomes a further output of that name; a model may return the loss alone.
        normalize: `{"mean": ..., "std": ...}`, by which the file itself scales its input,
            `(x - mean) / std`: one number, one for each along axis 1, or one for each element. A
            mapping of input names to that, for several inputs.
        denormalize: The same, undone on the regression output, `y * std + mean`; "unit" may stand
            beside them.
        unit: Of the regression output, for those who use the file.
        softmax: The classification output holds probabilities instead of logits.
        label: A further output `label`, int64: the class of the largest logit.
        class_names: One a class, kept in the file.
        verify_batches: Batch sizes to verify at.
        verify_data: Rows to verify on instead of random ones.
        atol, rtol: `atol + rtol * max|y|` in place of the rule of acceptance; a number, or a
            mapping of output names to numbers.
        seed: Of the random inputs.
        quantize: "dynamic" or "static" for int8, of which weights take 7 bits: not every x86 adds
            products of 8. The float32 file is verified first; the report says what the other costs
            and gains.
        calibration_data: Rows that "static" takes its ranges from.
        min_label_agreement: Least share of rows to which the int8 file gives float64's label
            (0.99), over `verify_data`, else `calibration_data`, else `example`.
        progress: Called with (rows done, rows in all) while calibrating.
        keep_failed: Leave a file that fails verification at `failed_path(path)`.

    Raises:
        OnnxExportError: The model cannot be exported.
        OnnxVerificationError: The file differs from the model; `report` is on it.
        OSError: The file cannot be written.
        TypeError, ValueError: An argument that is not what it must be.
        MissingDependencyError: onnx, onnxruntime or onnxscript is not installed.
    """
    path = model_path(path)
    signature = Signature(tuple(input_names), tuple(output_names))
    asked = options(
        signature.input_names,
        dtype=dtype,
        normalize=normalize,
        denormalize=denormalize,
        unit=unit,
        softmax=softmax,
        label=label,
        class_names=class_names,
        quantize=quantize,
    )
    sizes = batch_sizes("verify_batches", verify_batches)
    if isinstance(opset, bool) or not isinstance(opset, int):
        raise TypeError(f"opset must be an int, got {opset!r}")
    count = len(signature.input_names)
    int8 = request(asked, calibration_data, min_label_agreement, progress, count)
    rows = as_tensors("example", example, count)
    data = None if verify_data is None else as_tensors("verify_data", verify_data, count)
    for package in ("onnx", "onnxruntime", "onnxscript"):
        require(package)
    beside = lie_outside(model, external_data, halved=dtype == "fp16", whole=int8 is not None)
    reference = Reference(model, rows, signature, options=asked, roles=as_roles(roles))
    rules = rules_for(reference.signature, asked, atol, rtol)
    data = None if data is None else reference.cast(data)
    with Outside(path) as weights, replacing(path) as temporary:
        proto = traced(
            reference.module,
            reference.example,
            reference.signature,
            opset,
            weights.take if beside else None,
        )
        draft = Draft(temporary, proto, reference, asked, rules, weights, path.name, seed)
        try:
            if data is None:
                draft.verify(drawn_cases(reference.example, sizes, seed), "example")
            else:
                draft.verify(data_cases(data, sizes, seed), "data")
            if int8 is not None:
                draft.quantize(int8, data, sizes)
        except OnnxVerificationError:
            if keep_failed:
                shutil.copyfile(temporary, failed_path(path))
                weights.keep()
            raise
        report = draft.finish()
        former = weights_file(path)
    weights.replaced(former)
    return ExportResult(path, report, report.sha256)


def model_path(path: str | os.PathLike[str]) -> Path:
    """Where a model file can be made or replaced.

    Raises:
        TypeError: No path.
        FileNotFoundError, IsADirectoryError, ValueError: As `target`; or an ending by which onnx
            reads another format.
        MissingDependencyError: onnx is not installed.
    """
    path = as_path(path)
    target(path)
    formats = require("onnx").serialization.registry
    kind = formats.get_format_from_file_extension(path.suffix)
    if kind not in (None, "protobuf"):
        raise ValueError(f"{path} would be read as {kind}: give it a name that ends in .onnx")
    return path


def failed_path(path: str | os.PathLike[str]) -> Path:
    """Where `keep_failed` leaves a file: `m.failed.onnx` beside `m.onnx`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.failed{path.suffix}")
