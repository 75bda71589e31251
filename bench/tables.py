"""What a person sees: the progress bar, and one table a phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fused_loss.bench.cases import Phase
from fused_loss.bench.run import WRONG, Record, Row

MICRO = 1e6


def progress_bar(console: Console) -> Progress:
    """A bar over measurements (a case in a phase), with the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def phase_table(phase: Phase, records: Sequence[Record]) -> Table:
    """Medians in microseconds with their spread, and each as a multiple of eager's and copy's."""
    clocks = {row.timing.clock for record in records for row in record.rows if row.timing}
    table = Table(
        title=f"{phase.value}, time of a call ({', '.join(sorted(clocks)) or 'nothing timed'})",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("case", no_wrap=True)
    for heading in ("median µs", "p10–p90 µs", "× eager", "× copy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in records:
        mark = "[bold yellow] crowded[/]" if record.crowded else ""
        table.add_row(f"[bold]{escape(record.case.name)}[/]{mark}")
        for row in record.rows:
            table.add_row(f"  {escape(row.provider.name)}", *_cells(record, row))
    return table


def _cells(record: Record, row: Row) -> tuple[str, ...]:
    if row.timing is None:
        return (f"[bold red]{row.status.upper()}[/]",)
    low, high = (row.timing.quantile(q) * MICRO for q in (0.1, 0.9))
    return (
        _digits(row.timing.median * MICRO),
        f"{_digits(low)}–{_digits(high)}",
        _times(record.ratio(row, "eager")),
        _times(record.ratio(row, "copy")),
    )


def _digits(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}×"


def show(
    console: Console,
    records: Sequence[Record],
    absent: Mapping[str, str],
    environment: Mapping[str, Any],
) -> None:
    """Print the tables, what was wrong or refused and why, what is absent, and the machine."""
    for phase in Phase:
        measured = [record for record in records if record.phase is phase]
        if measured:
            console.print(phase_table(phase, measured))
    console.print("× is a multiple of that provider's time in the same run: lower is better.")
    crowded = [record.neighbours or 0.0 for record in records if record.crowded]
    if crowded:
        console.print(
            f"[yellow]crowded[/]: other processes used up to {max(crowded):.1f} cores in "
            f"{len(crowded)} of {len(records)} measurements; repeat those on a quiet machine"
        )
    for record in records:
        for row in record.rows:
            if row.reason:
                style = "bold red" if row.status == WRONG else "yellow"
                where = escape(f"{row.provider.name} on {record.case.name}, {record.phase.value}")
                console.print(f"[{style}]{row.status.upper()}[/] {where}: {escape(row.reason)}")
    for name, reason in absent.items():
        console.print(f"[yellow]absent[/] {name}: {escape(reason)}")
    versions = [f"{name} {version}" for name, version in environment["packages"].items() if version]
    facts = [
        environment["device"]["name"],
        f"{environment['threads']['torch']} CPU threads",
        *versions,
        environment["os"],
        f"commit {environment['commit'] or 'unknown'}",
    ]
    console.print("; ".join(facts), style="dim", highlight=False)
