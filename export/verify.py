"""`verify_onnx`: hold a file to the model that it was made from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from fused_loss.export.check import accepted, blank_report, check_file, expected, run
from fused_loss.export.errors import ModelError
from fused_loss.export.evaluation import evaluation_copy
from fused_loss.export.files import as_path, needed
from fused_loss.export.heads import as_roles
from fused_loss.export.inputs import data_cases, drawn_cases, standard_example
from fused_loss.export.metadata import recorded
from fused_loss.export.options import recorded_options
from fused_loss.export.quantize import (
    MIN_LABEL_AGREEMENT,
    agreement_problem,
    int8_rules,
    label_agreement,
)
from fused_loss.export.reference import Reference
from fused_loss.export.report import VerificationReport
from fused_loss.export.scaling import restored
from fused_loss.export.session import open_session
from fused_loss.export.signature import (
    OUTPUT_NAMES,
    VERIFY_BATCHES,
    Arrays,
    Signature,
    as_tensors,
    batch_sizes,
)
from fused_loss.export.structure import read_structure
from fused_loss.export.tolerance import Limits, rules_for

# What onnxruntime's quantisation puts into a file, dynamic and static.
INT8 = ("DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear", "QLinearMatMul")


def verify_onnx(
    path: str | os.PathLike[str],
    model: nn.Module,
    example: Arrays | None = None,
    *,
    data: Arrays | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] = OUTPUT_NAMES,
    roles: Mapping[str, str | int] | None = None,
    dtype: str | None = None,
    normalize: Mapping[str, Any] | None = None,
    denormalize: Mapping[str, Any] | None = None,
    unit: str | None = None,
    softmax: bool | None = None,
    label: bool | None = None,
    class_names: Sequence[str] | None = None,
    quantize: str | None = None,
    batches: Sequence[int] = VERIFY_BATCHES,
    atol: Limits = None,
    rtol: Limits = None,
    min_label_agreement: float = MIN_LABEL_AGREEMENT,
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
        roles: As in `export_onnx`; so are the next eight, of which None takes what the file's own
            metadata says.
        dtype, normalize, denormalize, unit, softmax, label, class_names, quantize: What the file
            does beside the model.
        batches: Batch sizes.
        atol, rtol, min_label_agreement: As in `export_onnx`.
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
    path = as_path(path)
    needed(path, FileNotFoundError)
    structure = read_structure(path)
    names = tuple(structure.inputs or ("input",)) if input_names is None else tuple(input_names)
    signature = Signature(names, tuple(output_names))
    source = "data" if data is not None else "random" if example is None else "example"
    report = blank_report(path, structure, signature, name=path.name, seed=seed, source=source)
    if structure.problems:  # a damaged file has no inputs to draw for
        evaluation_copy(model)
        return accepted(report)
    given: dict[str, Any] = {
        "dtype": dtype,
        "normalize": normalize,
        "denormalize": denormalize,
        "unit": unit,
        "softmax": softmax,
        "label": label,
        "class_names": class_names,
        "quantize": quantize,
    }
    record = recorded(structure.metadata)
    options = recorded_options(record, names, given)
    if data is not None:
        rows = as_tensors("data", data, len(names))
    elif example is not None:
        rows = as_tensors("example", example, len(names))
    else:
        rows = standard_example(structure.inputs, structure.dtypes, seed)
        rows = restored(rows, names, options.normalize)
    try:
        reference = Reference(model, rows, signature, options=options, roles=as_roles(roles))
    except ModelError as error:
        problem = f"{error}: is this the model that the file was made from?"
        return accepted(replace(report, problems=(problem,)))
    signature, rows = reference.signature, reference.example
    rules = rules_for(signature, options, atol, rtol)
    real = data is not None or options.quantize is not None
    wanted = expected(reference, (data_cases if real else drawn_cases)(rows, sizes, seed))
    reference.release()
    problems = structure.differences(signature) + _otherwise(record, given)
    if options.quantize is not None and not any(name in INT8 for name in structure.operators):
        problems += ("it says that it is quantised, and has no operator of int8",)
    report = replace(report, problems=problems)
    if options.quantize is not None:
        rules = int8_rules(rules, signature, wanted)
    report = check_file(path, report, signature, wanted, rules, reference)
    if options.quantize is not None and not report.problems:
        session = open_session(path)
        found = label_agreement(signature, wanted, lambda x: run(session, x, signature))
        report = replace(report, problems=agreement_problem(found, min_label_agreement))
    return accepted(report)


def _otherwise(record: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the file says something else of itself than was asked for."""
    asked = {key: given[key] for key in ("unit", "class_names", "dtype", "quantize")}
    return tuple(
        f"{key} is {record.get(key)!r} in the file and must be {value!r}"
        for key, value in asked.items()
        if value is not None and (list(value) if key == "class_names" else value) != record.get(key)
    )
