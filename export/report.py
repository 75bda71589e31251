"""What a verification found: one comparison a head, batch size and optimisation level."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from fused_loss.export.signature import LABEL

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
class Quantization:
    """What int8 costs and gains, beside the float32 file that was verified first.

    Attributes:
        mode: "dynamic" or "static".
        label_agreement: Share of positions whose label is that of float64; None without a head.
        min_label_agreement: Least share that is accepted.
        positions: Compared.
        errors: Output to the largest error against float64.
        limits: Output to what was allowed.
        bytes: "fp32" and "int8" to the size of the file.
        milliseconds: Batch size to "fp32" and "int8" to the median time of a run on one thread.
    """

    mode: str
    label_agreement: float | None
    min_label_agreement: float
    positions: int
    errors: dict[str, float]
    limits: dict[str, float]
    bytes: dict[str, int]
    milliseconds: dict[str, dict[str, float]]

    @property
    def slower(self) -> tuple[str, ...]:
        """Batch sizes at which int8 takes longer."""
        return tuple(batch for batch, t in self.milliseconds.items() if t["int8"] > t["fp32"])

    def lines(self) -> list[str]:
        """For people."""
        agree = (
            ""
            if self.label_agreement is None
            else (f", labels agree in {self.label_agreement:.2%} of {self.positions}")
        )
        size = self.bytes["int8"] / self.bytes["fp32"]
        found = [f"int8 ({self.mode}): {self.bytes['int8']:,} bytes, {size:.0%} of fp32{agree}"]
        for batch, times in self.milliseconds.items():
            slower = "slower, " if batch in self.slower else ""
            found.append(
                f"int8 at batch {batch}: {times['int8']:.3g} ms against {times['fp32']:.3g} ms: "
                f"{slower}{times['fp32'] / times['int8']:.2f} times the speed of fp32"
            )
        return found


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
        quantization: What int8 costs and gains, of an int8 export.
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
    comparisons: tuple[Comparison, ...] = dataclasses.field(default=(), repr=False)
    hint: str = ""
    quantization: Quantization | None = None

    @property
    def passed(self) -> bool:
        """Whether the file is accepted: something was compared and all of it agrees."""
        agree = all(comparison.passed for comparison in self.comparisons)
        return bool(self.comparisons) and agree and not self.problems

    @property
    def tolerance(self) -> dict[str, float]:
        """Output to the largest error that was allowed at any batch size."""
        return self._largest("allowed")

    @property
    def observed_error(self) -> dict[str, float]:
        """Output to the largest error that was found."""
        return self._largest("error")

    @property
    def failures(self) -> tuple[Comparison, ...]:
        """The comparisons that do not hold."""
        return tuple(comparison for comparison in self.comparisons if not comparison.passed)

    def _largest(self, field: str) -> dict[str, float]:
        """To three digits, which is enough to compare by."""
        largest: dict[str, float] = {}
        for comparison in self.comparisons:
            value = getattr(comparison, field)
            if value is not None:
                largest[comparison.output] = max(largest.get(comparison.output, 0.0), value)
        return {output: float(f"{value:.2e}") for output, value in largest.items()}

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
            own = [c for c in self.comparisons if c.output == output]
            worst = max(
                (c for c in own if c.error is not None),
                key=lambda c: (c.error or 0.0) / (c.allowed or math.inf),
                default=None,
            )
            if worst is not None:
                lines.append(
                    f"{output}: max error {worst.error:.1e} of {worst.allowed:.1e} allowed "
                    f"(batch {worst.batch}, {worst.level})"
                )
            elif output == LABEL and own and self.quantization is None:
                lines.append(f"{output}: float64's own wherever it is clear")
        return "\n".join(lines + (self.quantization.lines() if self.quantization else []))

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings."""
        plain = {"passed": self.passed, **dataclasses.asdict(self)}
        if self.quantization is not None:
            plain["quantization"]["slower"] = list(self.quantization.slower)
        return plain

    def to_json(self, indent: int = 2) -> str:
        """Standard JSON: a number that is not finite is written as a string."""
        return json.dumps(_finite(self.to_dict()), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
