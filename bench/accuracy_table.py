"""The accuracy table in Markdown: every figure in it is one of the results'."""

from __future__ import annotations

from typing import Any

from fused_loss.bench.wording import date, escape, machine, table, versions

LEGEND = """\
Largest error against float64, in units of the last place of the output's dtype at the largest value
of that output: of this package, and in parentheses of PyTorch's own losses in float32 on the same
inputs, gradients rounded to the outputs' dtype. "Losses" is the worst of the loss and its two
components, "gradients" the worst of both outputs' and, where alpha or the weights are tensors,
theirs. **Bold** where it is more than PyTorch's own and more than one unit."""
INTERPRETED = (
    "The rows of triton were computed by Triton's interpreter on a CPU: the kernel's own "
    "arithmetic, in NumPy, whose exponentials and order of sums are not a GPU's."
)


Row = dict[str, Any]


def markdown(results: dict[str, Any]) -> str:
    """The whole table, a section a backend."""
    rows = results["rows"]
    parts = [
        f"# Accuracy: {machine(results)}",
        f"```\n{results['command']}\n```",
        f"{date(results)}, {versions(results)}, commit {results['environment']['commit']}.",
        LEGEND,
        INTERPRETED if results["interpreted"] else "",
        *(f"Not here: {name}: {reason}." for name, reason in results["absent"].items()),
    ]
    for backend in dict.fromkeys(row["backend"] for row in rows):
        parts.append(f"## {backend}\n\n{_section([r for r in rows if r['backend'] == backend])}")
    good = sum(within(row) for row in rows)
    parts.append(f"{good} of {len(rows)} rows are within their bound.")
    return "\n\n".join(filter(None, parts)) + "\n"


def _section(rows: list[Row]) -> str:
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    cells = {(row["option"], row["dtype"]): row for row in rows}
    head = ["option", *(f"{dtype}: {of}" for dtype in dtypes for of in ("losses", "gradients"))]
    lines = [
        [escape(option), *(cell for dtype in dtypes for cell in _cells(cells[option, dtype]))]
        for option in dict.fromkeys(row["option"] for row in rows)
    ]
    return table(head, lines, "l" + "r" * (len(head) - 1))


def _cells(row: Row) -> list[str]:
    """The losses' error and the gradients', each beside PyTorch's."""
    cells = []
    for ours, eager in kinds(row):
        mark = "**" if outside(ours, eager) else ""
        cells.append(f"{mark}{ours:.2f}{mark} ({eager:.2f})")
    return cells


def kinds(row: Row) -> list[tuple[float, float]]:
    """The largest error of the losses, and of the gradients: this package's and PyTorch's."""
    found = []
    for gradients in (False, True):
        names = [name for name in row["ulps"] if name.endswith("gradient") == gradients]
        ours, eager = (max(row[key][name] for name in names) for key in ("ulps", "eager_ulps"))
        found.append((ours, eager))
    return found


def outside(ours: float, eager: float) -> bool:
    """Whether an error is more than PyTorch's own and more than a unit in the last place."""
    return ours > max(eager, 1.0)


def within(row: Row) -> bool:
    """Whether a row's errors are what they may be."""
    return not any(outside(*kind) for kind in kinds(row))
