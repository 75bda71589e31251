import argparse
import json
from pathlib import Path

import pytest
from _export import called

from fused_loss.bench import written
from fused_loss.bench.written import folder, write, write_json


def test_a_row_a_line(tmp_path):
    path, rows = tmp_path / "results.json", [{"a": 1}, {"a": [2, 3]}]
    write_json(path, {"schema": 2, "deep": {"x": "y"}}, "rows", rows)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {"schema": 2, "deep": {"x": "y"}, "rows": rows}
    assert '\n{"a": 1},\n{"a": [2, 3]}\n' in text
    write_json(path, {"schema": 2}, "rows", [])
    assert json.loads(path.read_text(encoding="utf-8")) == {"schema": 2, "rows": []}


def test_what_cannot_be_finished_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "report.md"
    write(path, "before")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(written.os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write(path, "after")
    assert path.read_text(encoding="utf-8") == "before"


@pytest.mark.parametrize(
    ("words", "file"),
    [
        ((), "a.json"),
        ((), "a.json/deep/er"),
        (("options",), "a.json"),
        (("accuracy",), "a.json"),
        (("compiled",), "a.json"),
    ],
)
def test_a_file_is_no_folder_and_is_told_before_anything_is_measured(
    tmp_path, capsys, monkeypatch, words, file
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text("old")
    code, out, err = called(capsys, "bench", *words, "--out", file)
    assert (code, out) == (2, "")
    assert "argument --out: " in err
    assert err.endswith("a.json is a file: name a folder\n")
    assert (tmp_path / "a.json").read_text() == "old"


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(written.os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(argparse.ArgumentTypeError, match="cannot be written to: name another"):
        folder(str(tmp_path / "new"))


def test_a_folder_is_there_or_to_be_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("new/er", ".", "..", str(tmp_path), str(tmp_path / "new")):
        assert folder(name) == Path(name)
    assert not list(tmp_path.iterdir())


def test_help_says_that_an_earlier_run_is_written_over(capsys):
    for words in ((), ("options",), ("accuracy",), ("compiled",)):
        _, out, _ = called(capsys, "bench", *words, "--help")
        assert "over those of an earlier run" in " ".join(out.split())
