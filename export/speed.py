"""How long two files take for the same rows, in turns, on one thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fused_loss.export.check import run
from fused_loss.export.session import open_session
from fused_loss.export.signature import Signature, Tensors

BATCHES = (1, 64)
SECONDS = 0.2  # a batch size
LEAST, MOST = 5, 200  # runs of each file


def milliseconds(
    files: dict[str, Path], rows: Tensors, signature: Signature, batches: Sequence[int] = BATCHES
) -> dict[str, dict[str, float]]:
    """Batch size to the median time of each file; `rows` are repeated to fill a batch."""
    sessions = {name: open_session(path) for name, path in files.items()}
    found = {}
    for batch in batches:
        chosen = torch.arange(batch) % rows[0].shape[0]
        inputs = tuple(tensor[chosen] for tensor in rows)
        times: dict[str, list[float]] = {name: [] for name in sessions}
        _turn(sessions, inputs, signature)  # warm
        begin = time.perf_counter()
        for turn in range(MOST):
            for name, seconds in _turn(sessions, inputs, signature).items():
                times[name].append(seconds)
            if turn + 1 >= LEAST and time.perf_counter() - begin > SECONDS:
                break
        found[str(batch)] = {name: 1e3 * statistics.median(each) for name, each in times.items()}
    return found


def _turn(sessions: dict[str, Any], inputs: Tensors, signature: Signature) -> dict[str, float]:
    taken = {}
    for name, session in sessions.items():
        begin = time.perf_counter()
        run(session, inputs, signature)
        taken[name] = time.perf_counter() - begin
    return taken
