"""The rule of acceptance on a written file, over batch sizes and optimisation levels.

The file is reopened with onnxruntime at both optimisation levels and compared with the model in
float64 (see `compare`), at several batch sizes: a forward that depends on the batch size exports
without complaint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fused_loss.export.compare import Runs, compare, compare_labels
from fused_loss.export.diagnose import Pattern, hint, joint, pattern
from fused_loss.export.errors import OnnxLoadError, OnnxVerificationError, require
from fused_loss.export.inputs import Case
from fused_loss.export.reference import Arrays, Reference
from fused_loss.export.report import Comparison, VerificationReport
from fused_loss.export.session import EmptyBatchError, open_session
from fused_loss.export.signature import CLASSIFICATION, LABEL, Signature, Tensors
from fused_loss.export.state import differences
from fused_loss.export.structure import Structure
from fused_loss.export.tolerance import EXACT, Rule
from fused_loss.export.weights import sha256

INT8 = (
    "8 bits lose too much here: calibrate on rows like those of its use, leave int8 out, or allow "
    "more (atol, rtol)"
)
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


@dataclasses.dataclass(frozen=True)
class Expected:
    """What PyTorch gives for a case, one tuple a draw; or why it gives nothing."""

    case: Case
    eager: Sequence[Arrays] = ()
    exact: Sequence[Arrays] = ()
    problem: str = ""

    @property
    def rows(self) -> int:
        """In all."""
        return self.case.batch * len(self.case.draws)


def expected(reference: Reference, cases: Iterable[Case]) -> list[Expected]:
    """Run every case in PyTorch, in the file's dtype and in float64."""
    return [_expected(reference, case) for case in cases]


def blank_report(
    path: Path, structure: Structure, signature: Signature, *, name: str, seed: int, source: str
) -> VerificationReport:
    """What the file says of itself, with nothing compared; `name` is what the report calls it."""
    return VerificationReport(
        file=name,
        sha256=sha256(path),
        opset=structure.opset,
        ir_version=structure.ir_version,
        inputs=structure.inputs,
        outputs=structure.outputs,
        versions=versions(),
        seed=seed,
        source=source,
        problems=(*structure.problems, *structure.differences(signature)),
    )


def check_file(
    path: Path,
    report: VerificationReport,
    signature: Signature,
    wanted: Sequence[Expected],
    rules: Mapping[str, Rule],
    reference: Reference,
) -> VerificationReport:
    """Complete a blank report, without raising."""
    if report.problems:
        return report
    found: list[tuple[int, Comparison]] = []
    patterns: list[Pattern] = []
    for level in LEVELS:  # one session at a time: a model may take half of the memory
        try:
            session = open_session(path, level=level)
        except OnnxLoadError as error:
            return dataclasses.replace(
                report, problems=(str(error).replace(path.name, report.file),)
            )
        for i, case in enumerate(wanted):
            outputs, problem = _outputs(case, session, signature)
            made = list(_compared(case, level, outputs, problem, signature, rules))
            found += [(i, one) for one in made]
            if outputs and case.rows and not all(one.passed for one in made):
                patterns.append(pattern(outputs, case.exact))
        del session
    comparisons = tuple(one for _, one in sorted(found, key=lambda pair: pair[0]))
    report = dataclasses.replace(report, comparisons=comparisons)
    others = differences(path, reference.module)
    if report.passed:
        return dataclasses.replace(report, problems=others)
    why = _of_weights(others) or reference.explain()
    why = why or hint(comparisons, joint(patterns), "" if _finite(wanted) else report.source)
    if any(rule.share for rule in rules.values()):
        why = INT8
    return dataclasses.replace(report, hint=why)


def versions() -> dict[str, str]:
    """Of the packages that take part."""
    return {package: str(require(package).__version__) for package in PACKAGES}


def run(session: Any, inputs: Tensors, signature: Signature) -> Arrays:
    """What onnxruntime gives, in the order of the signature."""
    feeds = {
        name: np.ascontiguousarray(tensor.numpy())
        for name, tensor in zip(signature.input_names, inputs, strict=True)
    }
    return tuple(session.run(list(signature.outputs.values()), feeds))


def _expected(reference: Reference, case: Case) -> Expected:
    try:
        eager = [reference.eager(inputs) for inputs in case.draws]
    except Exception as error:
        return Expected(case, problem=f"the model itself fails: {_first_line(error)}")
    try:
        exact = [reference.exact(inputs) for inputs in case.draws]
    except Exception as error:
        return Expected(case, problem=f"the model fails in float64: {_first_line(error)}")
    return Expected(case, eager, exact)


def _outputs(wanted: Expected, session: Any, signature: Signature) -> tuple[list[Arrays], str]:
    """What the file gives for a case; or why it gives nothing."""
    if wanted.problem:
        return [], wanted.problem
    try:
        return [run(session, inputs, signature) for inputs in wanted.case.draws], ""
    except EmptyBatchError as error:
        return [], str(error)
    except Exception as error:
        return [], f"onnxruntime fails: {_first_line(error)}"


def _compared(
    wanted: Expected,
    level: str,
    found: Sequence[Arrays],
    problem: str,
    signature: Signature,
    rules: Mapping[str, Rule],
) -> Iterator[Comparison]:
    """Every output; an empty batch that is not run on is not held against the file."""
    batch, rows = wanted.case.batch, wanted.rows
    if problem:
        passed = batch == 0 and problem.startswith(("the model itself", "not run"))
        for name in signature.outputs.values():
            yield Comparison(name, batch, level, rows, passed=passed, problem=problem)
        return
    runs = {
        role: Runs(*([one[i] for one in each] for each in (found, wanted.eager, wanted.exact)))
        for i, role in enumerate(signature.roles)
    }
    for role, name in signature.outputs.items():
        where = (name, batch, level, rows)
        if role == LABEL:
            rule = rules.get(signature.outputs[CLASSIFICATION], EXACT)
            yield compare_labels(*where, runs[LABEL].found, runs[CLASSIFICATION], rule)
        else:
            rule = rules.get(name, EXACT)
            yield compare(*where, runs[role], classes=role == CLASSIFICATION, rule=rule)


def _finite(wanted: Sequence[Expected]) -> bool:
    """Whether every input is: NaN is a legal one for models that are made for missing values."""
    return all(bool(x.isfinite().all()) for one in wanted for draw in one.case.draws for x in draw)


def _of_weights(others: Sequence[str]) -> str:
    more = f"; {len(others) - 1} more differ: is the file of other weights?"
    return "" if not others else others[0] + (more if len(others) > 1 else "")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
