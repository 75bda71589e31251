"""From the pattern of failed comparisons to what the user may want to look at."""

from __future__ import annotations

from collections.abc import Sequence

from fused_loss.export.report import Comparison

# Relative error of a number rounded to float32, with room: the rule allows float32 more than that.
FLOAT32 = 1e-6


def hint(comparisons: Sequence[Comparison]) -> str:
    """A sentence, or nothing where every comparison passes."""
    failed = [c for c in comparisons if not c.passed]
    if not failed:
        return ""
    if any("two runs differ" in c.problem for c in failed):
        return ""
    if all("the model itself" in c.problem for c in failed):
        return "is this the model that the file was made from?"
    if all("NaN" in c.problem or "finite" in c.problem for c in failed):
        return "does the model overflow, or hold NaN?"
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
    levels = {c.level for c in failed}
    if len(levels) == 1:
        return f"only {levels.pop()} fails: this is onnxruntime's doing; try another opset"
    outputs = {c.output for c in failed}
    if len(outputs) == 1 and len({c.output for c in comparisons}) > 1:
        return f"only {outputs.pop()} differs, at every batch size: is the file of other weights?"
    return "both outputs differ at every batch size: is the file of other weights?"


def _listed(sizes: set[int]) -> str:
    return ", ".join(map(str, sorted(sizes)))
