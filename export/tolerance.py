"""How far from float64 an output may be: the rule of acceptance, and what replaces it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from fused_loss.export.options import Options
from fused_loss.export.signature import Signature

Limits: TypeAlias = "float | Mapping[str, float] | None"


@dataclass(frozen=True)
class Rule:
    """`allowed = max(eager_factor * eager error, eps_factor * eps * scale, share * spread)`.

    Attributes:
        eager_factor: Of PyTorch's own error against float64.
        eps_factor: Of the epsilon of `dtype` times the largest value.
        dtype: In which the file computes; None is the output's.
        share: Of `spread`.
        spread: Distance between the least and the largest value over all rows; one for the output,
            or one a column.
        atol, rtol: Where one is given, `allowed = atol + rtol * scale` instead.
    """

    eager_factor: float = 16.0
    eps_factor: float = 64.0
    dtype: str | None = None
    share: float = 0.0
    spread: tuple[float, ...] = ()
    atol: float | None = None
    rtol: float | None = None

    @property
    def asked(self) -> bool:
        """Whether the user gave the limit."""
        return self.atol is not None or self.rtol is not None

    def eps(self, dtype: np.dtype) -> float:
        """Of the dtype that the file computes in."""
        return float(np.finfo(self.dtype or dtype).eps)

    def allowed(self, eager_error: float, scale: float, eps: float, column: int = 0) -> float:
        """In the output's unit."""
        if self.asked:
            return (self.atol or 0.0) + (self.rtol or 0.0) * scale
        spread = self.spread[column % len(self.spread)] if self.spread else 0.0
        return max(
            self.eager_factor * eager_error, self.eps_factor * eps * scale, self.share * spread
        )


# In half precision the reference itself has been through the same rounding of every weight and
# activation, so little room beside it is needed. Of int8 there is no reference in PyTorch: 8 bits
# a value resolve 1/255 of its range, and a tenth of a head's range is 25 such steps.
EXACT = Rule()
HALF = Rule(eager_factor=4.0, eps_factor=4.0, dtype="float16")
INT8 = Rule(eager_factor=0.0, eps_factor=0.0, share=0.1)


def rules_for(
    signature: Signature, options: Options, atol: Limits = None, rtol: Limits = None
) -> dict[str, Rule]:
    """The rule of each output, by name.

    Raises:
        TypeError, ValueError: A limit that is no number >= 0, or for an output that there is not.
    """
    base = INT8 if options.quantize else HALF if options.dtype == "fp16" else EXACT
    names = tuple(signature.outputs.values())
    atols, rtols = (_by_output(*given, names) for given in (("atol", atol), ("rtol", rtol)))
    return {name: replace(base, atol=atols.get(name), rtol=rtols.get(name)) for name in names}


def _by_output(argument: str, given: Limits, names: Sequence[str]) -> dict[str, float]:
    if given is None:
        return {}
    limits = given if isinstance(given, Mapping) else dict.fromkeys(names, given)
    for name, limit in limits.items():
        if name not in names:
            raise ValueError(f"{argument} names {name!r}, the outputs are {list(names)}")
        if isinstance(limit, bool) or not isinstance(limit, (int, float)):
            raise TypeError(f"{argument} must be a number, got {limit!r}")
        if not (limit >= 0 and math.isfinite(limit)):
            raise ValueError(f"{argument} must be finite and >= 0, got {limit}")
    return {name: float(limit) for name, limit in limits.items()}
