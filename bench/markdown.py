"""The report of a run, in Markdown: every figure in it is one of the results file's, or a quotient
of two of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from fused_loss.bench.cases import Phase
from fused_loss.bench.slower import where_slower
from fused_loss.bench.stored import Row, in_phase, phases
from fused_loss.bench.wording import (
    Results,
    crowded,
    date,
    escape,
    machine,
    or_dash,
    seconds,
    table,
    times,
    unmeasured,
    versions,
)

CAPTIONS = {
    "speedup.png": "speed-up of this package over eager and over torch.compile",
    "roofline.png": "achieved bandwidth against the size of a row of logits",
    "memory.png": "peak memory of a call in units of the logits",
    "overhead.png": "time of a call on tiny shapes",
}
LEGEND = """\
Time is the median of a call, and spread the distance from the first to the last decile as a part
of it. × eager and × copy are multiples of that provider's time in the same run: lower is better.
The copy moves as many bytes as the loss must, and GB/s are those bytes over the time. Loss share
is the part of the training step that the model alone does not take. Memory is the most held
beyond the inputs, in units of the logits. First call includes compilation."""


def report(results: Results, plots: Sequence[str] = ()) -> str:
    """The whole report.

    Args:
        results: As `load` gives them.
        plots: Names of image files beside the report.
    """
    parts = [
        f"# Benchmark: {results['environment']['device']['name']}",
        f"```\n{results['command']}\n```",
        table(("", ""), _facts(results), "ll"),
        *_remarks(results),
        f"## Where it is slower\n\n{where_slower(results)}",
        *(f"![{CAPTIONS.get(name, name)}]({name})" for name in plots),
        *(_phase(results, phase) for phase in phases(results)),
        LEGEND if results["records"] else "",
        _untimed(results),
        _absent(results),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _facts(results: Results) -> list[tuple[str, str]]:
    environment = results["environment"]
    threads = environment["threads"]
    limit = threads["OMP_NUM_THREADS"]
    return [
        ("hardware", machine(results)),
        ("CPU threads", f"{threads['torch']}" + (f" (OMP_NUM_THREADS={limit})" if limit else "")),
        ("versions", versions(results)),
        ("system", environment["os"]),
        ("commit", environment["commit"] or "unknown"),
        ("date", date(results)),
    ]


def _remarks(results: Results) -> list[str]:
    short = None
    if not results["complete"]:
        short = f"**Cut short**: the run ended after {len(results['records'])} measurements."
    return [remark for remark in (unmeasured(results), short, crowded(results)) if remark]


def _phase(results: Results, phase: str) -> str:
    """The table of a phase: a row a provider."""
    records = in_phase(results, phase)
    rows = [row for record in records for row in record["providers"]]
    step = phase == Phase.STEP.value
    on_gpu = any(row.get("clock", "wall") != "wall" for row in rows)
    counted = any(row.get("launches") is not None for row in rows)
    head = ["case", "provider", "GPU time" if on_gpu else "time", "spread"]
    head += ["wall time"] * on_gpu + ["× eager"]
    head += ["loss share"] if step else ["× copy", "GB/s"]
    head += ["memory", "operators / launches / syncs" if counted else "operators", "first call"]
    body = []
    for record in records:
        name = f"**{escape(record['case']['name'])}**" + " (crowded)" * bool(record["crowded"])
        for row in record["providers"]:
            cells = _cells(row, step, on_gpu, counted)
            cells += ["–"] * (len(head) - 2 - len(cells))
            body.append((name, escape(row["name"]), *cells))
            name = ""
    return f"## {phase.capitalize()}\n\n" + table(head, body, "ll" + "r" * (len(head) - 2))


def _cells(row: Row, step: bool, on_gpu: bool, counted: bool) -> list[str]:
    if not row.get("median_s"):
        return [f"**{row['status']}**"]
    cells = [seconds(row["median_s"]), f"{row['spread']:.0%}"]
    cells += [seconds(row["wall_median_s"])] * on_gpu
    cells.append(times(row["ratio_to_eager"]))
    if step:
        cells.append(or_dash(row["loss_share"], "{:.0%}"))
    else:
        cells += [times(row["ratio_to_copy"]), f"{row['bytes_per_s'] / 1e9:.3g}"]
    cells.append(or_dash(row.get("peak_logits"), "{:.2f}"))
    names = ("operators", "launches", "synchronisations") if counted else ("operators",)
    cells.append(" / ".join(or_dash(row.get(name), "{}") for name in names))
    return [*cells, seconds(row["first_call_s"])]


def _untimed(results: Results) -> str:
    """Every provider that was wrong, failed or refused, with the places grouped by the reason."""
    places: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for record in results["records"]:
        for row in record["providers"]:
            if row["status"] != "ok":
                why = (row["status"], row["name"], row["reason"] or "no reason given")
                cases = places.setdefault(why, {})
                cases.setdefault(record["case"]["name"], []).append(record["phase"])
    if not places:
        return ""
    lines = []
    for (status, name, reason), cases in sorted(places.items()):
        where = "; ".join(f"{case} ({', '.join(phases)})" for case, phases in cases.items())
        lines.append(f"- **{status}** `{name}`: {escape(reason)}. On {where}")
    return "## Without a time\n\n" + "\n".join(lines)


def _absent(results: Results) -> str:
    lines = [f"- `{name}`: {escape(reason)}" for name, reason in results["absent"].items()]
    return "## Absent\n\n" + "\n".join(lines) if lines else ""
