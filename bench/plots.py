"""The plots of a run, each a PNG from its results file alone.

Drawn through matplotlib's objects: no display, and no state shared with other figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from fused_loss.bench.cases import DTYPES, LOSS_PHASES, Phase
from fused_loss.bench.marks import (
    BLACK,
    DPI,
    ORANGE,
    Dot,
    Panel,
    dots,
    in_order,
    legend,
    look,
    plain,
    style,
    tidy,
)
from fused_loss.bench.slower import INFERENCE
from fused_loss.bench.stored import (
    COMPILED,
    EAGER,
    FLOORS,
    GRAPH,
    Record,
    fastest,
    in_phase,
    ours,
    phases,
    ratio,
    replayed,
    timed,
)

Results = dict[str, Any]

# label, whose time is divided by ours, and whether both are replayed as CUDA graphs
RIVALS = (
    ("over eager", EAGER, False, style(BLACK, "s")),
    ("over torch.compile", COMPILED, False, style(ORANGE, "^")),
    ("over eager, both as CUDA graphs", EAGER, True, style(BLACK, "s", hollow=True)),
    ("over torch.compile, both as CUDA graphs", COMPILED, True, style(ORANGE, "^", hollow=True)),
)
LOSSES = tuple(phase.value for phase in LOSS_PHASES)
WITH_ROOF = (Phase.FORWARD.value, Phase.TRAINING.value)
LEAST_MEMORY = 0.01  # in logits: what is below is drawn there
# The ratio of two medians need not lie among the deciles of the rounds' ratios.
RATIOS = "marks: ratio of medians; lines: ratios by round, 1st to 9th decile"
TINY = ("tutorial", "tabular")
MICRO = 1e6
COLORS = 64


def draw(results: Results, folder: Path) -> list[Path]:
    """Write every plot that has data; one of an earlier run that has none now is removed."""
    written = []
    for name, figure_of in PLOTS.items():
        path = folder / name
        figure = figure_of(results)
        if figure is None:
            path.unlink(missing_ok=True)
            continue
        _save(figure, path)
        written.append(path)
    return written


def _save(figure: Figure, path: Path) -> None:
    """In 64 colours: a third of the bytes, and none of the few colours of a plot is lost."""
    pixels = BytesIO()
    figure.savefig(pixels, format="png")
    with Image.open(pixels) as image:
        image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


def speedup(results: Results) -> Figure | None:
    """How many times faster our fastest is than PyTorch's own, by case: a panel a phase."""
    names = _cases([record for record in results["records"] if record["phase"] in LOSSES])
    panels = []
    for phase in filter(LOSSES.__contains__, phases(results)):
        series: dict[str, list[Dot]] = {}
        for record in in_phase(results, phase):
            for label, rivals, graph, _ in RIVALS:
                mine = ours(record, graph)
                rival = fastest(record, replayed(rivals) if graph else rivals)
                if mine and rival:
                    dot = Dot(names.index(record["case"]["name"]), *ratio(rival, mine))
                    series.setdefault(label, []).append(dot)
        if series:
            panels.append(Panel(phase, "their time / our time", series))
    if not panels:
        return None
    used = {label for panel in panels for label in panel.series}
    styles = {label: line for label, _, _, line in RIVALS if label in used}
    title = f"Speed-up of this package: right of 1 it is faster\n{RATIOS}"
    figure, drawn = dots(title, names, panels, styles)
    for axes in drawn:
        axes.axvline(1, color=BLACK, linewidth=1.2, zorder=1)
    return figure


def memory(results: Results) -> Figure | None:
    """The peak of a call in units of the logits, by case and provider; all of a sweep is alike."""
    records = [r for r in results["records"] if r["phase"] in WITH_ROOF]
    records = [record for record in records if record["case"]["family"] != "sweep"]
    names, panels = _cases(records), []
    providers = [n for n in _providers(records) if n not in FLOORS and GRAPH not in n]
    for phase in WITH_ROOF:
        series: dict[str, list[Dot]] = {name: [] for name in providers}
        for record in (record for record in records if record["phase"] == phase):
            row = names.index(record["case"]["name"])
            for name, entry in timed(record).items():
                if name in series and entry.get("peak_logits") is not None:
                    value = max(LEAST_MEMORY, entry["peak_logits"])
                    series[name].append(Dot(row, value, value, value))
        if any(series.values()):
            panels.append(Panel(phase, "peak memory / memory of the logits", series))
    if not panels:
        return None
    title = f"Memory held beyond the inputs (at {LEAST_MEMORY}: that or less)"
    return dots(title, names, panels, {name: look(name) for name in providers})[0]


def overhead(results: Results) -> Figure | None:
    """What a call costs where there is next to nothing to compute: a panel a case."""
    records = [record for record in results["records"] if record["case"]["family"] in TINY]
    records = [record for record in records if timed(record)]
    if not records:
        return None
    names = list(dict.fromkeys(record["phase"] for record in records))
    clocks = {row["clock"] for record in records for row in timed(record).values()}
    unit = "wall time (µs)" if clocks == {"wall"} else "GPU time (µs)"
    panels = []
    for case in _cases(records):
        series: dict[str, list[Dot]] = {}
        for record in records:
            if record["case"]["name"] == case:
                row = names.index(record["phase"])
                for name, entry in timed(record).items():
                    times = (MICRO * entry[key] for key in ("median_s", "p10_s", "p90_s"))
                    series.setdefault(name, []).append(Dot(row, *times))
        panels.append(Panel(case, unit, series))
    styles = {name: look(name) for name in _providers(records)}
    title = "Time of a call on tiny shapes (lines: first to last decile)"
    return dots(title, names, panels, styles)[0]


def roofline(results: Results) -> Figure | None:
    """Achieved bandwidth over the size of a row of logits; a copy of as many bytes is the roof."""
    sweep = [r for r in results["records"] if r["case"]["family"] == "sweep" and timed(r)]
    shown = [phase for phase in WITH_ROOF if any(r["phase"] == phase for r in sweep)]
    if not shown:
        return None
    sweep = [r for r in sweep if r["phase"] in shown]
    figure = Figure(figsize=(1 + 5 * len(shown), 5.2), dpi=DPI, layout="constrained")
    figure.suptitle("Achieved bandwidth over the size of a row of logits")
    styles = {name: look(name) for name in _providers(sweep)}
    if "copy" in styles:
        styles["copy"] |= {"linestyle": ":", "linewidth": 2}
    panels = list(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0])
    for axes, phase in zip(panels, shown, strict=True):
        records = [record for record in sweep if record["phase"] == phase]
        for name, line in styles.items():
            axes.plot(*_line(records, name), **line)
        _bytes_axis(axes)
        axes.set(title=phase, xlabel="a row of logits: classes × bytes of one", yscale="log")
        tidy(axes, "both")
    panels[0].set_ylabel("bytes that must move / time (GB/s)")
    plain(panels[0].yaxis)
    legend(figure, styles)
    return figure


def inference(results: Results) -> Figure | None:
    """How many times faster than eager PyTorch each way of running a model is: a panel a number of
    threads.
    """
    records = [record for record in results["records"] if record["phase"] in INFERENCE]
    names, panels = _cases(records), []
    for phase in phases({"records": records}):
        series: dict[str, list[Dot]] = {}
        for record in in_phase(results, phase):
            rows, place = timed(record), names.index(record["case"]["name"])
            for name in rows.keys() - {"eager"} if "eager" in rows else ():
                dot = Dot(place, *ratio(rows["eager"], rows[name]))
                series.setdefault(name, []).append(dot)
        if series:
            panels.append(Panel(phase, "eager's time / its time", series))
    if not panels:
        return None
    styles = {name: look(name) for name in _providers(records) if name != "eager"}
    title = f"Inference: right of 1 it is faster than eager PyTorch\n{RATIOS}"
    figure, drawn = dots(title, names, panels, styles)
    for axes in drawn:
        axes.axvline(1, color=BLACK, linewidth=1.2, zorder=1)
    return figure


def _line(records: Sequence[Record], provider: str) -> tuple[list[int], list[float]]:
    """Bytes of a row and GB/s, in the order of the former."""
    points = sorted(
        (record["case"]["C"] * DTYPES[record["case"]["logits_dtype"]].itemsize, row["bytes_per_s"])
        for record in records
        if (row := timed(record).get(provider))
    )
    return [size for size, _ in points], [rate / 1e9 for _, rate in points]


def _bytes_axis(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2**4, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _size(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _size(value: float) -> str:
    for unit, size in (("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"


def _cases(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(record["case"]["name"] for record in records))


def _providers(records: Sequence[Record]) -> list[str]:
    return in_order(name for record in records for name in timed(record))


PLOTS = {
    "speedup.png": speedup,
    "roofline.png": roofline,
    "memory.png": memory,
    "overhead.png": overhead,
    "inference.png": inference,
}
