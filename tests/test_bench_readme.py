import runpy
import sys
from pathlib import Path

import pytest
from _bench_results import (
    BOARD,
    COMMITTED,
    TUTORIAL,
    inference,
    record,
    results,
    simple,
    timed,
    write,
)

from fused_loss.bench.cases import Phase
from fused_loss.bench.markdown import report
from fused_loss.bench.plots import PLOTS
from fused_loss.bench.readme import SECTION, main
from fused_loss.bench.render import render
from fused_loss.bench.stored import load

ROOT = Path(__file__).parents[1]
EMPTY = "# Title\n\n<!-- bench -->\n<!-- /bench -->\n\nThe end.\n"
MADE = simple({"eager": 4e-4, "compile": 1e-4, "fused-auto": 2e-4}, (TUTORIAL, BOARD))


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    write(tmp_path / "results" / "here", MADE)
    path = tmp_path / "README.md"
    path.write_text(EMPTY, encoding="utf-8")
    return path


def filled(readme: Path) -> str:
    assert main([str(readme), str(readme.parent / "results" / "here")]) == 0
    return readme.read_text(encoding="utf-8")


def test_the_figures_stand_between_the_markers(readme: Path):
    text = filled(readme)
    assert text.startswith("# Title\n\n<!-- bench results/here/results.json -->\n\n| case ")
    assert text.endswith("\n\n<!-- /bench -->\n\nThe end.\n")
    assert "| tutorial-100x2 | 2.00× | 0.50× | – | 1.50 | – | 1.50 |" in text
    assert "### Where it is slower" in text
    assert "| tutorial-100x2 | compile 2.00× | compile 2.00× |" in text
    assert "Example CPU, 2 cores; 2 CPU threads; fused-loss 0.1.0, torch 2.13.0" in text
    assert "`fused-loss bench --suite smoke --seconds 0.5`" in text
    assert "the GPU is unmeasured" in text


def test_inference_has_a_table_of_its_own(readme: Path):
    made = inference({"eager": 4e-4, "compile": 2e-4, "aot": 1e-4, "onnx": 2e-4})
    write(readme.parent / "results" / "here", made)
    text = filled(readme)
    assert "| mlp-256-batch-64 | 1 | 2.00× | 1.00× | 0.50× |" in text.replace("≈ ", "")
    assert "| mlp-256-batch-64 | 2 | " in text
    assert "| memory, ours |" not in text
    assert "The exported file in onnxruntime, at its fastest, is slower" in text


def test_a_speed_up_within_the_spread_is_marked(readme: Path):
    wide = [0.7, 0.8, 1.0, 1.4, 1.8]
    rows = [timed("eager", 2.1e-4), timed("fused-auto", 2e-4, wide)]
    write(readme.parent / "results" / "here", results([record(TUTORIAL, Phase.TRAINING, rows)]))
    assert "| tutorial-100x2 | ≈ 1.05× | – | – | 1.50 | – | 1.50 |" in filled(readme)


def test_in_place_is_never_the_ratio_of_a_plain_call(readme: Path):
    rows = [timed("eager", 4e-4), timed("fused-auto", 2e-4), timed("fused-auto-inplace", 1e-4)]
    write(readme.parent / "results" / "here", results([record(TUTORIAL, Phase.TRAINING, rows)]))
    assert "| tutorial-100x2 | 2.00× | – | 4.00× | 1.50 | 1.50 | 1.50 |" in filled(readme)


def test_what_lies_beside_the_results_is_linked(readme: Path):
    assert "](" not in filled(readme)
    for _ in render(readme.parent / "results" / "here"):
        pass
    assert main([str(readme)]) == 0
    text = readme.read_text(encoding="utf-8")
    assert "![Speed-up by case](results/here/speedup.png)" in text
    assert "[Every figure](results/here/report.md)." in text


def test_check_writes_nothing_and_shows_what_drifted(readme: Path, capsys: pytest.CaptureFixture):
    text = filled(readme)
    assert main([str(readme), "--check"]) == 0
    assert capsys.readouterr().out == ""
    drifted = text.replace("2.00×", "2.50×")
    readme.write_text(drifted, encoding="utf-8")
    assert main([str(readme), "--check"]) == 1
    shown = capsys.readouterr().out
    assert "-| tutorial-100x2 | 2.50× | 0.50× | – | 1.50 | – | 1.50 |" in shown
    assert "+| tutorial-100x2 | 2.00× | 0.50× | – | 1.50 | – | 1.50 |" in shown
    assert readme.read_text(encoding="utf-8") == drifted
    assert main([str(readme)]) == 0
    assert readme.read_text(encoding="utf-8") == text


def test_sections_are_rendered_each_from_its_own_file(readme: Path):
    other = simple({"eager": 9e-4, "fused-auto": 1e-4}, (TUTORIAL,))
    write(readme.parent / "results" / "there", other)
    markers = "<!-- bench results/there/results.json -->\n<!-- /bench -->\n"
    readme.write_text(EMPTY + markers, encoding="utf-8")
    first, second = SECTION.finditer(filled(readme))
    assert "| tutorial-100x2 | 2.00×" in first[0]
    assert "| tutorial-100x2 | 9.00×" in second[0]


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("no markers", [], "there is no section between <!-- bench"),
        ("<!-- bench --> never closed", [], "there is no section"),
        (EMPTY, [], "names no file"),
        (EMPTY.replace("bench -->", "bench gone/results.json -->", 1), [], "cannot read"),
        (EMPTY, ["gone.json"], "cannot read"),
        (EMPTY.replace("bench -->", "bench results/here -->", 1), ["a.json"], "no marker names"),
    ],
)
def test_what_cannot_be_rendered_exits_2_and_leaves_the_readme(
    readme: Path, text: str, words: list[str], message: str, capsys: pytest.CaptureFixture
):
    readme.write_text(text, encoding="utf-8")
    for check in ([], ["--check"]):
        assert main([str(readme), *words, *check]) == 2
        assert message in capsys.readouterr().err
    assert readme.read_text(encoding="utf-8") == text


def test_it_runs_as_a_module(readme: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(readme.parent)
    monkeypatch.delitem(sys.modules, "fused_loss.bench.readme")
    for words, status in ((["results/here"], 0), (["--check"], 0), (["gone"], 2)):
        monkeypatch.setattr(sys, "argv", ["readme", "README.md", *words])
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_module("fused_loss.bench.readme", run_name="__main__")
        assert exit_info.value.code == status


def test_the_readme_says_what_its_results_say(capsys: pytest.CaptureFixture):
    status = main([str(ROOT / "README.md"), "--check"])
    said = capsys.readouterr()
    again = "python -m fused_loss.bench.readme README.md"
    assert status == 0, f"{said.err}{said.out}mend with: {again}"
    sections = SECTION.finditer((ROOT / "README.md").read_text(encoding="utf-8"))
    named = {(ROOT / section["file"]).resolve() for section in sections}
    assert named <= {path.resolve() for path in COMMITTED}


def test_committed_reports_say_what_their_results_say():
    for path in COMMITTED:
        text = (path.parent / "report.md").read_text(encoding="utf-8")
        beside = [name for name in PLOTS if (path.parent / name).is_file()]
        mend = f"mend with: fused-loss bench render {path.parent}"
        assert text == report(load(path), beside), mend
