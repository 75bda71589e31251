"""From the pattern of failed comparisons to what the user may want to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from fused_loss.export.report import Comparison

# Relative error of a number rounded to float32, with room: the rule allows float32 more than that.
FLOAT32 = 1e-6


Arrays: TypeAlias = "tuple[np.ndarray, ...]"

# Of the largest value: below it two arrays are taken for the same.
ALIKE = 1e-3

COMPILING = (
    "forward goes another way while it is compiled or exported: does it ask "
    "torch.compiler.is_compiling()?"
)


class Pattern(NamedTuple):
    """What the values of a failed case look like.

    Attributes:
        exchanged: Each of the two heads holds the other's values.
        shifted: Every output is off by the same in every row, or not at all.
    """

    exchanged: bool = False
    shifted: bool = False


def pattern(found: Sequence[Arrays], exact: Sequence[Arrays]) -> Pattern:
    """Of one case: the outputs of each run, and what they should be."""
    ours, truth = (
        [np.concatenate([np.atleast_1d(one[i]) for one in runs]) for i in range(len(runs[0]))]
        for runs in (found, exact)
    )
    if any(a.shape != b.shape or a.dtype.kind != "f" for a, b in zip(ours, truth, strict=True)):
        return Pattern()
    pairs = list(zip(ours, truth, strict=True))
    two = len(pairs) == 2 and ours[0].shape == truth[1].shape
    crossed = two and _alike(ours[0], truth[1]) and _alike(ours[1], truth[0])
    return Pattern(
        crossed and not (_alike(*pairs[0]) and _alike(*pairs[1])),
        len(ours[0]) > 1 and all(_shifted(*pair) for pair in pairs),
    )


def joint(patterns: Sequence[Pattern]) -> Pattern:
    """What all of them show; the last rows of one case may look like anything."""
    if not patterns:
        return Pattern()
    return Pattern(*(all(each) for each in zip(*patterns, strict=True)))


def _shifted(ours: np.ndarray, truth: np.ndarray) -> bool:
    """The same error in every row, beside rounding."""
    error = ours - truth
    rounding = FLOAT32 * float(np.abs(truth).max(initial=0.0))
    return _alike(error, error[:1], rounding)


def _alike(one: np.ndarray, other: np.ndarray, slack: float = 0.0) -> bool:
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return False
    size = float(np.abs(other).max(initial=0.0))
    return bool((np.abs(one - other) <= ALIKE * size + slack).all())


def hint(comparisons: Sequence[Comparison], seen: Pattern | None = None, unfit: str = "") -> str:
    """A sentence, or nothing where every comparison passes.

    Args:
        comparisons: All of them.
        seen: What the values look like.
        unfit: What the inputs were drawn from, where it holds NaN or inf itself.
    """
    seen = seen or Pattern()
    failed = [c for c in comparisons if not c.passed]
    if not failed:
        return ""
    if any("two runs differ" in c.problem for c in failed):
        return ""
    if all("the model itself" in c.problem for c in failed):
        return "is this the model that the file was made from?"
    if all("NaN" in c.problem or "finite" in c.problem for c in failed):
        if unfit:
            return (
                f"the rows of {unfit} hold NaN or inf themselves: leave such rows out, unless "
                "forward is made for them"
            )
        return "does the model overflow, or hold NaN?"
    if seen.exchanged:
        return "each output holds the other's values: the heads are exchanged"
    bad_sizes = {c.batch for c in failed}
    if bad_sizes == {0}:
        return "only the empty batch fails: leave 0 out of the batch sizes if it never occurs"
    good_sizes = {c.batch for c in comparisons if c.batch} - bad_sizes
    if good_sizes:
        return (
            f"batch {_listed(bad_sizes)} fails and {_listed(good_sizes)} passes: "
            "does forward depend on the batch size?"
        )
    if all(c.error is not None and c.error < FLOAT32 * (c.scale or 0.0) for c in failed):
        return (
            "an error of float32's size: the exporter keeps Python numbers in float32; export "
            "model.float(), or hold them in float64 buffers"
        )
    if seen.shifted:
        return "the error is the same in every row: is a bias another one, or permuted?"
    levels = {c.level for c in failed}
    if len(levels) == 1:
        return f"only {levels.pop()} fails: this is onnxruntime's doing; try another opset"
    outputs = {c.output for c in failed}
    if len(outputs) == 1 and len({c.output for c in comparisons}) > 1:
        return f"only {outputs.pop()} differs, at every batch size: is the file of other weights?"
    return "both outputs differ at every batch size: is the file of other weights?"


def _listed(sizes: set[int]) -> str:
    return ", ".join(map(str, sorted(sizes)))
