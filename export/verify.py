"""`verify_onnx`: hold a file to the model that it was made from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import nn

from fused_loss.export.check import accepted, check_file
from fused_loss.export.inputs import Case, data_cases, drawn_cases, standard_example
from fused_loss.export.reference import Reference
from fused_loss.export.report import VerificationReport
from fused_loss.export.signature import (
    OUTPUT_NAMES,
    VERIFY_BATCHES,
    Arrays,
    Signature,
    as_tensors,
    batch_sizes,
)
from fused_loss.export.structure import read_structure


def verify_onnx(
    path: str | os.PathLike[str],
    model: nn.Module,
    example: Arrays | None = None,
    *,
    data: Arrays | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] = OUTPUT_NAMES,
    batches: Sequence[int] = VERIFY_BATCHES,
    seed: int = 0,
) -> VerificationReport:
    """Compare the file at `path` with `model`.

    Args:
        path: The `.onnx` file.
        model: What it was exported from; left exactly as it is.
        example: Rows (N, *) whose scale the random inputs take; a tuple for several inputs. Without
            it they are standard normal, which is honest for standardised inputs only.
        data: Rows to compare on instead: each of them, and a random choice for each batch size.
        input_names: Those the file must have; None takes the file's own.
        output_names: Those the file must have, in this order.
        batches: Batch sizes.
        seed: Of the random inputs.

    Returns:
        The report, of a file that passes.

    Raises:
        OnnxVerificationError: The file differs from the model or cannot be run; `report` is on it.
        OnnxExportError: The model is not one that this package exports.
        FileNotFoundError: No file at `path`.
        TypeError, ValueError: Arguments that do not fit the file.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    sizes = batch_sizes("batches", batches)
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    structure = read_structure(path)
    signature = Signature(
        tuple(structure.inputs or ("input",)) if input_names is None else tuple(input_names),
        tuple(output_names),
    )
    reference = Reference(model)
    cases: Iterable[Case] = ()  # of a damaged file: it has no inputs to draw for
    source = "data" if data is not None else "random" if example is None else "example"
    count = len(signature.input_names)
    if structure.problems:
        pass
    elif data is not None:
        cases = data_cases(as_tensors("data", data, count), sizes, seed)
    else:
        rows = (
            standard_example(structure.inputs, structure.dtypes, seed)
            if example is None
            else as_tensors("example", example, count)
        )
        cases = drawn_cases(rows, sizes, seed)
    report = check_file(
        path,
        reference,
        signature,
        cases,
        structure=structure,
        name=path.name,
        seed=seed,
        source=source,
    )
    return accepted(report)
