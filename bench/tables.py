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
    """Medians in microseconds with their spread, each against eager and a floor, and the memory."""
    clocks = {row.timing.clock for record in records for row in record.rows if row.timing}
    table = Table(
        title=f"{phase.value}, time of a call ({', '.join(sorted(clocks)) or 'nothing timed'})",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("case", no_wrap=True)
    last = ("loss share" if phase is Phase.STEP else "÷ copy", "memory")
    for heading in ("µs", "spread", "÷ eager", *(("rows/s",) if phase.threads else last)):
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
    told = (
        _digits(row.timing.median * MICRO),
        f"{row.timing.spread:.0%}",
        _times(record.ratio(row, "eager")),
    )
    if record.phase.threads:
        return (*told, f"{record.case.N / row.timing.median:,.0f}")
    share = record.loss_share(row)
    return (
        *told,
        _times(record.ratio(row, "copy")) if share is None else f"{share:.0%}",
        "–" if row.footprint is None else f"{record.peak_logits(row):.2f}",
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
    console.print(
        "µs: the median. spread: from the first to the last decile, of the median. ÷: the time "
        "divided by that provider's of the same run, below 1 is faster. memory: the most held "
        "beyond the inputs, in units of the logits."
    )
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
