"""`export_onnx`: trace, clean, write beside the target, verify what was written, then rename it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fused_loss.export.check import accepted, check_file
from fused_loss.export.errors import OnnxVerificationError, require
from fused_loss.export.files import replacing
from fused_loss.export.inputs import data_cases, drawn_cases
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
from fused_loss.export.structure import read_structure
from fused_loss.export.trace import traced


@dataclass(frozen=True)
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


def export_onnx(
    model: nn.Module,
    example: Arrays,
    path: str | os.PathLike[str],
    *,
    opset: int = OPSET,
    input_names: Sequence[str] = INPUT_NAMES,
    output_names: Sequence[str] = OUTPUT_NAMES,
    verify_batches: Sequence[int] = VERIFY_BATCHES,
    verify_data: Arrays | None = None,
    seed: int = 0,
    keep_failed: bool = False,
) -> ExportResult:
    """Write `model` to one `.onnx` file that onnxruntime is known to agree with.

    The file appears at `path` only once it is verified (see `verify_onnx`); until then, and after
    any failure, what was there before stays. `model` is copied and never touched: it may be in
    training mode, on an accelerator, compiled, or wrapped in `DataParallel`.

    Args:
        model: `forward(*inputs)` returns a flat (regression (N, *), classification (N, C, *)).
        example: Rows (N, *) like those the model will see; a tuple for several inputs. Verification
            draws its inputs in their scale, so several real rows say more than one of zeros.
        path: Where to write.
        opset: Of the file; an exporter that gives another one is an error.
        input_names: One an input.
        output_names: Of the regression and the classification output.
        verify_batches: Batch sizes to verify at.
        verify_data: Rows to verify on instead of random ones.
        seed: Of the random inputs.
        keep_failed: Leave a file that fails verification at `failed_path(path)`.

    Raises:
        OnnxExportError: The model cannot be exported.
        OnnxVerificationError: The file differs from the model; `report` is on it.
        OSError: The file cannot be written.
        TypeError, ValueError: An argument that is not what it must be.
        MissingDependencyError: onnx, onnxruntime or onnxscript is not installed.
    """
    signature = Signature(tuple(input_names), tuple(output_names))
    sizes = batch_sizes("verify_batches", verify_batches)
    if isinstance(opset, bool) or not isinstance(opset, int):
        raise TypeError(f"opset must be an int, got {opset!r}")
    count = len(signature.input_names)
    rows = as_tensors("example", example, count)
    data = None if verify_data is None else as_tensors("verify_data", verify_data, count)
    for package in ("onnx", "onnxruntime", "onnxscript"):
        require(package)
    with replacing(path) as temporary:
        reference = Reference(model)
        reference.probe(rows)
        temporary.write_bytes(traced(reference.module, rows, signature, opset))
        report = check_file(
            temporary,
            reference,
            signature,
            drawn_cases(rows, sizes, seed) if data is None else data_cases(data, sizes, seed),
            structure=read_structure(temporary),
            name=Path(path).name,
            seed=seed,
            source="example" if data is None else "data",
        )
        try:
            accepted(report)
        except OnnxVerificationError:
            if keep_failed:
                shutil.copyfile(temporary, failed_path(path))
            raise
    return ExportResult(Path(path), report, report.sha256)


def failed_path(path: str | os.PathLike[str]) -> Path:
    """Where `keep_failed` leaves a file: `m.failed.onnx` beside `m.onnx`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.failed{path.suffix}")
