"""Where this package is slower than PyTorch: found in a results file, never chosen by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fused_loss.bench.stored import (
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


@dataclass(frozen=True)
class Rivalry:
    """This package's fastest provider against one of PyTorch's own, on a case in a phase."""

    case: str
    phase: str
    ours: str
    rival: str
    ratio: Ratio  # of our time to the rival's: above 1 we are slower


def rivalries(results: dict[str, Any]) -> list[Rivalry]:
    """Ours against eager and torch.compile wherever both have a time: like against like, a CUDA
    graph against a CUDA graph.
    """
    found = []
    for record in results["records"]:
        rows = timed(record)
        for graph in (False, True):
            mine = ours(record, graph)
            names = EAGER + COMPILED
            rivals = replayed(names) if graph else names
            for rival in rivals:
                if mine and rival in rows:
                    compared = ratio(mine, rows[rival])
                    case, phase = record["case"]["name"], record["phase"]
                    found.append(Rivalry(case, phase, mine["name"], rival, compared))
    return found


def where_slower(results: dict[str, Any]) -> str:
    """Every case and phase in which ours is slower than PyTorch's own beyond the spread.

    Our fastest provider stands against eager and torch.compile, and our fastest under CUDA-graph
    replay against theirs. Slower beyond the spread: in the median, and in nine rounds of ten.
    """
    compared = rivalries(results)
    slower = [one for one in compared if one.ratio.above_one]
    parts = [_sentence(compared, len(slower))]
    if slower:
        parts[0] += " Our time as a multiple of theirs:"
        parts.append(_slower_table(results, slower))
    return "\n\n".join([*parts, *_no_time(results)])


def _sentence(compared: Sequence[Rivalry], slower: int) -> str:
    if not compared:
        return "Nothing was compared: neither eager nor torch.compile has a time beside ours."
    close = sum(one.ratio.value > 1 for one in compared) - slower
    return (
        f"Our fastest provider is slower than eager or torch.compile, in the median and in nine "
        f"rounds of ten, in {slower} of {len(compared)} comparisons"
        + (f"; in {close} more it is slower within the spread." if close else ".")
    )


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
