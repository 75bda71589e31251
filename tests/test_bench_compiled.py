"""`fused-loss bench compiled`, and whether its committed table is of today's launch table."""

import json
import os
from pathlib import Path

import pytest

from fused_loss.bench import compiled
from fused_loss.bench.calls import launches_go_to
from fused_loss.bench.compiled_families import families
from fused_loss.bench.compiled_table import markdown
from fused_loss.cli import main

COMMITTED = Path(__file__).parents[1] / "bench" / "results" / "sm90-compiled"


def committed() -> dict:
    return json.loads((COMMITTED / compiled.FILE).read_text(encoding="utf-8"))


def test_the_command_writes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture):
    """One family, whose rows are split: two launches."""
    name = "few rows, 32000 classes, bf16"
    assert main(["bench", "compiled", "--families", name, "--out", str(tmp_path)]) == 0
    assert sorted(os.listdir(tmp_path)) == [compiled.FILE, compiled.REPORT]
    assert (tmp_path / compiled.REPORT).read_text() + "\n" == capsys.readouterr().out
    results = json.loads((tmp_path / compiled.FILE).read_text())
    assert results["command"] == f'fused-loss bench compiled --families "{name}"'
    reading, writing = results["rows"]
    assert (reading["kernel"], writing["kernel"]) == ("slices_kernel", "reduce_kernel")
    for row in (reading, writing):
        assert 16 < row["registers"] <= 255
        assert row["spilled"] == 0
        assert row["logits_read_bits"]["128"] == 1  # 8 bfloat16 a thread
        assert 1 <= row["resident"] <= 16
        assert 1 < row["instructions_a_logit"] < 1000
        assert len(row["instructions"]["blocks"]) == 1
        assert row["instructions"]["row"] == 0
    assert writing["gradient_written_bits"] == {"128": 2}  # of the gradient, or of 0


def test_the_committed_table_has_the_tiles_that_the_launch_table_picks():
    """`fused-loss bench compiled --out bench/results/sm90-compiled` writes it anew."""
    today = []

    def launch(made, arguments):
        name = made.kernel.fn.__name__
        if name in compiled.OF_LOGITS:
            tile = {"rows": arguments.get("ROWS", 1), "columns": arguments["BLOCK_C"]}
            today.append((family.name, name, made.programs, tile | {"warps": made.warps}))

    with launches_go_to(launch):
        for family in families():
            family.call.run()
    rows = committed()["rows"]
    shown = [(row["family"], row["kernel"], row["programs"], row["tile"]) for row in rows]
    assert shown == today


def test_the_committed_report_is_of_the_committed_results():
    assert (COMMITTED / compiled.REPORT).read_text(encoding="utf-8") == markdown(committed())


def test_nothing_in_the_committed_table_spills_and_aligned_rows_move_128_bits():
    for row, classes in ((row, int(row["family"].split()[-3])) for row in committed()["rows"]):
        assert row["spilled"] == 0
        assert not row["outputs_read_bits"] or set(row["outputs_read_bits"]) == {"128"}
        if classes % 16 == 0:
            for widths in (row["logits_read_bits"], row["gradient_written_bits"]):
                alone = {bits: count for bits, count in widths.items() if bits != "128"}
                assert not widths or "128" in widths or list(alone.values()) == [1], row["family"]
                assert sum(alone.values()) <= max(2, row["tile"]["rows"])  # 2 if it is read ahead


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "expected"),
    [
        (32, 0, 4, 16),  # by warps: 64 of them
        (33, 0, 4, 12),  # registers are given out in eights: 40 × 128 × 12 = 61440
        (128, 0, 4, 4),
        (255, 0, 8, 1),
        (16, 0, 1, 32),  # by programs
        (32, 100_000, 4, 2),  # by shared memory
    ],
)
def test_how_many_programs_fit(registers: int, shared: int, warps: int, expected: int):
    assert compiled.resident(registers, shared, warps) == expected


def test_instructions_a_row_and_a_logit():
    whole = compiled.per_row(560, (), 1024, {"rows": 2, "columns": 1024, "warps": 4})
    assert whole == {"warp_instructions_a_row": 1120, "instructions_a_logit": 35}
    blocks = compiled.per_row(100, (20, 30), 1025, {"rows": 1, "columns": 512, "warps": 1})
    assert blocks["warp_instructions_a_row"] == 100 + 3 * 50


def test_a_name_that_no_family_has_is_refused(capsys: pytest.CaptureFixture):
    assert main(["bench", "compiled", "--families", "nonsense"]) == 2
    assert "few rows, 32000 classes, bf16" in capsys.readouterr().err


def test_without_triton_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    assert main(["bench", "compiled"]) == 4
    assert "fused-loss[triton]" in capsys.readouterr().err


def test_a_spill_fails_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    (row, *_) = committed()["rows"]
    monkeypatch.setattr(compiled, "rows", lambda chosen: [row | {"spilled": 8}])
    assert main(["bench", "compiled"]) == 1
    assert "1 of 1 launches spill" in capsys.readouterr().out
