"""The rule of acceptance on a written file, over batch sizes and optimisation levels.

The file is reopened with onnxruntime at both optimisation levels and compared with the model in
float64 (see `compare`), at several batch sizes: a forward that depends on the batch size exports
without complaint.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fused_loss.export.compare import compare
from fused_loss.export.diagnose import hint
from fused_loss.export.errors import OnnxLoadError, OnnxVerificationError, require
from fused_loss.export.inputs import Case
from fused_loss.export.reference import Heads, Reference
from fused_loss.export.report import Comparison, VerificationReport
from fused_loss.export.session import open_session
from fused_loss.export.signature import Signature, Tensors
from fused_loss.export.structure import Structure

LEVELS = ("DISABLE_ALL", "ENABLE_ALL")
PACKAGES = ("torch", "onnx", "onnxruntime", "numpy")


def accepted(report: VerificationReport) -> VerificationReport:
    """The report, if it passed.

    Raises:
        OnnxVerificationError: It did not.
    """
    if not report.passed:
        raise OnnxVerificationError(report)
    return report


def check_file(
    path: Path,
    reference: Reference,
    signature: Signature,
    cases: Iterable[Case],
    *,
    structure: Structure,
    name: str,
    seed: int,
    source: str,
) -> VerificationReport:
    """Compare, and report without raising; `name` is what the report calls the file."""
    report = VerificationReport(
        file=name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        opset=structure.opset,
        ir_version=structure.ir_version,
        inputs=structure.inputs,
        outputs=structure.outputs,
        versions={package: _version(package) for package in PACKAGES},
        seed=seed,
        source=source,
        problems=(*structure.problems, *structure.differences(signature)),
    )
    if report.problems:
        return report
    try:
        sessions = {level: open_session(path, level=level) for level in LEVELS}
    except OnnxLoadError as error:
        return dataclasses.replace(report, problems=(str(error).replace(path.name, name),))
    comparisons = tuple(
        comparison
        for case in cases
        for comparison in _check_case(case, reference, sessions, signature)
    )
    return dataclasses.replace(report, comparisons=comparisons, hint=hint(comparisons))


def _check_case(
    case: Case, reference: Reference, sessions: dict[str, Any], signature: Signature
) -> Iterator[Comparison]:
    """Two heads at each level; an empty batch that the model refuses is not held against it."""
    rows = case.batch * len(case.draws)

    def all_heads(
        problem: str, levels: Iterable[str], passed: bool = False
    ) -> Iterator[Comparison]:
        for level in levels:
            for name in signature.output_names:
                yield Comparison(name, case.batch, level, rows, passed=passed, problem=problem)

    try:
        eager = [reference.eager(inputs) for inputs in case.draws]
    except Exception as error:
        problem = f"the model itself fails: {_first_line(error)}"
        yield from all_heads(problem, LEVELS, passed=case.batch == 0)
        return
    try:
        exact = [reference.exact(inputs) for inputs in case.draws]
    except Exception as error:
        yield from all_heads(f"the model fails in float64: {_first_line(error)}", LEVELS)
        return
    for level, session in sessions.items():
        try:
            found = [_run(session, inputs, signature) for inputs in case.draws]
        except Exception as error:
            yield from all_heads(f"onnxruntime fails: {_first_line(error)}", [level])
            continue
        for head, name in enumerate(signature.output_names):
            runs = ([outputs[head] for outputs in each] for each in (found, eager, exact))
            yield compare(name, case.batch, level, *runs, classes=head == 1)


def _run(session: Any, inputs: Tensors, signature: Signature) -> Heads:
    feeds = {
        name: np.ascontiguousarray(tensor.numpy())
        for name, tensor in zip(signature.input_names, inputs, strict=True)
    }
    regression, classification = session.run(list(signature.output_names), feeds)
    return regression, classification


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _version(package: str) -> str:
    return str(require(package).__version__)
