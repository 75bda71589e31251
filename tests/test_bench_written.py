import json

import pytest

from fused_loss.bench import written
from fused_loss.bench.written import write, write_json


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
