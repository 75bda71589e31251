import argparse
from pathlib import Path

import pytest
from _bench_results import BOARD, TUTORIAL, record, results, simple, timed, untimed, write

from fused_loss.bench import compare
from fused_loss.bench.cases import Phase

BASE = {"eager": 1e-4, "compile": 2e-4, "fused-auto": 3e-4}
SLOWED = BASE | {"fused-auto": 4.5e-4}


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    compare.configure(parser)
    return compare.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.usefixtures("wide")
def test_a_regression_is_named_and_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture):
    before, after = write(tmp_path / "a", simple(BASE)), write(tmp_path / "b", simple(SLOWED))
    assert run(before, after) == 1
    printed = capsys.readouterr().out
    assert "slower in B" in printed
    line = next(line for line in printed.splitlines() if "scaled forward+backward" in line)
    assert "3.00 [3.00, 3.00]" in line
    assert "4.50 [4.50, 4.50]" in line
    assert "1.50×" in line
    assert "4 slower, 0 faster, 8 unchanged" in printed
    assert "4 regressions of this package" in printed


@pytest.mark.usefixtures("wide")
def test_an_improvement_exits_0(tmp_path: Path, capsys: pytest.CaptureFixture):
    write(tmp_path / "a", simple(SLOWED))
    write(tmp_path / "b", simple(BASE, complete=False))
    assert run(tmp_path / "a", tmp_path / "b") == 0
    printed = capsys.readouterr().out
    assert "faster in B" in printed
    assert "0.67×" in printed
    assert "no regressions" in printed
    assert "cut short" in printed


@pytest.mark.usefixtures("wide")
def test_a_change_on_a_crowded_machine_is_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture):
    slowed = simple(SLOWED)
    slowed["records"][0]["crowded"] = True
    assert run(write(tmp_path / "a", simple(BASE)), write(tmp_path / "b", slowed)) == 1
    printed = capsys.readouterr().out
    assert printed.count("1.50×") == 3
    assert "3 measurements not judged" in printed
    assert "repeat them on a quiet machine" in printed


def test_the_threshold_is_the_callers(tmp_path: Path):
    before, after = write(tmp_path / "a", simple(BASE)), write(tmp_path / "b", simple(SLOWED))
    assert run(before, after, "--threshold", "1.6") == 0
    assert run(before, after, "--threshold", "1.6", "--to", "compile") == 0
    assert run(before, after, "--to", "compile") == 1


@pytest.mark.usefixtures("wide")
def test_what_only_one_has_is_grouped(tmp_path: Path, capsys: pytest.CaptureFixture):
    before = write(tmp_path / "a", simple(BASE, (TUTORIAL, BOARD)))
    rows = [timed("eager", 1e-4), timed("compile", 2e-4), untimed("fused-auto", "wrong", "off")]
    after = write(tmp_path / "b", results([record(TUTORIAL, Phase.FORWARD, rows)]))
    assert run(before, after) == 1
    printed = capsys.readouterr().out
    assert "had a time in A: fused-auto on tutorial-100x2, forward: wrong: off" in printed
    rest = "forward+backward, scaled forward+backward, training step"
    assert f"only in A: eager, compile, fused-auto (forward, {rest}) on board-8x65\n" in printed
    assert (
        f"only in A: fused-auto (forward, {rest}); eager, compile ({rest}) on tutorial-100x2\n"
    ) in printed
    assert "only in B" not in printed


@pytest.mark.parametrize("text", [None, "{", '{"schema": 1}'])
def test_an_unreadable_file_exits_2(
    tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture
):
    good, bad = write(tmp_path / "a", simple(BASE)), tmp_path / "bad.json"
    if text is not None:
        bad.write_text(text)
    assert run(good, bad) == run(bad, good) == 2
    errors = capsys.readouterr().err
    assert errors.count("fused-loss bench compare: ") == 2
    assert errors.count(str(bad)) == 2


def test_nothing_in_common_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture):
    first = write(tmp_path / "a", simple(BASE, (TUTORIAL,)))
    assert run(first, write(tmp_path / "b", simple(BASE, (BOARD,)))) == 2
    assert "share no case" in capsys.readouterr().err


@pytest.mark.parametrize("threshold", ["0.9", "nan", "inf", "much"])
def test_a_threshold_below_1_makes_no_sense(threshold: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as exit_info:
        run("a", "b", "--threshold", threshold)
    assert exit_info.value.code == 2
    assert "at least 1" in capsys.readouterr().err
