import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from _public import device_of

from fused_loss.bench import accuracy
from fused_loss.bench.accuracy import errors, of_package, of_pytorch, rows
from fused_loss.bench.accuracy_options import OPTIONS
from fused_loss.bench.accuracy_table import within
from fused_loss.cli import main

CPU = torch.device("cpu")
F32 = (torch.float32, torch.float32)
HALVES = (torch.bfloat16, torch.float16)


def test_an_error_is_counted_in_units_of_the_last_place():
    truth = {"loss": torch.tensor([1.0, 4.0, math.nan], dtype=torch.float64)}
    eps = torch.finfo(torch.float32).eps
    for ulps in (0, 1, 3):
        found = {"loss": torch.tensor([1.0, 4.0 + ulps * 4 * eps, math.nan])}
        assert errors(found, truth) == {"loss": ulps}
    half = {"loss": torch.tensor([1.0, 4.0, math.nan], dtype=torch.bfloat16)}
    assert errors(half, truth) == {"loss": 0.0}
    for wrong in ([1.0, 4.0, 0.0], [1.0, math.inf, math.nan]):
        assert errors({"loss": torch.tensor(wrong)}, truth) == {"loss": math.inf}
    assert errors({"loss": torch.zeros(0)}, {"loss": torch.zeros(0).double()}) == {"loss": 0.0}
    assert errors({"loss": torch.ones(1)}, {"loss": torch.zeros(1).double()}) == {"loss": math.inf}


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its interpreter takes a second a row."""
    monkeypatch.setattr(accuracy, "BACKENDS", ("reference", "eager"))


@pytest.mark.usefixtures("without_triton")
@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_a_row_is_the_same_call_in_both_ways(option):
    """To a rounding or two, on a single input."""
    measured = list(rows(CPU, 1, [option]))
    assert [row["backend"] for row in measured] == ["reference", "eager"] * len(accuracy.DTYPES)
    for row in measured:
        for name, ulps in row["ulps"].items():
            assert ulps <= 2 * row["eager_ulps"][name] + 2, (row["dtype"], name)


def test_the_oracle_is_within_every_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(accuracy, "BACKENDS", ("reference",))
    for row in rows(CPU, 3):
        assert within(row), row


def test_triton_has_its_row():
    (option,) = (option for option in OPTIONS if option.name == "regression_weight")
    measured = list(rows(device_of("triton"), 1, [option]))
    for row in measured:
        assert max(row["ulps"].values()) <= 2 * max(row["eager_ulps"].values()) + 2, row
    assert [row["backend"] for row in measured] == [*accuracy.BACKENDS] * len(accuracy.DTYPES)


def test_a_wrong_backend_is_seen(monkeypatch: pytest.MonkeyPatch):
    def wrong(problem, name):
        outputs = of_package(problem, name)
        worse = 1 + 4 * torch.finfo(outputs["z gradient"].dtype).eps
        return {**outputs, "z gradient": outputs["z gradient"] * worse}

    monkeypatch.setattr(accuracy, "of_package", wrong)
    monkeypatch.setattr(accuracy, "BACKENDS", ("eager",))
    measured = [row for row in rows(CPU, 1, OPTIONS[:1]) if row["dtype"] != "float32"]
    assert not any(within(row) for row in measured)


def test_the_truth_is_not_rounded():
    problem = OPTIONS[0].problem(HALVES, 0, CPU)
    truth, own = of_pytorch(problem, torch.float64), of_pytorch(problem, torch.float32)
    assert {value.dtype for value in truth.values()} == {torch.float64}
    assert [own[f"{name} gradient"].dtype for name in "rz"] == list(HALVES)
    assert own["loss"].dtype == torch.float32


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_the_truth_is_float64_throughout(option: Any):
    """Whatever an operator takes for the dtype of a number over integers."""
    problem = option.problem(HALVES, 0, CPU)
    truth = of_pytorch(problem, torch.float64)
    torch.set_default_dtype(torch.float64)
    try:
        again = of_pytorch(problem, torch.float64)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(value, again[name]) for name, value in truth.items())


def test_triton_is_measured_where_it_runs(monkeypatch: pytest.MonkeyPatch):
    assert "triton" not in accuracy.absent(device_of("triton"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "set TRITON_INTERPRET=1" in accuracy.absent(CPU)["triton"]


@pytest.mark.usefixtures("without_triton")
def test_the_command_writes_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(accuracy.rows, "__defaults__", (1, OPTIONS[:2]))
    code = main(["bench", "accuracy", "--seeds", "2", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "accuracy.json").read_text())
    assert code == int(not all(within(row) for row in results["rows"]))
    assert (tmp_path / "accuracy.md").read_text() + "\n" == capsys.readouterr().out
    assert len(results["rows"]) == 2 * 2 * len(accuracy.DTYPES)
    assert results["command"].endswith("fused-loss bench accuracy --device cpu --seeds 2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["accuracy.json", "accuracy.md"]


@pytest.mark.parametrize("words", [["--device", "nonsense"], ["--seeds", "0"], ["--seeds", "two"]])
def test_what_makes_no_sense_is_refused(words: list[str], capsys: pytest.CaptureFixture):
    assert main(["bench", "accuracy", *words]) == 2
    assert words[1] in capsys.readouterr().err


def test_the_committed_table_is_within_its_bounds():
    path = Path(__file__).parents[1] / "bench" / "results" / "epyc-2-cores" / "accuracy.json"
    committed = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert all(within(row) for row in committed)
    assert {r["option"] for r in committed} == {option.name for option in OPTIONS}
