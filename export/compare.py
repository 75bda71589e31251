"""The rule of acceptance, on the arrays of one head at one batch size and optimisation level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fused_loss.export.report import Comparison

# Of PyTorch's own error against float64, and of the output dtype's epsilon times the largest value.
EAGER_FACTOR = 16
EPS_FACTOR = 64


def compare(
    output: str,
    batch: int,
    level: str,
    found: Sequence[np.ndarray],
    eager: Sequence[np.ndarray],
    exact: Sequence[np.ndarray],
    *,
    classes: bool,
) -> Comparison:
    """Accept `found` if `max|found - exact| <= max(16 max|eager - exact|, 64 eps max|exact|)`.

    The maxima are over all runs. With `classes`, the argmax over axis 1 must be that of `exact`
    wherever the two largest logits of `exact` differ by more than the right side. Infinities and
    NaN must stand where PyTorch has them. Where anything would pass, nothing does: a head without a
    finite value, or one where 16 times PyTorch's own error exceeds the largest value.

    Args:
        output: The head's name.
        batch: Rows of a run.
        level: Optimisation level of onnxruntime.
        found: What onnxruntime gave, one array a run.
        eager: What PyTorch gives, in the model's dtype.
        exact: What PyTorch gives in float64.
        classes: Whether the head holds logits, (N, C, *).
    """
    rows = sum(len(array) for array in eager)

    def refused(problem: str) -> Comparison:
        return Comparison(output, batch, level, rows, problem=problem)

    for ours, theirs in zip(found, eager, strict=True):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return refused(
                f"{ours.dtype} {ours.shape} from onnxruntime, {theirs.dtype} {theirs.shape} "
                "from PyTorch"
            )
    ours, theirs, truth = (
        np.concatenate([array.reshape(-1) for array in arrays]) for arrays in (found, eager, exact)
    )
    finite = np.isfinite(theirs)
    if not np.array_equal(np.isfinite(ours), finite):
        return refused(
            f"{_nonfinite(ours)} from onnxruntime where PyTorch gives {_nonfinite(theirs)}"
        )
    if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True):
        return refused("infinities or NaN differ from PyTorch's")
    if not np.isfinite(truth[finite]).all():
        return refused(f"{_nonfinite(truth[finite])} in float64 where PyTorch is finite")
    if not finite.any():
        if ours.size == 0:
            return Comparison(output, batch, level, rows, passed=True)
        return refused("PyTorch gives no finite value to compare with")

    error = float(np.abs(ours[finite] - truth[finite]).max())
    eager_error = float(np.abs(theirs[finite] - truth[finite]).max())
    scale = float(np.abs(truth[finite]).max())
    allowed = max(EAGER_FACTOR * eager_error, EPS_FACTOR * float(np.finfo(ours.dtype).eps) * scale)
    agreement = _agreement(found, exact, allowed) if classes else None
    problem = ""
    if EAGER_FACTOR * eager_error > scale:
        problem = (
            f"PyTorch itself is off by {eager_error:.1e} of {scale:.1e} in {ours.dtype}: "
            "nothing can be verified"
        )
    elif error > allowed:
        problem = f"max error {error:.1e} > {allowed:.1e}"
    elif agreement is not None and agreement < 1.0:
        problem = f"argmax differs in {1 - agreement:.1%} of the clear cases"
    return Comparison(
        output,
        batch,
        level,
        rows,
        error=error,
        allowed=allowed,
        eager_error=eager_error,
        scale=scale,
        argmax_agreement=agreement,
        passed=not problem,
        problem=problem,
    )


def _agreement(
    found: Sequence[np.ndarray], exact: Sequence[np.ndarray], margin: float
) -> float | None:
    """Share of equal argmax where the two largest of `exact` differ by more than `margin`."""
    same = total = 0
    for ours, truth in zip(found, exact, strict=True):
        if truth.shape[1] < 2 or not truth.size:
            continue
        largest = np.partition(truth, -2, axis=1)[:, -2:]
        with np.errstate(invalid="ignore"):
            clear = largest[:, 1] - largest[:, 0] > margin
        same += int((clear & (ours.argmax(1) == truth.argmax(1))).sum())
        total += int(clear.sum())
    return same / total if total else None


def _nonfinite(values: np.ndarray) -> str:
    nan, inf = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    return f"{nan} NaN and {inf} inf"
