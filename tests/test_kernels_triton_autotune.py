"""Tiles by trial: every candidate is right, the fastest is taken and kept, nothing is overwritten.

The clock is a fake, so that a test says which candidate wins.
"""

from __future__ import annotations

import json
import math
import runpy
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from _asserts import assert_matches, fused, launches
from _cases import BF16, F16, F32, TRITON_PLACES, Case
from triton.runtime.errors import OutOfResources

import fused_loss
from fused_loss import combined_loss
from fused_loss.kernels import triton_autotune, triton_plan
from fused_loss.kernels.triton_table import BLOCK_MAX, MOST_ROWS, Tile

pytestmark = pytest.mark.parametrize(("backend", "device"), TRITON_PLACES)


class Clock:
    """Says that the candidate of this index is the fastest; knows which were timed."""

    def __init__(self) -> None:
        self.winner = 0
        self.timed = 0
        self.look: Any = None  # after each run; without it none is run

    def __call__(self, run: Any, device: torch.device) -> float:
        if self.look is not None:
            run()
            self.look()
        self.timed += 1
        return 1.0 if self.timed == self.winner + 1 else 2.0


@pytest.fixture
def tuned(monkeypatch, tmp_path) -> Clock:
    """FUSED_LOSS_AUTOTUNE=1 with a fake clock, a folder of its own, and nothing remembered."""
    monkeypatch.setenv("FUSED_LOSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(triton_autotune, "ENABLED", True)
    clock = Clock()
    monkeypatch.setattr(triton_autotune, "clock", clock)
    forget()
    yield clock
    forget()


def forget() -> None:
    """What a new process does not know."""
    triton_plan.recall.cache_clear()
    triton_autotune._warned.clear()


def tile_of(log: Any) -> Tile:
    """The tile of the last launch that has one."""
    arguments = next(a for a in reversed(log.arguments) if "BLOCK_C" in a)
    return Tile(arguments["ROWS"], arguments["BLOCK_C"], arguments["ONE_BLOCK"], 0)


def table_launch(problem: Any, backend: str) -> list[Tile]:
    """The candidates of a call's forward pass."""
    from fused_loss.kernels.triton_launch import plan  # as the launcher names it
    from fused_loss.spec import LossSpec, LossTensors, Needs

    tensors = LossTensors(problem.r, problem.z, problem.y, problem.t)
    return triton_autotune.candidates(plan(LossSpec(), tensors, Needs(True, True)).main)


LONG = ((2, 3), (2, BLOCK_MAX + 3))
CASES = [
    Case(targets="hard-100", weighted=True),
    Case(targets="soft", smoothing=0.25, mask="positions", shapes=((3, 2), (3, 40))),
    Case("none", "NCd", "hard-100"),
    Case("none", targets="soft", shapes=((3, 2), (3, 300))),
    Case(dtypes=(F16, F16), shapes=((3, 2), (3, 1025))),
    Case(targets="hard-100", dtypes=(BF16, BF16), shapes=LONG),
]
MOST = 9  # candidates of a launch


@pytest.mark.parametrize("winner", range(MOST))
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case}-{case.shapes}")
def test_every_candidate_is_right(case, winner, tuned, backend, device):
    """Values and gradients, for whichever wins; it is launched from then on."""
    problem = case.problem(device)
    tuned.winner = winner
    fused(problem, backend)
    if tuned.timed <= winner:  # fewer candidates
        return
    with launches() as log:
        actual = fused(problem, backend)
    assert tile_of(log) in chosen()
    assert_matches(problem, actual, fused(problem, "reference"))


def chosen() -> list[Tile]:
    """What the file holds, without the warps."""
    path = triton_autotune._file()
    (machine,) = json.loads(path.read_text(encoding="utf-8")).values()
    return [Tile(*tile)._replace(warps=0) for tile in machine.values()]


def test_candidates_are_the_table_s_tile_and_legal_neighbours(tuned, backend, device):
    for classes in (2, 5, 64, 300, 1025, 5000, BLOCK_MAX, BLOCK_MAX + 1):
        problem = Case(shapes=((3, 2), (3, classes))).problem(device)
        table, *others = found = table_launch(problem, backend)
        assert len(set(found)) == len(found) <= MOST
        assert others or table.block_c == BLOCK_MAX  # which has the most a thread, by most warps
        for tile in others:
            assert tile.one_block == table.one_block == (tile.block_c >= classes)
            assert 1 <= tile.rows <= MOST_ROWS
            assert 2 <= tile.warps <= 16
            held = max(32 * 32 * tile.warps, tile.warps * table.rows * table.block_c // table.warps)
            assert tile.rows * tile.block_c <= held
            assert all(0.5 <= a / b <= 2 for a, b in zip(tile[::3], table[::3], strict=True))


def test_the_fastest_is_kept_for_the_next_process(tuned, backend, device):
    problem = Case(targets="hard-100").problem(device)
    tuned.winner = 2
    expected = fused(problem, backend)
    with launches() as log:
        fused(problem, backend)
    tile, timed = tile_of(log), tuned.timed
    assert timed == len(table_launch(problem, backend)) > 2
    assert [tile] == chosen()
    assert [path.name for path in triton_autotune._file().parent.iterdir()] == ["tiles.json"]
    forget()
    tuned.winner = 0
    with launches() as log:
        actual = fused(problem, backend)
    assert tuned.timed == timed
    assert tile_of(log) == tile
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_another_signature_is_timed_too(tuned, backend, device):
    """Beside the first, which stays in the file."""
    fused(Case(targets="hard-100").problem(device), backend)
    for more, case in enumerate((Case(targets="soft"), Case(dtypes=(F32, BF16)))):
        before = tuned.timed
        fused(case.problem(device), backend)
        assert tuned.timed > before
        assert len(chosen()) == 2 + more


@pytest.mark.parametrize("dtype", [F32, F16])
@pytest.mark.parametrize("inplace", [False, True])
def test_nothing_of_the_caller_is_overwritten(inplace, dtype, tuned, backend, device):
    """Neither by the trials of the forward pass nor by those of a gradient that waits."""
    problem = Case(targets="hard-100", inplace=inplace, dtypes=(dtype, dtype)).problem(device)
    leaf = problem.z.clone().requires_grad_()
    given = [problem.r, leaf * 1, problem.y, problem.t]
    before = [x.detach().clone() for x in given]
    tuned.look = lambda: [torch.testing.assert_close(*p, rtol=0, atol=0, equal_nan=True) for p in
                          zip(given, before, strict=True)]  # fmt: skip
    with fused_loss.backend(backend):
        loss = combined_loss(*given, **problem.keywords)
        loss.backward(problem.grad_output)
    assert tuned.timed
    tuned.look = None
    assert torch.equal(leaf.grad, fused(problem, backend)["z"])


DAMAGED = {"empty": "", "cut": "{", "list": "[]", "flat": '{"a": 1}', "zero": "\0", "folder": None}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_left_out_with_one_warning(damage, tuned, backend, device):
    text, path = DAMAGED[damage], triton_autotune._file()
    path.mkdir(parents=True) if text is None else path.parent.mkdir()
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.warns(UserWarning, match="FUSED_LOSS_AUTOTUNE: .*tiles.json") as caught:
        fused(Case(targets="hard-100").problem(device), backend)
    said = [warning for warning in caught if warning.category is UserWarning]
    assert len(said) == (1 if text is not None else 2)  # not read, and not written
    assert tuned.timed
    if text is not None:
        assert len(chosen()) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fused(Case(targets="soft").problem(device), backend)


def test_a_folder_that_cannot_be_written(tuned, backend, device, tmp_path):
    (tmp_path / "cache").write_text("in the way", encoding="utf-8")
    problem = Case(targets="hard-100").problem(device)
    with pytest.warns(UserWarning, match="FUSED_LOSS_AUTOTUNE"):
        actual = fused(problem, backend)
    assert_matches(problem, actual, fused(problem, "reference"))
    assert (tmp_path / "cache").read_text(encoding="utf-8") == "in the way"


@pytest.mark.parametrize("stored", [[3, 8, True, 4], [1 << 20, 8, True, 4], "tile", None])
def test_a_tile_that_is_no_candidate_is_not_believed(stored, tuned, backend, device):
    problem = Case(targets="hard-100").problem(device)
    fused(problem, backend)
    path, timed = triton_autotune._file(), tuned.timed
    known = json.loads(path.read_text(encoding="utf-8"))
    for machine in known.values():
        machine.update(dict.fromkeys(machine, stored))
    path.write_text(json.dumps(known), encoding="utf-8")
    forget()
    assert_matches(problem, fused(problem, backend), fused(problem, "reference"))
    assert tuned.timed == 2 * timed


def test_another_machine_s_tiles_are_not_taken(tuned, backend, device, monkeypatch):
    problem = Case(targets="hard-100").problem(device)
    fused(problem, backend)
    timed = tuned.timed
    forget()
    monkeypatch.setattr(triton_autotune, "_machine", lambda device: "another")
    fused(problem, backend)
    assert tuned.timed == 2 * timed
    assert len(json.loads(triton_autotune._file().read_text(encoding="utf-8"))) == 2


def test_not_while_a_graph_is_captured(tuned, backend, device, monkeypatch):
    """The table's tile then; it is timed at the first call outside."""
    problem = Case(targets="hard-100").problem(device)
    with monkeypatch.context() as capturing:
        capturing.setattr(triton_autotune, "_capturing", lambda device: True)
        fused(problem, backend)
    assert not tuned.timed
    assert not triton_autotune._file().exists()
    fused(problem, backend)
    assert tuned.timed


def test_what_does_not_fit_the_device_loses(tuned, backend, device, monkeypatch):
    def clock(run: Any, device: torch.device) -> float:
        tuned.timed += 1
        if tuned.timed != 3:
            raise OutOfResources(1, 0, "shared memory")
        return 1.0

    monkeypatch.setattr(triton_autotune, "clock", clock)
    problem = Case(targets="hard-100").problem(device)
    fused(problem, backend)
    assert chosen() == [table_launch(problem, backend)[2]._replace(warps=0)]


def test_regression_alone_has_no_tile_to_choose(tuned, backend, device):
    r = torch.ones(3, 2, device=device)
    with fused_loss.backend(backend):
        fused_loss.mse_loss(r, r)
    assert not tuned.timed


def test_not_unless_it_is_asked_for(backend, device, monkeypatch):
    monkeypatch.setattr(triton_autotune, "tuned", None)
    fused(replace(Case(), reduction="sum").problem(device), backend)
    for value, enabled in (("1", True), ("0", False), ("", False), (None, False)):
        if value is None:
            monkeypatch.delenv("FUSED_LOSS_AUTOTUNE")
        else:
            monkeypatch.setenv("FUSED_LOSS_AUTOTUNE", value)
        assert runpy.run_path(triton_autotune.__file__)["ENABLED"] is enabled


def test_a_figure_is_the_median_of_the_samples_after_the_first(backend, device, monkeypatch):
    """Milliseconds of LAUNCHES runs, as CUDA events have it."""
    elapsed, waited, runs = iter([900.0, 30.0, 10.0, 20.0]), [], []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: Any) -> None:
            assert stream == "stream"

        def synchronize(self) -> None:
            waited.append(self)

        def elapsed_time(self, end: Any) -> float:
            assert end is waited[-1]
            return next(elapsed)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream")
    seconds = triton_autotune.clock(lambda: runs.append(1), torch.device("cuda", 0))
    assert math.isclose(seconds, 0.020 / triton_autotune.LAUNCHES)
    assert len(runs) == 4 * triton_autotune.LAUNCHES
