"""How a results file is put into words: machine, versions, times, multiples and Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

Results = dict[str, Any]

UNMEASURED = "In this run the GPU is unmeasured: every figure is of the CPU."


def machine(results: Results) -> str:
    """The hardware in a line."""
    device = results["environment"]["device"]
    if device["type"] == "cpu":
        return _cpu(device)
    memory = f"{device['memory_bytes'] / 2**30:.0f} GiB"
    driver = device["driver"] or "unknown"
    return f"{device['name']} ({memory}, driver {driver}), on {_cpu(device['host'])}"


def _cpu(device: dict[str, Any]) -> str:
    vectors = device.get("vectors")  # older files do not say
    return f"{device['name']}, {device['cores']} cores" + (f", {vectors}" if vectors else "")


def versions(results: Results) -> str:
    """Python's and the packages' in a line."""
    environment = results["environment"]
    named = [f"{name} {version}" for name, version in environment["packages"].items() if version]
    cuda = [f"CUDA {environment['cuda']}"] if environment["cuda"] else []
    return ", ".join([*named, f"Python {environment['python']}", *cuda])


def unmeasured(results: Results) -> str | None:
    """A plain sentence where no GPU was measured."""
    return UNMEASURED if results["environment"]["device"]["type"] == "cpu" else None


def crowded(results: Results) -> str | None:
    """What other processes did to the measurements, if anything."""
    records = results["records"]
    marked = [record for record in records if record["crowded"]]
    if not marked:
        return None
    most = max(record["other_processes_cores"] or 0.0 for record in marked)
    return (
        f"**Crowded**: in {len(marked)} of {len(records)} measurements other processes wanted the "
        f"same cores (up to {most:.1f} of them): repeat those on a quiet machine."
    )


def date(results: Results) -> str:
    """When the run began, to the minute."""
    return f"{datetime.fromisoformat(results['started']):%Y-%m-%d %H:%M %Z}"


def seconds(value: float) -> str:
    """A time in three digits and the unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= 0.9995 * size:
            return f"{_three(value / size)} {unit}"
    return f"{_three(value * 1e6)} µs"


def times(ratio: float | None) -> str:
    """A multiple, or a dash."""
    return "–" if ratio is None else f"{_three(ratio)}×"


def _three(value: float) -> str:
    """Three digits from 1 to 1000, two below, and all of a larger number's whole ones."""
    if value < 0.0995:
        return f"{value:.2g}"
    places = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{places}f}"


def or_dash(value: Any, form: str) -> str:
    """The value in a format, or a dash for None."""
    return "–" if value is None else form.format(value)


def escape(text: str) -> str:
    """Text that Markdown, within a table too, leaves as it is."""
    for mark in "\\|*_`<[":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """A Markdown table; `align` has "l" or "r" a column."""
    rule = ["--:" if side == "r" else "---" for side in align]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))
