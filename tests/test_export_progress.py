import sys

from fused_loss.export.progress import bar, silent


def test_a_bar_takes_what_is_done_and_leaves_stdout_alone(capsys):
    with bar("work") as progress:
        progress(1, 2)
        progress(2, 2)
    assert capsys.readouterr().out == ""


def test_none_is_shown_where_it_is_not_wanted_or_rich_is_missing(capsys, monkeypatch):
    with bar("work", shown=False) as progress:
        assert progress is silent
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with bar("work") as progress:
        assert progress is silent
    silent(1, 2)
    assert capsys.readouterr() == ("", "")
