"""Results files without a clock: times are given, and written as a real run writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fused_loss.bench.cases import MODEL_PHASES, Case, Phase
from fused_loss.bench.footprint import Footprint
from fused_loss.bench.measure import Timing
from fused_loss.bench.models import ModelCase
from fused_loss.bench.providers import PROVIDERS
from fused_loss.bench.run import Record, Row
from fused_loss.bench.runtimes import RUNTIMES
from fused_loss.bench.stored import SCHEMA

TUTORIAL = Case("tutorial-100x2", "tutorial", 100, 2)
BOARD = Case("board-8x65", "board", 8, 65, soft_targets=True)
SWEEP = tuple(Case(f"sweep-{4096 // C}x{C}", "sweep", 4096 // C, C) for C in (2, 64, 1024))
JITTER = (0.96, 0.98, 1.0, 1.02, 1.04)  # of the rounds of a run, common to all of its providers
RESULTS = Path(__file__).parents[1] / "bench" / "results"
# `make gpu` leaves what it measures in a folder that is not committed.
COMMITTED = sorted(p for p in RESULTS.glob("*/results.json") if p.parent.name != "new")
MLP = ModelCase("mlp-256", 64)
ALL = {**RUNTIMES, **PROVIDERS}
CPU = {"type": "cpu", "name": "Example CPU", "cores": 2}
GPU = {
    "type": "cuda",
    "name": "Example GPU",
    "memory_bytes": 80 * 2**30,
    "l2_bytes": 50 * 2**20,
    "multiprocessors": 100,
    "driver": "555.1",
    "host": CPU,
}


def timed(provider: str, median: float, jitter: Sequence[float] = JITTER, gpu: bool = False) -> Row:
    """A right row; on a GPU the wall time is 3 µs more."""
    seconds = tuple(median * factor for factor in jitter)
    clock = "cuda events" if gpu else "wall"
    wall = tuple(second + 3e-6 for second in seconds) if gpu else ()
    cost = Footprint(1200, 40, 3 if gpu else None, 1 if gpu else None)
    row = Row(ALL[provider], first_call=0.25, footprint=cost)
    row.timing = Timing(seconds, 10, clock, wall)
    return row


def untimed(provider: str, status: str, reason: str) -> Row:
    return Row(ALL[provider], status, reason)


def record(
    case: Case | ModelCase, phase: Phase, rows: Sequence[Row], neighbours: float = 0.0
) -> dict:
    return Record(case, phase, list(rows), 1, neighbours).as_json()


def results(records: Sequence[dict], gpu: bool = False, **head: Any) -> dict[str, Any]:
    """A file with these records, through JSON."""
    made = {
        "schema": SCHEMA,
        "complete": True,
        "command": "fused-loss bench --suite smoke --seconds 0.5",
        "started": "2026-01-02T03:04:05+00:00",
        "environment": {
            "device": GPU if gpu else CPU,
            "os": "Linux",
            "python": "3.11.7",
            "packages": {"fused-loss": "0.1.0", "torch": "2.13.0", "triton": None},
            "cuda": "13.0" if gpu else None,
            "threads": {"torch": 2, "OMP_NUM_THREADS": None},
            "commit": "0123456789abcdef",
        },
        "absent": {"liger": "not installed: pip install liger-kernel"},
        "records": list(records),
    }
    return json.loads(json.dumps(made | head))


def simple(
    seconds: Mapping[str, float], cases: Sequence[Case] = (TUTORIAL,), **head: Any
) -> dict[str, Any]:
    """The same times for every case and phase."""
    rows = [timed(provider, median) for provider, median in seconds.items()]
    return results([record(c, p, rows) for c in cases for p in c.phases], **head)


def inference(seconds: Mapping[str, float], **head: Any) -> dict[str, Any]:
    """The same times on one thread and on two."""
    rows = [timed(provider, median) for provider, median in seconds.items()]
    return results([record(MLP, phase, rows) for phase in MODEL_PHASES], **head)


def write(folder: Path, made: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    path.write_text(json.dumps(made), encoding="utf-8")
    return path
