import json
from itertools import count
from pathlib import Path

import pytest

from fused_loss.bench import host


@pytest.mark.parametrize("shape", host.SHAPES)
def test_every_part_launches_what_it_would(shape, monkeypatch):
    launched = []
    monkeypatch.setattr(host, "_no_launch", lambda call, arguments: launched.append(call.kernel))
    with host.no_launches():
        for name, part in host.parts(*host.SHAPES[shape]).items():
            launched.clear()
            part()
            assert len(launched) == (2 if name == "step" else 1), name


def test_a_figure_is_the_median_without_the_first_round(monkeypatch):
    """Rounds of 9, 1, 2 and 6 seconds, of two calls each."""
    clock = iter([0, 9, 10, 11, 12, 14, 20, 26])
    monkeypatch.setattr(host.time, "thread_time", lambda: next(clock))
    calls = count()
    assert host.microseconds(lambda: next(calls), rounds=3, calls=2) == 1e6
    assert next(calls) == 8


def test_the_command_writes_its_figures(tmp_path, capsys):
    assert host.main(["--rounds", "1", "--calls", "2", "--out", str(tmp_path)]) == 0
    text = (tmp_path / host.REPORT).read_text(encoding="utf-8")
    assert capsys.readouterr().out == text + "\n"
    results = json.loads((tmp_path / host.FILE).read_text(encoding="utf-8"))
    assert results["command"].endswith("bench.host --rounds 1 --calls 2")
    assert host.markdown(results) == text
    found = [(row["shape"], row["part"]) for row in results["rows"]]
    assert len(set(found)) == len(found) == 4 * len(host.SHAPES)
    assert all(row["microseconds"] > 0 for row in results["rows"])


def test_a_line_has_a_part_and_a_column_a_shape():
    environment = {
        "device": {"type": "cpu", "name": "Example CPU", "cores": 2},
        "packages": {"torch": "2"},
        "python": "3",
        "cuda": None,
        "commit": "c0ffee",
    }
    rows = [
        {"shape": shape, "part": part, "microseconds": figure}
        for shape, part, figure in (
            ("small", "step", 1.26), ("small", "forward", 2.0),
            ("large", "step", 31.0), ("large", "forward", 4.46),
        )
    ]  # fmt: skip
    given = {"command": "x", "started": "2026-01-02T03:04:05+00:00", "environment": environment}
    lines = host.markdown(given | {"rows": rows}).splitlines()
    assert lines[-4] == "| part | small, µs | large, µs |"
    assert lines[-2:] == ["| step | 1.3 | 31.0 |", "| forward | 2.0 | 4.5 |"]


def test_the_committed_figures_are_of_their_report():
    folder = Path(__file__).parents[1] / "bench" / "results" / "epyc-2-cores"
    results = json.loads((folder / host.FILE).read_text(encoding="utf-8"))
    assert (folder / host.REPORT).read_text(encoding="utf-8") == host.markdown(results)
