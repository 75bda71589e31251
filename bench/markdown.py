"""The report of a run, in Markdown: every figure in it is one of the results file's, or a quotient
of two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fused_loss.bench.cases import Phase
from fused_loss.bench.slower import INFERENCE, where_slower
from fused_loss.bench.stored import Record, Row, in_phase, phases
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
    "inference.png": "speed-up over eager in inference, by provider",
}
Cell = Callable[[Record, Row], str]

LEGEND = """\
Time is the median of a call, and spread the distance from the first to the last decile as a part
of it. Time ÷ eager's and time ÷ copy's are of the same run: below 1 is faster, where a speed-up is
above 1. First call includes compilation."""
LOSS_LEGEND = """\
The copy moves as many bytes as the loss must, and GB/s are those bytes over the time. Loss share
is the part of the training step that the model alone does not take. Memory is the most held
beyond the inputs, in units of the logits."""
MODEL_LEGEND = """\
In inference, compile and aot (`torch.export`, compiled ahead of time) are made for the batch and
the threads of the case; the ONNX file takes any batch. onnx-unoptimised, onnx and onnx-bound are
onnxruntime without and with its optimisations, and with IO binding as well. Its threads do not spin
between calls, as they would where a service has the cores to itself, and each sample begins when no
thread of the one before spins. The first call of onnx opens the session; the file was exported and
verified before. Memory is not compared: PyTorch's profiler does not see onnxruntime's."""


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
        _legend(results),
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
    columns = _columns(records, phase)
    body = []
    for record in records:
        name = f"**{escape(record['case']['name'])}**" + " (crowded)" * bool(record["crowded"])
        for row in record["providers"]:
            cells = [f"**{row['status']}**"] + ["–"] * (len(columns) - 1)
            if row.get("median_s"):
                cells = [cell(record, row) for cell in columns.values()]
            body.append((name, escape(row["name"]), *cells))
            name = ""
    head = ("case", "provider", *columns)
    return f"## {phase.capitalize()}\n\n" + table(head, body, "ll" + "r" * len(columns))


def _columns(records: Sequence[Record], phase: str) -> dict[str, Cell]:
    """What is told of a provider in a phase, by heading."""
    rows = [row for record in records for row in record["providers"]]
    on_gpu = any(row.get("clock", "wall") != "wall" for row in rows)
    counted = any(row.get("launches") is not None for row in rows)
    columns = _times(on_gpu)
    if phase in INFERENCE:
        columns |= MODEL_COLUMNS
    else:
        columns |= STEP_COLUMNS if phase == Phase.STEP.value else LOSS_COLUMNS
        columns |= {"memory": lambda record, row: or_dash(row.get("peak_logits"), "{:.2f}")}
        columns |= _counts(counted)
    return columns | {"first call": lambda record, row: seconds(row["first_call_s"])}


def _times(on_gpu: bool) -> dict[str, Cell]:
    wall: dict[str, Cell] = {"wall time": lambda record, row: seconds(row["wall_median_s"])}
    return {
        "GPU time" if on_gpu else "time": lambda record, row: seconds(row["median_s"]),
        "spread": lambda record, row: f"{row['spread']:.0%}",
        **(wall if on_gpu else {}),
        "time ÷ eager's": lambda record, row: times(row["ratio_to_eager"]),
    }


def _counts(counted: bool) -> dict[str, Cell]:
    names = ("operators", "launches", "synchronisations") if counted else ("operators",)
    heading = "operators / launches / syncs" if counted else "operators"
    return {heading: lambda record, row: " / ".join(or_dash(row.get(n), "{}") for n in names)}


def _rows_a_second(record: Record, row: Row) -> str:
    return f"{record['case']['N'] / row['median_s']:,.0f}"


def _rate(record: Record, row: Row) -> str:
    return f"{record['case']['flops'][record['phase']] / row['median_s'] / 1e9:.3g}"


LOSS_COLUMNS: dict[str, Cell] = {
    "time ÷ copy's": lambda record, row: times(row["ratio_to_copy"]),
    "GB/s": lambda record, row: f"{row['bytes_per_s'] / 1e9:.3g}",
}
STEP_COLUMNS: dict[str, Cell] = {
    "loss share": lambda record, row: or_dash(row["loss_share"], "{:.0%}"),
}
MODEL_COLUMNS: dict[str, Cell] = {"rows/s": _rows_a_second, "GFLOP/s": _rate}


def _legend(results: Results) -> str:
    measured = phases(results)
    texts = [
        LEGEND if measured else "",
        LOSS_LEGEND if set(measured) - set(INFERENCE) else "",
        MODEL_LEGEND if set(measured) & set(INFERENCE) else "",
    ]
    return "\n\n".join(filter(None, texts))


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
