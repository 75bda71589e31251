"""FUSED_LOSS_AUTOTUNE=1: the tiles of a call by trial, remembered on disk.

Without the variable, which is read once at import, nothing here runs. With it the first call of
each signature times the launch table's tile and its neighbours on the call's own inputs, and waits
for the device meanwhile; gradients go to scratch of their size. It is not done while a CUDA graph
is captured. The fastest is kept in `tiles.json` under `$FUSED_LOSS_CACHE`, by default
`~/.cache/fused-loss`, for this device and these versions.

It has never run on a GPU: only the choice, the file and the candidates' results are tested.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import os
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.runtime.errors import OutOfResources

from fused_loss.kernels.triton_grid import Launch
from fused_loss.kernels.triton_plan import Plan
from fused_loss.kernels.triton_table import MOST_ROWS, Tile

ENABLED = os.environ.get("FUSED_LOSS_AUTOTUNE") == "1"
WARPS = 2, 16  # at least and at most
HELD = 32  # registers a thread for what it holds of a tile, at most
LAUNCHES = 10  # of a sample
SAMPLES = 3
OF_TILING = ("ROWS", "BLOCK_C", "ONE_BLOCK", "BLOCK_M", "SAMPLES", "BLOCK_D", "STAGES", "n_cls")

_lock = threading.Lock()
_warned: set[str] = set()


def tuned(plan: Plan, again: Callable[[Tile], Plan], run: Callable[[Plan], object]) -> Plan:
    """The plan with the fastest tile; `plan` itself where that cannot be found out now.

    Args:
        plan: As the launch table has it.
        again: The same call's plan with another tile.
        run: Launches a plan of this call on buffers of its own.
    """
    if plan.tuned is None:
        with _lock:
            if plan.tuned is None:
                plan.tuned = _choose(plan, again, run)
    return plan.tuned or plan


def candidates(launch: Launch) -> list[Tile]:
    """The tile of a launch and its neighbours: twice and half the rows, the warps, the block."""
    c = launch.arguments
    if not c["HAS_CLASSIFICATION"] or c.get("SPLIT"):
        return []
    table = Tile(c["ROWS"], c["BLOCK_C"], c["ONE_BLOCK"], launch.warps)
    steps: list[tuple[float, float, float]]  # of rows, block and warps
    steps = [(2, 1, 1), (0.5, 1, 1), (1, 1, 2), (1, 1, 0.5), (2, 1, 2), (0.5, 1, 0.5)]
    if not table.one_block:
        steps += [(1, 2, 1), (1, 0.5, 1), (1, 2, 2), (1, 0.5, 0.5)]
    found = [table]
    for rows, block, warps in steps:
        own = table.rows * rows, table.block_c * block, table.warps * warps
        tile = Tile(int(own[0]), int(own[1]), table.one_block, int(own[2]))
        if tile not in found and _legal(tile, table, c):
            found.append(tile)
    return found


def _legal(tile: Tile, table: Tile, c: dict[str, Any]) -> bool:
    """No more for a thread to hold than HELD registers, or than the table gives it.

    A row of several blocks is long enough: a second one beside it has been seen to spill.
    """
    values = 1 + (c["SOFT"] or c["HAS_WEIGHT"] or c["SMOOTH"]) + c["HAS_MASK"]
    size = c["ACC"].primitive_bitwidth // 32
    room = triton.next_power_of_2(values) * size**3  # as the table counts
    most = max(HELD, _held(table) * room)
    return (
        1 <= tile.rows <= (MOST_ROWS if table.one_block else table.rows)
        and WARPS[0] <= tile.warps <= WARPS[1]
        and _held(tile) * room <= most
    )


def _held(tile: Tile) -> float:
    """Elements of the tile, a thread."""
    return tile.rows * tile.block_c / (32 * tile.warps)


def _choose(
    plan: Plan, again: Callable[[Tile], Plan], run: Callable[[Plan], object]
) -> Plan | None:
    tiles = candidates(plan.main)
    if len(tiles) < 2:
        return plan
    machine, signature = _machine(plan.device), _signature(plan)
    known = _read().get(machine, {}).get(signature)
    for tile in tiles:  # nothing else is believed
        if [*tile] == known:
            return again(tile)
    if torch.compiler.is_compiling() or _capturing(plan.device):
        return None
    seconds = [_seconds(functools.partial(run, again(tile)), plan.device) for tile in tiles]
    best = tiles[seconds.index(min(seconds))]
    _keep(machine, signature, best)
    return again(best)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    try:
        return clock(run, device)
    except OutOfResources:
        return math.inf


def clock(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one `run` on a GPU, by CUDA events: the median of SAMPLES, after a first one."""
    taken = []
    for _ in range(1 + SAMPLES):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        stream = torch.cuda.current_stream(device)
        begin.record(stream)
        for _ in range(LAUNCHES):
            run()
        end.record(stream)
        end.synchronize()
        taken.append(begin.elapsed_time(end) / (1000 * LAUNCHES))
    return sorted(taken[1:])[SAMPLES // 2]


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _machine(device: torch.device) -> str:
    """The device and the versions that a choice holds for."""
    name = "interpreter"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)} {major}.{minor}"
    try:
        version = importlib.metadata.version("fused-loss")
    except importlib.metadata.PackageNotFoundError:
        version = "from a checkout"
    return f"{name}, triton {triton.__version__}, fused-loss {version}"


def _signature(plan: Plan) -> str:
    """All that a plan's kernel is told but its tiling, and the types that it reads."""
    told = [
        f"{name}={value}"
        for name, value in plan.main.arguments.items()
        if value is not None and name not in OF_TILING
    ]
    return " ".join([plan.main.kernel.fn.__name__, *told, *plan.types])


def _file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FUSED_LOSS_CACHE") or Path(cache, "fused-loss"), "tiles.json")


def _read() -> dict[str, dict[str, Any]]:
    """What the file holds, by machine and signature; nothing, with a warning, if it is damaged."""
    try:
        known = json.loads(_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _warn("cannot be read and is left out", error)
        return {}
    if not isinstance(known, dict) or not all(isinstance(of, dict) for of in known.values()):
        _warn("cannot be read and is left out", "it holds something else than tiles")
        return {}
    return known


def _keep(machine: str, signature: str, tile: Tile) -> None:
    """Add a choice to the file: whoever reads it meanwhile sees the old one or the new one."""
    known = _read()
    known.setdefault(machine, {})[signature] = list(tile)
    path = _file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(known, file, indent=1)
            os.replace(draft, path)
        except OSError:
            os.unlink(draft)
            raise
    except OSError as error:
        _warn("cannot be written: tiles are chosen anew in each process", error)


def _warn(what: str, error: object) -> None:
    """Once for each `what`."""
    if what not in _warned:
        _warned.add(what)
        warnings.warn(f"FUSED_LOSS_AUTOTUNE: {_file()} {what} ({error})", stacklevel=2)
