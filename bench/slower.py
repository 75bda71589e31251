"""Where this package is slower than PyTorch: found in a results file, never chosen by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fused_loss.bench.cases import MODEL_PHASES
from fused_loss.bench.stored import (
    AHEAD,
    COMPILED,
    EAGER,
    OURS,
    Ratio,
    ours,
    phases,
    ratio,
    replayed,
    timed,
)
from fused_loss.bench.wording import table, times

INFERENCE = tuple(phase.value for phase in MODEL_PHASES)


@dataclass(frozen=True)
class Rivalry:
    """This package's fastest provider against one of PyTorch's own, on a case in a phase."""

    case: str
    phase: str
    ours: str
    rival: str
    ratio: Ratio  # of our time to the rival's: above 1 we are slower


def rivalries(results: dict[str, Any]) -> list[Rivalry]:
    """Ours against PyTorch's own wherever both have a time: like against like, a CUDA graph against
    a CUDA graph.
    """
    found = []
    for record in results["records"]:
        rows = timed(record)
        for graph in (False, True):
            mine = ours(record, graph)
            names = EAGER + COMPILED + AHEAD
            rivals = replayed(names) if graph else names
            for rival in rivals:
                if mine and rival in rows:
                    compared = ratio(mine, rows[rival])
                    case, phase = record["case"]["name"], record["phase"]
                    found.append(Rivalry(case, phase, mine["name"], rival, compared))
    return found


LOSS_WORDS = "Our fastest provider is slower than eager or torch.compile"
MODEL_WORDS = (
    "The exported file in onnxruntime, at its fastest, is slower than PyTorch (eager, "
    "torch.compile, or compiled ahead of time)"
)


def where_slower(results: dict[str, Any]) -> str:
    """Every case and phase in which ours is slower than PyTorch's own beyond the spread.

    Our fastest provider stands against eager and torch.compile, our fastest under CUDA-graph replay
    against theirs, and in inference onnxruntime at its fastest against every way of PyTorch. Slower
    beyond the spread: in the median, and in nine rounds of ten.
    """
    compared = rivalries(results)
    if not compared:
        parts = ["Nothing was compared: neither eager nor torch.compile has a time beside ours."]
    else:
        models = [one for one in compared if one.phase in INFERENCE]
        losses = [one for one in compared if one.phase not in INFERENCE]
        parts = [*_part(results, LOSS_WORDS, losses), *_part(results, MODEL_WORDS, models)]
    return "\n\n".join([*parts, *_no_time(results)])


def _part(results: dict[str, Any], words: str, compared: Sequence[Rivalry]) -> list[str]:
    """A sentence, and a table where there is anything in it; nothing where nothing was compared."""
    if not compared:
        return []
    slower = [one for one in compared if one.ratio.above_one]
    close = sum(one.ratio.value > 1 for one in compared) - len(slower)
    sentence = (
        f"{words}, in the median and in nine rounds of ten, in {len(slower)} of {len(compared)} "
        "comparisons" + (f"; in {close} more it is slower within the spread." if close else ".")
    )
    if not slower:
        return [sentence]
    return [f"{sentence} Our time as a multiple of theirs:", _slower_table(results, slower)]


def _slower_table(results: dict[str, Any], slower: Sequence[Rivalry]) -> str:
    """A row a case, a column a phase; in a cell every rival that is faster."""
    columns = [phase for phase in phases(results) if any(one.phase == phase for one in slower)]
    rows = []
    for case in dict.fromkeys(one.case for one in slower):
        cells = []
        for phase in columns:
            beaten = [one for one in slower if (one.case, one.phase) == (case, phase)]
            cells.append(", ".join(f"{one.rival} {times(one.ratio.value)}" for one in beaten))
        rows.append((case, *(cell or "–" for cell in cells)))
    return table(("case", *columns), rows, "l" * (1 + len(columns)))


def _no_time(results: dict[str, Any]) -> list[str]:
    """Where ours took part, and all of ours were wrong, failed or refused."""
    places = [
        f"{record['case']['name']} ({record['phase']})"
        for record in results["records"]
        if any(row["name"].startswith(OURS) for row in record["providers"]) and not ours(record)
    ]
    return [f"None of ours has a time on {', '.join(places)}."] if places else []
