import argparse
import sys
from io import StringIO
from pathlib import Path

import pytest
from _bench_results import SWEEP, TUTORIAL, simple, write
from rich.console import Console

from fused_loss.bench import render

MADE = simple({"eager": 2e-4, "fused-auto": 1e-4, "copy": 1e-5}, (TUTORIAL, SWEEP[0]))
NAMES = {"speedup.png", "roofline.png", "memory.png", "overhead.png"}


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fused_loss.bench.plots", "fused_loss.bench.marks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def run(folder: Path) -> int:
    parser = argparse.ArgumentParser()
    render.configure(parser)
    return render.run(parser.parse_args([str(folder)]))


def test_a_run_cut_short_is_rendered_later(tmp_path: Path, capsys: pytest.CaptureFixture):
    write(tmp_path, MADE | {"complete": False, "records": MADE["records"][:1]})
    assert run(tmp_path) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"results.json", "report.md", "speedup.png", "memory.png", "overhead.png"}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Cut short" in text
    assert all(f"]({name})" in text for name in names if name.endswith(".png"))
    written = capsys.readouterr().out
    assert all(name in written for name in names - {"results.json"})


def test_a_folder_holds_at_most_eight_files(tmp_path: Path):
    write(tmp_path, MADE)
    assert run(tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == NAMES | {"results.json", "report.md"}


def test_no_results_are_a_message(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert run(tmp_path) == 2
    assert "cannot read" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_there_is_a_report(tmp_path: Path):
    write(tmp_path, MADE)
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):
        run(tmp_path)
    assert ".png" not in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("without_matplotlib")
def test_a_run_without_matplotlib_says_how_to_get_its_plots(tmp_path: Path):
    write(tmp_path, MADE)
    told = StringIO()
    render.show(tmp_path, Console(file=told, width=1000))
    assert "pip install 'fused-loss[bench]'" in told.getvalue()
    assert f"fused-loss bench render {tmp_path}" in told.getvalue()
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "report.md"}
