"""What a verification found: one comparison a head, batch size and optimisation level."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

SHOWN = 4


@dataclass(frozen=True)
class Comparison:
    """One head at one batch size and optimisation level of onnxruntime.

    Attributes:
        output: The name of the output.
        batch: The number of rows of a run.
        level: "DISABLE_ALL" or "ENABLE_ALL".
        rows: Rows compared in all.
        error: max |onnxruntime - float64|, in the output's unit; None where nothing was compared.
        allowed: What the rule of acceptance allows for it.
        eager_error: max |PyTorch - float64|.
        scale: max |float64|.
        argmax_agreement: Share of equal classes among the positions whose float64 margin exceeds
            `allowed`; None for the regression head or where there is no such position.
        passed: Whether the rule holds.
        problem: Why it does not, or a remark.
    """

    output: str
    batch: int
    level: str
    rows: int
    error: float | None = None
    allowed: float | None = None
    eager_error: float | None = None
    scale: float | None = None
    argmax_agreement: float | None = None
    passed: bool = False
    problem: str = ""

    def __str__(self) -> str:
        """Where it fails, and how."""
        return f"{self.output}: {self.problem} (batch {self.batch}, {self.level})"


@dataclass(frozen=True)
class VerificationReport:
    """Everything that was compared, passing or not.

    Attributes:
        file: The file's name, without its folder.
        sha256: Of the file's bytes.
        opset: Of the default operator set; None where the file cannot be read.
        ir_version: Of the file; None where it cannot be read.
        inputs: Name to shape, a symbolic axis by its name.
        outputs: Name to shape.
        versions: Of the packages that took part.
        seed: Of the random inputs.
        source: "random", "example" or "data": what the inputs were drawn from.
        problems: What is wrong with the file as such (names, axes, damage).
        comparisons: One a head, batch size and level.
        hint: What the pattern of failures suggests.
    """

    file: str
    sha256: str
    opset: int | None
    ir_version: int | None
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    versions: dict[str, str]
    seed: int
    source: str
    problems: tuple[str, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    hint: str = ""

    @property
    def passed(self) -> bool:
        """Whether the file is accepted: something was compared and all of it agrees."""
        agree = all(comparison.passed for comparison in self.comparisons)
        return bool(self.comparisons) and agree and not self.problems

    @property
    def failures(self) -> tuple[Comparison, ...]:
        """The comparisons that do not hold."""
        return tuple(comparison for comparison in self.comparisons if not comparison.passed)

    def failure(self) -> str:
        """The first failures and the hint, in a few lines."""
        found = [*self.problems, *map(str, self.failures)]
        lines = found[:SHOWN]
        if len(found) > SHOWN:
            lines.append(f"and {len(found) - SHOWN} more, all in the report")
        if self.hint:
            lines.append(self.hint)
        return "\n".join([f"{self.file} is refused:", *lines])

    def summary(self) -> str:
        """One line a head: the worst error relative to what was allowed."""
        if not self.passed:
            return self.failure()
        lines = [f"{self.file}: opset {self.opset}, IR {self.ir_version}, sha256 {self.sha256}"]
        for output in self.outputs:
            worst = max(
                (c for c in self.comparisons if c.output == output and c.error is not None),
                key=lambda c: (c.error or 0.0) / (c.allowed or math.inf),
                default=None,
            )
            if worst is None:
                continue
            lines.append(
                f"{output}: max error {worst.error:.1e} of {worst.allowed:.1e} allowed "
                f"(batch {worst.batch}, {worst.level})"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings."""
        return {"passed": self.passed, **dataclasses.asdict(self)}

    def to_json(self, indent: int = 2) -> str:
        """Standard JSON: a number that is not finite is written as a string."""
        return json.dumps(_finite(self.to_dict()), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
