"""What a `results.json` says: loading one, and what the report, plots and comparisons ask of it.

A record is a case in a phase, and a row a provider in it, both as dictionaries of the file. All
providers of a record were measured in rounds, one sample each a round: the ratio of two providers
has a spread of its own, that of the quotients within each round, from which the machine's drift
cancels.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SCHEMA = 2
FILE = "results.json"

OURS = ("fused-", "onnx")  # how the names of this package's providers begin
ON_REQUEST = "-inplace"  # how the names of those of ours end that an import does not give by itself
GRAPH = "-graph"  # how the names of those end that are replayed as a CUDA graph
EAGER, COMPILED, AHEAD = ("eager",), ("compile", "compile-autotune"), ("aot",)
FLOORS = ("copy", "model-alone")  # what the machine takes without any loss

Record = dict[str, Any]
Row = dict[str, Any]


class ResultsError(ValueError):
    """A file that holds no results, or those of another schema."""


def load(path: Path) -> dict[str, Any]:
    """Read a results file.

    Args:
        path: The file, or the folder that it lies in.

    Raises:
        ResultsError: It cannot be read, or is of another schema.
    """
    path = path / FILE if path.is_dir() else path
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ResultsError(f"{path} is not JSON: {error}") from error
    if not isinstance(results, dict) or "schema" not in results:
        raise ResultsError(f"{path} is not a results file of `fused-loss bench`: it has no schema")
    if results["schema"] != SCHEMA:
        raise ResultsError(
            f"{path} is of schema {results['schema']!r} and this version reads {SCHEMA}: repeat "
            f"its run ({results.get('command', 'fused-loss bench')})"
        )
    if missing := _missing(results):
        raise ResultsError(f"{path} is damaged: it has no {missing}")
    return results


def _missing(results: dict[str, Any]) -> str | None:
    """The first thing that a results file must hold and this one does not."""
    for key in ("complete", "command", "started", "environment", "absent", "records"):
        if key not in results:
            return key
    for number, record in enumerate(results["records"]):
        for key in ("case", "phase", "crowded", "providers"):
            if key not in record:
                return f"{key} in record {number}"
    return None


def phases(results: dict[str, Any]) -> list[str]:
    """Those measured, in the order of the run."""
    return list(dict.fromkeys(record["phase"] for record in results["records"]))


def in_phase(results: dict[str, Any], phase: str) -> list[Record]:
    """The records of a phase, in the order of the run."""
    return [record for record in results["records"] if record["phase"] == phase]


def timed(record: Record) -> dict[str, Row]:
    """The rows that have a time, by provider."""
    return {row["name"]: row for row in record["providers"] if row.get("median_s")}


def fastest(record: Record, names: Iterable[str]) -> Row | None:
    """The row of least median among these providers."""
    rows = timed(record)
    return min((rows[n] for n in names if n in rows), key=lambda r: r["median_s"], default=None)


def ours(record: Record, graph: bool = False) -> Row | None:
    """This package's fastest row; the fastest of those replayed as CUDA graphs with `graph`.

    Of those that an import gives: `inplace_gradient` has its own row and its own condition.
    """
    names = (n for n in timed(record) if n.startswith(OURS) and n.endswith(GRAPH) == graph)
    return fastest(record, (n for n in names if not n.endswith(ON_REQUEST)))


def in_place(record: Record) -> Row | None:
    """This package's fastest row with `inplace_gradient`."""
    names = (n for n in timed(record) if n.startswith(OURS) and n.endswith(ON_REQUEST))
    return fastest(record, names)


def replayed(names: Sequence[str]) -> tuple[str, ...]:
    """The same providers as CUDA graphs."""
    return tuple(f"{name}{GRAPH}" for name in names)


class Ratio(NamedTuple):
    """One provider's time as a multiple of another's, of the same record.

    Attributes:
        value: Of the medians.
        low: The first decile of the quotients within each round.
        high: The last.
    """

    value: float
    low: float
    high: float

    @property
    def inverse(self) -> Ratio:
        """The other provider's time as a multiple of the one's."""
        return Ratio(1 / self.value, 1 / self.high, 1 / self.low)

    @property
    def above_one(self) -> bool:
        """Whether the one is slower beyond the spread: in the median, and in nine rounds of ten."""
        return self.value > 1 and self.low > 1

    @property
    def unclear(self) -> bool:
        """Whether the spread says nothing of which one is faster."""
        return not (self.above_one or self.inverse.above_one)


def ratio(row: Row, other: Row) -> Ratio:
    """The time of one row as a multiple of another's; both have a time, in the same record."""
    pairs = zip(row["samples_s"], other["samples_s"], strict=True)
    quotients = [mine / its for mine, its in pairs]
    value = row["median_s"] / other["median_s"]
    if len(quotients) == 1:
        return Ratio(value, quotients[0], quotients[0])
    # "inclusive" is linear interpolation between samples, as the deciles of the file are
    deciles = statistics.quantiles(quotients, n=10, method="inclusive")
    return Ratio(value, deciles[0], deciles[-1])
