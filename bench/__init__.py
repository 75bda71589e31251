"""The benchmark: one registry of cases and providers, and the clock that compares them.

`fused-loss bench` runs it over a suite or over a user's own shape; `pytest bench` runs it under
pytest-benchmark. Neither times a provider that does not match a float64 reference.
"""

from fused_loss.bench.cases import Case, Inputs, Phase
from fused_loss.bench.programs import Provider
from fused_loss.bench.providers import PROVIDERS
from fused_loss.bench.suites import SUITES

__all__ = ["PROVIDERS", "SUITES", "Case", "Inputs", "Phase", "Provider"]
