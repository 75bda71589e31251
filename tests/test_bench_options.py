"""`bench options`: both ways agree, every cell is there, and a wrong one does not get a time."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fused_loss.bench import options
from fused_loss.bench.option_cases import CASES
from fused_loss.bench.options import rows, speedup
from fused_loss.cli import main

TINY = ((40, 5, 3),)


def test_the_table_has_every_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(options, "SIZES", TINY)
    monkeypatch.setattr(options, "rows", lambda each: rows(each, CASES[:2], TINY))
    assert main(["bench", "options", "--each", "0.001", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "options.json").read_text(encoding="utf-8"))
    assert results["command"] == "fused-loss bench options --each 0.001"
    assert results["complete"] is True
    found = [(row["option"], row["phase"]) for row in results["rows"]]
    phases = ("forward", "forward+backward")
    assert found == [(case.name, phase) for case in CASES[:2] for phase in phases]
    text = (tmp_path / "options.md").read_text(encoding="utf-8")
    assert "| option | 40x5, forward | 40x5, forward+backward |" in text
    assert "Cut short" not in text
    assert sum(line.startswith(("| defaults", "| reduction")) for line in text.splitlines()) == 2


def test_a_run_cut_short_leaves_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(each: float):
        measured = rows(each, CASES[:2], TINY)
        yield from (next(measured) for _ in range(3))
        raise KeyboardInterrupt

    monkeypatch.setattr(options, "rows", interrupted)
    assert main(["bench", "options", "--each", "0.001", "--out", str(tmp_path)]) == 130
    results = json.loads((tmp_path / "options.json").read_text(encoding="utf-8"))
    assert results["complete"] is False
    assert len(results["rows"]) == 3
    text = (tmp_path / "options.md").read_text(encoding="utf-8")
    assert "**Cut short**: the run ended after 3 measurements." in text
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {CASES[1].name}"))
    assert line.endswith("| – |")


def test_a_cell_is_their_time_over_ours():
    samples = {"eager": [2.0, 4.0, 6.0], "fused": [1.0, 2.0, 3.0]}
    row = {
        name: {"median_s": sorted(values)[1], "samples_s": values}
        for name, values in samples.items()
    }
    assert speedup(row).value == 2.0


def test_what_does_not_agree_is_not_timed():
    wrong = replace(CASES[0], composed=lambda p: CASES[0].composed(p) * 1.01)
    with pytest.raises(AssertionError):
        list(rows(0.001, [wrong], TINY))
