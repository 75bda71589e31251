"""The rule of acceptance, on the arrays of one output at one batch size and optimisation level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fused_loss.export.report import Comparison
from fused_loss.export.scale import COLUMN_FACTOR, columns, tiers
from fused_loss.export.tolerance import EXACT, Rule


class Runs(NamedTuple):
    """One output's arrays, one a run.

    Attributes:
        found: What onnxruntime gave.
        eager: What PyTorch gives, in the dtype that the file computes in.
        exact: What PyTorch gives in float64.
    """

    found: Sequence[np.ndarray]
    eager: Sequence[np.ndarray]
    exact: Sequence[np.ndarray]


class Group(NamedTuple):
    """A tier and column of an output, and how it fares.

    Attributes:
        error, allowed: max |onnxruntime - float64|, and the limit.
        eager_error, scale: What the limit comes from.
        hopeless: Whether PyTorch's own error in the tier is as large as its values.
    """

    error: float
    allowed: float
    eager_error: float
    scale: float
    hopeless: bool


def compare(
    output: str, batch: int, level: str, rows: int, runs: Runs, *, classes: bool, rule: Rule = EXACT
) -> Comparison:
    """Accept `found` if `max|found - exact| <= max(16 max|eager - exact|, 64 eps max|exact|)`.

    The maxima are over all runs, within a tier and column (see `scale`); the comparison shows the
    group that comes nearest to its limit, or exceeds it most. With `classes`, the argmax over axis
    1 must be that of `exact` wherever its two largest differ by more than is allowed.
    Infinities and NaN must stand where PyTorch has them. Where anything would pass, nothing does: a
    head without a finite value, or where 16 times PyTorch's own error exceeds the largest value.

    Args:
        output: The output's name.
        batch: Rows of a run.
        level: Optimisation level of onnxruntime.
        rows: Compared in all.
        runs: The arrays.
        classes: Whether the head holds logits or probabilities, (N, C, *).
        rule: What is allowed.
    """

    def refused(problem: str) -> Comparison:
        return Comparison(output, batch, level, rows, problem=problem)

    for ours, theirs in zip(runs.found, runs.eager, strict=True):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return refused(
                f"{ours.dtype} {ours.shape} from onnxruntime, {theirs.dtype} {theirs.shape} "
                "from PyTorch"
            )
    found, eager, exact = map(_stacked, runs)
    finite = np.isfinite(eager)
    problem = _nonfinite_problem(found, eager, exact, finite)
    if problem:
        return refused(problem)
    if not finite.any():
        if not rows:  # nothing, or the mean over nothing
            return Comparison(output, batch, level, rows, passed=True)
        return refused("PyTorch gives no finite value to compare with")

    groups, allowed = _groups(found, eager, exact, finite, rule)
    worst = max(groups, key=_badness)
    agreement = _agreement(found.argmax(1), exact, allowed) if classes else None
    problem = _problem(worst, agreement, rule, found.dtype)
    return Comparison(
        output,
        batch,
        level,
        rows,
        error=worst.error,
        allowed=worst.allowed,
        eager_error=worst.eager_error,
        scale=worst.scale,
        argmax_agreement=agreement,
        passed=not problem,
        problem=problem,
    )


def compare_labels(
    output: str,
    batch: int,
    level: str,
    rows: int,
    labels: Sequence[np.ndarray],
    runs: Runs,
    rule: Rule = EXACT,
) -> Comparison:
    """Accept `labels` (N, *) if they are int64 and those of `runs`, the classification output.

    That is the file's own argmax wherever its output is finite, and the argmax of float64 wherever
    that is clear. Under int8 the second is the agreement that `quantize` measures.
    """

    def outcome(problem: str, agreement: float | None = None) -> Comparison:
        passed = not problem
        return Comparison(
            output, batch, level, rows, None, None, None, None, agreement, passed, problem
        )

    found, eager, exact = map(_stacked, runs)
    label = _stacked(labels)
    own = found.argmax(1)
    if label.dtype != np.int64 or label.shape != own.shape:
        return outcome(f"{label.dtype} {label.shape}, int64 {own.shape} is needed")
    certain = np.isfinite(found).all(1) & (np.ptp(np.sort(found, axis=1)[:, -2:], axis=1) > 0)
    if (label != own)[certain].any():
        return outcome("is not the largest of the file's own classification output")
    finite = np.isfinite(eager)
    _, allowed = _groups(found, eager, exact, finite, rule)
    agreement = _agreement(label, exact, allowed)
    missed = agreement is not None and agreement < 1.0 and not rule.share
    return outcome(f"differs in {1 - (agreement or 0):.1%} of the clear cases" * missed, agreement)


def _agreement(label: np.ndarray, exact: np.ndarray, allowed: np.ndarray) -> float | None:
    """Share of equal classes where the two largest of `exact` (N, C, *) differ by more.

    None where there is no such position.
    """
    if exact.ndim < 2 or exact.shape[1] < 2 or not exact.size:
        return None
    order = np.argpartition(exact, -2, axis=1)[:, -2:]
    second, first = np.moveaxis(np.take_along_axis(exact, order, 1), 1, 0)
    slack = np.take_along_axis(allowed, order, 1).max(1)
    with np.errstate(invalid="ignore"):
        clear = first - second > slack
    total = int(clear.sum())
    return float((clear & (label == exact.argmax(1))).sum()) / total if total else None


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The runs as one array (N, *); a 0-d loss a run is (runs,)."""
    return np.concatenate([np.atleast_1d(array) for array in arrays])


def _nonfinite_problem(
    found: np.ndarray, eager: np.ndarray, exact: np.ndarray, finite: np.ndarray
) -> str:
    if not np.array_equal(np.isfinite(found), finite):
        return f"{_nonfinite(found)} from onnxruntime where PyTorch gives {_nonfinite(eager)}"
    if not np.array_equal(found[~finite], eager[~finite], equal_nan=True):
        return "infinities or NaN differ from PyTorch's"
    if not np.isfinite(exact[finite]).all():
        return f"{_nonfinite(exact[finite])} in float64 where PyTorch is finite"
    return ""


def _groups(
    found: np.ndarray, eager: np.ndarray, exact: np.ndarray, finite: np.ndarray, rule: Rule
) -> tuple[list[Group], np.ndarray]:
    """How each tier and column fares, and what is allowed for each element."""
    known = np.where(finite, exact, 0.0)
    with np.errstate(invalid="ignore"):
        error = np.where(finite, np.abs(found - exact), 0.0)
        off = np.where(finite, np.abs(eager - exact), 0.0)
    tier, column = tiers(known), columns(known)
    eps = rule.eps(found.dtype)
    ordinary = rule
    allowed = np.zeros(exact.shape)
    groups = []
    for band in range(int(tier.max(initial=0)) + 1):
        inside = finite & (tier == band)
        if not inside.any():
            continue
        values = known[inside]
        scale = float(np.abs(values).max())
        # The spread is that of ordinary values: a sentinel's is its size.
        rule = ordinary if not band or not rule.spread else replace(ordinary, spread=(scale,))
        hopeless = not rule.asked and rule.eager_factor * float(off[inside].max()) > scale
        width = int(column.max()) + 1
        errors, offs, scales = (
            _largest(array[inside], column[inside], width) for array in (error, off, np.abs(known))
        )
        if not offs.any():  # float64 itself, or exact: there is no error to know the columns by
            scales = np.where(np.isnan(scales), scales, scale)
        limits = np.zeros(width)
        for j in np.flatnonzero(~np.isnan(scales)):
            own = min(scale, COLUMN_FACTOR * scales[j])
            limits[j] = rule.allowed(offs[j], own, eps, int(j))
            error_j, limit_j, off_j = (float(each[j]) for each in (errors, limits, offs))
            groups.append(Group(error_j, limit_j, off_j, float(own), hopeless))
        allowed[inside] = limits[column[inside]]
    return groups, allowed


def _largest(values: np.ndarray, column: np.ndarray, width: int) -> np.ndarray:
    """(n,), (n,) -> (width,): of each column; NaN where it has no element."""
    largest = np.full(width, -np.inf)
    np.maximum.at(largest, column, values)
    return np.where(np.isneginf(largest), np.nan, largest)


def _badness(group: Group) -> tuple[bool, float]:
    over = group.error / group.allowed if group.allowed else np.inf if group.error else 0.0
    return group.hopeless, over


def _problem(worst: Group, agreement: float | None, rule: Rule, dtype: np.dtype) -> str:
    if worst.hopeless:
        return (
            f"PyTorch itself is off by {worst.eager_error:.1e} of {worst.scale:.1e} in "
            f"{rule.dtype or dtype}: nothing can be verified"
        )
    if worst.error > worst.allowed:
        return f"max error {worst.error:.1e} > {worst.allowed:.1e}"
    if agreement is not None and agreement < 1.0 and not rule.share:
        return f"argmax differs in {1 - agreement:.1%} of the clear cases"
    return ""


def _nonfinite(values: np.ndarray) -> str:
    nan, inf = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    return f"{nan} NaN and {inf} inf"
