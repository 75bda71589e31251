"""int8: a verified file made smaller, and held to float64 by limits sized from the user's data."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fused_loss.export.check import Expected
from fused_loss.export.errors import OnnxExportError, require
from fused_loss.export.options import Options
from fused_loss.export.progress import Progress
from fused_loss.export.scale import tiers
from fused_loss.export.signature import (
    CLASSIFICATION,
    REGRESSION,
    Arrays,
    Signature,
    Tensors,
    as_tensors,
)
from fused_loss.export.tolerance import Rule
from fused_loss.export.trace import cleaned, quiet

MIN_LABEL_AGREEMENT = 0.99
CALIBRATION_BATCH = 32


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        mode: "dynamic": weights in int8, activations measured at every run; "static": ranges of
            activations fixed from `calibration`.
        calibration: Rows; none for "dynamic", where they may still be what the file is held to.
        min_label_agreement: Least share of rows whose label is that of float64.
        progress: Called while calibrating.
    """

    mode: str
    calibration: Tensors | None
    min_label_agreement: float
    progress: Progress


def request(
    options: Options,
    calibration_data: Arrays | None,
    min_label_agreement: float | None,
    progress: Progress,
    inputs: int,
) -> Request | None:
    """Check the arguments; None where nothing is quantised.

    Raises:
        TypeError, ValueError: What cannot be meant, by the argument's name.
    """
    rows = None
    if calibration_data is not None:
        rows = as_tensors("calibration_data", calibration_data, inputs)
    if options.quantize is None:
        for name, given in (
            ("calibration_data", calibration_data),
            ("min_label_agreement", min_label_agreement),
        ):
            if given is not None:
                raise ValueError(f"{name} goes with quantize='static' or 'dynamic'")
        return None
    if options.quantize == "static" and rows is None:
        raise ValueError("quantize='static' needs calibration_data: rows like those of its use")
    least = MIN_LABEL_AGREEMENT if min_label_agreement is None else min_label_agreement
    if isinstance(least, bool) or not isinstance(least, (int, float)):
        raise TypeError(f"min_label_agreement must be a number, got {least!r}")
    if not 0 <= least <= 1:
        raise ValueError(f"min_label_agreement must be from 0 to 1, got {least}")
    return Request(options.quantize, rows, float(least), progress)


def quantized(proto: Any, asked: Request, signature: Signature) -> Any:
    """The int8 `onnx.ModelProto` of a float32 one.

    Raises:
        OnnxExportError: onnxruntime cannot quantise it, or finds nothing to quantise.
        MissingDependencyError: onnxruntime is not installed.
    """
    tools, onnx = require("onnxruntime.quantization"), require("onnx")
    before = _operators(proto)
    # 7 bits a weight: x86 without VNNI adds two 8-bit products in 16 bits, which would saturate.
    how = {"per_channel": True, "reduce_range": True}
    with tempfile.TemporaryDirectory() as folder, quiet("root"):
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(proto, str(source))
        try:
            if asked.mode == "dynamic":
                tools.quantize_dynamic(source, target, **how)
            else:
                reader = _Rows(signature.input_names, asked)
                tools.quantize_static(source, target, reader, **how)
            made = onnx.load(str(target))
        except Exception as error:
            raise OnnxExportError(f"onnxruntime cannot quantise this model: {error}") from error
    if _operators(made) == before:
        raise OnnxExportError(
            "onnxruntime finds nothing to quantise: the model has no matrix product or convolution "
            "with constant weights"
        )
    made.producer_name, made.producer_version = proto.producer_name, proto.producer_version
    return cleaned(made)


def int8_rules(
    rules: Mapping[str, Rule], signature: Signature, wanted: Sequence[Expected]
) -> dict[str, Rule]:
    """The rules with the spread of each output over all rows, by column for the regression."""
    sized = {}
    for i, (role, name) in enumerate(signature.outputs.items()):
        values = np.concatenate(
            [np.atleast_1d(outputs[i]) for case in wanted for outputs in case.exact]
        )
        sized[name] = replace(rules[name], spread=_spread(role, values))
    return sized


def agreement_problem(found: tuple[float, int] | None, least: float) -> tuple[str, ...]:
    """What `label_agreement` found, where it is too little."""
    if found is None or found[0] >= least:
        return ()
    return (
        f"int8 gives float64's label to {found[0]:.2%} of {found[1]} rows, {least:.2%} are needed "
        "(min_label_agreement)",
    )


def label_agreement(
    signature: Signature, wanted: Sequence[Expected], run: Callable[[Tensors], Arrays]
) -> tuple[float, int] | None:
    """Share of positions whose label is that of float64, and their number; None without labels."""
    if CLASSIFICATION not in signature.roles:
        return None
    head, same, total = signature.roles.index(CLASSIFICATION), 0, 0
    for case in wanted:
        for inputs, exact in zip(case.case.draws, case.exact, strict=True):
            truth = exact[head]
            same += int((run(inputs)[head].argmax(1) == truth.argmax(1)).sum()) if truth.size else 0
            total += truth.argmax(1).size if truth.size else 0
    return (same / total, total) if total else None


def _spread(role: str, values: np.ndarray) -> tuple[float, ...]:
    known = np.where(np.isfinite(values) & (tiers(values) == 0), values, np.nan)
    if role == REGRESSION and values.ndim > 1:
        columns = np.moveaxis(known, 1, 0).reshape(values.shape[1], -1)
        return tuple(float(np.nanmax(one) - np.nanmin(one)) for one in columns)
    if role in (REGRESSION, CLASSIFICATION):
        return (float(np.nanmax(known) - np.nanmin(known)),)
    return (float(np.nanmax(np.abs(known))),)


def _operators(proto: Any) -> list[str]:
    return [node.op_type for node in proto.graph.node]


class _Rows:
    """Calibration rows in batches, as onnxruntime asks for them."""

    def __init__(self, names: Sequence[str], asked: Request) -> None:
        assert asked.calibration is not None
        self._names, self._rows, self._progress = names, asked.calibration, asked.progress
        self._done = 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch by input; None at the end."""
        total = len(self._rows[0])
        self._progress(self._done, total)
        if self._done >= total:
            return None
        part = slice(self._done, self._done + CALIBRATION_BATCH)
        self._done = min(total, self._done + CALIBRATION_BATCH)
        return {
            name: np.ascontiguousarray(rows[part].numpy())
            for name, rows in zip(self._names, self._rows, strict=True)
        }
