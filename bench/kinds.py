"""The kinds of cases: which providers there are for each, and what holds them to float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fused_loss.bench import exact, models, peers
from fused_loss.bench.cases import Case, Phase
from fused_loss.bench.models import ModelCase
from fused_loss.bench.programs import Provider
from fused_loss.bench.providers import PROVIDERS
from fused_loss.bench.runtimes import RUNTIMES
from fused_loss.bench.verify import Errors, allowance, complaint


@dataclass(frozen=True)
class Kind:
    """One kind of cases.

    Attributes:
        name: Of the kind.
        providers: By name; "eager" is the measure of what rounding costs.
        outputs: What a step returns, by name; a phase may return the first of them alone.
        errors: `(case, phase, inputs, outputs)`: how far these are from float64.
        on: The only type of device that they run on; None: any.
        left_out: Providers that there might be and are not, and why.
        profiled: Whether PyTorch's profiler sees what every provider does.
    """

    name: str
    providers: Mapping[str, Provider]
    outputs: tuple[str, ...]
    errors: Callable[[Any, Phase, Any, tuple[Any, ...]], Errors]
    on: str | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    profiled: bool = True

    def eager_errors(self, case: Any, phase: Phase, inputs: Any, device: torch.device) -> Errors:
        """PyTorch's own errors on this case; none where it is too large for eager PyTorch."""
        try:
            program = self.providers["eager"].program(case, phase, device)
            return self.errors(case, phase, inputs, program(inputs))
        except torch.OutOfMemoryError:
            return {}

    def verdict(
        self, case: Any, phase: Phase, inputs: Any, outputs: tuple[Any, ...], of_eager: Errors
    ) -> tuple[Errors, Errors, str | None]:
        """The errors of a step's outputs, what they may be, and what is wrong, in words or None."""
        found = self.errors(case, phase, inputs, outputs)
        allowed = allowance(of_eager, dict(zip(self.outputs, outputs, strict=False)))
        return found, allowed, complaint(found, allowed)


LOSS = Kind("loss", PROVIDERS, exact.OUTPUTS, exact.errors, left_out=peers.LEFT_OUT)
INFERENCE = Kind("inference", RUNTIMES, models.OUTPUTS, models.errors, on="cpu", profiled=False)


def kind_of(case: Case | ModelCase) -> Kind:
    """The kind that a case is of."""
    return INFERENCE if isinstance(case, ModelCase) else LOSS
